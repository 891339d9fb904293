"""Several `trunkline serve` on one database, any of which may be killed and started again."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.e2e.processes import Server, free_address
from tests.support import KEYS, SEEN, Recorder, Stub

RECONNECT_MS = 50
RECONNECT_MS_MAX = 300
CONNECT_MS_MAX = 5000
"""Called the least backoff by grpc, it is also the time that a connection has to be made."""
_SETTINGS = {"secret_keys": KEYS, "log_level": "warning", "drain_seconds": "2"}


class Fleet:
    """The servers, at addresses that stay.

    Args:
        directory: takes their output.
        urls: the database's URL for each of them.
        variables: settings of all.
    """

    def __init__(self, directory: Path, urls: Sequence[str], **variables: str) -> None:
        self.addresses = [free_address() for _ in urls]
        self.kills = 0
        self._directory = directory
        self._urls = urls
        self._variables = _SETTINGS | variables
        self._servers: list[Server] = []
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> "Fleet":
        await self._stack.__aenter__()
        for place in range(len(self._urls)):
            self._servers.append(await self._started(place))
        await asyncio.gather(*(server.ready() for server in self._servers))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.__aexit__(None, None, None)

    def __len__(self) -> int:
        return len(self._servers)

    @property
    def log(self) -> str:
        """What all of them have logged, those that were killed too."""
        files = sorted(self._directory.glob("serve-*.err"))
        return "\n".join(path.read_text() for path in files)

    def pid(self, place: int) -> int:
        """The process at a place."""
        return self._servers[place].pid

    async def kill(self, place: int) -> None:
        """SIGKILL, and start it again; back once it is ready."""
        server = self._servers[place]
        os.kill(server.pid, signal.SIGKILL)
        self.kills += 1
        assert (await server.ended()).code == -signal.SIGKILL
        self._servers[place] = await self._started(place)
        await self._servers[place].ready()

    async def _started(self, place: int) -> Server:
        server = Server(
            self._directory,
            database_url=self._urls[place],
            grpc_address=self.addresses[place],
            **self._variables,
        )
        return await self._stack.enter_async_context(server)


@asynccontextmanager
async def reaching(address: str, token: str) -> AsyncIterator[Any]:
    """A stub on a channel of its own, which finds a server that is back at once."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
        ("grpc.min_reconnect_backoff_ms", CONNECT_MS_MAX),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS_MAX),
    ]
    async with grpc.aio.insecure_channel(
        address, options=options, interceptors=[Recorder(token)]
    ) as channel:
        yield Stub(channel)


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a stream, to which no interceptor adds it."""
    return (("authorization", f"Bearer {token}"),)


async def responses(call: Any) -> AsyncIterator[pb.WatchSipTrunksResponse]:
    """What a watch delivers, kept for the search for secrets."""
    async for response in call:
        SEEN.add(response.SerializeToString())
        yield response
