import ipaddress

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from trunkline import addresses
from trunkline.addresses import AddressError

LABELS = st.text("abcXYZ019-_", min_size=1, max_size=12)
HOSTS = st.lists(LABELS, min_size=1, max_size=5).map(".".join) | st.text("aA1.-_[]:", max_size=20)
ADDRESSES = st.ip_addresses().map(str)
BRACKETED = st.ip_addresses(v=6).map("[{}]".format)
MAPPED = st.ip_addresses(v=4).map("::ffff:{}".format)
RANGES = st.builds(
    lambda address, bits: str(
        ipaddress.ip_network((address, min(bits, address.max_prefixlen)), strict=False)
    ),
    st.ip_addresses(),
    st.integers(0, 128),
)


def normal_gateway(text: str) -> str | None:
    try:
        return addresses.gateway(text)
    except AddressError:
        return None


def normal_range(text: str) -> str | None:
    try:
        return addresses.ip_range(text)
    except AddressError:
        return None


@pytest.mark.parametrize(
    ("sent", "normal"),
    [
        ("sip.example.com", "sip.example.com"),
        ("SIP.Example.COM", "sip.example.com"),
        ("sip.example.com.", "sip.example.com"),
        ("localhost", "localhost"),
        ("_sip._udp.example.com", "_sip._udp.example.com"),
        ("a_b.example.com", "a_b.example.com"),
        ("xn--mnchen-3ya.example", "xn--mnchen-3ya.example"),
        ("3com.example", "3com.example"),
        ("sip.1and1", "sip.1and1"),
        ("a--b.example", "a--b.example"),
        ("203.0.113.5", "203.0.113.5"),
        ("10.0.0.1", "10.0.0.1"),
        ("2001:DB8:0:0::5", "2001:db8::5"),
        ("[2001:db8::5]", "2001:db8::5"),
        ("::ffff:203.0.113.5", "203.0.113.5"),
        ("[::FFFF:cb00:7105]", "203.0.113.5"),
        ("::1", "::1"),
    ],
)
def test_gateway_has_one_normal_form(sent: str, normal: str) -> None:
    assert addresses.gateway(sent) == normal


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ("", "is required"),
        ("010.0.0.1", "without leading zeros"),
        ("1.2.3", "not an IPv4 address"),
        ("1.2.3.4.5", "not an IPv4 address"),
        ("1.2.3.256", "not an IPv4 address"),
        ("203.0.113.5.", "not an IPv4 address"),
        ("sip.example.123", "not an IPv4 address"),
        ("16909060", "not an IPv4 address"),
        ("sip.example.com:5060", "has a port"),
        ("203.0.113.5:5060", "has a port"),
        ("[2001:db8::5]:5060", "has a port"),
        ("sip:sip.example.com", "has a scheme"),
        ("SIPS:sip.example.com:5061", "has a scheme"),
        ("https://sip.example.com", "has a scheme"),
        ("fe80::1%eth0", "has a zone id"),
        ("[fe80::1%25eth0]", "has a zone id"),
        ("user@sip.example.com", "give the host alone"),
        ("sip.example.com/path", "give the host alone"),
        ("2001:db8::5::1", "not an IPv6 address"),
        ("[203.0.113.5]", "not an IPv6 address"),
        ("[sip.example.com]", "not an IPv6 address"),
        ("0.0.0.0", "can be sent to"),
        ("::", "can be sent to"),
        ("::ffff:0.0.0.0", "can be sent to"),
        ("224.0.0.1", "can be sent to"),
        ("ff02::1", "can be sent to"),
        ("255.255.255.255", "can be sent to"),
        (".", "empty label"),
        ("sip..example.com", "empty label"),
        (".example.com", "empty label"),
        ("sip.example.com..", "empty label"),
        ("-sip.example.com", "not a host name"),
        ("sip-.example.com", "not a host name"),
        ("sip example.com", "not a host name"),
        (" sip.example.com", "not a host name"),
        ("sip.example.com\n", "not a host name"),
        ("*.example.com", "not a host name"),
        ("a" * 64 + ".example", "more than 63 characters"),
        (".".join(["a" * 49] * 5) + ".abcd", "at most 253"),
        ("a" * 100_000, "at most 253"),
    ],
)
def test_gateway_that_is_no_host_is_refused_saying_why(sent: str, why: str) -> None:
    with pytest.raises(AddressError, match=why):
        addresses.gateway(sent)


@pytest.mark.parametrize("trailing_dot", ["", "."])
def test_gateway_takes_253_characters_not_counting_the_trailing_dot(trailing_dot: str) -> None:
    longest = ".".join([*["a" * 49] * 5, "abc"])
    assert len(longest) == 253
    assert addresses.gateway(longest + trailing_dot) == longest


@pytest.mark.parametrize(
    ("sent", "a_label"),
    [
        ("münchen.example", "xn--mnchen-3ya.example"),
        ("MÜNCHEN.example", "xn--mnchen-3ya.example"),
        ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
    ],
)
def test_gateway_as_a_u_label_is_refused_naming_its_a_label(sent: str, a_label: str) -> None:
    with pytest.raises(AddressError) as error:
        addresses.gateway(sent)
    assert str(error.value).endswith(a_label)
    assert addresses.gateway(a_label) == a_label


def test_gateway_that_no_a_label_exists_for_is_refused() -> None:
    with pytest.raises(AddressError, match="not a host name"):
        addresses.gateway("\u2603\u200d.example..x")


@pytest.mark.parametrize(
    ("sent", "normal"),
    [
        ("203.0.113.5", "203.0.113.5"),
        ("203.0.113.5/32", "203.0.113.5"),
        ("203.0.113.0/24", "203.0.113.0/24"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("2001:DB8::5", "2001:db8::5"),
        ("2001:db8::5/128", "2001:db8::5"),
        ("2001:db8:0:0::/32", "2001:db8::/32"),
        ("2001::/19", "2001::/19"),
        ("::ffff:203.0.113.5", "203.0.113.5"),
        ("::ffff:203.0.113.5/128", "203.0.113.5"),
        ("::ffff:203.0.113.0/120", "203.0.113.0/24"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
    ],
)
def test_identifier_has_one_normal_form(sent: str, normal: str) -> None:
    assert addresses.ip_range(sent) == normal


@pytest.mark.parametrize(
    ("sent", "right"),
    [
        ("203.0.113.5/24", "203.0.113.0/24"),
        ("203.0.113.1/31", "203.0.113.0/31"),
        ("10.255.0.0/8", "10.0.0.0/8"),
        ("2001:db8::1/32", "2001:db8::/32"),
        ("::ffff:203.0.113.5/120", "203.0.113.0/24"),
    ],
)
def test_identifier_with_host_bits_is_refused_naming_the_range(sent: str, right: str) -> None:
    with pytest.raises(AddressError) as error:
        addresses.ip_range(sent)
    assert str(error.value) == f"has host bits set; the range is {right}"
    assert addresses.ip_range(right) == right


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ("", "is required"),
        ("0.0.0.0/0", "wider than the /8"),
        ("10.0.0.0/7", "wider than the /8"),
        ("::/0", "wider than the /19"),
        ("2001::/18", "wider than the /19"),
        ("::ffff:0:0/96", "wider than the /8"),
        ("::ffff:10.0.0.0/103", "wider than the /8"),
        ("0.0.0.0", "is unspecified"),
        ("::", "is unspecified"),
        ("::ffff:0.0.0.0", "is unspecified"),
        ("224.0.0.1", "is multicast"),
        ("239.0.0.0/8", "is multicast"),
        ("ff02::1", "is multicast"),
        ("ff00::/19", "is multicast"),
        ("::ffff:224.0.0.1", "is multicast"),
        ("169.254.1.1", "is link-local"),
        ("169.254.0.0/16", "is link-local"),
        ("fe80::1", "is link-local"),
        ("fe80::/64", "is link-local"),
        ("255.255.255.255", "is broadcast"),
        ("fe80::1%eth0", "has a zone id"),
        ("fe80::%eth0/64", "has a zone id"),
        ("[2001:db8::5]", "is not an IPv4 or IPv6 address"),
        ("203.0.113.0/33", "is not an IPv4 or IPv6 address"),
        ("2001:db8::/129", "is not an IPv4 or IPv6 address"),
        ("203.0.113.0/255.255.255.0", "no number of bits"),
        ("203.0.113.0/", "no number of bits"),
        ("203.0.113.0/-1", "no number of bits"),
        ("203.0.113.0/24/24", "no number of bits"),
        ("203.0.113.0/+24", "no number of bits"),
        ("203.0.113.0/ 24", "no number of bits"),
        ("010.0.0.1", "is not an IPv4 or IPv6 address"),
        ("203.0.113", "is not an IPv4 or IPv6 address"),
        ("3405803781", "is not an IPv4 or IPv6 address"),
        ("sip.example.com", "is not an IPv4 or IPv6 address"),
        (" 203.0.113.5", "is not an IPv4 or IPv6 address"),
        ("203.0.113.5-203.0.113.9", "is not an IPv4 or IPv6 address"),
    ],
)
def test_identifier_that_no_carrier_sends_from_is_refused_saying_why(sent: str, why: str) -> None:
    with pytest.raises(AddressError, match=why):
        addresses.ip_range(sent)


@pytest.mark.parametrize("sent", ["11.1.1.1/7", "224.0.0.5/24", "169.254.3.4/16", "fe80::1/10"])
def test_identifier_is_never_advised_a_range_that_is_refused_too(sent: str) -> None:
    with pytest.raises(AddressError) as error:
        addresses.ip_range(sent)
    advised = str(error.value).partition("the range is ")[2]
    assert not advised or normal_range(advised) == advised


@settings(database=None, deadline=None)
@given(HOSTS | ADDRESSES | BRACKETED | MAPPED)
def test_normal_form_of_a_gateway_is_its_own_normal_form(sent: str) -> None:
    normal = normal_gateway(sent)
    if normal is not None:
        assert addresses.gateway(normal) == normal


@settings(database=None, deadline=None)
@given(RANGES | ADDRESSES | MAPPED)
def test_normal_form_of_an_identifier_is_its_own_and_the_same_addresses(sent: str) -> None:
    normal = normal_range(sent)
    if normal is None:
        return
    assert addresses.ip_range(normal) == normal
    meant, kept = ipaddress.ip_network(sent), ipaddress.ip_network(normal)
    assert meant.num_addresses == kept.num_addresses
    assert int(meant.network_address) & 0xFFFFFFFF == int(kept.network_address) & 0xFFFFFFFF


@settings(database=None, deadline=None)
@given(HOSTS | ADDRESSES, st.sampled_from(["{}.", "{}", "[{}]"]))
def test_case_of_a_gateway_does_not_count(sent: str, form: str) -> None:
    text = form.format(sent)
    assert normal_gateway(text.upper()) == normal_gateway(text.lower())


@settings(database=None, deadline=None)
@given(st.text(max_size=300))
def test_any_text_gets_a_normal_form_or_an_address_error(text: str) -> None:
    normal_gateway(text)
    normal_range(text)


@settings(database=None, deadline=None)
@given(st.ip_addresses(), st.integers(8, 128))
def test_every_range_that_may_be_stored_is_among_those_containing_its_addresses(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, bits: int
) -> None:
    # A mapped address is looked for as the IPv4 address that it is.
    assume(address.version == 4 or not address.ipv4_mapped)
    prefix = min(bits, address.max_prefixlen)
    stored = normal_range(str(ipaddress.ip_network((address, prefix), strict=False)))
    if stored is not None:
        assert stored in addresses.containing(address)


def test_mapped_address_is_contained_as_the_ipv4_address_that_it_is() -> None:
    mapped = ipaddress.ip_address("::ffff:203.0.113.5")
    assert addresses.containing(mapped) == addresses.containing(ipaddress.ip_address("203.0.113.5"))
