from typing import Any

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.conftest import created, read
from tests.support import (
    Gateway,
    IpIdentifier,
    SipTrunk,
    ip_based,
    password,
    refused,
    update,
    userpass,
)

NEVER = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def ips(*addresses: str) -> list[IpIdentifier]:
    return [IpIdentifier(ip_address=address) for address in addresses]


def hosts(*addresses: str) -> list[Gateway]:
    return [Gateway(gateway_address=address) for address in addresses]


async def test_update_changes_the_named_field_alone(stub: Any) -> None:
    before = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
    after = await stub.UpdateSipTrunk(
        update(before.id, "qualify_frequency", qualify_frequency=30, name="not named")
    )
    expected = SipTrunk()
    expected.CopyFrom(before)
    expected.qualify_frequency = 30
    expected.etag = after.etag
    expected.updated_at.CopyFrom(after.updated_at)
    assert after == expected
    assert after.etag != before.etag
    assert after.updated_at.ToDatetime() > before.updated_at.ToDatetime()


async def test_update_answers_with_what_a_read_then_gives(stub: Any) -> None:
    trunk = await created(stub)
    after = await stub.UpdateSipTrunk(update(trunk.id, "description", description="primary"))
    assert after == await read(stub, trunk.id)


async def test_update_reports_every_violation_with_its_path(stub: Any) -> None:
    trunk = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
    error = await refused(
        stub.UpdateSipTrunk(
            update(
                trunk.id,
                "qualify_frequency",
                "media_encryption",
                "nope",
                qualify_frequency=86401,
                media_encryption=SipTrunk.SDES,
            )
        )
    )
    assert error.code == "INVALID_ARGUMENT"
    assert error.violations == {
        "update_mask": "UNKNOWN_PATH",
        "qualify_frequency": "OUT_OF_RANGE",
        "media_encryption": "SDES_NEEDS_TLS",
    }


async def test_update_with_a_violation_writes_none_of_its_fields(stub: Any) -> None:
    trunk = await created(stub)
    request = update(
        trunk.id,
        "name",
        "gateways",
        "qualify_frequency",
        name="changed",
        gateways=hosts("other.example.com"),
        qualify_frequency=-1,
    )
    assert (await refused(stub.UpdateSipTrunk(request))).fields == ["qualify_frequency"]
    assert await read(stub, trunk.id) == trunk


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"qualify_frequency": 60, "is_active": True},
        {"name": "Cafe\u0301"},
        {"description": "line\nline"},
        {"provider": "plivo", "auth_type": SipTrunk.USERPASS},
        {"gateways": hosts("SIP.Example.COM.", "[2001:DB8:0::1]", "::ffff:203.0.113.9")},
        {
            "gateways": [
                Gateway(gateway_address="sip.example.com", priority=1),
                Gateway(gateway_address="2001:db8::1"),
                Gateway(gateway_address="203.0.113.9", priority=1),
            ]
        },
        {"ip_identifiers": ips("::ffff:203.0.113.5", "198.51.100.0/24", "2001:DB8::/32")},
        {"ip_identifiers": ips("203.0.113.5/32", "198.51.100.0/24", "2001:db8:0:0::/32")},
        {"allow": "ULAW, alaw", "disallow": "ALL"},
        {"transport": SipTrunk.UDP, "media_encryption": SipTrunk.NO},
    ],
)
async def test_update_that_changes_nothing_keeps_etag_and_time(
    stub: Any, sent: dict[str, Any]
) -> None:
    stored = await created(
        stub,
        userpass(
            name="Café",
            description="line\nline",
            gateways=hosts("sip.example.com", "2001:db8::1", "203.0.113.9"),
            ip_identifiers=ips("203.0.113.5", "198.51.100.0/24", "2001:db8::/32"),
        ),
    )
    assert await stub.UpdateSipTrunk(update(stored.id, *sent, **sent)) == stored
    assert await read(stub, stored.id) == stored


async def test_update_with_the_password_it_has_is_a_change(stub: Any) -> None:
    secret = password()
    before = await created(stub, userpass(auth_password=secret))
    after = await stub.UpdateSipTrunk(update(before.id, "auth_password", auth_password=secret))
    assert after.etag != before.etag
    assert (
        after.auth_password_changed_at.ToDatetime() > before.auth_password_changed_at.ToDatetime()
    )
    assert not after.HasField("auth_password")


async def test_update_of_other_fields_keeps_the_time_of_the_password(stub: Any) -> None:
    before = await created(stub)
    after = await stub.UpdateSipTrunk(update(before.id, "auth_username", auth_username="other"))
    assert after.auth_password_changed_at == before.auth_password_changed_at
    assert after.auth_password_set


async def test_update_without_a_value_clears_the_description(stub: Any) -> None:
    trunk = await created(stub, userpass(description="to go"))
    after = await stub.UpdateSipTrunk(update(trunk.id, "description"))
    assert not after.HasField("description")
    assert after.etag != trunk.etag


async def test_update_that_clears_what_is_absent_changes_nothing(stub: Any) -> None:
    trunk = await created(stub)
    assert await stub.UpdateSipTrunk(update(trunk.id, "description")) == trunk


@pytest.mark.parametrize(
    "field",
    [
        "name",
        "auth_username",
        "auth_password",
        "allow",
        "disallow",
        "transport",
        "media_encryption",
        "media_encryption_optimistic",
        "direct_media",
        "rtp_symmetric",
        "force_rport",
        "ice_support",
        "qualify_frequency",
        "inbound_enabled",
        "outbound_leading_plus_enabled",
        "is_active",
        "provider",
        "auth_type",
        "gateways",
    ],
)
async def test_update_without_a_value_is_refused_by_the_name_of_the_field(
    stub: Any, field: str
) -> None:
    trunk = await created(stub)
    error = await refused(stub.UpdateSipTrunk(update(trunk.id, field)))
    assert (error.code, error.fields) == ("INVALID_ARGUMENT", [field])
    assert field in error.message
    assert await read(stub, trunk.id) == trunk


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("description", ""),
        ("qualify_frequency", 0),
        ("rtp_symmetric", False),
        ("force_rport", False),
        ("outbound_leading_plus_enabled", False),
        ("is_active", False),
        ("media_encryption_optimistic", True),
        ("direct_media", True),
        ("ice_support", True),
        ("inbound_enabled", True),
        ("transport", SipTrunk.TCP),
        ("auth_username", "other"),
        ("allow", "opus,ulaw:20"),
        ("disallow", "alaw"),
    ],
)
@pytest.mark.parametrize("masked", [True, False])
async def test_update_sets_the_value_sent(
    stub: Any, field: str, value: object, *, masked: bool
) -> None:
    trunk = await created(stub, userpass(description="something"))
    paths = [field] if masked else []
    after = await stub.UpdateSipTrunk(update(trunk.id, *paths, **{field: value}))
    assert after.HasField(field)
    assert getattr(after, field) == value
    assert getattr(await read(stub, trunk.id), field) == value


@pytest.mark.parametrize("field", ["name", "auth_username", "auth_password", "allow", "disallow"])
@pytest.mark.parametrize("masked", [True, False])
async def test_update_to_an_empty_text_is_refused_where_one_is_required(
    stub: Any, field: str, *, masked: bool
) -> None:
    trunk = await created(stub)
    paths = [field] if masked else []
    error = await refused(stub.UpdateSipTrunk(update(trunk.id, *paths, **{field: ""})))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", {field: "REQUIRED"})
    assert await read(stub, trunk.id) == trunk


@pytest.mark.parametrize("field", ["transport", "media_encryption", "auth_type"])
@pytest.mark.parametrize("number", [0, 77, -1])
@pytest.mark.parametrize("masked", [True, False])
async def test_update_to_an_enum_value_that_is_none_is_refused(
    stub: Any, field: str, number: int, *, masked: bool
) -> None:
    trunk = await created(stub)
    paths = [field] if masked else []
    error = await refused(stub.UpdateSipTrunk(update(trunk.id, *paths, **{field: number})))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", {field: "UNKNOWN_VALUE"})
    assert await read(stub, trunk.id) == trunk


@pytest.mark.parametrize(
    ("sent", "paths"),
    [
        ({"provider": "plivo"}, ("provider",)),
        ({"auth_type": SipTrunk.USERPASS}, ("auth_type",)),
        ({"provider": "plivo", "auth_type": SipTrunk.USERPASS}, ()),
    ],
)
async def test_update_with_an_immutable_field_as_stored_sets_the_others(
    stub: Any, sent: dict[str, Any], paths: tuple[str, ...]
) -> None:
    trunk = await created(stub)
    paths = (*paths, "name") if paths else ()
    after = await stub.UpdateSipTrunk(update(trunk.id, *paths, name="renamed", **sent))
    assert (after.name, after.provider, after.auth_type) == (
        "renamed",
        "plivo",
        SipTrunk.USERPASS,
    )


async def test_update_compares_an_immutable_field_in_its_normal_form(stub: Any) -> None:
    trunk = await created(stub, userpass(provider="Café"))
    assert await stub.UpdateSipTrunk(update(trunk.id, "provider", provider="Cafe\u0301")) == trunk


@pytest.mark.parametrize("mask", ["none", "path", "wildcard"])
@pytest.mark.parametrize(
    ("field", "value"), [("provider", "telnyx"), ("auth_type", SipTrunk.IP_BASED)]
)
async def test_update_of_an_immutable_field_is_refused(
    stub: Any, field: str, value: object, mask: str
) -> None:
    trunk = await created(stub)
    sent = SipTrunk()
    sent.CopyFrom(trunk)
    sent.name = "not written"
    setattr(sent, field, value)
    request = pb.UpdateSipTrunkRequest(sip_trunk=sent)
    request.update_mask.paths.extend({"none": [], "path": ["name", field], "wildcard": ["*"]}[mask])
    error = await refused(stub.UpdateSipTrunk(request))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", {field: "IMMUTABLE"})
    assert await read(stub, trunk.id) == trunk


async def test_update_to_a_name_that_is_taken_is_refused_and_writes_nothing(stub: Any) -> None:
    taken, trunk = await created(stub), await created(stub)
    error = await refused(
        stub.UpdateSipTrunk(
            update(trunk.id, "name", "description", name=taken.name, description="lost")
        )
    )
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "NAME_TAKEN")
    assert error.metadata == {"field": "name"}
    assert await read(stub, trunk.id) == trunk


@pytest.mark.parametrize(
    ("trunk_id", "code"),
    [
        (NEVER, "NOT_FOUND"),
        ("x" * 65, "NOT_FOUND"),
        ("é", "NOT_FOUND"),
        ("a b", "NOT_FOUND"),
        ("", "INVALID_ARGUMENT"),
    ],
)
async def test_update_of_no_trunk(stub: Any, trunk_id: str, code: str) -> None:
    assert (await refused(stub.UpdateSipTrunk(update(trunk_id, "name", name="x")))).code == code


async def test_update_of_no_trunk_with_a_wrong_value_tells_of_the_value(stub: Any) -> None:
    error = await refused(stub.UpdateSipTrunk(update(NEVER, "name", name="")))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", {"name": "REQUIRED"})


async def test_update_without_a_trunk_is_refused(stub: Any) -> None:
    error = await refused(stub.UpdateSipTrunk(pb.UpdateSipTrunkRequest()))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", {"sip_trunk": "REQUIRED"})


async def test_update_of_an_ip_based_trunk_takes_no_credentials(stub: Any) -> None:
    trunk = await created(stub, ip_based())
    error = await refused(
        stub.UpdateSipTrunk(
            update(
                trunk.id,
                "auth_username",
                "auth_password",
                auth_username="acme",
                auth_password=password(),
            )
        )
    )
    assert error.violations == {
        "auth_username": "NOT_ON_IP_BASED",
        "auth_password": "NOT_ON_IP_BASED",
    }
