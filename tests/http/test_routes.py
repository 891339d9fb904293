"""Paths and methods that are not there, HEAD, OPTIONS, CORS, gzip, kept connections, health."""

import json
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.conftest import running
from tests.http.clients import Connection, client, shared
from tests.http.trunks import ABSENT, TRUNKS, created, ip_based, problem, userpass

ORIGIN = "https://dashboard.example"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "PATCH",
    "Access-Control-Request-Headers": "authorization, content-type, if-match",
}


@pytest.fixture(scope="module")
async def http(postgres: str, template: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the module's gateway; each test minds its own trunks."""
    async with shared(postgres, template) as made:
        yield made


def host(http: httpx.AsyncClient) -> str:
    return http.base_url.netloc.decode()


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nowhere",
        "/sip-trunks",
        "/sip-trunks/Trunks",
        f"{TRUNKS}/{ABSENT}/codecs",
        f"{TRUNKS}/{ABSENT}/gateways/{ABSENT}",
        f"{TRUNKS}/{ABSENT}/numbers:revert",
        f"{TRUNKS}:batchCreate",
        f"{TRUNKS}/{ABSENT}/revisions/1/x",
        f"{TRUNKS}/{ABSENT}/numbers/{ABSENT}/x",
        f"{TRUNKS}/a%2Fb/c",
        "//sip-trunks/trunks",
        "/sip-trunks/trunks/../trunks/x/y",
        "/siptrunk.v1.SipTrunkService/GetSipTrunk",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH", "DELETE", "OPTIONS"])
async def test_an_unknown_path_is_404_in_the_shape_of_errors(
    http: httpx.AsyncClient, method: str, path: str
) -> None:
    found = problem(await http.request(method, path))
    assert (found.status, found.reason) == (404, "ROUTE_NOT_FOUND")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        (TRUNKS, {"GET", "HEAD", "POST", "OPTIONS"}),
        (f"{TRUNKS}/{ABSENT}", {"GET", "HEAD", "PATCH", "DELETE", "OPTIONS"}),
        (f"{TRUNKS}/{ABSENT}/numbers", {"GET", "HEAD", "POST", "OPTIONS"}),
        (f"{TRUNKS}/{ABSENT}/numbers/{ABSENT}", {"PATCH", "DELETE", "OPTIONS"}),
        (f"{TRUNKS}:batchUpdate", {"POST", "OPTIONS"}),
        (f"{TRUNKS}:watch", {"GET", "HEAD", "OPTIONS"}),
        (f"{TRUNKS}/{ABSENT}:revert", {"POST", "OPTIONS"}),
        (f"{TRUNKS}/{ABSENT}/gateways", {"POST", "DELETE", "OPTIONS"}),
        (f"{TRUNKS}/{ABSENT}/ip-identifiers", {"POST", "DELETE", "OPTIONS"}),
        (f"{TRUNKS}/{ABSENT}/numbers:batchCreate", {"POST", "OPTIONS"}),
        (f"{TRUNKS}/{ABSENT}/numbers:batchDelete", {"POST", "OPTIONS"}),
        (f"{TRUNKS}/{ABSENT}/numbers:move", {"POST", "OPTIONS"}),
        (f"{TRUNKS}/{ABSENT}/revisions", {"GET", "HEAD", "OPTIONS"}),
        (f"{TRUNKS}/{ABSENT}/revisions/1", {"GET", "HEAD", "OPTIONS"}),
    ],
)
async def test_a_method_that_a_path_does_not_take_is_405_with_those_that_it_does(
    http: httpx.AsyncClient, path: str, allowed: set[str]
) -> None:
    every = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "LINK"}
    for method in sorted(every - allowed):
        response = await http.request(method, path)
        assert response.status_code == 405
        assert set(response.headers["Allow"].split(", ")) == allowed
        if method != "HEAD":
            assert problem(response).reason == "METHOD_NOT_ALLOWED"
    options = await http.options(path, headers={"Authorization": ""})
    assert (options.status_code, options.content) == (204, b"")
    assert set(options.headers["Allow"].split(", ")) == allowed


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_a_health_path_takes_get_alone(http: httpx.AsyncClient, path: str) -> None:
    response = await http.post(path)
    assert problem(response).status == 405
    assert set(response.headers["Allow"].split(", ")) >= {"GET", "HEAD"}


async def test_a_slash_at_the_end_makes_no_difference(http: httpx.AsyncClient) -> None:
    created_ = await http.post(f"{TRUNKS}/", json=userpass())
    assert created_.status_code == 201
    url = f"{TRUNKS}/{created_.json()['id']}"
    assert (await http.get(f"{url}/")).json() == created_.json()
    assert (await http.patch(f"{url}/", json={"is_active": False})).status_code == 200
    assert (await http.get(f"{url}/numbers/")).json() == []
    listed = await http.get(f"{TRUNKS}/", params={"is_active": "false"})
    assert [t["id"] for t in listed.json()] == [created_.json()["id"]]
    assert (await http.get("/healthz/")).status_code == 200


@pytest.mark.parametrize(
    "trunk_id",
    ["x", "-", ".", "%00", "%0A", "%20", "é", "%ED%A0%80", "%FF", "x" * 65, "x" * 5000, "%25", "*"],
)
async def test_an_id_of_any_form_that_no_trunk_has_is_404(
    http: httpx.AsyncClient, trunk_id: str
) -> None:
    for method, path in (
        ("GET", ""),
        ("PATCH", ""),
        ("DELETE", ""),
        ("GET", "/numbers"),
        ("POST", "/numbers"),
        ("PATCH", f"/numbers/{trunk_id}"),
        ("DELETE", f"/numbers/{trunk_id}"),
    ):
        body = {"PATCH": b"{}", "POST": b'{"phone_number": "+15550100"}'}.get(method, b"")
        # Written as it is: a client would tidy the path up.
        async with Connection(host(http)) as connection:
            sent = f"{TRUNKS}/{trunk_id}{path}".encode().decode("latin-1")
            answer = await connection.ask(method, sent, body)
        if "é" not in trunk_id:  # not a path in HTTP at all
            assert answer.status == 404, (method, path, answer.body)
            assert answer.json()["reason"] in ("TRUNK_NOT_FOUND", "PHONE_NUMBER_NOT_FOUND")
        assert 400 <= answer.status < 500


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_head_is_get_without_the_body(http: httpx.AsyncClient, encoding: str) -> None:
    trunk = await created(http)
    for path in (f"{TRUNKS}/{trunk['id']}", f"{TRUNKS}?page_size=1", f"{TRUNKS}/{ABSENT}"):
        headers = {"Accept-Encoding": encoding}
        head, get = await http.head(path, headers=headers), await http.get(path, headers=headers)
        assert (head.status_code, head.content) == (get.status_code, b"")
        volatile = {"date", "x-request-id", "content-length"}
        shown = [{k: v for k, v in r.headers.items() if k not in volatile} for r in (head, get)]
        assert shown[0] == shown[1]


async def test_a_connection_goes_on_after_head(http: httpx.AsyncClient) -> None:
    trunk = await created(http)
    async with Connection(host(http)) as connection:
        for path in (TRUNKS, f"{TRUNKS}/{trunk['id']}", f"{TRUNKS}/{ABSENT}"):
            await connection.send("HEAD", path)
            head = await connection.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 ")
            assert (await connection.ask("GET", "/healthz")).json() == {"status": "alive"}


async def test_cors_is_off_by_default(http: httpx.AsyncClient) -> None:
    trunk = await created(http)
    url = f"{TRUNKS}/{trunk['id']}"
    replies = [await http.options(url, headers=PREFLIGHT)]
    replies.append(await http.get(url, headers={"Origin": ORIGIN}))
    shown = [name for r in replies for name in r.headers if name.startswith("access-control")]
    assert shown == []


@pytest.mark.parametrize("origins", [f"{ORIGIN}, https://other.example", "*"])
async def test_cors_lets_the_origins_of_the_setting_in(database: str, origins: str) -> None:
    async with (
        running(database, http_address="127.0.0.1:0", http_cors_origins=origins) as service,
        client(service.http_address) as http,
    ):
        trunk = await created(http)
        url = f"{TRUNKS}/{trunk['id']}"
        http.headers.pop("Authorization")  # which a preflight has not
        preflight = await http.options(url, headers=PREFLIGHT)
        assert preflight.status_code in (200, 204)
        assert preflight.headers["Access-Control-Allow-Origin"] in (ORIGIN, "*")
        assert "PATCH" in preflight.headers["Access-Control-Allow-Methods"]
        allowed = preflight.headers["Access-Control-Allow-Headers"].lower()
        assert "authorization" in allowed
        assert "if-match" in allowed
        # An error too, or a page could not read why.
        refused = await http.get(url, headers={"Origin": ORIGIN})
        assert problem(refused).status == 401
        assert refused.headers["Access-Control-Allow-Origin"] in (ORIGIN, "*")
        exposed = refused.headers["Access-Control-Expose-Headers"].lower()
        told = {"etag", "link", "retry-after", "x-changed-fields", "x-request-id"}
        assert set(exposed.split(", ")) == told
        assert "Access-Control-Allow-Credentials" not in refused.headers


async def test_cors_keeps_other_origins_out(database: str) -> None:
    async with (
        running(database, http_address="127.0.0.1:0", http_cors_origins=ORIGIN) as service,
        client(service.http_address) as http,
    ):
        other = "https://dashboard.example.evil.example"
        preflight = await http.options(TRUNKS, headers=PREFLIGHT | {"Origin": other})
        reply = await http.get(TRUNKS, headers={"Origin": other})
        for response in (preflight, reply):
            assert "Access-Control-Allow-Origin" not in response.headers


async def test_replies_are_compressed_for_those_who_ask(http: httpx.AsyncClient) -> None:
    many = [{"ip_address": f"198.18.0.{n}"} for n in range(200)]
    trunk = await created(http, ip_based(ip_identifiers=many))
    for path in (f"{TRUNKS}/{trunk['id']}", TRUNKS, f"{TRUNKS}?page_size=500"):
        plain = await http.get(path, headers={"Accept-Encoding": "identity"})
        assert "Content-Encoding" not in plain.headers
        packed = await http.get(path, headers={"Accept-Encoding": "gzip"})
        assert packed.headers["Content-Encoding"] == "gzip"
        assert "Accept-Encoding" in packed.headers["Vary"]
        assert packed.content == plain.content
        assert packed.num_bytes_downloaded < len(plain.content) / 2


async def test_one_connection_carries_request_after_request(http: httpx.AsyncClient) -> None:
    body = json.dumps(userpass()).encode()
    async with Connection(host(http)) as connection:
        trunk = (await connection.ask("POST", TRUNKS, body)).json()
        url = f"{TRUNKS}/{trunk['id']}"
        statuses = []
        for method, path, sent in (
            ("GET", url, b""),
            ("GET", "/nowhere", b""),
            ("PUT", url, b"{}"),
            ("PATCH", url, b"not json"),
            ("PATCH", url, b'{"nope": 1}'),
            ("PATCH", url, b'{"is_active": false}'),
            ("DELETE", url, b""),
            ("GET", url, b""),
            ("GET", "/readyz", b""),
        ):
            answer = await connection.ask(method, path, sent)
            assert answer.headers.get("connection", "keep-alive") == "keep-alive"
            statuses.append(answer.status)
    assert statuses == [200, 404, 405, 400, 400, 200, 200, 404, 200]


async def test_requests_written_at_once_are_answered_in_their_order(
    http: httpx.AsyncClient,
) -> None:
    trunk = await created(http)
    url = f"{TRUNKS}/{trunk['id']}"
    async with Connection(host(http)) as connection:
        for number in range(20):
            await connection.send("PATCH", url, b'{"qualify_frequency": %d}' % number)
        answers = [(await connection.answer()).json() for _ in range(20)]
    assert [answer["qualify_frequency"] for answer in answers] == list(range(20))


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_needs_no_token(http: httpx.AsyncClient, path: str) -> None:
    async with client(host(http), None) as stranger:
        response = await stranger.get(path)
        assert response.status_code == 200
        assert (await stranger.head(path)).status_code == 200
