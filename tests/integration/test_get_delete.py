from typing import Any

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.conftest import created, read
from tests.support import IpIdentifier, ip_based, refused, update, userpass


def delete(trunk_id: str, **fields: Any) -> pb.DeleteSipTrunkRequest:
    return pb.DeleteSipTrunkRequest(id=trunk_id, **fields)


NONE = ["01ARZ3NDEKTSV4RRFFQ69G5FAV", "x" * 65, "é", "a b", "'; DROP TABLE trunks; --", "\0"]


async def test_get_gives_the_trunk_as_written(stub: Any) -> None:
    sent = ip_based(description="primary", ip_identifiers=[IpIdentifier(ip_address="2001:db8::1")])
    trunk = await created(stub, sent, "+15550100")
    assert await read(stub, trunk.id) == trunk


@pytest.mark.parametrize("trunk_id", NONE)
async def test_get_of_no_trunk_is_not_found(stub: Any, trunk_id: str) -> None:
    error = await refused(stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk_id)))
    assert (error.code, error.reason) == ("NOT_FOUND", "TRUNK_NOT_FOUND")


async def test_get_without_an_id_is_refused(stub: Any) -> None:
    error = await refused(stub.GetSipTrunk(pb.GetSipTrunkRequest()))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", {"id": "REQUIRED"})


async def test_delete_removes_the_trunk(stub: Any) -> None:
    trunk, other = await created(stub), await created(stub)
    answer = await stub.DeleteSipTrunk(delete(trunk.id))
    assert answer.phone_numbers_removed == 0
    error = await refused(stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk.id)))
    assert error.code == "NOT_FOUND"
    assert await read(stub, other.id) == other


async def test_delete_twice_is_not_found_the_second_time(stub: Any) -> None:
    trunk = await created(stub)
    await stub.DeleteSipTrunk(delete(trunk.id))
    for call in (
        stub.DeleteSipTrunk(delete(trunk.id)),
        stub.DeleteSipTrunk(delete(trunk.id, force=True, etag=trunk.etag)),
        stub.UpdateSipTrunk(update(trunk.id, "name", name="x")),
    ):
        assert (await refused(call)).code == "NOT_FOUND"


@pytest.mark.parametrize("trunk_id", NONE)
async def test_delete_of_no_trunk_is_not_found(stub: Any, trunk_id: str) -> None:
    assert (await refused(stub.DeleteSipTrunk(delete(trunk_id, force=True)))).code == "NOT_FOUND"


async def test_delete_without_an_id_is_refused(stub: Any) -> None:
    error = await refused(stub.DeleteSipTrunk(delete("", force=True)))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", {"id": "REQUIRED"})


async def test_delete_of_a_trunk_with_numbers_needs_force(stub: Any) -> None:
    trunk = await created(stub, userpass(), "+15550100", "+15550101")
    error = await refused(stub.DeleteSipTrunk(delete(trunk.id)))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "TRUNK_HAS_PHONE_NUMBERS")
    assert error.metadata == {"phoneNumberCount": "2"}
    assert await read(stub, trunk.id) == trunk


async def test_delete_with_force_removes_the_numbers_and_counts_them(stub: Any) -> None:
    trunk = await created(stub, userpass(), "+15550100", "+15550101")
    answer = await stub.DeleteSipTrunk(delete(trunk.id, force=True))
    assert answer.phone_numbers_removed == 2
    error = await refused(stub.ListPhoneNumbers(pb.ListPhoneNumbersRequest(trunk_id=trunk.id)))
    assert error.code == "NOT_FOUND"


async def test_delete_frees_the_name_and_the_numbers(stub: Any) -> None:
    trunk = await created(stub, userpass(name="Acme"), "+15550100")
    await stub.DeleteSipTrunk(delete(trunk.id, force=True))
    again = await created(stub, userpass(name="Acme"), "15550100")
    assert (again.id != trunk.id, again.phone_number_count) == (True, 1)


async def test_delete_with_a_stale_etag_is_aborted(stub: Any) -> None:
    before = await created(stub)
    current = await stub.UpdateSipTrunk(update(before.id, "name", name="moved on"))
    error = await refused(stub.DeleteSipTrunk(delete(before.id, etag=before.etag)))
    assert (error.code, error.reason) == ("ABORTED", "ETAG_MISMATCH")
    assert error.metadata == {"etag": current.etag}
    assert await read(stub, before.id) == current


async def test_delete_with_the_current_etag_is_done(stub: Any) -> None:
    trunk = await created(stub, userpass(), "+15550100")
    answer = await stub.DeleteSipTrunk(delete(trunk.id, etag=trunk.etag, force=True))
    assert answer.phone_numbers_removed == 1


async def test_delete_with_force_and_a_stale_etag_removes_nothing(stub: Any) -> None:
    trunk = await created(stub, userpass(), "+15550100")
    error = await refused(stub.DeleteSipTrunk(delete(trunk.id, etag='"1"', force=True)))
    assert error.code == "ABORTED"
    assert await read(stub, trunk.id) == trunk
