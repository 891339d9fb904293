"""A link to PostgreSQL that keeps the answer to a committed change to itself."""

import asyncio
import contextlib
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

SOCKET = ".s.PGSQL.5432"
WRITES = "INSERT INTO trunk_revisions"
PARSE, BIND, QUERY = b"P", b"B", b"Q"
READY, ERROR = b"Z", b"E"
IDLE = b"I"


class Withholding:
    """A link that withholds what comes after a change, once the change is committed.

    Attributes:
        url: leads over it to the database.
        committed: set once PostgreSQL has said that a change is committed; nobody was told.
    """

    def __init__(self, url: str, directory: Path) -> None:
        parts = urlsplit(url)
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path}?host={quote(str(directory))}"
        self.committed = asyncio.Event()
        self._upstream = str(Path(parse_qs(parts.query)["host"][0]) / SOCKET)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        upstream_reader, upstream = await asyncio.open_unix_connection(self._upstream)
        session = _Session(self.committed)
        answers = asyncio.create_task(session.answers(upstream_reader, writer))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await session.requests(reader, upstream)
        upstream.close()
        await answers


class _Session:
    """One connection: what it prepared, whether it has changed something, whether it commits."""

    def __init__(self, committed: asyncio.Event) -> None:
        self._committed = committed
        self._writes: set[bytes] = set()
        self._within = self._wrote = self._commits = False

    async def requests(self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter) -> None:
        """Pass on what the client sends."""
        kind = b""  # the first message has none
        while True:
            length = await reader.readexactly(4)
            body = await reader.readexactly(struct.unpack("!I", length)[0] - 4)
            if kind == PARSE:
                name, text = body.split(b"\0", 2)[:2]
                self._writes.discard(name)
                if WRITES.encode() in text:
                    self._writes.add(name)
            elif kind == BIND and body.split(b"\0", 2)[1] in self._writes:
                self._wrote = True
                self._commits = not self._within
            elif kind == QUERY and body.startswith(b"COMMIT"):
                self._commits = self._wrote
            upstream.write(kind + length + body)
            kind = await reader.readexactly(1)

    async def answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what PostgreSQL answers, but nothing from a commit on."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            held = b""
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
                held += head + body
                if head[:1] == ERROR:
                    self._commits = self._wrote = False
                if head[:1] == READY:
                    self._within = body != IDLE
                    if self._commits:
                        self._committed.set()
                    self._wrote = self._wrote and self._within
                if not self._commits:
                    writer.write(held)
                    held = b""
        writer.close()


@asynccontextmanager
async def withholding(url: str) -> AsyncIterator[Withholding]:
    """Such a link for the length of a block."""
    with tempfile.TemporaryDirectory(prefix="trunkline-link-") as directory:
        link = Withholding(url, Path(directory))
        async with await asyncio.start_unix_server(link.serve, Path(directory) / SOCKET):
            yield link
