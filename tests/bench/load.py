"""A load generator: reads jobs as lines of JSON, makes their calls, says how they went.

It sends requests that are bytes already and leaves answers as bytes, so that its own CPU, which
the server under test shares a machine with, stays small.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import grpc
import uvloop

from tests.bench.calls import KINDS, Trunks
from tests.bench.parts import cpu_of, cpu_of_family

CALLERS_PER_CHANNEL = 16
CALLS_PER_SECOND_MAX = 6000
CALL_SECONDS_MAX = 20
Call = Callable[[bytes], Awaitable[bool]]
T = TypeVar("T")


class Load:
    """What the jobs share: the trunks, the channels."""

    def __init__(self) -> None:
        self._trunks: dict[str, Trunks] = {}
        self._channels: dict[tuple[str, int], grpc.aio.Channel] = {}
        self._streams: dict[tuple[str, int], tuple[Any, Any]] = {}

    async def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do a job: `know` trunks under a name, or make calls of a kind for some seconds."""
        if "know" in job:
            self._trunks[job["know"]] = Trunks(job["ids"])
            return {}
        method, make = KINDS[job["kind"]]
        count = int(job["seconds"] * CALLS_PER_SECOND_MAX * min(1.0, job["callers"] / 4))
        trunks = self._trunks[job["trunks"]]
        requests = make(trunks, job.get("count", count))
        callers = [await self._caller(job, method, i) for i in range(job["callers"])]
        if method == "HTTP":
            requests = [r.replace(b"{token}", job["token"].encode()) for r in requests]
        rest = iter(requests)
        found = await measured(job, callers, rest)
        trunks.unsent(sum(1 for _ in rest))
        return found

    async def _caller(self, job: dict[str, Any], method: str, number: int) -> Call:
        if method == "HTTP":
            return await self._http_caller(job["address"], number)
        key = (job["address"], number // CALLERS_PER_CHANNEL)
        if key not in self._channels:
            options = [("grpc.use_local_subchannel_pool", 1)]
            self._channels[key] = grpc.aio.insecure_channel(key[0], options=options)
        bound: Any = self._channels[key].unary_unary(method)
        metadata = (("authorization", f"Bearer {job['token']}"),)

        async def call(request: bytes) -> bool:
            try:
                await bound(request, metadata=metadata, timeout=CALL_SECONDS_MAX)
            except grpc.aio.AioRpcError as error:
                print(error.code(), error.details(), file=sys.stderr)
                return False
            return True

        return call

    async def _http_caller(self, address: str, number: int) -> Call:
        if (address, number) not in self._streams:
            host, _, port = address.rpartition(":")
            self._streams[address, number] = await asyncio.open_connection(host, int(port))
        reader, writer = self._streams[address, number]

        async def call(request: bytes) -> bool:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            if not head.startswith(b"HTTP/1.1 200"):
                print(head, body, file=sys.stderr)
                return False
            return True

        return call


async def measured(
    job: dict[str, Any], callers: list[Callable[[T], Awaitable[bool]]], requests: Iterator[T]
) -> dict[str, Any]:
    """Every caller makes one call after the other until the time is over."""
    latencies = list[int]()
    errors = 0
    before = _cpu(job)
    started = time.perf_counter()
    end = started + job["seconds"]

    async def work(call: Callable[[T], Awaitable[bool]]) -> None:
        nonlocal errors
        now = time.perf_counter()
        while now < end and (request := next(requests, None)) is not None:
            fine = await call(request)
            done = time.perf_counter()
            latencies.append(round((done - now) * 1e6))
            errors += not fine
            now = done

    await asyncio.gather(*(work(call) for call in callers))
    ended = time.perf_counter()
    used = {name: after - before[name] for name, after in _cpu(job).items()}
    return {
        "started": started,  # by a clock that all processes share
        "seconds": ended - started,
        "errors": errors,
        "latencies": latencies,
        "cpu": used,
    }


def _cpu(job: dict[str, Any]) -> dict[str, float]:
    found = {name: cpu_of(pid) for name, pid in job["pids"].items()}
    return found | {
        "postgres": cpu_of_family(job["postgres"]),
        "load": cpu_of(os.getpid()),
    }


async def serve_jobs(run: Callable[[dict[str, Any]], Awaitable[Any]]) -> None:
    """Answer a line with a line until there are no more."""
    print("load ready", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await run(json.loads(line))), flush=True)


if __name__ == "__main__":
    uvloop.run(serve_jobs(Load().run))
