"""A TCP link to PostgreSQL that falls silent without closing anything, or is slow."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

SOCKET = ".s.PGSQL.5432"


class Wire:
    """A link that is up from the start.

    Attributes:
        url: leads over it to the database.
        delay: how many seconds each answer of PostgreSQL is held back.
    """

    def __init__(self, url: str) -> None:
        self.url = ""
        self.delay = 0.0
        self._parts = urlsplit(url)
        self._upstream = str(Path(parse_qs(self._parts.query)["host"][0]) / SOCKET)
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def silence(self) -> None:
        """Pass nothing on, and close nothing; connections are still taken."""
        self._flows.clear()

    def speak(self) -> None:
        """Pass on what was held back, and what comes."""
        self._flows.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The link for the length of a block."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        user = self._parts.netloc.rpartition("@")[0]
        self.url = f"{self._parts.scheme}://{user}@127.0.0.1:{port}{self._parts.path}"
        try:
            yield
        finally:
            server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._flows.wait()
            upstream_reader, upstream = await asyncio.open_unix_connection(self._upstream)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._copy(reader, upstream, slow=False))
                    group.create_task(self._copy(upstream_reader, writer, slow=True))
            finally:
                upstream.close()
        except (asyncio.CancelledError, OSError):
            pass  # the test is over, or the database
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if slow:
                    await asyncio.sleep(self.delay)
                await self._flows.wait()
                writer.write(data)
        writer.close()


@asynccontextmanager
async def wired(url: str) -> AsyncIterator[Wire]:
    """A link to a database for the length of a block."""
    wire = Wire(url)
    async with wire.running():
        yield wire
