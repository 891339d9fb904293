"""A PostgreSQL that is restarted, silent, slow or full, under one server that goes on."""

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.chaos.clusters import FAST, IMMEDIATE, Node, node
from tests.chaos.counting import CALL_SECONDS, LOST, Load, until_health
from tests.chaos.fleet import reaching
from tests.chaos.size import sized
from tests.chaos.wire import wired
from tests.e2e.processes import SECONDS_MAX, Server, events, health, status
from tests.integration.conftest import created, minted
from tests.support import KEYS, connected, refusal, update

RESTARTS = sized(1, 10)
ANSWERS = sized(5, 50)
"""How many each caller gets before and after each fault, at least."""
CALLS = 20
DEADLINE_SECONDS = 1.0
DEADLINES: list[float | None] = sized([DEADLINE_SECONDS], [DEADLINE_SECONDS, None])
"""What callers wait for while the database is silent; none: for as long as the server does."""
POOL = 3
DRAIN_SECONDS = 1
STOP_SECONDS_MAX = 40
"""The drain, two pools and what is under way, each by its own bound, and no more than that."""
DELAY_SECONDS = 0.2
WAIT_SECONDS = 1
CALLS_MAX = 12
SLOW_CALLERS = 40
BUSY = ("UNAVAILABLE", "DATABASE_BUSY")
TOO_MANY = ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")
OK = ("OK", "")
DISK_BYTES = 160 << 20
SWITCHES_MAX = 50
METHOD = "/siptrunk.v1.SipTrunkService/UpdateSipTrunk"


@asynccontextmanager
async def served(directory: Path, url: str, **variables: str) -> AsyncIterator[Server]:
    """A server that is ready, with a TCP or UNIX way to the database."""
    defaults = {"secret_keys": KEYS, "log_level": "info", "drain_seconds": str(DRAIN_SECONDS)}
    async with Server(directory, database_url=url, **defaults | variables) as server:
        await server.ready()
        yield server


def address_of(server: Server) -> str:
    """Where a server that is ready answers."""
    return server.out.split("grpc=")[-1].split()[0]


@asynccontextmanager
async def loaded(url: str, server: Server, trunks: int = 1) -> AsyncIterator[Load]:
    """Callers of a server, which do not call yet."""
    token = (await minted(url, "ours")).text
    async with reaching(address_of(server), token) as stub:
        load = Load([stub])
        await load.make(trunks)
        yield load


@asynccontextmanager
async def telling(address: str) -> AsyncIterator[list[str]]:
    """What a server says of its health while the block runs, each change once."""
    told: list[str] = []

    async def read() -> None:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name
        async with health(address) as stub:
            stream = stub.Watch(health_pb2.HealthCheckRequest())
            while (response := await stream.read()) is not grpc.aio.EOF:
                told.append(name(response.status))

    task = asyncio.create_task(read())
    try:
        yield told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def outcome(call: Any) -> tuple[str, str]:
    """How a call ends: code and reason; the reason is the client's own where it has none."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        if "grpc-status-details-bin" not in dict(iter(error.trailing_metadata() or ())):
            return error.code().name, "client"
        found = refusal(error)
        return found.code, found.reason
    return OK


def ended(server: Server) -> list[tuple[str, str]]:
    """How the server's own log says that updates have ended."""
    calls = events(server.err, method=METHOD)
    return [(call["code"], call.get("reason") or "") for call in calls]


async def until_ended(server: Server, count: int) -> list[tuple[str, str]]:
    """Wait until the server has let go of so many updates; how they ended."""
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            if len(found := ended(server)) >= count:
                return found
            await asyncio.sleep(0.05)


def check_log(server: Server) -> None:
    """See that the server met nothing that it does not know."""
    assert "Traceback" not in server.err
    assert '"code": "INTERNAL"' not in server.err


@pytest.mark.timeout(600)
async def test_a_restart_of_postgresql_is_seen_by_callers_and_gets_no_server_restarted(
    tmp_path: Path,
) -> None:
    async with (
        node(tmp_path / "node") as database,
        served(tmp_path, database.url) as server,
        loaded(database.url, server) as load,
        telling(address_of(server)) as told,
    ):
        async with load.running():
            for how in (FAST, IMMEDIATE) * RESTARTS:
                await load.more(ANSWERS)
                await database.stop(how)
                await load.refused_all()
                await until_health(address_of(server), "NOT_SERVING")
                assert await status(address_of(server), "liveness") == "SERVING"
                await database.start()
                await load.more(ANSWERS)
                await until_health(address_of(server), "SERVING")
        async with database.session() as connection:
            await load.check(connection)
            await load.check_retries(connection)
        assert told == ["SERVING"] + ["NOT_SERVING", "SERVING"] * 2 * RESTARTS
        assert load.refusals.keys() == {LOST}
        check_log(server)


async def test_nobody_waits_beyond_a_deadline_for_a_database_that_is_silent(
    tmp_path: Path, database: str
) -> None:
    """Nothing is closed, and nothing comes: as behind a firewall that has lost its state."""
    async with (
        wired(database) as wire,
        served(tmp_path, wire.url, database_pool_size=str(POOL)) as server,
        connected(address_of(server)) as stub,
    ):
        trunk = await created(stub)

        def changed(n: int, seconds: float | None) -> Any:
            request = update(trunk.id, "description", description=f"n={n}")
            return outcome(stub.UpdateSipTrunk(request, timeout=seconds))

        async def all_changed(seconds: float | None) -> set[tuple[str, str]]:
            return set(await asyncio.gather(*(changed(n, seconds) for n in range(CALLS))))

        assert await all_changed(CALL_SECONDS) == {OK}
        for seconds in DEADLINES:
            before = len(await until_ended(server, CALLS))
            wire.silence()
            codes = {code for code, _ in await all_changed(seconds)}
            assert codes <= {"DEADLINE_EXCEEDED", "UNAVAILABLE"}
            # A client that gives up says so, and may be faster than the server.
            by_server = (await until_ended(server, before + CALLS))[before:]
            assert {c for c, _ in by_server} <= {"DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED"}
            assert ("DEADLINE_EXCEEDED", "CALL_TOO_LONG") not in by_server
            if seconds is None:
                await until_health(address_of(server), "NOT_SERVING")
                assert await status(address_of(server), "liveness") == "SERVING"
            wire.speak()
            await until_health(address_of(server), "SERVING")
            assert await all_changed(CALL_SECONDS) == {OK}
        await check_sessions(database)
        check_log(server)


async def check_sessions(url: str) -> None:
    """See that no session of a server is left within a statement or a transaction."""
    connection = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                busy = await connection.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle'"
                    " AND application_name = 'trunkline' AND datname = current_database()"
                    " AND state_change < now() - interval '1 second'"
                )
                if not busy:
                    return
                await asyncio.sleep(0.1)
    finally:
        await connection.close()


async def test_a_server_ends_in_time_while_its_database_is_silent(
    tmp_path: Path, database: str
) -> None:
    async with (
        wired(database) as wire,
        served(tmp_path, wire.url, database_pool_size=str(POOL)) as server,
        connected(address_of(server)) as stub,
    ):
        trunk = await created(stub)
        watch = stub.WatchSipTrunks(pb.WatchSipTrunksRequest())
        assert (await watch.read()).resume_token
        wire.silence()
        changes = [update(trunk.id, "description", description=f"n={n}") for n in range(CALLS)]
        calls = [asyncio.ensure_future(outcome(stub.UpdateSipTrunk(c))) for c in changes]
        last = update(trunk.id, "description", description="last")
        assert (await outcome(stub.UpdateSipTrunk(last, timeout=DEADLINE_SECONDS)))[0] != "OK"
        async with asyncio.timeout(STOP_SECONDS_MAX):
            done = await server.stop()
            codes = {code for code, _ in await asyncio.gather(*calls)}
        assert done.code == 0
        assert codes <= {"UNAVAILABLE", "CANCELLED"}
        check_log(server)


async def test_a_host_that_is_silent_does_not_keep_the_next_one_from_being_asked(
    tmp_path: Path, database: str
) -> None:
    """The machine of the first host is gone, or drops what it gets."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        async with wired(database) as wire:
            gone = f"127.0.0.1:{silent.getsockname()[1]}"
            url = wire.url.replace("@", f"@{gone},")
            async with (
                served(tmp_path, url) as server,
                connected(address_of(server)) as stub,
            ):
                await created(stub)
                check_log(server)


async def test_a_database_that_is_slow_is_told_of_and_does_not_make_a_server_unready(
    tmp_path: Path, database: str
) -> None:
    """Each answer comes late, as with a disk that is slow: calls pile up to their bounds."""
    async with (
        wired(database) as wire,
        served(
            tmp_path,
            wire.url,
            database_pool_size=str(POOL),
            database_wait_seconds=str(WAIT_SECONDS),
            calls_max=str(CALLS_MAX),
        ) as server,
        connected(address_of(server)) as stub,
        telling(address_of(server)) as told,
    ):
        trunk = await created(stub)

        def changed(n: int) -> Any:
            request = update(trunk.id, "description", description=f"n={n}")
            return outcome(stub.UpdateSipTrunk(request, timeout=CALL_SECONDS))

        wire.delay = DELAY_SECONDS
        seen: set[tuple[str, str]] = set()
        async with asyncio.timeout(SECONDS_MAX):
            while seen != {OK, BUSY, TOO_MANY}:
                seen |= set(await asyncio.gather(*map(changed, range(SLOW_CALLERS))))
                assert seen <= {OK, BUSY, TOO_MANY}
        wire.delay = 0.0
        assert {await changed(n) for n in range(CALLS_MAX)} == {OK}
        assert set(await asyncio.gather(*map(changed, range(POOL)))) == {OK}
        assert told == ["SERVING"]
        check_log(server)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system of its own, which is small."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0755", "trunkline-test", path],
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"a small file system can't be mounted: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def fill(directory: Path) -> Path:
    """Take all that is free; the file that does."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return ballast


async def until_it_panics(database: Node) -> None:
    """Have PostgreSQL begin files of its log, which it can't."""
    with contextlib.suppress(asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError):
        async with database.session() as connection:
            for _ in range(SWITCHES_MAX):
                await connection.execute("SELECT pg_switch_wal()")
                await connection.execute("SELECT pg_logical_emit_message(false, 'test', 'x')")
    assert "PANIC" in database.log


async def test_a_disk_that_is_full_refuses_changes_and_loses_none(small_disk: Path) -> None:
    """First the tables can't grow (53100), then the log can't, and PostgreSQL panics."""
    directory = small_disk.parent
    async with (
        node(small_disk / "node") as database,
        served(directory, database.url) as server,
        loaded(database.url, server) as load,
    ):
        async with load.running():
            await load.more(ANSWERS)
            ballast = fill(small_disk)
            await load.refused_all()
            await load.read()
            await until_it_panics(database)
            await load.refused_all()
            ballast.unlink()
            await database.revive()
            await load.more(ANSWERS)
        await until_health(address_of(server), "SERVING")
        async with database.session() as connection:
            await load.check(connection)
            await load.check_retries(connection)
        assert "No space left on device" in database.log
        assert load.refusals.keys() == {LOST}
        check_log(server)
