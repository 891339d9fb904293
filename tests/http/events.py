"""Server-sent events, read as a browser reads them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.conftest import running
from tests.http.clients import client, copied
from tests.integration.conftest import minted
from tests.support import SEEN, TOKEN

SECONDS_MAX = 60
WATCH = "/sip-trunks/trunks:watch"


@dataclass(frozen=True)
class Event:
    """One event: its kind, its data, and the id that it moved to, if any."""

    kind: str
    data: Any
    id: str | None


@dataclass
class Stream:
    """A stream that is being read.

    Attributes:
        response: whose body it is.
        last_id: what a browser would come back with.
        retry: the hint of the stream, in milliseconds.
        comments: the lines that say nothing.
    """

    response: httpx.Response
    last_id: str = ""
    retry: int | None = None
    comments: list[str] = field(default_factory=list)
    _lines: AsyncIterator[str] | None = None

    async def block(self) -> Event | None:
        """The next block; None where it has no data.

        Raises:
            StopAsyncIteration: the stream has ended.
        """
        if self._lines is None:
            self._lines = self.response.aiter_lines()
        kind, data, moved, seen = "message", list[str](), None, False
        async with asyncio.timeout(SECONDS_MAX):
            while line := await anext(self._lines):
                seen = True
                name, _, value = line.partition(": ")
                if name == "":
                    self.comments.append(value)
                elif name == "event":
                    kind = value
                elif name == "data":
                    data.append(value)
                elif name == "id":
                    self.last_id = moved = value
                else:
                    assert name == "retry", line
                    self.retry = int(value)
        assert seen
        assert len(data) <= 1  # one line each
        if not data:
            return None
        SEEN.add(data[0].encode())
        return Event(kind, json.loads(data[0]), moved)

    async def next(self) -> Event:
        """The next event that a browser would tell of."""
        while True:
            event = await self.block()
            if event is not None:
                return event

    async def some(self, count: int) -> list[Event]:
        """The next events."""
        return [await self.next() for _ in range(count)]

    async def begun(self) -> None:
        """Wait until the watch has begun: what is changed from now on is told."""
        assert await self.block() is None

    async def ended(self) -> bool:
        """Whether the stream ends with nothing more to tell."""
        try:
            event = await self.next()
        except StopAsyncIteration:
            return True
        raise AssertionError(event)


@asynccontextmanager
async def watching(
    address: str, headers: dict[str, str] | None = None, token: str = TOKEN, **parameters: Any
) -> AsyncIterator[Stream]:
    """A watch through the gateway at HOST:PORT for the length of a block."""
    sent = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"} | (headers or {})
    async with (
        httpx.AsyncClient(
            base_url=f"http://{address}", trust_env=False, timeout=SECONDS_MAX
        ) as http,
        http.stream("GET", WATCH, headers=sent, params=parameters) as response,
    ):
        if response.status_code != 200:
            await response.aread()
        yield Stream(response)


async def of(stream: Stream, trunk_id: str, kind: str) -> Any:
    """The data of the next event of a trunk and a kind; those of other trunks are passed over."""
    while True:
        event = await stream.next()
        assert event.kind != "error", event
        if event.kind == kind and event.data["trunk"]["id"] == trunk_id:
            return event.data


@dataclass(frozen=True)
class Service:
    """A service: its addresses, a token and a client with it, its database."""

    address: str
    grpc_address: str
    token: str
    http: httpx.AsyncClient
    url: str

    def watching(
        self, headers: dict[str, str] | None = None, **parameters: Any
    ) -> AbstractAsyncContextManager[Stream]:
        """A watch in the account `default`."""
        return watching(self.address, headers, self.token, **parameters)


@asynccontextmanager
async def shared(postgres: str, template: str) -> AsyncIterator[Service]:
    """A service on a new database, for tests that mind only their own trunks."""
    async with (
        copied(postgres, template) as url,
        running(url, http_address="127.0.0.1:0") as served,
    ):
        token = (await minted(url, "default")).text
        async with client(served.http_address, token) as http:
            yield Service(served.http_address, served.grpc_address, token, http, url)
