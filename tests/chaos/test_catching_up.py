"""A watcher that comes back late, after changes that are large: it can take what it gets."""

import asyncio
from typing import Any

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.conftest import created
from tests.support import PhoneNumber

BLOCKS = 12
NUMBERS = 1000
NAME = "n" * 100
WAIT_SECONDS = 30


async def test_a_watcher_is_caught_up_with_large_changes_in_messages_that_it_can_take(
    stub: Any,
) -> None:
    """A client takes 4 MiB in one message unless it is set up otherwise."""
    call = stub.WatchSipTrunks(pb.WatchSipTrunksRequest())
    token = (await call.read()).resume_token
    call.cancel()
    trunk = await created(stub)
    for block in range(BLOCKS):
        sent = [
            PhoneNumber(phone_number=f"+1555{block:03}{n:04}", name=NAME) for n in range(NUMBERS)
        ]
        request = pb.BatchCreatePhoneNumbersRequest(trunk_id=trunk.id, phone_numbers=sent)
        made = await stub.BatchCreatePhoneNumbers(request)
        ids = [number.id for number in made.phone_numbers]
        gone = pb.BatchDeletePhoneNumbersRequest(trunk_id=trunk.id, ids=ids)
        await stub.BatchDeletePhoneNumbers(gone)
    again = pb.WatchSipTrunksRequest(resume_token=token)
    call = stub.WatchSipTrunks(again)
    revisions = list[int]()
    async with asyncio.timeout(WAIT_SECONDS):
        while len(revisions) < 1 + 2 * BLOCKS:
            revisions += [event.revision for event in (await call.read()).events]
    call.cancel()
    assert revisions == list(range(1, 2 + 2 * BLOCKS))
