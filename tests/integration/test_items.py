"""Edits of one item of a list: the others stay, the rules look at the whole list."""

import asyncio
from typing import Any

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.conftest import created, read
from tests.support import Gateway, IpIdentifier, SipTrunk, ip_based, refused, update, userpass

CALLERS = 8


def gateways(*addresses: str, **fields: Any) -> list[Any]:
    return [Gateway(gateway_address=address, **fields) for address in addresses]


def addresses(*texts: str) -> list[Any]:
    return [IpIdentifier(ip_address=text) for text in texts]


async def add(stub: Any, trunk_id: str, *items: Any, **fields: Any) -> SipTrunk:
    if isinstance(items[0], IpIdentifier):
        trunk = await stub.AddIpIdentifiers(
            pb.AddIpIdentifiersRequest(trunk_id=trunk_id, ip_identifiers=items, **fields)
        )
    else:
        trunk = await stub.AddGateways(
            pb.AddGatewaysRequest(trunk_id=trunk_id, gateways=items, **fields)
        )
    assert isinstance(trunk, SipTrunk)
    return trunk


async def remove_gateways(stub: Any, trunk_id: str, *ids: str, **fields: Any) -> Any:
    request = pb.RemoveGatewaysRequest(trunk_id=trunk_id, gateway_ids=ids, **fields)
    return await stub.RemoveGateways(request)


async def remove_addresses(stub: Any, trunk_id: str, *texts: str, **fields: Any) -> Any:
    request = pb.RemoveIpIdentifiersRequest(trunk_id=trunk_id, ip_addresses=texts, **fields)
    return await stub.RemoveIpIdentifiers(request)


async def test_gateways_that_are_added_come_after_their_equals_and_touch_no_other(
    stub: Any,
) -> None:
    sent = [*gateways("a.example.com", priority=5), *gateways("b.example.com")]
    trunk = await created(stub, ip_based(gateways=sent))
    after = await add(stub, trunk.id, *gateways("C.example.com."), *gateways("192.0.2.9", port=1))
    names = [g.gateway_address for g in after.gateways]
    assert names == ["b.example.com", "c.example.com", "192.0.2.9", "a.example.com"]
    kept = {g.gateway_address: g for g in trunk.gateways}
    assert [g for g in after.gateways if g.gateway_address in kept] == list(trunk.gateways)
    assert after.gateways[2].port == 1
    assert await read(stub, trunk.id) == after


async def test_gateway_that_is_there_stays_but_takes_the_priority_sent(stub: Any) -> None:
    trunk = await created(stub, ip_based(gateways=gateways("a.example.com", priority=5)))
    assert await add(stub, trunk.id, *gateways("A.example.com")) == trunk
    assert await add(stub, trunk.id, *gateways("a.example.com", priority=5)) == trunk
    moved = await add(stub, trunk.id, *gateways("a.example.com", priority=6))
    assert moved.gateways[0].priority == 6
    assert moved.gateways[0].id == trunk.gateways[0].id
    other = await add(stub, trunk.id, *gateways("a.example.com", port=5060))
    assert len(other.gateways) == 2


async def test_gateways_are_removed_by_id_and_the_last_one_stays(stub: Any) -> None:
    trunk = await created(stub, ip_based(gateways=gateways("a.example.com", "b.example.com")))
    first, second = trunk.gateways
    after = await remove_gateways(stub, trunk.id, first.id, "unknown")
    assert list(after.gateways) == [second]
    assert await remove_gateways(stub, trunk.id, first.id) == after
    error = await refused(remove_gateways(stub, trunk.id, second.id))
    assert error.violations == {"gateways": "TOO_FEW"}
    assert await read(stub, trunk.id) == after


async def test_addresses_are_added_and_removed_in_any_form(stub: Any) -> None:
    trunk = await created(stub)
    after = await add(stub, trunk.id, *addresses("192.0.2.1", "2001:DB8::1", "198.51.100.0/24"))
    stored = [i.ip_address for i in after.ip_identifiers]
    assert stored == ["192.0.2.1", "2001:db8::1", "198.51.100.0/24"]
    assert await add(stub, trunk.id, *addresses("192.0.2.1/32")) == after
    less = await remove_addresses(stub, trunk.id, "::ffff:192.0.2.1", "2001:db8:0::1", "10.0.0.1")
    assert [i.ip_address for i in less.ip_identifiers] == ["198.51.100.0/24"]
    assert not (await remove_addresses(stub, trunk.id, "198.51.100.0/24")).ip_identifiers


async def test_last_address_of_an_ip_based_trunk_stays(stub: Any) -> None:
    trunk = await created(stub, ip_based(ip_identifiers=addresses("192.0.2.1")))
    error = await refused(remove_addresses(stub, trunk.id, "192.0.2.1"))
    assert error.violations == {"ip_identifiers": "TOO_FEW"}


async def test_every_violation_is_named_as_sent(stub: Any) -> None:
    trunk = await created(stub)
    bad = [*gateways("sip:a", port=0), *gateways("b.example.com"), *gateways("b.example.com")]
    error = await refused(add(stub, trunk.id, *bad))
    assert error.violations == {
        "gateways[0].gateway_address": "INVALID_FORM",
        "gateways[0].port": "OUT_OF_RANGE",
        "gateways[2]": "DUPLICATE",
    }
    error = await refused(add(stub, trunk.id, *addresses("192.0.2.1/24", "nope")))
    assert list(error.violations) == [
        "ip_identifiers[0].ip_address",
        "ip_identifiers[1].ip_address",
    ]
    error = await refused(remove_addresses(stub, trunk.id, "192.0.2.1", "nope"))
    assert list(error.violations) == ["ip_addresses[1]"]
    error = await refused(remove_gateways(stub, trunk.id, "same", "same", "ümlaut"))
    assert error.violations == {"gateway_ids[1]": "DUPLICATE", "gateway_ids[2]": "INVALID_FORM"}


async def test_lists_keep_their_bounds(stub: Any) -> None:
    many = gateways(*(f"gw{i}.example.com" for i in range(31)))
    trunk = await created(stub, ip_based(gateways=many))
    error = await refused(add(stub, trunk.id, *gateways("a.example.com", "b.example.com")))
    assert error.violations == {"gateways": "TOO_MANY"}
    assert len((await add(stub, trunk.id, *gateways("a.example.com"))).gateways) == 32
    error = await refused(
        add(stub, trunk.id, *addresses(*(f"192.0.2.{i % 256}" for i in range(257))))
    )
    assert error.violations == {"ip_identifiers": "TOO_MANY"}


async def test_etag_is_a_condition(stub: Any) -> None:
    trunk = await created(stub)
    changed = await stub.UpdateSipTrunk(update(trunk.id, "is_active", is_active=False))
    for call in (
        add(stub, trunk.id, *gateways("a.example.com"), etag=trunk.etag),
        add(stub, trunk.id, *addresses("192.0.2.1"), etag=trunk.etag),
        remove_gateways(stub, trunk.id, trunk.gateways[0].id, etag=trunk.etag),
        remove_addresses(stub, trunk.id, "192.0.2.1", etag=trunk.etag),
    ):
        error = await refused(call)
        assert (error.code, error.reason) == ("ABORTED", "ETAG_MISMATCH")
    after = await add(stub, trunk.id, *gateways("a.example.com"), etag=changed.etag)
    assert len(after.gateways) == 2


async def test_trunk_that_there_is_not(stub: Any) -> None:
    for trunk_id in ("absent", "ümlaut"):
        for call in (
            add(stub, trunk_id, *gateways("a.example.com")),
            remove_gateways(stub, trunk_id, "x"),
            add(stub, trunk_id, *addresses("192.0.2.1")),
            remove_addresses(stub, trunk_id, "192.0.2.1"),
        ):
            assert (await refused(call)).reason == "TRUNK_NOT_FOUND"


@pytest.mark.parametrize("kind", ["gateways", "ip_identifiers"])
async def test_callers_who_add_at_once_lose_nothing(stub: Any, kind: str) -> None:
    trunk = await created(stub, userpass())
    items = [
        gateways(f"gw{i}.example.com") if kind == "gateways" else addresses(f"192.0.2.{i}")
        for i in range(CALLERS)
    ]
    frequencies = [update(trunk.id, "qualify_frequency", qualify_frequency=i) for i in range(4)]
    await asyncio.gather(
        *(add(stub, trunk.id, *one) for one in items),
        *(stub.UpdateSipTrunk(request) for request in frequencies),
    )
    after = await read(stub, trunk.id)
    assert len(getattr(after, kind)) == CALLERS + (kind == "gateways")


async def test_edit_is_a_revision_that_names_its_method(stub: Any) -> None:
    trunk = await created(stub)
    await add(stub, trunk.id, *gateways("a.example.com"))
    request = pb.GetSipTrunkRevisionRequest(trunk_id=trunk.id, revision=2)
    found = await stub.GetSipTrunkRevision(request)
    assert found.method == "AddGateways"
    assert list(found.changed_fields) == list(found.update_mask.paths) == ["gateways"]
    assert list(found.before.gateways) == list(trunk.gateways)
