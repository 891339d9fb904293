"""Callers that keep a pace: calls begin when they are due, whether or not earlier ones are done.

A latency counts from when the call was due, so a server that stalls is charged for every call that
it kept from beginning.
"""

import asyncio
import sys
import time
from typing import Any

import grpc
import uvloop

from tests.bench.calls import KINDS, Trunks
from tests.bench.load import serve_jobs
from tests.bench.parts import cpu_of, cpu_of_family

CHANNELS = 4
CALL_SECONDS_MAX = 20


class Paced:
    """What the jobs share: the trunks, the channels."""

    def __init__(self) -> None:
        self._trunks: dict[str, Trunks] = {}
        self._channels: dict[str, list[grpc.aio.Channel]] = {}

    async def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do a job: `know` trunks under a name, or make calls of some kinds at their rates."""
        if "know" in job:
            self._trunks[job["know"]] = Trunks(job["ids"])
            return {}
        address = job["address"]
        if address not in self._channels:
            options = [("grpc.use_local_subchannel_pool", 1)]
            self._channels[address] = [
                grpc.aio.insecure_channel(address, options=options) for _ in range(CHANNELS)
            ]
        before = cpu_of(job["server"]), cpu_of_family(job["postgres"])
        started = time.perf_counter()
        kinds = await asyncio.gather(*(self._kind(job, each) for each in job["kinds"]))
        seconds = time.perf_counter() - started
        return {
            "seconds": seconds,
            "server": cpu_of(job["server"]) - before[0],
            "postgres": cpu_of_family(job["postgres"]) - before[1],
            "kinds": {
                each["kind"]: {"latencies": found, "due": due, "errors": errors}
                for each, (found, due, errors) in zip(job["kinds"], kinds, strict=True)
            },
        }

    async def _kind(
        self, job: dict[str, Any], each: dict[str, Any]
    ) -> tuple[list[int], list[float], int]:
        method, make = KINDS[each["kind"]]
        channels = self._channels[job["address"]]
        bound: list[Any] = [channel.unary_unary(method) for channel in channels]
        trunks, tokens = self._trunks[each["trunks"]], each["tokens"]
        count, errors = round(each["rate"] * job["seconds"]), 0
        latencies, dues = list[int](), list[float]()
        requests = make(trunks, count)
        places = trunks.places() if len(tokens) > 1 else [0] * count
        trunks.unsent(0)
        begin = time.perf_counter()

        async def call(number: int, due: float) -> None:
            nonlocal errors
            metadata = (("authorization", f"Bearer {tokens[places[number]]}"),)
            try:
                await bound[number % CHANNELS](
                    requests[number], metadata=metadata, timeout=CALL_SECONDS_MAX
                )
            except grpc.aio.AioRpcError as error:
                errors += 1
                print(error.code(), error.details(), file=sys.stderr)
            latencies.append(round((time.perf_counter() - due) * 1e6))
            dues.append(due)

        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                due = begin + number / each["rate"]
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                tasks.create_task(call(number, due))
        return latencies, dues, errors


if __name__ == "__main__":
    uvloop.run(serve_jobs(Paced().run))
