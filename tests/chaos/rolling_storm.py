"""Callers that give up on most of their calls, and what they must leave behind: nothing."""

import asyncio
import random
from collections import Counter
from typing import Any

import asyncpg
import grpc

from tests.chaos.rolling_fleet import Rolling, until
from tests.chaos.rolling_load import Access
from tests.e2e.processes import SECONDS_MAX
from tests.support import Stub, update

TOGETHER = 24
GIVEN_UP = TOGETHER * 3 // 4
GIVE_UP_SECONDS_MAX = 0.02
CALL_SECONDS = 20.0
POLL_SECONDS = 0.05
IN_TRANSACTION = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name = 'trunkline' AND state LIKE 'idle in transaction%'"
)


class Storm:
    """Updates of one trunk, most of them cancelled on their way.

    Attributes:
        codes: how those ended that were not.
        given_up: how many were.
    """

    def __init__(self, access: Access, trunk_id: str) -> None:
        self.codes: Counter[str] = Counter()
        self.given_up = 0
        self.going = True
        self._access = access
        self._trunk_id = trunk_id

    async def run(self) -> None:
        """Call until told to end."""
        async with self._access.channel() as channel:
            stub: Any = Stub(channel)
            while self.going:
                await asyncio.gather(*(self._call(stub, n) for n in range(TOGETHER)))

    async def _call(self, stub: Any, number: int) -> None:
        text = f"{self.given_up} {number}"
        request = update(self._trunk_id, "description", description=text)
        call = stub.UpdateSipTrunk(request, metadata=self._access.metadata, timeout=CALL_SECONDS)
        if number < GIVEN_UP:
            await asyncio.wait((asyncio.ensure_future(call),), timeout=_soon())
            self.given_up += call.cancel()
            return
        try:
            await call
            self.codes["OK"] += 1
        except grpc.aio.AioRpcError as error:
            self.codes[f"{error.code().name} {error.details()}"] += 1


def _soon() -> float:
    return random.random() * GIVE_UP_SECONDS_MAX


async def assert_nothing_is_left(fleet: Rolling, database: str) -> None:
    """Nothing is being answered, no connection is taken, no session is within a transaction."""
    for address in fleet.metrics:
        await until(address, 0, "trunkline_in_progress")
        await until(address, 0, "trunkline_database_connections_in_use", "calls")
    connection = await asyncpg.connect(database)
    try:
        async with asyncio.timeout(SECONDS_MAX):
            while await connection.fetchval(IN_TRANSACTION):  # noqa: ASYNC110 - others' sessions
                await asyncio.sleep(POLL_SECONDS)
    finally:
        await connection.close()
