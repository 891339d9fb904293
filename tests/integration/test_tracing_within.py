import logging
from collections.abc import AsyncIterator

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.http.clients import client
from tests.integration.collecting import Collector
from tests.integration.conftest import created, minted
from tests.integration.scraping import SERVICE, locked, under_way
from tests.integration.traced_calls import (
    GET,
    PARENT,
    TRACE,
    TRACEPARENT,
    Traced,
    blocked,
    collector_of_this_process,
    create,
    faulty,
    new_id,
    serving,
)
from tests.support import connected, password, update, userpass


@pytest.fixture(scope="module")
async def shared(postgres: str, template: str) -> AsyncIterator[Traced]:
    async with faulty(postgres, template) as found:
        yield found


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collector_of_this_process() as found:
        yield found


async def test_a_fault_is_logged_with_its_trace(
    shared: Traced, caplog: pytest.LogCaptureFixture
) -> None:
    sent = shared.call("CreateSipTrunk", create(name="Broken"))
    await sent.ended()
    span = await sent.span()
    lines = [r for r in caplog.records if getattr(r, "request_id", "") == sent.request_id]
    assert [(r.message, r.levelno) for r in lines] == [
        ("failed", logging.ERROR),
        ("call", logging.INFO),
    ]
    assert {(r.__dict__["trace_id"], r.__dict__["span_id"]) for r in lines} == {
        (span.trace_id, span.span_id)
    }
    statement = next(s for s in shared.collector.children(span) if s.failed)
    assert statement.attributes["error.type"] == "P0001"
    assert statement.attributes["db.response.status_code"] == "P0001"


async def test_a_statement_is_a_span_with_a_stable_name_and_no_value(shared: Traced) -> None:
    secret = password()
    async with connected(shared.service.grpc_address) as stub:
        trunk = await created(stub, userpass(auth_password=secret), "+15550199")
    await _waited(shared, trunk.id)
    sent = [
        shared.call("UpdateSipTrunk", update(trunk.id, name=f"Renamed {n}", auth_password=secret))
        for n in range(2)
    ]
    names = set()
    for one in sent:
        assert await one.ended() == "OK"
        span = await one.span()
        children = shared.collector.children(span)
        assert children
        assert {(s.kind, s.trace_id, s.failed) for s in children} == {
            ("CLIENT", span.trace_id, False)
        }
        assert span.events["database connection"]["trunkline.wait_seconds"] >= 0
        assert sum(s.seconds for s in children) <= span.seconds
        names.add(tuple(s.name for s in children))
        for statement in children:
            assert statement.attributes["db.system.name"] == "postgresql"
            assert statement.attributes["db.query.summary"] == statement.name
            assert statement.attributes["db.operation.name"] == statement.name.split()[0]
    assert names == {("UPDATE trunks INSERT trunk_revisions INSERT feed_pending INSERT requests",)}
    for hidden in (secret, "Renamed", "15550199", trunk.id):
        assert hidden.encode() not in shared.collector.sent


async def _waited(shared: Traced, trunk_id: str) -> None:
    sent = shared.call("GetSipTrunk", GET(id=trunk_id))
    assert await sent.ended() == "OK"
    span = await sent.span()
    assert [s.name for s in shared.collector.children(span)] == ["SELECT trunks"]


async def test_each_statement_of_a_transaction_is_a_span(shared: Traced) -> None:
    async with connected(shared.service.grpc_address) as stub:
        trunks = [await created(stub) for _ in range(2)]
    request = pb.BatchUpdateSipTrunksRequest(
        requests=[update(trunk.id, "is_active", is_active=False) for trunk in trunks]
    )
    sent = shared.call("BatchUpdateSipTrunks", request)
    assert await sent.ended() == "OK"
    span = await sent.span()
    names = [s.name for s in shared.collector.children(span)]
    assert (names[0], names[-1]) == ("BEGIN", "COMMIT")
    assert len(names) >= 4
    assert len(span.events) == 1


async def test_the_wait_for_a_connection_is_told(database: str, collector: Collector) -> None:
    limits = {"database_pool_size": 1, "database_wait_seconds": 1}
    async with (
        serving(collector, database, **limits) as own,
        connected(own.service.grpc_address) as stub,
    ):
        trunk = await created(stub)
        async with (
            locked(database, trunk.id),
            under_way(stub.UpdateSipTrunk(update(trunk.id, name="x"))),
        ):
            await blocked(own, 1)
            sent = own.call("GetSipTrunk", GET(id=trunk.id))
            assert await sent.ended() == "UNAVAILABLE"
            span = await sent.span()
    assert span.attributes["trunkline.reason"] == "DATABASE_BUSY"
    assert span.events["database connection"]["trunkline.wait_seconds"] >= 1
    assert collector.children(span) == []


@pytest.mark.parametrize(
    ("method", "path", "name", "status"),
    [
        ("GET", "/sip-trunks/trunks", "GET /sip-trunks/trunks", 200),
        ("GET", "/sip-trunks/trunks/x", "GET /sip-trunks/trunks/{id}", 404),
        ("GET", "/sip-trunks/trunks/x/", "GET /sip-trunks/trunks/{id}", 404),
        ("PATCH", "/sip-trunks/trunks/x", "PATCH /sip-trunks/trunks/{id}", 404),
        ("GET", "/nothing/here", "GET", 404),
        ("PURGE", "/sip-trunks/trunks", "HTTP /sip-trunks/trunks", 405),
    ],
)
async def test_request_has_a_span_named_by_its_route(
    shared: Traced, method: str, path: str, name: str, status: int
) -> None:
    request_id = new_id()
    async with client(shared.service.http_address) as http:
        answer = await http.request(
            method,
            path,
            params={"filter": "is_active=true"} if name.endswith("trunks") else None,
            headers={"x-request-id": request_id, "traceparent": TRACEPARENT},
            json={"name": "x"} if method == "PATCH" else None,
        )
    assert answer.status_code == status
    span = await shared.collector.first(
        lambda s: s.attributes.get("trunkline.request_id") == request_id and s.name[0] != "s"
    )
    assert (span.name, span.kind, span.failed) == (name, "SERVER", False)
    assert (span.trace_id, span.parent_id) == (TRACE, PARENT)
    route = {"http.route": name.split()[1]} if " " in name else {}
    assert span.attributes == {
        "http.request.method": "_OTHER" if method == "PURGE" else method,
        "http.response.status_code": status,
        "url.path": path,
        "url.scheme": "http",
        "trunkline.request_id": request_id,
        **route,
    }


async def test_a_request_and_its_calls_and_statements_are_one_trace(
    shared: Traced, caplog: pytest.LogCaptureFixture
) -> None:
    request_id = new_id()
    async with client(shared.service.http_address) as http:
        sent = {"x-request-id": request_id, "traceparent": TRACEPARENT, "tracestate": "a=b"}
        await http.get("/sip-trunks/trunks", headers=sent)
    span = await shared.collector.first(
        lambda s: (
            s.attributes.get("trunkline.request_id") == request_id and "http.route" in s.attributes
        )
    )
    calls = shared.collector.children(span)
    assert {(s.kind, s.name.rpartition("/")[0]) for s in calls} == {("SERVER", SERVICE[1:-1])}
    statements = [s for call in calls for s in shared.collector.children(call)]
    assert statements
    assert {(s.trace_id, s.state) for s in (span, *calls, *statements)} == {(TRACE, "a=b")}
    line = next(
        r
        for r in caplog.records
        if r.message == "request" and r.__dict__["request_id"] == request_id
    )
    assert (line.__dict__["trace_id"], line.__dict__["span_id"]) == (span.trace_id, span.span_id)


async def test_a_request_that_fails_is_an_error(shared: Traced) -> None:
    async with client(shared.service.http_address) as http:
        body = {
            "name": "Away",
            "provider": "plivo",
            "auth_type": "userpass",
            "auth_username": "acme",
            "auth_password": password(),
            "gateways": [{"gateway_address": "sip.example.com"}],
        }
        answer = await http.post("/sip-trunks/trunks", json=body)
        assert answer.status_code == 503
        for path in ("/healthz", "/readyz"):
            assert (await http.get(path)).status_code == 200
        await http.get("/docs")
    span = await shared.collector.first(
        lambda s: s.attributes.get("http.response.status_code") == 503
    )
    assert (span.failed, span.attributes["error.type"]) == (True, "503")
    await shared.collector.first(lambda s: s.attributes.get("url.path") == "/docs")
    assert not [
        s for s in shared.collector.spans if s.attributes.get("url.path") in ("/healthz", "/readyz")
    ]


async def test_the_resource_names_the_service(shared: Traced) -> None:
    span = (await shared.collector.first(lambda _: True)).resource
    assert span["service.name"] == "trunkline"
    assert span["service.version"]
    assert span["telemetry.sdk.name"] == "opentelemetry"


async def test_work_beside_the_calls_is_not_traced(shared: Traced) -> None:
    made = await minted(shared.url, "ours")
    sent = shared.call("ListSipTrunks", pb.ListSipTrunksRequest(), made.text)
    await sent.ended()
    span = await sent.span()
    names = [s.name for s in shared.collector.children(span)]
    assert names == ["SELECT trunks"]  # nor is the look-up of the token, which callers share
    roots = {s.name for s in shared.collector.spans if not s.parent_id and s.kind == "CLIENT"}
    assert roots == set()
