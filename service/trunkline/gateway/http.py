"""Runs the gateway on a socket: uvicorn, told to leave signals and logs to the service."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Sequence

import grpc
import uvicorn
from grpc_health.v1 import health_pb2, health_pb2_grpc

from trunkline.gateway import upstream
from trunkline.gateway.app import application

HEADER_BYTES_MAX = 32 << 10
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
async def serving(
    listener: socket.socket, target: str, origins: Sequence[str], drain_seconds: int
) -> AsyncIterator[None]:
    """Answer HTTP on a socket while the block runs; requests under way finish after it.

    Args:
        listener: a bound socket.
        target: the gRPC service's address.
        origins: that browsers may call from.
        drain_seconds: how long requests under way may take to finish.
    """
    async with (
        upstream.connected(target) as channel,
        upstream.connected(target) as watches,
    ):
        service = upstream.Service(upstream.stub(channel), upstream.stub(watches))
        app = application(service, _readiness(channel), origins)
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG_MAX,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=drain_seconds,
            h11_max_incomplete_event_size=HEADER_BYTES_MAX,
        )
        server = _Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not task.done():  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.01)
        try:
            yield
        finally:
            service.leaving.set()
            server.should_exit = True
            await task


def _readiness(channel: grpc.aio.Channel) -> "upstream.Ready":
    stub = health_pb2_grpc.HealthStub(channel)

    async def ready() -> bool:
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=PROBE_SECONDS_MAX)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return ready
