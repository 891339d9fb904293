"""The order of changes: numbered once they are committed, by whoever is there."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import grpc

from tests.conftest import running
from tests.integration.conftest import created
from tests.integration.watching import SECONDS_MAX, watching
from tests.support import connected, update
from trunkline import feed as feeds
from trunkline.store.database import Database
from trunkline.store.feed import NUMBERED_MAX, FeedStore

CHANGES = 60
# A change as the service leaves it, of a trunk that need not be.
CHANGE = """
WITH r AS (
  INSERT INTO trunk_revisions (account_id, trunk_id, revision, changed_at, trunk)
  VALUES ('default', $1, $2, now(), '{}') RETURNING *
)
INSERT INTO feed_pending (account_id, trunk_id, revision)
SELECT account_id, trunk_id, revision FROM r"""


@asynccontextmanager
async def session(database: str) -> AsyncIterator[Any]:
    own = await Database.open(database, 1, 100)
    try:
        async with FeedStore(own, own, listens=True).session(lambda: None) as session:
            yield session
    finally:
        await own.close()


async def positions(connection: Any) -> list[tuple[int, str, int]]:
    rows = await connection.fetch("SELECT position, trunk_id, revision FROM feed ORDER BY position")
    return [tuple(row) for row in rows]


async def test_places_are_given_without_a_gap_by_servers_that_compete(database: str) -> None:
    connections = [await asyncpg.connect(database) for _ in range(4)]

    async def write(writer: int) -> None:
        for revision in range(1, CHANGES + 1):
            await connections[writer].execute(CHANGE, f"t{writer}", revision)

    async def number(stop: asyncio.Event) -> int:
        rounds = 0
        async with session(database) as mine:
            while not (stop.is_set() and await mine.number()):
                await mine.number()
                rounds += 1
        return rounds

    stop = asyncio.Event()
    numbering = [asyncio.create_task(number(stop)) for _ in range(3)]
    await asyncio.gather(*(write(w) for w in range(4)))
    stop.set()
    assert min(await asyncio.gather(*numbering)) > 0
    found = await positions(connections[0])
    assert [place for place, _, _ in found] == list(range(1, 4 * CHANGES + 1))
    for writer in range(4):
        of_trunk = [revision for _, trunk, revision in found if trunk == f"t{writer}"]
        assert of_trunk == list(range(1, CHANGES + 1))
    assert await connections[0].fetchval("SELECT count(*) FROM feed_pending") == 0
    for connection in connections:
        await connection.close()


async def test_more_changes_than_one_statement_takes_are_numbered_in_turn(database: str) -> None:
    connection = await asyncpg.connect(database)
    await connection.execute(
        "INSERT INTO feed_pending (account_id, trunk_id, revision)"
        f" SELECT 'a', 't', n FROM generate_series(1, {NUMBERED_MAX + 10}) AS n ORDER BY n"
    )
    async with session(database) as mine:
        assert not await mine.number()
        assert await mine.number()
        assert (await mine.state()).place.position == NUMBERED_MAX + 10
    assert [r for _, _, r in await positions(connection)] == list(range(1, NUMBERED_MAX + 11))
    await connection.close()


async def test_what_a_long_reader_keeps_from_being_cleaned_up_is_not_walked_over_again(
    database: str,
) -> None:
    reader, writer = [await asyncpg.connect(database) for _ in range(2)]
    async with reader.transaction(isolation="repeatable_read"), session(database) as mine:
        await reader.fetch("SELECT count(*) FROM trunks")
        for revision in range(1, CHANGES + 1):
            await writer.execute(CHANGE, "t", revision)
            assert await mine.number()
        assert mine.first_id > CHANGES - 5
        open_write = writer.transaction()
        await open_write.start()
        await writer.execute(CHANGE, "late", 1)
        stuck = await writer.fetchval("SELECT max(id) FROM feed_pending")
        other = await asyncpg.connect(database)
        for revision in range(1, CHANGES + 1):
            await other.execute(CHANGE, "early", revision)
            assert await mine.number()
        # What is not committed yet holds the bound, so that it can't be passed by.
        assert mine.first_id <= stuck
        await open_write.commit()
        assert await mine.number()
        assert (await positions(other))[-1][1:] == ("late", 1)
        assert (await mine.state()).place.position == 2 * CHANGES + 1
        await other.close()
    await reader.close()
    await writer.close()


async def test_role_that_owns_its_database_alone_can_run_the_feed(
    postgres: str, empty_database: str
) -> None:
    name = empty_database.rpartition("/")[2].partition("?")[0]
    admin = await asyncpg.connect(empty_database)
    await admin.execute("CREATE ROLE plain LOGIN")
    await admin.execute(f"ALTER DATABASE {name} OWNER TO plain")
    await admin.execute("GRANT ALL ON SCHEMA public TO plain")
    url = empty_database.replace("trunkline@", "plain@")
    try:
        async with (
            running(url) as service,
            connected(service.grpc_address) as stub,
            watching(stub) as watcher,
        ):
            await created(stub)
            await watcher.has(1)
    finally:
        await admin.execute("REASSIGN OWNED BY plain TO CURRENT_USER; DROP OWNED BY plain")
        await admin.execute("DROP ROLE plain")
        await admin.close()


async def test_hole_in_the_feed_ends_every_watch(database: str, stub: Any) -> None:
    """It can't come about; if it does, nobody may believe to have been told everything."""
    trunk = await created(stub)
    connection = await asyncpg.connect(database)
    async with watching(stub) as watcher:
        await connection.execute("UPDATE feed_state SET position = position + 1")
        await stub.UpdateSipTrunk(update(trunk.id, "is_active", is_active=False))
        error = await watcher.ended()
        assert (error.code, error.reason) == ("OUT_OF_RANGE", "RESUME_TOKEN_FOREIGN")
    await connection.close()
    async with watching(stub) as watcher:
        await stub.UpdateSipTrunk(update(trunk.id, "is_active", is_active=True))
        await watcher.has(1)


async def test_ring_is_bounded_in_bytes_too(database: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(feeds, "EVENTS_BYTES_MAX", 20_000)
    async with running(database) as service, connected(service.grpc_address) as stub:
        trunk = await created(stub)
        async with watching(stub) as watcher:
            token = watcher.token
            for number in range(50):
                text = f"{number} " + "x" * 450
                await stub.UpdateSipTrunk(update(trunk.id, "description", description=text))
            await watcher.has(50)
            async with watching(stub, resume_token=token) as again:
                await again.has(50)
                assert again.revisions == watcher.revisions


async def persistently(method: Any, request: Any) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            try:
                await method(request)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)
            else:
                return


async def test_feed_comes_back_after_its_connection_is_lost(database: str, stub: Any) -> None:
    trunk = await created(stub)
    connection = await asyncpg.connect(database)
    async with watching(stub) as watcher:
        for turn in range(5):
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND query LIKE '%feed%'"
                " AND pid <> pg_backend_pid()"
            )
            change = update(trunk.id, "qualify_frequency", qualify_frequency=turn)
            change.request_id = f"turn-{turn}"
            await persistently(stub.UpdateSipTrunk, change)
        await watcher.has(5)
        assert [e.revision for e in watcher.events] == [2, 3, 4, 5, 6]
    await connection.close()
