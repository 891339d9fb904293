"""A trunk with 20,000 numbers: what does not ask for numbers never touches them."""

from typing import Any

import asyncpg

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.integration.conftest import created, read
from tests.integration.link import linked
from tests.integration.watching import watching
from tests.support import PhoneNumber, connected, update

NUMBERS = 20_000
BATCH = 1000
MESSAGE_BYTES_MAX = 16 << 10
"""Far below the 4 MB that a client takes unless told otherwise."""


async def fill(stub: Any, trunk_id: str) -> None:
    for first in range(0, NUMBERS, BATCH):
        request = pb.BatchCreatePhoneNumbersRequest(
            trunk_id=trunk_id,
            phone_numbers=[
                PhoneNumber(phone_number=f"+1555{number:07}")
                for number in range(first, first + BATCH)
            ],
        )
        await stub.BatchCreatePhoneNumbers(request)


async def test_trunk_with_many_numbers_is_handled_as_one_with_none(database: str) -> None:
    async with (
        linked(database) as link,
        running(link.url) as service,
        connected(service.grpc_address) as stub,
    ):
        trunk, target = await created(stub), await created(stub)
        async with watching(stub) as watcher:
            await fill(stub, trunk.id)
            deltas = await watcher.has(NUMBERS // BATCH)
            assert [len(e.phone_numbers.added) for e in deltas] == [BATCH] * len(deltas)
            assert max(r.ByteSize() for r in watcher.responses) < 1 << 20
        link.statements.clear()
        async with watching(stub, initial_state=True) as watcher:
            await watcher.until(lambda w: w.responses[-1].initial_state_complete)
            for name in ("is_active", "description"):
                fields: dict[str, Any] = {"is_active": False, "description": "x"}
                answer = await stub.UpdateSipTrunk(update(trunk.id, name, **{name: fields[name]}))
                assert answer.ByteSize() < MESSAGE_BYTES_MAX
            await watcher.has(4)
            assert max(r.ByteSize() for r in watcher.responses) < MESSAGE_BYTES_MAX
        found = await read(stub, trunk.id)
        assert found.phone_number_count == NUMBERS
        page = await stub.ListSipTrunks(pb.ListSipTrunksRequest())
        assert page.ByteSize() < MESSAGE_BYTES_MAX
        history = pb.ListSipTrunkRevisionsRequest(trunk_id=trunk.id, page_size=2)
        assert (await stub.ListSipTrunkRevisions(history)).ByteSize() < MESSAGE_BYTES_MAX
        assert link.asked("trunks") >= 5
        assert link.asked("phone_numbers") == 0
        numbers = await stub.ListPhoneNumbers(
            pb.ListPhoneNumbersRequest(trunk_id=trunk.id, page_size=1000)
        )
        move = pb.MovePhoneNumbersRequest(
            trunk_id=trunk.id,
            target_trunk_id=target.id,
            ids=[number.id for number in numbers.phone_numbers],
        )
        await stub.MovePhoneNumbers(move)
        assert (await read(stub, target.id)).phone_number_count == 1000
        async with watching(stub) as watcher:
            gone = await stub.DeleteSipTrunk(pb.DeleteSipTrunkRequest(id=trunk.id, force=True))
            assert gone.phone_numbers_removed == NUMBERS - 1000
            await watcher.has(1)
            assert max(r.ByteSize() for r in watcher.responses) < MESSAGE_BYTES_MAX
    connection = await asyncpg.connect(database)
    assert await connection.fetchval("SELECT count(*) FROM phone_numbers") == 1000
    await connection.close()
