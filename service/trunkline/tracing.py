"""Traces by OpenTelemetry, where its variables want them; elsewhere it is not even imported.

A span is begun by what answers a call or a request. It is current in the task that answers, where
statements find it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.metadata
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from trunkline import otel
from trunkline.config import SettingsError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
    from opentelemetry.trace import Span as OtelSpan

log = logging.getLogger(__name__)

FLUSH_SECONDS_MAX = 3.0
"""How long the last spans may take to be exported when the process ends."""
REMINDER_SECONDS = 300.0
"""How often it is said that spans can't be exported, while that goes on."""
SUMMARY_CHARACTERS_MAX = 120
SUMMARIES_MAX = 500
CARRIED = ("traceparent", "tracestate", "baggage")
"""The headers that carry a trace on."""
SERVICE_NAME = "trunkline"
_COMMENT = re.compile(r"--[^\n]*")
_CTE = re.compile(r"\b([a-z_]+)\s+AS\s+(?:MATERIALIZED\s+)?\(", re.IGNORECASE)
_PART = re.compile(
    r"\b(INSERT\s+INTO|DELETE\s+FROM|(?<!FOR )(?<!DO )UPDATE|FROM|JOIN)\s+([a-z_]+)\b(?!\()",
    re.IGNORECASE,
)
_current: ContextVar[Span | None] = ContextVar("span", default=None)


class Span:
    """One span that has begun.

    Attributes:
        trace_id: of its trace, in hexadecimal.
        span_id: its own.
    """

    __slots__ = ("_context", "_span", "_tracing", "span_id", "trace_id")

    def __init__(self, tracing: Tracing, span: OtelSpan, context: Context) -> None:
        found = span.get_span_context()
        self.trace_id, self.span_id = f"{found.trace_id:032x}", f"{found.span_id:016x}"
        self._tracing, self._span, self._context = tracing, span, context

    @property
    def is_recorded(self) -> bool:
        """Whether it is exported, by the sampler's choice."""
        return self._span.is_recording()

    def event(self, name: str, attributes: Mapping[str, Any]) -> None:
        """Note that something happens now."""
        self._span.add_event(name, dict(attributes))

    def carried(self) -> list[tuple[str, str]]:
        """The headers by which what is called makes its span a child of this one."""
        return self._tracing.carried(self._span, self._context)

    def ran(self, began: int, ended: int, attributes: Mapping[str, Any], error: str | None) -> None:
        """Add a child for what is over already, by when it began and ended in nanoseconds."""
        self._tracing.ran(self._span, began, ended, attributes, error)

    def end(self, name: str, attributes: Mapping[str, Any], error: str | None) -> None:
        """End it, with its final name; `error` is the type of what failed, None for nothing.

        Attributes that are None are left out.
        """
        if self._span.is_recording():
            self._span.update_name(name)
            _finish(self._span, attributes, error)
        self._span.end()


class Statements:
    """Makes a span of each statement on a connection, for as long as a call has it."""

    __slots__ = ("_began", "_span")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._began = time.perf_counter()

    def waited(self) -> None:
        """The connection is there, or is not to be had."""
        seconds = round(time.perf_counter() - self._began, 6)
        self._span.event("database connection", {"trunkline.wait_seconds": seconds})

    def ran(self, record: Any) -> None:
        """A statement has ended; `record` is asyncpg's, whose arguments nobody looks at."""
        ended = time.time_ns()
        summary, operation = _summary(record.query)
        error = record.exception
        sqlstate = getattr(error, "sqlstate", None)
        host, port = _place(record.conn_addr)
        attributes = {
            "db.system.name": "postgresql",
            "db.query.summary": summary,
            "db.operation.name": operation,
            "db.namespace": record.conn_params.database,
            "db.response.status_code": sqlstate,
            "server.address": host,
            "server.port": port,
        }
        kind = None if error is None else sqlstate or type(error).__name__
        self._span.ran(ended - int(record.elapsed * 1e9), ended, attributes, kind)


def current() -> Span | None:
    """The span of the call that this task answers; None without one, or where it isn't recorded."""
    span = _current.get()
    return span if span is not None and span.is_recorded else None


def statements() -> Statements | None:
    """What notes the statements of the current span, begun when a connection is asked for."""
    span = current()
    return None if span is None else Statements(span)


class Tracing:
    """Makes spans and has them exported.

    Args:
        provider: the SDK's.
        propagator: reads and writes the headers that carry a trace on.
    """

    def __init__(self, provider: TracerProvider, propagator: TextMapPropagator) -> None:
        from opentelemetry import trace

        self._provider = provider
        self._propagator = propagator
        self._trace = trace
        self._tracer = provider.get_tracer("trunkline", importlib.metadata.version("trunkline"))

    def begin(self, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any]) -> Span:
        """Begin the span of a call or a request, current in this task until the task ends.

        Args:
            name: what is answered.
            headers: those of CARRIED that the caller has sent.
            attributes: what is known already, which a sampler may look at.
        """
        context = self._propagator.extract(headers)
        span = self._tracer.start_span(
            name, context, kind=self._trace.SpanKind.SERVER, attributes=dict(attributes)
        )
        found = Span(self, span, context)
        _current.set(found)
        return found

    def carried(self, span: OtelSpan, context: Context) -> list[tuple[str, str]]:
        """See `Span.carried`."""
        headers: dict[str, str] = {}
        self._propagator.inject(headers, self._trace.set_span_in_context(span, context))
        return list(headers.items())

    def ran(
        self,
        parent: OtelSpan,
        began: int,
        ended: int,
        attributes: Mapping[str, Any],
        error: str | None,
    ) -> None:
        """See `Span.ran`."""
        child = self._tracer.start_span(
            attributes["db.query.summary"],
            self._trace.set_span_in_context(parent),
            kind=self._trace.SpanKind.CLIENT,
            start_time=began,
        )
        _finish(child, attributes, error)
        child.end(ended)

    async def close(self) -> None:
        """Export what is left, for as long as that may take."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(over.set)

        # A thread that the end of the process does not wait for.
        threading.Thread(target=shut_down, name="trunkline-traces", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_SECONDS_MAX):
                await over.wait()
        except TimeoutError:
            log.warning("traces_not_flushed", extra={"seconds_max": FLUSH_SECONDS_MAX})


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Tracing | None]:
    """Traces while the block runs, exported to the last at its end; None where none are wanted.

    Raises:
        SettingsError: the variables can't be used.
    """
    found = opened()
    try:
        yield found
    finally:
        if found is not None:
            await found.close()


def opened() -> Tracing | None:
    """Set up what the variables of this process want; None where they want no traces.

    Raises:
        SettingsError: they can't be used.
    """
    if not otel.wanted(os.environ):
        return None
    if faults := otel.faults(os.environ):
        raise SettingsError("\n".join(faults))
    _forget_empty_ones()
    from opentelemetry.baggage.propagation import W3CBaggagePropagator
    from opentelemetry.propagators.composite import CompositePropagator
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    # What the exporters say of themselves they say for each batch.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    try:
        provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        for exporter in _exporters():
            provider.add_span_processor(BatchSpanProcessor(_told(exporter)))
    except Exception as error:
        what = f"OTEL_*: traces can't be set up: {type(error).__name__}"
        raise SettingsError(what) from None
    known = {"tracecontext": TraceContextTextMapPropagator, "baggage": W3CBaggagePropagator}
    names = otel.propagators(os.environ)
    return Tracing(provider, CompositePropagator([known[n]() for n in names if n in known]))


def _forget_empty_ones() -> None:
    """The SDK takes an empty variable for one that is set, and `none` for no compression at all."""
    for name in [n for n in os.environ if n.startswith("OTEL_")]:
        text = os.environ[name].strip()
        if not text or (name.endswith("_COMPRESSION") and text.lower() == otel.NONE):
            del os.environ[name]


def _resource() -> Resource:
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource

    ours = {
        "service.name": SERVICE_NAME,
        "service.version": importlib.metadata.version("trunkline"),
        "service.instance.id": str(uuid.uuid4()),
    }
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


def _exporters() -> list[SpanExporter]:
    found: list[SpanExporter] = []
    for name in otel.exporters(os.environ):
        if name == otel.CONSOLE:
            from opentelemetry.sdk.trace.export import ConsoleSpanExporter

            found.append(ConsoleSpanExporter())
            continue
        # The specification has milliseconds, which the exporters would take for seconds.
        timeout = int(otel.otlp(os.environ, "TIMEOUT", str(otel.TIMEOUT_MILLISECONDS))) / 1000
        if otel.otlp(os.environ, "PROTOCOL", otel.HTTP).lower() == otel.GRPC:
            from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as over_grpc

            found.append(over_grpc.OTLPSpanExporter(timeout=timeout))
        else:
            from opentelemetry.exporter.otlp.proto.http import trace_exporter as over_http

            found.append(over_http.OTLPSpanExporter(timeout=timeout))
    return found


def _told(exporter: SpanExporter) -> SpanExporter:
    """An exporter that tells when spans begin to be lost and when they no longer are, not more."""
    from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

    class Told(SpanExporter):
        def __init__(self) -> None:
            self._lost = 0
            self._said: float | None = None

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            try:
                result = exporter.export(spans)
            except Exception:
                result = SpanExportResult.FAILURE
            self._tell(len(spans), result is SpanExportResult.SUCCESS)
            return result

        def shutdown(self) -> None:
            exporter.shutdown()

        def force_flush(self, timeout_millis: int = 30000) -> bool:
            return exporter.force_flush(timeout_millis)

        def _tell(self, spans: int, done: bool) -> None:  # noqa: FBT001 - an inner function
            if done and self._said is not None:
                log.info("traces_exported_again", extra={"spans_lost": self._lost})
                self._lost, self._said = 0, None
            if done:
                return
            self._lost += spans
            now = time.monotonic()
            if self._said is None or now - self._said >= REMINDER_SECONDS:
                log.warning("traces_not_exported", extra={"spans_lost": self._lost})
                self._said = now

    return Told()


def _finish(span: OtelSpan, attributes: Mapping[str, Any], error: str | None) -> None:
    from opentelemetry.trace import Status, StatusCode

    found = {name: value for name, value in attributes.items() if value is not None}
    if error is not None:
        found["error.type"] = error
        span.set_status(Status(StatusCode.ERROR))
    span.set_attributes(found)


def _place(address: Any) -> tuple[str | None, int | None]:
    """The host and port of a database's address, or the path of its socket."""
    if isinstance(address, tuple):
        return str(address[0]), int(address[1])
    return (str(address), None) if address else (None, None)


@functools.lru_cache(maxsize=SUMMARIES_MAX)
def _summary(statement: str) -> tuple[str, str]:
    """What a statement does to which tables, and the first of its operations that matters."""
    text = _COMMENT.sub("", statement)
    steps = {name.lower() for name in _CTE.findall(text)}
    reads, writes = [], []
    for word, table in _PART.findall(text):
        verb = word.split()[0].upper()
        if table.lower() in steps:
            continue
        if verb in ("FROM", "JOIN"):
            reads.append(table)
        else:
            writes.append(f"{verb} {table}")
    first = re.match(r"\s*([A-Za-z]+)", text)
    operation = first[1].upper() if first else "UNKNOWN"
    if writes:
        operation = writes[0].split()[0]
    elif operation == "WITH":
        operation = "SELECT"
    parts = writes or [" ".join(dict.fromkeys((operation, *reads)))]
    return " ".join(dict.fromkeys(parts))[:SUMMARY_CHARACTERS_MAX], operation
