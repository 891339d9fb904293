import base64
import ipaddress
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline import addresses, pages
from trunkline.errors import InvalidError, Violation
from trunkline.pages import Condition, Order

BINDING = ("default", "trunks", "Order('id')", "()")


def violation(act: Callable[..., Any], *arguments: Any) -> Violation:
    with pytest.raises(InvalidError) as error:
        act(*arguments)
    (found,) = error.value.violations
    return found


def refused_filter(text: str) -> Violation:
    found = violation(pages.conditions, text)
    assert found.field == "filter"
    return found


def fields_refused(text: str) -> set[str]:
    try:
        pages.conditions(text)
    except InvalidError as error:
        return {v.field for v in error.violations}
    return set()


@pytest.mark.parametrize(("asked", "size"), [(0, 50), (1, 1), (500, 500), (501, 500), (2**31, 500)])
def test_page_size_is_what_is_asked_up_to_the_most(asked: int, size: int) -> None:
    assert pages.size(asked, 50, 500) == size


@pytest.mark.parametrize("asked", [-1, -(2**31)])
def test_page_size_below_zero_is_refused(asked: int) -> None:
    found = violation(pages.size, asked, 50, 500)
    assert (found.field, found.reason) == ("page_size", "OUT_OF_RANGE")


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("", Order("id", descending=False)),
        ("  ", Order("id", descending=False)),
        ("id desc", Order("id", descending=True)),
        ("name", Order("name", descending=False)),
        (" name   desc ", Order("name", descending=True)),
        ("created_at asc", Order("created_at", descending=False)),
    ],
)
def test_order_is_read(text: str, order: Order) -> None:
    assert pages.order(text) == order


@pytest.mark.parametrize(
    "text", ["updated_at", "Name", "name DESC", "name, id", "name,id", "name desc desc", "desc"]
)
def test_order_that_is_not_offered_is_refused_naming_those_that_are(text: str) -> None:
    found = violation(pages.order, text)
    assert (found.field, found.reason) == ("order_by", "UNKNOWN_ORDER")
    assert f'"{text}" is not one of id, name, created_at' in found.description


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("", []),
        ("   ", []),
        ("is_active=true", [("is_active", True)]),
        ("is_active = false", [("is_active", False)]),
        ("provider=twilio", [("provider", "twilio")]),
        ('provider="twilio"', [("provider", "twilio")]),
        (' provider = "two words" ', [("provider", "two words")]),
        (r'provider="say \"hi\" \\ there"', [("provider", 'say "hi" \\ there')]),
        ('provider="a AND b"', [("provider", "a AND b")]),
        ('provider=""', [("provider", "")]),
        ('name="Acme Mumbai"', [("name", "Acme Mumbai")]),
        ('name="Cafe\u0301"', [("name", "Caf\u00e9")]),
        ('name="acme*"', [("name_prefix", "acme")]),
        ("name=acme*", [("name_prefix", "acme")]),
        ('name="*"', [("name_prefix", "")]),
        (r'name="acme\*"', [("name", "acme*")]),
        (r'name="5\*hotel*"', [("name_prefix", "5*hotel")]),
        (r'name="back\\*"', [("name_prefix", "back\\")]),
        ('phone_number="+15550100"', [("phone_number", "15550100")]),
        ("phone_number=15550100", [("phone_number", "15550100")]),
        ('gateway_address="SIP.Example.COM."', [("gateway_address", "sip.example.com")]),
        ('gateway_address="[2001:DB8::5]"', [("gateway_address", "2001:db8::5")]),
        (
            'is_active=true AND provider="twilio"',
            [("is_active", True), ("provider", "twilio")],
        ),
        (
            'provider="twilio"\n  AND\tis_active=true',
            [("is_active", True), ("provider", "twilio")],
        ),
    ],
)
def test_filter_is_read(text: str, conditions: list[tuple[str, object]]) -> None:
    assert pages.conditions(text) == tuple(Condition(*pair) for pair in conditions)


@pytest.mark.parametrize("text", ["203.0.113.5", "::ffff:203.0.113.5"])
def test_source_of_a_filter_is_every_range_around_it(text: str) -> None:
    address = ipaddress.ip_address("203.0.113.5")
    assert pages.conditions(f'source_ip="{text}"') == (
        Condition("source_ip", addresses.containing(address)),
    )


@pytest.mark.parametrize(
    ("text", "reason", "says"),
    [
        ("nope", "SYNTAX", 'at character 1, "nope" stands where a comparison'),
        ("  nope", "SYNTAX", 'at character 3, "nope" stands where a comparison'),
        ("=true", "SYNTAX", 'at character 1, "=true" stands where a comparison'),
        ("is_active=", "SYNTAX", 'at character 1, "is_active=" stands where a comparison'),
        ('provider="twilio', "SYNTAX", "at character 1, "),
        ("(is_active=true)", "SYNTAX", 'at character 1, "(is_active=true)" stands'),
        ("NOT is_active=true", "SYNTAX", 'at character 1, "NOT is_active=true" stands'),
        ("is_active=true provider=x", "SYNTAX", 'at character 16, "provider=x" stands where " AND'),
        ("is_active=true OR provider=x", "SYNTAX", 'at character 16, "OR provider=x" stands'),
        ("is_active=true and provider=x", "SYNTAX", 'at character 16, "and provider=x" stands'),
        ("is_active=true AND", "SYNTAX", 'at character 16, "AND" stands where " AND'),
        ("is_active=true AND  ;", "SYNTAX", 'at character 21, ";" stands where a comparison'),
        ('provider="x"AND is_active=true', "SYNTAX", 'at character 13, "AND is_active=true"'),
        ("colour=red", "UNKNOWN_FIELD", '"colour" is not one of is_active, provider, name'),
        ("is_active=true AND colour=red", "UNKNOWN_FIELD", "(at character 20)"),
        ("IS_ACTIVE=true", "UNKNOWN_FIELD", '"IS_ACTIVE" is not one of'),
        ("gateways.port=1", "UNKNOWN_FIELD", '"gateways.port" is not one of'),
        ('name!="x"', "UNKNOWN_OPERATOR", 'name takes "=", not "!=" (at character 1)'),
        ('is_active=true AND name:"x"', "UNKNOWN_OPERATOR", '":" (at character 20)'),
        ('name>="x"', "UNKNOWN_OPERATOR", 'name takes "=", not ">="'),
        ("name=a AND name=b", "TWICE", "compares name twice (at character 12)"),
        ('name=a AND name="b*"', "TWICE", "compares name twice (at character 12)"),
        ("is_active=yes", "BAD_VALUE", "it is true or false, without quotes (at character 11 of"),
        ('is_active="true"', "BAD_VALUE", "it is true or false, without quotes"),
        ("is_active=TRUE", "BAD_VALUE", "it is true or false, without quotes"),
        ('name="a*b"', "BAD_VALUE", 'a "*" stands once, at the end'),
        ('name="a**"', "BAD_VALUE", 'a "*" stands once, at the end'),
        ('name="*a*"', "BAD_VALUE", 'a "*" stands once, at the end'),
        ("phone_number=+1-555", "BAD_VALUE", 'it is an optional "+" and digits'),
        ('phone_number=""', "BAD_VALUE", 'it is an optional "+" and digits'),
        ('gateway_address="010.0.0.1"', "BAD_VALUE", "without leading zeros"),
        ('gateway_address="sip.example.com:5060"', "BAD_VALUE", "has a port"),
        ("source_ip=sip.example.com", "BAD_VALUE", "it is an IPv4 or IPv6 address"),
        ("source_ip=203.0.113.0/24", "BAD_VALUE", "it is an IPv4 or IPv6 address"),
        ("a" * 1001, "TOO_LONG", "has 1001 characters; at most 1000"),
        ("name=\0", "CONTROL_CHARACTER", "NUL"),
    ],
)
def test_filter_that_can_not_be_read_is_refused_saying_where(
    text: str, reason: str, says: str
) -> None:
    found = refused_filter(text)
    assert found.reason == reason
    assert says in found.description


@settings(database=None, deadline=None)
@given(st.text(max_size=1100) | st.text('isame="* AND\\truefal+1.:', max_size=60))
def test_any_text_is_a_filter_or_is_refused_as_one(text: str) -> None:
    assert fields_refused(text) <= {"filter"}


@settings(database=None, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=100))
def test_any_provider_can_be_filtered_for_when_quoted(provider: str) -> None:
    escaped = provider.replace("\\", "\\\\").replace('"', '\\"')
    (found,) = pages.conditions(f'provider="{escaped}"')
    (again,) = pages.conditions(f'  provider  =  "{escaped}"  ')
    assert found == again
    assert found.name == "provider"


def test_empty_token_is_the_first_page() -> None:
    assert pages.after("", BINDING) is None


LINES = st.text(st.characters(exclude_characters="\n\0", exclude_categories=["Cs"]), max_size=120)


@settings(database=None, deadline=None)
@given(st.tuples(LINES, LINES.filter(bool)))
def test_token_says_where_the_page_ended(last: tuple[str, str]) -> None:
    assert pages.after(pages.token(BINDING, last), BINDING) == last


@pytest.mark.parametrize(
    "binding",
    [
        ("acme", *BINDING[1:]),
        (*BINDING[:2], "Order('name')", BINDING[3]),
        (*BINDING[:3], "(Condition('is_active', True),)"),
        BINDING[:3],
        (*BINDING, ""),
        ("defaulttrunks", "", *BINDING[2:]),
    ],
)
def test_token_of_a_list_with_other_arguments_is_refused(binding: tuple[str, ...]) -> None:
    found = violation(pages.after, pages.token(BINDING, ("Acme", "01ABC")), binding)
    assert (found.field, found.reason) == ("page_token", "BAD_PAGE_TOKEN")


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "garbage",
        "AAAA",
        "=",
        "====",
        "\u00e4\u00f6\u00fc",
        "a b",
        "../../etc/passwd",
        "A" * 5000,
        base64.urlsafe_b64encode(b"\0" * 12).decode(),
        base64.urlsafe_b64encode(b"\0" * 40).decode(),
        base64.urlsafe_b64encode(b"\xff" * 40).decode(),
    ],
)
def test_token_that_is_garbage_is_refused_without_being_shown(text: str) -> None:
    found = violation(pages.after, text, BINDING)
    assert (found.field, found.reason) == ("page_token", "BAD_PAGE_TOKEN")
    assert text not in found.description or len(text) == 1


@settings(database=None, deadline=None)
@given(st.text(max_size=200))
def test_any_text_that_no_list_gave_is_no_token(text: str) -> None:
    if text:
        assert violation(pages.after, text, BINDING).reason == "BAD_PAGE_TOKEN"


def test_token_with_any_bit_changed_is_refused() -> None:
    token = pages.token(BINDING, ("Acme", "01ABC"))
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    for position in range(len(raw) * 8):
        changed = bytearray(raw)
        changed[position // 8] ^= 1 << position % 8
        text = base64.urlsafe_b64encode(changed).decode().rstrip("=")
        assert violation(pages.after, text, BINDING).reason == "BAD_PAGE_TOKEN"


def test_token_cut_short_is_refused() -> None:
    token = pages.token(BINDING, ("Acme", "01ABC"))
    for length in range(1, len(token) - 1):
        assert violation(pages.after, token[:length], BINDING).reason == "BAD_PAGE_TOKEN"


@pytest.mark.parametrize("name", ["\U0001f600" * 100, "\u00e9" * 100])
def test_token_after_the_longest_name_is_read_again(name: str) -> None:
    last = (name, "0" * 64)
    assert pages.after(pages.token(BINDING, last), BINDING) == last
