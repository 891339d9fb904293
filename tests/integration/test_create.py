import asyncio
from typing import Any

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.conftest import created, read
from tests.support import (
    Gateway,
    IpIdentifier,
    PhoneNumber,
    SipTrunk,
    ip_based,
    password,
    refused,
    userpass,
)


def create(trunk: SipTrunk, *phone_numbers: PhoneNumber) -> pb.CreateSipTrunkRequest:
    return pb.CreateSipTrunkRequest(sip_trunk=trunk, phone_numbers=phone_numbers)


def numbers(*texts: str) -> list[PhoneNumber]:
    return [PhoneNumber(phone_number=text) for text in texts]


async def listed(stub: Any) -> list[SipTrunk]:
    return list((await stub.ListSipTrunks(pb.ListSipTrunksRequest())).sip_trunks)


async def test_create_gives_what_was_not_sent_its_default(stub: Any) -> None:
    trunk = await created(stub, userpass(name="Acme Mumbai"))
    assert (trunk.name, trunk.provider) == ("Acme Mumbai", "plivo")
    assert (trunk.auth_type, trunk.auth_username) == (SipTrunk.USERPASS, "acme")
    assert not trunk.HasField("description")
    assert [(g.gateway_address, g.priority) for g in trunk.gateways] == [("sip.example.com", 1)]
    assert not trunk.gateways[0].HasField("port")
    assert not trunk.ip_identifiers
    assert (trunk.allow, trunk.disallow, list(trunk.codecs)) == (
        "ulaw,alaw",
        "all",
        ["ulaw", "alaw"],
    )
    assert (trunk.transport, trunk.media_encryption) == (SipTrunk.UDP, SipTrunk.NO)
    assert {f: getattr(trunk, f) for f in ON | OFF} == dict.fromkeys(ON, True) | dict.fromkeys(
        OFF, False
    )
    assert all(trunk.HasField(f) for f in ON | OFF | {"transport", "allow"})  # type: ignore[arg-type]
    assert (trunk.qualify_frequency, trunk.phone_number_count) == (60, 0)


ON = {"rtp_symmetric", "force_rport", "outbound_leading_plus_enabled", "is_active"}
OFF = {"media_encryption_optimistic", "direct_media", "ice_support", "inbound_enabled"}


async def test_create_takes_false_and_zero_as_values(stub: Any) -> None:
    sent = dict.fromkeys(ON, False) | dict.fromkeys(OFF, True) | {"qualify_frequency": 0}
    trunk = await created(stub, userpass(**sent, description=""))
    assert {f: getattr(trunk, f) for f in sent} == sent
    assert trunk.HasField("description")


async def test_create_gives_identity_and_times(stub: Any) -> None:
    trunk = await created(stub)
    assert trunk.account_id == "default"
    assert 1 <= len(trunk.id) <= 64
    assert trunk.id.isascii()
    assert trunk.id.isprintable()
    assert trunk.etag
    assert trunk.created_at == trunk.updated_at
    assert trunk.gateways[0].id
    assert trunk.gateways[0].HasField("created_at")
    assert trunk == await read(stub, trunk.id)


async def test_create_ignores_what_the_server_sets(stub: Any) -> None:
    sent = userpass(
        id="mine",
        account_id="another",
        phone_number_count=7,
        codecs=["g722"],
        etag='"1-1"',
        gateways=[Gateway(gateway_address="sip.example.com", id="mine")],
    )
    sent.created_at.FromSeconds(1)
    sent.updated_at.FromSeconds(1)
    trunk = await created(stub, sent)
    assert trunk.id != "mine"
    assert trunk.gateways[0].id != "mine"
    assert (trunk.account_id, trunk.phone_number_count) == ("default", 0)
    assert (trunk.etag != '"1-1"', list(trunk.codecs)) == (True, ["ulaw", "alaw"])
    assert trunk.created_at.ToDatetime().year > 2000


async def test_create_keeps_the_password_to_itself(stub: Any) -> None:
    trunk = await created(stub)
    assert not trunk.HasField("auth_password")
    assert trunk.auth_password_set
    assert trunk.auth_password_changed_at == trunk.created_at


async def test_create_of_an_ip_based_trunk_has_no_credentials(stub: Any) -> None:
    trunk = await created(stub, ip_based())
    assert not trunk.HasField("auth_username")
    assert not trunk.auth_password_set
    assert not trunk.HasField("auth_password_changed_at")


async def test_create_of_an_ip_based_trunk_refuses_credentials(stub: Any) -> None:
    error = await refused(
        stub.CreateSipTrunk(create(ip_based(auth_username="acme", auth_password=password())))
    )
    assert error.violations == {
        "auth_username": "NOT_ON_IP_BASED",
        "auth_password": "NOT_ON_IP_BASED",
    }


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("name", "REQUIRED"),
        ("provider", "REQUIRED"),
        ("auth_type", "REQUIRED"),
        ("gateways", "TOO_FEW"),
        ("auth_username", "REQUIRED"),
        ("auth_password", "REQUIRED"),
    ],
)
async def test_create_without_a_required_field_is_refused(
    stub: Any, missing: str, reason: str
) -> None:
    sent = userpass()
    sent.ClearField(missing)  # type: ignore[arg-type]
    error = await refused(stub.CreateSipTrunk(create(sent)))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", {missing: reason})
    assert await listed(stub) == []


async def test_create_of_an_ip_based_trunk_needs_an_identifier(stub: Any) -> None:
    sent = ip_based()
    sent.ClearField("ip_identifiers")
    error = await refused(stub.CreateSipTrunk(create(sent)))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", {"ip_identifiers": "TOO_FEW"})


async def test_create_names_every_missing_field_at_once(stub: Any) -> None:
    error = await refused(stub.CreateSipTrunk(create(SipTrunk())))
    assert error.violations == {
        "name": "REQUIRED",
        "provider": "REQUIRED",
        "auth_type": "REQUIRED",
        "gateways": "TOO_FEW",
    }


async def test_create_without_a_trunk_is_refused(stub: Any) -> None:
    error = await refused(stub.CreateSipTrunk(pb.CreateSipTrunkRequest()))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", {"sip_trunk": "REQUIRED"})


async def test_create_needs_tls_for_sdes(stub: Any) -> None:
    sent = userpass(media_encryption=SipTrunk.SDES)
    error = await refused(stub.CreateSipTrunk(create(sent)))
    assert error.violations == {"media_encryption": "SDES_NEEDS_TLS"}
    sent.transport = SipTrunk.TLS
    assert (await created(stub, sent)).media_encryption == SipTrunk.SDES


@pytest.mark.parametrize("field", ["auth_type", "transport", "media_encryption"])
@pytest.mark.parametrize("number", [0, 99, -2147483648])
async def test_create_refuses_an_enum_value_that_is_none(
    stub: Any, field: str, number: int
) -> None:
    error = await refused(stub.CreateSipTrunk(create(userpass(**{field: number}))))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", {field: "UNKNOWN_VALUE"})


@pytest.mark.parametrize(
    ("first", "second"), [("Acme", "Acme"), ("Café", "Cafe\u0301"), ("Å", "\u212b")]
)
async def test_create_of_a_name_that_is_taken_is_refused(
    stub: Any, first: str, second: str
) -> None:
    await created(stub, userpass(name=first))
    error = await refused(stub.CreateSipTrunk(create(userpass(name=second))))
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "NAME_TAKEN")
    assert error.metadata == {"field": "name"}


async def test_create_stores_names_in_nfc_and_tells_their_case_apart(stub: Any) -> None:
    trunk = await created(stub, userpass(name="Cafe\u0301"))
    assert trunk.name == "Caf\u00e9"
    assert (await created(stub, userpass(name="CAFÉ"))).id != trunk.id


async def test_create_of_a_name_of_another_account_is_done(ours: Any, theirs: Any) -> None:
    for stub in (ours, theirs):
        assert (await created(stub, userpass(name="Acme"))).name == "Acme"


async def test_concurrent_creates_of_one_name_have_one_winner(stub: Any) -> None:
    calls = [refusal_of(stub, create(userpass(name="Acme"))) for _ in range(20)]
    answers = await asyncio.gather(*calls)
    assert sorted(map(str, answers)) == [*["ALREADY_EXISTS"] * 19, "None"]
    assert [trunk.name for trunk in await listed(stub)] == ["Acme"]


async def refusal_of(stub: Any, request: pb.CreateSipTrunkRequest) -> str | None:
    """The code of a create's error, None where it was done."""
    call = stub.CreateSipTrunk(request)
    answer = (await asyncio.gather(call, return_exceptions=True))[0]
    return None if isinstance(answer, SipTrunk) else (await refused(call)).code


async def test_create_takes_the_first_numbers_along(stub: Any) -> None:
    trunk = await stub.CreateSipTrunk(
        create(
            userpass(),
            PhoneNumber(phone_number="+15550100", name="Desk"),
            PhoneNumber(phone_number="15550101"),
        )
    )
    assert trunk.phone_number_count == 2
    page = await stub.ListPhoneNumbers(pb.ListPhoneNumbersRequest(trunk_id=trunk.id))
    assert [(n.phone_number, n.name) for n in page.phone_numbers] == [
        ("+15550100", "Desk"),
        ("15550101", ""),
    ]
    assert {n.byot_trunk_id for n in page.phone_numbers} == {trunk.id}


async def test_create_takes_100_numbers_and_no_more(stub: Any) -> None:
    many = numbers(*(f"+1555{n:04}" for n in range(101)))
    trunk = await stub.CreateSipTrunk(create(userpass(), *many[:100]))
    assert trunk.phone_number_count == 100
    error = await refused(stub.CreateSipTrunk(create(userpass(), *many)))
    assert error.violations == {"phone_numbers": "TOO_MANY"}


@pytest.mark.parametrize(
    ("sent", "refusal"),
    [
        (numbers("+15550100", "15550100"), {"phone_numbers[1]": "DUPLICATE"}),
        (numbers("1555", "12"), {"phone_numbers[1].phone_number": "INVALID_FORM"}),
        ([PhoneNumber()], {"phone_numbers[0].phone_number": "REQUIRED"}),
        (
            [PhoneNumber(phone_number="15550100", e164_check_enabled=True)],
            {"phone_numbers[0].phone_number": "NOT_E164"},
        ),
        (
            [PhoneNumber(phone_number="1555", name="x" * 101)],
            {"phone_numbers[0].name": "TOO_LONG"},
        ),
    ],
)
async def test_create_with_a_number_that_is_wrong_leaves_nothing(
    stub: Any, sent: list[PhoneNumber], refusal: dict[str, str]
) -> None:
    error = await refused(stub.CreateSipTrunk(create(userpass(), *sent)))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", refusal)
    assert await listed(stub) == []


async def test_create_judges_trunk_and_numbers_at_once(stub: Any) -> None:
    error = await refused(stub.CreateSipTrunk(create(userpass(name=""), *numbers("x", "1234"))))
    assert error.violations == {"name": "REQUIRED", "phone_numbers[0].phone_number": "INVALID_FORM"}


async def test_create_with_a_number_that_is_taken_leaves_nothing(stub: Any) -> None:
    first = await created(stub, userpass(), "+15550100")
    sent = userpass(name="once more")
    error = await refused(
        stub.CreateSipTrunk(create(sent, *numbers("+15550101", "15550100", "+15550102")))
    )
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "PHONE_NUMBER_TAKEN")
    assert await listed(stub) == [first]
    again = await stub.CreateSipTrunk(create(sent, *numbers("+15550101", "+15550102")))
    assert again.phone_number_count == 2


async def test_create_with_lists_at_their_most(stub: Any) -> None:
    sent = userpass(
        gateways=[Gateway(gateway_address=f"gw{n}.example.com") for n in range(32)],
        ip_identifiers=[IpIdentifier(ip_address=f"192.0.2.{n}") for n in range(256)],
    )
    trunk = await created(stub, sent)
    assert (len(trunk.gateways), len(trunk.ip_identifiers)) == (32, 256)
    sent.name += " again"
    sent.gateways.add(gateway_address="one.too.many")
    sent.ip_identifiers.add(ip_address="198.51.100.1")
    error = await refused(stub.CreateSipTrunk(create(sent)))
    assert error.violations == {"gateways": "TOO_MANY", "ip_identifiers": "TOO_MANY"}
