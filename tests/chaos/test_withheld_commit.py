"""A change is committed, nobody is told, the server is killed: another one answers the retry.

A link between the service and PostgreSQL sees that the change is committed and keeps that to
itself. What a caller gets is UNAVAILABLE, and for the same request at another server the answer.
"""

import asyncio
import itertools
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.chaos.fleet import bearer, reaching, responses
from tests.chaos.size import sized
from tests.chaos.withholding import Withholding, withholding
from tests.e2e.processes import SECONDS_MAX, Server
from tests.support import KEYS, TOKEN, PhoneNumber, update, userpass

ROUNDS = sized(30, 1000)
SPARES = 3
"""Servers that are started ahead."""
_numbers = itertools.count(1)


@dataclass
class Victim:
    """A server that is to be killed, and its link."""

    server: Server
    link: Withholding


@dataclass
class Made:
    """A change to be made, and what shows that it was.

    Attributes:
        method: of the service.
        request: with a request_id.
        trunk_ids: the trunks that it changes, one revision each.
        check: compares an answer with what is stored.
    """

    method: str
    request: Any
    trunk_ids: Sequence[str]
    check: Callable[[Any], Awaitable[None]]


@asynccontextmanager
async def victim_of(directory: Path, url: str) -> AsyncIterator[Victim]:
    """One server on a link of its own, ready."""
    async with withholding(url) as link:
        server = Server(
            directory, database_url=link.url, secret_keys=KEYS, database_pool_size="2",
            log_level="warning",
        )  # fmt: skip
        async with server:
            await server.ready()
            yield Victim(server, link)


class Victims:
    """Servers that are started ahead, so that a round need not wait for one."""

    def __init__(self, directory: Path, url: str) -> None:
        self._directory, self._url = directory, url
        self._ready: asyncio.Queue[tuple[Victim, asyncio.Event]] = asyncio.Queue(SPARES)

    @asynccontextmanager
    async def started(self) -> AsyncIterator[None]:
        """They are started while the block runs."""
        async with asyncio.TaskGroup() as group:
            starters = [group.create_task(self._start()) for _ in range(SPARES)]
            try:
                yield
            finally:
                for task in starters:
                    task.cancel()

    @asynccontextmanager
    async def next(self) -> AsyncIterator[Victim]:
        """One of them, gone at the end of the block."""
        async with asyncio.timeout(SECONDS_MAX):
            victim, over = await self._ready.get()
        try:
            yield victim
        finally:
            over.set()

    async def _start(self) -> None:
        while True:
            async with victim_of(self._directory, self._url) as victim:
                over = asyncio.Event()
                await self._ready.put((victim, over))
                await over.wait()


class Changes:
    """Draws changes of every kind, and prepares what they need.

    Args:
        stub: of a server that lives.
        rng: draws.
    """

    def __init__(self, stub: Any, rng: random.Random) -> None:
        self._stub, self._rng = stub, rng

    async def next(self, turn: int) -> Made:
        """The change of a turn: mostly an update."""
        others = (self._create, self._number, self._move, self._batch, self._delete)
        return await (
            self._update() if turn % 5 < 3 else others[(turn // 5 * 2 + turn % 5 - 3) % 5]()
        )

    async def trunk(self, *numbers: str) -> str:
        request = pb.CreateSipTrunkRequest(
            sip_trunk=userpass(), phone_numbers=[PhoneNumber(phone_number=n) for n in numbers]
        )
        return str((await self._stub.CreateSipTrunk(request)).id)

    async def _update(self) -> Made:
        trunk_id, n = await self.trunk(), next(_numbers)
        fields: dict[str, Any] = {"description": f"n={n}", "qualify_frequency": n % 86400}
        if self._rng.random() < 0.3:
            fields["auth_password"] = userpass().auth_password
        request = update(trunk_id, *fields, **fields)
        if self._rng.random() < 0.5:
            # A condition that does not hold any more once it is done.
            request.sip_trunk.etag = (await self._read(trunk_id)).etag
        request.request_id = f"update-{n}"

        async def check(answer: Any) -> None:
            assert answer.description == f"n={n}"
            assert answer == await self._read(trunk_id)

        return Made("UpdateSipTrunk", request, [trunk_id], check)

    async def _create(self) -> Made:
        trunk = userpass()
        request = pb.CreateSipTrunkRequest(
            sip_trunk=trunk, phone_numbers=[self._sent()], request_id=f"create-{next(_numbers)}"
        )
        made = Made("CreateSipTrunk", request, [], self._unchecked)

        async def check(answer: Any) -> None:
            assert answer.name == trunk.name
            assert answer.phone_number_count == 1
            assert answer == await self._read(answer.id)
            made.trunk_ids = [answer.id]

        made.check = check
        return made

    async def _number(self) -> Made:
        trunk_id = await self.trunk()
        request = pb.CreatePhoneNumberRequest(
            trunk_id=trunk_id, phone_number=self._sent(), request_id=f"number-{next(_numbers)}"
        )

        async def check(answer: Any) -> None:
            assert [answer] == await self._numbers(trunk_id)

        return Made("CreatePhoneNumber", request, [trunk_id], check)

    async def _move(self) -> Made:
        sent = [self._sent().phone_number for _ in range(3)]
        source, target = await self.trunk(*sent), await self.trunk()
        numbers = await self._numbers(source)
        request = pb.MovePhoneNumbersRequest(
            trunk_id=source,
            target_trunk_id=target,
            ids=[n.id for n in numbers[:2]],
            request_id=f"move-{next(_numbers)}",
        )

        async def check(answer: Any) -> None:
            assert await self._numbers(source) == numbers[2:]
            assert list(answer.phone_numbers) == await self._numbers(target)
            assert [n.id for n in answer.phone_numbers] == request.ids

        return Made("MovePhoneNumbers", request, [source, target], check)

    async def _batch(self) -> Made:
        trunk_ids, n = [await self.trunk() for _ in range(3)], next(_numbers)
        request = pb.BatchUpdateSipTrunksRequest(
            requests=[update(t, "description", description=f"n={n}") for t in trunk_ids],
            request_id=f"batch-{n}",
        )

        async def check(answer: Any) -> None:
            assert list(answer.sip_trunks) == [await self._read(t) for t in trunk_ids]
            assert {t.description for t in answer.sip_trunks} == {f"n={n}"}

        return Made("BatchUpdateSipTrunks", request, trunk_ids, check)

    async def _delete(self) -> Made:
        trunk_id = await self.trunk(self._sent().phone_number)
        request = pb.DeleteSipTrunkRequest(
            id=trunk_id, force=True, request_id=f"delete-{next(_numbers)}"
        )

        async def check(answer: Any) -> None:
            assert answer.phone_numbers_removed == 1

        return Made("DeleteSipTrunk", request, [trunk_id], check)

    async def _unchecked(self, _: Any) -> None:
        raise AssertionError("is set below")

    def _sent(self) -> PhoneNumber:
        return PhoneNumber(phone_number=f"+1555{next(_numbers):07}")

    async def _read(self, trunk_id: str) -> Any:
        return await self._stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk_id))

    async def _numbers(self, trunk_id: str) -> list[Any]:
        page = await self._stub.ListPhoneNumbers(pb.ListPhoneNumbersRequest(trunk_id=trunk_id))
        return list(page.phone_numbers)


async def lost(call: Any) -> tuple[str, str]:
    """How a call ends whose server is killed: its code, and the reason as text."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code().name, error.value.details() or ""


class Watching:
    """What a watcher is told, by the request_id that did it."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.begun = asyncio.Event()

    async def watch(self, stub: Any) -> None:
        call = stub.WatchSipTrunks(pb.WatchSipTrunksRequest(), metadata=bearer(TOKEN))
        async for response in responses(call):
            self.begun.set()
            self.events += [(e.sip_trunk.id, e.revision) for e in response.events]


async def check_once(
    connection: "asyncpg.Connection[asyncpg.Record]", made: Made
) -> list[tuple[str, int]]:
    """A request has made one revision of each of its trunks, and one place in the feed of each."""
    rows = await connection.fetch(
        "SELECT trunk_id, revision FROM trunk_revisions WHERE request_id = $1"
        " AND account_id = 'default' ORDER BY trunk_id",
        made.request.request_id,
    )
    assert [row["trunk_id"] for row in rows] == sorted(made.trunk_ids)
    for row in rows:
        newest = "SELECT max(revision) FROM trunk_revisions WHERE trunk_id = $1"
        assert await connection.fetchval(newest, row["trunk_id"]) == row["revision"]
    return [(row["trunk_id"], row["revision"]) for row in rows]


@pytest.mark.timeout(sized(120, 3600))
async def test_the_answer_to_a_committed_change_is_not_lost_with_its_server(
    database: str, tmp_path: Path
) -> None:
    """The answer is what was committed; one revision, one event, one place in the feed."""
    connection, victims = await asyncpg.connect(database), Victims(tmp_path, database)
    try:
        survivor = Server(tmp_path, database_url=database, secret_keys=KEYS, log_level="warning")
        async with (
            survivor,
            victims.started(),
            reaching(await survivor.ready(), TOKEN) as stub,
        ):
            await many_rounds(connection, stub, victims)
        revisions = await connection.fetchval("SELECT count(*) FROM trunk_revisions")
        assert await connection.fetchval("SELECT count(*) FROM feed") == revisions
    finally:
        await connection.close()


async def many_rounds(
    connection: "asyncpg.Connection[asyncpg.Record]", stub: Any, victims: Victims
) -> None:
    changes, watching, told = Changes(stub, random.Random(0)), Watching(), list[tuple[str, int]]()
    watcher = asyncio.create_task(watching.watch(stub))
    await watching.begun.wait()
    for turn in range(ROUNDS):
        made = await changes.next(turn)
        async with victims.next() as victim:
            await killed_after_commit(victim, made, stub, early=turn % 4 == 0)
        answer = await getattr(stub, made.method)(made.request)
        await made.check(answer)
        assert await getattr(stub, made.method)(made.request) == answer
        told += await check_once(connection, made)
    async with asyncio.timeout(SECONDS_MAX):
        while not set(told) <= set(watching.events):  # noqa: ASYNC110 - what has come
            await asyncio.sleep(0.05)
    assert len(watching.events) == len(set(watching.events))
    assert not watcher.done()
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)


async def killed_after_commit(victim: Victim, made: Made, stub: Any, *, early: bool) -> None:
    """Have a server make a change, and kill it once that is committed.

    Args:
        victim: the server.
        made: the change.
        stub: of another server.
        early: whether the other one is asked before the kill, too.
    """
    async with reaching(await victim.server.ready(), TOKEN) as doomed:
        call = getattr(doomed, made.method)(made.request)
        ended = asyncio.create_task(lost(call))
        committed = asyncio.create_task(victim.link.committed.wait())
        await asyncio.wait(
            (committed, ended), timeout=SECONDS_MAX, return_when=asyncio.FIRST_COMPLETED
        )
        assert committed.done(), (ended, victim.server.returncode, victim.server.err, made)
        if early:
            await made.check(await getattr(stub, made.method)(made.request))
        assert not ended.done()
        os.kill(victim.server.pid, signal.SIGKILL)
        assert (await victim.server.ended()).code == -signal.SIGKILL
        assert (await ended)[0] == "UNAVAILABLE"
