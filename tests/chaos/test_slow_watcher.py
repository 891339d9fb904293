"""Watchers that stop reading, and watchers that leave without a word."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from siptrunk.v1 import sip_trunk_event_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.chaos.fleet import bearer
from tests.chaos.size import sized
from tests.e2e.processes import SECONDS_MAX, Server
from tests.e2e.test_memory import resident_mb
from tests.integration.conftest import created
from tests.support import (
    KEYS,
    SEEN,
    TOKEN,
    IpIdentifier,
    Refusal,
    Stub,
    connected,
    ip_based,
    refusal,
    update,
)
from trunkline.feed import EVENTS_KEPT_MAX

SipTrunkEvent = sip_trunk_event_pb2.SipTrunkEvent
TRUNKS = 100
ADDRESSES = 40
PER_SECOND = 200
CHANGES = sized(EVENTS_KEPT_MAX + 900, PER_SECOND * 60)
TOGETHER = sized(TRUNKS, PER_SECOND // 20)
PAUSE_SECONDS = sized(0.0, TOGETHER / PER_SECOND)
WINDOW_BYTES = 16 << 10
# The feed keeps at most 32 MB of rows, and beside it what has been sent of them once.
HELD_MB_MAX = 100
LEFT_MB_MAX = 40
ABANDONED = 20


@asynccontextmanager
async def watching(address: str, **fields: Any) -> AsyncIterator[Any]:
    """A watch that has begun, on a channel that takes little ahead of who reads."""
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
    ]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        request = pb.WatchSipTrunksRequest(**fields)
        call: Any = Stub(channel).WatchSipTrunks(request, metadata=bearer(TOKEN))
        first = await call.read()
        assert isinstance(first, pb.WatchSipTrunksResponse)
        yield call
        call.cancel()


class Changes:
    """Trunks, and changes of them."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._ids: list[str] = []
        self._count = 0

    @property
    def revisions(self) -> dict[str, int]:
        """The revision of each trunk as it has to be by now."""
        whole, rest = divmod(self._count, TRUNKS)
        return {t: 1 + whole + (i < rest) for i, t in enumerate(self._ids)}

    async def prepare(self) -> None:
        """Make the trunks."""
        addresses = [IpIdentifier(ip_address=f"203.0.113.{n}") for n in range(ADDRESSES)]
        for _ in range(TRUNKS):
            self._ids.append((await created(self._stub, ip_based(ip_identifiers=addresses))).id)

    async def make(self, count: int) -> None:
        """Change one trunk after the other, some of them with each call."""
        for _ in range(count // TOGETHER):
            numbers = range(self._count, self._count + TOGETHER)
            ids = [self._ids[n % TRUNKS] for n in numbers]
            request = pb.BatchUpdateSipTrunksRequest(
                requests=[
                    update(t, "description", description=f"n={n}")
                    for n, t in zip(numbers, ids, strict=True)
                ]
            )
            await self._stub.BatchUpdateSipTrunks(request)
            self._count += TOGETHER
            await asyncio.sleep(PAUSE_SECONDS)


class Follower:
    """What a watcher knows of the trunks."""

    def __init__(self) -> None:
        self.revisions: dict[str, int] = {}
        self.token = ""

    def take(self, response: Any) -> None:
        """Take a response; no change of a trunk may be missing."""
        SEEN.add(response.SerializeToString())
        self.token = response.resume_token
        for event in response.events:
            key = event.sip_trunk.id
            assert event.revision == self.revisions.get(key, event.revision - 1) + 1
            self.revisions[key] = event.revision

    async def follow(self, call: Any, until: dict[str, int]) -> None:
        """Read until the trunks are so far."""
        async with asyncio.timeout(SECONDS_MAX):
            while self.revisions != until:
                self.take(await call.read())

    async def refused(self, call: Any) -> Refusal:
        """Read until the server ends the watch; what it says."""
        try:
            async with asyncio.timeout(SECONDS_MAX):
                while True:
                    self.take(await call.read())
        except grpc.aio.AioRpcError as error:
            return refusal(error)


@asynccontextmanager
async def following(address: str, changes: Changes) -> AsyncIterator[None]:
    """A watcher that reads all the time while the block runs, and has seen all at its end."""
    follower = Follower()
    async with watching(address) as call:

        async def follow() -> None:
            while True:
                follower.take(await call.read())

        task = asyncio.create_task(follow())
        yield
        async with asyncio.timeout(SECONDS_MAX):
            while follower.revisions != changes.revisions:
                assert not task.done()
                await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def server_of(directory: Path, database: str) -> AsyncIterator[tuple[Server, str, Changes]]:
    """A server, its address, and trunks to change."""
    server = Server(directory, database_url=database, secret_keys=KEYS, log_level="info")
    async with server:
        address = await server.ready()
        async with connected(address) as stub:
            changes = Changes(stub)
            await changes.prepare()
            yield server, address, changes


def ended(server: Server) -> int:
    """How many watches the server has ended, whatever the reason."""
    return sum("/WatchSipTrunks" in line for line in server.err.splitlines())


async def until_ended(server: Server, count: int) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while ended(server) < count:
            assert server.returncode is None
            await asyncio.sleep(0.1)


async def fall_behind(address: str, changes: Changes) -> None:
    """Stop reading until the feed has moved on; be told, and go on from there."""
    slow = Follower()
    async with watching(address) as call:
        await changes.make(CHANGES)
        told = await slow.refused(call)
    assert (told.code, told.reason) == ("RESOURCE_EXHAUSTED", "WATCHER_TOO_SLOW")
    assert told.metadata["resumeToken"] == slow.token
    assert slow.revisions != changes.revisions
    async with watching(address, resume_token=slow.token) as call:
        await slow.follow(call, changes.revisions)


@pytest.mark.timeout(sized(150, 900))
async def test_a_watcher_that_stops_reading_is_let_go_and_comes_back(
    database: str, tmp_path: Path
) -> None:
    """It ends up with what one that never stopped has, who never noticed; memory returns."""
    async with server_of(tmp_path, database) as (server, address, changes):
        async with following(address, changes):
            await fall_behind(address, changes)
        await until_ended(server, 3)
        before = resident_mb(server.pid)
        async with following(address, changes):
            await fall_behind(address, changes)
            held = resident_mb(server.pid)
        await until_ended(server, 6)
        left = resident_mb(server.pid)
        print(f"{before:.0f} MB before, {held:.0f} MB while it was read, {left:.0f} MB after")
        assert left - before < LEFT_MB_MAX


@pytest.mark.timeout(sized(150, 900))
async def test_watchers_that_never_read_again_leave_nothing_when_they_are_gone(
    database: str, tmp_path: Path
) -> None:
    """Many stop reading, and then go away; the server's side of each ends, and memory returns."""
    async with server_of(tmp_path, database) as (server, address, changes):
        async with following(address, changes):
            await changes.make(CHANGES)
        await until_ended(server, 1)
        before = resident_mb(server.pid)
        async with following(address, changes):
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(ABANDONED):
                    await stack.enter_async_context(watching(address))
                await changes.make(CHANGES)
                held = resident_mb(server.pid)
                blocked = ABANDONED - (ended(server) - 1)
            await until_ended(server, 1 + ABANDONED)
        await until_ended(server, 2 + ABANDONED)
        left = resident_mb(server.pid)
        print(f"{before:.0f} MB before, {held:.0f} MB while {blocked} did not read, {left:.0f} MB")
        assert held - before < HELD_MB_MAX
        assert left - before < LEFT_MB_MAX
        async with connected(address) as stub:
            assert (await stub.ListSipTrunks(pb.ListSipTrunksRequest())).sip_trunks
