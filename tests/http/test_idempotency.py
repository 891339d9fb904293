"""Idempotency-Key: a retry is answered as the first request was, and changes nothing."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.http.clients import client, copied
from tests.http.trunks import ABSENT, TRUNKS, created, ip_based, problem, read, userpass
from tests.integration.conftest import minted
from tests.support import Gateway, SipTrunk, connected, password

SECONDS_MAX = 30
POLL_SECONDS = 0.05
WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    " AND datname = current_database()"
)
MOVED = {"transport": "transport-tls"}
PORT = {"gateway_address": "sip.example.com", "port": 5060}
PORT_TLS = PORT | {"port": 5061}


@dataclass(frozen=True)
class Service:
    """The module's service: a client of its gateway, its gRPC address, a token, its database."""

    http: httpx.AsyncClient
    grpc_address: str
    token: str
    url: str


@pytest.fixture(scope="module")
async def service(postgres: str, template: str) -> AsyncIterator[Service]:
    """A service that the module's tests share; each minds its own trunks."""
    async with (
        copied(postgres, template) as url,
        running(url, http_address="127.0.0.1:0") as served,
    ):
        token = (await minted(url, "default")).text
        async with client(served.http_address, token) as made:
            yield Service(made, served.grpc_address, token, url)


@pytest.fixture
def http(service: Service) -> httpx.AsyncClient:
    return service.http


async def send(
    http: httpx.AsyncClient, method: str, path: str, body: Any, key: str, **headers: str
) -> httpx.Response:
    content: Any = {} if body is None else {"json": body}
    return await http.request(method, path, headers={"Idempotency-Key": key} | headers, **content)


async def changes(http: httpx.AsyncClient, name: str) -> list[tuple[str, str, Any, Any]]:
    """Every kind of change of a trunk: method, path, body, and a body or path of another."""
    numbers = [{"phone_number": f"+1555{sum(name.encode()):05}{n}"} for n in range(9)]
    trunk = await created(http, userpass(phone_numbers=numbers[:4]))
    other = await created(http)
    url, ids = f"{TRUNKS}/{trunk['id']}", [n["id"] for n in trunk["phone_numbers"]]
    gateways = [{"gateway_address": "b.example"}, {"gateway_address": "c.example"}]
    update = {"id": trunk["id"], "qualify_frequency": 11}
    move = {"target_trunk_id": other["id"], "ids": ids[:1]}
    removed, gone = f"{url}/gateways?gateway_ids=", f"{url}/ip-identifiers?ip_addresses="
    addresses = ("198.51.100.7", "203.0.113.0/24")
    added = [{"ip_identifiers": [{"ip_address": address}]} for address in addresses]
    more = [{"phone_numbers": some} for some in (numbers[5:7], numbers[7:])]
    return [
        ("POST", TRUNKS, userpass(name=name), userpass(name=f"{name} 2")),
        ("PATCH", url, {"qualify_frequency": 10}, {"qualify_frequency": 20}),
        ("POST", f"{TRUNKS}:batchUpdate", {"requests": [update]}, {"requests": [update | MOVED]}),
        ("POST", f"{url}/gateways", {"gateways": gateways[:1]}, {"gateways": gateways}),
        ("DELETE", f"{removed}{ABSENT}", None, f"{removed}x"),
        ("POST", f"{url}/ip-identifiers", added[0], added[1]),
        ("DELETE", f"{gone}198.51.100.7", None, f"{gone}203.0.113.0/24"),
        ("POST", f"{url}:revert", {"revision": 1}, {"revision": 2}),
        ("POST", f"{url}/numbers", numbers[4], numbers[5]),
        ("PATCH", f"{url}/numbers/{ids[1]}", {"name": "x"}, {"name": "y"}),
        ("POST", f"{url}/numbers:batchCreate", more[0], more[1]),
        ("POST", f"{url}/numbers:move", move, move | {"ids": ids[1:2]}),
        ("POST", f"{url}/numbers:batchDelete", {"ids": ids[2:3]}, {"ids": ids[3:4]}),
        ("DELETE", f"{url}/numbers/{ids[3]}", None, f"{url}/numbers/{ids[1]}"),
        ("DELETE", url, None, f"{TRUNKS}/{other['id']}"),
    ]


async def test_a_retry_of_any_change_is_answered_as_the_first_was(http: httpx.AsyncClient) -> None:
    for number, (method, path, body, _) in enumerate(await changes(http, "retried")):
        first = await send(http, method, path, body, f"k-{number}")
        assert first.status_code in (200, 201), (method, path, first.text)
        before = (await http.get(TRUNKS)).json()
        again = await send(http, method, path, body, f"k-{number}")
        assert again.status_code == first.status_code, (method, path, again.text)
        assert again.headers.get("ETag") == first.headers.get("ETag")
        assert again.headers.get("X-Changed-Fields") == first.headers.get("X-Changed-Fields")
        assert again.json() == first.json(), (method, path)
        assert (await http.get(TRUNKS)).json() == before


async def test_the_key_of_another_request_is_422(http: httpx.AsyncClient) -> None:
    for number, (method, path, body, other) in enumerate(await changes(http, "reused")):
        first = await send(http, method, path, body, f"r-{number}")
        assert first.status_code in (200, 201), (method, path, first.text)
        before = (await http.get(TRUNKS)).json()
        where, content = (other, None) if isinstance(other, str) else (path, other)
        found = problem(await send(http, method, where, content, f"r-{number}"))
        assert (found.status, found.reason) == (422, "REQUEST_ID_REUSED"), (method, path)
        assert found.fields == ["Idempotency-Key"]
        assert "request_id" not in found.message
        assert (await http.get(TRUNKS)).json() == before


async def test_a_key_serves_each_method_once_and_reading_ignores_it(
    http: httpx.AsyncClient,
) -> None:
    trunk = await created(http)
    url = f"{TRUNKS}/{trunk['id']}"
    assert (await send(http, "POST", TRUNKS, userpass(), "shared")).status_code == 201
    assert (await send(http, "PATCH", url, {"is_active": False}, "shared")).status_code == 200
    for _ in range(2):
        assert (await send(http, "GET", url, None, "shared")).json()["is_active"] is False


async def test_a_refused_request_keeps_no_key(http: httpx.AsyncClient) -> None:
    trunk = await created(http)
    url = f"{TRUNKS}/{trunk['id']}"
    refused = await send(http, "PATCH", url, {"qualify_frequency": -1}, "refused")
    assert problem(refused).status == 400
    done = await send(http, "PATCH", url, {"qualify_frequency": 1}, "refused")
    assert (done.status_code, done.json()["qualify_frequency"]) == (200, 1)


async def test_the_key_is_the_request_id_of_the_service(service: Service) -> None:
    """A request that was sent through the one side is retried through the other."""
    sent = userpass()
    made = await send(service.http, "POST", TRUNKS, sent, "both")
    trunk = SipTrunk(
        name=sent["name"],
        provider="plivo",
        auth_type=SipTrunk.USERPASS,
        auth_username="acme",
        auth_password=sent["auth_password"],
        gateways=[Gateway(gateway_address="sip.example.com", priority=1)],
    )
    async with connected(service.grpc_address, service.token) as stub:
        request = pb.CreateSipTrunkRequest(sip_trunk=trunk, request_id="both")
        assert (await stub.CreateSipTrunk(request)).id == made.json()["id"]


@pytest.mark.parametrize("key", ["", "two words", "x" * 129, "é", "a\tb", "\u20ac"])
async def test_a_key_of_another_form_is_400(http: httpx.AsyncClient, key: str) -> None:
    trunk = await created(http)
    url = f"{TRUNKS}/{trunk['id']}"
    for method, path in (("POST", TRUNKS), ("PATCH", url), ("DELETE", url)):
        headers = [(b"Idempotency-Key", key.encode()), (b"Content-Type", b"application/json")]
        response = await http.request(method, path, headers=headers, content=b"{}")
        found = problem(response)
        assert (found.status, found.reason) == (400, "BAD_HEADER")
        assert "Idempotency-Key" in found.message
    assert await read(http, trunk["id"]) == trunk


async def test_two_keys_are_400(http: httpx.AsyncClient) -> None:
    lines = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    found = problem(await http.post(TRUNKS, json=userpass(), headers=lines))
    assert (found.status, found.reason) == (400, "BAD_HEADER")


@pytest.mark.parametrize("key", ["~", "!" * 128, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "a,b"])
async def test_a_key_is_any_visible_text(http: httpx.AsyncClient, key: str) -> None:
    body = userpass()
    made = [await send(http, "POST", TRUNKS, body, key) for _ in range(2)]
    assert [m.status_code for m in made] == [201, 201]
    assert made[0].json() == made[1].json()


async def test_a_request_id_in_the_body_is_refused_with_its_place(http: httpx.AsyncClient) -> None:
    trunk = await created(http)
    url = f"{TRUNKS}/{trunk['id']}"
    body = {"gateways": [{"gateway_address": "b.example"}]}
    for name, place in (("request_id", "Idempotency-Key"), ("validate_only", "query")):
        for key in ("same", "other"):
            sent = body | {name: "same" if name == "request_id" else True}
            found = problem(await send(http, "POST", f"{url}/gateways", sent, key))
            assert (found.status, found.violations) == (400, [(name, "UNKNOWN_FIELD")])
            assert place in found.message
    assert await read(http, trunk["id"]) == trunk


async def test_a_request_that_is_at_work_is_409_with_a_time_to_retry(service: Service) -> None:
    trunk = await created(service.http)
    url = f"{TRUNKS}/{trunk['id']}"
    body = {"qualify_frequency": 33}
    holder, watcher = await asyncpg.connect(service.url), await asyncpg.connect(service.url)
    try:
        async with holder.transaction():
            await holder.execute("SELECT FROM trunks WHERE id = $1 FOR UPDATE", trunk["id"])
            first = asyncio.create_task(send(service.http, "PATCH", url, body, "slow"))
            async with asyncio.timeout(SECONDS_MAX):
                while not await watcher.fetchval(WAITING):  # noqa: ASYNC110 - there is no event
                    await asyncio.sleep(POLL_SECONDS)
            response = await send(service.http, "PATCH", url, body, "slow")
            found = problem(response)
            assert (found.status, found.reason) == (409, "REQUEST_IN_FLIGHT")
            assert int(response.headers["Retry-After"]) >= 1
        done = await first
    finally:
        await holder.close()
        await watcher.close()
    again = await send(service.http, "PATCH", url, body, "slow")
    assert (done.status_code, again.json()) == (200, done.json())


@pytest.mark.parametrize(
    "patch",
    [
        MOVED | {"gateways": [PORT]},
        MOVED | {"gateways": [PORT | {"port_explicit": False}]},
        MOVED | {"gateways": [PORT_TLS | {"port_explicit": False}]},
        MOVED | {"gateways": [PORT_TLS]},
        {"gateways": [PORT]},
        {"gateways": [PORT | {"gateway_address": "other.example", "port_explicit": False}]},
    ],
    ids=str,
)
async def test_a_retry_is_the_same_request_though_the_first_moved_the_ports(
    http: httpx.AsyncClient, patch: dict[str, Any]
) -> None:
    trunk = await created(http, ip_based(gateways=[{"gateway_address": "sip.example.com"}]))
    url, key = f"{TRUNKS}/{trunk['id']}", f"ports-{trunk['id']}"
    first = await send(http, "PATCH", url, patch, key)
    assert first.status_code == 200, first.text
    # Another change comes between, which moves the ports once more.
    await http.patch(url, json={"transport": "transport-tcp"})
    again = await send(http, "PATCH", url, patch, key)
    assert (again.status_code, again.json()) == (200, first.json())
    turned = dict(reversed(patch.items()))
    assert (await send(http, "PATCH", url, turned, key)).json() == first.json()


async def test_a_whole_trunk_sent_back_with_a_key_changes_nothing(http: httpx.AsyncClient) -> None:
    gateways = [{"gateway_address": "a.example"}, {"gateway_address": "b.example", "port": 5060}]
    trunk = await created(http, userpass(gateways=gateways))
    response = await send(http, "PATCH", f"{TRUNKS}/{trunk['id']}", trunk, "echo")
    assert (response.status_code, response.json()) == (200, trunk)
    assert response.headers["X-Changed-Fields"] == ""


async def test_a_retry_with_if_match_is_answered_as_the_first_was(http: httpx.AsyncClient) -> None:
    trunk = await created(http)
    url, etag = f"{TRUNKS}/{trunk['id']}", trunk["etag"]
    body = {"qualify_frequency": 7}
    first = await send(http, "PATCH", url, body, "matched", **{"If-Match": etag})
    again = await send(http, "PATCH", url, body, "matched", **{"If-Match": etag})
    assert (first.status_code, again.json()) == (200, first.json())
    several = await send(http, "PATCH", url, body, "several", **{"If-Match": f'{etag}, "0-0"'})
    found = problem(several)
    assert (found.status, found.reason) == (400, "BAD_HEADER")


async def test_a_retry_is_answered_though_the_trunk_is_gone(http: httpx.AsyncClient) -> None:
    numbers = [{"phone_number": "+15559000"}]
    body = userpass(phone_numbers=numbers)
    first = await send(http, "POST", TRUNKS, body, "gone")
    url = f"{TRUNKS}/{first.json()['id']}"
    gone = await send(http, "DELETE", url, None, "gone")
    assert (await send(http, "DELETE", url, None, "gone")).json() == gone.json()
    again = await send(http, "POST", TRUNKS, body, "gone")
    assert again.status_code == 201
    assert again.json() == first.json() | {"phone_numbers": []}  # those of now


async def test_a_key_is_kept_for_each_account(service: Service) -> None:
    body = userpass(auth_password=password())
    address = service.http.base_url.netloc.decode()
    tokens = [(await minted(service.url, name)).text for name in ("one", "two")]
    async with client(address, tokens[0]) as one, client(address, tokens[1]) as two:
        made = [await send(each, "POST", TRUNKS, body, "mine") for each in (one, two, one)]
    assert [m.status_code for m in made] == [201] * 3
    ids = [m.json()["id"] for m in made]
    assert ids[0] == ids[2] != ids[1]
