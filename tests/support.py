"""What tests share: trunks to send, clients that carry a token, errors read back."""

import base64
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from siptrunk.v1 import phone_number_pb2, sip_trunk_pb2, sip_trunk_service_pb2_grpc
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline.config import Settings

SipTrunk = sip_trunk_pb2.SipTrunk
Gateway = sip_trunk_pb2.Gateway
IpIdentifier = sip_trunk_pb2.IpIdentifier
PhoneNumber = phone_number_pb2.PhoneNumber
Stub = sip_trunk_service_pb2_grpc.SipTrunkServiceStub

TOKEN = "test-only-bootstrap-token-0123456789abcdef"
KEYS = "k1:" + base64.b64encode(b"test-only-key-of-32-bytes-aaaaaa").decode()
KEYS_OTHER = "k1:" + base64.b64encode(b"test-only-key-of-32-bytes-bbbbbb").decode()
KEYS_NEWER = "k2:" + base64.b64encode(b"test-only-key-of-32-bytes-cccccc").decode()

_PREFIX = "fake-Passw0rd-"
_passwords = itertools.count(1)
_names = itertools.count(1)


class Seen:
    """Everything that servers of this run sent or logged, to be searched for secrets at the end."""

    def __init__(self) -> None:
        self.passwords: set[str] = set()
        self._parts: list[bytes] = []
        self._lock = threading.Lock()

    def add(self, part: bytes) -> None:
        """Keep a reply, an error or a log line."""
        with self._lock:
            self._parts.append(part)

    def text(self) -> bytes:
        """All of it."""
        with self._lock:
            return b"\n".join(self._parts)


SEEN = Seen()


def password() -> str:
    """A password that is obviously fake, never given twice, and searched for afterwards."""
    made = f"{_PREFIX}{next(_passwords):06}-xyzzy"
    SEEN.passwords.add(made)
    return made


def forms(secret: str) -> list[bytes]:
    """How a secret may show: plain, hex, and base64 at each alignment."""
    raw = secret.encode()
    found = [raw, raw.hex().encode(), raw.hex().upper().encode()]
    for shift in range(3):
        encoded = base64.b64encode(b"\0" * shift + raw)
        found.append(encoded[-(-shift * 8 // 6) + (1 if shift else 0) : -4])
    return found


def leaks(text: bytes, secrets: set[str]) -> list[str]:
    """The secrets that a text shows in some form."""
    # Most texts show none: what all made passwords share is looked for first.
    made = {s for s in secrets if s.startswith(_PREFIX)}
    if not any(form in text for form in forms(_PREFIX)):
        secrets = secrets - made
    return [s for s in sorted(secrets) if any(form in text for form in forms(s))]


def userpass(**fields: Any) -> SipTrunk:
    """A valid USERPASS trunk with a name of its own."""
    defaults: dict[str, Any] = {
        "name": f"Acme {next(_names)}",
        "provider": "plivo",
        "auth_type": SipTrunk.USERPASS,
        "auth_username": "acme",
        "gateways": [Gateway(gateway_address="sip.example.com")],
    }
    if "auth_password" not in fields:
        defaults["auth_password"] = password()
    return SipTrunk(**defaults | fields)


def ip_based(**fields: Any) -> SipTrunk:
    """A valid IP_BASED trunk with a name of its own."""
    defaults: dict[str, Any] = {
        "name": f"Acme {next(_names)}",
        "provider": "twilio",
        "auth_type": SipTrunk.IP_BASED,
        "gateways": [Gateway(gateway_address="sip.example.com")],
        "ip_identifiers": [IpIdentifier(ip_address="203.0.113.5")],
    }
    return SipTrunk(**defaults | fields)


def update(trunk_id: str, *paths: str, **fields: Any) -> pb.UpdateSipTrunkRequest:
    """An update of a trunk with an explicit mask; without paths, with no mask at all."""
    request = pb.UpdateSipTrunkRequest(sip_trunk=SipTrunk(id=trunk_id, **fields))
    request.update_mask.paths.extend(paths)
    if not paths:
        request.ClearField("update_mask")
    return request


@dataclass(frozen=True)
class Refusal:
    """An error as a caller gets it."""

    code: str
    message: str
    reason: str
    metadata: dict[str, str]
    violations: dict[str, str]
    """Field path to reason."""
    details: status_pb2.Status
    retry_seconds: float | None

    @property
    def fields(self) -> list[str]:
        """The paths refused, in order."""
        return list(self.violations)


def refusal(error: grpc.RpcError) -> Refusal:
    """Read an error, and see that it is well-formed: ErrorInfo there, trailers bounded."""
    assert isinstance(error, grpc.aio.AioRpcError)
    trailers = dict(iter(error.trailing_metadata() or ()))
    details = trailers.get("grpc-status-details-bin", b"")
    assert isinstance(details, bytes)
    assert len(details) * 4 / 3 + len((error.details() or "").encode()) < 6144
    status = status_pb2.Status.FromString(details)
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    seconds = None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        if detail.Unpack(retry):
            seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    assert info.domain == "trunkline"
    assert info.reason
    assert status.message == error.details()
    return Refusal(
        error.code().name,
        error.details() or "",
        info.reason,
        dict(info.metadata),
        {v.field: v.reason for v in bad.field_violations},
        status,
        seconds,
    )


async def refused(call: Any) -> Refusal:
    """The error that a call must end with."""
    try:
        response = await call
    except grpc.aio.AioRpcError as error:
        return refusal(error)
    raise AssertionError(f"answered: {response}")


class Recorder(grpc.aio.UnaryUnaryClientInterceptor):
    """Adds a token to each call, and keeps what comes back for the search for secrets."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        call = await continuation(_authorized(client_call_details, self._token), request)
        call.add_done_callback(_keep)
        return call


class StreamRecorder(grpc.aio.UnaryStreamClientInterceptor):
    """The same for calls that are answered with a stream."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: Any, request: Any
    ) -> Any:
        call = await continuation(_authorized(client_call_details, self._token), request)

        async def responses() -> AsyncIterator[Any]:
            async for response in call:
                SEEN.add(response.SerializeToString())
                yield response

        return responses()


def _authorized(details: Any, token: str | None) -> grpc.aio.ClientCallDetails:
    metadata = list(details.metadata or ())
    if token is not None:
        metadata.append(("authorization", f"Bearer {token}"))
    return grpc.aio.ClientCallDetails(
        details.method,
        details.timeout,
        grpc.aio.Metadata(*metadata),
        details.credentials,
        details.wait_for_ready,
    )


def _keep(call: Any) -> None:
    async def read() -> None:
        try:
            response = await call
            if isinstance(response, Message):
                SEEN.add(response.SerializeToString())
        except grpc.aio.AioRpcError as error:
            SEEN.add(repr((error.details(), error.trailing_metadata())).encode())
        except BaseException:
            return

    import asyncio

    try:
        asyncio.get_running_loop().create_task(read())
    except RuntimeError:
        return


@asynccontextmanager
async def connected(address: str, token: str | None = TOKEN) -> AsyncIterator[Any]:
    """A stub whose calls carry a token."""
    async with grpc.aio.insecure_channel(
        address,
        options=[("grpc.use_local_subchannel_pool", 1)],
        interceptors=[Recorder(token), StreamRecorder(token)],
    ) as channel:
        yield Stub(channel)


def settings(url: str, **values: Any) -> Settings:
    """Settings of a service on a test database."""
    defaults: dict[str, Any] = {
        "grpc_address": "127.0.0.1:0",
        "http_address": "",
        "database_url": url,
        "bootstrap_token": TOKEN,
        "secret_keys": KEYS,
        "log_level": "debug",
        "drain_seconds": 1,
    }
    return Settings(**defaults | values)


def search(root: Path, secrets: set[str]) -> list[str]:
    """The files under a directory that show a secret."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return [
        f"{path}: {shown[:3]}" for path in files if (shown := leaks(path.read_bytes(), secrets))
    ]
