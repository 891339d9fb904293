"""The rules on the lists of a trunk: what each entry may be, how many, and their normal form."""

from typing import Any

import pytest

from tests.support import Gateway, IpIdentifier, SipTrunk, ip_based, userpass
from trunkline.codecs import DEFAULT_CODECS, Catalogue
from trunkline.masks import compile_mask
from trunkline.rules import Change, Rules

RULES = Rules(Catalogue(DEFAULT_CODECS.split(",")))


def created(trunk: Any) -> Change:
    return RULES.creation(trunk)


def updated(*paths: str, **fields: Any) -> Change:
    trunk = SipTrunk(**fields)
    return RULES.update(compile_mask(paths, trunk), trunk)


def found(change: Change) -> dict[str, str]:
    """The violations, path to reason; no path twice."""
    reasons = {v.field: v.reason for v in change.violations}
    assert len(reasons) == len(change.violations)
    return reasons


def described(change: Change) -> str:
    (violation,) = change.violations
    return violation.description


def both(**fields: Any) -> list[Change]:
    """What a create and an update say of the same values."""
    return [created(userpass(**fields)), updated(**fields)]


def test_gateways_are_stored_in_the_order_of_trial() -> None:
    gateways = [
        Gateway(gateway_address="C.example", priority=2),
        Gateway(gateway_address="b.example.", port=5061),
        Gateway(gateway_address="[2001:DB8::5]", priority=0),
        Gateway(gateway_address="a.example", priority=1),
    ]
    for change in both(gateways=gateways):
        assert change.values["gateways"] == [
            {"gateway_address": "2001:db8::5", "priority": 0},
            {"gateway_address": "b.example", "port": 5061, "priority": 1},
            {"gateway_address": "a.example", "priority": 1},
            {"gateway_address": "c.example", "priority": 2},
        ]


@pytest.mark.parametrize(
    ("field", "sent", "fits"),
    [
        ("port", 0, False),
        ("port", 1, True),
        ("port", 65535, True),
        ("port", 65536, False),
        ("priority", -1, False),
        ("priority", 0, True),
        ("priority", 65535, True),
        ("priority", 65536, False),
    ],
)
def test_numbers_of_a_gateway_are_within_their_ranges(
    field: str,
    sent: int,
    fits: bool,  # noqa: FBT001
) -> None:
    gateways: list[Any] = [
        {"gateway_address": "a.example"},
        {"gateway_address": "b.example", field: sent},
    ]
    for change in both(gateways=gateways):
        assert found(change) == ({} if fits else {f"gateways[1].{field}": "OUT_OF_RANGE"})


def test_violation_in_a_list_has_the_position_that_was_sent() -> None:
    gateways = [
        Gateway(gateway_address="a.example", priority=9),
        Gateway(gateway_address="sip:b.example", priority=1),
        Gateway(port=5060),
        Gateway(gateway_address="", port=70000, priority=-1),
    ]
    for change in both(gateways=gateways):
        assert found(change) == {
            "gateways[1].gateway_address": "INVALID_FORM",
            "gateways[2].gateway_address": "REQUIRED",
            "gateways[3].gateway_address": "REQUIRED",
            "gateways[3].port": "OUT_OF_RANGE",
            "gateways[3].priority": "OUT_OF_RANGE",
        }
        assert "gateways" not in change.values


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"gateway_address": "a.example"}, {"gateway_address": "A.Example."}),
        ({"gateway_address": "2001:db8::5"}, {"gateway_address": "[2001:DB8:0::5]"}),
        ({"gateway_address": "203.0.113.5"}, {"gateway_address": "::ffff:203.0.113.5"}),
        (
            {"gateway_address": "a.example", "port": 5060, "priority": 1},
            {"gateway_address": "a.example", "port": 5060, "priority": 2},
        ),
    ],
)
def test_gateway_twice_is_refused_by_its_normal_form(one: Any, other: Any) -> None:
    for change in both(gateways=[one, {"gateway_address": "b.example"}, other]):
        assert found(change) == {"gateways[2]": "DUPLICATE"}
        assert described(change) == "is the same as gateways[0]"


def test_gateway_with_and_without_a_port_are_two() -> None:
    gateways: list[Any] = [
        {"gateway_address": "a.example", **port} for port in ({}, {"port": 5060}, {"port": 5061})
    ]
    for change in both(gateways=gateways):
        assert change.violations == []


def test_gateways_without_an_address_are_not_called_the_same() -> None:
    for change in both(gateways=[Gateway(port=5060), Gateway(port=5060)]):
        assert found(change) == {
            "gateways[0].gateway_address": "REQUIRED",
            "gateways[1].gateway_address": "REQUIRED",
        }


def test_gateways_are_32_at_most() -> None:
    gateways = [Gateway(gateway_address=f"g{i}.example") for i in range(33)]
    for change in both(gateways=gateways[:32]):
        assert change.violations == []
    for change in both(gateways=gateways):
        assert found(change) == {"gateways": "TOO_MANY"}
        assert described(change) == "has 33 entries; at most 32"


def test_gateways_are_one_at_least() -> None:
    assert found(created(userpass(gateways=[]))) == {"gateways": "TOO_FEW"}
    assert found(updated("gateways")) == {"gateways": "TOO_FEW"}


def test_identifiers_are_stored_in_normal_form_in_the_order_sent() -> None:
    sent = ["2001:DB8::/32", "203.0.113.5/32", "::ffff:198.51.100.0/120"]
    for change in both(ip_identifiers=[IpIdentifier(ip_address=text) for text in sent]):
        assert change.values["ip_identifiers"] == [
            {"ip_address": "2001:db8::/32"},
            {"ip_address": "203.0.113.5"},
            {"ip_address": "198.51.100.0/24"},
        ]


def test_identifier_that_can_not_be_used_is_refused_in_its_place_with_the_right_form() -> None:
    sent = [IpIdentifier(ip_address="203.0.113.5"), IpIdentifier(ip_address="203.0.113.5/24")]
    for change in both(ip_identifiers=sent):
        assert found(change) == {"ip_identifiers[1].ip_address": "INVALID_FORM"}
        assert described(change) == (
            '"203.0.113.5/24" has host bits set; the range is 203.0.113.0/24'
        )


def test_identifier_twice_is_refused_by_its_normal_form() -> None:
    sent = ["203.0.113.5", "198.51.100.0/24", "::ffff:203.0.113.5", "203.0.113.5/32"]
    for change in both(ip_identifiers=[IpIdentifier(ip_address=text) for text in sent]):
        assert found(change) == {"ip_identifiers[2]": "DUPLICATE", "ip_identifiers[3]": "DUPLICATE"}


def test_identifier_without_an_address_is_refused() -> None:
    for change in both(ip_identifiers=[IpIdentifier(), IpIdentifier(ip_address="")]):
        assert found(change) == {
            "ip_identifiers[0].ip_address": "REQUIRED",
            "ip_identifiers[1].ip_address": "REQUIRED",
        }


def test_identifiers_are_256_at_most() -> None:
    sent = [IpIdentifier(ip_address=f"10.0.{i // 256}.{i % 256}") for i in range(257)]
    assert created(ip_based(ip_identifiers=sent[:256])).violations == []
    assert found(created(ip_based(ip_identifiers=sent))) == {"ip_identifiers": "TOO_MANY"}
