"""Calls on the same phone numbers that wait for each other: each ends as if it were alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import grpc

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.conftest import created
from tests.support import refusal

NUMBERS = ("+15550101", "+15550102")
WAIT_SECONDS = 10


@asynccontextmanager
async def held(url: str, trunk_id: str, waiters: int) -> AsyncIterator[None]:
    """A trunk's row is locked while the block runs, and until so many calls wait for it."""
    # What a session sees of others stays the same within a transaction: another one looks.
    holder, looking = await asyncpg.connect(url), await asyncpg.connect(url)
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND wait_event_type = 'Lock'"
    )
    try:
        async with holder.transaction():
            await holder.execute("SELECT FROM trunks WHERE id = $1 FOR UPDATE", trunk_id)
            yield
            async with asyncio.timeout(WAIT_SECONDS):
                while True:
                    if await looking.fetchval(waiting) >= waiters:
                        break
                    await asyncio.sleep(0.02)
    finally:
        await holder.close()
        await looking.close()


async def end(call: Any) -> Any:
    """The answer, or the reason why there is none."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return refusal(error).reason


async def numbers_of(stub: Any, trunk_id: str) -> list[str]:
    page = await stub.ListPhoneNumbers(pb.ListPhoneNumbersRequest(trunk_id=trunk_id))
    return [n.id for n in page.phone_numbers]


def move(source: str, target: str, ids: list[str]) -> pb.MovePhoneNumbersRequest:
    return pb.MovePhoneNumbersRequest(trunk_id=source, target_trunk_id=target, ids=ids)


async def test_two_moves_of_the_same_numbers_at_once_both_find_them(
    database: str, stub: Any
) -> None:
    """The second one finds them where it was to bring them, and passes over them."""
    source, target = await created(stub, None, *NUMBERS), await created(stub)
    ids = await numbers_of(stub, source.id)
    async with held(database, source.id, 2):
        request = move(source.id, target.id, ids)
        both = [asyncio.ensure_future(end(stub.MovePhoneNumbers(request))) for _ in range(2)]
    found = await asyncio.gather(*both)
    assert await numbers_of(stub, target.id) == ids
    assert [f if isinstance(f, str) else [n.id for n in f.phone_numbers] for f in found] == [
        ids
    ] * 2


async def test_a_move_and_the_move_back_at_once_both_find_the_numbers(
    database: str, stub: Any
) -> None:
    """Whichever is first: the numbers are on one of the two trunks all the time."""
    source, target = await created(stub, None, *NUMBERS), await created(stub)
    ids = await numbers_of(stub, source.id)
    async with held(database, source.id, 2):
        there = asyncio.ensure_future(end(stub.MovePhoneNumbers(move(source.id, target.id, ids))))
        back = asyncio.ensure_future(end(stub.MovePhoneNumbers(move(target.id, source.id, ids))))
    found = await asyncio.gather(there, back)
    assert [f for f in found if isinstance(f, str)] == []
