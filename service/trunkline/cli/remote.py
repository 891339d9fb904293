"""What the commands that call a running service share."""

import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from siptrunk.v1 import sip_trunk_service_pb2_grpc
from trunkline import statuses, tls
from trunkline.config import Settings

USAGE = 2
# A proxy for the web does not carry gRPC.
OPTIONS = (("grpc.enable_http_proxy", 0),)
FAILED = 1


class UsageError(Exception):
    """What was asked for can't be; the message says why."""


def metadata(token_file: str | None) -> list[tuple[str, str]]:
    """The caller's token as metadata.

    Raises:
        UsageError: it is none.
        OSError: the file can't be read.
    """
    if token_file:
        token = Path(token_file).read_text("utf-8", errors="replace").strip()
    else:
        token = os.environ.get("TRUNKLINE_TOKEN", "").strip()
    if not token.isascii() or not token.isprintable():
        raise UsageError("the token has characters that no token has")
    return [("authorization", f"Bearer {token}")] if token else []


def channel(settings: Settings, address: str) -> grpc.Channel:
    """A channel to the service at an address, for blocking calls.

    Raises:
        SettingsError: the files that TLS needs can't be used.
    """
    credentials = tls.channel_credentials(settings, address)
    if credentials is None:
        return grpc.insecure_channel(address, options=OPTIONS)
    return grpc.secure_channel(address, credentials, options=OPTIONS)


@contextmanager
def connected(settings: Settings) -> Iterator[Any]:
    """A stub of the service that the settings name.

    Raises:
        SettingsError: the files that TLS needs can't be used.
    """
    with channel(settings, settings.grpc_address) as made:
        yield sip_trunk_service_pb2_grpc.SipTrunkServiceStub(made)


@asynccontextmanager
async def following(settings: Settings) -> AsyncIterator[Any]:
    """The same, for what goes on until it is interrupted."""
    address = settings.grpc_address
    credentials = tls.channel_credentials(settings, address)
    async with (
        grpc.aio.insecure_channel(address, options=OPTIONS)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials, options=OPTIONS)
    ) as made:
        yield sip_trunk_service_pb2_grpc.SipTrunkServiceStub(made)


def usage(what: object) -> int:
    """Say what is wrong with a command."""
    print(f"trunkline: {what}", file=sys.stderr)
    return USAGE


def failed(error: grpc.RpcError) -> int:
    """Say all that an error says."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    print(f"{error.code().name}: {error.details()}", file=sys.stderr)
    for detail in details(error):
        _print_detail(detail)
    return FAILED


def details(error: grpc.RpcError) -> Iterator[Any]:
    """The details of an error."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    for key, value in error.trailing_metadata() or ():
        if key == statuses.DETAILS_KEY and isinstance(value, bytes):
            yield from status_pb2.Status.FromString(value).details


def _print_detail(detail: Any) -> None:
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    if detail.Unpack(info):
        extra = "".join(f" {k}={v}" for k, v in sorted(info.metadata.items()))
        print(f"  reason {info.reason}{extra}", file=sys.stderr)
    elif detail.Unpack(bad):
        for v in bad.field_violations:
            print(f"  {v.field} [{v.reason}] {v.description}", file=sys.stderr)
