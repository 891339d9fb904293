"""Links to servers: one that balances and may go silent, one that is used frame by frame."""

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from tests.e2e.processes import SECONDS_MAX

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
ACK = 1
ENHANCE_YOUR_CALM = 11


class Balancer:
    """Hands each connection to the next of its targets, as one that knows of no calls does.

    Args:
        targets: addresses of servers; may grow.

    Attributes:
        address: where it listens.
    """

    def __init__(self, targets: Sequence[str]) -> None:
        self.address = ""
        self.targets = list(targets)
        self._handed = 0
        self._silent = False
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = "127.0.0.1:{1}".format(*self._server.sockets[0].getsockname())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    def go_silent(self) -> None:
        """Carry nothing any more, and leave every connection open."""
        self._silent = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self.targets[self._handed % len(self.targets)].rpartition(":")
        self._handed += 1
        try:
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                if not self._silent:
                    writer.write(data)
        except OSError:
            pass
        if not self._silent:
            writer.close()


@dataclass(frozen=True)
class Frame:
    """A frame of HTTP/2 (RFC 9113, section 4.1)."""

    kind: int
    flags: int = 0
    payload: bytes = b""

    def encoded(self) -> bytes:
        """On the wire, on no stream."""
        return (
            struct.pack("!I", len(self.payload))[1:]
            + bytes([self.kind, self.flags])
            + (bytes(4) + self.payload)
        )


class Pinging:
    """A client that has no calls, and pings."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._answers: asyncio.Queue[bytes] = asyncio.Queue()
        self._lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> Self:
        host, _, port = self._address.rpartition(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))
        self._writer.write(PREFACE + Frame(SETTINGS).encoded())
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._writer.transport.abort()

    async def ping(self) -> bool:
        """Ping; whether it is answered. Else the connection is lost."""
        self._writer.write(Frame(PING, payload=b"pingping").encoded())
        answer = asyncio.ensure_future(self._answers.get())
        try:
            async with asyncio.timeout(SECONDS_MAX):
                await asyncio.wait((answer, self._lost), return_when=asyncio.FIRST_COMPLETED)
            return answer.done()
        finally:
            answer.cancel()

    async def lost(self) -> str:
        """Wait until the server gives the connection up; what it says."""
        async with asyncio.timeout(SECONDS_MAX):
            return await asyncio.shield(self._lost)

    async def _read(self) -> None:
        while not self._lost.done():
            head = await self._reader.readexactly(9)
            payload = await self._reader.readexactly(int.from_bytes(head[:3]))
            kind, acknowledged = head[3], bool(head[4] & ACK)
            if kind == PING and acknowledged:
                self._answers.put_nowait(payload)
            elif kind in (PING, SETTINGS) and not acknowledged:
                answer = payload if kind == PING else b""
                self._writer.write(Frame(kind, ACK, answer).encoded())
            elif kind == GOAWAY:
                self._lost.set_result(f"{int.from_bytes(payload[4:8])} {payload[8:].decode()}")
