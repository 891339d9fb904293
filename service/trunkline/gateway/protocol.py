"""HTTP/1.1 on a connection: uvicorn's, within bounds, errors of ours, one write per turn."""

import asyncio
import json
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from trunkline import tls
from trunkline.gateway.edge import HEADER_BYTES_MAX
from trunkline.gateway.problems import ProblemError

log = logging.getLogger("trunkline.http")

JOINED_BYTES_MAX = 64 << 10
PARTING_SECONDS_MAX = 3.0
"""How long a client may take to answer the end of TLS while the gateway ends."""
PARTING_LOOK_SECONDS = 0.1
_NOT_HTTP = ProblemError(400, "NOT_HTTP", "the request is not HTTP/1.1 with a method of HTTP's")
_HEADER_TOO_LARGE = ProblemError(431, "HEADER_TOO_LARGE", "the header fields are too large")


class _Joined:
    """A transport that writes together what it gets in one turn of the event loop.

    An answer's head and its body would be a write each, and wake the client twice.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Write, at the end of the turn at the latest."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size > JOINED_BYTES_MAX:
            self._flush()

    def close(self) -> None:
        """Close once all is written."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        parts, self._parts, self._size = self._parts, [], 0
        if parts and not self._transport.is_closing():
            self._transport.write(parts[0] if len(parts) == 1 else b"".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Protocol(HttpToolsProtocol):
    """HTTP on a connection.

    The parser has no bound of its own: what is neither a head nor a part of a body yet is counted.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._loose = 0
        self._in_head = True

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Joined(transport, self.loop))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        self._loose += len(data)
        super().data_received(data)
        if self._loose > HEADER_BYTES_MAX and not self.transport.is_closing():
            self._refuse(_HEADER_TOO_LARGE)

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # what comes after a body is of no use here
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head, self._loose = False, 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._loose = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._loose = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser does not take."""
        self._refuse(_NOT_HTTP)

    def _refuse(self, problem: ProblemError) -> None:
        body = json.dumps(problem.body).encode()
        head = (
            b"content-type: application/json\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n" % len(body)
        )
        self.transport.write(STATUS_LINE[problem.status] + head + body)
        self.transport.close()


class SecureProtocol(Protocol):
    """HTTP within TLS: tells who the client is, and does not wait for one that is idle to part."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        client = tls.peer_name(transport.get_extra_info("peercert") or {})
        if client is not None:
            host, port = transport.get_extra_info("peername")[:2]
            extra = {"peer": f"{host}:{port}", "client_certificate": client}
            log.info("connection", extra=extra)

    def shutdown(self) -> None:
        super().shutdown()
        self._part()

    def _part(self) -> None:
        if self.transport.is_closing():
            self.loop.call_later(PARTING_SECONDS_MAX, self.transport.abort)
        else:  # there is a response under way
            self.loop.call_later(PARTING_LOOK_SECONDS, self._part)
