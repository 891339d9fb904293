"""The connection pool, and what the driver's errors mean to a caller."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import asyncpg

from trunkline import errors, tracing
from trunkline.store import sessions
from trunkline.tallies import Durations

log = logging.getLogger(__name__)
Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

STATEMENT_SECONDS_MAX = 15
LOCK_SECONDS_MAX = 10
IDLE_IN_TRANSACTION_SECONDS_MAX = 10
ANSWER_SECONDS_MAX = 20
"""How long a statement is waited for: longer than PostgreSQL would let it run, were it there."""
IDLE_CONNECTION_SECONDS = 300
WAIT_SECONDS_MAX = 5.0
RELEASE_SECONDS_MAX = 2.0
"""How long a session that a call has left may take to end its statement."""

# InternalClientError is neither an InterfaceError nor a PostgresError, and is what a query under
# way may get when its connection dies (asyncpg issue 1069).
_LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InvalidTransactionStateError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.ClientConfigurationError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
)
_TAKEN = {
    "trunks_name_unique": ("NAME_TAKEN", "the account has another trunk of this name", "name"),
    "phone_numbers_number_unique": (
        "PHONE_NUMBER_TAKEN",
        "the account has this phone number on a trunk already",
        "phone_number",
    ),
}
SETTINGS = {
    "statement_timeout": str(STATEMENT_SECONDS_MAX * 1000),
    "lock_timeout": str(LOCK_SECONDS_MAX * 1000),
    "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_SECONDS_MAX * 1000),
    "default_transaction_isolation": "read committed",
    "jit": "off",
}
_ONCE = "requests_once"
_BUSY, _ANSWERED = "TL001", "TL002"  # see the schema's request_claimed
RETRY_SECONDS = 1.0


class ConstraintError(Exception):
    """A CHECK constraint refused a row. Never reaches a caller: what it means is looked up."""

    def __init__(self, constraint: str | None) -> None:
        super().__init__(constraint)
        self.constraint = constraint


class RepeatedError(Exception):
    """A call with the same request_id was answered before. Never reaches a caller."""


class BusyError(Exception):
    """A call with the same request_id is at work. Never reaches a caller."""


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
            async with asyncio.timeout(self._seconds):
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


class _Lease:
    """A connection for the length of a block."""

    __slots__ = ("_connection", "_lane", "_pool", "_statements")

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", lane: Lane) -> None:
        self._pool = pool
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
            self._connection = await self._pool.acquire()
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
                if sessions.is_demoted(self._connection):
                    await self._pool.expire_connections()
                await self._pool.release(self._connection)
            else:
                # A statement that was left has to be ended first, by a server that may be silent.
                # What ends the block is what is told, not what becomes of the connection.
                await self._end()
        finally:
            self._lane.leave()

    async def _end(self) -> None:
        try:
            await self._pool.release(self._connection, timeout=RELEASE_SECONDS_MAX)
        except TimeoutError:
            # The other end is silent, and each session with it would be waited for in turn.
            await self._pool.expire_connections()
        except Exception as error:
            log.debug("session_ended_badly", extra={"error_class": type(error).__name__})


class Database:
    """A pool of connections whose errors are ours.

    Attributes:
        lane: the connections.
        lost: how often a connection was lost or could not be had.

    Every method raises ExistsError where a name or number is taken (told by the constraint),
    RepeatedError and BusyError where a request_id is, ConstraintError where another constraint
    refused the row, and UnavailableError where the connection was lost or could not be had; whether
    a write was done is not known then.
    """

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]", lane: Lane) -> None:
        self.lane = lane
        self.lost = 0
        self._pool = pool

    @classmethod
    async def open(
        cls,
        url: str,
        size: int,
        statement_cache: int,
        wait_seconds: float = WAIT_SECONDS_MAX,
        *,
        traced: bool = True,
    ) -> "Database":
        """Make the pool. It connects when it is first used, so the database need not be up.

        Args:
            url: a libpq URL, several hosts allowed; the session is the primary's.
            size: the most connections.
            statement_cache: prepared statements kept per connection; 0 behind pgbouncer, and then
                bounds on statements are for the role to have.
            wait_seconds: how long a caller may wait for a connection.
            traced: whether its statements are for the call that is answered, and so in its trace.

        Raises:
            ValueError: the URL can't be read.
        """
        settings = {"application_name": "trunkline"}
        if statement_cache:  # pgbouncer refuses sessions that want what it can't keep for them
            settings |= SETTINGS
        pool = await asyncpg.create_pool(
            url,
            min_size=0,
            max_size=size,
            statement_cache_size=statement_cache,
            max_inactive_connection_lifetime=IDLE_CONNECTION_SECONDS,
            connect=sessions.Connector(url).connect,
            connection_class=sessions.Session,
            reset=sessions.keep,
            init=sessions.notice_silence,
            server_settings=settings,
        )
        return cls(pool, Lane(size, wait_seconds, traced=traced))

    async def close(self) -> None:
        """Close the connections; those that do not end in time are cut."""
        try:
            async with asyncio.timeout(sessions.CLOSE_SECONDS_MAX):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def row(
        self, statement: str, *arguments: Any, trial: bool = False
    ) -> asyncpg.Record | None:
        """Run one statement; its first row, None where there is none. One round trip.

        With `trial`, what it writes is taken back, which takes two more.
        """
        try:
            if trial:
                async with self.transaction(trial=True) as connection:
                    return await connection.fetchrow(statement, *arguments)
            async with _Lease(self._pool, self.lane) as connection:
                return await connection.fetchrow(statement, *arguments, timeout=ANSWER_SECONDS_MAX)
        except Exception as error:
            raise await self._ours(error) from None

    async def rows(
        self, statement: str, *arguments: Any, trial: bool = False
    ) -> list[asyncpg.Record]:
        """Run one statement; all its rows. One round trip, with `trial` as for `row`."""
        try:
            if trial:
                async with self.transaction(trial=True) as connection:
                    return await connection.fetch(statement, *arguments)
            async with _Lease(self._pool, self.lane) as connection:
                return await connection.fetch(statement, *arguments, timeout=ANSWER_SECONDS_MAX)
        except Exception as error:
            raise await self._ours(error) from None

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """One connection for the length of the block; its errors are ours at the block's end."""
        try:
            async with _Lease(self._pool, self.lane) as connection:
                yield connection
        except Exception as error:
            raise await self._ours(error) from None

    @asynccontextmanager
    async def transaction(self, *, trial: bool = False) -> AsyncIterator[Connection]:
        """A transaction on one connection, committed where the block ends well.

        With `trial`, what is written is taken back at its end.
        """
        async with self.connection() as connection:
            work = connection.transaction()
            await work.start()
            try:
                yield connection
            except BaseException:
                with contextlib.suppress(Exception):  # what ends the block is what is told
                    await work.rollback()
                raise
            await (work.rollback() if trial else work.commit())

    async def _ours(self, error: Exception) -> Exception:
        if isinstance(error, asyncpg.UniqueViolationError) and error.constraint_name in _TAKEN:
            reason, message, field = _TAKEN[error.constraint_name]
            return errors.ExistsError(reason, message, field=field)
        if isinstance(error, asyncpg.UniqueViolationError) and error.constraint_name == _ONCE:
            return RepeatedError()
        if isinstance(error, asyncpg.PostgresError) and error.sqlstate in (_BUSY, _ANSWERED):
            return BusyError() if error.sqlstate == _BUSY else RepeatedError()
        if isinstance(error, asyncpg.CheckViolationError):
            return ConstraintError(error.constraint_name)
        if isinstance(error, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError):
            log.error("schema_mismatch", extra={"sqlstate": error.sqlstate})
            return errors.UnavailableError(
                "SCHEMA_MISMATCH",
                "the database has another schema than this server",
                retry_seconds=RETRY_SECONDS,
            )
        if isinstance(error, asyncpg.TransactionRollbackError):
            return errors.UnavailableError(
                "CONTENTION",
                "other changes were in the way and nothing was written: try again",
                retry_seconds=RETRY_SECONDS,
            )
        if isinstance(error, asyncpg.InsufficientPrivilegeError):
            known = errors.UnavailableError(
                "DATABASE_FORBIDS",
                "the database's role lacks a right that the service needs: its log says which",
                retry_seconds=RETRY_SECONDS,
            )
            known.detail = str(error)
            log.error("database_forbids", extra={"why": known.detail})
            return known
        if isinstance(error, _LOST):
            self.lost += 1
            log.warning("database_lost", extra={"error_class": type(error).__name__})
            if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
                await self._pool.expire_connections()  # on a standby now: connect anew
            known = errors.UnavailableError(
                "DATABASE_UNAVAILABLE",
                "the database can't be reached now; whether a change was written is not known",
                retry_seconds=RETRY_SECONDS,
            )
            known.detail = str(error) if isinstance(error, sessions.NoSessionError) else ""
            return known
        return error
