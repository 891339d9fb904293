"""The composition root: makes everything, starts it in order, stops it in the reverse."""

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import grpc
from google.api import annotations_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from siptrunk.v1 import sip_trunk_service_pb2, sip_trunk_service_pb2_grpc
from trunkline import config, errors, keys, migrate, reflection, sockets, tls
from trunkline.auth import BOOTSTRAP_ACCOUNT, Verifier
from trunkline.codecs import Catalogue
from trunkline.config import Settings, SettingsError
from trunkline.embedded import Embedded
from trunkline.feed import Feed
from trunkline.gateway import http
from trunkline.housekeeping import Housekeeping
from trunkline.interceptors import Boundary
from trunkline.readiness import HealthService, Readiness
from trunkline.rows import TrunkReader
from trunkline.rules import Rules
from trunkline.sealing import KeyRing
from trunkline.store.database import Database
from trunkline.store.feed import FeedStore
from trunkline.store.history import HistoryStore
from trunkline.store.identities import IdentityStore
from trunkline.store.mutations import Mutations
from trunkline.store.phone_numbers import PhoneNumberStore
from trunkline.store.trunks import TrunkStore
from trunkline.trunks.service import SipTrunkService
from trunkline.ulids import Ulids

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX = 1 << 20
STREAMS_PER_CONNECTION_MAX = 1000
METADATA_BYTES_MAX = 16 << 10
PROBE_SECONDS = 1.0
PROBE_SECONDS_MAX = 5.0
PROBE_FAILURES_MAX = 2
_READ, _WRITE = "trunks:read", "trunks:write"


class Running:
    """A service that runs.

    Attributes:
        grpc_address: where it answers, the port as bound.
        http_address: where the gateway answers; empty without one.
        ready: set once it has answered readiness for the first time.
        failed: done, with an error, if it can't ever become ready.
        bootstrap: whether the bootstrap token acted when it became ready.
    """

    def __init__(self, grpc_address: str) -> None:
        self.grpc_address = grpc_address
        self.http_address = ""
        self.ready = asyncio.Event()
        self.failed: asyncio.Task[None]
        self.bootstrap = False


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
async def serving(settings: Settings) -> AsyncIterator[Running]:
    """The whole service, from the data directory's lock to the first answer and back.

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
        stack.push_async_callback(database.close)
        ids, readiness = Ulids(), Readiness()
        identities = IdentityStore(database)
        verifier = Verifier(identities, settings.bootstrap_token)
        named = certificates is not None and certificates.asks_clients
        boundary = Boundary(verifier, readiness, _scopes(), ids, names_clients=named)
        server = grpc.aio.server(interceptors=[boundary], options=_options())
        # A connection of the feed's own: it waits for nobody's call.
        own = await _open(settings, url, 1)
        stack.push_async_callback(own.close)
        parts = _Parts(settings, database, own, ring, ids)
        _add_services(server, settings, parts, readiness)
        # Addresses are bound before PostgreSQL starts: they may be taken.
        running = Running(stack.enter_context(_bound(server, settings, certificates)))
        front = _front(server, settings, certificates, running, stack)
        if embedded is not None:
            await stack.enter_async_context(embedded.running())
        await stack.enter_async_context(verifier.refreshing())
        await server.start()
        stack.push_async_callback(server.stop, settings.drain_seconds)
        if front is not None:
            await stack.enter_async_context(front)
        stack.callback(_leave, readiness, parts.feed, settings.drain_seconds)
        startup = _Startup(
            settings, database, identities, ring, readiness, running, parts.background
        )
        running.failed = asyncio.create_task(startup.run())
        stack.push_async_callback(_cancel, running.failed)
        yield running


class _Startup:
    """Brings the database up to date, checks the keys, and then keeps readiness true."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        identities: IdentityStore,
        ring: KeyRing,
        readiness: Readiness,
        running: Running,
        background: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        self._settings = settings
        self._database = database
        self._identities = identities
        self._ring = ring
        self._readiness = readiness
        self._running = running
        self._background = background
        self._said = ""

    async def run(self) -> None:
        """Run until cancelled.

        Raises:
            SettingsError: the keys are not the database's.
        """
        while True:
            if await self._prepared():
                break
            await asyncio.sleep(PROBE_SECONDS)
        async with self._background():
            self._readiness.serve()
            self._running.ready.set()
            await self._watch_over()

    async def _watch_over(self) -> None:
        failures = 0
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            failures = 0 if await self._probe() else failures + 1
            if failures == PROBE_FAILURES_MAX:
                log.warning("not_ready")

    async def _prepared(self) -> bool:
        try:
            if self._settings.migrate == "auto":
                for step in await migrate.apply(self._database):
                    log.info("migrated", extra={"version": step.version, "step": step.name})
            if not await self._schema_fits():
                return False
            await keys.check(self._identities, self._ring)
            if self._settings.bootstrap_token:
                await self._identities.create_account(BOOTSTRAP_ACCOUNT)
                self._running.bootstrap = not await self._identities.any_token()
        except migrate.SchemaError as error:
            return self._not_ready("SCHEMA_UNKNOWN", str(error))
        except errors.UnavailableError as error:
            return self._not_ready("DATABASE_UNAVAILABLE", error.message)
        return True

    async def _schema_fits(self) -> bool:
        missing = await migrate.missing(self._database)
        if missing:
            what = f"the database lacks schema version {missing[0].version:04}"
            return self._not_ready("SCHEMA_BEHIND", f"{what}: run `trunkline migrate`")
        return True

    async def _probe(self) -> bool:
        try:
            async with asyncio.timeout(PROBE_SECONDS_MAX):
                if not await self._schema_fits():
                    return False
        except migrate.SchemaError as error:
            return self._not_ready("SCHEMA_UNKNOWN", str(error))
        except (errors.UnavailableError, TimeoutError):
            # Calls are still tried: they may fare better than the probe, and say why if not.
            self._readiness.suspend(None)
            return False
        if not self._readiness.ready:
            log.info("ready_again")
            self._said = ""
            self._readiness.serve()
        return True

    def _not_ready(self, reason: str, why: str) -> bool:
        if why != self._said:
            log.error("not_ready", extra={"reason": reason, "why": why})
            self._said = why
        self._readiness.suspend(
            errors.UnavailableError(reason, f"the server is not ready: {why}", retry_seconds=1.0)
        )
        return False


async def _open(settings: Settings, url: str, size: int) -> Database:
    try:
        return await Database.open(url, size, settings.database_statement_cache)
    except (ValueError, OSError):
        raise SettingsError("TRUNKLINE_DATABASE_URL: is not a URL that can be used") from None


def _options() -> list[tuple[str, Any]]:
    return [
        ("grpc.so_reuseport", 0),  # else a second server takes the port without an error
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ]


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
        self, settings: Settings, database: Database, own: Database, ring: KeyRing, ids: Ulids
    ) -> None:
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

    @contextlib.asynccontextmanager
    async def background(self) -> AsyncIterator[None]:
        """What goes on beside the calls, once the schema is there."""
        async with self.feed.running(), self._housekeeping.running():
            yield


def _add_services(
    server: grpc.aio.Server, settings: Settings, parts: _Parts, readiness: Readiness
) -> None:
    sip_trunk_service_pb2_grpc.add_SipTrunkServiceServicer_to_server(parts.service, server)
    health_pb2_grpc.add_HealthServicer_to_server(HealthService(readiness), server)
    if settings.reflection:
        files = (sip_trunk_service_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)
        reflection.add(server, [s.full_name for f in files for s in f.services_by_name.values()])


@contextlib.contextmanager
def _bound(
    server: grpc.aio.Server, settings: Settings, certificates: tls.Certificates | None
) -> Iterator[str]:
    """Bind the gRPC server to all its addresses while the block runs; the first of them."""
    with contextlib.ExitStack() as stack:
        address = settings.grpc_address
        if address.startswith("unix:"):
            path = Path(address.removeprefix("unix:").removeprefix("//"))
            stack.enter_context(_bound_socket(server, path))
        else:
            address = f"{address.rpartition(':')[0]}:{_bind(server, address, certificates)}"
        if settings.grpc_socket:
            stack.enter_context(_bound_socket(server, Path(settings.grpc_socket)))
        yield address


def _bind(
    server: grpc.aio.Server, address: str, certificates: tls.Certificates | None = None
) -> int:
    try:
        if certificates is not None:
            port = server.add_secure_port(address, certificates.server_credentials())
        else:
            port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port:
        raise OSError(
            f"{address} can't be listened on: another server has it, or this machine has no such"
            " address"
        )
    if certificates is None and not config.is_loopback(address):
        log.warning("plaintext", extra={"address": address})
    return port


@contextlib.contextmanager
def _bound_socket(server: grpc.aio.Server, path: Path) -> Iterator[None]:
    """A UNIX socket is plaintext always: who may connect is a matter of its mode."""
    with sockets.claimed(path):
        with sockets.mode_0660():
            _bind(server, f"unix:{path}")
        yield


def _front(
    server: grpc.aio.Server,
    settings: Settings,
    certificates: tls.Certificates | None,
    running: Running,
    stack: contextlib.AsyncExitStack,
) -> AbstractAsyncContextManager[None] | None:
    """The HTTP gateway, bound but not yet serving; None without one."""
    if not settings.http_address:
        return None
    private = stack.enter_context(tempfile.TemporaryDirectory(prefix="trunkline-"))
    server.add_insecure_port(f"unix:{private}/grpc")
    listener = stack.enter_context(http.bound(settings.http_address))
    running.http_address = http.address_of(listener)
    return http.serving(
        listener,
        f"unix:{private}/grpc",
        settings.cors_origins(),
        settings.drain_seconds,
        context=certificates.context() if certificates else None,
    )


def _leave(readiness: Readiness, feed: Feed, seconds: int) -> None:
    log.info("draining", extra={"seconds_max": seconds})
    readiness.drain()
    feed.end(
        errors.UnavailableError(
            "DRAINING", "the server is about to end: go on at another one", retry_seconds=0.1
        )
    )


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
