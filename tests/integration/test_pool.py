import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from trunkline.store import pool as pools
from trunkline.store import sessions
from trunkline.store.pool import Kept, Lane, Lease, Pool

SIZE = 3
SECONDS_MAX = 10


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Pool]:
    """A driver's pool."""
    made = await asyncpg.create_pool(database, min_size=0, max_size=SIZE, reset=sessions.keep)
    yield made
    made.terminate()


async def pid(kept: Kept, lane: Lane) -> int:
    """The backend that a call is given."""
    async with Lease(kept, lane) as connection:
        return int(await connection.fetchval("SELECT pg_backend_pid()"))


async def all_at_once(kept: Kept, lane: Lane) -> set[int]:
    """The backends of as many calls as there are connections."""
    together = asyncio.Barrier(SIZE)

    async def one() -> int:
        async with Lease(kept, lane) as connection:
            await together.wait()
            return int(await connection.fetchval("SELECT pg_backend_pid()"))

    return set(await asyncio.gather(*(one() for _ in range(SIZE))))


async def test_connection_is_kept_for_the_next_call(pool: Pool) -> None:
    kept, lane = Kept(pool), Lane(SIZE, 1.0)
    assert len({await pid(kept, lane) for _ in range(20)}) == 1
    assert (pool.get_size(), lane.in_use) == (1, 0)


async def test_expired_connections_are_used_no_more(pool: Pool) -> None:
    kept, lane = Kept(pool), Lane(SIZE, 1.0)
    before = await all_at_once(kept, lane)
    await kept.expire()
    assert not before & await all_at_once(kept, lane)


async def test_connection_that_was_out_when_they_expired_is_used_no_more(pool: Pool) -> None:
    kept, lane = Kept(pool), Lane(SIZE, 1.0)
    async with Lease(kept, lane) as connection:
        before = await connection.fetchval("SELECT pg_backend_pid()")
        await kept.expire()
    assert before not in await all_at_once(kept, lane)


async def test_kept_connection_that_ends_is_replaced(database: str, pool: Pool) -> None:
    kept, lane = Kept(pool), Lane(SIZE, 1.0)
    before = await all_at_once(kept, lane)
    other = await asyncpg.connect(database)
    for one in before:
        await other.execute("SELECT pg_terminate_backend($1, 5000)", one)
    await other.close()
    async with asyncio.timeout(SECONDS_MAX):
        while pool.get_size():  # noqa: ASYNC110 - the driver sends no event
            await asyncio.sleep(0.01)
    assert not before & await all_at_once(kept, lane)


async def test_failed_statement_leaves_a_connection_for_all(pool: Pool) -> None:
    kept, lane = Kept(pool), Lane(SIZE, 1.0)
    for _ in range(SIZE * 3):
        with pytest.raises(asyncpg.DivisionByZeroError):
            async with Lease(kept, lane) as connection:
                await connection.execute("SELECT 1 / 0")
    assert len(await all_at_once(kept, lane)) == SIZE


@pytest.mark.parametrize("used", [0, 1])
async def test_connections_that_nobody_uses_go_back_to_the_driver(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, used: int
) -> None:
    monkeypatch.setattr(pools, "SWEEP_SECONDS", 0.2)
    kept, lane = Kept(pool), Lane(SIZE, 1.0)
    await all_at_once(kept, lane)
    assert pool.get_idle_size() == 0
    async with asyncio.timeout(SECONDS_MAX):
        while pool.get_idle_size() < SIZE - used:
            for _ in range(used):
                await pid(kept, lane)
            await asyncio.sleep(0.01)
    assert pool.get_idle_size() == SIZE - used
    assert len(await all_at_once(kept, lane)) == SIZE


async def test_close_waits_for_what_is_out(pool: Pool) -> None:
    kept, lane = Kept(pool), Lane(SIZE, 1.0)
    await all_at_once(kept, lane)
    async with Lease(kept, lane) as connection:
        closing = asyncio.create_task(kept.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        assert await connection.fetchval("SELECT 1") == 1
    async with asyncio.timeout(SECONDS_MAX):
        await closing
    assert pool.get_size() == 0
