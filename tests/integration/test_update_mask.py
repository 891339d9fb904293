from typing import Any

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.conftest import created, read, violations
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

OUTPUT_ONLY = [
    "account_id",
    "auth_password_set",
    "auth_password_changed_at",
    "phone_number_count",
    "codecs",
    "created_at",
    "updated_at",
]


def masked(trunk: SipTrunk, *paths: str) -> pb.UpdateSipTrunkRequest:
    """An update whose mask is there, be it empty."""
    request = pb.UpdateSipTrunkRequest(sip_trunk=trunk)
    request.update_mask.SetInParent()
    request.update_mask.paths.extend(paths)
    return request


def copied(trunk: SipTrunk, **changes: Any) -> SipTrunk:
    copy = SipTrunk()
    copy.CopyFrom(trunk)
    copy.MergeFrom(SipTrunk(**changes))
    return copy


def unmasked(trunk: SipTrunk) -> pb.UpdateSipTrunkRequest:
    return pb.UpdateSipTrunkRequest(sip_trunk=trunk)


@pytest.fixture(params=[masked, unmasked], ids=["empty", "absent"])
def implied(request: pytest.FixtureRequest) -> Any:
    """What makes a request of which the mask is implied."""
    return request.param


async def test_update_with_an_implied_mask_sets_what_is_present(stub: Any, implied: Any) -> None:
    before = await created(stub, userpass(description="kept"))
    sent = SipTrunk(
        id=before.id,
        qualify_frequency=0,
        is_active=False,
        gateways=[Gateway(gateway_address="192.0.2.1")],
    )
    after = await stub.UpdateSipTrunk(implied(sent))
    assert (after.qualify_frequency, after.is_active) == (0, False)
    assert [g.gateway_address for g in after.gateways] == ["192.0.2.1"]
    assert (after.description, after.name, after.rtp_symmetric) == ("kept", before.name, True)


async def test_update_with_an_implied_mask_clears_nothing(stub: Any, implied: Any) -> None:
    before = await created(
        stub,
        userpass(description="kept", ip_identifiers=[IpIdentifier(ip_address="192.0.2.1")]),
    )
    assert await stub.UpdateSipTrunk(implied(SipTrunk(id=before.id))) == before


async def test_update_with_an_implied_mask_judges_what_is_present(stub: Any, implied: Any) -> None:
    trunk = await created(stub)
    error = await refused(
        stub.UpdateSipTrunk(implied(SipTrunk(id=trunk.id, name="", qualify_frequency=-1)))
    )
    assert error.violations == {"name": "REQUIRED", "qualify_frequency": "OUT_OF_RANGE"}


async def test_update_with_an_implied_mask_takes_a_trunk_as_read(stub: Any, implied: Any) -> None:
    trunk = await created(stub, userpass(description="as read"), "+15550100")
    assert await stub.UpdateSipTrunk(implied(trunk)) == trunk


async def test_update_neither_sets_nor_judges_what_its_mask_does_not_name(stub: Any) -> None:
    trunk = await created(stub)
    after = await stub.UpdateSipTrunk(
        update(
            trunk.id,
            "description",
            description="named",
            name="",
            provider="another",
            auth_type=SipTrunk.IP_BASED,
            auth_password="\0",
            gateways=[Gateway(gateway_address="sip://not a host", port=-1)],
            ip_identifiers=[IpIdentifier(ip_address="not an address")],
            transport=0,
            media_encryption=77,
            qualify_frequency=-1,
            allow="",
        )
    )
    assert after == copied(trunk, description="named", etag=after.etag, updated_at=after.updated_at)


async def test_update_replaces_a_named_list_whole(stub: Any) -> None:
    trunk = await created(
        stub,
        userpass(
            gateways=[Gateway(gateway_address=f"gw{n}.example.com") for n in range(3)],
            ip_identifiers=[IpIdentifier(ip_address=f"192.0.2.{n}") for n in range(3)],
        ),
    )
    after = await stub.UpdateSipTrunk(
        update(
            trunk.id,
            "gateways",
            "ip_identifiers",
            gateways=[Gateway(gateway_address="gw1.example.com", port=5080)],
            ip_identifiers=[IpIdentifier(ip_address="198.51.100.0/24")],
        )
    )
    assert [(g.gateway_address, g.port) for g in after.gateways] == [("gw1.example.com", 5080)]
    assert [i.ip_address for i in after.ip_identifiers] == ["198.51.100.0/24"]


async def test_update_to_an_empty_list_empties_it(stub: Any) -> None:
    trunk = await created(stub, userpass(ip_identifiers=[IpIdentifier(ip_address="192.0.2.1")]))
    assert not (await stub.UpdateSipTrunk(update(trunk.id, "ip_identifiers"))).ip_identifiers


@pytest.mark.parametrize(
    "path",
    [
        "gateways.port",
        "gateways.0",
        "gateways.0.port",
        "gateways.*.port",
        "gateways.",
        "gateways.nope",
        "ip_identifiers.ip_address",
        "ip_identifiers.0",
        "ip_identifiers.*.ip_address",
    ],
)
async def test_update_of_a_path_into_a_list_is_refused_and_says_why(stub: Any, path: str) -> None:
    trunk = await created(stub)
    gateways = [Gateway(gateway_address="other.example.com", port=5080)]
    error = await refused(
        stub.UpdateSipTrunk(update(trunk.id, path, "name", name="lost", gateways=gateways))
    )
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "PATH_INTO_LIST")
    [(field, reason, description)] = violations(error)
    assert (field, reason) == ("update_mask", "PATH_INTO_LIST")
    assert path in description
    assert "replaced whole" in description
    assert await read(stub, trunk.id) == trunk


async def test_update_of_a_list_and_a_path_into_it_is_refused(stub: Any) -> None:
    trunk = await created(stub)
    request = update(
        trunk.id, "gateways", "gateways.port", gateways=[Gateway(gateway_address="a.example")]
    )
    error = await refused(stub.UpdateSipTrunk(request))
    assert error.violations == {"update_mask": "PATH_INTO_LIST"}
    assert await read(stub, trunk.id) == trunk


@pytest.mark.parametrize(
    "path",
    ["nope", "", " name", "name ", "name.first", "phone_numbers", "NAME", "sip_trunk.name", "n\0"],
)
async def test_update_of_an_unknown_path_is_refused_and_writes_nothing(
    stub: Any, path: str
) -> None:
    trunk = await created(stub)
    error = await refused(stub.UpdateSipTrunk(update(trunk.id, "name", path, name="lost")))
    assert (error.code, error.violations) == (
        "INVALID_ARGUMENT",
        {"update_mask": "UNKNOWN_PATH"},
    )
    assert await read(stub, trunk.id) == trunk


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("qualifyFrequency", "qualify_frequency"),
        ("isActive", "is_active"),
        ("ipIdentifiers", "ip_identifiers"),
        ("Name", "name"),
    ],
)
async def test_update_of_a_path_in_the_wrong_case_is_refused_with_the_right_one(
    stub: Any, path: str, meant: str
) -> None:
    trunk = await created(stub)
    error = await refused(stub.UpdateSipTrunk(update(trunk.id, path, qualify_frequency=5)))
    [(field, reason, description)] = violations(error)
    assert (field, reason) == ("update_mask", "UNKNOWN_PATH")
    assert f'"{path}"' in description
    assert f"did you mean {meant}?" in description


async def test_update_of_two_unknown_paths_names_both(stub: Any) -> None:
    trunk = await created(stub)
    error = await refused(stub.UpdateSipTrunk(update(trunk.id, "one", "two", "one")))
    found = violations(error)
    assert [(field, reason) for field, reason, _ in found] == [("update_mask", "UNKNOWN_PATH")] * 2
    assert ['"one"' in found[0][2], '"two"' in found[1][2]] == [True, True]


async def test_update_takes_a_path_named_twice_as_one(stub: Any) -> None:
    trunk = await created(stub)
    paths = ["qualify_frequency", "gateways"] * 32
    sent = {"qualify_frequency": 5, "gateways": [Gateway(gateway_address="a.example")]}
    after = await stub.UpdateSipTrunk(update(trunk.id, *paths, **sent))
    assert after.qualify_frequency == 5
    assert [g.gateway_address for g in after.gateways] == ["a.example"]


async def test_update_with_more_than_64_paths_is_refused(stub: Any) -> None:
    trunk = await created(stub)
    error = await refused(stub.UpdateSipTrunk(update(trunk.id, *["name"] * 65, name="lost")))
    assert error.code == "INVALID_ARGUMENT"
    [(field, reason, description)] = violations(error)
    assert (field, reason) == ("update_mask", "TOO_MANY_PATHS")
    assert "65" in description
    assert "64" in description
    assert await read(stub, trunk.id) == trunk


@pytest.mark.parametrize("path", [*OUTPUT_ONLY, "id", "etag", "created_at.seconds"])
async def test_update_of_what_the_server_sets_is_a_no_op(stub: Any, path: str) -> None:
    trunk = await created(stub, userpass(description="stays"))
    sent = SipTrunk(
        id=trunk.id,
        account_id="another",
        auth_password_set=False,
        phone_number_count=7,
        codecs=["g722"],
    )
    sent.created_at.FromSeconds(1)
    sent.updated_at.FromSeconds(1)
    sent.auth_password_changed_at.FromSeconds(1)
    request = masked(sent, path)
    assert await stub.UpdateSipTrunk(request) == trunk
    assert await read(stub, trunk.id) == trunk


async def test_update_ignores_what_the_server_sets_beside_what_is_named(stub: Any) -> None:
    trunk = await created(stub)
    paths = [*OUTPUT_ONLY, "id", "etag", "name"]
    after = await stub.UpdateSipTrunk(update(trunk.id, *paths, name="renamed", account_id="other"))
    assert after == copied(trunk, name="renamed", etag=after.etag, updated_at=after.updated_at)


async def test_update_does_not_read_the_etag_from_the_mask(stub: Any) -> None:
    trunk = await created(stub)
    error = await refused(
        stub.UpdateSipTrunk(update(trunk.id, "etag", "name", name="lost", etag='"0-0"'))
    )
    assert error.code == "ABORTED"


CHANGED: dict[str, Any] = {
    "description": "to be reset",
    "ip_identifiers": [IpIdentifier(ip_address="192.0.2.1")],
    "allow": "g722",
    "disallow": "ulaw",
    "transport": SipTrunk.TLS,
    "media_encryption": SipTrunk.SDES,
    "media_encryption_optimistic": True,
    "direct_media": True,
    "rtp_symmetric": False,
    "force_rport": False,
    "ice_support": True,
    "qualify_frequency": 5,
    "inbound_enabled": True,
    "outbound_leading_plus_enabled": False,
    "is_active": False,
}


async def test_full_replacement_resets_what_is_absent_to_its_default(stub: Any) -> None:
    before = await created(stub, userpass(**CHANGED), "+15550100")
    bare = await created(stub)
    sent = userpass(id=before.id, name="replaced", auth_username="new")
    sent.ClearField("auth_password")
    after = await stub.UpdateSipTrunk(masked(sent, "*"))
    expected = copied(
        before,
        name="replaced",
        auth_username="new",
        etag=after.etag,
        updated_at=after.updated_at,
    )
    expected.ClearField("description")
    expected.ClearField("ip_identifiers")
    del expected.codecs[:]
    expected.codecs.extend(bare.codecs)
    for field in CHANGED.keys() - {"description", "ip_identifiers", "is_active"}:
        setattr(expected, field, getattr(bare, field))
    assert after == expected


async def test_full_replacement_keeps_is_active_and_the_password(stub: Any) -> None:
    before = await created(stub, userpass(is_active=False))
    sent = userpass(id=before.id)
    sent.ClearField("auth_password")
    after = await stub.UpdateSipTrunk(masked(sent, "*"))
    assert after.is_active is False
    assert after.auth_password_changed_at == before.auth_password_changed_at


async def test_full_replacement_sets_is_active_and_the_password_where_present(stub: Any) -> None:
    before = await created(stub, userpass(is_active=False))
    sent = userpass(id=before.id, auth_password=password(), is_active=True)
    after = await stub.UpdateSipTrunk(masked(sent, "*"))
    assert after.is_active is True
    assert (
        after.auth_password_changed_at.ToDatetime() > before.auth_password_changed_at.ToDatetime()
    )


@pytest.mark.parametrize("field", ["name", "gateways", "auth_username"])
async def test_full_replacement_without_a_required_field_is_refused(stub: Any, field: str) -> None:
    trunk = await created(stub, userpass(description="stays"))
    sent = copied(trunk)
    sent.ClearField(field)  # type: ignore[arg-type]
    sent.ClearField("description")
    error = await refused(stub.UpdateSipTrunk(masked(sent, "*")))
    assert (error.code, error.fields) == ("INVALID_ARGUMENT", [field])
    assert await read(stub, trunk.id) == trunk


async def test_full_replacement_of_an_ip_based_trunk_needs_identifiers(stub: Any) -> None:
    trunk = await created(stub, ip_based())
    sent = copied(trunk)
    sent.ClearField("ip_identifiers")
    error = await refused(stub.UpdateSipTrunk(masked(sent, "*")))
    assert error.violations == {"ip_identifiers": "TOO_FEW"}


async def test_full_replacement_names_every_violation(stub: Any) -> None:
    trunk = await created(stub)
    sent = SipTrunk(id=trunk.id, provider="another", qualify_frequency=-1)
    sent.transport = SipTrunk.TRANSPORT_UNSPECIFIED
    error = await refused(stub.UpdateSipTrunk(masked(sent, "*")))
    assert set(error.fields) == {
        "name",
        "gateways",
        "auth_username",
        "provider",
        "transport",
        "qualify_frequency",
    }


@pytest.mark.parametrize("paths", [["*", "name"], ["name", "*"], ["*", "nope"], ["*", "etag"]])
async def test_full_replacement_stands_alone_in_the_mask(stub: Any, paths: list[str]) -> None:
    trunk = await created(stub)
    error = await refused(stub.UpdateSipTrunk(masked(copied(trunk, name="lost"), *paths)))
    assert error.violations == {"update_mask": "WILDCARD_NOT_ALONE"}
    assert await read(stub, trunk.id) == trunk


async def test_full_replacement_with_a_trunk_as_read_changes_nothing(stub: Any) -> None:
    for made in (userpass(**CHANGED), ip_based(is_active=False), userpass()):
        trunk = await created(stub, made, made.name.replace("Acme ", "+1555"))
        assert await stub.UpdateSipTrunk(masked(trunk, "*")) == trunk
        assert await stub.UpdateSipTrunk(masked(trunk, "*", "*")) == trunk
