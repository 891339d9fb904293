import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.collecting import Collector, Seen
from tests.integration.conftest import created
from tests.integration.scraping import SERVICE, locked, under_way
from tests.integration.test_health_reflection import reflected
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
    serving,
)
from tests.support import TOKEN, Gateway, connected, update, userpass
from trunkline.trunks import watch

LYING_CALLS_MAX = 200
LARGE_TRUNKS = 100
UNREAD_STREAMS = 5
WATCH = "siptrunk.v1.SipTrunkService/WatchSipTrunks"


@pytest.fixture(scope="module")
async def shared(postgres: str, template: str) -> AsyncIterator[Traced]:
    async with faulty(postgres, template) as found:
        yield found


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collector_of_this_process() as found:
        yield found


OUTCOMES: dict[str, tuple[str, Any, str | None, str, str | None]] = {
    "answered": ("ListSipTrunks", pb.ListSipTrunksRequest(), TOKEN, "OK", None),
    "refused": ("GetSipTrunk", GET(), TOKEN, "INVALID_ARGUMENT", "REQUIRED"),
    "absent": ("GetSipTrunk", GET(id="absent"), TOKEN, "NOT_FOUND", "TRUNK_NOT_FOUND"),
    "without a token": ("GetSipTrunk", GET(), None, "UNAUTHENTICATED", "TOKEN_MISSING"),
    "undecodable": ("GetSipTrunk", b"\xff", TOKEN, "INVALID_ARGUMENT", "UNDECODABLE"),
    "failed": ("CreateSipTrunk", create(name="Broken"), TOKEN, "INTERNAL", "INTERNAL"),
    "away": ("CreateSipTrunk", create(name="Away"), TOKEN, "UNAVAILABLE", "DATABASE_UNAVAILABLE"),
}
FAILURES = {"INTERNAL", "UNAVAILABLE"}


@pytest.mark.parametrize("outcome", OUTCOMES.values(), ids=OUTCOMES.keys())
async def test_span_of_a_call_says_how_it_ended(
    shared: Traced, outcome: tuple[str, Any, str | None, str, str | None]
) -> None:
    method, request, token, code, reason = outcome
    sent = shared.call(method, request, token)
    assert await sent.ended() == code
    span = await sent.span()
    assert (span.name, span.kind) == (SERVICE[1:] + method, "SERVER")
    assert span.failed == (code in FAILURES)
    known = {"trunkline.account_id": "default", "trunkline.token_id": "bootstrap"}
    assert span.attributes == {
        "rpc.system": "grpc",
        "rpc.service": "siptrunk.v1.SipTrunkService",
        "rpc.method": method,
        "rpc.grpc.status_code": code_pb2.Code.Value(code),
        "rpc.response.status_code": code,
        "trunkline.request_id": sent.request_id,
        **({"trunkline.reason": reason} if reason else {}),
        **({"error.type": code} if code in FAILURES else {}),
        **(known if token else {}),
    }


async def test_span_of_a_method_that_there_is_not_does_not_tell_its_name(shared: Traced) -> None:
    sent = shared.call("/nobody.Knows/Me", b"")
    assert await sent.ended() == "UNIMPLEMENTED"
    span = await sent.span()
    assert (span.name, span.failed) == ("_OTHER", True)
    assert span.attributes["rpc.method"] == "_OTHER"
    assert span.attributes["trunkline.reason"] == "METHOD_UNKNOWN"
    assert "rpc.service" not in span.attributes


async def test_span_of_a_call_that_its_caller_cancels_is_no_error(shared: Traced) -> None:
    async with connected(shared.service.grpc_address) as stub:
        trunk = await created(stub)
    sent = shared.call("UpdateSipTrunk", update(trunk.id, name="x"))
    async with locked(shared.url, trunk.id):
        async with sent as call:
            await blocked(shared, 1)
            call.cancel()
        span = await sent.span()
    assert (span.attributes["rpc.response.status_code"], span.failed) == ("CANCELLED", False)
    assert span.attributes["trunkline.account_id"] == "default"


async def test_span_of_a_call_whose_time_is_up_is_an_error(shared: Traced) -> None:
    async with connected(shared.service.grpc_address) as stub:
        trunk = await created(stub)
    sent = shared.call("UpdateSipTrunk", update(trunk.id, name="x"), timeout=0.3)
    async with locked(shared.url, trunk.id):
        assert await sent.ended() == "DEADLINE_EXCEEDED"
        span = await sent.span()
    code = span.attributes["rpc.response.status_code"]
    assert (code, span.failed) == ("DEADLINE_EXCEEDED", True)
    # The answer may be ours, or grpc may end the call first.
    assert span.attributes.get("trunkline.reason", "DEADLINE_PASSED") == "DEADLINE_PASSED"


async def test_span_of_a_call_that_comes_too_late_has_no_statement(shared: Traced) -> None:
    def refused() -> list[Seen]:
        reason = "DEADLINE_TOO_SHORT"
        spans = shared.collector.spans
        return [s for s in spans if s.attributes.get("trunkline.reason") == reason]

    for _ in range(LYING_CALLS_MAX):
        # The transport may end such a call before the server has seen it.
        await shared.call("ListSipTrunks", b"", metadata=[("grpc-timeout", "4m")]).ended()
        if refused():
            break
    span = refused()[0]
    assert (span.failed, shared.collector.children(span)) == (True, [])


async def test_span_of_a_stream_lasts_until_its_caller_ends_it(shared: Traced) -> None:
    sent = shared.call("WatchSipTrunks", pb.WatchSipTrunksRequest())
    async with sent as call:
        await call.initial_metadata()
        assert not [s for s in shared.collector.spans if s.name == WATCH]
        call.cancel()
    span = await sent.span()
    assert (span.name, span.failed) == (WATCH, False)
    assert span.attributes["rpc.response.status_code"] == "CANCELLED"


async def test_spans_of_streams_that_their_caller_does_not_read_end_as_cancelled(
    database: str, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "INITIAL_PAGE_MAX", 3)
    async with serving(collector, database) as own:
        async with connected(own.service.grpc_address) as stub:
            for _ in range(LARGE_TRUNKS):
                gateways = [
                    Gateway(gateway_address=f"{'h' * 60}{n}.example.com") for n in range(32)
                ]
                await created(stub, userpass(gateways=gateways))
        for _ in range(UNREAD_STREAMS):
            sent = own.call("WatchSipTrunks", pb.WatchSipTrunksRequest(initial_state=True))
            async with sent as call:
                await call.read()
                before = len(collector.spans)
                await collector.first(lambda s: s in collector.spans[before + 5 :])  # noqa: B023
                call.cancel()
            span = await sent.span()
            code = span.attributes["rpc.response.status_code"]
            assert (code, span.failed) == ("CANCELLED", False)


async def test_span_of_a_stream_that_the_server_ends_says_why(
    database: str, collector: Collector
) -> None:
    async with AsyncExitStack() as stack:
        own = await stack.enter_async_context(serving(collector, database))
        sent = own.call("WatchSipTrunks", pb.WatchSipTrunksRequest())
        async with sent as call:
            await call.initial_metadata()
            end = asyncio.ensure_future(stack.aclose())
            with pytest.raises(grpc.aio.AioRpcError):
                async for _ in call:
                    pass
        await end
    span = await sent.span()
    assert (span.attributes["rpc.response.status_code"], span.failed) == ("UNAVAILABLE", True)
    assert span.attributes["trunkline.reason"] == "DRAINING"


async def test_span_of_a_call_for_which_there_is_no_room_is_no_error(
    database: str, collector: Collector
) -> None:
    async with (
        serving(collector, database, calls_max=1) as own,
        connected(own.service.grpc_address) as stub,
    ):
        trunk = await created(stub)
        async with (
            locked(database, trunk.id),
            under_way(stub.UpdateSipTrunk(update(trunk.id, name="x"))),
        ):
            await blocked(own, 1)
            sent = own.call("ListSipTrunks", pb.ListSipTrunksRequest())
            assert await sent.ended() == "RESOURCE_EXHAUSTED"
            span = await sent.span()
    assert (span.attributes["trunkline.reason"], span.failed) == ("TOO_MANY_CALLS", False)
    assert collector.children(span) == []


async def test_health_is_not_traced_and_reflection_is(shared: Traced) -> None:
    async with grpc.aio.insecure_channel(shared.service.grpc_address) as channel:
        for method in ("Check", "List"):
            call: Any = channel.unary_unary(f"/grpc.health.v1.Health/{method}")
            await call(b"")
    await reflected(shared.service.grpc_address, "v1", list_services="")
    span = await shared.collector.first(lambda s: "reflection" in s.name)
    assert span.name == "grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    assert not [s for s in shared.collector.spans if "health" in s.name.lower()]


async def test_span_is_a_child_of_what_the_caller_says(
    shared: Traced, caplog: pytest.LogCaptureFixture
) -> None:
    sent = shared.call("GetSipTrunk", GET(id="x"), metadata=[("traceparent", TRACEPARENT)])
    await sent.ended()
    span = await sent.span()
    assert (span.trace_id, span.parent_id) == (TRACE, PARENT)
    line = next(r for r in caplog.records if getattr(r, "request_id", "") == sent.request_id)
    assert (line.__dict__["trace_id"], line.__dict__["span_id"]) == (TRACE, span.span_id)


@pytest.mark.parametrize("sent", ["", "00-x-y-01", f"00-{'0' * 32}-{PARENT}-01", "~" * 200])
async def test_what_is_no_trace_begins_a_new_one(shared: Traced, sent: str) -> None:
    call = shared.call("GetSipTrunk", GET(id="x"), metadata=[("traceparent", sent)])
    await call.ended()
    span = await call.span()
    assert (span.parent_id, len(span.trace_id)) == ("", 32)


async def test_a_caller_who_does_not_sample_is_not_exported_and_logged_all_the_same(
    shared: Traced, caplog: pytest.LogCaptureFixture
) -> None:
    unsampled = [("traceparent", TRACEPARENT[:-1] + "0")]
    quiet = shared.call("ListSipTrunks", pb.ListSipTrunksRequest(), metadata=unsampled)
    assert await quiet.ended() == "OK"
    loud = shared.call("ListSipTrunks", pb.ListSipTrunksRequest())
    await loud.ended()
    await loud.span()
    ids = [s.attributes.get("trunkline.request_id") for s in shared.collector.spans]
    assert quiet.request_id not in ids
    line = next(r for r in caplog.records if getattr(r, "request_id", "") == quiet.request_id)
    assert line.__dict__["trace_id"] == TRACE
