"""The statements on trunks."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg

from siptrunk.v1 import sip_trunk_pb2
from trunkline import pages, rows, rules
from trunkline.codecs import Catalogue
from trunkline.errors import Violation
from trunkline.fields import SQL_TYPES, Field, table
from trunkline.sealing import KeyRing
from trunkline.store.database import Database
from trunkline.ulids import Ulids

SipTrunk = sip_trunk_pb2.SipTrunk

FETCH_ROWS_MAX = 100
_CODEC_COLUMNS = {"allow": "allow_codecs", "disallow": "disallow_codecs"}


@dataclass(frozen=True, slots=True)
class Updated:
    """What became of an update: the trunk as it is now, and whether this call changed it."""

    trunk: sip_trunk_pb2.SipTrunk
    written: bool


@dataclass(frozen=True, slots=True)
class Deleted:
    """What became of a delete: the trunk's etag, its numbers, and whether it is gone."""

    etag: str
    phone_number_count: int
    done: bool


class _Column:
    """A column that a caller can change: its name, the field that names it, its SQL type."""

    def __init__(self, name: str, field: str, sql_type: str) -> None:
        self.name, self.field, self.sql_type = name, field, sql_type


def _columns_of(f: Field) -> list[_Column]:
    if f.secret:
        return [
            _Column(f"{f.name}_sealed", f.name, "bytea"),
            _Column(f"{f.name}_key_id", f.name, "text"),
        ]
    columns = [_Column(f.name, f.name, "jsonb" if f.repeated else SQL_TYPES[f.kind])]
    if f.name in _CODEC_COLUMNS:
        columns.append(_Column(_CODEC_COLUMNS[f.name], f.name, "text[]"))
    return columns


_FIELDS = [f for f in table(SipTrunk.DESCRIPTOR).values() if not f.ignored]
_SECRETS = [f for f in _FIELDS if f.secret]
_COLUMNS = [column for f in _FIELDS if f.updatable for column in _columns_of(f)]
_FIXED = [column for f in _FIELDS if f.immutable for column in _columns_of(f)]

# A gateway that keeps its address and port keeps its id and the time it joined.
_KEPT_GATEWAYS = """(
        SELECT jsonb_agg(n.gateway || coalesce(
                 (SELECT jsonb_build_object('id', o.gateway -> 'id',
                                            'created_at', o.gateway -> 'created_at')
                    FROM jsonb_array_elements(s.gateways) AS o(gateway)
                   WHERE o.gateway -> 'gateway_address' = n.gateway -> 'gateway_address'
                     AND o.gateway -> 'port' IS NOT DISTINCT FROM n.gateway -> 'port'), '{{}}')
               ORDER BY n.position)
          FROM jsonb_array_elements({value}) WITH ORDINALITY AS n(gateway, position))"""


def _update_statement(select: str) -> str:
    """The update: one text for all masks, one round trip.

    The old row is locked and read, the named columns are replaced in it, and it is written only
    where that makes a difference. What is not named is set to itself, which keeps the update HOT;
    columns that this version does not know are not in the statement. A text per mask would have
    to be prepared anew on every connection.

    $1 account, $2 id, $3 the fields named, $4 and $5 the etag's revision and time or NULL, then
    the values of _COLUMNS and of _FIXED, NULL where not named.
    """
    first = 6
    values = {c: f"${i}::{c.sql_type}" for i, c in enumerate([*_COLUMNS, *_FIXED], first)}

    def merged(c: _Column) -> str:
        value = values[c]
        if c.name == "gateways":
            value = _KEPT_GATEWAYS.format(value=value)
        return f"CASE WHEN '{c.field}' = ANY($3) THEN {value} ELSE s.{c.name} END AS {c.name}"

    plain = [c for c in _COLUMNS if c.field not in {f.name for f in _SECRETS}]
    secret = " OR ".join(f"'{f.name}' = ANY($3)" for f in _SECRETS)
    fixed = "".join(
        f"\n     AND ('{c.field}' <> ALL($3) OR s.{c.name} = {values[c]})" for c in _FIXED
    )
    stamps = "".join(
        f"\n         {f.name}_changed_at = CASE WHEN '{f.name}' = ANY($3) THEN now()"
        f" ELSE t.{f.name}_changed_at END,"
        for f in _SECRETS
    )
    comma = ",\n         "
    return f"""
WITH stored AS MATERIALIZED (
  SELECT * FROM trunks WHERE account_id = $1 AND id = $2 FOR UPDATE
), merged AS MATERIALIZED (
  SELECT {comma.join(merged(c) for c in _COLUMNS)}
    FROM stored AS s
), written AS (
  UPDATE trunks AS t
     SET {comma.join(f"{c.name} = m.{c.name}" for c in _COLUMNS)},{stamps}
         revision = t.revision + 1,
         updated_at = greatest(now(), t.updated_at + interval '1 microsecond')
    FROM stored AS s CROSS JOIN merged AS m
   WHERE t.account_id = $1 AND t.id = $2
     AND ($4::bigint IS NULL OR (s.revision = $4 AND s.updated_at = $5::timestamptz)){fixed}
     AND ({secret} OR ({", ".join(f"m.{c.name}" for c in plain)})
          IS DISTINCT FROM ({", ".join(f"s.{c.name}" for c in plain)}))
  RETURNING t.*
)
SELECT {select}, true AS written FROM written AS t
UNION ALL
SELECT {select}, false AS written FROM stored AS t WHERE NOT EXISTS (SELECT FROM written)"""


def _create_statement(select: str) -> str:
    """A trunk and its first numbers in one statement.

    $1 account, $2 id, $3 the time, $4 ids, $5 numbers and $6 names of the phone numbers, then the
    values of _COLUMNS and of _FIXED.
    """
    columns = [*_COLUMNS, *_FIXED]
    stamps = "".join(f", {f.name}_changed_at" for f in _SECRETS)
    stamped = "".join(
        f", CASE WHEN ${7 + columns.index(c)}::bytea IS NOT NULL THEN $3::timestamptz END"
        for f in _SECRETS
        for c in columns
        if c.name == f"{f.name}_sealed"
    )
    return f"""
WITH t AS (
  INSERT INTO trunks (account_id, id, created_at, updated_at, phone_number_count{stamps},
                      {", ".join(c.name for c in columns)})
  VALUES ($1, $2, $3::timestamptz, $3::timestamptz, cardinality($4::text[]){stamped},
          {", ".join(f"${i}::{c.sql_type}" for i, c in enumerate(columns, 7))})
  RETURNING *
), numbers AS (
  INSERT INTO phone_numbers (account_id, trunk_id, id, phone_number, name, created_at, updated_at)
  SELECT t.account_id, t.id, n.id, n.phone_number, n.name, t.created_at, t.created_at
    FROM t CROSS JOIN unnest($4::text[], $5::text[], $6::text[]) AS n(id, phone_number, name)
   ORDER BY ltrim(n.phone_number, '+')  -- two creates with the same numbers must not deadlock
)
SELECT {select} FROM t"""


_DELETE = """
WITH stored AS MATERIALIZED (
  SELECT * FROM trunks WHERE account_id = $1 AND id = $2 FOR UPDATE
), gone AS (
  DELETE FROM trunks AS t USING stored AS s
   WHERE t.account_id = $1 AND t.id = $2
     AND ($3::bigint IS NULL OR (s.revision = $3 AND s.updated_at = $4::timestamptz))
     AND ($5::boolean OR s.phone_number_count = 0)
  RETURNING t.id
)
SELECT revision, updated_at, phone_number_count, EXISTS (SELECT FROM gone) AS done FROM stored"""

_CONDITIONS = {
    "is_active": "t.is_active = {0}",
    "provider": "t.provider = {0}",
    "name": "t.name = {0}",
    # The end is above every name with the prefix: no name is as long as the run of last characters.
    "name_prefix": "t.name >= {0} AND t.name < {0} || repeat(U&'\\+10FFFF', 101)",
    "phone_number": "t.id = (SELECT trunk_id FROM phone_numbers"
    " WHERE account_id = $1 AND digits = {0})",
    # The keys carry the account, see the schema.
    "gateway_address": "trunk_gateway_keys(t.account_id, t.gateways)"
    " && ARRAY[$1 || ' ' || {0}::text]",
    "source_ip": "trunk_ip_keys(t.account_id, t.ip_identifiers)"
    " && ARRAY(SELECT $1 || ' ' || range FROM unnest({0}::text[]) AS range)",
}


class TrunkStore:
    """The trunks of every account, each call in one of them.

    Args:
        database: where they are.
        catalogue: the codecs of the deployment.
        ring: seals the secrets that are written.
        ids: makes identifiers.
    """

    def __init__(self, database: Database, catalogue: Catalogue, ring: KeyRing, ids: Ulids) -> None:
        self._database = database
        self._catalogue = catalogue
        self._ring = ring
        self._ids = ids
        self._reader = rows.TrunkReader(catalogue.offer)
        self._update = _update_statement(self._reader.select)
        self._create = _create_statement(self._reader.select)
        self._get = (
            f"SELECT {self._reader.select} FROM trunks AS t WHERE t.account_id = $1 AND t.id = $2"
        )

    async def create(
        self, account_id: str, values: dict[str, rules.Value], numbers: Sequence[dict[str, Any]]
    ) -> sip_trunk_pb2.SipTrunk:
        """Write a trunk and its first numbers.

        Raises:
            ExistsError: its name, or a number, is taken.
        """
        trunk_id, now = self._ids.new(), datetime.now(UTC)
        row = await self._database.row(
            self._create,
            account_id,
            trunk_id,
            now,
            [self._ids.new() for _ in numbers],
            [n["phone_number"] for n in numbers],
            [n["name"] for n in numbers],
            *self._arguments([*_COLUMNS, *_FIXED], account_id, trunk_id, values),
        )
        assert row is not None
        return self._reader.trunk(row)

    async def get(self, account_id: str, trunk_id: str) -> sip_trunk_pb2.SipTrunk | None:
        """The trunk, None where the account has none of this id."""
        row = await self._database.row(self._get, account_id, trunk_id)
        return self._reader.trunk(row) if row else None

    async def list_page(
        self,
        account_id: str,
        conditions: Sequence[pages.Condition],
        order: pages.Order,
        after: tuple[str | datetime, str] | None,
        most: int,
    ) -> list[sip_trunk_pb2.SipTrunk]:
        """The trunks after a position, at most FETCH_ROWS_MAX of them.

        Args:
            account_id: whose trunks.
            conditions: all of which hold for each.
            order: the order.
            after: the order's value and the id of the last trunk before.
            most: how many are wanted.
        """
        where, arguments = ["t.account_id = $1"], list[Any]([account_id])
        for condition in conditions:
            arguments.append(condition.value)
            where.append(_CONDITIONS[condition.name].format(f"${len(arguments)}"))
        direction, beyond = ("DESC", "<") if order.descending else ("ASC", ">")
        sort = ["t.id"] if order.field == "id" else [f"t.{order.field}", "t.id"]
        if after:
            value, last_id = after
            if order.field != "id":
                arguments.append(value)
            arguments.append(last_id)
            holders = [f"${len(arguments) - len(sort) + 1 + i}" for i in range(len(sort))]
            where.append(f"({', '.join(sort)}) {beyond} ({', '.join(holders)})")
        arguments.append(min(most, FETCH_ROWS_MAX))
        found = await self._database.rows(
            f"SELECT {self._reader.select} FROM trunks AS t WHERE {' AND '.join(where)}"
            f" ORDER BY {', '.join(f'{s} {direction}' for s in sort)} LIMIT ${len(arguments)}",
            *arguments,
        )
        return [self._reader.trunk(row) for row in found]

    async def update(
        self, account_id: str, trunk_id: str, etag: str | None, change: rules.Change
    ) -> Updated | None:
        """Apply a change where it makes a difference, the etag holds and immutables are equal.

        Raises:
            ConstraintError: the merged trunk breaks a rule; nothing is written.
            ExistsError: the name is taken; nothing is written.

        Returns:
            None where the account has no such trunk.
        """
        arguments = self._update_arguments(account_id, trunk_id, etag, change)
        return self._updated(await self._database.row(self._update, *arguments))

    async def update_locked(
        self,
        account_id: str,
        trunk_id: str,
        etag: str | None,
        change: rules.Change,
        judge: Callable[[sip_trunk_pb2.SipTrunk], Sequence[Violation]],
    ) -> tuple[Updated | None, Sequence[Violation]]:
        """Update under a row lock held while `judge` looks at the stored trunk.

        For the rare case in which other writers keep changing the verdict between a refusal and
        the look at why.
        """
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(self._get + " FOR UPDATE", account_id, trunk_id)
            if row is None:
                return None, ()
            violations = judge(self._reader.trunk(row))
            if violations:
                return None, violations
            arguments = self._update_arguments(account_id, trunk_id, etag, change)
            return self._updated(await connection.fetchrow(self._update, *arguments)), ()

    async def delete(
        self, account_id: str, trunk_id: str, etag: str | None, *, force: bool
    ) -> Deleted | None:
        """Delete a trunk where the etag holds and it has no numbers, or `force` is given."""
        revision, updated_at = rows.etag_parts(etag) if etag else (None, None)
        row = await self._database.row(_DELETE, account_id, trunk_id, revision, updated_at, force)
        if row is None:
            return None
        return Deleted(
            rows.etag(row["revision"], row["updated_at"]), row["phone_number_count"], row["done"]
        )

    def _updated(self, row: asyncpg.Record | None) -> Updated | None:
        return Updated(self._reader.trunk(row), row["written"]) if row else None

    def _update_arguments(
        self, account_id: str, trunk_id: str, etag: str | None, change: rules.Change
    ) -> list[Any]:
        revision, updated_at = rows.etag_parts(etag) if etag else (None, None)
        return [
            account_id,
            trunk_id,
            [*change.values, *change.expected],
            revision,
            updated_at,
            *self._arguments(_COLUMNS, account_id, trunk_id, change.values),
            *self._arguments(_FIXED, account_id, trunk_id, change.expected),
        ]

    def _arguments(
        self,
        columns: Sequence[_Column],
        account_id: str,
        trunk_id: str,
        values: dict[str, rules.Value],
    ) -> list[Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            if name == "gateways":
                found[name] = self._gateways(value)
            elif isinstance(value, list):
                found[name] = json.dumps(value)
            else:
                found[name] = value
        if isinstance(allow := values.get("allow"), str):
            found["allow_codecs"] = list(self._catalogue.walk(allow))
        if isinstance(disallow := values.get("disallow"), str):
            found["disallow_codecs"] = list(self._catalogue.removed(disallow))
        for f in _SECRETS:
            if isinstance(secret := found.pop(f.name, None), str):
                found[f"{f.name}_sealed"] = self._ring.seal(secret, account_id, trunk_id, f.name)
                found[f"{f.name}_key_id"] = self._ring.newest
        return [found.get(c.name) for c in columns]

    def _gateways(self, items: rules.Value) -> str:
        now = datetime.now(UTC).isoformat()
        assert isinstance(items, list)
        return json.dumps([item | {"id": self._ids.new(), "created_at": now} for item in items])
