import asyncio
from typing import Any

import pytest

from siptrunk.v1 import phone_number_pb2, sip_trunk_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.conftest import created, read, violations
from tests.support import PhoneNumber, refused, update, userpass


def adding(
    trunk: sip_trunk_pb2.SipTrunk, number: str, **fields: Any
) -> pb.CreatePhoneNumberRequest:
    return pb.CreatePhoneNumberRequest(
        trunk_id=trunk.id, phone_number=PhoneNumber(phone_number=number, **fields)
    )


def renaming(
    number: phone_number_pb2.PhoneNumber, *paths: str, **fields: Any
) -> pb.UpdatePhoneNumberRequest:
    request = pb.UpdatePhoneNumberRequest(
        trunk_id=number.byot_trunk_id, phone_number=PhoneNumber(id=number.id, **fields)
    )
    request.update_mask.paths.extend(paths)
    return request


def removing(number: phone_number_pb2.PhoneNumber) -> pb.DeletePhoneNumberRequest:
    return pb.DeletePhoneNumberRequest(trunk_id=number.byot_trunk_id, id=number.id)


async def numbers(
    stub: Any, trunk: sip_trunk_pb2.SipTrunk, **arguments: Any
) -> list[phone_number_pb2.PhoneNumber]:
    request = pb.ListPhoneNumbersRequest(trunk_id=trunk.id, **arguments)
    return list((await stub.ListPhoneNumbers(request)).phone_numbers)


def moved(before: sip_trunk_pb2.SipTrunk, after: sip_trunk_pb2.SipTrunk, by: int) -> bool:
    """Whether a trunk differs by a number's change alone: etag, time, and the count by so much."""
    expected = sip_trunk_pb2.SipTrunk()
    expected.CopyFrom(before)
    expected.phone_number_count += by
    expected.etag = after.etag
    expected.updated_at.CopyFrom(after.updated_at)
    later = after.updated_at.ToDatetime() > before.updated_at.ToDatetime()
    return after == expected and after.etag != before.etag and later


async def test_create_of_a_number_gives_all_of_it(stub: Any) -> None:
    trunk = await created(stub)
    number = await stub.CreatePhoneNumber(adding(trunk, "+15550100", name="Cafe\u0301"))
    assert (number.phone_number, number.name) == ("+15550100", "Café")
    assert (number.byot_trunk_id, number.telephony_provider) == (trunk.id, "sip-trunk")
    assert 1 <= len(number.id) <= 64
    assert number.HasField("created_at")
    assert number.created_at == number.updated_at
    assert not number.HasField("e164_check_enabled")
    assert await numbers(stub, trunk) == [number]


async def test_create_of_a_number_ignores_what_the_server_sets(stub: Any) -> None:
    trunk, other = await created(stub), await created(stub)
    sent = adding(trunk, "15550100", id="mine", byot_trunk_id=other.id, telephony_provider="x")
    sent.phone_number.created_at.FromSeconds(1)
    number = await stub.CreatePhoneNumber(sent)
    assert number.id != "mine"
    assert (number.byot_trunk_id, number.telephony_provider) == (trunk.id, "sip-trunk")
    assert not number.HasField("name")


@pytest.mark.parametrize("text", ["123", "+123", "123456789012345", "+123456789012345", "000"])
async def test_create_keeps_a_number_as_it_was_sent(stub: Any, text: str) -> None:
    trunk = await created(stub)
    assert (await stub.CreatePhoneNumber(adding(trunk, text))).phone_number == text


@pytest.mark.parametrize(
    "text",
    ["", "12", "+12", "1234567890123456", "+", "++1555", "1-555", "1 555", "sip:1", "١٢٣", "1\0 2"],
)
async def test_create_of_what_is_no_number_is_refused(stub: Any, text: str) -> None:
    trunk = await created(stub)
    error = await refused(stub.CreatePhoneNumber(adding(trunk, text)))
    assert (error.code, error.fields) == ("INVALID_ARGUMENT", ["phone_number"])
    assert await read(stub, trunk.id) == trunk


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("+1234567", True),
        ("+123456789012345", True),
        ("+123456", False),
        ("1234567", False),
        ("+0123456", False),
        ("+1234567890123456", False),
    ],
)
async def test_create_checks_a_number_for_e164_where_asked(
    stub: Any, text: str, *, good: bool
) -> None:
    trunk = await created(stub)
    call = stub.CreatePhoneNumber(adding(trunk, text, e164_check_enabled=True))
    if good:
        assert (await call).phone_number == text
    else:
        error = await refused(call)
        assert (error.code, error.fields) == ("INVALID_ARGUMENT", ["phone_number"])
    unchecked = adding(trunk, text.replace("+", "")[:15], e164_check_enabled=False)
    if not good:
        assert (await stub.CreatePhoneNumber(unchecked)).phone_number


async def test_create_of_a_number_names_every_violation(stub: Any) -> None:
    request = pb.CreatePhoneNumberRequest(
        phone_number=PhoneNumber(phone_number="x", name="n" * 101)
    )
    error = await refused(stub.CreatePhoneNumber(request))
    assert error.violations == {
        "trunk_id": "REQUIRED",
        "phone_number": "INVALID_FORM",
        "name": "TOO_LONG",
    }
    error = await refused(stub.CreatePhoneNumber(pb.CreatePhoneNumberRequest()))
    assert error.violations == {"trunk_id": "REQUIRED", "phone_number": "REQUIRED"}


@pytest.mark.parametrize(
    ("first", "second"),
    [("+15550100", "15550100"), ("15550100", "+15550100"), ("15550100", "15550100")],
)
@pytest.mark.parametrize("active", [True, False])
async def test_a_number_is_on_one_trunk_of_an_account(
    stub: Any, first: str, second: str, *, active: bool
) -> None:
    holder, trunk = await created(stub, userpass(is_active=active), first), await created(stub)
    for onto in (trunk, holder):
        error = await refused(stub.CreatePhoneNumber(adding(onto, second)))
        assert (error.code, error.reason) == ("ALREADY_EXISTS", "PHONE_NUMBER_TAKEN")
    assert await read(stub, trunk.id) == trunk
    assert await read(stub, holder.id) == holder


async def test_a_number_may_be_in_two_accounts(ours: Any, theirs: Any) -> None:
    for stub in (ours, theirs):
        assert (await created(stub, userpass(), "+15550100")).phone_number_count == 1


async def test_concurrent_creates_of_one_number_have_one_winner(stub: Any) -> None:
    trunks = [await created(stub) for _ in range(5)]

    async def code(n: int) -> str:
        call = stub.CreatePhoneNumber(adding(trunks[n % 5], "+15550100"[n % 2 :]))
        answer = (await asyncio.gather(call, return_exceptions=True))[0]
        return "OK" if isinstance(answer, PhoneNumber) else (await refused(call)).code

    codes = await asyncio.gather(*(code(n) for n in range(20)))
    assert sorted(codes) == ["ALREADY_EXISTS"] * 19 + ["OK"]
    after = [await read(stub, trunk.id) for trunk in trunks]
    assert sum(trunk.phone_number_count for trunk in after) == 1
    kept = [a for a, b in zip(after, trunks, strict=True) if a == b]
    assert len(kept) == 4


async def test_concurrent_creates_of_numbers_are_all_counted(stub: Any) -> None:
    trunk = await created(stub)
    calls = [stub.CreatePhoneNumber(adding(trunk, f"+1555{n:04}")) for n in range(20)]
    await asyncio.gather(*calls)
    assert (await read(stub, trunk.id)).phone_number_count == 20
    assert len(await numbers(stub, trunk)) == 20


async def test_each_change_of_a_number_is_a_change_of_its_trunk(stub: Any) -> None:
    start = await created(stub, userpass(description="stays"))
    number = await stub.CreatePhoneNumber(adding(start, "+15550100"))
    with_number = await read(stub, start.id)
    assert moved(start, with_number, 1)
    await stub.UpdatePhoneNumber(renaming(number, "name", name="Desk"))
    renamed = await read(stub, start.id)
    assert moved(with_number, renamed, 0)
    await stub.DeletePhoneNumber(removing(number))
    assert moved(renamed, await read(stub, start.id), -1)


async def test_an_etag_from_before_a_number_is_stale_after_it(stub: Any) -> None:
    before = await created(stub)
    await stub.CreatePhoneNumber(adding(before, "+15550100"))
    error = await refused(
        stub.UpdateSipTrunk(update(before.id, "name", name="x", etag=before.etag))
    )
    assert error.code == "ABORTED"
    assert error.metadata == {"etag": (await read(stub, before.id)).etag}


async def test_a_change_of_the_trunk_leaves_its_numbers(stub: Any) -> None:
    trunk = await created(stub, userpass(), "+15550100")
    before = await numbers(stub, trunk)
    await stub.UpdateSipTrunk(update(trunk.id, "is_active", is_active=False))
    assert await numbers(stub, trunk) == before


@pytest.mark.parametrize("paths", [[], ["name"], ["*"], ["name", "name", "id", "created_at"]])
async def test_update_of_a_number_sets_its_name(stub: Any, paths: list[str]) -> None:
    trunk = await created(stub)
    before = await stub.CreatePhoneNumber(adding(trunk, "+15550100", name="old"))
    after = await stub.UpdatePhoneNumber(renaming(before, *paths, name="Cafe\u0301"))
    expected = PhoneNumber()
    expected.CopyFrom(before)
    expected.name = "Café"
    expected.updated_at.CopyFrom(after.updated_at)
    assert after == expected
    assert after.updated_at.ToDatetime() > before.updated_at.ToDatetime()
    assert await numbers(stub, trunk) == [after]


@pytest.mark.parametrize("paths", [["name"], ["*"]])
async def test_update_of_a_number_without_a_name_clears_it(stub: Any, paths: list[str]) -> None:
    trunk = await created(stub)
    number = await stub.CreatePhoneNumber(adding(trunk, "+15550100", name="old"))
    assert not (await stub.UpdatePhoneNumber(renaming(number, *paths))).HasField("name")


async def test_update_of_a_number_to_an_empty_name_is_a_value(stub: Any) -> None:
    trunk = await created(stub)
    number = await stub.CreatePhoneNumber(adding(trunk, "+15550100", name="old"))
    after = await stub.UpdatePhoneNumber(renaming(number, "name", name=""))
    assert after.HasField("name")


@pytest.mark.parametrize(
    ("paths", "fields"),
    [
        ([], {}),
        (["name"], {"name": "Cafe\u0301"}),
        (["phone_number"], {"phone_number": "+15550100", "name": "not named"}),
        (["id"], {"name": "not named"}),
        (["created_at", "updated_at", "byot_trunk_id", "telephony_provider"], {"name": "x"}),
        (["*"], {"name": "Café", "phone_number": "+15550100"}),
    ],
)
async def test_update_of_a_number_that_changes_nothing_keeps_number_and_trunk(
    stub: Any, paths: list[str], fields: dict[str, str]
) -> None:
    trunk = await created(stub)
    number = await stub.CreatePhoneNumber(adding(trunk, "+15550100", name="Café"))
    before = await read(stub, trunk.id)
    assert await stub.UpdatePhoneNumber(renaming(number, *paths, **fields)) == number
    assert await read(stub, trunk.id) == before


@pytest.mark.parametrize(
    ("paths", "fields", "refusal"),
    [
        (["nope"], {}, {"update_mask": "UNKNOWN_PATH"}),
        (["telephonyProvider"], {}, {"update_mask": "UNKNOWN_PATH"}),
        (["*", "name"], {}, {"update_mask": "WILDCARD_NOT_ALONE"}),
        (["name"] * 65, {"name": "x"}, {"update_mask": "TOO_MANY_PATHS"}),
        (["phone_number"], {"phone_number": "+15550199"}, {"phone_number": "IMMUTABLE"}),
        ([], {"phone_number": "+15550199", "name": "x"}, {"phone_number": "IMMUTABLE"}),
        (["*"], {"phone_number": "+15550199"}, {"phone_number": "IMMUTABLE"}),
        (["phone_number"], {}, {"phone_number": "IMMUTABLE"}),
        (["e164_check_enabled"], {"e164_check_enabled": True}, {"e164_check_enabled": "IMMUTABLE"}),
        (["name"], {"name": "x" * 101}, {"name": "TOO_LONG"}),
        (["name"], {"name": "a\nb"}, {"name": "CONTROL_CHARACTER"}),
        (["name"], {"name": " x"}, {"name": "BLANK_AT_END"}),
        (
            ["name", "nope", "phone_number"],
            {"name": "a\0", "phone_number": "+15550199"},
            {
                "update_mask": "UNKNOWN_PATH",
                "phone_number": "IMMUTABLE",
                "name": "CONTROL_CHARACTER",
            },
        ),
    ],
)
async def test_update_of_a_number_that_breaks_a_rule_is_refused_and_writes_nothing(
    stub: Any, paths: list[str], fields: dict[str, Any], refusal: dict[str, str]
) -> None:
    trunk = await created(stub)
    number = await stub.CreatePhoneNumber(adding(trunk, "+15550100", name="old"))
    error = await refused(stub.UpdatePhoneNumber(renaming(number, *paths, **fields)))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", refusal)
    assert await numbers(stub, trunk) == [number]


async def test_update_of_a_number_needs_its_ids(stub: Any) -> None:
    error = await refused(stub.UpdatePhoneNumber(pb.UpdatePhoneNumberRequest()))
    assert error.violations == {"trunk_id": "REQUIRED", "phone_number": "REQUIRED"}
    error = await refused(stub.UpdatePhoneNumber(renaming(PhoneNumber(), name="x")))
    assert error.violations == {"trunk_id": "REQUIRED", "id": "REQUIRED"}
    error = await refused(stub.DeletePhoneNumber(pb.DeletePhoneNumberRequest()))
    assert error.violations == {"trunk_id": "REQUIRED", "id": "REQUIRED"}


async def test_a_number_is_reached_through_its_own_trunk_alone(stub: Any) -> None:
    trunk, other = await created(stub), await created(stub)
    number = await stub.CreatePhoneNumber(adding(trunk, "+15550100"))
    astray = PhoneNumber()
    astray.CopyFrom(number)
    astray.byot_trunk_id = other.id
    for call in (
        stub.UpdatePhoneNumber(renaming(astray, "name", name="x")),
        stub.DeletePhoneNumber(removing(astray)),
    ):
        error = await refused(call)
        assert (error.code, error.reason) == ("NOT_FOUND", "PHONE_NUMBER_NOT_FOUND")
    assert await numbers(stub, trunk) == [number]
    assert await read(stub, other.id) == other


async def test_delete_of_a_number_frees_it(stub: Any) -> None:
    trunk, other = await created(stub), await created(stub)
    number = await stub.CreatePhoneNumber(adding(trunk, "+15550100"))
    assert await stub.DeletePhoneNumber(removing(number)) == pb.DeletePhoneNumberResponse()
    assert (await refused(stub.DeletePhoneNumber(removing(number)))).code == "NOT_FOUND"
    assert await numbers(stub, trunk) == []
    again = await stub.CreatePhoneNumber(adding(other, "15550100"))
    assert again.id != number.id


async def test_list_of_numbers_is_in_the_order_of_their_adding(stub: Any) -> None:
    wanted = [f"+1555{n * 7 % 25:04}" for n in range(25)]
    trunk = await created(stub, userpass(), *wanted[:10])
    for text in wanted[10:]:
        await stub.CreatePhoneNumber(adding(trunk, text))
    found, token = [], ""
    for _ in range(9):
        page = await stub.ListPhoneNumbers(
            pb.ListPhoneNumbersRequest(trunk_id=trunk.id, page_size=10, page_token=token)
        )
        found.append([n.phone_number for n in page.phone_numbers])
        token = page.next_page_token
        if not token:
            break
    assert found == [wanted[:10], wanted[10:20], wanted[20:]]


async def test_list_of_numbers_bounds_its_pages(stub: Any) -> None:
    trunk = await created(stub, userpass(), *(f"+1555{n:04}" for n in range(100)))
    await stub.CreatePhoneNumber(adding(trunk, "+19999999"))
    assert len(await numbers(stub, trunk)) == 100
    assert len(await numbers(stub, trunk, page_size=2**31 - 1)) == 101
    error = await refused(numbers(stub, trunk, page_size=-1))
    assert error.violations == {"page_size": "OUT_OF_RANGE"}


async def test_list_of_numbers_takes_the_tokens_of_its_trunk_alone(stub: Any) -> None:
    trunk = await created(stub, userpass(), "1001", "1002")
    other = await created(stub, userpass(), "2001", "2002")
    page = await stub.ListPhoneNumbers(pb.ListPhoneNumbersRequest(trunk_id=trunk.id, page_size=1))
    for token in (page.next_page_token, "x", page.next_page_token[:-4] + "AAAA"):
        error = await refused(numbers(stub, other, page_token=token))
        assert error.violations == {"page_token": "BAD_PAGE_TOKEN"}


async def test_list_of_numbers_of_no_trunk_is_not_found(stub: Any) -> None:
    for trunk_id in ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "x" * 65, "é"):
        error = await refused(numbers(stub, sip_trunk_pb2.SipTrunk(id=trunk_id)))
        assert (error.code, error.reason) == ("NOT_FOUND", "TRUNK_NOT_FOUND")
    [(field, reason, _)] = violations(await refused(numbers(stub, sip_trunk_pb2.SipTrunk())))
    assert (field, reason) == ("trunk_id", "REQUIRED")
