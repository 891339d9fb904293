"""What an update sets, clears and expects, and the rules over two fields of the merged trunk."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import Gateway, IpIdentifier, SipTrunk, ip_based, password, userpass
from trunkline.codecs import DEFAULT_CODECS, Catalogue
from trunkline.fields import table
from trunkline.masks import compile_mask
from trunkline.rules import Change, Rules

RULES = Rules(Catalogue(DEFAULT_CODECS.split(",")))
FIELDS = table(SipTrunk.DESCRIPTOR)
DEFAULTED = [name for name, f in FIELDS.items() if f.default is not None]
CLEARABLE = [name for name, f in FIELDS.items() if f.rules.clearable]
NOT_CLEARABLE = [
    name for name, f in FIELDS.items() if f.updatable and not f.rules.clearable and not f.repeated
]


def updated(*paths: str, **fields: Any) -> Change:
    trunk = SipTrunk(**fields)
    return RULES.update(compile_mask(paths, trunk), trunk)


def stored(sent: Any) -> Any:
    """The trunk as it is kept after a create."""
    change = RULES.creation(sent)
    assert change.violations == []
    return RULES.merged(SipTrunk(), change)


def judged(trunk: Any, change: Change) -> dict[str, str]:
    """Every violation of a change of a trunk, path to reason."""
    merged = RULES.merged(trunk, change)
    found = [*change.violations, *RULES.unequal(trunk, change), *RULES.check(merged, change)]
    reasons = {v.field: v.reason for v in found}
    assert len(reasons) == len(found)
    return reasons


def created(sent: Any) -> dict[str, str]:
    change = RULES.creation(sent)
    return judged(SipTrunk(), change)


def test_field_that_is_named_is_set_and_others_are_not_looked_at() -> None:
    change = updated("name", name="Acme", qualify_frequency=-1, gateways=[Gateway(port=0)])
    assert change.values == {"name": "Acme"}
    assert change.violations == []


def test_fields_that_are_present_are_set_where_there_is_no_mask() -> None:
    change = updated(id="x", name="Acme", is_active=False, qualify_frequency=0, description="")
    assert change.values == {
        "name": "Acme",
        "is_active": False,
        "qualify_frequency": 0,
        "description": "",
    }


@pytest.mark.parametrize("name", CLEARABLE)
def test_clearable_field_that_is_named_without_a_value_is_cleared(name: str) -> None:
    assert updated(name).values == {name: None}


def test_description_is_the_field_that_can_be_cleared() -> None:
    assert CLEARABLE == ["description"]


@pytest.mark.parametrize("name", NOT_CLEARABLE)
def test_other_field_that_is_named_without_a_value_is_refused(name: str) -> None:
    change = updated(name)
    assert [(v.field, v.reason) for v in change.violations] == [(name, "NOT_CLEARABLE")]
    assert change.values == {}


def test_identifiers_that_are_named_without_a_value_are_emptied() -> None:
    assert updated("ip_identifiers").values == {"ip_identifiers": []}


def test_immutable_field_is_expected_and_not_set() -> None:
    change = updated("provider", "auth_type", provider="plivo", auth_type=SipTrunk.USERPASS)
    assert change.values == {}
    assert change.expected == {"provider": "plivo", "auth_type": "USERPASS"}


@pytest.mark.parametrize("name", ["provider", "auth_type"])
def test_immutable_field_that_is_named_without_a_value_is_refused(name: str) -> None:
    change = updated(name)
    assert [(v.field, v.reason) for v in change.violations] == [(name, "IMMUTABLE")]


def test_immutable_field_is_compared_in_normal_form() -> None:
    trunk = stored(userpass(provider="Caf\u00e9"))
    assert judged(trunk, updated("provider", provider="Cafe\u0301")) == {}
    assert judged(trunk, updated("provider", provider="cafe")) == {"provider": "IMMUTABLE"}


def test_full_replacement_resets_what_is_left_out_but_for_password_and_main_switch() -> None:
    change = updated("*", name="Acme", gateways=[Gateway(gateway_address="a.example")])
    assert change.violations == []
    assert change.expected == {}
    kept = {"auth_password", "is_active"}
    reset = {name: FIELDS[name].default for name in DEFAULTED if name not in kept}
    assert change.values == reset | {
        "name": "Acme",
        "description": None,
        "auth_username": None,
        "gateways": [{"gateway_address": "a.example", "priority": 1}],
        "ip_identifiers": [],
    }


def test_full_replacement_sets_password_and_main_switch_where_they_are_sent() -> None:
    change = updated(
        "*",
        name="Acme",
        gateways=[Gateway(gateway_address="a.example")],
        is_active=False,
        auth_password=(secret := password()),
    )
    assert change.values["is_active"] is False
    assert change.values["auth_password"] == secret


def test_full_replacement_without_its_required_fields_is_refused() -> None:
    change = updated("*")
    assert {v.field: v.reason for v in change.violations} == {
        "name": "REQUIRED",
        "gateways": "TOO_FEW",
    }


def test_full_replacement_with_the_trunk_as_it_is_stored_asks_for_nothing_else() -> None:
    trunk = stored(userpass(description="x", transport=SipTrunk.TLS))
    change = RULES.update(compile_mask(["*"], trunk), trunk)
    assert judged(trunk, change) == {}
    assert RULES.merged(trunk, change) == trunk


def test_mask_and_values_are_judged_together() -> None:
    change = updated("nope", "qualify_frequency", "provider", qualify_frequency=86401)
    assert {v.field: v.reason for v in change.violations} == {
        "update_mask": "UNKNOWN_PATH",
        "qualify_frequency": "OUT_OF_RANGE",
        "provider": "IMMUTABLE",
    }


def test_merged_trunk_has_the_changes_and_everything_else_as_it_was() -> None:
    trunk = stored(userpass(description="x", gateways=[Gateway(gateway_address="a.example")] * 1))
    change = updated(
        "description", "gateways", "transport", transport=3, gateways=[{"gateway_address": "b.c"}]
    )
    merged = RULES.merged(trunk, change)
    assert not merged.HasField("description")
    assert [g.gateway_address for g in merged.gateways] == ["b.c"]
    assert merged.transport == SipTrunk.TLS
    for name in ("description", "gateways", "transport"):
        merged.ClearField(name)
        trunk.ClearField(name)
    assert merged == trunk


def test_merged_trunk_tells_of_a_password_without_having_it() -> None:
    trunk = stored(userpass())
    assert trunk.auth_password_set
    assert not trunk.HasField("auth_password")


TLS = {"transport": SipTrunk.TLS}
SDES = {"media_encryption": SipTrunk.SDES}


@pytest.mark.parametrize(
    ("before", "paths", "after", "violations"),
    [
        ({}, ["media_encryption"], SDES, {"media_encryption": "SDES_NEEDS_TLS"}),
        (TLS, ["media_encryption"], SDES, {}),
        (
            TLS | SDES,
            ["transport"],
            {"transport": SipTrunk.UDP},
            {"transport": "SDES_NEEDS_TLS"},
        ),
        (
            TLS | SDES,
            ["transport", "media_encryption"],
            {"transport": SipTrunk.TCP, "media_encryption": SipTrunk.NO},
            {},
        ),
        ({}, ["transport", "media_encryption"], TLS | SDES, {}),
        (
            {},
            ["transport", "media_encryption"],
            {"transport": SipTrunk.TCP} | SDES,
            {"media_encryption": "SDES_NEEDS_TLS"},
        ),
        (
            {},
            ["media_encryption", "transport"],
            SDES | {"transport": 9},
            {"transport": "UNKNOWN_VALUE"},
        ),
        ({}, ["disallow"], {"disallow": "ulaw,alaw"}, {"disallow": "NO_CODEC_LEFT"}),
        ({}, ["disallow"], {"disallow": "ulaw"}, {}),
        ({"disallow": "ulaw"}, ["allow"], {"allow": "ulaw:20"}, {"allow": "NO_CODEC_LEFT"}),
        ({"disallow": "ulaw"}, ["allow", "disallow"], {"allow": "ulaw", "disallow": "all"}, {}),
        (
            {},
            ["allow", "disallow"],
            {"allow": "nope", "disallow": "ulaw"},
            {"allow": "INVALID_FORM"},
        ),
        ({}, ["auth_username"], {}, {"auth_username": "NOT_CLEARABLE"}),
        ({}, ["auth_password"], {}, {"auth_password": "NOT_CLEARABLE"}),
    ],
)
def test_rules_over_two_fields_are_judged_on_the_merged_trunk(
    before: dict[str, Any], paths: list[str], after: dict[str, Any], violations: dict[str, str]
) -> None:
    assert judged(stored(userpass(**before)), updated(*paths, **after)) == violations


@pytest.mark.parametrize(
    ("sent", "violations"),
    [
        (userpass(), {}),
        (userpass(ip_identifiers=[IpIdentifier(ip_address="203.0.113.5")]), {}),
        (ip_based(), {}),
        (userpass(auth_username=None), {"auth_username": "REQUIRED"}),
        (userpass(auth_password=None), {"auth_password": "REQUIRED"}),
        (userpass(auth_password=""), {"auth_password": "REQUIRED"}),
        (
            userpass(auth_username=None, auth_password=None),
            {"auth_username": "REQUIRED", "auth_password": "REQUIRED"},
        ),
        (ip_based(ip_identifiers=[]), {"ip_identifiers": "TOO_FEW"}),
        (ip_based(auth_username="acme"), {"auth_username": "NOT_ON_IP_BASED"}),
        (ip_based(auth_password=password()), {"auth_password": "NOT_ON_IP_BASED"}),
        (
            ip_based(auth_username="acme", auth_password=password(), ip_identifiers=[]),
            {
                "auth_username": "NOT_ON_IP_BASED",
                "auth_password": "NOT_ON_IP_BASED",
                "ip_identifiers": "TOO_FEW",
            },
        ),
        (
            ip_based(ip_identifiers=[IpIdentifier(ip_address="x")]),
            {"ip_identifiers[0].ip_address": "INVALID_FORM"},
        ),
        (userpass(auth_username=" "), {"auth_username": "BLANK_AT_END"}),
        (userpass(auth_type=None), {"auth_type": "REQUIRED"}),
    ],
)
def test_credentials_and_identifiers_are_those_of_the_auth_type(
    sent: Any, violations: dict[str, str]
) -> None:
    assert created(sent) == violations


@pytest.mark.parametrize(
    ("paths", "after", "violations"),
    [
        (["auth_username"], {"auth_username": "acme"}, {"auth_username": "NOT_ON_IP_BASED"}),
        (["ip_identifiers"], {}, {"ip_identifiers": "TOO_FEW"}),
        (
            ["auth_type"],
            {"auth_type": SipTrunk.USERPASS},
            {"auth_type": "IMMUTABLE"},
        ),
    ],
)
def test_trunk_known_by_its_addresses_stays_one(
    paths: list[str], after: dict[str, Any], violations: dict[str, str]
) -> None:
    assert judged(stored(ip_based()), updated(*paths, **after)) == violations


def test_full_replacement_that_leaves_the_username_out_is_refused_on_a_userpass_trunk() -> None:
    trunk = stored(userpass())
    change = updated("*", name="Acme", gateways=[Gateway(gateway_address="a.example")])
    assert judged(trunk, change) == {"auth_username": "REQUIRED"}


def test_every_violation_is_reported_at_once_with_its_full_path() -> None:
    sent = userpass(
        name=" x",
        provider="",
        description="a\rb",
        auth_username="",
        auth_password="",
        gateways=[Gateway(gateway_address="a.example"), Gateway(gateway_address="a.example:1")],
        ip_identifiers=[IpIdentifier(ip_address="0.0.0.0"), IpIdentifier()],
        allow="nope",
        disallow="nada",
        transport=9,
        media_encryption=SipTrunk.SDES,
        qualify_frequency=-1,
    )
    assert created(sent) == {
        "name": "BLANK_AT_END",
        "provider": "REQUIRED",
        "description": "CONTROL_CHARACTER",
        "auth_username": "REQUIRED",
        "auth_password": "REQUIRED",
        "gateways[1].gateway_address": "INVALID_FORM",
        "ip_identifiers[0].ip_address": "INVALID_FORM",
        "ip_identifiers[1].ip_address": "REQUIRED",
        "allow": "INVALID_FORM",
        "disallow": "INVALID_FORM",
        "transport": "UNKNOWN_VALUE",
        "qualify_frequency": "OUT_OF_RANGE",
    }


@pytest.mark.parametrize("form", ["{} ", "{}\n", "a\x07{}", "{}\0", "{}" * 12, "\u202e{}\x85x"])
def test_password_that_is_refused_is_never_quoted(form: str) -> None:
    secret = password()
    sent = form.format(*[secret] * 12)
    for change in (
        RULES.creation(userpass(auth_password=sent)),
        updated("auth_password", auth_password=sent),
    ):
        assert [v.field for v in change.violations] == ["auth_password"]
        assert secret not in repr(change.violations)


@settings(database=None, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=600))
def test_normal_form_of_a_text_is_its_own_normal_form(text: str) -> None:
    change = updated(name=text, description=text, auth_username=text)
    again = updated(**change.values)
    assert again.values == change.values
    assert again.violations == []
