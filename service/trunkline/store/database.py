"""The connection pool, and what the driver's errors mean to a caller."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from trunkline import errors
from trunkline.bounds import Bounds
from trunkline.store import sessions
from trunkline.store.pool import RETRY_SECONDS, Connection, Kept, Lane, Lease, Pool

log = logging.getLogger(__name__)

STATEMENT_SECONDS_MAX = 15
LOCK_SECONDS_MAX = 10
IDLE_IN_TRANSACTION_SECONDS_MAX = 10
ANSWER_SECONDS_MAX = 20
"""How long a statement is waited for: longer than PostgreSQL would let it run, were it there."""
IDLE_CONNECTION_SECONDS = 300
WAIT_SECONDS_MAX = 5.0

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
    "max_parallel_workers_per_gather": "0",
}
_ONCE = "requests_once"
_BUSY, _ANSWERED = "TL001", "TL002"  # see the schema's request_claimed


class ConstraintError(Exception):
    """A CHECK constraint refused a row. Never reaches a caller: what it means is looked up."""

    def __init__(self, constraint: str | None) -> None:
        super().__init__(constraint)
        self.constraint = constraint


class RepeatedError(Exception):
    """A call with the same request_id was answered before. Never reaches a caller."""


class BusyError(Exception):
    """A call with the same request_id is at work. Never reaches a caller."""


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

    def __init__(self, pool: Pool, lane: Lane) -> None:
        self.lane = lane
        self.lost = 0
        self._kept = Kept(pool)
        self._bounds = Bounds()

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
                await self._kept.close()
        except TimeoutError:
            self._kept.terminate()

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
            async with Lease(self._kept, self.lane) as connection:
                with self._bounds.within(ANSWER_SECONDS_MAX):
                    return await connection.fetchrow(statement, *arguments)
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
            async with Lease(self._kept, self.lane) as connection:
                with self._bounds.within(ANSWER_SECONDS_MAX):
                    return await connection.fetch(statement, *arguments)
        except Exception as error:
            raise await self._ours(error) from None

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """One connection for the length of the block; its errors are ours at the block's end."""
        try:
            async with Lease(self._kept, self.lane) as connection:
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
                await self._kept.expire()  # on a standby now: connect anew
            known = errors.UnavailableError(
                "DATABASE_UNAVAILABLE",
                "the database can't be reached now; whether a change was written is not known",
                retry_seconds=RETRY_SECONDS,
            )
            known.detail = str(error) if isinstance(error, sessions.NoSessionError) else ""
            return known
        return error
