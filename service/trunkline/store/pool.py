"""Connections, who may have one, and how those that nobody uses are kept."""

import asyncio
import contextlib
import logging
import time
from typing import TypeAlias

import asyncpg

from trunkline import errors, tracing
from trunkline.bounds import Bounds
from trunkline.store import sessions
from trunkline.tallies import Durations

log = logging.getLogger(__name__)
Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

RELEASE_SECONDS_MAX = 2.0
"""How long a session that a call has left may take to end its statement."""
SWEEP_SECONDS = 60.0
"""How often connections that nobody has used since the last time go back to the driver's pool."""
RETRY_SECONDS = 1.0


class Lane:
    """A pool's connections, which callers take in the order in which they came.

    Args:
        size: how many.
        wait_seconds: how long a caller may wait for one.
        traced: whether statements are for the call that is answered, and so in its trace.

    Attributes:
        size: how many.
        in_use: how many are taken.
        waiting: how many callers wait.
        traced: as given.
        waits: how long those who had to wait did.
        turned_away: how many waited in vain.
    """

    def __init__(self, size: int, wait_seconds: float, *, traced: bool = True) -> None:
        self.size = size
        self.traced = traced
        self.in_use = self.waiting = self.turned_away = 0
        self.waits = Durations()
        self._free = asyncio.Semaphore(size)
        self._seconds = wait_seconds
        self._bounds = Bounds()

    async def enter(self) -> None:
        """Take one.

        Raises:
            UnavailableError: none has become free in time.
        """
        if self._free.locked():
            await self._wait()
        else:
            await self._free.acquire()
        self.in_use += 1

    def leave(self) -> None:
        """Give it back."""
        self.in_use -= 1
        self._free.release()

    async def _wait(self) -> None:
        began = time.perf_counter()
        self.waiting += 1
        try:
            with self._bounds.within(self._seconds):
                await self._free.acquire()
        except TimeoutError:
            self.turned_away += 1
            raise errors.UnavailableError(
                "DATABASE_BUSY",
                "too many calls are before this one; nothing was written: try again",
                retry_seconds=RETRY_SECONDS,
            ) from None
        finally:
            self.waiting -= 1
            self.waits.add(time.perf_counter() - began)


class Kept:
    """A driver's pool, and those of its connections that are kept at hand between calls.

    To take one from the driver's pool and to give it back costs a quarter of what a small statement
    costs, in timers, a task and a future. So a connection that a call has left well is kept here,
    for the next one; the driver's pool makes, closes and counts them.

    Args:
        pool: the driver's; it has room for as many as are ever taken at once.

    Attributes:
        age: changes when those that were taken before are not to be kept.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._idle: list[Connection] = []
        self._unused = 0
        self._sweep: asyncio.TimerHandle | None = None
        self._returns: set[asyncio.Task[None]] = set()
        self.age = 0

    def at_hand(self) -> "Connection | None":
        """The connection that was used last; None where none is kept, or that one has ended."""
        if not self._idle or not sessions.is_open(self._idle[-1]):
            return None
        connection = self._idle.pop()
        self._unused = min(self._unused, len(self._idle))
        return connection

    async def take(self) -> Connection:
        """One that is kept, or one of the driver's pool."""
        while self._idle:
            if connection := self.at_hand():
                return connection
            await self._pool.release(self._idle.pop())
            self._unused = min(self._unused, len(self._idle))
        return await self._pool.acquire()

    def keeps(self, connection: Connection, age: int) -> bool:
        """Keep one that was taken at an age and left well; False where it is not to be kept."""
        if age != self.age or sessions.is_demoted(connection):
            return False
        self._idle.append(connection)
        if self._sweep is None:
            loop = asyncio.get_running_loop()
            self._sweep = loop.call_later(SWEEP_SECONDS, self._swept)
        return True

    async def give(self, connection: Connection, age: int) -> None:
        """Give back one that is not to be kept."""
        if age == self.age:
            await self.expire()
        await self._pool.release(connection)

    async def end(self, connection: Connection) -> None:
        """Give one back whose statement was left or has failed: it may have to be ended first."""
        try:
            await self._pool.release(connection, timeout=RELEASE_SECONDS_MAX)
        except TimeoutError:
            # The other end is silent, and each session with it would be waited for in turn.
            await self.expire()
        except Exception as error:
            log.debug("session_ended_badly", extra={"error_class": type(error).__name__})

    async def expire(self) -> None:
        """Have every connection made anew before it is used again."""
        self.age += 1
        await self._give_back(len(self._idle))
        await self._pool.expire_connections()

    async def close(self) -> None:
        """Close the connections, once they are given back."""
        self.age += 1
        if self._sweep is not None:
            self._sweep.cancel()
        await self._give_back(len(self._idle))
        await asyncio.gather(*self._returns)
        await self._pool.close()

    def terminate(self) -> None:
        """Cut the connections."""
        self._pool.terminate()

    def _swept(self) -> None:
        """The stack's lowest level since the last time is how many nobody needed."""
        self._sweep = None
        if self._unused:
            task = asyncio.get_running_loop().create_task(self._give_back(self._unused))
            self._returns.add(task)
            task.add_done_callback(self._returns.discard)
        self._unused = max(0, len(self._idle) - self._unused)
        if self._idle:
            loop = asyncio.get_running_loop()
            self._sweep = loop.call_later(SWEEP_SECONDS, self._swept)

    async def _give_back(self, count: int) -> None:
        least_used, self._idle[:count] = self._idle[:count], []
        for connection in least_used:
            await self._pool.release(connection)


class Lease:
    """A connection for the length of a block."""

    __slots__ = ("_age", "_connection", "_kept", "_lane", "_statements")

    def __init__(self, kept: Kept, lane: Lane) -> None:
        self._kept = kept
        self._lane = lane
        self._connection: Connection
        self._statements = tracing.statements() if lane.traced else None

    async def __aenter__(self) -> Connection:
        if self._statements is None:
            return await self._taken()
        try:
            connection = await self._taken()
        finally:
            self._statements.waited()
        connection.add_query_logger(self._statements.ran)
        return connection

    async def _taken(self) -> Connection:
        await self._lane.enter()
        try:
            self._age = self._kept.age
            self._connection = self._kept.at_hand() or await self._kept.take()
        except BaseException:
            self._lane.leave()
            raise
        return self._connection

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._statements is not None:
            with contextlib.suppress(asyncpg.InterfaceError):  # the connection is gone
                self._connection.remove_query_logger(self._statements.ran)
        try:
            if kind is None:
                if not self._kept.keeps(self._connection, self._age):
                    await self._kept.give(self._connection, self._age)
            else:
                # What ends the block is what is told, not what becomes of the connection.
                await self._kept.end(self._connection)
        finally:
            self._lane.leave()
