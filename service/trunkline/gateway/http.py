"""Runs the gateway on a socket: uvicorn, told to leave signals and logs to the service."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Iterator

import grpc
import uvicorn
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.types import ASGIApp

from trunkline.config import Settings
from trunkline.gateway import upstream
from trunkline.gateway.app import application
from trunkline.gateway.edge import Load
from trunkline.gateway.protocol import Protocol, SecureProtocol

log = logging.getLogger("trunkline.http")

KEEP_ALIVE_SECONDS = 75
BACKLOG_MAX = 2048
PROBE_SECONDS_MAX = 5.0


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: the service drains in its own order."""
        yield


@contextlib.contextmanager
def bound(address: str) -> Iterator[socket.socket]:
    """A socket bound to HOST:PORT.

    Raises:
        OSError: it can't be bound.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named since asyncio sets TCP_NODELAY only on sockets that name it.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((host, int(port)))
            made.listen(BACKLOG_MAX)  # SO_REUSEADDR lets two bind; listening, one is alone
        except OSError:
            raise OSError(
                f"{address} can't be listened on: another server has it, or this machine has no"
                " such address"
            ) from None
        yield made


def address_of(bound_socket: socket.socket) -> str:
    """HOST:PORT of a bound socket."""
    host, port = bound_socket.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.asynccontextmanager
async def running(
    app: ASGIApp,
    listener: socket.socket,
    drain_seconds: int = 1,
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[None]:
    """Answer HTTP on a bound socket while the block runs.

    Args:
        app: what answers.
        listener: the socket.
        drain_seconds: how long requests under way may take to finish after it.
        context: for HTTPS; without it, HTTP.
    """
    config = uvicorn.Config(
        app,
        http=SecureProtocol if context else Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the log's peer is who connected
        backlog=BACKLOG_MAX,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=drain_seconds,
    )
    config.load()
    # Not by a setting of uvicorn's: those name files, which it reads once.
    config.ssl = context
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event
        await asyncio.sleep(0.01)
    if task.done():
        await task
    try:
        yield
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def serving(
    listener: socket.socket,
    target: str,
    settings: Settings,
    load: Load,
    *,
    context: ssl.SSLContext | None = None,
    credentials: grpc.ChannelCredentials | None = None,
) -> AsyncIterator[None]:
    """Answer the HTTP form on a socket while the block runs; requests under way finish after it.

    Args:
        listener: a bound socket.
        target: the gRPC service's address.
        settings: the origins that browsers may call from, and how long draining may take.
        load: what is under way.
        context: for HTTPS; without it, HTTP.
        credentials: what the gRPC service is called with; without them, in plaintext.
    """
    async with (
        upstream.connected(target, credentials) as channel,
        upstream.connected(target, credentials) as watches,
    ):
        service = upstream.Service(upstream.stub(channel), upstream.stub(watches))
        app = application(service, _readiness(channel, load), settings.cors_origins(), load)
        async with running(app, listener, settings.drain_seconds, context):
            try:
                yield
            finally:
                service.leaving.set()


def _readiness(channel: grpc.aio.Channel, load: Load) -> "upstream.Ready":
    stub = health_pb2_grpc.HealthStub(channel)

    async def ready() -> bool:
        if load.draining:
            return False
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_SECONDS_MAX)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return ready
