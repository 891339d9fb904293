"""The commands as an operator meets them: what they print, where, and how they end."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.e2e.processes import SECONDS_MAX, Server, command
from tests.support import KEYS, TOKEN, connected, ip_based, refused
from trunkline import config
from trunkline.tokens import SCOPES

ALL_SCOPES = ",".join(SCOPES)
COMMANDS: list[tuple[str, ...]] = [
    (),
    ("serve",),
    ("migrate",),
    ("accounts",),
    ("accounts", "create"),
    ("accounts", "list"),
    ("tokens",),
    ("tokens", "create"),
    ("tokens", "list"),
    ("tokens", "revoke"),
    ("call",),
    ("watch",),
    ("history",),
    ("secrets",),
    ("secrets", "status"),
    ("secrets", "rotate"),
    ("config",),
]


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A service that runs while the commands are given."""
    async with Server(tmp_path_factory.mktemp("served")) as server:
        await server.ready()
        yield server


@pytest.fixture(params=["running", "stopped", "url"])
async def where(
    request: pytest.FixtureRequest, tmp_path: Path, served: Server, database: str
) -> dict[str, str]:
    """Settings that lead the commands to a database: of a service that runs, of none, by URL."""
    if request.param == "url":
        return {"database_url": database}
    return {"data_dir": str(served.data if request.param == "running" else tmp_path / "data")}


async def printed(*arguments: str, **variables: str) -> str:
    """What a command prints that does its work."""
    done = await command(*arguments, **variables)
    assert (done.code, done.err) == (0, "")
    return done.out


async def new_token(account: str, *more: str, scopes: str = ALL_SCOPES, **variables: str) -> str:
    arguments = ("--account", account, "--name", "a test", "--scopes", scopes)
    return (await printed("tokens", "create", *arguments, *more, **variables)).strip()


async def tokens(**variables: str) -> dict[str, Any]:
    rows = json.loads(await printed("tokens", "list", "--json", **variables))
    return {row["id"]: row for row in rows}


async def test_accounts_and_tokens_can_be_made_wherever_the_database_is(
    where: dict[str, str],
) -> None:
    assert await printed("accounts", "create", "acme-1", **where) == "acme-1\n"
    again = await command("accounts", "create", "acme-1", **where)
    assert (again.code, again.out) == (1, "")
    assert again.err == "trunkline: there is an account acme-1 already\n"

    accounts = json.loads(await printed("accounts", "list", "--json", **where))
    assert [set(a) for a in accounts if a["id"] == "acme-1"] == [{"id", "created_at"}]
    assert any(
        line.startswith("acme-1  ")
        for line in (await printed("accounts", "list", **where)).splitlines()
    )

    text = await new_token("acme-1", "--expires", "30d", scopes="trunks:read", **where)
    assert text.startswith("tl_")
    token_id = text.split("_")[1]
    row = (await tokens(**where))[token_id]
    assert (row["account_id"], row["name"], row["scopes"]) == ("acme-1", "a test", ["trunks:read"])
    assert row["expires_at"] > row["created_at"]
    assert row["revoked_at"] is None

    assert await printed("tokens", "revoke", token_id, **where) == ""
    assert await printed("tokens", "revoke", token_id, **where) == ""
    assert (await tokens(**where))[token_id]["revoked_at"] is not None
    listed = await printed("tokens", "list", **where) + json.dumps(await tokens(**where))
    assert text not in listed
    assert text.split("_")[2] not in listed


async def test_a_new_token_works_and_a_revoked_one_soon_does_not(served: Server) -> None:
    data = str(served.data)
    await printed("accounts", "create", "tokens", data_dir=data)
    text = await new_token("tokens", data_dir=data)
    async with connected(await served.ready(), text) as stub:
        await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=ip_based()))
        await printed("tokens", "revoke", text.split("_")[1], data_dir=data)

        async def until_refused() -> str:
            while True:
                try:
                    await stub.ListSipTrunks(pb.ListSipTrunksRequest())
                except Exception:
                    return (await refused(stub.ListSipTrunks(pb.ListSipTrunksRequest()))).code
                await asyncio.sleep(0.1)

        async with asyncio.timeout(SECONDS_MAX):
            assert await until_refused() == "UNAUTHENTICATED"


async def test_a_token_that_does_not_expire_says_so_by_its_absence(served: Server) -> None:
    data = str(served.data)
    await printed("accounts", "create", "endless", data_dir=data)
    text = await new_token("endless", data_dir=data)
    assert (await tokens(data_dir=data))[text.split("_")[1]]["expires_at"] is None


async def test_the_bootstrap_token_is_never_stored_in_clear(served: Server) -> None:
    for path in served.data.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in served.out + served.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "COMMAND"),
        (("fly",), 2, "fly"),
        (("serve", "--fly"), 2, "--fly"),
        (("accounts",), 2, "COMMAND"),
        (("accounts", "create"), 2, "ID"),
        (("accounts", "create", "Upper"), 2, "lower-case"),
        (("accounts", "create", "a" * 64), 2, "63"),
        (("accounts", "create", "-a"), 2, "ID"),
        (("tokens", "create", "--account", "default", "--name", "n"), 2, "--scopes"),
        (
            ("tokens", "create", "--account", "default", "--name", "n", "--scopes", "trunks:fly"),
            2,
            "trunks:read, trunks:write, account:admin",
        ),
        (
            ("tokens", "create", "--account", "default", "--name", "", "--scopes", "trunks:read"),
            2,
            "--name",
        ),
        (
            ("tokens", "create", "--account", "default", "--name", "a\nb", "--scopes", ALL_SCOPES),
            2,
            "--name",
        ),
        (
            (
                *[
                    "tokens",
                    "create",
                    "--account",
                    "default",
                    "--name",
                    "n",
                    "--expires",
                    "soon",
                    "--scopes",
                ],
                ALL_SCOPES,
            ),
            2,
            "30d",
        ),
        (
            ("tokens", "create", "--account", "nobody", "--name", "n", "--scopes", ALL_SCOPES),
            1,
            "no account nobody; see `trunkline accounts create`",
        ),
        (("tokens", "revoke", "none"), 1, "`trunkline tokens list`"),
        (("call", "Fly"), 2, "ListSipTrunks"),
        (("call", "ListSipTrunks", "--timeout", "soon"), 2, "--timeout"),
    ],
)
async def test_a_command_that_cannot_work_says_why(
    served: Server, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = await command(*arguments, data_dir=str(served.data))
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    *usage, last = done.err.splitlines()
    assert last.startswith("trunkline")
    # Only argparse says more than one line, and all of that is the usage.
    assert not usage or usage[0].startswith("usage: trunkline")


async def test_a_database_that_cannot_be_reached_is_said_and_why(served: Server) -> None:
    url = "postgresql://nobody:fake-secret-word@127.0.0.1:1/nothing"
    done = await command("accounts", "list", database_url=url)
    assert (done.code, done.out) == (1, "")
    assert len(done.err.splitlines()) == 2
    assert "database" in done.err
    assert "fake-secret-word" not in done.err


async def test_a_database_url_that_cannot_be_read_is_one_line_without_it(served: Server) -> None:
    url = "postgresql://nobody:fake-secret/word@127.0.0.1:5432/nothing"
    done = await command("accounts", "list", database_url=url)
    assert (done.code, done.out) == (78, "")
    assert len(done.err.splitlines()) == 1
    assert "TRUNKLINE_DATABASE_URL" in done.err
    assert "fake-secret" not in done.err


async def test_config_prints_every_setting_with_its_source_and_meaning() -> None:
    done = await command("config", "--log-level", "debug", data_dir="/srv/trunks", reflection="0")
    assert done.code == 0
    lines = done.out.splitlines()
    for f in config.names():
        position = next(
            i for i, line in enumerate(lines) if line.startswith(f"{config.variable(f.name)}=")
        )
        told = " ".join(lines[position : position + 3])
        assert config.flag(f.name) in told
        assert f.metadata["meaning"] in told
        source = {
            "log_level": "from --log-level",
            "data_dir": "from TRUNKLINE_DATA_DIR",
            "reflection": "from TRUNKLINE_REFLECTION",
        }
        assert source.get(f.name, "from default") in told
    assert "TRUNKLINE_LOG_LEVEL=debug" in lines
    assert "TRUNKLINE_DATA_DIR=/srv/trunks" in lines
    assert "TRUNKLINE_REFLECTION=0" in lines


async def test_config_never_prints_a_secret() -> None:
    secrets = {
        "database_url": "postgresql://user:fake-database-word@db.example.com/trunks",
        "bootstrap_token": TOKEN,
        "secret_keys": KEYS,
    }
    done = await command("config", **secrets)
    assert done.code == 0
    for word in ("fake-database-word", TOKEN, KEYS.partition(":")[2]):
        assert word not in done.out + done.err
    for name in secrets:
        assert f"{config.variable(name)}=(set)" in done.out.splitlines()


async def test_a_flag_goes_before_its_variable() -> None:
    out = await printed("config", "--log-level", "error", log_level="debug")
    assert "TRUNKLINE_LOG_LEVEL=error" in out.splitlines()


async def test_an_unknown_variable_is_warned_about_by_name() -> None:
    done = await command("config", grpc_adress="127.0.0.1:1")
    assert done.code == 0
    assert len(done.err.splitlines()) == 1
    assert "TRUNKLINE_GRPC_ADRESS" in done.err


async def test_what_kubernetes_injects_is_no_setting() -> None:
    # A Service named `trunkline` puts these into every pod of its namespace.
    injected = {
        "port": "tcp://10.0.0.1:50051",
        "service_host": "10.0.0.1",
        "service_port": "50051",
        "service_port_grpc": "50051",
        "port_50051_tcp": "tcp://10.0.0.1:50051",
        "port_50051_tcp_addr": "10.0.0.1",
        "port_50051_tcp_port": "50051",
        "port_50051_tcp_proto": "tcp",
    }
    assert await printed("config", **injected) == await printed("config")


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
async def test_every_command_has_help(names: tuple[str, ...]) -> None:
    out = await printed(*names, "--help")
    assert out.startswith(" ".join(("usage: trunkline", *names)))
    assert max(map(len, out.splitlines())) <= 100


async def test_the_help_names_every_command_and_the_exit_codes() -> None:
    out = await printed("--help")
    for name in {names[0] for names in COMMANDS if names}:
        assert f"    {name} " in out
    for code in ("0 ", "1 ", "2 ", "78 "):
        assert code in out.partition("Exit codes")[2]


async def test_the_version_is_printed() -> None:
    assert (await printed("--version")).startswith("trunkline ")
