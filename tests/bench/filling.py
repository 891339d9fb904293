"""Fills a database with a population, in the state that the service would have left it in.

Every trunk has its revision 1 with its first number, and its place in the feed; secrets are sealed
for their very trunk. Indexes that keep no constraint are made at the end.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import asyncpg

from tests.bench import population
from tests.bench.parts import SECRET_KEYS
from tests.bench.population import (
    CARRIERS,
    INACTIVE_EVERY,
    OFTEN_CHANGES,
    PROVIDERS,
    RANGES,
    SPREAD,
    SPREAD_MODULUS,
    WIDE_BATCH,
    WIDE_NUMBERS,
    Population,
)
from tests.support import password
from trunkline import keys, migrate, tokens
from trunkline.config import Settings
from trunkline.sealing import KeyRing
from trunkline.store.database import Database
from trunkline.store.identities import IdentityStore

SECRET_EVERY = 2
"""One trunk of so many is USERPASS with a sealed password, the others are IP_BASED."""
ANSWER_KEPT = "0"
"""The last character of the ids of a sixteenth of the trunks, whose create had a request_id."""
OPENED = 50
SEAL_BATCH = 50_000
_TABLES = ["trunks", "phone_numbers", "trunk_revisions", "feed", "requests"]
# Nothing looks up foreign keys meanwhile: all of them are right.
_SETTINGS = """
SET timezone = 'UTC';
SET synchronous_commit = off;
SET session_replication_role = replica;
SET maintenance_work_mem = '512MB';
SET work_mem = '256MB';
CREATE UNLOGGED TABLE fill_secrets (n bigint, sealed bytea)"""

_NUMBERED = """
SELECT n, lpad(upper(to_hex(n)), 8, '0') AS hex, upper(left(md5(n::text), 16)) AS noise,
       date_trunc('second', now()) - ({trunks} - n) * interval '1 second' AS at,
       'a-' || to_char({account}, 'FM0000') AS account_id
  FROM generate_series(0::bigint, {trunks}) AS n"""

_TRUNKS = f"""
INSERT INTO trunks (account_id, id, name, provider, auth_type, auth_username, auth_password_sealed,
                    auth_password_key_id, auth_password_changed_at, gateways, ip_identifiers,
                    phone_number_count, transport, is_active, revision, created_at, updated_at)
SELECT account_id, '01' || hex || noise, 'Site ' || n, 'provider' || n % {PROVIDERS},
       CASE WHEN s.sealed IS NULL THEN 'IP_BASED' ELSE 'USERPASS' END,
       CASE WHEN s.sealed IS NOT NULL THEN 'site-' || n END, s.sealed,
       CASE WHEN s.sealed IS NOT NULL THEN '{{key_id}}' END,
       CASE WHEN s.sealed IS NOT NULL THEN at END,
       jsonb_build_array(
         jsonb_build_object('id', '03' || hex || noise, 'port', 5060, 'priority', 1,
                            'gateway_address', 'gw' || n || '.example.com', 'created_at', at),
         jsonb_build_object('id', '04' || hex || noise, 'priority', 2, 'created_at', at,
                            'gateway_address', 'sip' || n % {CARRIERS} || '.example.net')),
       jsonb_build_array(
         jsonb_build_object('ip_address', concat_ws('.', 10, n >> 16, n >> 8 & 255, n & 255)),
         jsonb_build_object('ip_address',
                            '203.0.113.' || n % {RANGES} * {256 // RANGES} || '/26')),
       CASE WHEN n = {{trunks}} THEN {WIDE_NUMBERS} ELSE 1 END,
       CASE WHEN n % 2 = 0 THEN 'TLS' ELSE 'UDP' END, n % {INACTIVE_EVERY} > 0,
       CASE WHEN n = {{trunks}} THEN 1 + {WIDE_NUMBERS // WIDE_BATCH} ELSE 1 END, at, at
  FROM ({_NUMBERED}) AS numbered LEFT JOIN fill_secrets AS s USING (n)"""

_NUMBERS = f"""
INSERT INTO phone_numbers (account_id, id, trunk_id, phone_number, name, created_at, updated_at)
SELECT account_id, '02' || hex || noise, '01' || hex || noise,
       '+1' || to_char(n, 'FM0000000000'), 'Line ' || n, at, at
  FROM ({_NUMBERED}) AS numbered WHERE n < {{trunks}}"""

_WIDE_NUMBERS = f"""
INSERT INTO phone_numbers (account_id, id, trunk_id, phone_number, created_at, updated_at)
SELECT account_id, '05' || lpad(m::text, 24, '0'), id, '+2' || to_char(m, 'FM0000000000'),
       created_at, created_at
  FROM trunks CROSS JOIN generate_series(0, {WIDE_NUMBERS} - 1) AS m WHERE {{wide}}"""

_REVISIONS = """
INSERT INTO trunk_revisions (account_id, trunk_id, revision, changed_at, token_id, method, trunk,
                             numbers)
SELECT t.account_id, t.id, 1, t.created_at, 'filled', 'CreateSipTrunk', trunk_snapshot(to_jsonb(t)),
       jsonb_build_object('added', jsonb_build_array(to_jsonb(p)))
  FROM trunks AS t JOIN phone_numbers AS p ON p.account_id = t.account_id AND p.trunk_id = t.id
 WHERE t.revision = 1"""

_WIDE_REVISIONS = f"""
INSERT INTO trunk_revisions (account_id, trunk_id, revision, changed_at, token_id, method, changed,
                             trunk, numbers)
SELECT t.account_id, t.id, b + 1, t.created_at, 'filled',
       CASE WHEN b = 0 THEN 'CreateSipTrunk' ELSE 'BatchCreatePhoneNumbers' END,
       CASE WHEN b = 0 THEN '{{{{}}}}'::text[] ELSE '{{{{phone_numbers}}}}' END,
       trunk_snapshot(to_jsonb(t))
       || jsonb_build_object('revision', b + 1, 'phone_number_count', b * {WIDE_BATCH}),
       CASE WHEN b > 0 THEN jsonb_build_object('added', (SELECT jsonb_agg(to_jsonb(p)) FROM (
         SELECT * FROM phone_numbers AS q WHERE q.account_id = t.account_id AND q.trunk_id = t.id
          ORDER BY q.id OFFSET (b - 1) * {WIDE_BATCH} LIMIT {WIDE_BATCH}) AS p)) END
  FROM trunks AS t CROSS JOIN generate_series(0, {WIDE_NUMBERS // WIDE_BATCH}) AS b
 WHERE {{wide}}"""

_OFTEN_REVISIONS = f"""
INSERT INTO trunk_revisions (account_id, trunk_id, revision, changed_at, token_id, method, mask,
                             changed, trunk)
SELECT account_id, id, c + 1, created_at + c * interval '1 ms', 'filled', 'UpdateSipTrunk',
       '{{{{is_active}}}}', '{{{{is_active}}}}',
       trunk_snapshot(to_jsonb(t)) || jsonb_build_object('revision', c + 1, 'is_active', c % 2 = 0)
  FROM trunks AS t CROSS JOIN generate_series(1, {OFTEN_CHANGES}) AS c WHERE {{often}};
UPDATE trunks SET revision = {OFTEN_CHANGES} + 1, is_active = true WHERE {{often}}"""

_REQUESTS = f"""
INSERT INTO requests (account_id, method, request_id, fingerprint, key_id, answer)
SELECT account_id, 'CreateSipTrunk', trunk_id, sha256(trunk_id::bytea), '{{key_id}}',
       jsonb_build_object('trunks', jsonb_build_array(jsonb_build_array(trunk_id, 1, jsonb '[]')))
  FROM trunk_revisions WHERE revision = 1 AND right(trunk_id, 1) = '{ANSWER_KEPT}'"""

_FEED = """
INSERT INTO feed (position, account_id, trunk_id, revision, numbered_at)
SELECT row_number() OVER (ORDER BY changed_at, trunk_id, revision), account_id, trunk_id, revision,
       changed_at
  FROM trunk_revisions ORDER BY 1;
UPDATE feed_state SET position = (SELECT max(position) FROM feed)"""

_INDEXES = """
SELECT i.indexrelid::regclass::text AS name, pg_get_indexdef(i.indexrelid) AS made
  FROM pg_index AS i
 WHERE i.indrelid = ANY ($1::text[]::regclass[])
   AND NOT EXISTS (SELECT FROM pg_constraint AS c WHERE c.conindid = i.indexrelid)"""


async def filled(url: str, people: Population) -> list[str]:
    """Fill an empty database; a token for each account."""
    database = await Database.open(url, 1, 0)
    await migrate.apply(database)
    ring = KeyRing(keys.given(Settings(secret_keys=SECRET_KEYS)))
    await keys.introduce(IdentityStore(database), ring)
    await database.close()
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(_SETTINGS)
        texts = await _identities(connection, people)
        await _seal(connection, people, ring)
        await _rows(connection, people, ring.newest)
        await _opened(connection, ring)
    finally:
        await connection.close()
    return texts


async def _identities(connection: Any, people: Population) -> list[str]:
    made = [(tokens.mint(), population.account_id(k)) for k in range(people.accounts)]
    await connection.executemany("INSERT INTO accounts (id) VALUES ($1)", [(a,) for _, a in made])
    await connection.executemany(
        "INSERT INTO tokens (id, account_id, name, sha256, scopes) VALUES ($1, $2, 'x', $3, $4)",
        [(t.token_id, a, tokens.digest(t.text), list(tokens.SCOPES)) for t, a in made],
    )
    return [token.text for token, _ in made]


async def _seal(connection: Any, people: Population, ring: KeyRing) -> None:
    secret = password()

    def sealed() -> Iterator[tuple[int, bytes]]:
        for n in range(0, people.trunks + 1, SECRET_EVERY):
            account_id = population.account_id(people.account(n))
            yield n, ring.seal(secret, account_id, population.trunk_id(n), "auth_password")

    rest = sealed()
    while batch := list(itertools.islice(rest, SEAL_BATCH)):
        await connection.copy_records_to_table("fill_secrets", records=batch)
    await connection.execute("ANALYZE fill_secrets")


async def _rows(connection: Any, people: Population, key_id: str) -> None:
    bounds = ",".join(str(bound) for bound in people.bounds)
    spread = f"(n * {SPREAD} % {SPREAD_MODULUS})::float8"
    values = {
        "trunks": f"{people.trunks}::bigint",
        "key_id": key_id,
        "account": f"CASE WHEN n = {people.trunks} THEN {people.peer}"
        f" ELSE width_bucket({spread}, '{{{bounds}}}'::float8[]) END",
        "wide": f"account_id = '{population.account_id(people.peer)}'"
        f" AND id = '{population.trunk_id(people.trunks)}'",
        "often": f"account_id = '{population.account_id(0)}'"
        f" AND id = '{population.trunk_id(people.middle(0))}'",
    }
    indexes = await connection.fetch(_INDEXES, _TABLES)
    await connection.execute("; ".join(f"DROP INDEX {index['name']}" for index in indexes))
    for statement in (_TRUNKS, _NUMBERS, _WIDE_NUMBERS):
        await connection.execute(statement.format(**values))
    await connection.execute("ANALYZE trunks, phone_numbers")
    await connection.execute(_REVISIONS)
    for statement in (_WIDE_REVISIONS, _OFTEN_REVISIONS, _REQUESTS):
        await connection.execute(statement.format(**values))
    await connection.execute(_FEED)
    for index in indexes:
        await connection.execute(index["made"])
    for statement in ("DROP TABLE fill_secrets", "VACUUM (ANALYZE)", "CHECKPOINT"):
        await connection.execute(statement)


async def _opened(connection: Any, ring: KeyRing) -> None:
    """See that the server could open what was sealed."""
    for row in await connection.fetch(
        "SELECT account_id, id, auth_password_sealed, auth_password_key_id FROM trunks"
        f" WHERE auth_type = 'USERPASS' LIMIT {OPENED}"
    ):
        ring.open(row[2], row[3], row[0], row[1], "auth_password")
