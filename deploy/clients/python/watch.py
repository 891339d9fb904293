"""Keeps the account's trunks in memory and prints each change; goes on wherever a stream is cut.

watch.py ADDRESS
"""

# ruff: noqa: T201

import asyncio
import sys
from typing import Any

import grpc
from connection import METADATA, aio_channel, reason, retry_seconds

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from siptrunk.v1.sip_trunk_event_pb2 import SipTrunkEvent
from siptrunk.v1.sip_trunk_pb2 import SipTrunk
from siptrunk.v1.sip_trunk_service_pb2_grpc import SipTrunkServiceStub

SILENCE_SECONDS_MAX = 45.0  # the server says something every 15 s
PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.2, 10.0
NO_USE = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNIMPLEMENTED,
)


class Follower:
    """The trunks as they are, and the token of how far that is."""

    def __init__(self) -> None:
        self.trunks = dict[str, SipTrunk]()
        self.token = ""
        self.pause = PAUSE_SECONDS

    async def follow(self, stub: Any) -> None:
        """Go on for ever; ends with an error that trying again does not help."""
        while True:
            wait = 0.0
            try:
                await self.stream(stub)
            except TimeoutError:
                print("silent: go on")
            except grpc.aio.AioRpcError as error:
                if error.code() in NO_USE:
                    raise
                if error.code() == grpc.StatusCode.OUT_OF_RANGE:
                    self.token = ""  # start with the initial state again
                wait = retry_seconds(error) or 0.0
                print(f"{error.code().name} {reason(error)}: go on")
            await asyncio.sleep(max(self.pause, wait))
            self.pause = min(self.pause * 2, PAUSE_SECONDS_MAX)

    async def stream(self, stub: Any) -> None:
        """One stream, from the token on or from the initial state, until it is cut."""
        trunks = self.trunks if self.token else {}
        request = pb.WatchSipTrunksRequest(resume_token=self.token, initial_state=not self.token)
        call = stub.WatchSipTrunks(request, metadata=METADATA)
        while True:
            async with asyncio.timeout(SILENCE_SECONDS_MAX):
                response = await call.read()
            if response is grpc.aio.EOF:
                return
            self.pause = PAUSE_SECONDS
            for event in response.events:
                take(trunks, event)
            if response.resume_token:
                # What has no token yet is not complete: it is kept only once it is.
                self.trunks, self.token = trunks, response.resume_token
            if response.initial_state_complete:
                print(f"{len(trunks)} trunks")


def take(trunks: dict[str, SipTrunk], event: SipTrunkEvent) -> None:
    """Do what an event says. It may come twice, so doing it twice must be the same."""
    trunk = event.sip_trunk
    if event.kind == SipTrunkEvent.DELETED:
        trunks.pop(trunk.id, None)
    else:
        trunks[trunk.id] = trunk
    kind = SipTrunkEvent.Kind.Name(event.kind)
    print(f"{kind} {trunk.id} revision={event.revision} etag={trunk.etag}")


async def main(target: str) -> None:
    """Follow the trunks of the token's account."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    async with aio_channel(target) as connected:
        await Follower().follow(SipTrunkServiceStub(connected))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
