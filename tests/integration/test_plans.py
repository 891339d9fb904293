"""How PostgreSQL runs what the service asks: by an index, whatever the size of the tables."""

import re
from typing import Any

import asyncpg
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.integration.conftest import minted
from tests.integration.link import linked
from tests.integration.test_request_id import MUTATIONS, World
from tests.integration.watching import watching
from tests.support import IpIdentifier, connected, ip_based, update
from trunkline import feed, housekeeping

# Accounts of unequal size: the first has half of all trunks.
FILL = """
INSERT INTO accounts (id) SELECT 'a' || n FROM generate_series(1, 40) AS n;
INSERT INTO tokens (id, account_id, name, sha256, scopes)
SELECT 'token' || n, 'a' || 1 + n % 40, 'x', sha256(n::text::bytea), '{}'
  FROM generate_series(1, 5000) AS n;
INSERT INTO trunks (account_id, id, name, provider, auth_type, gateways, ip_identifiers, is_active,
                    created_at, updated_at, revision)
SELECT 'a' || CASE WHEN n % 2 = 0 THEN 1 ELSE 1 + n % 40 END, 't' || n, 'Trunk ' || n,
       'provider' || n % 7, 'IP_BASED',
       jsonb_build_array(jsonb_build_object('gateway_address', 'gw' || n || '.example.com')),
       jsonb_build_array(jsonb_build_object('ip_address', '10.0.' || n / 250 || '.' || n % 250)),
       n % 3 > 0, now() - n * interval '1 second', now(), 4
  FROM generate_series(1, 10000) AS n;
INSERT INTO phone_numbers (account_id, id, trunk_id, phone_number, created_at, updated_at)
SELECT account_id, 'n' || n, id, (100000000 + n)::text, now(), now()
  FROM trunks CROSS JOIN generate_series(1, 3) AS copy
 CROSS JOIN LATERAL (SELECT 3 * substr(id, 2)::integer + copy AS n) AS numbered;
INSERT INTO trunk_revisions (account_id, trunk_id, revision, changed_at, trunk)
SELECT account_id, id, n, now(), trunk_snapshot(to_jsonb(t))
  FROM trunks AS t CROSS JOIN generate_series(1, 4) AS n;
INSERT INTO feed (position, account_id, trunk_id, revision)
SELECT row_number() OVER (), account_id, trunk_id, revision FROM trunk_revisions;
UPDATE feed_state SET position = (SELECT max(position) FROM feed);
INSERT INTO feed_pending (account_id, trunk_id, revision)
SELECT account_id, trunk_id, 4 FROM trunk_revisions WHERE revision = 1;
INSERT INTO requests (account_id, method, request_id, fingerprint, key_id, answer)
SELECT account_id, 'UpdateSipTrunk', 'r' || id, '', 'k1', '{}' FROM trunks;
ANALYZE;
"""
LARGE = {"trunks", "phone_numbers", "trunk_revisions", "feed", "feed_pending", "requests", "tokens"}
"""The tables that grow; the others have a few rows for the whole database."""
SCANNED = re.compile(
    r"^SELECT EXISTS \(SELECT FROM tokens\)$|IN \(SELECT account_id, trunk_id FROM feed_pending\)"
)
"""What stops at the first row, and what reads those few changes that have no place yet."""
FILTERS = (
    "is_active=true",
    'provider="provider3"',
    'name="Trunk 5"',
    'name="Trunk 5*"',
    'phone_number="100000005"',
    'gateway_address="gw5.example.com"',
    "source_ip=10.0.0.5",
)
ORDERS = ("id", "name", "created_at desc")


@pytest.fixture
async def filled(database: str) -> str:
    """A database with as many rows as make a scan the dearer way."""
    connection = await asyncpg.connect(database)
    await connection.execute(FILL)
    await connection.close()
    return database


async def statements(url: str) -> set[str]:
    """Every statement that the service sends when each of its methods is called."""
    token = (await minted(url, "a1")).text
    async with (
        linked(url) as link,
        running(link.url) as service,
        connected(service.grpc_address, token) as stub,
    ):
        world = World(stub)
        addresses = [IpIdentifier(ip_address=f"192.0.2.{i}") for i in (1, 2)]
        gateways = [{"gateway_address": f"{name}.example.com"} for name in "ab"]
        create = pb.CreateSipTrunkRequest(
            sip_trunk=ip_based(gateways=gateways, ip_identifiers=addresses)
        )
        world.two = await stub.CreateSipTrunk(create)
        async with watching(stub, initial_state=True) as watcher:
            await watcher.until(lambda w: any(r.initial_state_complete for r in w.responses))
            token = watcher.token
        for method in MUTATIONS:
            await world.make()
            for _ in range(2):
                await world.call(method, f"twice-{method}")
            gone = [world.other] if method == "DeleteSipTrunk" else [world.trunk, world.other]
            for trunk in gone:
                await stub.DeleteSipTrunk(pb.DeleteSipTrunkRequest(id=trunk.id, force=True))
        for text in FILTERS:
            await stub.ListSipTrunks(pb.ListSipTrunksRequest(filter=text, page_size=3))
        for order in ORDERS:
            page = await stub.ListSipTrunks(pb.ListSipTrunksRequest(order_by=order, page_size=3))
            more = pb.ListSipTrunksRequest(
                order_by=order, page_size=3, page_token=page.next_page_token
            )
            await stub.ListSipTrunks(more)
        await stub.ListPhoneNumbers(pb.ListPhoneNumbersRequest(trunk_id="t2"))
        several = pb.ListPhoneNumbersRequest(trunk_id="-", trunk_ids=["t2", "t4"])
        await stub.ListPhoneNumbers(several)
        await stub.ListSipTrunkRevisions(pb.ListSipTrunkRevisionsRequest(trunk_id="t2"))
        await stub.GetSipTrunkRevision(pb.GetSipTrunkRevisionRequest(trunk_id="t2", revision=2))
        async with watching(stub, resume_token=token) as watcher:
            await watcher.until(lambda w: bool(w.events))
        async with watching(stub, all_accounts=True, initial_state=True) as watcher:
            await watcher.until(lambda w: any(r.initial_state_complete for r in w.responses))
        return set(link.statements)


async def plan(connection: "asyncpg.Connection[Any]", statement: str) -> str:
    """The plan that is kept for a statement, whatever its arguments."""
    await connection.execute(f"PREPARE one AS {statement}")
    count = max((int(n) for n in re.findall(r"\$(\d+)", statement)), default=0)
    arguments = f"({', '.join(['NULL'] * count)})" if count else ""
    rows = await connection.fetch(f"EXPLAIN (COSTS OFF) EXECUTE one{arguments}")
    await connection.execute("DEALLOCATE one")
    return "\n".join(row[0] for row in rows)


async def test_no_statement_scans_a_table(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(feed, "EVENTS_KEPT_MAX", 5)
    asked = await statements(filled)
    connection = await asyncpg.connect(filled)
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    looked, scans = 0, []
    for statement in asked:
        if not re.match(r"\s*(WITH|SELECT|INSERT|UPDATE|DELETE)\b", statement):
            continue
        found = await plan(connection, statement)
        looked += 1
        for line in found.splitlines():
            scanned = re.search(r"Seq Scan on (\w+)", line)
            if scanned and scanned[1] in LARGE and not SCANNED.search(statement):
                scans.append(f"{scanned[1]}: {statement}\n{found}")
    assert scans == []
    assert looked > 30
    await connection.close()


async def test_plan_of_the_update_looks_up_one_row(filled: str) -> None:
    token = (await minted(filled, "a1")).text
    async with (
        linked(filled) as link,
        running(link.url) as service,
        connected(service.grpc_address, token) as stub,
    ):
        await stub.UpdateSipTrunk(update("t2", "is_active", is_active=False))
        (statement,) = {s for s in link.statements if "UPDATE trunks" in s}
    connection = await asyncpg.connect(filled)
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    found = await plan(connection, statement)
    indexes = set(re.findall(r"Index (?:Only )?Scan using (\w+)", found))
    assert indexes == {"trunks_pkey"}
    await connection.close()
