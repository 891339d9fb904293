"""Where the gRPC server listens, and what it holds connections to."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from trunkline import config, sockets, tls
from trunkline.config import Settings

log = logging.getLogger(__name__)


def options(settings: Settings) -> list[tuple[str, Any]]:
    """The channel arguments of the server."""
    age = settings.connection_age_seconds
    found = [
        ("grpc.so_reuseport", 0),  # else a second server takes the port without an error
        ("grpc.max_receive_message_length", config.MESSAGE_BYTES_MAX),
        ("grpc.max_concurrent_streams", config.STREAMS_PER_CONNECTION_MAX),
        ("grpc.server.max_pending_requests", config.PENDING_CALLS_MAX),
        ("grpc.server.max_pending_requests_hard_limit", 2 * config.PENDING_CALLS_MAX),
        ("grpc.max_metadata_size", config.METADATA_BYTES_MAX),
        ("grpc.keepalive_time_ms", settings.keepalive_seconds * 1000),
        ("grpc.keepalive_timeout_ms", config.KEEPALIVE_ANSWER_SECONDS_MAX * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        # A ping of keepalive has an own timeout only where that is longer than this one.
        ("grpc.http2.ping_timeout_ms", config.KEEPALIVE_ANSWER_SECONDS_MAX * 1000),
        (
            "grpc.http2.min_ping_interval_without_data_ms",
            config.CLIENT_PING_SECONDS_MIN * 1000,
        ),
    ]
    if age:
        found.append(("grpc.max_connection_age_ms", age * 1000))
        grace = settings.connection_grace_seconds
        found.append(("grpc.max_connection_age_grace_ms", grace * 1000))
    return found


@contextlib.contextmanager
def bound(
    server: grpc.aio.Server, settings: Settings, certificates: tls.Certificates | None
) -> Iterator[str]:
    """Bind the gRPC server to all its addresses while the block runs; the first of them.

    Raises:
        OSError: one can't be bound.
    """
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
    if certificates is None:
        warn_of_plaintext(address)
    return port


def warn_of_plaintext(address: str) -> None:
    """Say in the log that others than this machine reach an address in plaintext."""
    if not config.is_loopback(address):
        log.warning("plaintext", extra={"address": address})


@contextlib.contextmanager
def _bound_socket(server: grpc.aio.Server, path: Path) -> Iterator[None]:
    """A UNIX socket is plaintext always: who may connect is a matter of its mode."""
    with sockets.claimed(path):
        with sockets.mode_0660():
            _bind(server, f"unix:{path}")
        yield
