import random
from typing import Any

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration import random_trunks
from tests.integration.conftest import created, read
from tests.support import (
    Gateway,
    IpIdentifier,
    PhoneNumber,
    SipTrunk,
    ip_based,
    password,
    userpass,
)

TRUNKS = 60
SPELLINGS: dict[str, dict[str, Any]] = {
    "NFD labels": {
        "name": "e\u0301cole",
        "provider": "Zu\u0308rich",
        "auth_username": "A\u030angstro\u0308m",
    },
    "NFKC is not applied": {"name": "\u212bngstr\u00f6m \ufb01"},
    "empty description": {"description": ""},
    "several lines": {"description": "one\n\ttwo\n\n"},
    "blanks around a description": {"description": " \u3000blank at both ends "},
    "500 composed characters": {"description": "e\u0301" * 500},
    "quotes and escapes": {"description": "'; DROP TABLE trunks; -- \\x00 %s $1 {}"},
    "codecs in any case": {"allow": " ULAW:20 ,!g722, Alaw", "disallow": "G729, opus"},
    "all but one": {"allow": "all", "disallow": "ULAW"},
    "removals": {"allow": "!ulaw,all,!gsm", "disallow": "ALL"},
    "upper case and trailing dot": {
        "gateways": [Gateway(gateway_address="SIP.Example.COM.", port=5060)]
    },
    "IPv6 in brackets": {
        "gateways": [Gateway(gateway_address="[2001:DB8:0:0::1]"), Gateway(gateway_address="A")]
    },
    "IPv4-mapped gateway": {"gateways": [Gateway(gateway_address="::FFFF:192.0.2.1", priority=0)]},
    "one host on several ports": {
        "gateways": [
            Gateway(gateway_address="same.example.com", priority=9),
            Gateway(gateway_address="same.example.com", port=5060, priority=0),
            Gateway(gateway_address="same.example.com", port=65535),
            Gateway(gateway_address="other.example.com", priority=9),
        ]
    },
    "32 gateways": {
        "gateways": [Gateway(gateway_address=f"h{i}", priority=i % 3) for i in range(32)]
    },
    "ranges": {
        "ip_identifiers": [
            IpIdentifier(ip_address=text)
            for text in ("203.0.113.7/32", "10.0.0.0/8", "2001:DB8::1/128", "2001:db8:5::/48")
        ]
    },
    "IPv4-mapped range": {"ip_identifiers": [IpIdentifier(ip_address="::ffff:203.0.113.64/122")]},
    "256 identifiers": {
        "ip_identifiers": [IpIdentifier(ip_address=f"198.18.{i}.1") for i in range(256)]
    },
    "not the defaults": {
        "transport": SipTrunk.TLS,
        "media_encryption": SipTrunk.SDES,
        "is_active": False,
    },
    "zero and false": {"qualify_frequency": 0, "rtp_symmetric": False, "force_rport": False},
}


def masks(trunk: SipTrunk) -> dict[str, list[str]]:
    """The masks with which a trunk that was read says all that it can say."""
    names = [descriptor.name for descriptor in SipTrunk.DESCRIPTOR.fields]
    # Named without a value, these two are refused: they can't be cleared.
    absent = (
        {"auth_password"} if trunk.HasField("auth_username") else {"auth_password", "auth_username"}
    )
    return {"none": [], "wildcard": ["*"], "every field": [n for n in names if n not in absent]}


async def assert_unchanged_when_sent_back(stub: Any, trunk_id: str, case: str) -> None:
    before = await read(stub, trunk_id)
    for kind, mask in masks(before).items():
        request = pb.UpdateSipTrunkRequest(sip_trunk=before)
        request.update_mask.paths.extend(mask)
        assert await stub.UpdateSipTrunk(request) == before, f"{kind}, {case}"
        request.sip_trunk.ClearField("etag")
        assert await stub.UpdateSipTrunk(request) == before, f"{kind} without etag, {case}"
    assert await read(stub, trunk_id) == before, case


@pytest.mark.parametrize("seed", range(3))
async def test_a_trunk_read_and_sent_back_is_not_changed(stub: Any, seed: int) -> None:
    rng, secret = random.Random(seed), password()
    for number in range(TRUNKS):
        sent = random_trunks.trunk(rng, secret)
        trunk = await created(stub, SipTrunk(**sent))
        await assert_unchanged_when_sent_back(stub, trunk.id, f"seed {seed}, {number}: {sent}")


@pytest.mark.parametrize("fields", SPELLINGS.values(), ids=SPELLINGS)
async def test_a_trunk_in_any_spelling_is_read_in_one_that_is_not_changed(
    stub: Any, fields: dict[str, Any]
) -> None:
    trunk = await created(stub, userpass(**fields), "+15550100", "15550101")
    await assert_unchanged_when_sent_back(stub, trunk.id, str(fields))


async def test_a_trunk_that_has_moved_on_is_not_changed_when_sent_back(stub: Any) -> None:
    trunk = await created(stub, ip_based(description="first"))
    for position in range(3):
        number = PhoneNumber(phone_number=f"+1555010{position}")
        await stub.CreatePhoneNumber(
            pb.CreatePhoneNumberRequest(trunk_id=trunk.id, phone_number=number)
        )
    await stub.UpdateSipTrunk(
        pb.UpdateSipTrunkRequest(
            sip_trunk=SipTrunk(
                id=trunk.id,
                gateways=[Gateway(gateway_address="b", priority=2), Gateway(gateway_address="a")],
            )
        )
    )
    await assert_unchanged_when_sent_back(stub, trunk.id, "after changes")
