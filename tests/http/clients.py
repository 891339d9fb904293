"""Clients of a gateway, and gateways that a whole module shares."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.conftest import _copied, running
from tests.support import SEEN, TOKEN

SECONDS_MAX = 60


async def _keep(response: httpx.Response) -> None:
    await response.aread()
    SEEN.add(response.content + repr(response.headers).encode())


@asynccontextmanager
async def client(address: str, token: str | None = TOKEN) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the gateway at HOST:PORT; what it gets is kept for the search for secrets."""
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    async with httpx.AsyncClient(
        base_url=f"http://{address}",
        headers=headers,
        timeout=SECONDS_MAX,
        event_hooks={"response": [_keep]},
        trust_env=False,
    ) as made:
        yield made


@asynccontextmanager
async def copied(postgres: str, template: str) -> AsyncIterator[str]:
    """The URL of a database with the schema, as long as the block runs."""
    async with asynccontextmanager(_copied)(postgres, template) as url:
        yield url


@asynccontextmanager
async def shared(postgres: str, template: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway on a new database, for tests that mind only their own trunks."""
    async with (
        copied(postgres, template) as url,
        running(url, http_address="127.0.0.1:0") as service,
        client(service.http_address) as made,
    ):
        yield made


@dataclass(frozen=True)
class Answer:
    """A reply that has come whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class CutError(Exception):
    """The connection ended before a reply was whole; `begun` says whether any of it had come."""

    def __init__(self, *, begun: bool) -> None:
        super().__init__(f"cut, begun: {begun}")
        self.begun = begun


class Connection:
    """One connection on which requests are written byte for byte."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def __aenter__(self) -> "Connection":
        host, _, port = self._address.rpartition(":")
        self.reader, self.writer = await asyncio.open_connection(host, int(port))
        return self

    async def __aexit__(self, *error: object) -> None:
        self.writer.close()

    async def send(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        """Write a request, with a token unless `headers` has its own Authorization."""
        sent = {
            "Host": self._address,
            "Authorization": f"Bearer {TOKEN}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        } | (headers or {})
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in sent.items())
        self.writer.write(head.encode() + b"\r\n" + body)
        await self.writer.drain()

    async def answer(self) -> Answer:
        """The next reply.

        Raises:
            CutError: the connection ended before it was whole.
        """
        begun = False
        try:
            async with asyncio.timeout(SECONDS_MAX):
                head = await self.reader.readuntil(b"\r\n\r\n")
                begun = True
                first, *lines = head.decode("latin-1").split("\r\n")
                pairs = (line.split(": ", 1) for line in lines if line)
                headers = {name.lower(): value for name, value in pairs}
                body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        except asyncio.IncompleteReadError as error:
            raise CutError(begun=begun or bool(error.partial)) from None
        except ConnectionError:
            raise CutError(begun=begun) from None
        SEEN.add(head + body)
        return Answer(int(first.split()[1]), headers, body)

    async def ask(self, *request: Any, **headers: Any) -> Answer:
        """Send a request and wait for its reply."""
        await self.send(*request, **headers)
        return await self.answer()
