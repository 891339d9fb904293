"""What the server counts, for Prometheus: read where it is kept, when somebody asks.

Names and labels are a contract (deploy/observability.md). No account, trunk or token is in a label.
"""

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trunkline.admission import Gate
from trunkline.feed import Feed
from trunkline.readiness import Readiness
from trunkline.store.database import Database
from trunkline.tallies import Durations, Tally

PARTING_SECONDS_MAX = 1
"""How long those who read the page may take to let go of their connection when the server ends."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What is counted. What a process does not have is left out.

    Attributes:
        calls: calls of gRPC methods.
        requests: HTTP requests.
        gates: what is let in, by what it is.
        databases: the connections, by what for.
        readiness: the server's state.
        feed: the changes that it reads.
        lookups: how often tokens were looked up in the database.
    """

    calls: Tally | None = None
    requests: Tally | None = None
    gates: Mapping[str, Gate] = field(default_factory=dict)
    databases: Mapping[str, Database] = field(default_factory=dict)
    readiness: Readiness | None = None
    feed: Feed | None = None
    lookups: Callable[[], int] | None = None


class _Collector(Collector):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        version = importlib.metadata.version("trunkline")
        yield InfoMetricFamily("trunkline_build", "The release.", value={"version": version})
        s = self._sources
        if s.calls is not None:
            yield from _tally("trunkline_grpc_calls", "gRPC calls", ("method", "code"), s.calls)
        if s.requests is not None:
            names = ("route", "status")
            yield from _tally("trunkline_http_requests", "HTTP requests", names, s.requests)
        yield from _gates(s.gates)
        if s.databases:
            yield from _databases(s.databases)
        yield from _state(s)


def _tally(name: str, what: str, labels: tuple[str, str], tally: Tally) -> Iterator[Metric]:
    ended = CounterMetricFamily(name, f"{what} that have ended.", labels=labels)
    for (asked, code), count in tally.ended.items():
        ended.add_metric((asked, code), count)
    yield ended
    title = f"How long {what} took, streams left out."
    took = HistogramMetricFamily(f"{name[:-1]}_duration_seconds", title, labels=labels[:1])
    for asked, durations in tally.durations.items():
        _add(took, (asked,), durations)
    yield took


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], durations: Durations) -> None:
    buckets = [
        ("+Inf" if bound == float("inf") else str(bound), float(count))
        for bound, count in durations.cumulative()
    ]
    family.add_metric(labels, buckets, sum_value=durations.seconds)


def _gates(gates: Mapping[str, Gate]) -> Iterator[Metric]:
    inside = GaugeMetricFamily(
        "trunkline_in_progress", "What is being answered now.", labels=("kind",)
    )
    most = GaugeMetricFamily(
        "trunkline_in_progress_max", "How many may be at once.", labels=("kind",)
    )
    refused = CounterMetricFamily(
        "trunkline_turned_away", "What came when all was taken.", labels=("kind",)
    )
    for kind, gate in gates.items():
        inside.add_metric((kind,), gate.inside)
        most.add_metric((kind,), gate.size)
        refused.add_metric((kind,), gate.turned_away)
    yield from (inside, most, refused)


def _databases(databases: Mapping[str, Database]) -> Iterator[Metric]:
    labels = ("lane",)
    name = "trunkline_database"
    used = GaugeMetricFamily(f"{name}_connections_in_use", "Connections taken.", labels=labels)
    most = GaugeMetricFamily(f"{name}_connections_max", "Connections there may be.", labels=labels)
    waiting = GaugeMetricFamily(f"{name}_waiting", "Who waits for a connection.", labels=labels)
    title = "Connections lost or not to be had."
    lost = CounterMetricFamily(f"{name}_lost", title, labels=labels)
    title = "Who waited for a connection in vain."
    vain = CounterMetricFamily(f"{name}_waited_in_vain", title, labels=labels)
    title = "How long those waited who had to."
    waits = HistogramMetricFamily(f"{name}_wait_seconds", title, labels=labels)
    for lane, database in databases.items():
        used.add_metric((lane,), database.lane.in_use)
        most.add_metric((lane,), database.lane.size)
        waiting.add_metric((lane,), database.lane.waiting)
        lost.add_metric((lane,), database.lost)
        vain.add_metric((lane,), database.lane.turned_away)
        _add(waits, (lane,), database.lane.waits)
    yield from (used, most, waiting, lost, vain, waits)


def _state(s: Sources) -> Iterator[Metric]:
    if s.readiness is not None:
        yield _gauge("trunkline_ready", "Whether health is SERVING.", s.readiness.ready)
        draining = s.readiness.draining
        yield _gauge("trunkline_draining", "Whether the server is about to end.", draining)
    if s.feed is not None:
        yield _gauge("trunkline_watchers", "Open watches.", s.feed.watchers)
        title = "The position up to which changes were read."
        yield _gauge("trunkline_feed_position", title, s.feed.head.position)
    if s.lookups is not None:
        family = CounterMetricFamily("trunkline_token_lookups", "Statements that looked tokens up.")
        family.add_metric((), s.lookups())
        yield family


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, meaning, value=float(value))


def application(sources: Sources) -> Any:
    """The ASGI application that answers `GET /metrics`."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    registry.register(_Collector(sources))

    async def page(request: Request) -> Response:
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), media_type=media_type)

    return Starlette(routes=[Route("/metrics", page)])
