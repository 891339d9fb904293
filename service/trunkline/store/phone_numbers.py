"""The statements on phone numbers. Each locks the trunk first, so that count and etag stay true."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg

from siptrunk.v1 import phone_number_pb2
from trunkline import rows
from trunkline.errors import PreconditionError
from trunkline.sealing import KeyRing
from trunkline.store.database import ConstraintError, Database
from trunkline.store.mutations import CLAIM, GO, Earlier, Mutation, Mutations, remembered, revised
from trunkline.store.updates import NOW
from trunkline.ulids import Ulids

PhoneNumber = phone_number_pb2.PhoneNumber
_SELECT = rows.select_list(PhoneNumber.DESCRIPTOR, "n")
_CHANGED = "'{phone_numbers}'::text[]"

_TRUNK = f"""
trunk AS MATERIALIZED (
  SELECT account_id, id, phone_number_count FROM trunks
   WHERE account_id = $1 AND id = $2 AND {GO} FOR UPDATE
)"""
_ROWS = "(SELECT jsonb_agg(to_jsonb(n) ORDER BY n.id) FROM n)"
_ANSWER = f"jsonb_build_object('numbers', coalesce({_ROWS}, '[]'))"


def _touched(delta: str, kind: str) -> str:
    """The trunk's part in a change of its numbers `n`, which are one kind of it.

    The count is reckoned from the row as it was locked: from the row of the statement's snapshot,
    which may be older, the constraint would see a count that never is.
    """
    return f"""
touched AS (
  UPDATE trunks AS t
     SET phone_number_count = s.phone_number_count + {delta},
         revision = t.revision + 1,
         updated_at = {NOW}
    FROM trunk AS s CROSS JOIN (SELECT count(*)::integer AS count FROM n) AS all_n
   WHERE t.account_id = $1 AND t.id = s.id AND all_n.count > 0
  RETURNING t.*
), {revised(_CHANGED, numbers=f"jsonb_build_object('{kind}', {_ROWS})", source="touched")}"""


_CREATE = f"""
WITH {CLAIM}, {_TRUNK}, n AS (
  INSERT INTO phone_numbers (account_id, trunk_id, id, phone_number, name, created_at, updated_at)
  SELECT trunk.account_id, trunk.id, u.id, u.phone_number, u.name, $11::timestamptz, $11
    FROM trunk CROSS JOIN unnest($8::text[], $9::text[], $10::text[]) AS u(id, phone_number, name)
   ORDER BY ltrim(u.phone_number, '+')  -- two calls with the same numbers must not deadlock
  RETURNING *
), {_touched("all_n.count", "added")}, {remembered(_ANSWER, "trunk")}
SELECT {_SELECT} FROM n ORDER BY n.id"""

_GET = f"""
SELECT {_SELECT} FROM phone_numbers AS n WHERE account_id = $1 AND trunk_id = $2 AND id = $3"""

_LIST = f"""
SELECT {_SELECT} FROM phone_numbers AS n
 WHERE account_id = $1 AND trunk_id = $2 AND id > $3 ORDER BY account_id, trunk_id, id LIMIT $4"""

_LIST_OF_SEVERAL = f"""
SELECT {_SELECT} FROM phone_numbers AS n
 WHERE account_id = $1 AND trunk_id = ANY($2::text[]) AND (trunk_id, id) > ($3, $4)
 ORDER BY trunk_id, id LIMIT $5"""

# $8 the number's id, $9 the fields named, $10 the name, $11 the number that it must be.
_UPDATE = f"""
WITH {CLAIM}, {_TRUNK}, stored AS MATERIALIZED (
  SELECT p.* FROM phone_numbers AS p JOIN trunk ON p.trunk_id = trunk.id
   WHERE p.account_id = $1 AND p.id = $8 FOR UPDATE OF p
), fitting AS MATERIALIZED (
  SELECT * FROM stored WHERE $11::text IS NULL OR phone_number = $11
), n AS (
  UPDATE phone_numbers AS t
     SET name = $10::text, updated_at = {NOW}
    FROM fitting AS s
   WHERE t.account_id = $1 AND t.id = s.id
     AND 'name' = ANY ($9::text[]) AND s.name IS DISTINCT FROM $10
  RETURNING t.*
), {_touched("0", "renamed")}, now_is AS (
  SELECT * FROM n
  UNION ALL
  SELECT * FROM fitting WHERE NOT EXISTS (SELECT FROM n)
), {remembered("jsonb_build_object('numbers', jsonb_build_array(to_jsonb(now_is)))", "now_is")}
SELECT {_SELECT} FROM n
UNION ALL
SELECT {_SELECT} FROM stored AS n WHERE NOT EXISTS (SELECT FROM n AS changed)"""

# $8 the numbers' ids; all of them or none.
_DELETE = f"""
WITH {CLAIM}, {_TRUNK}, found AS MATERIALIZED (
  SELECT p.id FROM phone_numbers AS p JOIN trunk ON p.trunk_id = trunk.id
   WHERE p.account_id = $1 AND p.id = ANY ($8::text[]) FOR UPDATE OF p
), whole AS MATERIALIZED (
  SELECT FROM trunk WHERE (SELECT count(*) FROM found) = cardinality($8)
), n AS (
  DELETE FROM phone_numbers AS p USING found AS f
   WHERE p.account_id = $1 AND p.id = f.id AND EXISTS (SELECT FROM whole)
  RETURNING p.*
), {_touched("(-all_n.count)", "removed")}, {remembered("'{}'::jsonb", "whole")}
SELECT ARRAY(SELECT unnest($8) EXCEPT SELECT id FROM found) AS missing FROM trunk"""

# $8 the other trunk, $9 the numbers' ids; all of them or none. Rows are locked in the order of the
# trunks' ids, so that two moves can't deadlock.
_MOVE = f"""
WITH {CLAIM}, trunk AS MATERIALIZED (
  SELECT account_id, id, phone_number_count FROM trunks
   WHERE account_id = $1 AND id IN ($2, $8::text) AND {GO} ORDER BY id FOR UPDATE
), found AS MATERIALIZED (
  -- No join with the trunks: a number that another move takes over meanwhile would be checked
  -- against the trunk that it was on, and be lost.
  SELECT p.* FROM phone_numbers AS p
   WHERE p.account_id = $1 AND p.id = ANY ($9::text[]) AND p.trunk_id IN ($2, $8)
     AND (SELECT count(*) FROM trunk) = 2 FOR UPDATE
), whole AS MATERIALIZED (
  SELECT FROM (SELECT count(*) AS count FROM trunk) AS ends
   WHERE ends.count = 2 AND (SELECT count(*) FROM found) = cardinality($9)
), n AS (
  UPDATE phone_numbers AS t SET trunk_id = $8, updated_at = {NOW}
    FROM found AS f
   WHERE t.account_id = $1 AND t.id = f.id AND f.trunk_id = $2 AND EXISTS (SELECT FROM whole)
  RETURNING t.*
), touched AS (
  UPDATE trunks AS t
     SET phone_number_count = s.phone_number_count
                              + CASE WHEN s.id = $8 THEN all_n.count ELSE -all_n.count END,
         revision = t.revision + 1,
         updated_at = {NOW}
    FROM trunk AS s CROSS JOIN (SELECT count(*)::integer AS count FROM n) AS all_n
   WHERE t.account_id = $1 AND t.id = s.id AND all_n.count > 0
  RETURNING t.*
), left_behind AS (
  SELECT jsonb_agg(to_jsonb(f) ORDER BY f.id) AS rows FROM found AS f WHERE f.trunk_id = $2
), {
    revised(
        _CHANGED,
        numbers=f"CASE WHEN w.id = $8 THEN jsonb_build_object('added', {_ROWS})"
        " ELSE jsonb_build_object('removed', (SELECT rows FROM left_behind)) END",
        source="touched",
    )
}, now_are AS (
  SELECT * FROM n
  UNION ALL
  SELECT f.* FROM found AS f, whole WHERE f.trunk_id = $8
), {
    remembered(
        "jsonb_build_object('numbers',"
        " (SELECT jsonb_agg(to_jsonb(a) ORDER BY a.id) FROM now_are AS a))",
        "whole",
    )
}
SELECT (SELECT array_agg(id) FROM trunk) AS trunks,
       ARRAY(SELECT unnest($9) EXCEPT SELECT id FROM found) AS missing,
       (SELECT jsonb_agg(to_jsonb(a) ORDER BY a.id) FROM now_are AS a) AS numbers
 WHERE EXISTS (SELECT FROM trunk)"""


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of a move: the trunks that there are, the numbers missing, the numbers moved.

    Nothing is written unless both trunks are there and no number is missing.
    """

    trunk_ids: frozenset[str]
    missing: Sequence[str]
    numbers: Sequence[phone_number_pb2.PhoneNumber]


class PhoneNumberStore:
    """The phone numbers of every account, each call in one of them."""

    def __init__(self, database: Database, ring: KeyRing, ids: Ulids, mutations: Mutations) -> None:
        self._database = database
        self._ring = ring
        self._ids = ids
        self._mutations = mutations

    async def create(
        self, mutation: Mutation, trunk_id: str, numbers: Sequence[dict[str, Any]]
    ) -> list[phone_number_pb2.PhoneNumber] | None:
        """Add numbers, all or none, in their order; None where there is no such trunk.

        Raises:
            ExistsError: the account has one of the numbers already.
            PreconditionError: the trunk would have more numbers than one may have.
        """
        arguments = (
            *mutation.arguments(trunk_id, self._ring),
            [self._ids.new() for _ in numbers],
            [n["phone_number"] for n in numbers],
            [n["name"] for n in numbers],
            datetime.now(UTC),
        )

        async def work() -> list[phone_number_pb2.PhoneNumber] | None:
            found = await self._written(mutation, _CREATE, *arguments)
            return [rows.number(row) for row in found] or None

        with _counted():
            made = await self._mutations.once(mutation, work)
        return _earlier(made) if isinstance(made, Earlier) else made

    async def get(
        self, account_id: str, trunk_id: str, number_id: str
    ) -> phone_number_pb2.PhoneNumber | None:
        """The number, None where the trunk has none of this id."""
        row = await self._database.row(_GET, account_id, trunk_id, number_id)
        return rows.number(row) if row else None

    async def taken(self, account_id: str, numbers: Sequence[str]) -> set[str]:
        """Those of some numbers that the account has, as digits without a `+`."""
        found = await self._database.rows(
            "SELECT digits FROM phone_numbers WHERE account_id = $1 AND digits = ANY ($2::text[])",
            account_id,
            [n.lstrip("+") for n in numbers],
        )
        return {row["digits"] for row in found}

    async def list_page(
        self, account_id: str, trunk_id: str, after: str, most: int
    ) -> list[phone_number_pb2.PhoneNumber]:
        """The numbers after an id, in the order in which they were added."""
        found = await self._database.rows(_LIST, account_id, trunk_id, after, most)
        return [rows.number(row) for row in found]

    async def list_page_of_several(
        self, account_id: str, trunk_ids: Sequence[str], after: tuple[str, str], most: int
    ) -> list[phone_number_pb2.PhoneNumber]:
        """The numbers of several trunks after a trunk's and a number's id, in that order."""
        found = await self._database.rows(
            _LIST_OF_SEVERAL, account_id, trunk_ids, after[0], after[1], most
        )
        return [rows.number(row) for row in found]

    async def trunk_exists(self, account_id: str, trunk_id: str) -> bool:
        """Whether the account has the trunk."""
        row = await self._database.row(
            "SELECT 1 FROM trunks WHERE account_id = $1 AND id = $2", account_id, trunk_id
        )
        return row is not None

    async def update(
        self,
        mutation: Mutation,
        trunk_id: str,
        number_id: str,
        values: dict[str, Any],
        expected: str | None,
    ) -> phone_number_pb2.PhoneNumber | None:
        """Change a number; None where the trunk has no such number.

        Args:
            mutation: the call.
            trunk_id: the trunk's id.
            number_id: the number's id.
            values: what to set, by field.
            expected: the number that it must be, else nothing is written; None for any.
        """
        arguments = (number_id, list(values), values.get("name"), expected)
        who = mutation.arguments(trunk_id, self._ring)

        async def work() -> phone_number_pb2.PhoneNumber | None:
            found = await self._written(mutation, _UPDATE, *who, *arguments)
            return rows.number(found[0]) if found else None

        updated = await self._mutations.once(mutation, work)
        return _earlier(updated)[0] if isinstance(updated, Earlier) else updated

    async def delete(
        self, mutation: Mutation, trunk_id: str, number_ids: Sequence[str]
    ) -> Sequence[str] | None:
        """Remove numbers unless one is missing; those missing, None where there is no trunk."""
        who = mutation.arguments(trunk_id, self._ring)

        async def work() -> Sequence[str] | None:
            found = await self._written(mutation, _DELETE, *who, list(number_ids))
            return list(found[0]["missing"]) if found else None

        missing = await self._mutations.once(mutation, work)
        return [] if isinstance(missing, Earlier) else missing

    async def move(
        self, mutation: Mutation, trunk_id: str, target_id: str, number_ids: Sequence[str]
    ) -> Moved | None:
        """Move numbers from one trunk to another; None where neither trunk is there.

        Raises:
            PreconditionError: the other trunk would have more numbers than one may have.
        """
        who = mutation.arguments(trunk_id, self._ring)

        async def work() -> Moved | None:
            found = await self._written(mutation, _MOVE, *who, target_id, list(number_ids))
            if not found:
                return None
            numbers = [rows.number_of(row) for row in rows.parsed(found[0]["numbers"] or "[]")]
            return Moved(frozenset(found[0]["trunks"]), found[0]["missing"], numbers)

        with _counted():
            moved = await self._mutations.once(mutation, work)
        if isinstance(moved, Earlier):
            return Moved(frozenset((trunk_id, target_id)), (), _earlier(moved))
        return moved

    async def _written(
        self, mutation: Mutation, statement: str, *arguments: Any
    ) -> list[asyncpg.Record]:
        return await self._database.rows(statement, *arguments, trial=mutation.validate_only)


@contextmanager
def _counted() -> Iterator[None]:
    """What the constraint on a trunk's count means to a caller."""
    try:
        yield
    except ConstraintError as error:
        if error.constraint != "trunks_phone_number_count":
            raise
        raise PreconditionError(
            "TOO_MANY_PHONE_NUMBERS", "the trunk would have more phone numbers than one may"
        ) from None


def _earlier(earlier: Earlier) -> list[phone_number_pb2.PhoneNumber]:
    return [rows.number_of(row) for row in earlier.answer["numbers"]]
