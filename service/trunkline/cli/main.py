"""Reads the command line; exit codes: 0, 1 failed, 2 usage, 78 configuration (sysexits.h)."""

import argparse
import asyncio
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence

from trunkline import config, tokens
from trunkline.cli import admin, call, follow, limits, probe, protos, secrets, serve
from trunkline.config import Settings, SettingsError
from trunkline.embedded import EmbeddedError
from trunkline.errors import TrunklineError
from trunkline.migrate import SchemaError

Command = Callable[[Settings, argparse.Namespace], int]
FAILED, CONFIGURATION, INTERRUPTED = 1, 78, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit code."""
    parsed = _parser().parse_args(arguments)
    flags = {f.name: getattr(parsed, f.name, None) for f in config.names()}
    try:
        if getattr(parsed, "try_it", False):
            flags |= serve.try_flags(flags, os.environ)
        settings, parsed.sources = config.load(os.environ, flags)
        for name in config.unknown_variables(os.environ):
            print(f"trunkline: {name} is not a setting and is ignored", file=sys.stderr)
        run: Command = parsed.run
        return run(settings, parsed)
    except SettingsError as error:
        return _say(error, CONFIGURATION)
    except (EmbeddedError, SchemaError, OSError) as error:
        return _say(error, FAILED)
    except TrunklineError as error:
        return _say(f"{error.message}\n{error.detail}".strip(), FAILED)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return INTERRUPTED


def _say(what: object, code: int) -> int:
    for line in str(what).splitlines():
        print(f"trunkline: {line}", file=sys.stderr)
    return code


def _show_config(settings: Settings, parsed: argparse.Namespace) -> int:
    origins = {s.name: s.origin for s in parsed.sources}
    for f in config.names():
        value = getattr(settings, f.name)
        shown = ("(set)" if value else "(not set)") if f.metadata["secret"] else _plain(value)
        print(f"{config.variable(f.name)}={shown}")
        print(f"    {config.flag(f.name)}; from {origins[f.name]}")
        print(f"    {f.metadata['meaning']}")
    print("\nLimits that are not settings:")
    for limit in limits.LIMITS:
        print(f"{limit.name}={limit.value:.10g}")
        print(f"    {limit.meaning}")
    return 0


def _plain(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trunkline",
        description="The self-hosted gRPC control plane for SIP trunks.",
        epilog="Every setting is a TRUNKLINE_* variable; `trunkline config` lists them all."
        " Exit codes: 0 done, 1 failed, 2 usage, 78 configuration.",
    )
    version = importlib.metadata.version("trunkline")
    parser.add_argument("--version", action="version", version=f"trunkline {version}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    one = _command(commands, "serve", "run the service", serve.run)
    one.add_argument(
        "--try",
        dest="try_it",
        action="store_true",
        help="make a token in the data directory and print a first call",
    )
    one = _command(commands, "gateway", "run the HTTP gateway alone", serve.run_gateway)
    one.add_argument(
        "--upstream", required=True, metavar="HOST:PORT", help="the gRPC service that it is of"
    )
    one = _command(commands, "migrate", "bring the database's schema up to date", admin.migrate)
    _accounts(commands)
    _tokens(commands)
    _secrets(commands)
    one = _command(commands, "call", "call a method of a running service", call.run)
    one.add_argument("method", metavar="METHOD", help="for example UpdateSipTrunk")
    one.add_argument(
        "json", metavar="JSON", nargs="?", default="{}", help="the request; - reads it"
    )
    _token_file(one)
    one.add_argument(
        "--timeout", type=float, default=call.SECONDS, metavar="SECONDS", help="of the whole call"
    )
    _follow(commands)
    _for_deployments(commands)
    _command(commands, "config", "print every setting, where its value is from", _show_config)
    return parser


def _token_file(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--token-file", metavar="FILE", help="holds the token; else the variable TRUNKLINE_TOKEN"
    )


def _follow(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    one = _command(commands, "watch", "print changes of trunks as they come", follow.watch)
    _token_file(one)
    begin = one.add_mutually_exclusive_group()
    begin.add_argument("--resume", metavar="TOKEN", help="go on after an earlier watch")
    begin.add_argument("--initial", action="store_true", help="print every trunk first")
    one.add_argument("--filter", metavar="FILTER", help="for example is_active=true")
    one.add_argument(
        "--all-accounts", action="store_true", help="of every account; needs operator:read"
    )
    one.add_argument("--json", action="store_true", help="one line of JSON for each event")
    one = _command(commands, "history", "print what was changed of a trunk", follow.history)
    _token_file(one)
    one.add_argument("trunk", metavar="ID", help="the trunk's id")
    one.add_argument(
        "--limit", type=int, default=follow.PAGE, metavar="N", help="the most revisions to print"
    )
    one.add_argument("--json", action="store_true", help="one line of JSON for each revision")


def _for_deployments(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    one = _command(commands, "probe", "ask a server whether it is healthy", probe.run)
    one.add_argument(
        "address", metavar="ADDRESS", nargs="?", help="HOST:PORT or unix:PATH; else as the settings"
    )
    one.add_argument("--service", default="", metavar="NAME", help="`liveness`; else readiness")
    one.add_argument(
        "--timeout", type=float, default=probe.SECONDS, metavar="SECONDS", help="of the answer"
    )
    one = _command(commands, "protos", "write the .proto files and the descriptor set", protos.run)
    one.add_argument("directory", metavar="DIR", help="made where it is not there")


def _accounts(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = commands.add_parser("accounts", help="make and list accounts").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    one = _command(group, "create", "make an account", admin.create_account)
    one.add_argument("account", metavar="ID", help="lower-case letters, digits and hyphens")
    one = _command(group, "list", "list the accounts", admin.list_accounts)
    one.add_argument("--json", action="store_true", help="as JSON")


def _tokens(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = commands.add_parser("tokens", help="make, list and revoke tokens").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    one = _command(group, "create", "make a token and print it, once", admin.create_token)
    one.add_argument("--account", required=True, metavar="ID", help="whose token it is")
    one.add_argument("--name", required=True, metavar="NAME", help="what it is for")
    one.add_argument("--scopes", required=True, metavar="A,B", help=", ".join(tokens.SCOPES))
    one.add_argument(
        "--expires",
        metavar="AGE",
        help="for example 30d, 12h or 15m; without it the token never expires",
    )
    one = _command(group, "list", "list the tokens, without their secrets", admin.list_tokens)
    one.add_argument("--json", action="store_true", help="as JSON")
    one = _command(group, "revoke", "revoke a token", admin.revoke_token)
    one.add_argument("token", metavar="ID", help="the token's id, as `tokens list` prints it")


def _secrets(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    group = commands.add_parser("secrets", help="see and change the keys that seal").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    one = _command(group, "status", "print how much is sealed under which key", secrets.status)
    one.add_argument("--json", action="store_true", help="as JSON")
    one = _command(group, "rotate", "seal all secrets under the newest key", secrets.rotate)
    one.description = secrets.ORDER
    one.formatter_class = argparse.RawDescriptionHelpFormatter


def _command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    meaning: str,
    run: Command,
) -> argparse.ArgumentParser:
    one = commands.add_parser(name, help=meaning, description=meaning.capitalize() + ".")
    one.set_defaults(run=run)
    settings = one.add_argument_group("settings", "see `trunkline config`")
    for f in config.names():
        settings.add_argument(
            config.flag(f.name),
            dest=f.name,
            metavar="VALUE",
            help=f.metadata["meaning"].replace("%", "%%"),
        )
    return one
