"""One request at two servers at the same time, as an impatient caller's retry is.

Whichever is first does it. The other one is answered the same, or told that it is at work; never
what the first one's own effect would make of it: a stale etag, a name that is taken, nothing there.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import grpc

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.chaos.fleet import Fleet, reaching
from tests.chaos.size import sized
from tests.support import TOKEN, Gateway, PhoneNumber, refusal, update, userpass

PAIRS = sized(900, 20_000)
APART_SECONDS_MAX = 0.003
AT_ONCE = 3


class Pairs:
    """Requests that can be done once: each finds another state where it is done already."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._count = 0
        self._digits = itertools.count(1)

    async def next(self) -> tuple[str, Any]:
        """A method and a request."""
        self._count += 1
        kinds: tuple[Callable[[str], Awaitable[tuple[str, Any]]], ...] = (
            self._update,
            self._create,
            self._add,
            self._number,
            self._removed,
            self._moved,
            self._deleted,
        )
        return await kinds[self._count % len(kinds)](f"pair-{self._count}")

    async def _trunk(self, *numbers: str) -> Any:
        sent = [PhoneNumber(phone_number=n) for n in numbers]
        request = pb.CreateSipTrunkRequest(sip_trunk=userpass(), phone_numbers=sent)
        return await self._stub.CreateSipTrunk(request)

    def _unused(self) -> str:
        return f"+1555{next(self._digits):07}"

    async def _numbered(self) -> tuple[str, str]:
        trunk = await self._trunk(self._unused())
        page = await self._stub.ListPhoneNumbers(pb.ListPhoneNumbersRequest(trunk_id=trunk.id))
        return trunk.id, page.phone_numbers[0].id

    async def _update(self, request_id: str) -> tuple[str, Any]:
        trunk = await self._trunk()
        request = update(trunk.id, "description", description=request_id, etag=trunk.etag)
        request.request_id = request_id
        return "UpdateSipTrunk", request

    async def _create(self, request_id: str) -> tuple[str, Any]:
        return "CreateSipTrunk", pb.CreateSipTrunkRequest(
            sip_trunk=userpass(), request_id=request_id
        )

    async def _add(self, request_id: str) -> tuple[str, Any]:
        trunk = await self._trunk()
        return "AddGateways", pb.AddGatewaysRequest(
            trunk_id=trunk.id,
            gateways=[Gateway(gateway_address="other.example.com")],
            etag=trunk.etag,
            request_id=request_id,
        )

    async def _number(self, request_id: str) -> tuple[str, Any]:
        trunk = await self._trunk()
        return "CreatePhoneNumber", pb.CreatePhoneNumberRequest(
            trunk_id=trunk.id,
            phone_number=PhoneNumber(phone_number=self._unused()),
            request_id=request_id,
        )

    async def _removed(self, request_id: str) -> tuple[str, Any]:
        trunk_id, number_id = await self._numbered()
        return "BatchDeletePhoneNumbers", pb.BatchDeletePhoneNumbersRequest(
            trunk_id=trunk_id, ids=[number_id], request_id=request_id
        )

    async def _moved(self, request_id: str) -> tuple[str, Any]:
        trunk_id, number_id = await self._numbered()
        return "MovePhoneNumbers", pb.MovePhoneNumbersRequest(
            trunk_id=trunk_id,
            target_trunk_id=(await self._trunk()).id,
            ids=[number_id],
            request_id=request_id,
        )

    async def _deleted(self, request_id: str) -> tuple[str, Any]:
        trunk = await self._trunk()
        return "DeleteSipTrunk", pb.DeleteSipTrunkRequest(
            id=trunk.id, etag=trunk.etag, request_id=request_id
        )


async def end(call: Any) -> Any:
    """The answer, or the reason why there is none."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return refusal(error).reason


async def test_a_request_at_two_servers_at_once_is_done_once_and_answered_the_same(
    database: str, tmp_path: Path
) -> None:
    ends: Counter[str] = Counter()
    async with (
        Fleet(tmp_path, [database] * 2) as fleet,
        reaching(fleet.addresses[0], TOKEN) as one,
        reaching(fleet.addresses[1], TOKEN) as other,
    ):
        pairs = Pairs(one)

        async def twins(rng: random.Random) -> None:
            for _ in range(PAIRS // AT_ONCE):
                method, request = await pairs.next()
                first = asyncio.ensure_future(end(getattr(one, method)(request)))
                await asyncio.sleep(rng.random() * APART_SECONDS_MAX)
                found = [await end(getattr(other, method)(request)), await first]
                answers = [a for a in found if not isinstance(a, str)]
                assert answers, (method, found)
                assert all(a == answers[0] for a in answers)
                ends.update(f"{method} {a}" for a in found if isinstance(a, str))
                ends["answered twice"] += len(answers) == 2

        async with asyncio.TaskGroup() as group:
            for seed in range(AT_ONCE):
                group.create_task(twins(random.Random(seed)))
    connection = await asyncpg.connect(database)
    twice = await connection.fetch(
        "SELECT trunk_id, request_id FROM trunk_revisions WHERE request_id IS NOT NULL"
        " GROUP BY 1, 2 HAVING count(*) > 1"
    )
    await connection.close()
    assert twice == []
    print(dict(ends))
    assert ends["answered twice"]
    others = {e for e in ends if not e.endswith((" REQUEST_IN_FLIGHT", "answered twice"))}
    assert others == set(), ends
