"""Pages by what is in trunks' lists: the same trunks whichever way they are found."""

from typing import Any

import asyncpg
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.integration.conftest import minted
from tests.support import connected
from trunkline.store import listing

TRUNKS = 3 * listing.WALK_MAX // 2
# What many have, what each tenth has, what the first and the very last have, what two have.
FILL = """
INSERT INTO trunks (account_id, id, name, provider, auth_type, gateways, ip_identifiers, is_active,
                    created_at, updated_at)
SELECT account, 'T' || lpad(n::text, 6, '0'), 'Trunk ' || md5(n::text), 'p', 'IP_BASED',
       (SELECT jsonb_agg(jsonb_build_object('gateway_address', a)) FROM unnest(ARRAY[
          'all.example.com', CASE WHEN n % 10 = 0 THEN 'tenth.example.com' END,
          CASE WHEN n <= 70 OR n = $1 THEN 'first.example.com' END,
          CASE WHEN n IN (7, $1 - 7) THEN 'two.example.com' END]) AS u(a) WHERE a IS NOT NULL),
       jsonb_build_array(jsonb_build_object('ip_address',
         CASE WHEN n % 3 = 0 THEN '192.0.2.0/24' ELSE '198.51.100.' || n % 250 END)),
       n % 4 <> 0, now() - (n % 777) * interval '1 second', now()
  FROM generate_series(1, $1::integer) AS n CROSS JOIN unnest('{ours,theirs}'::text[]) AS u(account)
"""
WANTED = """
SELECT id FROM trunks WHERE account_id = 'ours' AND {where} ORDER BY {order}
"""


def has(address: str) -> str:
    """A test for a gateway that no index serves."""
    return f"""gateways @> '[{{"gateway_address": "{address}.example.com"}}]'"""


CASES = {
    'gateway_address="all.example.com"': has("all"),
    'gateway_address="tenth.example.com" AND is_active=true': f"{has('tenth')} AND is_active",
    'gateway_address="first.example.com"': has("first"),
    'gateway_address="two.example.com"': has("two"),
    'gateway_address="none.example.com"': has("none"),
    "source_ip=192.0.2.9": """ip_identifiers @> '[{"ip_address":"192.0.2.0/24"}]'""",
    'source_ip=198.51.100.7 AND gateway_address="all.example.com" AND name="Trunk a*"': (
        """ip_identifiers @> '[{"ip_address":"198.51.100.7"}]' AND name LIKE 'Trunk a%'"""
    ),
}
ORDERS = {"": "id", "name desc": "name DESC, id DESC", "created_at": "created_at, id"}


@pytest.fixture
async def filled(database: str) -> str:
    """Two accounts with the same trunks."""
    connection = await asyncpg.connect(database)
    await connection.execute("INSERT INTO accounts (id) VALUES ('ours'), ('theirs')")
    await connection.execute(FILL.replace("$1", str(TRUNKS)))
    await connection.execute("ANALYZE trunks")
    await connection.close()
    return database


async def listed(stub: Any, filter_: str, order: str) -> list[str]:
    """The ids of all pages."""
    request = pb.ListSipTrunksRequest(filter=filter_, order_by=order, page_size=60)
    found = list[str]()
    for _ in range(TRUNKS):
        page = await stub.ListSipTrunks(request)
        found += [trunk.id for trunk in page.sip_trunks]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            break
    return found


async def test_few_and_many_are_found_in_their_order(filled: str) -> None:
    token = (await minted(filled, "ours")).text
    connection = await asyncpg.connect(filled)
    try:
        async with running(filled) as service, connected(service.grpc_address, token) as stub:
            for filter_, where in CASES.items():
                for order, by in ORDERS.items():
                    rows = await connection.fetch(WANTED.format(where=where, order=by))
                    assert await listed(stub, filter_, order) == [r["id"] for r in rows], (
                        filter_,
                        order,
                    )
    finally:
        await connection.close()
