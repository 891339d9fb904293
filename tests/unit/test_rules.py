"""The rules on one field, each judged on what was sent, and the normal form of each value."""

from typing import Any

import pytest

from siptrunk.v1 import phone_number_pb2
from tests.support import PhoneNumber, SipTrunk, password, userpass
from trunkline.codecs import DEFAULT_CODECS, Catalogue
from trunkline.masks import compile_mask
from trunkline.rules import Change, Rules

RULES = Rules(Catalogue(DEFAULT_CODECS.split(",")))
REQUIRED = {"name": "REQUIRED", "provider": "REQUIRED", "auth_type": "REQUIRED"}
NFC, NFD = "Caf\u00e9", "Cafe\u0301"


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


def test_creation_has_every_value_sent_and_the_default_of_the_rest() -> None:
    change = created(userpass(name="Acme", auth_password=(secret := password())))
    assert change.violations == []
    assert change.expected == {}
    assert change.values == {
        "name": "Acme",
        "provider": "plivo",
        "description": None,
        "auth_type": "USERPASS",
        "auth_username": "acme",
        "auth_password": secret,
        "gateways": [{"gateway_address": "sip.example.com", "priority": 1}],
        "ip_identifiers": [],
        "allow": "ulaw,alaw",
        "disallow": "all",
        "transport": "UDP",
        "media_encryption": "NO",
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


def test_explicit_false_zero_and_empty_are_values_of_a_creation() -> None:
    values = created(
        userpass(
            description="",
            qualify_frequency=0,
            rtp_symmetric=False,
            force_rport=False,
            outbound_leading_plus_enabled=False,
            is_active=False,
        )
    ).values
    assert (values["description"], values["qualify_frequency"]) == ("", 0)
    for name in ("rtp_symmetric", "force_rport", "outbound_leading_plus_enabled", "is_active"):
        assert values[name] is False


def test_empty_creation_lacks_every_required_field() -> None:
    assert found(created(SipTrunk())) == REQUIRED | {"gateways": "TOO_FEW"}


def test_what_is_the_servers_is_ignored_in_a_creation() -> None:
    sent = userpass(
        id="x", account_id="y", etag="z", phone_number_count=7, codecs=["opus"], auth_password_set=1
    )
    sent.created_at.GetCurrentTime()
    sent.gateways[0].id = "mine"
    change = created(sent)
    assert change.violations == []
    assert not change.values.keys() & {"id", "account_id", "etag", "codecs", "created_at"}
    assert change.values["gateways"] == [{"gateway_address": "sip.example.com", "priority": 1}]


@pytest.mark.parametrize(
    ("field", "most"),
    [("name", 100), ("auth_username", 128), ("auth_password", 256), ("description", 500)],
)
@pytest.mark.parametrize("character", ["x", "\u00e9", "\U0001f4de"])
def test_text_may_have_as_many_characters_as_its_most_and_no_more(
    field: str, most: int, character: str
) -> None:
    for change in both(**{field: character * most}):
        assert change.violations == []
        assert change.values[field] == character * most
    for change in both(**{field: character * (most + 1)}):
        assert found(change) == {field: "TOO_LONG"}
        assert described(change) == f"has {most + 1} characters; at most {most}"
        assert field not in change.values


def test_text_is_measured_and_stored_in_nfc() -> None:
    for change in both(name=NFD, description="e\u0301" * 500):
        assert change.violations == []
        assert change.values["name"] == NFC
        assert change.values["description"] == "\u00e9" * 500


def test_provider_may_have_64_characters_and_no_more() -> None:
    assert created(userpass(provider="x" * 64)).values["provider"] == "x" * 64
    assert found(created(userpass(provider="x" * 65))) == {"provider": "TOO_LONG"}


@pytest.mark.parametrize("field", ["name", "auth_username", "auth_password"])
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "REQUIRED"),
        (" x", "BLANK_AT_END"),
        ("x ", "BLANK_AT_END"),
        ("\u00a0x", "BLANK_AT_END"),
        ("x\u3000", "BLANK_AT_END"),
        (" ", "BLANK_AT_END"),
        ("x\n", "BLANK_AT_END"),
        ("a\nb", "CONTROL_CHARACTER"),
        ("a\tb", "CONTROL_CHARACTER"),
        ("a\x7fb", "CONTROL_CHARACTER"),
        ("a\x85b", "CONTROL_CHARACTER"),
        ("a\0b", "CONTROL_CHARACTER"),
        ("x" * 100_000, "TOO_LONG"),
    ],
)
def test_label_is_one_line_without_blanks_at_its_ends(field: str, text: str, reason: str) -> None:
    for change in both(**{field: text}):
        assert found(change) == {field: reason}


@pytest.mark.parametrize(
    "text", ["a b", "\u202eabc", "\U0001f469\u200d\U0001f4bb", "%s'; --", '"<&>"']
)
def test_label_may_have_any_other_characters(text: str) -> None:
    for change in both(name=text):
        assert change.values["name"] == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", None), (" a\n\tb ", None), ("a\rb", "CONTROL_CHARACTER"), ("a\0", "CONTROL_CHARACTER")],
)
def test_description_may_have_lines(text: str, reason: str | None) -> None:
    for change in both(description=text):
        assert found(change) == ({"description": reason} if reason else {})


@pytest.mark.parametrize(
    ("sent", "fits"), [(-1, 0), (0, 1), (86400, 1), (86401, 0), (2**31 - 1, 0)]
)
def test_qualify_frequency_is_within_a_day(sent: int, fits: bool) -> None:  # noqa: FBT001
    for change in both(qualify_frequency=sent):
        if fits:
            assert change.values["qualify_frequency"] == sent
        else:
            assert found(change) == {"qualify_frequency": "OUT_OF_RANGE"}
            assert described(change) == f"is {sent}; it must be 0 to 86400"


@pytest.mark.parametrize("number", [0, 99, -1])
@pytest.mark.parametrize(
    ("field", "names"), [("transport", "UDP, TCP, TLS"), ("media_encryption", "NO, SDES")]
)
def test_enum_number_that_means_nothing_is_refused_naming_those_that_do(
    field: str, names: str, number: int
) -> None:
    for change in both(**{field: number}):
        assert found(change) == {field: "UNKNOWN_VALUE"}
        assert described(change) == f"has no value {number}; it is one of {names}"


@pytest.mark.parametrize("number", [0, 3])
def test_auth_type_that_means_nothing_is_refused(number: int) -> None:
    sent = userpass(auth_type=number)
    assert found(created(sent)) == {"auth_type": "UNKNOWN_VALUE"}
    assert found(updated("auth_type", auth_type=number)) == {"auth_type": "UNKNOWN_VALUE"}


@pytest.mark.parametrize(
    ("field", "sent", "reason"),
    [
        ("allow", "", "REQUIRED"),
        ("allow", "PCMU", "INVALID_FORM"),
        ("allow", "ulaw,!ulaw", "INVALID_FORM"),
        ("allow", "ulaw," * 400, "TOO_LONG"),
        ("allow", "ulaw\0", "CONTROL_CHARACTER"),
        ("disallow", "", "REQUIRED"),
        ("disallow", "nope", "INVALID_FORM"),
        ("disallow", "ulaw:9", "INVALID_FORM"),
    ],
)
def test_codec_list_that_can_not_be_read_is_refused(field: str, sent: str, reason: str) -> None:
    for change in both(**{field: sent}):
        assert found(change) == {field: reason}


@pytest.mark.parametrize(("tokens", "fits"), [(42, True), (43, False), (64, False)])
def test_codec_list_has_512_characters_at_most(tokens: int, fits: bool) -> None:  # noqa: FBT001
    sent = ",".join(["speex32:300"] * tokens)
    for change in both(allow=sent):
        assert found(change) == ({} if fits else {"allow": "TOO_LONG"})


def test_codec_list_is_stored_in_normal_form() -> None:
    for change in both(allow="ULAW, Alaw:20", disallow="ALL"):
        assert (change.values["allow"], change.values["disallow"]) == ("ulaw,alaw:20", "all")


def test_unknown_codec_is_named_with_the_one_that_is_meant() -> None:
    for change in both(allow="PCMU"):
        assert described(change) == '"PCMU" names "pcmu", which is not a known codec; use "ulaw"'


@pytest.mark.parametrize(
    ("number", "fits"),
    [
        ("+15550100", True),
        ("15550100", True),
        ("100", True),
        ("+" + "1" * 15, True),
        ("", False),
        ("10", False),
        ("1" * 16, False),
        ("++15550100", False),
        ("+1 555 0100", False),
        ("+1-555-0100", False),
        ("tel:+15550100", False),
        ("\u0661\u0662\u0663\u0664", False),
        ("15550100\n", False),
    ],
)
def test_phone_number_is_an_optional_plus_and_3_to_15_digits_kept_as_given(
    number: str,
    fits: bool,  # noqa: FBT001
) -> None:
    change = RULES.creation(PhoneNumber(phone_number=number))
    reason = "INVALID_FORM" if number else "REQUIRED"
    assert found(change) == ({} if fits else {"phone_number": reason})
    assert change.values.get("phone_number") == (number if fits else None)


@pytest.mark.parametrize(
    ("number", "fits"),
    [
        ("+15550100", True),
        ("+" + "1" * 15, True),
        ("15550100", False),
        ("+155501", False),
        ("+05550100", False),
    ],
)
def test_number_whose_form_is_checked_is_in_e164_form(number: str, fits: bool) -> None:  # noqa: FBT001
    sent = phone_number_pb2.PhoneNumber(phone_number=number, e164_check_enabled=True)
    change = RULES.new_number(sent)
    assert found(change) == ({} if fits else {"phone_number": "NOT_E164"})
    unchecked = phone_number_pb2.PhoneNumber(phone_number=number, e164_check_enabled=False)
    change = RULES.new_number(unchecked)
    assert change.violations == []


def test_name_of_a_number_is_a_label_of_up_to_100_characters() -> None:
    for name, reason in (("x" * 100, None), ("x" * 101, "TOO_LONG"), (" x", "BLANK_AT_END")):
        change = RULES.creation(PhoneNumber(phone_number="+15550100", name=name))
        assert found(change) == ({"name": reason} if reason else {})
