"""Collectors of traces that speak OTLP, as the exporters of a service meet them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support import SEEN, settings
from trunkline import tracing
from trunkline.gateway import http
from trunkline.server import Running, serving

SECONDS_MAX = 60
DELAY_MILLISECONDS = 20


@dataclass(frozen=True)
class Seen:
    """A span as a collector gets it."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    state: str
    attributes: Mapping[str, Any]
    failed: bool
    events: Mapping[str, Mapping[str, Any]]
    resource: Mapping[str, Any]
    seconds: float


@dataclass
class Collector:
    """What has come, and where it is to be sent."""

    endpoint: str = ""
    spans: list[Seen] = field(default_factory=list)
    sent: bytes = b""
    paths: set[str] = field(default_factory=set)
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, request: otlp.ExportTraceServiceRequest) -> None:
        """Keep what an exporter has sent."""
        self.sent += request.SerializeToString()
        SEEN.add(request.SerializeToString())
        self.spans += _seen(request)
        self._came.set()

    async def first(self, fits: Callable[[Seen], Any]) -> Seen:
        """The first span that fits, once it has come."""
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                found = next((span for span in self.spans if fits(span)), None)
                if found is not None:
                    return found
                self._came.clear()
                await self._came.wait()

    async def of(self, request_id: str, kind: str = "SERVER") -> Seen:
        """The span of the call or request with a request id."""
        return await self.first(
            lambda s: s.kind == kind and s.attributes.get("trunkline.request_id") == request_id
        )

    def children(self, span: Seen) -> list[Seen]:
        """The children of a span that have come so far."""
        return [s for s in self.spans if s.parent_id == span.span_id]


def _seen(request: otlp.ExportTraceServiceRequest) -> Iterator[Seen]:
    for resource in request.resource_spans:
        about = _values(resource.resource.attributes)
        for span in (span for scope in resource.scope_spans for span in scope.spans):
            yield Seen(
                span.name,
                trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                span.trace_id.hex(),
                span.span_id.hex(),
                span.parent_span_id.hex(),
                span.trace_state,
                _values(span.attributes),
                span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
                {event.name: _values(event.attributes) for event in span.events},
                about,
                (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
            )


def _values(pairs: Any) -> dict[str, Any]:
    return {p.key: getattr(p.value, p.value.WhichOneof("value")) for p in pairs}


class _Service(otlp_grpc.TraceServiceServicer):
    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    async def Export(  # noqa: N802 - as the proto has it
        self, request: otlp.ExportTraceServiceRequest, context: Any
    ) -> otlp.ExportTraceServiceResponse:
        self._collector.take(request)
        return otlp.ExportTraceServiceResponse()


@asynccontextmanager
async def collecting(address: str = "127.0.0.1:0") -> AsyncIterator[Collector]:
    """A collector that speaks OTLP over gRPC."""
    collector = Collector()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add: Any = otlp_grpc.add_TraceServiceServicer_to_server
    add(_Service(collector), server)
    port = server.add_insecure_port(address)
    collector.endpoint = f"http://127.0.0.1:{port}"
    await server.start()
    try:
        yield collector
    finally:
        await asyncio.shield(server.stop(None))


@asynccontextmanager
async def collecting_over_http(address: str = "127.0.0.1:0") -> AsyncIterator[Collector]:
    """A collector that speaks OTLP over HTTP."""
    collector = Collector()

    async def export(request: Request) -> Response:
        collector.paths.add(request.url.path)
        collector.take(otlp.ExportTraceServiceRequest.FromString(await request.body()))
        answer = otlp.ExportTraceServiceResponse().SerializeToString()
        return Response(answer, media_type="application/x-protobuf")

    app = Starlette(routes=[Route("/{path:path}", export, methods=["POST"])])
    with http.bound(address) as listener:
        collector.endpoint = f"http://{http.address_of(listener)}"
        async with http.running(app, listener, 1):
            yield collector


def variables(endpoint: str, protocol: str = "grpc", **more: str) -> dict[str, str]:
    """The variables by which spans are sent to a collector, soon."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_BSP_SCHEDULE_DELAY": f"{DELAY_MILLISECONDS}",
        **more,
    }


@asynccontextmanager
async def traced(url: str, **values: Any) -> AsyncIterator[Running]:
    """A service on a database, traced as the variables of this process say, and ready."""
    async with tracing.running() as traces:
        assert traces is not None
        async with serving(settings(url, **values), traces) as service:
            async with asyncio.timeout(SECONDS_MAX):
                await service.startup.ready.wait()
            yield service
