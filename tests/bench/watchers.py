"""Watchers: many streams of WatchSipTrunks in one process, and how late each event comes.

Late by the machine's clock, from the event's `changed_at` to when it is read. `changed_at` is when
the update's statement began, so the figure has the update itself in it, and its commit.
"""

import asyncio
import os
import time
from collections import Counter
from typing import Any

import grpc
import uvloop

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.bench.calls import SERVICE
from tests.bench.load import serve_jobs
from tests.bench.parts import cpu_of

STREAMS_PER_CHANNEL = 50
OPEN_SECONDS_MAX = 120
OPENING_TOGETHER = 20
BUCKET_SECONDS = 1e-4


class Watchers:
    """The streams of one process."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._channels: list[grpc.aio.Channel] = []
        self._late: Counter[int] = Counter()
        self._responses = 0
        self._cpu = 0.0

    async def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do a job: `open` a stream for each of some tokens, `read` what came since, `close`."""
        if "open" in job:
            await self._open(job)
        elif "close" in job:
            await self._close()
        late, self._late = self._late, Counter()
        responses, self._responses = self._responses, 0
        cpu, self._cpu = self._cpu, cpu_of(os.getpid())
        return {"late": late, "responses": responses, "cpu": self._cpu - cpu}

    async def _open(self, job: dict[str, Any]) -> None:
        gate = asyncio.Semaphore(OPENING_TOGETHER)
        started = []
        for number, token in enumerate(job["open"]):
            if number % STREAMS_PER_CHANNEL == 0:
                options = [("grpc.use_local_subchannel_pool", 1)]
                self._channels.append(grpc.aio.insecure_channel(job["address"], options=options))
            ready = asyncio.Event()
            started.append(ready.wait())
            stream = self._stream(self._channels[-1], token, job["all"], ready, gate)
            self._tasks.append(asyncio.create_task(stream))
        async with asyncio.timeout(OPEN_SECONDS_MAX):
            await asyncio.gather(*started)

    async def _stream(
        self,
        channel: grpc.aio.Channel,
        token: str,
        everything: bool,  # noqa: FBT001 - as the request has it
        ready: asyncio.Event,
        gate: asyncio.Semaphore,
    ) -> None:
        request = pb.WatchSipTrunksRequest(all_accounts=everything)
        method: Any = channel.unary_stream(
            SERVICE + "WatchSipTrunks",
            request_serializer=pb.WatchSipTrunksRequest.SerializeToString,
            response_deserializer=pb.WatchSipTrunksResponse.FromString,
        )
        async with gate:
            call = method(request, metadata=(("authorization", f"Bearer {token}"),))
            await call.read()
            ready.set()
        while (response := await call.read()) is not grpc.aio.EOF:
            now = time.time()
            self._responses += 1
            for event in response.events:
                at = event.changed_at
                late = now - at.seconds - at.nanos / 1e9
                self._late[round(late / BUCKET_SECONDS)] += 1

    async def _close(self) -> None:
        ended = [task for task in self._tasks if task.done()]
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if ended:
            raise RuntimeError(f"{len(ended)} watches have ended: {ended[0].exception()}")
        for channel in self._channels:
            await channel.close()
        self._tasks, self._channels = [], []


if __name__ == "__main__":
    uvloop.run(serve_jobs(Watchers().run))
