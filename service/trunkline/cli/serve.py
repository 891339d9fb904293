"""`trunkline serve`: runs the service until a signal."""

import argparse
import asyncio
import os
import secrets
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import uvloop

from trunkline import config, logs, tracing
from trunkline.config import Settings, SettingsError
from trunkline.server import Running, fronting, serving

TOKEN_FILE = "token"  # noqa: S105 - a file's name
TOGETHER_SECONDS = 0.5
"""Of signals: within that they are one."""
_FIRST_TRUNK = (
    '{"sip_trunk":{"name":"Acme Mumbai","provider":"plivo","auth_type":"USERPASS",'
    '"auth_username":"acme","auth_password":"change-me","gateways":[{"gateway_address":'
    '"sip.example.com"}]}}'
)

_FIRST_TRUNK_HTTP = (
    '{"name":"Acme Pune","provider":"plivo","auth_type":"userpass","auth_username":"acme",'
    '"auth_password":"change-me","gateways":[{"gateway_address":"sip.example.com"}]}'
)


def run(settings: Settings, parsed: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process at once."""
    logs.configure(settings.log_level, settings.log_format)
    return uvloop.run(_serve(settings, hints=parsed.try_it))


def run_gateway(settings: Settings, parsed: argparse.Namespace) -> int:
    """Run the HTTP gateway of a gRPC service elsewhere until SIGTERM or SIGINT."""
    logs.configure(settings.log_level, settings.log_format)
    if not settings.http_address:
        raise SettingsError("TRUNKLINE_HTTP_ADDRESS: is needed")
    return uvloop.run(_gateway(settings, parsed.upstream))


def try_flags(
    flags: Mapping[str, str | None], environment: Mapping[str, str]
) -> dict[str, str | None]:
    """The bootstrap token of a service that is tried: made once, kept in the data directory."""
    found, _ = config.load(environment, flags)
    if found.bootstrap_token or found.database_url:
        return {}
    path = Path(found.data_dir) / TOKEN_FILE
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
    return {"bootstrap_token": path.read_text("utf-8").strip()}


async def _gateway(settings: Settings, target: str) -> int:
    stop = _stop_on_signals()
    async with tracing.running() as traces, fronting(settings, target, traces) as addresses:
        front, counts = addresses
        told = f" metrics={counts}" if counts else ""
        print(f"trunkline ready http={front}{told}", flush=True)
        await stop.wait()
    return 0


def _stop_on_signals() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second one ends the process at once.

    What comes together is one: `timeout` sends its signal to the process and to its group.
    """
    stop = asyncio.Event()
    again = asyncio.get_running_loop().time()

    def on_signal() -> None:
        nonlocal again
        now = asyncio.get_running_loop().time()
        if not stop.is_set():
            stop.set()
            again = now + TOGETHER_SECONDS
        elif now >= again:
            os._exit(1)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop


async def _serve(settings: Settings, *, hints: bool) -> int:
    stop = _stop_on_signals()
    async with tracing.running() as traces, serving(settings, traces) as running:
        stopping = asyncio.create_task(stop.wait())
        ready = asyncio.create_task(running.startup.ready.wait())
        try:
            await asyncio.wait(
                (stopping, ready, running.failed), return_when=asyncio.FIRST_COMPLETED
            )
            if ready.done() and not stopping.done():
                _announce(settings, running, hints=hints)
            await asyncio.wait((stopping, running.failed), return_when=asyncio.FIRST_COMPLETED)
            if running.failed.done():
                running.failed.result()
        finally:
            stopping.cancel()
            ready.cancel()
    return 0


def _announce(settings: Settings, running: Running, *, hints: bool) -> None:
    if hints:
        print("\n" + "\n\n".join(_hints(settings, running)) + "\n")
    front = f" http={running.http_address}" if running.http_address else ""
    counts = f" metrics={running.metrics_address}" if running.metrics_address else ""
    print(f"trunkline ready grpc={running.grpc_address}{front}{counts}", flush=True)


def _hints(settings: Settings, running: Running) -> Iterator[str]:
    """First calls, as they can be pasted into a shell in this directory."""
    path = Path(settings.data_dir) / TOKEN_FILE
    acts = running.startup.bootstrap and path.exists()
    acts = acts and path.read_text("utf-8").strip() == settings.bootstrap_token
    token = shlex.quote(str(path)) if acts else "FILE-WITH-A-TOKEN"
    bearer = f'-H "authorization: Bearer $(cat {token})"'
    grpcurl, scheme, curl, call = "-plaintext", "http", "", ""
    if settings.tls_cert:
        ca = shlex.quote(settings.tls_ca) if settings.tls_ca else "FILE-WITH-THE-CA"
        grpcurl, scheme, curl, call = f"-cacert {ca}", "https", f"--cacert {ca} ", f" --tls-ca {ca}"
    if settings.tls_client_ca:
        grpcurl += " -cert FILE -key FILE"
        curl += "--cert FILE --key FILE "
        call += " --tls-cert FILE --tls-key FILE"
    yield "A first trunk, with grpcurl:"
    yield (
        f"  grpcurl {grpcurl} {bearer} \\\n    -d '{_FIRST_TRUNK}' \\\n"
        f"    {running.grpc_address} siptrunk.v1.SipTrunkService/CreateSipTrunk"
    )
    if running.http_address:
        yield "or with curl:"
        yield (
            f'  curl {curl}{bearer} -H "content-type: application/json" \\\n'
            f"    {scheme}://{running.http_address}/sip-trunks/trunks"
            f" \\\n    -d '{_FIRST_TRUNK_HTTP}'"
        )
    yield "or with nothing but this installation:"
    yield (
        f"  {shlex.quote(os.path.relpath(Path(sys.argv[0])))} call --token-file {token}{call}"
        f" --grpc-address {running.grpc_address} CreateSipTrunk \\\n    '{_FIRST_TRUNK}'"
    )
