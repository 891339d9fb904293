from typing import Any

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.conftest import created, violations
from tests.support import Gateway, IpIdentifier, refused, userpass


async def names(stub: Any, filter_: str) -> list[str]:
    page = await stub.ListSipTrunks(pb.ListSipTrunksRequest(filter=filter_, page_size=500))
    assert not page.next_page_token
    return sorted(trunk.name for trunk in page.sip_trunks)


async def make(stub: Any, *made: str, **fields: Any) -> None:
    for name in made:
        await created(stub, userpass(name=name, **fields))


async def test_filter_by_is_active(stub: Any) -> None:
    await make(stub, "on")
    await make(stub, "off", is_active=False)
    assert await names(stub, "is_active=true") == ["on"]
    assert await names(stub, " is_active = false ") == ["off"]


async def test_filter_by_provider(stub: Any) -> None:
    await make(stub, "a", provider="twilio")
    await make(stub, "b", provider="Café Télécom")
    assert await names(stub, 'provider="twilio"') == ["a"]
    assert await names(stub, "provider=twilio") == ["a"]
    assert await names(stub, 'provider="Cafe\u0301 Te\u0301le\u0301com"') == ["b"]
    assert await names(stub, 'provider="Twilio"') == []


async def test_filter_by_phone_number_ignores_the_plus(stub: Any) -> None:
    await created(stub, userpass(name="a"), "+15550100", "15550101")
    await created(stub, userpass(name="b"), "15550102")
    for number in ("+15550100", "15550100", "+15550101"):
        assert await names(stub, f'phone_number="{number}"') == ["a"]
    assert await names(stub, "phone_number=+15550102") == ["b"]
    assert await names(stub, 'phone_number="1555010"') == []


async def test_filter_by_gateway_address_compares_normal_forms(stub: Any) -> None:
    gateways = [
        Gateway(gateway_address="sip.example.com", port=5080),
        Gateway(gateway_address="2001:db8::1"),
        Gateway(gateway_address="192.0.2.1"),
    ]
    await make(stub, "a", gateways=gateways)
    await make(stub, "b", gateways=gateways[2:])
    for address in ("sip.example.com", "SIP.example.com.", "[2001:DB8:0::1]"):
        assert await names(stub, f'gateway_address="{address}"') == ["a"]
    assert await names(stub, 'gateway_address="::ffff:192.0.2.1"') == ["a", "b"]
    assert await names(stub, 'gateway_address="example.com"') == []


async def test_filter_by_source_ip_finds_what_contains_it(stub: Any) -> None:
    identifiers = {
        "v4": "203.0.113.5",
        "v4-range": "203.0.113.0/24",
        "v4-wide": "203.0.0.0/8",
        "v6": "2001:db8::5",
        "v6-range": "2001:db8::/32",
        "v6-wide": "2001::/19",
        "other": "198.51.100.0/24",
    }
    for name, address in identifiers.items():
        await make(stub, name, ip_identifiers=[IpIdentifier(ip_address=address)])
    v4 = ["v4", "v4-range", "v4-wide"]
    v6 = ["v6", "v6-range", "v6-wide"]
    for address, wanted in {
        "203.0.113.5": v4,
        "::ffff:203.0.113.5": v4,
        "::ffff:cb00:7105": v4,
        "203.0.113.6": v4[1:],
        "203.1.0.0": v4[2:],
        "2001:db8::5": v6,
        "2001:DB8:0:0::5": v6,
        "2001:db8:ffff::": v6[1:],
        "2001:1::1": v6[2:],
        "192.0.2.1": [],
        "::1": [],
    }.items():
        assert await names(stub, f'source_ip="{address}"') == wanted
    assert await names(stub, "source_ip=203.0.113.5") == v4


async def test_filter_follows_an_update(stub: Any) -> None:
    trunk = await created(stub, userpass(name="a"))
    change = pb.UpdateSipTrunkRequest()
    change.sip_trunk.id = trunk.id
    change.sip_trunk.gateways.add(gateway_address="new.example.com")
    change.sip_trunk.ip_identifiers.add(ip_address="192.0.2.0/24")
    await stub.UpdateSipTrunk(change)
    assert await names(stub, 'gateway_address="new.example.com"') == ["a"]
    assert await names(stub, 'gateway_address="sip.example.com"') == []
    assert await names(stub, 'source_ip="192.0.2.77"') == ["a"]


async def test_filter_by_name(stub: Any) -> None:
    await make(stub, "Acme", "Acme Mumbai", "acme", "Café")
    assert await names(stub, 'name="Acme"') == ["Acme"]
    assert await names(stub, "name=acme") == ["acme"]
    assert await names(stub, 'name="Cafe\u0301"') == ["Café"]
    assert await names(stub, 'name="Acm"') == []


@pytest.mark.parametrize(
    ("made", "filter_", "wanted"),
    [
        (["Acme", "Acme B", "acme", "B"], 'name="Acme*"', ["Acme", "Acme B"]),
        (["Acme", "Acme B", "B"], "name=Acme*", ["Acme", "Acme B"]),
        (["a", "b"], 'name="*"', ["a", "b"]),
        (["a%b", "a_b", "axb"], 'name="a%*"', ["a%b"]),
        (["a%b", "a_b", "axb"], 'name="a_*"', ["a_b"]),
        (["a\\b", "ab", "a%b"], 'name="a\\\\*"', ["a\\b"]),
        (['a"b', "ab"], 'name="a\\"*"', ['a"b']),
        (["a*b", "a*", "ab"], 'name="a\\**"', ["a*", "a*b"]),
        (["a*", "ab"], 'name="a\\*"', ["a*"]),
        (["a\\x", "a\\y", "a"], 'name="a\\\\x"', ["a\\x"]),
        (["Café A", "Cafe B"], 'name="Cafe\u0301*"', ["Café A"]),
        (["a'b", "a'; DROP TABLE trunks; --", "ab"], 'name="a\'*"', None),
        (["😀", "😀a", "\U0010ffffa", "z"], 'name="😀*"', ["😀", "😀a"]),
        (["a\U0010ffff", "a\U0010ffffb", "b"], 'name="a\U0010ffff*"', None),
        (["a\U0010ffff", "a\U0010ffffb", "b"], 'name="a*"', None),
        (["a AND b", "a", "b"], 'name="a AND *"', ["a AND b"]),
    ],
)
async def test_filter_by_a_prefix_of_the_name(
    stub: Any, made: list[str], filter_: str, wanted: list[str] | None
) -> None:
    await make(stub, *made)
    assert await names(stub, filter_) == sorted(made[:2] if wanted is None else wanted)


async def test_filter_holds_all_its_comparisons(stub: Any) -> None:
    full: dict[str, Any] = {
        "provider": "twilio",
        "gateways": [Gateway(gateway_address="gw.example.com")],
        "ip_identifiers": [IpIdentifier(ip_address="192.0.2.0/24")],
    }
    await created(stub, userpass(name="acme all", **full), "+15550100")
    await created(stub, userpass(name="acme off", is_active=False, **full), "+15550101")
    await created(stub, userpass(name="acme other", **full | {"provider": "plivo"}), "+15550102")
    comparisons = [
        "is_active=true",
        'provider="twilio"',
        'name="acme*"',
        'phone_number="+15550100"',
        'gateway_address="gw.example.com"',
        'source_ip="192.0.2.9"',
    ]
    assert await names(stub, " AND ".join(comparisons)) == ["acme all"]
    assert await names(stub, " AND ".join(comparisons[::-1])) == ["acme all"]
    assert await names(stub, " AND ".join(comparisons[1:3])) == ["acme all", "acme off"]
    assert await names(stub, " AND ".join([comparisons[0], comparisons[5]])) == [
        "acme all",
        "acme other",
    ]
    assert await names(stub, 'phone_number="+15550101" AND is_active=true') == []


async def test_filter_and_order_and_pages_hold_together(stub: Any) -> None:
    await make(stub, *"fbdace", provider="twilio")
    await make(stub, *"ghi", provider="plivo")
    found, token = [], ""
    for _ in range(9):
        page = await stub.ListSipTrunks(
            pb.ListSipTrunksRequest(
                filter='provider="twilio"', order_by="name desc", page_size=4, page_token=token
            )
        )
        found += [trunk.name for trunk in page.sip_trunks]
        token = page.next_page_token
        if not token:
            break
    assert found == list("fedcba")


@pytest.mark.parametrize(
    ("filter_", "reason", "hint"),
    [
        ("nope=1", "UNKNOWN_FIELD", "character 1"),
        ("is_active=true AND nope=1", "UNKNOWN_FIELD", "character 20"),
        ("is_active=true AND", "SYNTAX", "character 16"),
        ("is_active=true provider=x", "SYNTAX", "character 16"),
        ("is_active=true OR provider=x", "SYNTAX", "character 16"),
        ("is_active=true and provider=x", "SYNTAX", "character 16"),
        ("NOT is_active=true", "SYNTAX", "character 1"),
        ("(is_active=true)", "SYNTAX", "character 1"),
        ('name="open', "SYNTAX", "character"),
        ("name", "SYNTAX", "character 1"),
        ("=", "SYNTAX", "character 1"),
        ("is_active=true AND is_active=false", "TWICE", "character 20"),
        ("is_active!=true", "UNKNOWN_OPERATOR", "!="),
        ("name:acme", "UNKNOWN_OPERATOR", ":"),
        ("is_active=yes", "BAD_VALUE", "true or false"),
        ('is_active="true"', "BAD_VALUE", "true or false"),
        ('name="a*b"', "BAD_VALUE", "at the end"),
        ('name="**"', "BAD_VALUE", "at the end"),
        ("phone_number=abc", "BAD_VALUE", "digits"),
        ("source_ip=203.0.113.0/24", "BAD_VALUE", "address"),
        ("source_ip=fe80::1%eth0", "BAD_VALUE", "address"),
        ('gateway_address="a b"', "BAD_VALUE", "host name"),
        ('name="\0"', "CONTROL_CHARACTER", "NUL"),
        ('name="' + "x" * 1000 + '"', "TOO_LONG", "1000"),
    ],
)
async def test_filter_that_can_t_be_read_is_refused_and_says_where(
    stub: Any, filter_: str, reason: str, hint: str
) -> None:
    error = await refused(stub.ListSipTrunks(pb.ListSipTrunksRequest(filter=filter_)))
    [(field, found, description)] = violations(error)
    assert (error.code, field, found) == ("INVALID_ARGUMENT", "filter", reason)
    assert hint in description
