"""Databases that come back from a dump or a copy, and tokens that are of before."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.integration.conftest import created
from tests.support import Refusal, connected, ip_based, refused, update
from trunkline.embedded import Embedded, package_binaries
from trunkline.rows import TrunkReader
from trunkline.store.database import Database
from trunkline.store.history import HistoryStore

REVISIONS = 3000
TOGETHER = 100
UPDATES = 50
OTHERS_BETWEEN = 600
DAYS = 90
FORGOTTEN_MAX = 500
WAIT_SECONDS = 60
PROGRAM_SECONDS = 120
OTHERS = f"""
DO $$ BEGIN
  FOR n IN 1..{OTHERS_BETWEEN} LOOP
    INSERT INTO of_others VALUES (n);
    COMMIT;
  END LOOP;
END $$"""


def binaries() -> Path:
    """Where PostgreSQL's programs are."""
    given = os.environ.get("TRUNKLINE_TEST_POSTGRES_BIN")
    return Path(given) if given else package_binaries()


async def program(name: str, *arguments: str | Path) -> None:
    """Run one of PostgreSQL's programs to its end."""
    process = await asyncio.create_subprocess_exec(
        binaries() / name,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PROGRAM_SECONDS):
        _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()


async def dumped(url: str, directory: Path) -> Path:
    """A dump of a database."""
    path = directory / "trunkline.sql"
    await program("pg_dump", "--file", path, url)
    return path


async def restored(path: Path, url: str) -> None:
    """Load a dump into an empty database."""
    await program("psql", "--set", "ON_ERROR_STOP=1", "--single-transaction", "-f", path, url)


async def executed(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[str]:
    """A PostgreSQL of its own; the URL of its database."""
    embedded = Embedded(directory, binaries(), "a test")
    with embedded.locked():
        async with embedded.running():
            yield embedded.url


@asynccontextmanager
async def served(directory: Path) -> AsyncIterator[Any]:
    """A stub of a service on a PostgreSQL of its own."""
    async with (
        cluster(directory) as url,
        running(url) as service,
        connected(service.grpc_address) as stub,
    ):
        yield stub


async def filled(stub: Any, revisions: int) -> str:
    """Trunks with so many revisions; a token from before the last of them."""
    trunks = [await created(stub, ip_based()) for _ in range(TOGETHER)]
    for turn in range(1, revisions // TOGETHER):
        if turn == revisions // TOGETHER - 1:
            token = await now(stub)
        requests = [update(t.id, "description", description=f"n={turn}") for t in trunks]
        batch = pb.BatchUpdateSipTrunksRequest(requests=requests, request_id=f"batch-{turn}")
        await stub.BatchUpdateSipTrunks(batch)
    return token


async def now(stub: Any) -> str:
    """A token of now."""
    call = stub.WatchSipTrunks(pb.WatchSipTrunksRequest())
    token = str((await call.read()).resume_token)
    call.cancel()
    return token


async def resumed(stub: Any, token: str) -> Refusal:
    """How the server refuses to go on from a token."""
    call = stub.WatchSipTrunks(pb.WatchSipTrunksRequest(resume_token=token))
    return await refused(seen(call, 1))


async def seen(call: Any, count: int) -> list[tuple[str, int]]:
    """The next changes of a watch, as trunk and revision."""
    found = list[tuple[str, int]]()
    async with asyncio.timeout(WAIT_SECONDS):
        while len(found) < count:
            response = await call.read()
            found += [(e.sip_trunk.id, e.revision) for e in response.events]
    return found


async def check_initial(stub: Any, count: int) -> None:
    """What a watcher does who was told to begin again."""
    call = stub.WatchSipTrunks(pb.WatchSipTrunksRequest(initial_state=True))
    ids, complete = set[str](), False
    async with asyncio.timeout(WAIT_SECONDS):
        while not complete:
            response = await call.read()
            ids |= {e.sip_trunk.id for e in response.events}
            complete = response.initial_state_complete
    call.cancel()
    assert len(ids) == count


def assert_foreign(told: Refusal) -> None:
    assert (told.code, told.reason) == ("OUT_OF_RANGE", "RESUME_TOKEN_FOREIGN")
    assert "start with the initial state" in told.message


async def test_a_dump_in_a_new_cluster_goes_on_where_it_was_and_knows_no_old_token(
    database: str, tmp_path: Path
) -> None:
    """A watcher gets exactly the updates, however many transactions of others are between them."""
    async with running(database) as service, connected(service.grpc_address) as stub:
        token = await filled(stub, REVISIONS)
        trunk = (await stub.ListSipTrunks(pb.ListSipTrunksRequest(page_size=1))).sip_trunks[0]
    dump = await dumped(database, tmp_path)
    async with cluster(tmp_path / "data") as url:
        await restored(dump, url)
        await executed(url, "CREATE TABLE of_others (n integer)")
        async with running(url) as service, connected(service.grpc_address) as stub:
            assert_foreign(await resumed(stub, token))
            await check_initial(stub, TOGETHER)
            assert await stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk.id)) == trunk
            call = stub.WatchSipTrunks(pb.WatchSipTrunksRequest())
            assert not (await call.read()).events
            for n in range(UPDATES):
                await executed(url, "SET synchronous_commit = off", OTHERS)
                await stub.UpdateSipTrunk(update(trunk.id, "description", description=f"after {n}"))
            first = REVISIONS // TOGETHER + 1
            expected = [(trunk.id, revision) for revision in range(first, first + UPDATES)]
            assert await seen(call, UPDATES) == expected
            call.cancel()
            await check_feed(url, REVISIONS + UPDATES)


async def check_feed(url: str, count: int) -> None:
    connection = await asyncpg.connect(url)
    others = await connection.fetchval("SELECT count(*) FROM of_others")
    feed = await connection.fetchrow("SELECT min(position), max(position), count(*) FROM feed")
    await connection.close()
    assert others == UPDATES * OTHERS_BETWEEN
    assert tuple(feed or ()) == (1, count, count)


async def test_a_retry_after_a_dump_is_restored_is_answered_as_before(
    database: str, empty_database: str, tmp_path: Path
) -> None:
    async with running(database) as service, connected(service.grpc_address) as stub:
        trunk = await created(stub)
        request = update(trunk.id, "description", description="once", etag=trunk.etag)
        request.request_id = "once"
        answer = await stub.UpdateSipTrunk(request)
    await restored(await dumped(database, tmp_path), empty_database)
    async with running(empty_database) as service, connected(service.grpc_address) as stub:
        assert await stub.UpdateSipTrunk(request) == answer


@pytest.mark.parametrize("name", ["other", "same"])
async def test_a_token_is_foreign_in_a_database_restored_in_the_same_cluster(
    name: str, database: str, postgres: str, tmp_path: Path
) -> None:
    async with running(database) as service, connected(service.grpc_address) as stub:
        token = await filled(stub, 3 * TOGETHER)
    dump = await dumped(database, tmp_path)
    parts = urlsplit(database)
    old = parts.path.removeprefix("/")
    new = old if name == "same" else f"{old}_restored"
    server = f"{parts.scheme}://{parts.netloc}/postgres?{parts.query}"
    await executed(server, f"DROP DATABASE {old} WITH (FORCE)")
    await executed(server, f"CREATE DATABASE {new} TEMPLATE template1")
    url = f"{parts.scheme}://{parts.netloc}/{new}?{parts.query}"
    await restored(dump, url)
    async with running(url) as service, connected(service.grpc_address) as stub:
        assert_foreign(await resumed(stub, token))
        await check_initial(stub, TOGETHER)
    if name == "other":
        await executed(server, f"DROP DATABASE {new} WITH (FORCE)", f"CREATE DATABASE {old}")


async def test_a_token_older_than_the_history_kept_is_expired(database: str) -> None:
    """A token from where history begins can be gone on from; one from before can't."""
    async with running(database) as service, connected(service.grpc_address) as stub:
        trunk = await created(stub, ip_based())
        old = await now(stub)
        await stub.UpdateSipTrunk(update(trunk.id, "description", description="old"))
        oldest = await now(stub)
        await stub.UpdateSipTrunk(update(trunk.id, "description", description="new"))
        await now(stub)
    aged = f"UPDATE feed SET numbered_at = numbered_at - interval '{DAYS + 1} days'"
    await executed(database, f"{aged} WHERE position <= 2")
    store = await Database.open(database, 1, 0)
    history = HistoryStore(store, TrunkReader(lambda *_: []))
    assert await history.forget(DAYS, FORGOTTEN_MAX) == 2
    await store.close()
    async with running(database) as service, connected(service.grpc_address) as stub:
        told = await resumed(stub, old)
        assert (told.code, told.reason) == ("OUT_OF_RANGE", "RESUME_TOKEN_EXPIRED")
        assert "start with the initial state" in told.message
        call = stub.WatchSipTrunks(pb.WatchSipTrunksRequest(resume_token=oldest))
        assert await seen(call, 1) == [(trunk.id, 3)]
        call.cancel()


async def test_a_token_of_one_copy_of_the_data_files_is_foreign_in_the_other(
    tmp_path: Path,
) -> None:
    """Both go on from the same place by themselves, so what they call the same place is not."""
    async with served(tmp_path / "data") as stub:
        trunk = await created(stub)
    shutil.copytree(tmp_path / "data" / "pg", tmp_path / "copy" / "pg", symlinks=True)
    (tmp_path / "copy").chmod(0o700)
    async with served(tmp_path / "data") as stub:
        for n in range(3):
            await stub.UpdateSipTrunk(update(trunk.id, "description", description=f"here {n}"))
        token = await now(stub)
    async with served(tmp_path / "copy") as stub:
        for n in range(5):
            await stub.UpdateSipTrunk(update(trunk.id, "description", description=f"there {n}"))
        await now(stub)
        assert_foreign(await resumed(stub, token))
