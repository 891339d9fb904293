"""What goes wrong while callers call: servers die, connections end, transactions stay open."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from tests.chaos.fleet import Fleet
from tests.integration.link import Link

KILL_SECONDS = (1.0, 3.0)
END_SECONDS = (0.1, 0.6)
CUT_SECONDS = (1.0, 3.0)
DOWN_SECONDS = (0.05, 0.5)
HOLD_SECONDS = (0.5, 4.0)
ROW_SECONDS = (0.05, 0.4)
KINDS = ("kills", "sessions ended", "cuts", "snapshots", "foreign writes", "rows held")
EACH_MIN = 2
OWN_TABLE = "CREATE TABLE IF NOT EXISTS of_others (n integer)"
ONE_SESSION = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name = 'trunkline' AND datname = current_database()"
    " ORDER BY md5(pid::text || $1) LIMIT 1"
)


class Faults:
    """Everything that goes wrong, each in a task of its own.

    Args:
        rng: when and where.
        url: the database.
        fleet: the servers.
        link: what the last of them reaches the database over.
    """

    def __init__(self, rng: random.Random, url: str, fleet: Fleet, link: Link) -> None:
        self.count: Counter[str] = Counter()
        self._rng, self._url, self._fleet, self._link = rng, url, fleet, link
        self._going = True

    def enough(self) -> bool:
        """Whether each kind has happened more than once."""
        return all(self.count[kind] >= EACH_MIN for kind in KINDS)

    @asynccontextmanager
    async def happening(self, trunk_ids: Callable[[], list[str]]) -> AsyncIterator[None]:
        """Faults happen while the block runs; at its end all is mended."""
        async with asyncio.TaskGroup() as group:
            for fault in (self._kill, self._end_sessions, self._cut, self._snapshot, self._write):
                group.create_task(fault())
            group.create_task(self._hold_rows(trunk_ids))
            try:
                yield
            finally:
                self._going = False

    async def _pause(self, seconds: tuple[float, float]) -> None:
        await asyncio.sleep(self._rng.uniform(*seconds))

    async def _kill(self) -> None:
        while self._going:
            await self._pause(KILL_SECONDS)
            await self._fleet.kill(self._rng.randrange(len(self._fleet)))
            self.count["kills"] += 1

    async def _end_sessions(self) -> None:
        connection = await asyncpg.connect(self._url)
        while self._going:
            await self._pause(END_SECONDS)
            ended = await connection.fetchval(ONE_SESSION, str(self._rng.random()))
            self.count["sessions ended"] += bool(ended)
        await connection.close()

    async def _cut(self) -> None:
        while self._going:
            await self._pause(CUT_SECONDS)
            await self._link.cut()
            await self._pause(DOWN_SECONDS)
            await self._link.mend()
            self.count["cuts"] += 1

    async def _snapshot(self) -> None:
        """One who reads for long: nothing that is deleted meanwhile can be cleaned away."""
        await self._transactions("snapshots", "SELECT count(*) FROM trunks")

    async def _write(self) -> None:
        """One who writes something else for long: its transaction id stays the oldest."""
        await self._transactions("foreign writes", "INSERT INTO of_others VALUES (1)")

    async def _transactions(self, name: str, statement: str) -> None:
        connection = await asyncpg.connect(self._url)
        await connection.execute(OWN_TABLE) if "of_others" in statement else None
        while self._going:
            async with connection.transaction(isolation="repeatable_read"):
                await connection.execute(statement)
                await self._pause(HOLD_SECONDS)
            self.count[name] += 1
        await connection.close()

    async def _hold_rows(self, trunk_ids: Callable[[], list[str]]) -> None:
        """One who holds a trunk's row for a moment: callers queue up for it."""
        connection: Any = await asyncpg.connect(self._url)
        while self._going:
            await self._pause(HOLD_SECONDS)
            found = trunk_ids()
            async with connection.transaction():
                statement = "SELECT FROM trunks WHERE id = $1 FOR UPDATE"
                await connection.execute(statement, self._rng.choice(found) if found else "")
                await self._pause(ROW_SECONDS)
            self.count["rows held"] += 1
        await connection.close()
