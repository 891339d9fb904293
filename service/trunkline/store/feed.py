"""The statements of the feed: every committed change gets a place in one order, without a gap.

A number given when a row is inserted would not do: the order of numbers is not the order of
commits, so a reader that has seen a number would miss a smaller one that is committed later. Here a
committed change is numbered by whoever holds the feed's lock for the length of one statement, so
there is no leader to fail over, and no lock that a dead server could keep.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from trunkline.events import Place, check_of
from trunkline.store.database import Database
from trunkline.store.pool import Connection

NUMBERED_MAX = 1000
READ_MAX = 500
CLOSE_SECONDS_MAX = 1.0
SECONDS_MAX = 20.0
"""The bound on each statement of the feed, should the database fall silent."""
CHANNEL = "trunkline_feed"

# A trunk's next change waits for its row, so the order of ids is that of a trunk's revisions.
_NUMBER = f"""
WITH turn AS MATERIALIZED (
  SELECT pg_try_advisory_xact_lock(hashtextextended('trunkline feed', 0)) AS ours
), taken AS (
  DELETE FROM feed_pending AS p
   WHERE p.id = ANY (ARRAY(SELECT q.id FROM feed_pending AS q, turn
                            WHERE turn.ours AND q.id >= $1 ORDER BY q.id LIMIT {NUMBERED_MAX}))
  RETURNING p.*
), state AS (
  UPDATE feed_state SET position = position + (SELECT count(*) FROM taken)
   WHERE EXISTS (SELECT FROM taken)
  RETURNING position
), numbered AS (
  INSERT INTO feed (position, account_id, trunk_id, revision)
  SELECT s.position + 1 - row_number() OVER (ORDER BY t.id DESC), t.account_id, t.trunk_id,
         t.revision
    FROM taken AS t CROSS JOIN state AS s
), told AS MATERIALIZED (
  SELECT pg_notify('{CHANNEL}', s.position::text) FROM state AS s
)
SELECT turn.ours, (SELECT count(*) FROM taken) AS count, (SELECT count(*) FROM told) AS told,
       pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS oldest,
       CASE WHEN EXISTS (SELECT FROM taken) THEN pg_current_xact_id()::text::bigint END AS own,
       (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM feed_pending_id_seq) AS last_id
  FROM turn"""

_PAGE = """
SELECT f.position, f.numbered_at, r.* FROM feed AS f
  JOIN trunk_revisions AS r ON r.account_id = f.account_id AND r.trunk_id = f.trunk_id
                           AND r.revision = f.revision
 WHERE f.position > $1 AND f.position <= $2 {account} ORDER BY f.position LIMIT $3"""

# What tells this history from every other one: a dump restored elsewhere, a copy of the data files
# that went on by itself, a table made anew. A standby that is promoted has another timeline, and
# may lack changes that were delivered.
_EPOCH = """
SELECT (SELECT system_identifier FROM pg_control_system()),
       left(pg_walfile_name(pg_current_wal_insert_lsn()), 8),
       (SELECT oid FROM pg_database WHERE datname = current_database()),
       'feed_state'::regclass::oid"""


_STATE = """
SELECT s.position, s.floor, f.account_id, f.trunk_id, f.revision, f.numbered_at
  FROM feed_state AS s LEFT JOIN feed AS f ON f.position = {position}"""


@dataclass(frozen=True, slots=True)
class State:
    """Where the feed stands.

    Attributes:
        place: the last that was given.
        floor: the last position that is forgotten.
    """

    place: Place
    floor: int


class FeedSession:
    """The feed's one connection: numbers what is committed, and reads on.

    Attributes:
        epoch: which history this is, in 8 bytes.
        first_id: no pending change below it will ever be seen again. While a long transaction reads
            (a dump), what was pending can't be cleaned up, and would be walked over each time.
    """

    def __init__(self, connection: Connection, epoch: bytes) -> None:
        self._connection = connection
        self.epoch = epoch
        self.first_id = 0
        self._last_id: int | None = None
        self._bound: tuple[int, int] | None = None

    async def number(self) -> bool:
        """Give committed changes their places; whether none was left out."""
        row = await self._connection.fetchrow(_NUMBER, self.first_id, timeout=SECONDS_MAX)
        assert row is not None
        complete = bool(row["ours"]) and row["count"] < NUMBERED_MAX
        self._advance(row, complete=complete)
        return complete

    async def state(self) -> State:
        """Where the feed stands."""
        row = await self._connection.fetchrow(
            _STATE.format(position="s.position"), timeout=SECONDS_MAX
        )
        assert row is not None
        return State(_place(row["position"], row), row["floor"])

    async def page(self, after: int, until: int) -> list[asyncpg.Record]:
        """Changes after a position, at most READ_MAX: `position`, and the revision's row."""
        return await self._connection.fetch(
            _PAGE.format(account=""), after, until, READ_MAX, timeout=SECONDS_MAX
        )

    def _advance(self, row: asyncpg.Record, *, complete: bool) -> None:
        """Move `first_id` to where every id below was given by a transaction that is over.

        A transaction has its number before it takes an id, as it has locked or written the trunk
        then. So those that took the ids up to the last one of an earlier round are older than this
        round's `own`, and over once none that is at work is as old. (The upper end of a snapshot
        would not do for `own`: it is past what has ended, not past what has begun.)
        """
        if complete and self._bound is not None and row["oldest"] >= self._bound[1]:
            self.first_id, self._bound = self._bound[0] + 1, None
        if self._bound is None and self._last_id is not None and row["own"] is not None:
            self._bound = self._last_id, row["own"]
        self._last_id = row["last_id"]


class FeedStore:
    """The feed of every account.

    Args:
        database: the service's.
        own: for the feed's connection, which is kept.
        listens: whether that connection may wait for notifications; not behind pgbouncer.
    """

    def __init__(self, database: Database, own: Database, *, listens: bool) -> None:
        self._database = database
        self._own = own
        self._listens = listens

    @asynccontextmanager
    async def session(self, hint: Callable[[], None]) -> AsyncIterator[FeedSession]:
        """The connection of the one reader of this server.

        Args:
            hint: called when another server has numbered changes. Hints may be lost.
        """

        def on_notification(*_: Any) -> None:
            hint()

        async with self._own.connection() as connection:
            row = await connection.fetchrow(_EPOCH, timeout=SECONDS_MAX)
            assert row is not None
            text = "/".join(str(part) for part in row)
            epoch = hashlib.blake2b(text.encode(), digest_size=8, person=b"trunkline feed").digest()
            if self._listens:
                async with asyncio.timeout(SECONDS_MAX):
                    await connection.add_listener(CHANNEL, on_notification)
            try:
                yield FeedSession(connection, epoch)
            finally:
                if self._listens and not connection.is_closed():
                    with contextlib.suppress(Exception):  # it is lost, or will be closed
                        async with asyncio.timeout(CLOSE_SECONDS_MAX):
                            await connection.remove_listener(CHANNEL, on_notification)

    async def page_of(
        self, account_id: str | None, after: int, until: int, most: int
    ) -> list[asyncpg.Record]:
        """Changes of an account (None for all) after a position, for one who lags behind."""
        if account_id is None:
            return await self._database.rows(_PAGE.format(account=""), after, until, most)
        statement = _PAGE.format(account="AND f.account_id = $4")
        return await self._database.rows(statement, after, until, most, account_id)

    async def place(self, position: int) -> State:
        """The place at a position, without a check where nothing is kept of it, and the floor."""
        row = await self._database.row(_STATE.format(position="$1"), position)
        assert row is not None
        return State(_place(position, row), row["floor"])


def _place(position: int, row: asyncpg.Record) -> Place:
    return Place(position, check_of(row) if row["numbered_at"] is not None else 0)
