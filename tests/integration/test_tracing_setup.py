import asyncio
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.e2e.processes import free_address
from tests.http.clients import client
from tests.http.relay import relayed
from tests.integration.collecting import (
    SECONDS_MAX,
    collecting,
    collecting_over_http,
    traced,
    variables,
)
from tests.integration.scraping import LOOK_SECONDS
from tests.integration.traced_calls import TRACE, TRACEPARENT
from tests.support import connected
from trunkline import otel, tracing
from trunkline.config import SettingsError

LIST = pb.ListSipTrunksRequest()
CALLS = 50
OTLP = "OTEL_EXPORTER_OTLP_"
WRONG = [
    ("OTEL_SDK_DISABLED", "maybe", "'maybe' is none of true, false"),
    ("OTEL_TRACES_EXPORTER", "zipkin", "'zipkin' is none of otlp, console, none"),
    ("OTEL_TRACES_EXPORTER", "otlp,none", "none goes with no other"),
    ("OTEL_TRACES_EXPORTER", ",", "',' is none of otlp, console, none"),
    ("OTEL_PROPAGATORS", "b3", "'b3' is none of tracecontext, baggage, none"),
    ("OTEL_TRACES_SAMPLER", "some", "'some' is none of always_on, always_off"),
    ("OTEL_BSP_MAX_QUEUE_SIZE", "many", "is not a whole number from 1"),
    ("OTEL_BSP_SCHEDULE_DELAY", "0", "is not a whole number from 1"),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096", "is more than OTEL_BSP_MAX_QUEUE_SIZE"),
    ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "-1", "is not a whole number"),
    ("OTEL_RESOURCE_ATTRIBUTES", "a=b,c", "entry 2 is not KEY=VALUE"),
    (f"{OTLP}PROTOCOL", "http/json", "'http/json' is none of grpc, http/protobuf"),
    (f"{OTLP}TRACES_PROTOCOL", "http", "'http' is none of grpc, http/protobuf"),
    (f"{OTLP}ENDPOINT", "collector:4317", "is not a URL http://HOST:PORT or https://HOST:PORT"),
    (f"{OTLP}TRACES_ENDPOINT", "http://:4317", "is not a URL http://HOST:PORT or"),
    (f"{OTLP}ENDPOINT", "http://host:99999", "is not a URL http://HOST:PORT or"),
    (f"{OTLP}TIMEOUT", "10s", "is not a number of milliseconds, 1 to 999999"),
    (f"{OTLP}COMPRESSION", "zstd", "'zstd' is none of gzip, none"),
    (f"{OTLP}CERTIFICATE", "/nowhere/ca.pem", "/nowhere/ca.pem is not a file"),
]


@pytest.mark.parametrize(("name", "value", "says"), WRONG)
def test_a_mistake_in_a_variable_is_told_by_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        tracing.opened()
    assert str(error.value).startswith(f"{name}: {says}")
    assert "\n" not in str(error.value)


def test_a_mistake_is_none_where_no_traces_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", "b3")
    assert tracing.opened() is None
    monkeypatch.setenv(f"{OTLP}ENDPOINT", "collector:4317")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert tracing.opened() is None


def test_every_mistake_is_told_and_no_secret_is() -> None:
    found = otel.faults(
        {
            "OTEL_TRACES_SAMPLER": "traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "2",
            f"{OTLP}ENDPOINT": "ftp://user:fake-secret@host",
            f"{OTLP}HEADERS": "authorization=fake-secret,fake-secret",
        }
    )
    assert found == [
        "OTEL_TRACES_SAMPLER_ARG: is not a number from 0 to 1",
        f"{OTLP}HEADERS: entry 2 is not KEY=VALUE",
        f"{OTLP}ENDPOINT: is not a URL http://HOST:PORT or https://HOST:PORT",
    ]


@pytest.mark.parametrize(
    ("environment", "is_wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x"}, False),
        ({"OTEL_TRACES_EXPORTER": ""}, False),
        ({"OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "console,otlp"}, True),
        ({f"{OTLP}ENDPOINT": "http://h:1"}, True),
        ({f"{OTLP}ENDPOINT": " "}, False),
        ({f"{OTLP}TRACES_ENDPOINT": "http://h:1"}, True),
        ({f"{OTLP}METRICS_ENDPOINT": "http://h:1"}, False),
        ({f"{OTLP}ENDPOINT": "http://h:1", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({f"{OTLP}ENDPOINT": "http://h:1", "OTEL_SDK_DISABLED": "TRUE"}, False),
    ],
)
def test_traces_are_wanted_where_they_have_somewhere_to_go(
    environment: dict[str, str],
    is_wanted: bool,  # noqa: FBT001 - a row of the table
) -> None:
    assert otel.faults(environment) == []
    assert otel.wanted(environment) == is_wanted


def test_what_is_not_wanted_is_not_even_imported(tmp_path: Path) -> None:
    script = tmp_path / "imports.py"
    script.write_text(
        "import asyncio, sys\n"
        "from trunkline import tracing\n"
        "from trunkline.cli import main\n"
        "async def run():\n"
        "    async with tracing.running() as traces:\n"
        "        assert traces is None\n"
        "asyncio.run(run())\n"
        "assert 'trunkline.server' in sys.modules\n"
        "assert not [m for m in sys.modules if m.startswith(('opentelemetry', 'requests'))]\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_a_collector_that_is_away_hurts_no_call_and_is_told_of_once(
    database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    address = free_address()
    sent = variables(
        f"http://{address}",
        protocol,
        OTEL_EXPORTER_OTLP_TIMEOUT="200",
        OTEL_BSP_MAX_QUEUE_SIZE="10",
        OTEL_BSP_MAX_EXPORT_BATCH_SIZE="5",
    )
    for name, value in sent.items():
        monkeypatch.setenv(name, value)

    async def told(event: str) -> None:
        async with asyncio.timeout(SECONDS_MAX):
            while event not in caplog.messages:  # noqa: ASYNC110 - a log has no event
                await asyncio.sleep(LOOK_SECONDS)

    async with traced(database) as service, connected(service.grpc_address) as stub:
        for _ in range(CALLS):
            await stub.ListSipTrunks(LIST)
        await told("traces_not_exported")
        for _ in range(CALLS):
            await stub.ListSipTrunks(LIST)
        assert caplog.messages.count("traces_not_exported") == 1
        back = collecting if protocol == "grpc" else collecting_over_http
        async with back(address) as collector:
            async with asyncio.timeout(SECONDS_MAX):
                while not collector.spans:
                    await stub.ListSipTrunks(LIST)
            await told("traces_exported_again")
    again = next(r for r in caplog.records if r.message == "traces_exported_again")
    assert again.__dict__["spans_lost"] >= 5
    assert {r.name for r in caplog.records if r.levelno >= logging.WARNING} == {"trunkline.tracing"}


async def test_a_sampler_that_takes_none_exports_none(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with collecting() as collector:
        for name, value in variables(collector.endpoint, OTEL_TRACES_SAMPLER="always_off").items():
            monkeypatch.setenv(name, value)
        async with (
            traced(database, http_address="127.0.0.1:0") as service,
            client(service.http_address) as http,
        ):
            assert (await http.get("/sip-trunks/trunks")).status_code == 200
        assert collector.spans == []


async def test_a_gateway_that_is_not_traced_hands_the_callers_trace_on(service: str) -> None:
    async with relayed(service) as (relay, http):
        sent = {"traceparent": TRACEPARENT, "tracestate": "a=b", "baggage": "c=d"}
        await http.get("/sip-trunks/trunks", headers=sent)
    metadata = relay.calls[0].metadata
    assert (metadata["traceparent"], metadata["tracestate"]) == (TRACEPARENT, "a=b")


@pytest.mark.parametrize(
    ("propagators", "carried"),
    [
        ("", {"traceparent", "tracestate", "baggage"}),
        ("tracecontext", {"traceparent", "tracestate"}),
        ("none", set()),
    ],
)
async def test_what_is_called_is_told_of_the_span_that_calls_it(
    monkeypatch: pytest.MonkeyPatch, propagators: str, carried: set[str]
) -> None:
    async with collecting() as collector:
        for name, value in variables(collector.endpoint, OTEL_PROPAGATORS=propagators).items():
            monkeypatch.setenv(name, value)
        sent = {"traceparent": TRACEPARENT, "tracestate": "a=b", "baggage": "c=d"}
        async with tracing.running() as traces:
            assert traces is not None
            span = traces.begin("a call", sent, {})
            found = dict(span.carried())
            span.end("a call", {}, None)
    assert set(found) == carried
    if carried:
        assert found["traceparent"] == f"00-{TRACE}-{span.span_id}-01"
        assert found["tracestate"] == "a=b"
    else:
        assert span.trace_id != TRACE
