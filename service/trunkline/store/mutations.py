"""What every change writes beside itself: its revision, its place in the feed, its answer.

All of it is in the statement that makes the change. Such a statement begins with the parameters of
`Mutation.arguments`: $1 account, $2 trunk, $3 method, $4 token, $5 request_id, $6 fingerprint and
$7 its key. Without a fingerprint the request_id is recorded, but no answer kept.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from trunkline.errors import ConflictError, InvalidError, Violation
from trunkline.sealing import KeyRing
from trunkline.store.database import BusyError, Database, RepeatedError

T = TypeVar("T")

FIRST = 8
"""The number of the first parameter of a statement's own."""
IN_FLIGHT_RETRY_SECONDS = 0.2
ATTEMPTS_MAX = 2

_CALL = "(SELECT $1::text, $2::text, $3::text, $4::text, $5::text, $7::text) AS call"
CLAIM = f"""
claim AS MATERIALIZED (
  SELECT CASE WHEN $6::bytea IS NULL THEN true ELSE request_claimed($1, $3, $5) END AS claimed
    FROM {_CALL}
)"""
GO = "(SELECT claimed FROM claim)"
"""To be asked before a row is looked at: it ends the statement where the same request is at work
or was answered."""


def revised(
    changed: str, mask: str = "'{}'::text[]", numbers: str = "NULL::jsonb", source: str = "w"
) -> str:
    """The parts of a statement that record rows of `trunks` as they now are.

    Args:
        changed: the names of the fields that changed, by an expression over the rows.
        mask: the fields that the call named, likewise.
        numbers: what became of phone numbers, likewise: arrays of rows by `added`, `removed`,
            `renamed`.
        source: the name of the query that has the rows.
    """
    return f"""
revised AS (
  INSERT INTO trunk_revisions (account_id, trunk_id, revision, changed_at, token_id, request_id,
                               method, mask, changed, trunk, numbers)
  SELECT w.account_id, w.id, w.revision, w.updated_at, $4::text, $5::text, $3::text, {mask},
         {changed}, trunk_snapshot(to_jsonb(w)), {numbers}
    FROM {source} AS w
), pending AS (
  INSERT INTO feed_pending (account_id, trunk_id, revision)
  SELECT w.account_id, w.id, w.revision FROM {source} AS w
)"""


def remembered(answer: str, source: str) -> str:
    """The part of a statement that keeps what a retry is answered with.

    Args:
        answer: the answer as jsonb, by an expression over the source.
        source: has one row where the call succeeds, and none where it does not.
    """
    return f"""
remembered AS (
  INSERT INTO requests (account_id, method, request_id, fingerprint, key_id, answer)
  SELECT $1, $3, $5, $6, $7::text, {answer} FROM {source} WHERE $6 IS NOT NULL
)"""


@dataclass(frozen=True, slots=True)
class Mutation:
    """A call that changes something: whose it is, and what makes it safe to retry.

    Attributes:
        account_id: the account that it acts in.
        token_id: by which token.
        method: the RPC's name.
        request_id: the caller's, None for none.
        content: the request without its request_id; None where no answer is kept.
        validate_only: whether what it writes is taken back.
    """

    account_id: str
    token_id: str
    method: str
    request_id: str | None = None
    content: bytes | None = None
    validate_only: bool = False

    @property
    def remembers(self) -> bool:
        """Whether a retry is answered as this call is."""
        return self.content is not None and not self.validate_only

    def forgetful(self) -> "Mutation":
        """The same, as a part of one whose answer is kept by another statement."""
        return replace(self, content=None)

    def arguments(self, trunk_id: str, ring: KeyRing) -> tuple[Any, ...]:
        """The first parameters of its statement."""
        fingerprint = key_id = None
        if self.remembers and self.content is not None:
            fingerprint, key_id = ring.fingerprint(self._printed()), ring.newest
        who = (self.account_id, trunk_id, self.method, self.token_id)
        return (*who, self.request_id, fingerprint, key_id)

    def is_same(self, fingerprint: bytes, key_id: str, ring: KeyRing) -> bool | None:
        """Whether a fingerprint is of the same request; None where its key is gone."""
        ours = ring.fingerprint(self._printed(), key_id)
        return None if ours is None else ours == fingerprint

    def _printed(self) -> bytes:
        return f"{self.account_id}\0{self.method}\0".encode() + (self.content or b"")


@dataclass(frozen=True, slots=True)
class Earlier:
    """What an earlier call with the same request_id was answered with."""

    answer: Any


class Mutations:
    """Runs changes so that each request_id is at work once, and done once.

    Args:
        database: where they are done.
        ring: makes the fingerprints of requests.
        hint: called after each, as there may be a change to be told of.
    """

    def __init__(self, database: Database, ring: KeyRing, hint: Callable[[], None]) -> None:
        self._database = database
        self._ring = ring
        self._hint = hint

    async def once(
        self, mutation: Mutation, work: Callable[[], Awaitable[T | None]]
    ) -> T | Earlier | None:
        """What the work returns, or what the same call was answered with before.

        Raises:
            InvalidError: the request_id was another request's.
            ConflictError: the same request is at work now.
        """
        for _ in range(ATTEMPTS_MAX):
            try:
                found = await work()
            except BusyError:
                break
            except RepeatedError:
                earlier = await self.earlier(mutation)
                if earlier is None:
                    continue  # it was forgotten just now
                return earlier
            self._hint()
            return found
        raise ConflictError(
            "REQUEST_IN_FLIGHT",
            "a call with the same request_id is at work: try again",
            retry_seconds=IN_FLIGHT_RETRY_SECONDS,
        )

    async def earlier(self, mutation: Mutation) -> Earlier | None:
        """What the same call was answered with before; None where it was not made.

        Raises:
            InvalidError: the request_id was another request's.
            ConflictError: whether it was is not known.
        """
        # The lock makes this commit wait for a synchronous standby, as the call may not have: one
        # that was cut short is committed here alone, and to answer a retry is to acknowledge it.
        row = await self._database.row(
            "SELECT fingerprint, key_id, answer FROM requests"
            " WHERE account_id = $1 AND method = $2 AND request_id = $3 FOR SHARE",
            mutation.account_id,
            mutation.method,
            mutation.request_id,
        )
        if row is None:
            return None
        same = mutation.is_same(row["fingerprint"], row["key_id"], self._ring)
        if same is None:
            raise ConflictError(
                "REQUEST_ID_UNVERIFIABLE",
                "the request_id was used before, and the key that would tell whether for the same"
                " request is gone: read what is stored, then decide",
            )
        if not same:
            what = "was used before for another request"
            raise InvalidError([Violation("request_id", "REQUEST_ID_REUSED", what)])
        return Earlier(json.loads(row["answer"]))

    async def forget(self, hours: int, most: int) -> int:
        """Delete answers that are older than some hours, at most so many; how many there were."""
        row = await self._database.row(
            """
            WITH gone AS (
              DELETE FROM requests WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM requests WHERE created_at < now() - make_interval(hours => $1)
                 ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED))
              RETURNING 1
            )
            SELECT count(*) FROM gone""",
            hours,
            most,
        )
        return int(row[0]) if row else 0
