from collections.abc import Callable
from typing import Any

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.conftest import created, read
from tests.support import PhoneNumber, SipTrunk, refused, update, userpass

NEVER = "01ARZ3NDEKTSV4RRFFQ69G5FAV"

CALLS: dict[str, Callable[[Any, str, str], Any]] = {
    "get": lambda stub, trunk, _: stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk)),
    "update": lambda stub, trunk, _: stub.UpdateSipTrunk(update(trunk, "name", name="x")),
    "update of nothing": lambda stub, trunk, _: stub.UpdateSipTrunk(update(trunk)),
    "update with an etag": lambda stub, trunk, _: stub.UpdateSipTrunk(
        update(trunk, "name", name="x", etag='"1-1"')
    ),
    "update of an immutable field": lambda stub, trunk, _: stub.UpdateSipTrunk(
        update(trunk, "provider", provider="another")
    ),
    "update to a wrong value": lambda stub, trunk, _: stub.UpdateSipTrunk(
        update(trunk, "name", "transport", name="")
    ),
    "update against a stored value": lambda stub, trunk, _: stub.UpdateSipTrunk(
        update(trunk, "media_encryption", media_encryption=SipTrunk.SDES)
    ),
    "update to a taken name": lambda stub, trunk, _: stub.UpdateSipTrunk(
        update(trunk, "name", name="taken")
    ),
    "delete": lambda stub, trunk, _: stub.DeleteSipTrunk(pb.DeleteSipTrunkRequest(id=trunk)),
    "delete with force": lambda stub, trunk, _: stub.DeleteSipTrunk(
        pb.DeleteSipTrunkRequest(id=trunk, force=True)
    ),
    "delete with an etag": lambda stub, trunk, _: stub.DeleteSipTrunk(
        pb.DeleteSipTrunkRequest(id=trunk, etag='"1-1"')
    ),
    "create of a number": lambda stub, trunk, _: stub.CreatePhoneNumber(
        pb.CreatePhoneNumberRequest(
            trunk_id=trunk, phone_number=PhoneNumber(phone_number="+15550199")
        )
    ),
    "create of a taken number": lambda stub, trunk, _: stub.CreatePhoneNumber(
        pb.CreatePhoneNumberRequest(
            trunk_id=trunk, phone_number=PhoneNumber(phone_number="+15550100")
        )
    ),
    "list of numbers": lambda stub, trunk, _: stub.ListPhoneNumbers(
        pb.ListPhoneNumbersRequest(trunk_id=trunk)
    ),
    "update of a number": lambda stub, trunk, number: stub.UpdatePhoneNumber(
        pb.UpdatePhoneNumberRequest(trunk_id=trunk, phone_number=PhoneNumber(id=number, name="x"))
    ),
    "change of a number": lambda stub, trunk, number: stub.UpdatePhoneNumber(
        pb.UpdatePhoneNumberRequest(
            trunk_id=trunk, phone_number=PhoneNumber(id=number, phone_number="+15550101")
        )
    ),
    "delete of a number": lambda stub, trunk, number: stub.DeletePhoneNumber(
        pb.DeletePhoneNumberRequest(trunk_id=trunk, id=number)
    ),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
async def test_another_account_s_trunk_is_answered_as_one_that_is_not_there(
    ours: Any, theirs: Any, call: Callable[[Any, str, str], Any]
) -> None:
    await created(ours, userpass(name="taken"))
    trunk = await created(theirs, userpass(), "+15550100")
    page = await theirs.ListPhoneNumbers(pb.ListPhoneNumbersRequest(trunk_id=trunk.id))
    number = page.phone_numbers[0]
    absent = await refused(call(ours, NEVER, NEVER))
    assert await refused(call(ours, trunk.id, number.id)) == absent
    assert absent.code in ("NOT_FOUND", "INVALID_ARGUMENT")
    assert trunk.id not in absent.message
    assert "theirs" not in str(absent)
    assert await read(theirs, trunk.id) == trunk


async def test_a_number_of_another_account_can_t_be_reached_through_one_s_own_trunk(
    ours: Any, theirs: Any
) -> None:
    mine = await created(ours, userpass(), "+15550101")
    trunk = await created(theirs, userpass(), "+15550100")
    page = await theirs.ListPhoneNumbers(pb.ListPhoneNumbersRequest(trunk_id=trunk.id))
    number = page.phone_numbers[0].id
    for call in (CALLS["update of a number"], CALLS["delete of a number"]):
        absent = await refused(call(ours, mine.id, NEVER))
        assert await refused(call(ours, mine.id, number)) == absent
        assert absent.code == "NOT_FOUND"
