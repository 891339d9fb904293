"""Changes that are made while a watcher reads the initial state, and how they are told."""

import asyncio
import itertools
from typing import Any

import grpc

from siptrunk.v1 import sip_trunk_event_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.chaos.fleet import bearer
from tests.integration.conftest import created
from tests.support import TOKEN, Stub, connected, ip_based, update

SipTrunkEvent = sip_trunk_event_pb2.SipTrunkEvent
TRUNKS = 150
CHANGES_BEFORE = 400
CHANGES_MAX = 5000
READ_SECONDS = 0.02
WAIT_SECONDS = 60
LAST = 100
WINDOW_BYTES = 16 << 10


def slow_channel(address: str) -> grpc.aio.Channel:
    """A channel that takes little ahead of who reads, so that a server has to wait for them."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    ]
    return grpc.aio.insecure_channel(address, options=options)


async def test_changes_during_the_initial_state_are_all_told(service: str) -> None:
    """Revisions of each trunk come one after the other, from the one shown first to the last."""
    going, counter = True, itertools.count(1)
    async with connected(service) as stub:
        trunks = [await created(stub, ip_based()) for _ in range(TRUNKS)]
        newest = {trunk.id: 1 for trunk in trunks}

        async def change() -> None:
            n = next(counter)
            trunk = trunks[n % TRUNKS]
            await stub.UpdateSipTrunk(update(trunk.id, "description", description=f"n={n} " * 40))
            newest[trunk.id] += 1

        async def changing() -> None:
            for _ in range(CHANGES_MAX):
                if not going:
                    return
                await change()

        async with slow_channel(service) as channel:
            request = pb.WatchSipTrunksRequest(initial_state=True)
            call: Any = Stub(channel).WatchSipTrunks(request, metadata=bearer(TOKEN))
            await call.read()
            for _ in range(CHANGES_BEFORE):
                await change()
            writer = asyncio.create_task(changing())
            seen, missing, complete = dict[str, int](), list[Any](), False
            async with asyncio.timeout(WAIT_SECONDS):
                # The last change is the one of the last trunk.
                while seen.get(trunks[-1].id) != LAST:
                    response = await call.read()
                    if response.initial_state_complete:
                        complete, going = True, False
                        await writer
                        await last(stub, trunks[-1].id, newest)
                    for event in response.events:
                        key = event.sip_trunk.id
                        if event.kind != SipTrunkEvent.INITIAL and event.revision != seen[key] + 1:
                            missing.append((key, seen[key], event.revision, complete))
                        seen[key] = event.revision
                    await asyncio.sleep(0 if complete else READ_SECONDS)
            call.cancel()
    assert missing == []
    assert seen == newest


async def last(stub: Any, trunk_id: str, newest: dict[str, int]) -> None:
    """Change a trunk until it has a revision that no other one has."""
    while newest[trunk_id] < LAST:
        await stub.UpdateSipTrunk(
            update(trunk_id, "qualify_frequency", qualify_frequency=newest[trunk_id])
        )
        newest[trunk_id] += 1
