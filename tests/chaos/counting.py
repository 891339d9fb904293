"""Callers that count in fields of their own, and go on as the documents say when they are refused.

Each caller has one field of a trunk, sends its next number with a request_id, and sends the same
request again, to the other servers too, until it is answered. So afterwards the trunk has exactly
as many revisions as there were numbers, whatever happened meanwhile.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.chaos.fleet import bearer, reaching, responses
from tests.e2e.processes import SECONDS_MAX, health
from tests.integration.conftest import created
from tests.support import SipTrunk, refusal, refused, update, userpass

CALL_SECONDS = 20.0
PAUSE_SECONDS = 0.05
LOST = ("UNAVAILABLE", "DATABASE_UNAVAILABLE")
FIELDS: dict[str, Callable[[str, int], Any]] = {
    "name": lambda trunk_id, n: f"{trunk_id} {n}",
    "description": lambda _, n: f"n={n}",
    "auth_username": lambda _, n: f"user-{n}",
    "qualify_frequency": lambda _, n: n % 86400,
}


@dataclass
class Caller:
    """One caller: its trunk and field, and the number that it was answered last."""

    trunk_id: str
    field: str
    done: int = 0
    refusals: int = 0

    def request(self, n: int) -> pb.UpdateSipTrunkRequest:
        """The n-th update."""
        value = FIELDS[self.field](self.trunk_id, n)
        request = update(self.trunk_id, self.field, **{self.field: value})
        request.request_id = f"{self.trunk_id}-{self.field}-{n}"
        return request

    def check(self, trunk: SipTrunk, n: int) -> None:
        """See that a trunk has the n-th value."""
        assert getattr(trunk, self.field) == FIELDS[self.field](self.trunk_id, n)


class Load:
    """All callers of some trunks.

    Args:
        stubs: the servers, each in turn for one who was refused.

    Attributes:
        callers: those who call.
        refusals: what they were refused with, code and reason, and how often.
    """

    def __init__(self, stubs: Sequence[Any]) -> None:
        self.callers: list[Caller] = []
        self.refusals: Counter[tuple[str, str]] = Counter()
        self._stubs = stubs
        self._news = asyncio.Event()

    @property
    def done(self) -> int:
        """How many updates were acknowledged."""
        return sum(caller.done for caller in self.callers)

    async def make(self, trunks: int) -> None:
        """The trunks, with a caller for each field."""
        for _ in range(trunks):
            trunk = await created(self._stubs[0], userpass())
            self.callers += [Caller(trunk.id, field) for field in FIELDS]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Call while the block runs. What is begun is brought to its end."""
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for place, caller in enumerate(self.callers):
                group.create_task(self._call(caller, place, stop))
            try:
                yield
            finally:
                stop.set()

    async def more(self, wanted: int) -> None:
        """Wait until each caller has so many further answers."""
        least = {id(c): c.done + wanted for c in self.callers}
        await self.until(lambda: all(c.done >= least[id(c)] for c in self.callers))

    async def refused_all(self) -> None:
        """Wait until each caller is refused once more."""
        least = {id(c): c.refusals for c in self.callers}
        await self.until(lambda: all(c.refusals > least[id(c)] for c in self.callers))

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until something holds, asked after each answer."""
        async with asyncio.timeout(SECONDS_MAX):
            while not reached():
                self._news.clear()
                await self._news.wait()

    async def read(self) -> None:
        """Read every trunk, from each server."""
        for trunk_id in {caller.trunk_id for caller in self.callers}:
            for stub in self._stubs:
                await stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk_id))

    async def check(self, connection: Any) -> None:
        """See that what is stored is what was acknowledged, each once, without a gap."""
        by_trunk: dict[str, list[Caller]] = {}
        for caller in self.callers:
            by_trunk.setdefault(caller.trunk_id, []).append(caller)
        for trunk_id, callers in by_trunk.items():
            for stub in self._stubs:
                trunk = await stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk_id))
                for caller in callers:
                    caller.check(trunk, caller.done)
            rows = await connection.fetch(
                "SELECT revision FROM trunk_revisions WHERE trunk_id = $1 ORDER BY revision",
                trunk_id,
            )
            last = 1 + sum(caller.done for caller in callers)
            assert [row["revision"] for row in rows] == list(range(1, last + 1))

    async def check_retries(self, connection: Any) -> None:
        """Send each caller's last request once more, to each server: it changes nothing."""
        count = "SELECT count(*) FROM trunk_revisions"
        before = await connection.fetchval(count)
        for caller in self.callers:
            for stub in self._stubs:
                answer = await stub.UpdateSipTrunk(caller.request(caller.done))
                caller.check(answer, caller.done)
        assert await connection.fetchval(count) == before

    async def _call(self, caller: Caller, place: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            n = caller.done + 1
            request = caller.request(n)
            while True:
                stub = self._stubs[(place + caller.refusals) % len(self._stubs)]
                try:
                    answer = await stub.UpdateSipTrunk(request, timeout=CALL_SECONDS)
                except grpc.aio.AioRpcError as error:
                    found = refusal(error)
                    self.refusals[found.code, found.reason] += 1
                    caller.refusals += 1
                    self._news.set()
                    await asyncio.sleep(PAUSE_SECONDS)  # as one who was told UNAVAILABLE should
                else:
                    break
            caller.check(answer, n)
            caller.done = n
            self._news.set()


class Watcher:
    """Watches all trunks of an account, and goes on from its last token where that is possible.

    Attributes:
        seen: the revisions of each trunk, in the order in which they came.
        token: the last one.
        interruptions: what the stream ended with, before the end that has no going on.
    """

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = {}
        self.token = ""
        self.interruptions: Counter[tuple[str, str]] = Counter()

    async def follow(self, address: str, token: str, begun: asyncio.Event) -> tuple[str, str]:
        """Watch until the server says something else than UNAVAILABLE; what it says."""
        async with reaching(address, token) as stub, asyncio.timeout(SECONDS_MAX):
            while True:
                request = pb.WatchSipTrunksRequest(resume_token=self.token)
                call = stub.WatchSipTrunks(request, metadata=bearer(token))
                try:
                    async for response in responses(call):
                        self._take(response)
                        begun.set()
                except grpc.aio.AioRpcError as error:
                    found = refusal(error)
                    if found.code != "UNAVAILABLE":
                        return found.code, found.reason
                    self.interruptions[found.code, found.reason] += 1
                    await asyncio.sleep(PAUSE_SECONDS)

    def check(self) -> None:
        """See that the revisions of each trunk came without a gap, each once."""
        assert self.seen
        for revisions in self.seen.values():
            assert revisions == list(range(revisions[0], revisions[-1] + 1))

    def _take(self, response: pb.WatchSipTrunksResponse) -> None:
        for event in response.events:
            self.seen.setdefault(event.sip_trunk.id, []).append(event.revision)
        self.token = response.resume_token or self.token


@contextlib.asynccontextmanager
async def watching(
    addresses: Sequence[str], token: str
) -> AsyncIterator[list[tuple[Watcher, "asyncio.Task[tuple[str, str]]"]]]:
    """A watcher of each server, which has begun; and what its stream will end with."""
    async with asyncio.TaskGroup() as group:
        found = []
        for address in addresses:
            watcher, begun = Watcher(), asyncio.Event()
            task = group.create_task(watcher.follow(address, token, begun))
            await begun.wait()
            found.append((watcher, task))
        try:
            yield found
        finally:
            for _, task in found:
                task.cancel()


async def check_anew(address: str, token: str, old: str, load: Load) -> None:
    """A token of before can't be gone on from, and the initial state has what was acknowledged."""
    async with reaching(address, token) as stub:
        resumed = stub.WatchSipTrunks(
            pb.WatchSipTrunksRequest(resume_token=old), metadata=bearer(token)
        )
        error = await refused(resumed.read())
        assert (error.code, error.reason) == ("OUT_OF_RANGE", "RESUME_TOKEN_FOREIGN")
        request = pb.WatchSipTrunksRequest(initial_state=True)
        call = stub.WatchSipTrunks(request, metadata=bearer(token))
        state: dict[str, SipTrunk] = {}
        async for response in responses(call):
            state |= {event.sip_trunk.id: event.sip_trunk for event in response.events}
            if response.initial_state_complete:
                break
        call.cancel()
        for caller in load.callers:
            caller.check(state[caller.trunk_id], caller.done)


async def until_health(address: str, wanted: str) -> None:
    """Wait until a server says of its health what is wanted, by its own telling."""
    async with health(address) as stub, asyncio.timeout(SECONDS_MAX):
        async for response in stub.Watch(health_pb2.HealthCheckRequest()):
            if health_pb2.HealthCheckResponse.ServingStatus.Name(response.status) == wanted:
                return
    raise AssertionError("the stream has ended")
