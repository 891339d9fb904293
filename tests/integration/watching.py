"""A watcher as tests need one: reads a stream in the background, and waits for what must come."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from siptrunk.v1 import sip_trunk_event_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.support import Refusal, refusal

SipTrunkEvent = sip_trunk_event_pb2.SipTrunkEvent
SECONDS_MAX = 30
INITIAL, CREATED = SipTrunkEvent.INITIAL, SipTrunkEvent.CREATED
UPDATED, DELETED = SipTrunkEvent.UPDATED, SipTrunkEvent.DELETED


class Watcher:
    """What a stream has said so far."""

    def __init__(self) -> None:
        self.responses: list[pb.WatchSipTrunksResponse] = []
        self.error: Refusal | None = None
        self._more = asyncio.Event()

    @property
    def events(self) -> list[sip_trunk_event_pb2.SipTrunkEvent]:
        """All events, in order."""
        return [event for response in self.responses for event in response.events]

    @property
    def revisions(self) -> list[tuple[str, int]]:
        """The trunk's id and the revision of each event."""
        return [(event.sip_trunk.id, event.revision) for event in self.events]

    @property
    def token(self) -> str:
        """The last token."""
        return self.responses[-1].resume_token

    async def until(self, holds: Callable[["Watcher"], bool]) -> None:
        """Wait until something holds of what was said."""
        async with asyncio.timeout(SECONDS_MAX):
            while not holds(self):
                assert self.error is None, self.error
                self._more.clear()
                await self._more.wait()

    async def has(self, count: int) -> list[sip_trunk_event_pb2.SipTrunkEvent]:
        """Wait for so many events, and see that there are not more."""
        await self.until(lambda w: len(w.events) >= count)
        assert len(self.events) == count
        return self.events

    async def ended(self) -> Refusal:
        """Wait for the stream's end; its error."""
        async with asyncio.timeout(SECONDS_MAX):
            while self.error is None:
                self._more.clear()
                await self._more.wait()
        return self.error

    async def read(self, call: Any) -> None:
        """Read to the end."""
        try:
            async for response in call:
                self.responses.append(response)
                self._more.set()
        except grpc.aio.AioRpcError as error:
            self.error = refusal(error)
        self._more.set()


@asynccontextmanager
async def watching(stub: Any, **fields: Any) -> AsyncIterator[Watcher]:
    """A watcher for the length of a block, which begins once the watch has."""
    watcher = Watcher()
    task = asyncio.create_task(
        watcher.read(stub.WatchSipTrunks(pb.WatchSipTrunksRequest(**fields)))
    )
    try:
        await watcher.until(lambda w: bool(w.responses))
        yield watcher
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
