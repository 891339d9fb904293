"""SIGKILL, of the service and of its PostgreSQL, while callers update.

Every update derives several fields from one number, so that a state between two updates shows.
"""

import asyncio
import itertools
import math
import os
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest

from siptrunk.v1 import sip_trunk_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.e2e.processes import SECONDS_MAX, Server, database_url, postgres_pids, status
from tests.support import Gateway, connected, refused, update, userpass

KILLS = 20
TRUNKS = 4
CALLERS_PER_TRUNK = 2
ACKNOWLEDGED_MIN = 300
ACKNOWLEDGED_SPREAD = 100
CALL_SECONDS = 20.0
PATHS = ("name", "description", "auth_username", "qualify_frequency", "gateways")

_clock = itertools.count(1)


def fields(position: int, n: int) -> dict[str, Any]:
    """What the n-th update of a trunk sets; all of it follows from n."""
    return {
        "name": f"Trunk {position} {n}",
        "description": f"n={n}",
        "auth_username": f"user-{n}",
        "qualify_frequency": n % 86400,
        "gateways": [
            Gateway(gateway_address=f"gw-{n}-{i}.example.com", port=1 + n % 65535, priority=i)
            for i in range(1 + n % 3)
        ],
    }


@dataclass
class Attempt:
    """One update: when it was sent and when it was answered, by a clock that only counts."""

    sent: int
    answered: float = math.inf
    acknowledged: bool = False


@dataclass
class Trunk:
    """A trunk and all that was asked of it."""

    position: int
    id: str
    attempts: dict[int, Attempt] = field(default_factory=dict)

    def next(self) -> int:
        """The number of the next update, noted as sent."""
        n = len(self.attempts)
        self.attempts[n] = Attempt(next(_clock))
        return n

    def acknowledge(self, n: int) -> None:
        """An update was answered with OK."""
        attempt = self.attempts[n]
        attempt.answered, attempt.acknowledged = next(_clock), True

    def seen(self, trunk: sip_trunk_pb2.SipTrunk) -> int:
        """Which update a state is; it is that one wholly."""
        assert trunk.description.startswith("n=")
        n = int(trunk.description.removeprefix("n="))
        assert n in self.attempts
        whole = fields(self.position, n)
        assert {name: getattr(trunk, name) for name in PATHS[:4]} == {
            k: whole[k] for k in PATHS[:4]
        }
        found = [
            Gateway(gateway_address=g.gateway_address, port=g.port, priority=g.priority)
            for g in trunk.gateways
        ]
        assert found == whole["gateways"]
        return n

    def check(self, trunk: sip_trunk_pb2.SipTrunk, revision: int) -> None:
        """After a crash: the state is no older than any acknowledged update, and none is missing.

        An update that was answered before an acknowledged one was sent can't be the last.
        """
        last = self.attempts[self.seen(trunk)]
        acknowledged = [a for a in self.attempts.values() if a.acknowledged]
        assert max(a.sent for a in acknowledged) < last.answered
        # Each update that was done has moved the revision by one; the first attempt is the create.
        assert len(acknowledged) <= revision <= len(self.attempts)


class Load:
    """Callers that update without a pause until told to stop.

    Args:
        trunks: what they update.
        allowed: the codes, besides OK, that they may be given.
    """

    def __init__(self, trunks: list[Trunk], *allowed: str) -> None:
        self.trunks = trunks
        self.allowed = {"OK", *allowed}
        self.acknowledged = 0
        self.codes: dict[str, int] = {}
        self._wanted = math.inf
        self._reached = asyncio.Event()

    async def more(self, wanted: int) -> None:
        """Wait until so many further updates are acknowledged."""
        self._reached.clear()
        self._wanted = self.acknowledged + wanted
        async with asyncio.timeout(SECONDS_MAX):
            await self._reached.wait()

    async def call(self, stub: Any, trunk: Trunk, *, go_on: Callable[[], bool]) -> None:
        """One caller. What is answered is the caller's own update, whole."""
        while go_on():
            n = trunk.next()
            request = update(trunk.id, *PATHS, **fields(trunk.position, n))
            try:
                answer = await stub.UpdateSipTrunk(request, timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                self._count(error.code().name)
                await asyncio.sleep(0.05)  # as a caller that was told UNAVAILABLE should
                continue
            assert trunk.seen(answer) == n
            trunk.acknowledge(n)
            self._count("OK")
            self.acknowledged += 1
            if self.acknowledged >= self._wanted:
                self._reached.set()

    async def read(self, stub: Any, *, go_on: Callable[[], bool]) -> None:
        """A reader: no state that it sees is between two updates."""
        by_id = {trunk.id: trunk for trunk in self.trunks}
        while go_on():
            try:
                page = await stub.ListSipTrunks(pb.ListSipTrunksRequest(), timeout=CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                self._count(error.code().name)
            else:
                assert len(page.sip_trunks) == len(by_id)
                for trunk in page.sip_trunks:
                    by_id[trunk.id].seen(trunk)
            await asyncio.sleep(0.1)  # now and then; the writers are the load

    @asynccontextmanager
    async def running(self, address: str) -> AsyncIterator[None]:
        """All callers, each on a channel of its own, while the block runs."""
        going = True
        async with asyncio.TaskGroup() as group:
            for trunk in [*self.trunks * CALLERS_PER_TRUNK, None]:
                group.create_task(self._one(address, trunk, lambda: going))
            try:
                yield
            finally:
                going = False

    async def _one(self, address: str, trunk: Trunk | None, go_on: Callable[[], bool]) -> None:
        async with connected(address) as stub:
            if trunk is None:
                await self.read(stub, go_on=go_on)
            else:
                await self.call(stub, trunk, go_on=go_on)

    def _count(self, code: str) -> None:
        assert code in self.allowed
        self.codes[code] = self.codes.get(code, 0) + 1


async def made(stub: Any) -> list[Trunk]:
    trunks = []
    for position in range(TRUNKS):
        sent = userpass(**fields(position, 0))
        created = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=sent))
        trunk = Trunk(position, created.id)
        trunk.acknowledge(trunk.next())
        trunks.append(trunk)
    return trunks


async def check_all(server: Server, stub: Any, trunks: list[Trunk]) -> None:
    """Read everything back, through the service and beside it."""
    connection = await asyncpg.connect(database_url(server.data))
    try:
        rows = await connection.fetch("SELECT id, revision FROM trunks")
    finally:
        await connection.close()
    revisions = {row["id"]: row["revision"] for row in rows}
    for trunk in trunks:
        found = await stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk.id))
        trunk.check(found, revisions[trunk.id])


def postmaster(server: Server) -> int | None:
    """The process to kill, by the file that PostgreSQL keeps of itself."""
    try:
        return int((server.data / "pg" / "postmaster.pid").read_text().split()[0])
    except (OSError, IndexError):
        return None


def some() -> int:
    """A number of updates between kills."""
    return ACKNOWLEDGED_MIN + random.randrange(ACKNOWLEDGED_SPREAD)


@pytest.mark.timeout(600)
async def test_no_acknowledged_update_is_lost_when_the_service_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the service under load, again and again on one data directory.

    Callers may see UNAVAILABLE alone. Afterwards each trunk is in the state of one update: of the
    last one acknowledged, or of one that was under way.
    """
    async with Server(tmp_path, log_level="warning") as server:
        async with connected(await server.ready()) as stub:
            load = Load(await made(stub), "UNAVAILABLE")
        assert (await server.stop()).code == 0
    for _ in range(KILLS):
        async with Server(tmp_path, log_level="warning") as server:
            address = await server.ready()
            async with connected(address) as stub:
                await check_all(server, stub, load.trunks)
            async with load.running(address):
                await load.more(some())
                os.kill(server.pid, signal.SIGKILL)
                assert (await server.ended()).code == -signal.SIGKILL
    async with Server(tmp_path, log_level="warning") as server:
        async with connected(await server.ready()) as stub:
            await check_all(server, stub, load.trunks)
        assert (await server.stop()).code == 0
        assert postgres_pids(server.data) == []
    assert load.codes["UNAVAILABLE"]
    assert load.codes["OK"] >= KILLS * ACKNOWLEDGED_MIN


@pytest.mark.timeout(600)
async def test_no_acknowledged_update_is_lost_when_postgresql_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the embedded PostgreSQL under load, again and again under one service.

    Callers may see UNAVAILABLE, and DEADLINE_EXCEEDED. The service starts it again by itself and
    is ready again.
    """
    async with Server(tmp_path, log_level="warning") as server:
        address = await server.ready()
        async with connected(address) as stub:
            load = Load(await made(stub), "UNAVAILABLE", "DEADLINE_EXCEEDED")
            for _ in range(KILLS):
                async with load.running(address):
                    await load.more(some())
                    killed = postmaster(server)
                    assert killed is not None
                    os.kill(killed, signal.SIGKILL)
                    async with asyncio.timeout(SECONDS_MAX):
                        while postmaster(server) in (killed, None):  # noqa: ASYNC110 - a file
                            await asyncio.sleep(0.05)
                    await load.more(TRUNKS * CALLERS_PER_TRUNK)
                await check_all(server, stub, load.trunks)
            async with asyncio.timeout(SECONDS_MAX):
                while await status(address) != "SERVING":  # noqa: ASYNC110 - asked as a probe asks
                    await asyncio.sleep(0.1)
            unknown = await refused(stub.GetSipTrunk(pb.GetSipTrunkRequest(id="none")))
            assert unknown.code == "NOT_FOUND"
        done = await server.stop()
        assert done.code == 0
        assert "Traceback" not in done.err
        assert postgres_pids(server.data) == []
    assert load.codes["UNAVAILABLE"]
    assert load.codes["OK"] >= KILLS * ACKNOWLEDGED_MIN
