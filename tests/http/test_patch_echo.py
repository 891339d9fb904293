"""A trunk that is read and sent back, whole or in part, is not changed by that."""

import json
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.http.clients import shared
from tests.http.trunks import TRUNKS, at_random, created, ip_based, read, userpass


@pytest.fixture(scope="module")
async def http(postgres: str, template: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the module's gateway; each test minds its own trunks."""
    async with shared(postgres, template) as made:
        yield made


TRUNKS_PER_SEED = 40
PORTLESS = {"gateway_address": "sip.example.com"}


async def patched(http: httpx.AsyncClient, trunk_id: str, body: Any) -> dict[str, Any]:
    response = await http.patch(f"{TRUNKS}/{trunk_id}", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def ports(trunk: dict[str, Any]) -> list[tuple[int, bool]]:
    return [(g["port"], g["port_explicit"]) for g in trunk["gateways"]]


def without(trunk: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A trunk as a client keeps it that does not know some of the gateways' keys."""
    gateways = [{k: v for k, v in g.items() if k not in keys} for g in trunk["gateways"]]
    return trunk | {"gateways": gateways}


async def assert_unchanged_when_sent_back(http: httpx.AsyncClient, trunk_id: str) -> None:
    url = f"{TRUNKS}/{trunk_id}"
    before = await http.get(url)
    headers = {"Content-Type": "application/json", "If-Match": before.headers["ETag"]}
    after = await http.patch(url, content=before.content, headers=headers)
    assert after.status_code == 200, (after.text, before.text)
    assert after.headers["ETag"] == before.headers["ETag"], before.text
    assert after.content == before.content
    older = without(json.loads(before.content), "port_explicit", "id", "created_at")
    after = await http.patch(url, json={k: v for k, v in older.items() if k != "etag"})
    assert after.headers.get("ETag") == before.headers["ETag"], (after.text, before.text)
    assert after.content == before.content


@pytest.mark.parametrize("seed", range(3))
async def test_any_trunk_read_and_sent_back_is_not_changed(
    http: httpx.AsyncClient, seed: int
) -> None:
    rng = random.Random(seed)
    for number in range(TRUNKS_PER_SEED):
        digits = f"{seed}{number:05}"
        numbers: list[dict[str, Any]] = [
            {"phone_number": f"+1{digits}{i}", "name": rng.choice((None, "", "Größe", "x" * 100))}
            for i in range(rng.choice((0, 0, 1, 3)))
        ]
        trunk = await created(http, at_random(rng) | {"phone_numbers": numbers})
        assert trunk["phone_number_count"] == len(numbers)
        await assert_unchanged_when_sent_back(http, trunk["id"])


@pytest.mark.parametrize("explicit", [True, False])
async def test_a_trunk_with_one_host_on_several_ports_is_not_changed_when_sent_back(
    http: httpx.AsyncClient, *, explicit: bool
) -> None:
    gateways: list[dict[str, Any]] = [PORTLESS | {"priority": 1}]
    gateways.append(PORTLESS | {"port": 5080 if explicit else 5060, "priority": 2})
    gateways.append(PORTLESS | {"port": 5061, "priority": 3})
    trunk = await created(http, userpass(gateways=gateways))
    assert ports(trunk) == [(5060, False), (gateways[1]["port"], True), (5061, True)]
    assert await patched(http, trunk["id"], trunk) == trunk
    assert await patched(http, trunk["id"], {"gateways": trunk["gateways"]}) == trunk


async def test_a_trunk_over_tls_is_not_changed_when_sent_back(http: httpx.AsyncClient) -> None:
    sent = ip_based(transport="transport-tls", gateways=[PORTLESS, {"gateway_address": "b"}])
    trunk = await created(http, sent)
    assert ports(trunk) == [(5061, False)] * 2
    await assert_unchanged_when_sent_back(http, trunk["id"])


@pytest.mark.parametrize("keys", [(), ("port_explicit",)], ids=["whole", "without port_explicit"])
@pytest.mark.parametrize(
    ("transport", "effective"),
    [("transport-udp", 5060), ("transport-tcp", 5060), ("transport-tls", 5061)],
)
async def test_the_echo_of_an_effective_port_keeps_the_port_absent(
    http: httpx.AsyncClient, transport: str, effective: int, keys: tuple[str, ...]
) -> None:
    trunk = await created(http, userpass(gateways=[PORTLESS], transport=transport))
    assert ports(trunk) == [(effective, False)]
    body = {"gateways": without(trunk, *keys)["gateways"], "qualify_frequency": 5}
    assert ports(await patched(http, trunk["id"], body)) == [(effective, False)]
    # Being absent, it moves with the transport.
    other = "transport-tls" if effective == 5060 else "transport-udp"
    moved = await patched(http, trunk["id"], {"transport": other})
    assert ports(moved) == [(10121 - effective, False)]


@pytest.mark.parametrize("transport", ["transport-udp", "transport-tcp"])
async def test_the_echo_keeps_the_port_absent_where_the_transport_is_sent_and_stays(
    http: httpx.AsyncClient, transport: str
) -> None:
    trunk = await created(http, userpass(gateways=[PORTLESS], transport=transport))
    body = {"gateways": [PORTLESS | {"port": 5060}], "transport": transport}
    assert await patched(http, trunk["id"], body) == trunk


async def test_a_port_in_a_body_that_moves_the_transport_is_meant(http: httpx.AsyncClient) -> None:
    trunk = await created(http, userpass(gateways=[PORTLESS]))
    body = {"gateways": [PORTLESS | {"port": 5060}], "transport": "transport-tls"}
    assert ports(await patched(http, trunk["id"], body)) == [(5060, True)]


async def test_a_whole_body_with_another_transport_moves_the_absent_port(
    http: httpx.AsyncClient,
) -> None:
    trunk = await created(http, userpass(gateways=[PORTLESS]))
    body = trunk | {"transport": "transport-tls"}
    assert ports(await patched(http, trunk["id"], body)) == [(5061, False)]


async def test_a_port_changed_in_a_body_that_was_read_is_taken(http: httpx.AsyncClient) -> None:
    """A client that changes `port` alone still sends the `port_explicit` that it has read."""
    trunk = await created(http, userpass(gateways=[PORTLESS]))
    body = {"gateways": [trunk["gateways"][0] | {"port": 5080}]}
    assert ports(await patched(http, trunk["id"], body)) == [(5080, True)]


async def test_an_effective_port_sent_as_explicit_becomes_so(http: httpx.AsyncClient) -> None:
    trunk = await created(http, userpass(gateways=[PORTLESS]))
    body = {"gateways": [trunk["gateways"][0] | {"port_explicit": True}]}
    assert ports(await patched(http, trunk["id"], body)) == [(5060, True)]


async def test_a_port_sent_as_not_explicit_becomes_absent(http: httpx.AsyncClient) -> None:
    trunk = await created(http, userpass(gateways=[PORTLESS | {"port": 5060}]))
    assert ports(trunk) == [(5060, True)]
    body = {"gateways": [trunk["gateways"][0] | {"port_explicit": False}]}
    assert ports(await patched(http, trunk["id"], body)) == [(5060, False)]


async def test_a_trunk_made_of_a_body_that_was_read_has_no_port_either(
    http: httpx.AsyncClient,
) -> None:
    gateways = [PORTLESS, {"gateway_address": "b.example", "port": 5061}]
    trunk = await created(http, ip_based(gateways=gateways, transport="transport-tls"))
    copy = await created(http, trunk | {"name": f"{trunk['name']} again"})
    assert ports(copy) == ports(trunk) == [(5061, False), (5061, True)]


@pytest.mark.parametrize("value", ["no", 0, 1, [], {}, "false"])
async def test_a_port_explicit_that_is_no_boolean_is_refused(
    http: httpx.AsyncClient, value: Any
) -> None:
    trunk = await created(http, userpass(gateways=[PORTLESS]))
    body = {"gateways": [PORTLESS | {"port_explicit": value}]}
    response = await http.patch(f"{TRUNKS}/{trunk['id']}", json=body)
    fields = [v["field"] for v in response.json().get("violations", [])]
    assert (response.status_code, fields) == (400, ["gateways[0].port_explicit"])


async def test_a_new_gateway_with_the_effective_port_has_it_as_explicit(
    http: httpx.AsyncClient,
) -> None:
    trunk = await created(http, userpass(gateways=[PORTLESS]))
    body = {"gateways": [trunk["gateways"][0], {"gateway_address": "b.example", "port": 5060}]}
    assert ports(await patched(http, trunk["id"], body)) == [(5060, False), (5060, True)]


async def test_another_priority_in_an_echo_changes_nothing_else(http: httpx.AsyncClient) -> None:
    trunk = await created(http, userpass(gateways=[PORTLESS, {"gateway_address": "b"}]))
    gateways = [trunk["gateways"][0], trunk["gateways"][1] | {"priority": 0}]
    after = await patched(http, trunk["id"], {"gateways": gateways})
    assert after["gateways"] == gateways[::-1]
    assert await read(http, trunk["id"]) == after
