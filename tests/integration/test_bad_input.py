"""Requests at the wire that no generated client would send; every answer is a defined one."""

import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.conftest import created, read, violations
from tests.support import (
    SEEN,
    TOKEN,
    Gateway,
    IpIdentifier,
    PhoneNumber,
    SipTrunk,
    refusal,
    refused,
    update,
    userpass,
)

METHODS = {m.name: m for m in pb.DESCRIPTOR.services_by_name["SipTrunkService"].methods}
UNKNOWN = 1000
MINE = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


@pytest.fixture
async def wire(service: str, stub: Any) -> AsyncIterator[Callable[[str, bytes], Any]]:
    """Sends bytes to a method. The service must answer as ever afterwards."""
    before = await created(stub)
    async with grpc.aio.insecure_channel(service) as channel:

        async def send(method: str, data: bytes) -> bytes:
            # A stream's first response is as good an answer as any.
            call: Any = channel.unary_stream(f"/siptrunk.v1.SipTrunkService/{method}")
            async for response in call(data, metadata=(("authorization", f"Bearer {TOKEN}"),)):
                return bytes(response)
            return b""

        yield send
    assert await read(stub, before.id) == before


def varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low]) if not rest else bytes([low | 0x80]) + varint(rest)


def field(number: int, payload: bytes) -> bytes:
    """A field with a length, as it is on the wire."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def number_field(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def data(message: Message) -> bytes:
    return message.SerializeToString()


async def outcome(call: Any) -> str:
    """The code of an answer; an error's form is checked on the way."""
    try:
        SEEN.add(await call)
    except grpc.aio.AioRpcError as error:
        SEEN.add(repr((error.details(), error.trailing_metadata())).encode())
        return refusal(error).code
    return "OK"


@pytest.mark.parametrize("method", METHODS)
async def test_random_bytes_get_a_defined_answer(wire: Any, method: str) -> None:
    rng = random.Random(method)
    codes = {await outcome(wire(method, rng.randbytes(n))) for n in range(1, 120)}
    assert codes <= {"INVALID_ARGUMENT", "NOT_FOUND", "OK"}
    assert "INVALID_ARGUMENT" in codes


@pytest.mark.parametrize("method", METHODS)
async def test_an_empty_message_gets_a_defined_answer(wire: Any, method: str) -> None:
    wanted = "OK" if method in ("ListSipTrunks", "WatchSipTrunks") else "INVALID_ARGUMENT"
    assert await outcome(wire(method, b"")) == wanted


async def test_a_message_cut_anywhere_gets_a_defined_answer(wire: Any) -> None:
    whole = data(
        pb.CreateSipTrunkRequest(
            sip_trunk=userpass(description="d", gateways=[Gateway(gateway_address="a", port=1)]),
            phone_numbers=[PhoneNumber(phone_number="+15550100", name="n")],
        )
    )
    codes = [await outcome(wire("CreateSipTrunk", whole[:n])) for n in range(len(whole))]
    assert set(codes) <= {"INVALID_ARGUMENT", "OK"}
    assert codes.count("INVALID_ARGUMENT") > len(whole) // 2
    assert await outcome(wire("CreateSipTrunk", whole)) in ("OK", "ALREADY_EXISTS")


async def test_a_message_with_any_byte_changed_gets_a_defined_answer(wire: Any, stub: Any) -> None:
    trunk = await created(stub)
    rng = random.Random(1)
    whole = data(
        update(trunk.id, "name", "gateways", name="new", gateways=[Gateway(gateway_address="a")])
    )
    codes = set()
    for position in range(len(whole)):
        changed = bytearray(whole)
        changed[position] = rng.randrange(256)
        codes.add(await outcome(wire("UpdateSipTrunk", bytes(changed))))
    assert codes <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "ABORTED"}


@pytest.mark.parametrize(
    "bad",
    [
        field(1, b"\xff\xfe"),
        field(1, b"\xed\xa0\x80"),
        field(1, b"\xc0\x80"),
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\x0a" + b"\xff" * 11,
        b"\x00\x00",
        b"\x07",
        b"\x0b" * 5000,
        b"\x0c",
    ],
)
async def test_what_is_no_message_is_refused_as_such(wire: Any, bad: bytes) -> None:
    error = await refused(wire("GetSipTrunk", bad))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "UNDECODABLE")
    assert error.fields == ["request"]


@pytest.mark.parametrize(
    "path",
    [
        [1, 3],  # sip_trunk.name
        [1, 8],  # sip_trunk.auth_password
        [1, 11, 2],  # sip_trunk.gateways.gateway_address
        [1, 12, 1],  # sip_trunk.ip_identifiers.ip_address
        [2, 1],  # update_mask.paths
    ],
)
async def test_text_that_is_not_utf_8_is_refused_at_each_depth(wire: Any, path: list[int]) -> None:
    bad = b"\xff\xfe"
    for number in reversed(path):
        bad = field(number, bad)
    error = await refused(wire("UpdateSipTrunk", field(1, field(1, MINE.encode())) + bad))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "UNDECODABLE")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ([], ""),
        ([1], "sip_trunk."),
        ([1, 11], "gateways[0]."),
        ([1, 12], "ip_identifiers[0]."),
        ([1, 29], "created_at."),
        ([2], "update_mask."),
    ],
)
async def test_a_field_that_the_server_does_not_know_is_refused_by_its_number(
    wire: Any, stub: Any, path: list[int], name: str
) -> None:
    trunk = await created(stub)
    unknown = number_field(UNKNOWN, 1)
    for number in reversed(path):
        unknown = field(number, unknown)
    whole = data(update(trunk.id, name="not written")) + unknown
    error = await refused(wire("UpdateSipTrunk", whole))
    assert error.code == "INVALID_ARGUMENT"
    [(found, reason, _)] = violations(error)
    assert reason == "UNKNOWN_FIELD"
    assert found.endswith(f"{name}{UNKNOWN}")
    assert str(UNKNOWN) in error.message
    assert await read(stub, trunk.id) == trunk


async def test_a_field_of_another_type_is_refused_by_its_number(wire: Any, stub: Any) -> None:
    trunk = await created(stub)
    whole = data(update(trunk.id, name="not written")) + field(1, number_field(5, 1))
    error = await refused(wire("UpdateSipTrunk", whole))
    assert error.code == "INVALID_ARGUMENT"
    assert error.fields[0].endswith("5")
    assert await read(stub, trunk.id) == trunk


@pytest.mark.parametrize("method", METHODS)
async def test_each_method_refuses_a_field_that_it_does_not_know(wire: Any, method: str) -> None:
    error = await refused(wire(method, field(UNKNOWN, b"x")))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", {"1000": "UNKNOWN_FIELD"})


async def test_many_unknown_fields_are_refused_within_bounds(wire: Any) -> None:
    items = b"".join(field(11, number_field(UNKNOWN, 1)) for _ in range(5000))
    tops = b"".join(number_field(n, 1) for n in range(1000, 6000))
    for whole in (field(1, items), tops, tops + field(1, items + tops)):
        error = await refused(wire("UpdateSipTrunk", whole))
        assert error.code == "INVALID_ARGUMENT"
        assert 1 <= len(error.fields) <= 50


async def test_unknown_fields_in_a_list_answered_before_its_size(wire: Any) -> None:
    trunk = data(userpass()) + field(11, number_field(UNKNOWN, 1))
    error = await refused(wire("CreateSipTrunk", field(1, trunk)))
    assert error.fields[0].endswith("gateways[1].1000")


@pytest.mark.parametrize("count", [65, 200_000])
async def test_a_mask_of_many_paths_is_refused(wire: Any, stub: Any, count: int) -> None:
    trunk = await created(stub)
    whole = data(update(trunk.id, name="not written")) + field(2, field(1, b"a") * count)
    error = await refused(wire("UpdateSipTrunk", whole))
    assert (error.code, error.violations) == (
        "INVALID_ARGUMENT",
        {"update_mask": "TOO_MANY_PATHS"},
    )
    assert str(count) in error.message


async def test_a_mask_with_a_long_path_is_refused_without_its_echo(wire: Any, stub: Any) -> None:
    trunk = await created(stub)
    for path in ("x" * 500_000, "gateways." + "é" * 100_000, "a." * 100_000):
        error = await refused(wire("UpdateSipTrunk", data(update(trunk.id, path))))
        assert (error.code, error.fields) == ("INVALID_ARGUMENT", ["update_mask"])
        assert len(error.message) < 500


async def test_a_message_of_10_megabytes_is_refused(wire: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await wire("GetSipTrunk", field(1, b"x" * 10_000_000))
    # Refused by the transport before it is read, so without ErrorInfo.
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_message_near_the_limit_is_answered(wire: Any) -> None:
    for text in (b"x" * 1_000_000, b"\xc3\xa9" * 500_000):
        assert await outcome(wire("GetSipTrunk", field(1, text))) == "NOT_FOUND"
        whole = field(1, field(3, text))
        error = await refused(wire("CreateSipTrunk", whole))
        assert error.violations["name"] == "TOO_LONG"


async def test_lists_of_thousands_are_refused_by_their_number(wire: Any) -> None:
    trunk = userpass(
        gateways=[Gateway(gateway_address=f"gw{n}.example.com") for n in range(5000)],
        ip_identifiers=[IpIdentifier(ip_address="x") for n in range(5000)],
    )
    numbers = [PhoneNumber(phone_number="x") for _ in range(5000)]
    request = pb.CreateSipTrunkRequest(sip_trunk=trunk, phone_numbers=numbers)
    error = await refused(wire("CreateSipTrunk", data(request)))
    assert error.violations == {
        "gateways": "TOO_MANY",
        "ip_identifiers": "TOO_MANY",
        "phone_numbers": "TOO_MANY",
    }
    assert error.message.count("5000") == 3


@pytest.mark.parametrize("value", [0, 4, 2**31 - 1, 2**64 - 1, 2**32 + 1])
async def test_an_enum_number_that_is_none_is_refused(wire: Any, stub: Any, value: int) -> None:
    trunk = await created(stub)
    whole = data(update(trunk.id)) + field(1, number_field(17, value))
    code = await outcome(wire("UpdateSipTrunk", whole))
    # Enums are 32 bits on the wire: of 2**32 + 1 a parser keeps 1.
    assert code == ("OK" if value == 2**32 + 1 else "INVALID_ARGUMENT")
    assert await read(stub, trunk.id) == trunk


def texts(message: type[Message]) -> list[str]:
    """The names of the fields that hold one text."""
    fields: Any = message.DESCRIPTOR.fields
    return [f.name for f in fields if f.type == f.TYPE_STRING and not f.is_repeated]


SERVER_SETS = {"id", "account_id", "etag", "byot_trunk_id", "telephony_provider"}


@pytest.mark.parametrize("name", texts(SipTrunk))
async def test_nul_in_a_text_of_a_trunk_is_refused_or_ignored(
    wire: Any, stub: Any, name: str
) -> None:
    sent = userpass(**{name: "a\0b"})
    call = wire("CreateSipTrunk", data(pb.CreateSipTrunkRequest(sip_trunk=sent)))
    if name in SERVER_SETS:
        assert await outcome(call) == "OK"
    else:
        assert (await refused(call)).fields == [name]
    trunk = await created(stub)
    if name not in SERVER_SETS:
        error = await refused(wire("UpdateSipTrunk", data(update(trunk.id, name, **{name: "\0"}))))
        assert (error.code, error.fields) == ("INVALID_ARGUMENT", [name])


@pytest.mark.parametrize("name", texts(PhoneNumber))
async def test_nul_in_a_text_of_a_number_is_refused_or_ignored(
    wire: Any, stub: Any, name: str
) -> None:
    trunk = await created(stub)
    fields: dict[str, Any] = {"phone_number": "+15550100", name: "a\0b"}
    number = PhoneNumber(**fields)
    request = pb.CreatePhoneNumberRequest(trunk_id=trunk.id, phone_number=number)
    call = wire("CreatePhoneNumber", data(request))
    if name in SERVER_SETS:
        assert await outcome(call) == "OK"
    else:
        assert (await refused(call)).fields == [name]


@pytest.mark.parametrize(
    ("method", "request_", "code"),
    [
        ("GetSipTrunk", pb.GetSipTrunkRequest(id="\0"), "NOT_FOUND"),
        ("UpdateSipTrunk", update("\0", "name", name="x"), "NOT_FOUND"),
        ("UpdateSipTrunk", update(MINE, "\0", name="x"), "INVALID_ARGUMENT"),
        ("UpdateSipTrunk", update(MINE, "name", name="x", etag="\0"), "NOT_FOUND"),
        ("DeleteSipTrunk", pb.DeleteSipTrunkRequest(id="\0"), "NOT_FOUND"),
        ("DeleteSipTrunk", pb.DeleteSipTrunkRequest(id=MINE, etag="\0"), "NOT_FOUND"),
        ("ListSipTrunks", pb.ListSipTrunksRequest(filter="\0"), "INVALID_ARGUMENT"),
        ("ListSipTrunks", pb.ListSipTrunksRequest(filter='provider="\0"'), "INVALID_ARGUMENT"),
        ("ListSipTrunks", pb.ListSipTrunksRequest(filter="name=\0*"), "INVALID_ARGUMENT"),
        ("ListSipTrunks", pb.ListSipTrunksRequest(order_by="\0"), "INVALID_ARGUMENT"),
        ("ListSipTrunks", pb.ListSipTrunksRequest(page_token="\0"), "INVALID_ARGUMENT"),
        ("ListPhoneNumbers", pb.ListPhoneNumbersRequest(trunk_id="\0"), "NOT_FOUND"),
        (
            "ListPhoneNumbers",
            pb.ListPhoneNumbersRequest(trunk_id=MINE, page_token="\0"),
            "INVALID_ARGUMENT",
        ),
        (
            "UpdatePhoneNumber",
            pb.UpdatePhoneNumberRequest(trunk_id=MINE, phone_number=PhoneNumber(id="\0")),
            "NOT_FOUND",
        ),
        ("DeletePhoneNumber", pb.DeletePhoneNumberRequest(trunk_id="\0", id="x"), "NOT_FOUND"),
        ("DeletePhoneNumber", pb.DeletePhoneNumberRequest(trunk_id=MINE, id="\0"), "NOT_FOUND"),
    ],
)
async def test_nul_in_a_text_of_a_request_gets_a_defined_answer(
    wire: Any, method: str, request_: Message, code: str
) -> None:
    assert await outcome(wire(method, data(request_))) == code


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/siptrunk.v1.SipTrunkService/Nope", "UNIMPLEMENTED"),
        ("/siptrunk.v1.SipTrunkService/", "UNIMPLEMENTED"),
        ("/siptrunk.v2.SipTrunkService/GetSipTrunk", "UNIMPLEMENTED"),
        ("/nope", "UNIMPLEMENTED"),
        ("/grpc.health.v1.Health/Nope", "UNIMPLEMENTED"),
    ],
)
async def test_an_unknown_method_is_unimplemented(service: str, path: str, code: str) -> None:
    async with grpc.aio.insecure_channel(service) as channel:
        call: Any = channel.unary_unary(path)
        error = await refused(call(b""))
    assert (error.code, error.reason) == (code, "METHOD_UNKNOWN")
