"""Servers on one database that are restarted one by one, as a deployment does it."""

import asyncio
import contextlib
from pathlib import Path
from typing import Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.processes import SECONDS_MAX, Done, Server, events, free_address
from tests.support import KEYS

UPDATE = "/siptrunk.v1.SipTrunkService/UpdateSipTrunk"
POLL_SECONDS = 0.05
ROLLED_BACK = "Resetting connection with an active transaction"
"""What asyncpg says as it takes back what a call that was cancelled had begun."""


class Rolling:
    """The servers, at addresses that stay.

    Args:
        directory: takes their output.
        url: of the database.
        count: how many there are.
        variables: settings of all.

    Attributes:
        variables: the settings that the next one starts with.
        servers: those that run, by place.
        ended: those that have ended.
    """

    def __init__(self, directory: Path, url: str, count: int = 2, /, **variables: str) -> None:
        self.grpc = [free_address() for _ in range(count)]
        self.http = [free_address() for _ in range(count)]
        self.metrics = [free_address() for _ in range(count)]
        defaults = {"database_url": url, "secret_keys": KEYS, "log_level": "info"}
        self.variables = defaults | variables
        self.servers: list[Server] = []
        self.ended: list[Done] = []
        self._directory = directory
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        for place in range(len(self.grpc)):
            self.servers.append(await self._started(place))
        await asyncio.gather(*(server.ready() for server in self.servers))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.__aexit__(None, None, None)

    async def restart(self, place: int, **changes: str) -> None:
        """SIGTERM, wait for the end, start again with other settings; back once it is ready."""
        self.variables |= changes
        done = await self.servers[place].stop()
        assert done.code == 0, done.err
        assert faults(done.err) == []
        self.ended.append(done)
        self.servers[place] = await self._started(place)
        await self.servers[place].ready()

    async def found(self, place: int, callers: int) -> None:
        """Wait until so many gRPC callers have had an update answered by a server."""
        server = self.servers[place]
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                lines = events(server.err, "call", method=UPDATE, code="OK")
                peers = {line["peer"] for line in lines if line["peer"].startswith("ipv4:")}
                if len(peers) >= callers:
                    return
                await asyncio.sleep(POLL_SECONDS)

    async def _started(self, place: int) -> Server:
        addresses = {
            "grpc_address": self.grpc[place],
            "http_address": self.http[place],
            "metrics_address": self.metrics[place],
        }
        server = Server(self._directory, **addresses | self.variables)
        return await self._stack.enter_async_context(server)


async def measured(address: str, name: str, *labels: str) -> float:
    """What a server counts under a name: the sum of what has these values of labels."""
    async with httpx.AsyncClient(trust_env=False, timeout=SECONDS_MAX) as http:
        text = (await http.get(f"http://{address}/metrics")).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and set(labels) <= set(sample.labels.values())
    )


async def until(address: str, wanted: float, name: str, *labels: str) -> None:
    """Wait until a server counts so much."""
    async with asyncio.timeout(SECONDS_MAX):
        while await measured(address, name, *labels) != wanted:  # noqa: ASYNC110 - a page
            await asyncio.sleep(POLL_SECONDS)


def faults(log: str) -> list[str]:
    """The lines of a log that tell of a fault of the server's own."""
    return [
        line
        for line in log.splitlines()
        if ('"level": "error"' in line or "Traceback" in line) and ROLLED_BACK not in line
    ]
