"""Request ids, traces, deadlines, tokens, and limits on the header."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import httpx
import pytest

from tests.conftest import running
from tests.http.clients import SECONDS_MAX, Connection, client
from tests.http.relay import relayed
from tests.http.trunks import ABSENT, TRUNKS, created, problem, read, userpass
from tests.integration.conftest import minted
from tests.support import TOKEN

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_request_id_goes_both_ways_and_is_in_both_logs(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        response = await http.get(TRUNKS, headers={"X-Request-Id": "abc/1~2"})
    assert response.headers.get_list("X-Request-Id") == ["abc/1~2"]
    seen = {r.name for r in caplog.records if getattr(r, "request_id", None) == "abc/1~2"}
    assert seen == {"trunkline.call", "trunkline.http"}


@pytest.mark.parametrize("sent", [None, "", "two words", "x" * 129, "é", "a\tb"])
async def test_a_request_id_is_made_where_none_of_use_is_sent(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, sent: str | None
) -> None:
    headers = [] if sent is None else [(b"X-Request-Id", sent.encode())]
    with caplog.at_level(logging.INFO):
        response = await http.get(TRUNKS, headers=headers)
    assert response.status_code == 200
    (made,) = response.headers.get_list("X-Request-Id")
    assert made != sent
    assert made.isalnum()
    seen = {r.name for r in caplog.records if getattr(r, "request_id", None) == made}
    assert seen == {"trunkline.call", "trunkline.http"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("PUT", TRUNKS, 405),
        ("GET", f"{TRUNKS}/{ABSENT}", 404),
        ("GET", f"{TRUNKS}?page_size=x", 400),
        ("POST", TRUNKS, 400),
        ("OPTIONS", TRUNKS, 204),
        ("GET", "/healthz", 200),
    ],
)
async def test_every_reply_has_the_request_id(
    http: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await http.request(method, path, headers={"X-Request-Id": "abc"})
    assert (response.status_code, response.headers["X-Request-Id"]) == (status, "abc")


async def test_a_trace_is_passed_on(database: str) -> None:
    async with running(database) as service, relayed(service.grpc_address) as (relay, http):
        state = "rojo=00f067aa0ba902b7"
        headers = {"traceparent": TRACE, "tracestate": state, "X-Request-Id": "r1", "x-other": "no"}
        assert (await http.get(TRUNKS, headers=headers)).status_code == 200
        (call,) = relay.calls
        assert call.metadata["traceparent"] == TRACE
        assert call.metadata["tracestate"] == state
        assert call.metadata["x-request-id"] == "r1"
        assert call.metadata["authorization"] == f"Bearer {TOKEN}"
        assert "x-other" not in call.metadata


async def test_the_time_asked_for_is_the_deadline_of_the_calls(database: str) -> None:
    async with running(database) as service, relayed(service.grpc_address) as (relay, http):
        for text, least, most in ((None, 20, 30), ("7.5", 2, 7.5), ("300", 290, 300), ("5", 1, 5)):
            headers = {} if text is None else {"X-Request-Timeout": text}
            assert (await http.get(TRUNKS, headers=headers)).status_code == 200
            seconds = relay.calls[-1].seconds
            assert seconds is not None
            assert least < seconds < most + 1


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "nan", "inf", "300.1", "1e9", "5s", "1,2"])
async def test_a_time_that_is_no_number_of_seconds_is_refused(
    http: httpx.AsyncClient, text: str
) -> None:
    response = await http.get(TRUNKS, headers={"X-Request-Timeout": text})
    found = problem(response)
    assert (found.status, found.reason) == (400, "BAD_HEADER")
    assert "X-Request-Timeout" in found.message


async def test_a_request_whose_time_is_up_is_504_and_writes_nothing(
    http: httpx.AsyncClient, database: str
) -> None:
    trunk = await created(http)
    holder, looker = [await asyncpg.connect(database) for _ in range(2)]
    async with holder.transaction():
        await holder.execute("SELECT FROM trunks WHERE id = $1 FOR UPDATE", trunk["id"])
        response = await http.patch(
            f"{TRUNKS}/{trunk['id']}",
            json={"is_active": False},
            headers={"X-Request-Timeout": "0.3"},
        )
        found = problem(response)
        assert (found.status, found.reason) == (504, "DEADLINE_EXCEEDED")
        # The caller is told first; who lets go of the row before its statement ends lets it write.
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock'"
        )
        async with asyncio.timeout(SECONDS_MAX):
            while await looker.fetchval(waiting):  # noqa: ASYNC110 - a row
                await asyncio.sleep(0.01)
    await holder.close()
    await looker.close()
    assert await read(http, trunk["id"]) == trunk


def routes(trunk_id: str) -> list[tuple[str, str, Any]]:
    """Every route of a trunk, with a body that is valid."""
    url = f"{TRUNKS}/{trunk_id}"
    return [
        ("GET", url, None),
        ("HEAD", url, None),
        ("PATCH", url, {"is_active": False}),
        ("PATCH", url, {}),
        ("PATCH", url, {"phone_numbers": []}),
        ("DELETE", url, None),
        ("POST", f"{url}/numbers", {"phone_number": "+15550100"}),
        ("GET", f"{url}/numbers", None),
        ("PATCH", f"{url}/numbers/{ABSENT}", {"name": "x"}),
        ("DELETE", f"{url}/numbers/{ABSENT}", None),
        ("POST", f"{url}/gateways", {"gateways": [{"gateway_address": "b.example"}]}),
        ("DELETE", f"{url}/gateways?gateway_ids={ABSENT}", None),
        ("POST", f"{url}/ip-identifiers", {"ip_identifiers": [{"ip_address": "203.0.113.9"}]}),
        ("DELETE", f"{url}/ip-identifiers?ip_addresses=203.0.113.9", None),
        ("POST", f"{url}/numbers:batchCreate", {"phone_numbers": [{"phone_number": "+15550100"}]}),
        ("POST", f"{url}/numbers:batchDelete", {"ids": [ABSENT]}),
        ("POST", f"{url}/numbers:move", {"target_trunk_id": f"{trunk_id}x", "ids": [ABSENT]}),
        ("POST", f"{TRUNKS}:batchUpdate", {"requests": [{"id": trunk_id, "is_active": False}]}),
        ("POST", f"{url}:revert", {"revision": 1}),
        ("GET", f"{url}/revisions", None),
        ("HEAD", f"{url}/revisions", None),
        ("GET", f"{url}/revisions/1", None),
    ]


async def asked(
    http: httpx.AsyncClient, method: str, path: str, body: Any, **headers: str
) -> httpx.Response:
    content = {} if body is None else {"json": body}
    return await http.request(method, path, headers=headers, **content)


@pytest.mark.parametrize(
    ("authorization", "reason"),
    [
        (None, "TOKEN_MISSING"),
        ("", "TOKEN_MISSING"),
        ("Bearer", "TOKEN_MISSING"),
        (TOKEN, "TOKEN_MISSING"),
        (f"Basic {TOKEN}", "TOKEN_MISSING"),
        (f"Bearer {TOKEN}x", "TOKEN_UNKNOWN"),
        ("Bearer tl_0_0_0", "TOKEN_UNKNOWN"),
        ("Bearer " + "x" * 5000, "TOKEN_UNKNOWN"),
    ],
)
async def test_a_request_without_a_known_token_is_401(
    address: str, authorization: str | None, reason: str
) -> None:
    async with client(address.removeprefix("http://"), None) as http:
        if authorization is not None:
            http.headers["Authorization"] = authorization
        every = [*routes(ABSENT), ("GET", TRUNKS, None), ("POST", TRUNKS, userpass())]
        every += [("GET", f"{TRUNKS}:watch", None), ("HEAD", f"{TRUNKS}:watch", None)]
        for method, path, body in every:
            response = await asked(http, method, path, body)
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"].startswith("Bearer")
            if method != "HEAD":
                found = problem(response)
                assert found.reason == reason
                assert found.message.startswith("Access denied")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PATCH", f"{TRUNKS}/{ABSENT}", "not json"),
        ("PATCH", f"{TRUNKS}/{ABSENT}", '{"nope": 1}'),
        ("PATCH", f"{TRUNKS}/{ABSENT}", '{"is_active": "yes"}'),
        ("POST", TRUNKS, "{}"),
        ("POST", TRUNKS, '{"name": 5}'),
        ("POST", f"{TRUNKS}/{ABSENT}/numbers", "[]"),
        ("GET", f"{TRUNKS}?page_size=x", ""),
        ("GET", f"{TRUNKS}?nope=1", ""),
        ("POST", f"{TRUNKS}?validate_only=x", "{}"),
        ("DELETE", f"{TRUNKS}/{ABSENT}?nope=1", ""),
        ("POST", f"{TRUNKS}:batchUpdate", '{"nope": 1}'),
        ("POST", f"{TRUNKS}/{ABSENT}:revert", '{"revision": "x"}'),
        ("DELETE", f"{TRUNKS}/{ABSENT}/gateways", ""),
        ("GET", f"{TRUNKS}/{ABSENT}/revisions/x", ""),
        ("GET", f"{TRUNKS}:watch?initial_state=x", ""),
    ],
)
async def test_who_calls_is_asked_before_what_is_sent_is_judged(
    address: str, method: str, path: str, body: str
) -> None:
    async with client(address.removeprefix("http://"), f"{TOKEN}x") as http:
        headers = {"Content-Type": "application/json"}
        response = await http.request(method, path, content=body, headers=headers)
        assert problem(response).status == 401


async def test_a_token_with_letters_beyond_ascii_is_refused(http: httpx.AsyncClient) -> None:
    response = await http.get(TRUNKS, headers={b"Authorization": "Bearer é".encode()})
    assert problem(response).status in (400, 401)


async def test_a_token_without_the_scope_is_403(
    database: str, address: str, http: httpx.AsyncClient
) -> None:
    trunk = await created(http)
    reader = (await minted(database, "default", ["trunks:read"])).text
    writer = (await minted(database, "default", ["trunks:write"])).text
    host = address.removeprefix("http://")
    async with client(host, reader) as reading, client(host, writer) as writing:
        for method, path, body in routes(trunk["id"]):
            reads = method in ("GET", "HEAD")
            response = await asked(writing if reads else reading, method, path, body)
            assert response.status_code == 403, (method, path)
            if method != "HEAD":
                assert problem(response).reason == "SCOPE_MISSING"
        assert await read(reading, trunk["id"]) == trunk


@pytest.fixture
async def theirs(database: str, address: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client in another account."""
    token = (await minted(database, "theirs")).text
    async with client(address.removeprefix("http://"), token) as made:
        yield made


@pytest.mark.parametrize("etags", ["", '"0-0"', '"0-0", "1-1"', "*"])
async def test_a_trunk_of_another_account_is_as_none(
    database: str, address: str, theirs: httpx.AsyncClient, etags: str
) -> None:
    # Minted, as the bootstrap token ended with the first token.
    ours_token = (await minted(database, "default")).text
    async with client(address.removeprefix("http://"), ours_token) as ours:
        trunk = await created(ours)
        for (method, path, body), (_, nowhere, _) in zip(
            routes(trunk["id"]), routes(ABSENT), strict=True
        ):
            # Numbers and batches have no etag to match.
            bare = "numbers" in path or "batch" in path
            headers = {"If-Match": etags} if etags and not bare else {}
            response = await asked(theirs, method, path, body, **headers)
            expected = await asked(theirs, method, nowhere, body, **headers)
            assert response.status_code == expected.status_code == 404, (method, path)
            assert response.text.replace(trunk["id"], ABSENT) == expected.text
            if method != "HEAD":
                problem(response)
        assert await read(ours, trunk["id"]) == trunk
        assert (await theirs.get(TRUNKS)).json() == []


async def test_too_many_header_fields_are_431(http: httpx.AsyncClient) -> None:
    many = {f"X-{n}": "1" for n in range(120)}
    found = problem(await http.get(TRUNKS, headers=many))
    assert (found.status, found.reason) == (431, "TOO_MANY_HEADERS")
    assert (await http.get(TRUNKS, headers=dict(list(many.items())[:60]))).status_code == 200


async def test_a_header_that_is_too_long_is_refused_and_the_service_lives(
    address: str, http: httpx.AsyncClient
) -> None:
    async with Connection(address.removeprefix("http://")) as connection:
        answer = await connection.ask("GET", TRUNKS, headers={"X-Long": "x" * 100_000})
    assert answer.status in (400, 431)
    assert (await http.get(TRUNKS)).status_code == 200
