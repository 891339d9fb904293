"""The composition root: makes everything, starts it in order, stops it in the reverse."""

import asyncio
import contextlib
import logging
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
from google.api import annotations_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from siptrunk.v1 import sip_trunk_service_pb2, sip_trunk_service_pb2_grpc
from trunkline import config, errors, keys, listeners, metrics, reflection, tls
from trunkline.admission import Gate
from trunkline.auth import Verifier
from trunkline.codecs import Catalogue
from trunkline.config import Settings, SettingsError
from trunkline.embedded import Embedded
from trunkline.feed import Feed
from trunkline.gateway import http
from trunkline.gateway.edge import Load
from trunkline.gateway.watch import WATCHES_MAX
from trunkline.housekeeping import Housekeeping
from trunkline.interceptors import Boundary
from trunkline.readiness import HealthService, Readiness
from trunkline.rows import TrunkReader
from trunkline.rules import Rules
from trunkline.sealing import KeyRing
from trunkline.startup import Startup
from trunkline.store.database import Database
from trunkline.store.feed import FeedStore
from trunkline.store.history import HistoryStore
from trunkline.store.identities import IdentityStore
from trunkline.store.mutations import Mutations
from trunkline.store.phone_numbers import PhoneNumberStore
from trunkline.store.trunks import TrunkStore
from trunkline.tallies import Tally
from trunkline.tracing import Tracing
from trunkline.trunks.service import SipTrunkService
from trunkline.ulids import Ulids

log = logging.getLogger(__name__)

CONNECTIONS_ASIDE = 2
GOAWAY_SECONDS = 0.05
"""How long clients have to learn that their connections take no more calls."""
_READ, _WRITE = "trunks:read", "trunks:write"


class Running:
    """A service that runs.

    Attributes:
        grpc_address: where it answers, the port as bound.
        http_address: where the gateway answers; empty without one.
        metrics_address: where the metrics are; empty where nowhere.
        startup: when it became ready, and how.
        failed: done, with an error, if it can't ever become ready.
    """

    def __init__(self, grpc_address: str, startup: Startup) -> None:
        self.grpc_address = grpc_address
        self.http_address = ""
        self.metrics_address = ""
        self.startup = startup
        self.failed: asyncio.Task[None]


@contextlib.asynccontextmanager
async def database_url(
    settings: Settings, owner: str
) -> AsyncIterator[tuple[str, Embedded | None]]:
    """The URL of the database, the data directory held where it is the embedded one."""
    if settings.database_url:
        yield settings.database_url, None
        return
    binaries = Path(settings.postgres_bin) if settings.postgres_bin else None
    embedded = Embedded(Path(settings.data_dir), binaries, owner)
    with embedded.locked():
        yield embedded.url, embedded


@contextlib.asynccontextmanager
async def serving(settings: Settings, tracing: Tracing | None = None) -> AsyncIterator[Running]:
    """The whole service, from the data directory's lock to the first answer and back.

    Args:
        settings: of the service.
        tracing: makes spans of what it does; None where nobody wants them.

    Raises:
        SettingsError: the settings can't work together, or the keys are not the database's, or the
            certificate can't be used.
        EmbeddedError: the embedded PostgreSQL can't be started.
        OSError: the address can't be bound.
    """
    async with contextlib.AsyncExitStack() as stack:
        if faults := config.plaintext_faults(settings):
            raise SettingsError("\n".join(faults))
        certificates = await stack.enter_async_context(tls.certificates(settings))
        url, embedded = await stack.enter_async_context(database_url(settings, "trunkline serve"))
        ring = KeyRing(keys.of(settings))
        database = await _open(settings, url, settings.database_pool_size)
        # A connection of the feed's own: it waits for nobody's call.
        own = await _open(settings, url, 1, traced=False)
        # What must not wait behind calls: look-ups of tokens, migrations, the readiness probe.
        aside = await _open(settings, url, CONNECTIONS_ASIDE, traced=False)
        stack.push_async_callback(_close, database, own, aside)
        parts = _Parts(settings, database, own, aside, ring, tracing)
        named = certificates is not None and certificates.asks_clients
        boundary = parts.boundary(names_clients=named)
        _add_services(boundary, settings, parts)
        server = grpc.aio.server(options=listeners.options(settings))
        server.add_generic_rpc_handlers((boundary,))
        # Addresses are bound before PostgreSQL starts: they may be taken.
        address = stack.enter_context(listeners.bound(server, settings, certificates))
        running = Running(address, parts.startup)
        front = _front(server, settings, certificates, running, parts.load, stack)
        counted = _counted(settings, parts.sources())
        running.metrics_address = await stack.enter_async_context(counted)
        if embedded is not None:
            await stack.enter_async_context(embedded.running())
        await stack.enter_async_context(parts.verifier.refreshing())
        await server.start()
        stack.push_async_callback(_stop, server, parts, boundary)
        if front is not None:
            await stack.enter_async_context(front)
        running.failed = asyncio.create_task(parts.startup.run())
        stack.push_async_callback(_cancel, running.failed)
        # Before what reads changes is cancelled: watches go on while calls are taken.
        stack.push_async_callback(_leave, settings, parts, running.failed)
        yield running


async def _open(settings: Settings, url: str, size: int, *, traced: bool = True) -> Database:
    try:
        return await Database.open(
            url,
            size,
            settings.database_statement_cache,
            settings.database_wait_seconds,
            traced=traced,
        )
    except (ValueError, OSError):
        raise SettingsError("TRUNKLINE_DATABASE_URL: is not a URL that can be used") from None


def _scopes() -> dict[str, str]:
    """The scope of each method: reading where its HTTP form is a GET."""
    scopes = {}
    for service in sip_trunk_service_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            extensions: Any = method.GetOptions().Extensions
            reads = extensions[annotations_pb2.http].HasField("get")
            scopes[f"/{service.full_name}/{method.name}"] = _READ if reads else _WRITE
    return scopes


class _Parts:
    """What answers calls, and what works beside it."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        own: Database,
        aside: Database,
        ring: KeyRing,
        tracing: Tracing | None,
    ) -> None:
        self._tracing = tracing
        self.ends = 0.0
        self.database, self.aside = database, aside
        self.readiness, self.tally, ids = Readiness(), Tally(), Ulids()
        self.calls = Gate(settings.calls_max, "calls")
        self.streams = Gate(settings.streams_max, "streams")
        watches = min(settings.streams_max, WATCHES_MAX)
        self.load = Load(settings.calls_max, watches, tracing)
        identities = IdentityStore(self.aside)
        self.verifier = Verifier(identities, settings.bootstrap_token)
        self.startup = Startup(
            settings, self.aside, identities, ring, self.readiness, self._background
        )
        catalogue = Catalogue(settings.codec_names())
        listens = settings.database_statement_cache > 0  # 0 says pgbouncer, which has no LISTEN
        reader = TrunkReader(catalogue.offer)
        self.feed = Feed(FeedStore(database, own, listens=listens), reader)
        mutations = Mutations(database, ring, self.feed.poke)
        history = HistoryStore(database, reader)
        self._housekeeping = Housekeeping(
            mutations, history, settings.idempotency_hours, settings.history_days
        )
        self.service = SipTrunkService(
            TrunkStore(database, catalogue, ring, ids, mutations),
            PhoneNumberStore(database, ring, ids, mutations),
            history,
            self.feed,
            Rules(catalogue),
        )

    def boundary(self, *, names_clients: bool) -> Boundary:
        """What is around each call."""
        return Boundary(
            self.verifier,
            self.readiness,
            _scopes(),
            self.calls,
            self.streams,
            self.tally,
            names_clients=names_clients,
            tracing=self._tracing,
        )

    def sources(self) -> metrics.Sources:
        """What there is to count."""
        return metrics.Sources(
            calls=self.tally,
            requests=self.load.tally,
            gates={
                "call": self.calls,
                "stream": self.streams,
                "http_request": self.load.requests,
                "http_watch": self.load.watches,
            },
            databases={"calls": self.database, "aside": self.aside},
            readiness=self.readiness,
            feed=self.feed,
            lookups=lambda: self.verifier.lookups,
        )

    @contextlib.asynccontextmanager
    async def _background(self) -> AsyncIterator[None]:
        """What goes on beside the calls, once the schema is there."""
        async with self.feed.running(), self._housekeeping.running():
            yield


def _add_services(boundary: Any, settings: Settings, parts: _Parts) -> None:
    """Add what is served, by generated code that takes the boundary for a server."""
    sip_trunk_service_pb2_grpc.add_SipTrunkServiceServicer_to_server(parts.service, boundary)
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(parts.readiness), boundary)
    if settings.reflection:
        files = (sip_trunk_service_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)
        reflection.add(boundary, [s.full_name for f in files for s in f.services_by_name.values()])


def _front(
    server: grpc.aio.Server,
    settings: Settings,
    certificates: tls.Certificates | None,
    running: Running,
    load: Load,
    stack: contextlib.AsyncExitStack,
) -> AbstractAsyncContextManager[None] | None:
    """The HTTP gateway, bound but not yet serving; None without one."""
    if not settings.http_address:
        return None
    private = stack.enter_context(tempfile.TemporaryDirectory(prefix="trunkline-"))
    server.add_insecure_port(f"unix:{private}/grpc")
    listener = stack.enter_context(_listener(settings, certificates))
    running.http_address = http.address_of(listener)
    context = certificates.context() if certificates else None
    return http.serving(listener, f"unix:{private}/grpc", settings, load, context=context)


@contextlib.asynccontextmanager
async def fronting(
    settings: Settings, target: str, tracing: Tracing | None = None
) -> AsyncIterator[tuple[str, str]]:
    """The gateway alone, of a service elsewhere: where it answers, and where its metrics are.

    Args:
        settings: of the gateway.
        target: the service's address.
        tracing: as for `serving`.

    Raises:
        SettingsError: the settings can't work together, or a certificate can't be used.
        OSError: an address can't be bound.
    """
    if faults := config.plaintext_faults(settings, "http_address"):
        raise SettingsError("\n".join(faults))
    credentials = tls.channel_credentials(settings, target)
    load = Load(settings.calls_max, min(settings.streams_max, WATCHES_MAX), tracing)
    gates = {"http_request": load.requests, "http_watch": load.watches}
    sources = metrics.Sources(requests=load.tally, gates=gates)
    async with contextlib.AsyncExitStack() as stack:
        certificates = await stack.enter_async_context(tls.certificates(settings))
        context = certificates.context() if certificates else None
        listener = stack.enter_context(_listener(settings, certificates))
        counted = await stack.enter_async_context(_counted(settings, sources))
        await stack.enter_async_context(
            http.serving(listener, target, settings, load, context=context, credentials=credentials)
        )
        try:
            yield http.address_of(listener), counted
        finally:
            _say_draining(settings)
            load.draining = True
            await asyncio.sleep(settings.drain_delay_seconds)


@contextlib.contextmanager
def _listener(settings: Settings, certificates: tls.Certificates | None) -> Iterator[socket.socket]:
    with http.bound(settings.http_address) as listener:
        if certificates is None:
            listeners.warn_of_plaintext(settings.http_address)
        yield listener


@contextlib.asynccontextmanager
async def _counted(settings: Settings, sources: metrics.Sources) -> AsyncIterator[str]:
    """Answer for metrics, where that is wanted, from the start to the very end; at what address."""
    if not settings.metrics_address:
        yield ""
        return
    with http.bound(settings.metrics_address) as listener:
        app = metrics.application(sources)
        async with http.running(app, listener, metrics.PARTING_SECONDS_MAX):
            yield http.address_of(listener)


def _say_draining(settings: Settings) -> None:
    seconds = {"delay_seconds": settings.drain_delay_seconds, "seconds_max": settings.drain_seconds}
    log.info("draining", extra=seconds)


async def _close(*databases: Database) -> None:
    await asyncio.gather(*(database.close() for database in databases))


async def _stop(server: grpc.aio.Server, parts: _Parts, boundary: Boundary) -> None:
    """End the calls under way; what HTTP requests have had of their time, calls have had too.

    Streams that clients begin anew once they end are ended when that has become impossible.
    """
    left = max(0.0, parts.ends - asyncio.get_running_loop().time())
    stopping = asyncio.create_task(server.stop(left))
    await asyncio.wait((stopping,), timeout=GOAWAY_SECONDS)
    parts.readiness.leave()
    boundary.part()
    await stopping


async def _leave(settings: Settings, parts: _Parts, work: "asyncio.Task[None]") -> None:
    """Say that the server is about to end, give those who look time to see it, end the streams."""
    _say_draining(settings)
    parts.readiness.drain()
    parts.load.draining = True
    await asyncio.wait((work,), timeout=settings.drain_delay_seconds)
    parts.ends = asyncio.get_running_loop().time() + settings.drain_seconds
    parts.feed.end(
        errors.UnavailableError(
            "DRAINING", "the server is about to end: go on at another one", retry_seconds=0.1
        )
    )


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
