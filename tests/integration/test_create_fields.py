from typing import Any

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.conftest import created, violations
from tests.support import Gateway, IpIdentifier, SipTrunk, password, refused, userpass


def create(trunk: SipTrunk) -> pb.CreateSipTrunkRequest:
    return pb.CreateSipTrunkRequest(sip_trunk=trunk)


async def wrong(stub: Any, **fields: Any) -> dict[str, str]:
    """The description of each violation by its field."""
    error = await refused(stub.CreateSipTrunk(create(userpass(**fields))))
    assert error.code == "INVALID_ARGUMENT"
    return {field: description for field, _, description in violations(error)}


@pytest.mark.parametrize(
    ("field", "most"),
    [("name", 100), ("provider", 64), ("description", 500), ("auth_username", 128)],
)
async def test_create_measures_a_text_in_characters_after_nfc(
    stub: Any, field: str, most: int
) -> None:
    for longest in ("x" * most, "é" * most, "u\u0308" * most, "😀" * most):
        trunk = await created(stub, userpass(**{field: longest}))
        assert len(getattr(trunk, field)) == most
    for beyond in ("x" * (most + 1), "e\u0301" * (most + 1), "x" * 100_000):
        error = await refused(stub.CreateSipTrunk(create(userpass(**{field: beyond}))))
        assert (error.code, error.violations) == ("INVALID_ARGUMENT", {field: "TOO_LONG"})


async def test_create_takes_a_password_of_256_characters_and_no_more(stub: Any) -> None:
    await created(stub, userpass(auth_password=password().ljust(256, "x")))
    beyond = userpass(auth_password=password().ljust(257, "x"))
    error = await refused(stub.CreateSipTrunk(create(beyond)))
    assert error.violations == {"auth_password": "TOO_LONG"}


@pytest.mark.parametrize("field", ["name", "provider", "auth_username", "auth_password"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "REQUIRED"),
        (" ", "BLANK_AT_END"),
        (" x", "BLANK_AT_END"),
        ("x ", "BLANK_AT_END"),
        ("x\u00a0", "BLANK_AT_END"),
        ("a\nb", "CONTROL_CHARACTER"),
        ("a\tb", "CONTROL_CHARACTER"),
        ("a\0b", "CONTROL_CHARACTER"),
        ("a\x7fb", "CONTROL_CHARACTER"),
        ("a\u0085b", "CONTROL_CHARACTER"),
    ],
)
async def test_create_refuses_a_label_that_is_not_one_line(
    stub: Any, field: str, text: str, reason: str
) -> None:
    error = await refused(stub.CreateSipTrunk(create(userpass(**{field: text}))))
    assert (error.code, error.violations) == ("INVALID_ARGUMENT", {field: reason})


async def test_create_takes_a_description_of_several_lines(stub: Any) -> None:
    text = " first\n\tsecond \n"
    assert (await created(stub, userpass(description=text))).description == text
    for bad in ("a\0b", "a\x07b", "a\x1bb", "a\rb"):
        error = await refused(stub.CreateSipTrunk(create(userpass(description=bad))))
        assert error.violations == {"description": "CONTROL_CHARACTER"}


@pytest.mark.parametrize(
    ("sent", "path", "low", "high"),
    [
        (lambda n: {"qualify_frequency": n}, "qualify_frequency", 0, 86400),
        (
            lambda n: {"gateways": [Gateway(gateway_address="a.example", port=n)]},
            "gateways[0].port",
            1,
            65535,
        ),
        (
            lambda n: {"gateways": [Gateway(gateway_address="a.example", priority=n)]},
            "gateways[0].priority",
            0,
            65535,
        ),
    ],
)
async def test_create_holds_a_number_to_its_range(
    stub: Any, sent: Any, path: str, low: int, high: int
) -> None:
    for n in (low, high):
        await created(stub, userpass(**sent(n)))
    for n in (low - 1, high + 1, -(2**31), 2**31 - 1):
        error = await refused(stub.CreateSipTrunk(create(userpass(**sent(n)))))
        assert error.violations == {path: "OUT_OF_RANGE"}


async def test_create_stores_gateways_in_their_normal_form(stub: Any) -> None:
    forms = {
        "SIP.Example.COM": "sip.example.com",
        "dotted.example.com.": "dotted.example.com",
        "single": "single",
        "_sip._udp.example.com": "_sip._udp.example.com",
        "a-b.example.com": "a-b.example.com",
        "3com.example": "3com.example",
        "xn--mnchen-3ya.example": "xn--mnchen-3ya.example",
        "192.0.2.1": "192.0.2.1",
        "2001:DB8:0:0::1": "2001:db8::1",
        "[2001:db8::2]": "2001:db8::2",
        "::ffff:192.0.2.9": "192.0.2.9",
        "[::ffff:c000:20a]": "192.0.2.10",
        f"{'a' * 63}.example": f"{'a' * 63}.example",
        ".".join(["a" * 49] * 5) + ".abc": ".".join(["a" * 49] * 5) + ".abc",
    }
    gateways = [Gateway(gateway_address=text) for text in forms]
    trunk = await created(stub, userpass(gateways=gateways))
    assert [g.gateway_address for g in trunk.gateways] == list(forms.values())


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "required"),
        ("sip:sip.example.com", "scheme"),
        ("sips:sip.example.com", "scheme"),
        ("https://sip.example.com", "scheme"),
        ("sip.example.com:5060", "port"),
        ("192.0.2.1:5060", "port"),
        ("[2001:db8::1]:5060", "port"),
        ("fe80::1%eth0", "zone"),
        ("[fe80::1%25eth0]", "zone"),
        ("user@sip.example.com", "host alone"),
        ("sip.example.com/x", "host alone"),
        ("010.0.0.1", "IPv4"),
        ("1.2.3", "IPv4"),
        ("1.2.3.4.5", "IPv4"),
        ("256.0.0.1", "IPv4"),
        ("sip.example.123", "IPv4"),
        ("münchen.example", "xn--mnchen-3ya.example"),
        ("MÜNCHEN.example.", "xn--mnchen-3ya.example"),
        ("-a.example", "host name"),
        ("a-.example", "host name"),
        ("a..example", "empty label"),
        (".", ""),
        ("a b.example", "host name"),
        ("a\0b.example", "NUL"),
        (f"{'a' * 64}.example", "63"),
        (".".join(["a" * 49] * 5) + ".abcd", "253"),
        ("x" * 50_000, "253"),
        ("[192.0.2.1]", ""),
        ("[]", ""),
        (":::", "IPv6"),
    ],
)
async def test_create_refuses_a_gateway_that_is_no_address_and_says_why(
    stub: Any, text: str, hint: str
) -> None:
    gateways = [Gateway(gateway_address="sip.example.com"), Gateway(gateway_address=text)]
    found = await wrong(stub, gateways=gateways)
    assert list(found) == ["gateways[1].gateway_address"]
    assert hint in found["gateways[1].gateway_address"]


async def test_create_stores_identifiers_in_their_normal_form(stub: Any) -> None:
    forms = {
        "192.0.2.1": "192.0.2.1",
        "192.0.2.2/32": "192.0.2.2",
        "198.51.100.0/24": "198.51.100.0/24",
        "10.0.0.0/8": "10.0.0.0/8",
        "::ffff:203.0.113.7": "203.0.113.7",
        "::ffff:203.0.113.128/121": "203.0.113.128/25",
        "2001:DB8:0:0::1": "2001:db8::1",
        "2001:db8::2/128": "2001:db8::2",
        "2001:db8::/32": "2001:db8::/32",
        "2001::/19": "2001::/19",
    }
    sent = [IpIdentifier(ip_address=text) for text in forms]
    trunk = await created(stub, userpass(ip_identifiers=sent))
    assert [i.ip_address for i in trunk.ip_identifiers] == list(forms.values())


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "required"),
        ("192.0.2.1/24", "192.0.2.0/24"),
        ("2001:db8::1/32", "2001:db8::/32"),
        ("::ffff:203.0.113.5/120", "203.0.113.0/24"),
        ("0.0.0.0/0", "/8"),
        ("::/0", "/19"),
        ("10.0.0.0/7", ""),
        ("2001::/18", "/19"),
        ("::ffff:0:0/96", "/8"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("224.0.0.1", "multicast"),
        ("239.0.0.0/8", "multicast"),
        ("ff02::1", "multicast"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "zone"),
        ("192.0.2.0/255.255.255.0", "bits"),
        ("192.0.2.0/", "bits"),
        ("192.0.2.0/33", "not an IPv4"),
        ("192.0.2.0/-1", "bits"),
        ("010.0.0.1", "not an IPv4"),
        ("1.2.3", "not an IPv4"),
        ("3221225985", "not an IPv4"),
        ("[2001:db8::1]", "not an IPv4"),
        ("sip.example.com", "not an IPv4"),
        (" 192.0.2.1", "not an IPv4"),
        ("192.0.2.1\0", "NUL"),
    ],
)
async def test_create_refuses_an_identifier_that_is_no_range_and_says_why(
    stub: Any, text: str, hint: str
) -> None:
    found = await wrong(stub, ip_identifiers=[IpIdentifier(ip_address=text)])
    assert list(found) == ["ip_identifiers[0].ip_address"]
    assert hint in found["ip_identifiers[0].ip_address"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("192.0.2.1", "192.0.2.1/32"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::/32", "2001:DB8:0::/32"),
    ],
)
async def test_create_refuses_an_identifier_twice(stub: Any, first: str, second: str) -> None:
    sent = [IpIdentifier(ip_address=text) for text in (first, "198.51.100.1", second)]
    error = await refused(stub.CreateSipTrunk(create(userpass(ip_identifiers=sent))))
    assert error.violations == {"ip_identifiers[2]": "DUPLICATE"}


async def test_create_takes_identifiers_that_overlap_those_of_other_trunks(stub: Any) -> None:
    for text in ("198.51.100.0/24", "198.51.100.0/24", "198.51.100.7"):
        await created(stub, userpass(ip_identifiers=[IpIdentifier(ip_address=text)]))


@pytest.mark.parametrize(
    ("allow", "disallow", "codecs"),
    [
        ("ulaw", "all", ["ulaw"]),
        ("alaw,ulaw", "all", ["alaw", "ulaw"]),
        ("ULAW:20, G722", "all", ["ulaw:20", "g722"]),
        ("opus:10,ulaw:300", "all", ["opus:10", "ulaw:300"]),
        ("ulaw,alaw,g722", "alaw", ["ulaw", "g722"]),
        ("ulaw:20,alaw", "ulaw", ["alaw"]),
        ("ulaw,alaw,!ulaw", "all", ["alaw"]),
        ("!ulaw,ulaw", "all", ["ulaw"]),
    ],
)
async def test_create_works_out_the_codecs_offered(
    stub: Any, allow: str, disallow: str, codecs: list[str]
) -> None:
    trunk = await created(stub, userpass(allow=allow, disallow=disallow))
    assert list(trunk.codecs) == codecs


async def test_create_offers_every_codec_for_all_but_those_taken_out(stub: Any) -> None:
    everything = list((await created(stub, userpass(allow="all"))).codecs)
    assert len(everything) > 5
    some = list((await created(stub, userpass(allow="all,!g729", disallow="ulaw"))).codecs)
    assert some == [codec for codec in everything if codec not in ("g729", "ulaw")]


@pytest.mark.parametrize("field", ["allow", "disallow"])
@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", ""),
        (",", ""),
        ("ulaw,,alaw", ""),
        ("PCMU", '"ulaw"'),
        ("pcma", '"alaw"'),
        ("h264", "h264"),
        ("ulaw:9", "10 to 300"),
        ("ulaw:301", "10 to 300"),
        ("ulaw:", "codec name"),
        ("ulaw;alaw", "codec name"),
        ("all:20", ""),
        ("!all", ""),
        ("ulaw\0", "NUL"),
        ("ulaw," * 103, ""),
    ],
)
async def test_create_refuses_a_codec_list_that_can_t_be_read(
    stub: Any, field: str, text: str, hint: str
) -> None:
    found = await wrong(stub, **{field: text})
    assert list(found) == [field]
    assert hint in found[field]


async def test_create_refuses_lists_that_leave_no_codec(stub: Any) -> None:
    assert list(await wrong(stub, allow="ulaw", disallow="ulaw")) == ["allow"]
    assert list(await wrong(stub, allow="ulaw,!ulaw")) == ["allow"]
