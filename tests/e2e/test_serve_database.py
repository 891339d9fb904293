"""The service on a PostgreSQL of the operator's own."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.e2e.processes import Server, command, free_address, health, not_started, status
from tests.support import KEYS, connected, refused, userpass

SERVERS = 4


def with_query(url: str, **query: str) -> str:
    parts = urlsplit(url)
    merged = {k: v[0] for k, v in parse_qs(parts.query).items()} | query
    text = "&".join(f"{k}={quote(v, safe='')}" for k, v in merged.items())
    return f"{parts.scheme}://{parts.netloc}{parts.path}?{text}"


async def test_several_servers_may_start_at_once_on_an_empty_database(
    tmp_path: Path, empty_database: str
) -> None:
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(
                Server(tmp_path, database_url=empty_database, secret_keys=KEYS)
            )
            for _ in range(SERVERS)
        ]
        addresses = await asyncio.gather(*(server.ready() for server in servers))
        assert len(set(addresses)) == SERVERS
        stubs = [await stack.enter_async_context(connected(a)) for a in addresses]
        made = await stubs[0].CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
        for stub in stubs:
            assert await stub.GetSipTrunk(pb.GetSipTrunkRequest(id=made.id)) == made
        assert not (tmp_path / "data").exists()
        assert [(await server.stop()).code for server in servers] == [0] * SERVERS


async def test_a_database_whose_first_host_is_dead_is_served(tmp_path: Path, database: str) -> None:
    sockets = parse_qs(urlsplit(database).query)["host"][0]
    dead = int(free_address().rpartition(":")[2])
    url = with_query(database, host=f"127.0.0.1,{sockets}", port=f"{dead},5432")
    async with Server(tmp_path, database_url=url, secret_keys=KEYS) as server:
        address = await server.ready()
        assert await status(address) == "SERVING"
        async with connected(address) as stub:
            await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))


async def test_an_empty_database_that_is_not_to_be_migrated_waits_for_the_command(
    tmp_path: Path, empty_database: str
) -> None:
    address = free_address()
    variables = {"database_url": empty_database, "secret_keys": KEYS}
    async with Server(tmp_path, migrate="off", grpc_address=address, **variables) as server:
        assert "`trunkline migrate`" in await server.logged("not_ready")
        assert await status(address) == "NOT_SERVING"
        assert await status(address, "liveness") == "SERVING"
        async with connected(address) as stub:
            error = await refused(stub.ListSipTrunks(pb.ListSipTrunksRequest()))
        assert (error.code, error.reason) == ("UNAVAILABLE", "SCHEMA_BEHIND")
        assert "`trunkline migrate`" in error.message
        assert not server.is_ready
        migrated = await command("migrate", **variables)
        assert (migrated.code, migrated.err) == (0, "")
        assert migrated.out.splitlines()[-1].startswith("schema is at ")
        assert await server.ready() == address
        assert await status(address) == "SERVING"
    assert (await command("migrate", **variables)).out == migrated.out.splitlines()[-1] + "\n"


async def test_the_schema_of_a_newer_version_is_left_alone(tmp_path: Path, database: str) -> None:
    connection = await asyncpg.connect(database)
    await connection.execute("INSERT INTO schema_migrations VALUES (9999, 'future', 'unknown')")
    await connection.close()
    address = free_address()
    variables = {"database_url": database, "secret_keys": KEYS}
    async with Server(tmp_path, grpc_address=address, **variables) as server:
        line = await server.logged("not_ready")
        assert "9999" in line
        assert "newer" in line
        assert await status(address) == "NOT_SERVING"
        async with connected(address) as stub:
            error = await refused(stub.ListSipTrunks(pb.ListSipTrunksRequest()))
        assert (error.code, error.reason) == ("UNAVAILABLE", "SCHEMA_UNKNOWN")
        assert (await server.stop()).code == 0
        assert not server.is_ready
    done = await command("migrate", **variables)
    assert done.code == 1
    assert "9999" in done.err
    assert done.err.count("\n") == 1


async def test_a_server_starts_before_its_database(tmp_path: Path, database: str) -> None:
    """The database is not there, as its host name answers nothing, and then it is."""
    address = free_address()
    late = tmp_path / "late"
    url = with_query(database, host=str(late))
    async with Server(tmp_path, database_url=url, secret_keys=KEYS, grpc_address=address) as server:
        await server.logged("not_ready")
        assert await status(address) == "NOT_SERVING"
        late.symlink_to(parse_qs(urlsplit(database).query)["host"][0])
        assert await server.ready() == address
        async with health(address):
            assert await status(address) == "SERVING"


async def test_a_server_that_waits_for_its_database_ends_on_a_signal(tmp_path: Path) -> None:
    url = f"postgresql://nobody@{free_address()}/nothing"
    async with Server(tmp_path, database_url=url, secret_keys=KEYS) as server:
        await server.logged("not_ready")
        done = await server.stop()
    assert done.code == 0
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "url",
    [
        "mysql://nobody@127.0.0.1/nothing",
        "postgresql://nobody:fake-Pass/w0rd@127.0.0.1:5432/nothing",
        "postgresql://nobody:fake-Pass@127.0.0.1:port/nothing",
        "postgresql://nobody:fake-Pass@[::1/nothing",
    ],
)
async def test_a_database_url_that_cannot_be_read_is_refused_without_showing_it(
    tmp_path: Path, url: str
) -> None:
    done = await not_started(Server(tmp_path, database_url=url, secret_keys=KEYS))
    assert done.code == 78
    assert len(done.complaints) == 1
    assert "TRUNKLINE_DATABASE_URL" in done.complaints[0]
    assert "fake-Pass" not in done.err
