"""A link between a service and PostgreSQL that can be cut, and that tells what went over it."""

import asyncio
import contextlib
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

SOCKET = ".s.PGSQL.5432"


class Link:
    """A link that is up from the start. `url` leads over it to the database."""

    def __init__(self, url: str, directory: Path) -> None:
        parts = urlsplit(url)
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path}?host={quote(str(directory))}"
        self.statements: list[str] = []
        self._upstream = str(Path(parse_qs(parts.query)["host"][0]) / SOCKET)
        self._path = directory / SOCKET
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def mend(self) -> None:
        """Take connections again."""
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def cut(self) -> None:
        """Close every connection and take no more."""
        assert self._server is not None
        self._server.close()
        self._path.unlink(missing_ok=True)
        for writer in list(self._open):
            writer.transport.abort()

    def asked(self, words: str) -> int:
        """How often a statement with these words in its text was run."""
        return sum(words in statement for statement in self.statements)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)  # at once, so that a cut finds it
        upstream_reader, upstream = await asyncio.open_unix_connection(self._upstream)
        both = {writer, upstream}
        self._open |= both
        answers = asyncio.create_task(_copy(upstream_reader, writer))
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._requests(reader, upstream)
        upstream.close()
        await answers
        self._open -= both

    async def _requests(self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter) -> None:
        prepared: dict[bytes, str] = {}
        kind = b""  # the first message has none
        while True:
            length = await reader.readexactly(4)
            body = await reader.readexactly(struct.unpack("!I", length)[0] - 4)
            if kind == b"P":
                name, text = body.split(b"\0", 2)[:2]
                prepared[name] = text.decode()
            elif kind == b"B":
                self.statements.append(prepared[body.split(b"\0", 2)[1]])
            upstream.write(kind + length + body)
            kind = await reader.readexactly(1)


@asynccontextmanager
async def linked(url: str) -> AsyncIterator[Link]:
    """A link to a database for the length of a block."""
    with tempfile.TemporaryDirectory(prefix="trunkline-link-") as directory:
        link = Link(url, Path(directory))
        await link.mend()
        yield link
        await link.cut()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
    writer.close()
