"""The requests that clients of the HTTP form send, with the whole reply compared."""

from typing import Any

import httpx
import pytest

from tests.support import password
from trunkline.gateway.examples import BODIES

TRUNKS = "/sip-trunks/trunks"
GATEWAY = {"gateway_address": "your-trunk.pstn.twilio.com", "port": 5060, "priority": 1}
VOLATILE = {"id", "created_at", "updated_at", "etag", "auth_password_changed_at"}


def userpass(**fields: Any) -> dict[str, Any]:
    return {
        "name": "Twilio Production",
        "provider": "twilio",
        "description": "Main Twilio Elastic SIP trunk",
        "auth_type": "userpass",
        "auth_username": "your-sip-username",
        "auth_password": password(),
        "gateways": [GATEWAY],
        "transport": "transport-udp",
        "allow": "ulaw,alaw",
        "disallow": "all",
        "inbound_enabled": True,
        "outbound_leading_plus_enabled": True,
    } | fields


def ip_based(**fields: Any) -> dict[str, Any]:
    return {
        "name": "Plivo Elastic Trunk",
        "provider": "plivo",
        "auth_type": "ip-based",
        "gateways": [{"gateway_address": "21467306465797919.zt.plivo.com", "port": 5060}],
        "ip_identifiers": [{"ip_address": "15.207.90.192/31"}, {"ip_address": "13.52.9.0/25"}],
        "transport": "transport-udp",
        "inbound_enabled": True,
    } | fields


def reply(sent: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The reply to a create of `sent`, without what changes from run to run."""
    gateways = [
        {"priority": 1, "port_explicit": "port" in g, "port": 5060} | g for g in sent["gateways"]
    ]
    defaults = {
        "account_id": "default",
        "user_id": "default",
        "description": None,
        "auth_password_set": "auth_password" in sent,
        "ip_identifiers": [],
        "phone_number_count": 0,
        "phone_numbers": [],
        "phone_numbers_truncated": False,
        "allow": "ulaw,alaw",
        "disallow": "all",
        "codecs": ["ulaw", "alaw"],
        "transport": "transport-udp",
        "media_encryption": "no",
        "media_encryption_optimistic": False,
        "direct_media": False,
        "rtp_symmetric": True,
        "force_rport": True,
        "ice_support": False,
        "qualify_frequency": 60,
        "inbound_enabled": False,
        "outbound_leading_plus_enabled": True,
        "is_active": True,
    }
    whole = defaults | sent | {"gateways": gateways} | fields
    whole.pop("auth_password", None)
    return whole


def settled(body: dict[str, Any]) -> dict[str, Any]:
    """A reply without what changes from run to run."""
    found = {k: v for k, v in body.items() if k not in VOLATILE}
    found["gateways"] = [
        {k: v for k, v in g.items() if k not in VOLATILE} for g in body["gateways"]
    ]
    return found


async def created(http: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    response = await http.post(TRUNKS, json=body)
    assert response.status_code == 201, response.text
    assert response.headers["ETag"] == response.json()["etag"]
    found: dict[str, Any] = response.json()
    return found


@pytest.mark.parametrize(
    "body",
    [
        userpass(),
        ip_based(),
        userpass(
            gateways=[GATEWAY | {"port": 5061}],
            transport="transport-tls",
            media_encryption="sdes",
            media_encryption_optimistic=False,
        ),
    ],
    ids=["userpass", "ip-based", "tls and sdes"],
)
async def test_create_answers_201_with_every_field(
    http: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    found = await created(http, body)
    assert settled(found) == reply(body)
    assert found["created_at"] == found["updated_at"]
    assert found["created_at"].endswith("Z")


CREDENTIALS = {"auth_username": "new_bolna_user", "auth_password": "fake-NewSecurePassword456"}
SOLE_GATEWAY = [{"gateway_address": "sip.newprovider.com", "port": 5060, "priority": 1}]
TLS_GATEWAY = [{"gateway_address": "your-trunk.pstn.twilio.com", "port": 5061, "priority": 1}]
EVERYTHING = {
    "name": "Updated Trunk Name",
    "description": "Updated description",
    "is_active": True,
    "allow": "ulaw",
    "disallow": "all",
    "auth_username": "new_username",
    "auth_password": "fake-new_password",
    "qualify_frequency": 30,
    "inbound_enabled": True,
    "outbound_leading_plus_enabled": False,
    "gateways": [{"gateway_address": "sip.newgateway.com", "port": 5060, "priority": 1}],
    "ip_identifiers": [{"ip_address": "203.0.113.10"}],
    "direct_media": False,
    "rtp_symmetric": True,
    "force_rport": True,
    "ice_support": True,
}
TWO_GATEWAYS = [
    {"gateway_address": "a.example", "priority": 2},
    {"gateway_address": "b.example", "port": 5080, "priority": 1},
]


@pytest.mark.parametrize(
    ("patch", "changed"),
    [
        ({"outbound_leading_plus_enabled": False}, {}),
        (CREDENTIALS, {}),
        ({"outbound_leading_plus_enabled": False, "gateways": SOLE_GATEWAY}, {}),
        (
            {
                "transport": "transport-tls",
                "media_encryption": "sdes",
                "gateways": TLS_GATEWAY,
            },
            {},
        ),
        ({"is_active": False}, {}),
        (EVERYTHING, {"codecs": ["ulaw"]}),
        ({"ip_identifiers": [{"ip_address": "15.207.90.192/31"}]}, {}),
        ({"qualify_frequency": 0}, {}),
        ({"media_encryption": "no", "transport": "transport-udp"}, {}),
        ({"media_encryption_optimistic": True}, {}),
        ({"transport": "transport-tcp"}, {}),
        (
            {"gateways": TWO_GATEWAYS},
            {
                "gateways": [
                    TWO_GATEWAYS[1] | {"port_explicit": True},
                    TWO_GATEWAYS[0] | {"port": 5060, "port_explicit": False},
                ]
            },
        ),
        ({"description": None}, {}),
        ({}, {}),
    ],
    ids=str,
)
async def test_patch_changes_its_keys_and_answers_the_whole_trunk(
    http: httpx.AsyncClient, patch: dict[str, Any], changed: dict[str, Any]
) -> None:
    body = userpass()
    before = await created(http, body)
    response = await http.patch(f"{TRUNKS}/{before['id']}", json=patch)
    assert response.status_code == 200, response.text
    gateways = patch.get("gateways")
    shown = {"gateways": [g | {"port_explicit": True} for g in gateways]} if gateways else {}
    expected = reply(body) | patch | shown | changed
    expected.pop("auth_password", None)
    after = response.json()
    assert settled(after) == expected
    same = patch in ({}, {"media_encryption": "no", "transport": "transport-udp"})
    assert (after["etag"] == before["etag"]) is same
    assert (await http.get(f"{TRUNKS}/{before['id']}")).json() == after


@pytest.mark.parametrize(
    ("patch", "status", "reason", "message"),
    [
        (
            {"media_encryption": "sdes"},
            422,
            "SDES_NEEDS_TLS",
            "media_encryption='sdes' requires transport='transport-tls'",
        ),
        ({"gateways": []}, 400, "TOO_FEW", "At least one gateway is required"),
        (
            {"provider": "telnyx"},
            400,
            "IMMUTABLE",
            "provider can't be changed after the create",
        ),
    ],
    ids=str,
)
async def test_patch_that_breaks_a_rule_is_refused_whole(
    http: httpx.AsyncClient, patch: dict[str, Any], status: int, reason: str, message: str
) -> None:
    before = await created(http, userpass())
    response = await http.patch(f"{TRUNKS}/{before['id']}", json=patch | {"is_active": False})
    body = response.json()
    assert (response.status_code, body["error"], body["reason"]) == (status, status, reason)
    assert body["message"] == body["detail"] == message
    assert [v["field"] for v in body["violations"]] == list(patch)
    assert (await http.get(f"{TRUNKS}/{before['id']}")).json() == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "Trunk name is required"),
        ({"name": None}, "Trunk name is required"),
        ({"provider": ""}, "Provider is required"),
        ({"auth_type": "neither"}, "auth_type must be 'userpass' or 'ip-based'"),
        ({"gateways": []}, "At least one gateway is required"),
        (
            {"auth_username": None, "auth_password": None},
            "auth_username and auth_password are required for userpass auth",
        ),
    ],
    ids=str,
)
async def test_create_is_refused_with_the_words_that_clients_know(
    http: httpx.AsyncClient, fields: dict[str, Any], message: str
) -> None:
    response = await http.post(TRUNKS, json=userpass(**fields))
    assert response.status_code == 400
    assert response.json()["message"] == message


async def test_ip_based_without_identifiers_is_refused(http: httpx.AsyncClient) -> None:
    response = await http.post(TRUNKS, json=ip_based(ip_identifiers=[]))
    assert response.status_code == 400
    assert response.json()["message"] == "ip_identifiers are required for ip-based auth"


async def test_numbers_come_and_go(http: httpx.AsyncClient) -> None:
    trunk = await created(http, userpass())
    numbers = f"{TRUNKS}/{trunk['id']}/numbers"
    sent = {"phone_number": "919876543210", "name": "Mumbai Support", "e164_check_enabled": False}
    response = await http.post(numbers, json=sent)
    assert response.status_code == 201
    number = response.json()
    assert {k: v for k, v in number.items() if k not in VOLATILE} == {
        "phone_number": "919876543210",
        "name": "Mumbai Support",
        "byot_trunk_id": trunk["id"],
        "telephony_provider": "sip-trunk",
        "deleted": False,
        "is_active": True,
        "agent_id": None,
    }
    again = await http.post(numbers, json={"phone_number": "+919876543210"})
    assert (again.status_code, again.json()["message"]) == (
        409,
        "Phone number already exists on another active trunk",
    )
    assert (await http.get(numbers)).json() == [number]
    gone = await http.delete(f"{numbers}/{number['id']}")
    assert (gone.status_code, gone.json()) == (
        200,
        {"message": "Phone number removed successfully"},
    )
    assert (await http.get(numbers)).json() == []


async def test_deleting_a_trunk_tells_how_many_numbers_went(http: httpx.AsyncClient) -> None:
    numbers = [{"phone_number": f"91987654321{i}"} for i in range(3)]
    trunk = await created(http, userpass(phone_numbers=numbers))
    assert [n["phone_number"] for n in trunk["phone_numbers"]] == [
        n["phone_number"] for n in numbers
    ]
    response = await http.delete(f"{TRUNKS}/{trunk['id']}")
    assert (response.status_code, response.json()) == (
        200,
        {"message": "Trunk deleted successfully. 3 phone number(s) removed."},
    )
    assert (await http.get(f"{TRUNKS}/{trunk['id']}")).status_code == 404


@pytest.mark.parametrize("name", BODIES["UpdateSipTrunk"])
async def test_documented_updates_are_taken(http: httpx.AsyncClient, name: str) -> None:
    trunk = await created(http, BODIES["CreateSipTrunk"]["userpass"])
    response = await http.patch(f"{TRUNKS}/{trunk['id']}", json=BODIES["UpdateSipTrunk"][name])
    assert response.status_code == 200


@pytest.mark.parametrize("name", BODIES["CreateSipTrunk"])
async def test_documented_creates_are_taken(http: httpx.AsyncClient, name: str) -> None:
    await created(http, BODIES["CreateSipTrunk"][name])
