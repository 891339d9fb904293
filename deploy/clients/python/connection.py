"""What both programs share: a channel, the caller's token, and how to read errors."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

SERVICE_CONFIG = """
{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [{"service": "siptrunk.v1.SipTrunkService"}],
    "waitForReady": true,
    "retryPolicy": {
      "maxAttempts": 5,
      "initialBackoff": "0.1s",
      "maxBackoff": "2s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }],
  "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1}
}
"""
OPTIONS = [
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.initial_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 5_000),
]
METADATA = (("authorization", f"Bearer {os.environ['TRUNKLINE_TOKEN']}"),)


def channel(target: str) -> grpc.Channel:
    """A channel for calls that block; made once, used by all threads."""
    found = credentials()
    if found is None:
        return grpc.insecure_channel(target, options=OPTIONS)
    return grpc.secure_channel(target, found, options=OPTIONS)


def aio_channel(target: str) -> grpc.aio.Channel:
    """The same for asyncio."""
    found = credentials()
    if found is None:
        return grpc.aio.insecure_channel(target, options=OPTIONS)
    return grpc.aio.secure_channel(target, found, options=OPTIONS)


def credentials() -> grpc.ChannelCredentials | None:
    """Whom to trust, and what to show where the server wants a certificate; None: plaintext."""
    authority, certificate, key = (
        Path(os.environ[name]).read_bytes() if os.environ.get(name) else None
        for name in ("TRUNKLINE_TLS_CA", "TRUNKLINE_TLS_CERT", "TRUNKLINE_TLS_KEY")
    )
    if authority is None:
        return None
    return grpc.ssl_channel_credentials(authority, key, certificate)


def reason(error: grpc.RpcError) -> str:
    """The stable word for what went wrong; empty where a proxy or the network says it."""
    info = error_details_pb2.ErrorInfo()
    return info.reason if _unpack(error, info) else ""


def violations(error: grpc.RpcError) -> Sequence[Any]:
    """Everything that is wrong with a request: each has `field`, `reason`, `description`."""
    bad = error_details_pb2.BadRequest()
    _unpack(error, bad)
    return bad.field_violations


def retry_seconds(error: grpc.RpcError) -> float | None:
    """How long the server asks to wait; None where it does not."""
    retry = error_details_pb2.RetryInfo()
    return retry.retry_delay.ToTimedelta().total_seconds() if _unpack(error, retry) else None


def _unpack(error: grpc.RpcError, detail: Any) -> bool:
    """Fill a detail from an error that has it."""
    trailers: Any = error.trailing_metadata() or ()
    status = status_pb2.Status.FromString(dict(trailers).get("grpc-status-details-bin", b""))
    return any(one.Unpack(detail) for one in status.details)
