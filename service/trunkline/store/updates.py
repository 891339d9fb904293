"""The statements that write trunks, made of the descriptors once."""

from collections.abc import Callable, Iterable

from siptrunk.v1 import sip_trunk_pb2
from trunkline.fields import SQL_TYPES, Field, table
from trunkline.store.mutations import CLAIM, FIRST, GO, remembered, revised

_CODEC_COLUMNS = {"allow": "allow_codecs", "disallow": "disallow_codecs"}


class Column:
    """A column that a caller can change: its name, the field that names it, its SQL type."""

    def __init__(self, name: str, field: str, sql_type: str) -> None:
        self.name, self.field, self.sql_type = name, field, sql_type


def _columns_of(f: Field) -> list[Column]:
    if f.secret:
        return [
            Column(f"{f.name}_sealed", f.name, "bytea"),
            Column(f"{f.name}_key_id", f.name, "text"),
        ]
    columns = [Column(f.name, f.name, "jsonb" if f.repeated else SQL_TYPES[f.kind])]
    if f.name in _CODEC_COLUMNS:
        columns.append(Column(_CODEC_COLUMNS[f.name], f.name, "text[]"))
    return columns


_FIELDS = [f for f in table(sip_trunk_pb2.SipTrunk.DESCRIPTOR).values() if not f.ignored]
SECRETS = [f for f in _FIELDS if f.secret]
COLUMNS = [column for f in _FIELDS if f.updatable for column in _columns_of(f)]
FIXED = [column for f in _FIELDS if f.immutable for column in _columns_of(f)]

_BITS = {f.name: 1 << i for i, f in enumerate(f for f in _FIELDS if f.updatable or f.immutable)}
_ANSWER = "jsonb_build_object('trunks', jsonb_build_array(jsonb_build_array(id, revision, {})))"
NOW = "greatest(now(), t.updated_at + interval '1 microsecond')"


def update(select: str) -> str:
    """The update: one text for all masks, one round trip.

    The old row is locked and read, the named columns are replaced in it, and it is written only
    where that makes a difference. What is not named is set to itself, which keeps the update HOT;
    columns that this version does not know are not in the statement. A text per mask would have
    to be prepared anew on every connection.

    After the parameters of a mutation: the fields named, and the same as `bits_of` has it, the
    etag's revision and time or NULL, then the values of COLUMNS and of FIXED, NULL where not named.
    One row comes back: the trunk as it now is, `fits` (the etag holds and immutables are equal),
    and `changed`, the fields that changed; or none.
    """
    named, bits, revision, updated_at = (f"${FIRST + i}" for i in range(4))
    values = {c: f"${i}::{c.sql_type}" for i, c in enumerate([*COLUMNS, *FIXED], FIRST + 4)}

    def is_named(field: str) -> str:
        return f"{bits}::bigint & {_BITS[field]} <> 0"

    def merged(c: Column) -> str:
        value = values[c]
        if c.name == "gateways":
            value = f"trunk_kept_gateways(s.gateways, {value})"
        return f"CASE WHEN {is_named(c.field)} THEN {value} ELSE s.{c.name} END AS {c.name}"

    fixed = "".join(
        f"\n         AND (NOT ({is_named(c.field)}) OR s.{c.name} = {values[c]})" for c in FIXED
    )
    stamps = "".join(
        f"\n         {f.name}_changed_at = CASE WHEN {is_named(f.name)} THEN now()"
        f" ELSE t.{f.name}_changed_at END,"
        for f in SECRETS
    )
    comma = ",\n         "
    return f"""
WITH {CLAIM}, stored AS MATERIALIZED (
  SELECT * FROM trunks WHERE account_id = $1 AND id = $2 AND {GO} FOR UPDATE
), merged AS MATERIALIZED (
  SELECT {comma.join(merged(c) for c in COLUMNS)}
    FROM stored AS s
), judged AS MATERIALIZED (
  SELECT s.id, s.revision,
         ({revision}::bigint IS NULL
           OR (s.revision = {revision} AND s.updated_at = {updated_at}::timestamptz)){fixed}
         AS fits,
         array_remove(ARRAY[{comma.join(_difference(f, is_named) for f in _FIELDS if f.updatable)}],
                      NULL) AS changed
    FROM stored AS s CROSS JOIN merged AS m
), written AS (
  UPDATE trunks AS t
     SET {comma.join(f"{c.name} = m.{c.name}" for c in COLUMNS)},{stamps}
         revision = t.revision + 1,
         updated_at = {NOW}
    FROM merged AS m CROSS JOIN judged AS j
   WHERE t.account_id = $1 AND t.id = $2 AND j.fits AND cardinality(j.changed) > 0
  RETURNING t.*, j.changed
), {revised("w.changed", mask=f"{named}::text[]", source="written")}, now_is AS (
  SELECT id, revision, changed FROM written
  UNION ALL
  SELECT id, revision, changed FROM judged WHERE fits AND cardinality(changed) = 0
), {remembered(_ANSWER.format("to_jsonb(changed)"), "now_is")}
SELECT {select}, true AS fits, t.changed FROM written AS t
UNION ALL
SELECT {select}, j.fits, '{{}}' FROM stored AS t CROSS JOIN judged AS j
 WHERE NOT EXISTS (SELECT FROM written)"""


def bits_of(names: Iterable[str]) -> int:
    """Fields as a number, a bit for each: what a statement asks 50 times costs less so."""
    return sum(_BITS[name] for name in names)


def _difference(f: Field, is_named: Callable[[str], str]) -> str:
    """The field's name where it changes, else NULL. A secret that is sent always does.

    One that is not named is set to itself: a single plain value is compared sooner than it is asked
    whether it is named.
    """
    if f.secret:
        return f"CASE WHEN {is_named(f.name)} THEN '{f.name}' END"
    names = [c.name for c in COLUMNS if c.field == f.name]
    ours, theirs = (", ".join(f"{side}.{name}" for name in names) for side in "ms")
    differs = f"({ours}) IS DISTINCT FROM ({theirs})"
    if len(names) == 1 and not f.repeated:
        return f"CASE WHEN {differs} THEN '{f.name}' END"
    return f"CASE WHEN {is_named(f.name)} AND {differs} THEN '{f.name}' END"


def create(select: str) -> str:
    """A trunk and its first numbers in one statement.

    After the parameters of a mutation: the time, then ids, numbers and names of the phone numbers,
    then the values of COLUMNS and of FIXED.
    """
    columns = [*COLUMNS, *FIXED]
    now, ids, digits, names = (f"${FIRST + i}" for i in range(4))
    first = FIRST + 4
    stamps = "".join(f", {f.name}_changed_at" for f in SECRETS)
    stamped = "".join(
        f", CASE WHEN ${first + columns.index(c)}::bytea IS NOT NULL THEN {now}::timestamptz END"
        for f in SECRETS
        for c in columns
        if c.name == f"{f.name}_sealed"
    )
    values = [f"${i}::{c.sql_type}" for i, c in enumerate(columns, first)]
    place = [c.name for c in columns].index("gateways")
    values[place] = f"trunk_kept_gateways('[]', {values[place]})"
    numbers = """
         (SELECT jsonb_build_object('added', jsonb_agg(to_jsonb(n) ORDER BY n.id))
            FROM numbers AS n HAVING count(*) > 0)"""
    return f"""
WITH {CLAIM}, written AS (
  INSERT INTO trunks (account_id, id, created_at, updated_at, phone_number_count{stamps},
                      {", ".join(c.name for c in columns)})
  SELECT $1::text, $2::text, {now}::timestamptz, {now}::timestamptz,
         cardinality({ids}::text[]){stamped},
         {", ".join(values)}
   WHERE {GO}
  RETURNING *
), numbers AS (
  INSERT INTO phone_numbers (account_id, trunk_id, id, phone_number, name, created_at, updated_at)
  SELECT t.account_id, t.id, n.id, n.phone_number, n.name, t.created_at, t.created_at
    FROM written AS t
   CROSS JOIN unnest({ids}::text[], {digits}::text[], {names}::text[]) AS n(id, phone_number, name)
   ORDER BY ltrim(n.phone_number, '+')  -- two creates with the same numbers must not deadlock
  RETURNING *
), {revised("'{}'::text[]", numbers=numbers, source="written")},
{remembered(_ANSWER.format("'[]'::jsonb"), "written")}
SELECT {select} FROM written AS t"""


DELETE = f"""
WITH {CLAIM}, stored AS MATERIALIZED (
  SELECT * FROM trunks WHERE account_id = $1 AND id = $2 AND {GO} FOR UPDATE
), gone AS (
  DELETE FROM trunks AS t USING stored AS s
   WHERE t.account_id = $1 AND t.id = $2
     AND (${FIRST}::bigint IS NULL
          OR (s.revision = ${FIRST} AND s.updated_at = ${FIRST + 1}::timestamptz))
     AND (${FIRST + 2}::boolean OR s.phone_number_count = 0)
  RETURNING t.*
), revised AS (
  INSERT INTO trunk_revisions (account_id, trunk_id, revision, changed_at, token_id, request_id,
                               method, trunk, deleted)
  SELECT t.account_id, t.id, t.revision + 1, {NOW}, $4::text, $5::text, $3::text,
         trunk_snapshot(to_jsonb(t)), true
    FROM gone AS t
), pending AS (
  INSERT INTO feed_pending (account_id, trunk_id, revision)
  SELECT account_id, id, revision + 1 FROM gone
), {remembered("jsonb_build_object('count', phone_number_count)", "gone")}
SELECT revision, updated_at, phone_number_count, EXISTS (SELECT FROM gone) AS done FROM stored"""


def locked(select: str, most: int) -> str:
    """The rows of some trunks, locked in the order of their ids so that nobody deadlocks.

    After the parameters of a mutation: the ids, of which there are at most so many.
    """
    return f"""
WITH {CLAIM}
SELECT {select} FROM trunks AS t
 WHERE t.account_id = $1 AND t.id = ANY (${FIRST}::text[]) AND {GO}
 ORDER BY t.id LIMIT {most} FOR UPDATE"""


REMEMBER = f"""
INSERT INTO requests (account_id, method, request_id, fingerprint, key_id, answer)
SELECT $1, $3, $5, $6, $7::text, ${FIRST}::jsonb FROM (SELECT $2::text, $4::text) AS call
 WHERE $6::bytea IS NOT NULL
RETURNING 1"""
