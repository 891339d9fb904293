import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.conftest import created
from tests.support import Gateway, IpIdentifier, SipTrunk, ip_based, refused, userpass

Request = pb.ListSipTrunksRequest
PAGES_MAX = 300


async def pages(stub: Any, **arguments: Any) -> AsyncIterator[list[SipTrunk]]:
    """The pages of a list, from the first to the last."""
    token = ""
    for _ in range(PAGES_MAX):
        page = await stub.ListSipTrunks(Request(page_token=token, **arguments))
        yield list(page.sip_trunks)
        token = page.next_page_token
        if not token:
            return
    raise AssertionError("the list has no end")


async def names(stub: Any, **arguments: Any) -> list[str]:
    """The names of the trunks of a whole list, in its order."""
    return [trunk.name async for page in pages(stub, **arguments) for trunk in page]


async def some(stub: Any, count: int) -> list[SipTrunk]:
    """Trunks whose order of creation is not that of their names."""
    return [await created(stub, ip_based(name=f"{n * 7 % count:02}")) for n in range(count)]


async def test_list_of_no_trunk_is_empty(stub: Any) -> None:
    assert await stub.ListSipTrunks(Request()) == pb.ListSipTrunksResponse()


async def test_list_shows_trunks_as_a_read_does(stub: Any) -> None:
    trunk = await created(stub, ip_based(description="primary"), "+15550100")
    assert list((await stub.ListSipTrunks(Request())).sip_trunks) == [trunk]


@pytest.mark.parametrize("order_by", ["", "name", "created_at desc"])
async def test_list_gives_each_trunk_once_over_its_pages(stub: Any, order_by: str) -> None:
    wanted = {trunk.id for trunk in await some(stub, 10)}
    for size in (1, 3, 5, 9, 10, 11):
        sizes, found = [], []
        async for page in pages(stub, page_size=size, order_by=order_by):
            sizes.append(len(page))
            found += [trunk.id for trunk in page]
        assert sizes == [size] * (10 // size) + [10 % size] * bool(10 % size)
        assert (len(found), set(found)) == (10, wanted)


async def test_list_of_page_size_0_has_50_and_of_a_huge_one_500(
    stub: Any,
) -> None:
    requests = [created(stub, ip_based()) for _ in range(501)]
    for start in range(0, 501, 50):
        await asyncio.gather(*requests[start : start + 50])
    for asked, given in ((0, 50), (500, 500), (501, 500), (2**31 - 1, 500)):
        page = await stub.ListSipTrunks(Request(page_size=asked))
        assert (len(page.sip_trunks), bool(page.next_page_token)) == (given, True)


@pytest.mark.parametrize("size", [-1, -(2**31)])
async def test_list_of_a_negative_page_size_is_refused(stub: Any, size: int) -> None:
    error = await refused(stub.ListSipTrunks(Request(page_size=size)))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", {"page_size": "OUT_OF_RANGE"})


async def test_list_is_in_the_order_asked_for(stub: Any) -> None:
    by_creation = [trunk.name for trunk in await some(stub, 10)]
    orders = {
        "": by_creation,
        "id": by_creation,
        "id desc": by_creation[::-1],
        "name": sorted(by_creation),
        "name asc": sorted(by_creation),
        " name  desc ": sorted(by_creation)[::-1],
        "created_at": by_creation,
        "created_at desc": by_creation[::-1],
    }
    for order, wanted in orders.items():
        assert await names(stub, order_by=order, page_size=3) == wanted


async def test_list_by_name_compares_bytes(stub: Any) -> None:
    for name in ("b", "É", "a", "B", "z", "😀", "\ufb01"):
        await created(stub, userpass(name=name))
    assert await names(stub, order_by="name") == ["B", "a", "b", "z", "É", "\ufb01", "😀"]


@pytest.mark.parametrize(
    "order", ["nope", "name, id", "name up", "NAME", "updated_at", "name desc desc", "id;", "\0"]
)
async def test_list_in_an_unknown_order_is_refused(stub: Any, order: str) -> None:
    error = await refused(stub.ListSipTrunks(Request(order_by=order)))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", {"order_by": "UNKNOWN_ORDER"})


@pytest.mark.parametrize(
    "changed",
    [
        {"filter": ""},
        {"filter": "is_active=false"},
        {"order_by": ""},
        {"order_by": "name desc"},
    ],
)
async def test_page_token_holds_for_its_filter_and_order_alone(
    stub: Any, changed: dict[str, str]
) -> None:
    await some(stub, 3)
    arguments: dict[str, Any] = {"filter": "is_active=true", "order_by": "name"}
    page = await stub.ListSipTrunks(Request(page_size=1, **arguments))
    error = await refused(
        stub.ListSipTrunks(Request(page_token=page.next_page_token, **arguments | changed))
    )
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", {"page_token": "BAD_PAGE_TOKEN"})


async def test_page_token_holds_for_any_page_size(stub: Any) -> None:
    await some(stub, 5)
    page = await stub.ListSipTrunks(Request(page_size=2))
    rest = await stub.ListSipTrunks(Request(page_size=50, page_token=page.next_page_token))
    assert (len(page.sip_trunks), len(rest.sip_trunks)) == (2, 3)


async def test_page_token_of_another_account_is_refused(ours: Any, theirs: Any) -> None:
    await some(ours, 3)
    await some(theirs, 3)
    page = await ours.ListSipTrunks(Request(page_size=1))
    error = await refused(theirs.ListSipTrunks(Request(page_token=page.next_page_token)))
    assert error.violations == {"page_token": "BAD_PAGE_TOKEN"}


async def test_page_token_that_was_tampered_with_is_refused(stub: Any) -> None:
    await some(stub, 3)
    token = (await stub.ListSipTrunks(Request(page_size=1, order_by="name"))).next_page_token
    raw = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    tampered = ["x", "é", "A" * 16, token[:-2], token + "AAAA", "=" * 8, "\0", "A" * 100_000]
    for position in range(0, len(raw), 5):
        flipped = bytearray(raw)
        flipped[position] ^= 1
        tampered.append(base64.urlsafe_b64encode(flipped).decode().rstrip("="))
    for text in tampered:
        error = await refused(stub.ListSipTrunks(Request(page_token=text, order_by="name")))
        assert error.violations == {"page_token": "BAD_PAGE_TOKEN"}


async def test_page_token_holds_after_its_last_trunk_is_gone(stub: Any) -> None:
    trunks = await some(stub, 4)
    page = await stub.ListSipTrunks(Request(page_size=2))
    await stub.DeleteSipTrunk(pb.DeleteSipTrunkRequest(id=trunks[1].id))
    rest = await stub.ListSipTrunks(Request(page_token=page.next_page_token))
    assert [trunk.id for trunk in rest.sip_trunks] == [trunk.id for trunk in trunks[2:]]


async def test_list_shows_the_trunks_of_its_account_alone(ours: Any, theirs: Any) -> None:
    await created(ours, userpass(name="ours"), "+15550100")
    await created(theirs, userpass(name="theirs"), "+15550100")
    for filter_ in ("", 'phone_number="15550100"', 'gateway_address="sip.example.com"'):
        assert await names(ours, filter=filter_) == ["ours"]
        assert await names(theirs, filter=filter_) == ["theirs"]


async def test_a_page_of_big_trunks_ends_early_and_misses_none(stub: Any) -> None:
    big = {
        "description": "😀" * 500,
        "gateways": [
            Gateway(gateway_address=f"{n:02}{'.a' * 125}", port=5060 + n) for n in range(32)
        ],
        "ip_identifiers": [
            IpIdentifier(ip_address=f"2001:db8:aaaa:bbbb:cccc:dddd:eeee:{n:x}") for n in range(256)
        ],
    }
    wanted = [(await created(stub, ip_based(**big))).id for _ in range(60)]
    found, early = [], 0
    async for page in pages(stub, page_size=60):
        size = sum(trunk.ByteSize() for trunk in page)
        assert size <= 1 << 20
        early += len(page) < 60
        found += [trunk.id for trunk in page]
    assert found == wanted
    assert early > 1


@pytest.mark.parametrize("order_by", ["id", "id desc", "name", "name desc", "created_at desc"])
async def test_list_misses_and_repeats_no_trunk_that_stays_while_others_come_and_go(
    stub: Any, order_by: str
) -> None:
    stay = {trunk.id for trunk in await some(stub, 20)}
    seen: list[str] = []

    async def come_and_go(worker: int) -> None:
        number = 0
        while not done.is_set():
            number += 1
            name = f"{number * 37 % 20:02}-{worker}-{number}"
            trunk = await created(stub, ip_based(name=name))
            await stub.DeleteSipTrunk(pb.DeleteSipTrunkRequest(id=trunk.id))

    done = asyncio.Event()
    writers = [asyncio.create_task(come_and_go(n)) for n in range(3)]
    try:
        async for page in pages(stub, page_size=2, order_by=order_by):
            seen += [trunk.id for trunk in page]
    finally:
        done.set()
        await asyncio.gather(*writers)
    assert len(seen) == len(set(seen))
    assert stay <= set(seen)
