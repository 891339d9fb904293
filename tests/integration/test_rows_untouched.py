import random
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.integration import random_trunks
from tests.integration.reference_merge import UPDATABLE
from tests.support import (
    Gateway,
    IpIdentifier,
    PhoneNumber,
    SipTrunk,
    connected,
    password,
    refused,
    update,
    userpass,
)

UPDATES = 150
ALWAYS = {"revision", "updated_at"}
COLUMNS = {
    "auth_password": {
        "auth_password_sealed",
        "auth_password_key_id",
        "auth_password_changed_at",
    },
    "allow": {"allow", "allow_codecs"},
    "disallow": {"disallow", "disallow_codecs"},
}
# As a later version might leave them: this one knows none of it.
LATER = """
ALTER TABLE trunks
  ADD COLUMN later_text text DEFAULT E'kept\\n\\t ',
  ADD COLUMN later_number double precision DEFAULT 0.1,
  ADD COLUMN later_json jsonb,
  ADD COLUMN later_bytes bytea;
UPDATE trunks SET later_json = '{"a": [1, null, "é"]}', later_bytes = '\\x00ff10';
CREATE TABLE later_rows (account_id text, trunk_id text, value text DEFAULT 'kept');
INSERT INTO later_rows SELECT account_id, id FROM trunks"""


@pytest.fixture
async def connection(database: str) -> AsyncIterator[Any]:
    """A connection of the test's own to the database."""
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


async def rows_of(connection: Any, table: str) -> list[dict[str, Any]]:
    """Every row of a table, each column as the bytes that PostgreSQL sends of it."""
    columns = await connection.fetch(
        "SELECT a.attname, t.typsend::text FROM pg_attribute AS a JOIN pg_type AS t"
        " ON t.oid = a.atttypid WHERE a.attrelid = $1::regclass AND a.attnum > 0"
        " AND NOT a.attisdropped ORDER BY a.attnum",
        table,
    )
    sent = ", ".join(f'{send}("{name}") AS "{name}"' for name, send in columns)
    return [
        dict(row) for row in await connection.fetch(f"SELECT {sent} FROM {table} ORDER BY 1, 2")
    ]


async def everything_else(connection: Any) -> dict[str, list[dict[str, Any]]]:
    """The rows of every table but trunks, and but the feed's, which moves by itself."""
    tables = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        " AND relname NOT IN ('trunks', 'feed', 'feed_pending', 'feed_state')"
    )
    return {name: await rows_of(connection, name) for (name,) in tables}


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    assert before.keys() == after.keys()
    return {column for column in before if before[column] != after[column]}


def together(rng: random.Random, trunk: Any, mask: list[str]) -> dict[str, str]:
    """A transport and a media encryption that may stand together after an update."""
    transport = SipTrunk.Transport.Name(trunk.transport)
    media_encryption = SipTrunk.MediaEncryption.Name(trunk.media_encryption)
    choices = [
        (t, m)
        for t in ("UDP", "TCP", "TLS")
        for m in ("NO", "SDES")
        if (m == "NO" or t == "TLS")
        and (t == transport or "transport" in mask)
        and (m == media_encryption or "media_encryption" in mask)
    ]
    return dict(zip(("transport", "media_encryption"), rng.choice(choices), strict=True))


@pytest.mark.parametrize("seed", range(2))
async def test_columns_that_the_mask_does_not_name_keep_every_byte(
    stub: Any, connection: Any, seed: int
) -> None:
    rng, secret = random.Random(seed), password()
    trunks = [
        await stub.CreateSipTrunk(
            pb.CreateSipTrunkRequest(
                sip_trunk=SipTrunk(**random_trunks.trunk(rng, secret)),
                phone_numbers=[PhoneNumber(phone_number=f"+1555010{position}", name="kept")],
            )
        )
        for position in range(3)
    ]
    await connection.execute(LATER)
    others = await everything_else(connection)
    assert {"later_rows", "phone_numbers", "accounts", "requests"} <= others.keys()
    history = others.pop("trunk_revisions")
    written = set()
    for number in range(UPDATES):
        position = rng.randrange(len(trunks))
        kind = SipTrunk.AuthType.Name(trunks[position].auth_type)
        own = {"USERPASS": [], "IP_BASED": ["auth_username", "auth_password"]}[kind]
        fields = [field for field in UPDATABLE if field not in own]
        mask = rng.sample(fields, rng.choice((1, 1, 1, 2, 4, len(fields))))
        patch = {field: random_trunks.valid(rng, field, secret) for field in fields}
        patch |= {"allow": "ulaw,alaw,gsm", "disallow": rng.choice(("all", "g722", "gsm"))}
        patch |= {"ip_identifiers": random_trunks.ranges(rng, rng.randint(1, 4))}
        patch |= together(rng, trunks[position], mask)
        before = await rows_of(connection, "trunks")
        request = update(trunks[position].id, *mask, **patch)
        trunks[position] = await stub.UpdateSipTrunk(request)
        after = await rows_of(connection, "trunks")
        case = f"seed {seed}, update {number}, {mask=}"
        for place, trunk in enumerate(trunks):
            found = changed(before[place], after[place])
            assert before[place]["id"] == trunk.id.encode(), case
            if place != position:
                assert found == set(), case
            else:
                allowed = set[str]().union(*(COLUMNS.get(field, {field}) for field in mask))
                assert found <= allowed | ALWAYS, case
                assert found >= ALWAYS or not found, case
                written |= found
    rest = await everything_else(connection)
    revisions = rest.pop("trunk_revisions")
    assert [row for row in revisions if row in history] == history
    assert rest == others
    assert written >= {*UPDATABLE} - {"auth_password"} | {"auth_password_sealed", *ALWAYS}


async def test_a_refused_update_leaves_every_byte(stub: Any, connection: Any) -> None:
    trunk, taken = [
        await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass())) for _ in range(2)
    ]
    before = await rows_of(connection, "trunks")
    gateways = [Gateway(gateway_address="new.example.com")]
    for wrong in (
        {"qualify_frequency": -1},
        {"media_encryption": SipTrunk.SDES},
        {"provider": "other"},
        {"etag": '"stale"'},
        {"auth_password": ""},
        {"name": taken.name},
    ):
        sent = {"name": "new", "gateways": gateways} | wrong
        error = await refused(stub.UpdateSipTrunk(update(trunk.id, *sent, **sent)))
        assert error.code in ("INVALID_ARGUMENT", "ABORTED", "ALREADY_EXISTS")
    assert await rows_of(connection, "trunks") == before


async def counters(connection: Any) -> tuple[int, int, int]:
    """Rows updated, those updated HOT, and values written out of line.

    A session's counts are certain once it has ended, so all others are ended first.
    """
    await connection.execute(
        "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    row = await connection.fetchrow(
        "SELECT s.n_tup_upd, s.n_tup_hot_upd, pg_stat_get_tuples_inserted(c.reltoastrelid)"
        " FROM pg_stat_user_tables AS s JOIN pg_class AS c ON c.oid = s.relid"
        " WHERE s.relname = 'trunks'"
    )
    return row[0], row[1], row[2]


@pytest.mark.parametrize("entries", [1, 32])
async def test_updates_of_fields_without_an_index_stay_hot_and_leave_long_lists_where_they_are(
    database: str, connection: Any, entries: int
) -> None:
    rng = random.Random(entries)
    fields: dict[str, list[Any]] = {
        "description": ["one", "two"],
        "auth_username": ["one", "two"],
        "auth_password": [password()] * 2,
        "allow": ["ulaw", "alaw,ulaw"],
        "transport": ["TLS", "TCP"],
        "qualify_frequency": [1, 2],
        "inbound_enabled": [True, False],
    }
    await connection.execute("ALTER TABLE trunks SET (autovacuum_enabled = false)")
    async with running(database) as service, connected(service.grpc_address) as stub:
        trunk = await stub.CreateSipTrunk(
            pb.CreateSipTrunkRequest(
                sip_trunk=userpass(
                    gateways=[
                        Gateway(gateway_address=f"h{i}-{rng.getrandbits(64):x}.example.com")
                        for i in range(entries)
                    ],
                    ip_identifiers=[
                        IpIdentifier(ip_address=f"2001:db8::{rng.getrandbits(16):x}:{i:x}")
                        for i in range(8 * entries)
                    ],
                )
            )
        )
    before = await counters(connection)
    assert (before[2] > 0) == (entries > 1)
    async with running(database) as service, connected(service.grpc_address) as stub:
        for turn in range(10):
            for field, values in fields.items():
                await stub.UpdateSipTrunk(update(trunk.id, field, **{field: values[turn % 2]}))
    updated, hot, out_of_line = (
        now - then for now, then in zip(await counters(connection), before, strict=True)
    )
    assert (updated, hot) == (10 * len(fields), 10 * len(fields))
    assert out_of_line == 0
