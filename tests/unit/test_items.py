from typing import Any

import pytest

from tests.support import Gateway, IpIdentifier, SipTrunk, ip_based
from trunkline import items
from trunkline.codecs import DEFAULT_CODECS, Catalogue
from trunkline.rules import Change, Rules

RULES = Rules(Catalogue(DEFAULT_CODECS.split(",")))


def stored(*gateways: Any) -> SipTrunk:
    return ip_based(
        gateways=gateways or [Gateway(id="g1", gateway_address="a.example.com", priority=1)]
    )


def gateways(change: Change) -> list[dict[str, Any]]:
    found = change.values["gateways"]
    assert isinstance(found, list)
    return found


def test_added_gateway_leaves_the_stored_ones_as_they_are_judged() -> None:
    edit = items.add_gateways(RULES, [Gateway(gateway_address="B.example.com", priority=0)])
    assert edit.violations == []
    assert edit.whole(stored()).values == {
        "gateways": [
            {"gateway_address": "b.example.com", "priority": 0},
            {"gateway_address": "a.example.com", "priority": 1},
        ]
    }


def test_gateway_of_another_port_is_another_one() -> None:
    edit = items.add_gateways(RULES, [Gateway(gateway_address="a.example.com", port=5060)])
    change = edit.whole(stored())
    assert [g.get("port") for g in gateways(change)] == [None, 5060]


@pytest.mark.parametrize("form", ["192.0.2.0/24", "::ffff:192.0.2.0/120"])
def test_address_is_removed_by_any_of_its_forms(form: str) -> None:
    trunk = ip_based(
        ip_identifiers=[IpIdentifier(ip_address=i) for i in ("192.0.2.0/24", "192.0.2.1")]
    )
    edit = items.remove_ip_identifiers(RULES, [form])
    assert edit.violations == []
    assert edit.whole(trunk).values == {"ip_identifiers": [{"ip_address": "192.0.2.1"}]}


def test_violation_of_an_address_to_remove_has_the_path_that_was_sent() -> None:
    edit = items.remove_ip_identifiers(RULES, ["192.0.2.1", "192.0.2.1", "nope"])
    assert [v.field for v in edit.violations] == ["ip_addresses[2]", "ip_addresses[1]"]


def test_restoration_names_every_field_that_the_past_shows_and_keeps_gateways_ids() -> None:
    past = ip_based(gateways=[Gateway(id="g1", gateway_address="a.example.com", priority=3)])
    past.gateways[0].created_at.FromJsonString("2026-01-02T03:04:05.6Z")
    change = RULES.restoration(past)
    assert change.violations == []
    (gateway,) = gateways(change)
    assert gateway["id"] == "g1"
    assert "auth_password" not in change.values
    assert "is_active" not in change.values
    assert change.values["description"] is None
