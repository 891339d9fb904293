"""Traces of processes: one trace from a client to PostgreSQL, and collectors that misbehave."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import PROGRAM, SECONDS_MAX, Server, environment, events, not_started
from tests.http.clients import client
from tests.integration.collecting import (
    Collector,
    Seen,
    collecting,
    collecting_over_http,
    variables,
)
from tests.integration.traced_calls import TRACE, TRACEPARENT
from tests.support import KEYS, TOKEN, password

SERVICE = "siptrunk.v1.SipTrunkService/"
NEVER_MILLISECONDS = "3600000"
TRUNKS = "/sip-trunks/trunks"


@asynccontextmanager
async def serving(directory: Path, database: str, **settings: str) -> AsyncIterator[Server]:
    """`trunkline serve` with its gateway on a test's database, ready."""
    defaults = {"database_url": database, "secret_keys": KEYS, "http_address": "127.0.0.1:0"}
    async with Server(directory, **defaults | settings) as server:
        await server.ready()
        yield server


def http_address(server: Server) -> str:
    return server.out.rpartition("http=")[2].split()[0]


async def asked(address: str, method: str, path: str, body: Any = None, **headers: str) -> Any:
    """What a gateway answers."""
    async with client(address) as http:
        answer = await http.request(method, path, json=body, headers=headers)
    assert answer.is_success
    return answer.json()


def trunk(secret: str) -> dict[str, Any]:
    return {
        "name": "Acme Traced",
        "provider": "plivo",
        "auth_type": "userpass",
        "auth_username": "acme",
        "auth_password": secret,
        "gateways": [{"gateway_address": "sip.example.com"}],
    }


def only(spans: list[Seen], name: str) -> Seen:
    found = [span for span in spans if span.name == name]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_a_request_is_one_trace_down_to_the_database(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    secret = password()
    opened = collecting() if protocol == "grpc" else collecting_over_http()
    async with opened as collector:
        # Nothing is sent before the end: it is the drain that does.
        for name, value in variables(
            collector.endpoint,
            protocol,
            OTEL_BSP_SCHEDULE_DELAY=NEVER_MILLISECONDS,
            OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=a%20test",
        ).items():
            monkeypatch.setenv(name, value)
        async with serving(tmp_path, database) as server:
            sent = {"traceparent": TRACEPARENT, "x-request-id": "traced-1"}
            made = await asked(http_address(server), "POST", TRUNKS, trunk(secret), **sent)
            url = f"{TRUNKS}/{made['id']}"
            await asked(http_address(server), "PATCH", url, {"auth_password": secret})
            assert collector.spans == []
            assert (await server.stop()).code == 0
    _check(collector, made["id"])
    if protocol == "grpc":
        assert collector.paths == set()
    else:
        assert collector.paths == {"/v1/traces"}
    request, call = (events(server.err, event)[0] for event in ("request", "call"))
    assert request["trace_id"] == call["trace_id"] == TRACE
    assert request["span_id"] != call["span_id"]
    assert secret.encode() not in collector.sent
    assert b"Acme Traced" not in collector.sent
    assert TOKEN.encode() not in collector.sent
    assert events(server.err, "traces_not_flushed") == []


def _check(collector: Collector, trunk_id: str) -> None:
    first = [s for s in collector.spans if s.trace_id == TRACE]
    request = only(first, f"POST {TRUNKS}")
    call = only(first, f"{SERVICE}CreateSipTrunk")
    statement = next(s for s in collector.children(call) if s.kind == "CLIENT")
    assert statement.name.startswith("INSERT trunks")
    assert request.attributes["http.response.status_code"] == 201
    assert (request.kind, call.kind) == ("SERVER", "SERVER")
    assert (call.parent_id, statement.parent_id) == (request.span_id, call.span_id)
    assert request.attributes["trunkline.request_id"] == "traced-1"
    assert call.attributes["trunkline.request_id"] == "traced-1"
    other = only(collector.spans, f"PATCH {TRUNKS}/{{id}}")
    assert other.attributes["url.path"] == f"{TRUNKS}/{trunk_id}"
    assert (other.parent_id, other.trace_id != TRACE) == ("", True)
    names = {s.name for s in collector.children(other)}
    assert f"{SERVICE}UpdateSipTrunk" in names
    resource = request.resource
    assert resource["service.name"] == "trunkline"
    assert resource["deployment.environment.name"] == "a test"


async def test_a_gateway_alone_and_its_service_are_in_one_trace(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with AsyncExitStack() as stack:
        collector = await stack.enter_async_context(collecting())
        for name, value in variables(collector.endpoint).items():
            monkeypatch.setenv(name, value)
        server = await stack.enter_async_context(serving(tmp_path, database, http_address=""))
        monkeypatch.setenv("OTEL_SERVICE_NAME", "a-gateway")
        process = await asyncio.create_subprocess_exec(
            *(PROGRAM, "gateway", "--upstream", await server.ready()),
            env=environment(http_address="127.0.0.1:0"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(SECONDS_MAX):
                line = (await process.stdout.readline()).decode()
            address = line.partition("http=")[2].split()[0]
            assert await asked(address, "GET", TRUNKS) == []
            process.terminate()
            async with asyncio.timeout(SECONDS_MAX):
                assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        call = await collector.first(lambda s: s.name == f"{SERVICE}ListSipTrunks")
        request = await collector.first(lambda s: s.name == f"GET {TRUNKS}")
    assert (call.parent_id, call.trace_id) == (request.span_id, request.trace_id)
    assert request.resource["service.name"] == "a-gateway"
    assert call.resource["service.name"] == "trunkline"


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_a_collector_that_never_answers_holds_up_neither_calls_nor_the_end(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    endpoint = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    for name, value in variables(endpoint, protocol).items():
        monkeypatch.setenv(name, value)
    async with listener, serving(tmp_path, database) as server:
        for _ in range(20):
            assert await asked(http_address(server), "GET", TRUNKS) == []
        assert (await server.stop()).code == 0
        assert len(events(server.err, "traces_not_flushed")) == 1
        assert "Traceback" not in server.err


async def test_spans_can_be_printed(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    async with serving(tmp_path, database) as server:
        assert await asked(http_address(server), "GET", TRUNKS) == []
        done = await server.stop()
    assert done.code == 0
    assert f'"name": "{SERVICE}ListSipTrunks"' in done.out


async def test_a_variable_that_can_not_be_used_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "all")
    done = await not_started(Server(tmp_path))
    assert done.code == 78
    assert [line.split(":")[1].strip() for line in done.complaints] == [
        "OTEL_TRACES_SAMPLER",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
    ]
