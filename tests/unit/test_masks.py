import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siptrunk.v1 import phone_number_pb2, sip_trunk_pb2
from trunkline.fields import table
from trunkline.masks import PATH_CHARACTERS_MAX, PATHS_MAX, Plan, compile_mask

SipTrunk = sip_trunk_pb2.SipTrunk
FIELDS = table(SipTrunk.DESCRIPTOR)
UPDATABLE = [name for name, f in FIELDS.items() if f.updatable]
IMMUTABLE = ["provider", "auth_type"]
IGNORED = [
    "id",
    "account_id",
    "auth_password_set",
    "auth_password_changed_at",
    "phone_number_count",
    "codecs",
    "etag",
    "created_at",
    "updated_at",
]


def plan(*paths: str, **fields: object) -> Plan:
    return compile_mask(paths, SipTrunk(**fields))  # type: ignore[arg-type]


def names(found: Plan) -> list[str]:
    return [f.name for f in found.fields]


def test_every_field_is_updatable_immutable_or_ignored() -> None:
    assert {*UPDATABLE, *IMMUTABLE, *IGNORED} == set(FIELDS)
    assert len(UPDATABLE) + len(IMMUTABLE) + len(IGNORED) == len(FIELDS)


@pytest.mark.parametrize("path", [*UPDATABLE, *IMMUTABLE])
def test_path_of_a_field_that_counts_is_in_the_plan(path: str) -> None:
    assert names(plan(path)) == [path]


@pytest.mark.parametrize("path", [*IGNORED, "created_at.seconds"])
def test_path_that_is_the_servers_is_ignored(path: str) -> None:
    assert plan(path) == Plan(())


def test_paths_are_planned_once_each_in_the_order_of_the_proto() -> None:
    found = plan("transport", "name", "etag", "transport", "description", "name")
    assert names(found) == ["name", "description", "transport"]
    assert found.violations == ()


@pytest.mark.parametrize(
    ("path", "reason", "says"),
    [
        ("nope", "UNKNOWN_PATH", '"nope" is not a field of SipTrunk'),
        ("", "UNKNOWN_PATH", '"" is not a field of SipTrunk'),
        ("name.first", "UNKNOWN_PATH", '"name.first" is not a field of SipTrunk'),
        ("name.", "UNKNOWN_PATH", '"name." is not a field of SipTrunk'),
        (".name", "UNKNOWN_PATH", '".name" is not a field of SipTrunk'),
        ("Name", "UNKNOWN_PATH", '"Name" is not a field of SipTrunk; did you mean name?'),
        (
            "qualifyFrequency",
            "UNKNOWN_PATH",
            '"qualifyFrequency" is not a field of SipTrunk; did you mean qualify_frequency?',
        ),
        (" name", "UNKNOWN_PATH", '" name" is not a field of SipTrunk; did you mean name?'),
        ("sip_trunk.name", "UNKNOWN_PATH", '"sip_trunk.name" is not a field of SipTrunk'),
        ("**", "UNKNOWN_PATH", '"**" is not a field of SipTrunk'),
        ("na\u00efve\n", "UNKNOWN_PATH", r'"na\xefve\n" is not a field of SipTrunk'),
        (
            "gateways.port",
            "PATH_INTO_LIST",
            '"gateways.port" points into a list; name gateways, which is replaced whole',
        ),
        (
            "gateways.0",
            "PATH_INTO_LIST",
            '"gateways.0" points into a list; name gateways, which is replaced whole',
        ),
        (
            "gateways.*.port",
            "PATH_INTO_LIST",
            '"gateways.*.port" points into a list; name gateways, which is replaced whole',
        ),
        (
            "ip_identifiers.ip_address",
            "PATH_INTO_LIST",
            '"ip_identifiers.ip_address" points into a list; name ip_identifiers, which is'
            " replaced whole",
        ),
    ],
)
def test_path_that_can_not_be_followed_is_refused_saying_why(
    path: str, reason: str, says: str
) -> None:
    found = plan("name", path)
    assert names(found) == ["name"]
    assert [(v.field, v.reason, v.description) for v in found.violations] == [
        ("update_mask", reason, says)
    ]


def test_each_bad_path_is_refused() -> None:
    found = plan("nope", "gateways.0", "name", "nada")
    assert [v.reason for v in found.violations] == [
        "UNKNOWN_PATH",
        "PATH_INTO_LIST",
        "UNKNOWN_PATH",
    ]


def test_path_is_quoted_up_to_a_bound() -> None:
    (violation,) = plan("x" * PATH_CHARACTERS_MAX).violations
    assert len(violation.description) < 120


def test_star_means_every_field_that_counts() -> None:
    found = plan("*")
    assert found.replace
    assert set(names(found)) == {*UPDATABLE, *IMMUTABLE}


def test_star_twice_is_star() -> None:
    assert plan("*", "*") == plan("*")


@pytest.mark.parametrize("paths", [("*", "name"), ("name", "*"), ("*", "etag"), ("*", "nope")])
def test_star_beside_another_path_is_refused(paths: tuple[str, ...]) -> None:
    found = plan(*paths)
    assert found.fields == ()
    assert not found.replace
    assert [v.reason for v in found.violations] == ["WILDCARD_NOT_ALONE"]


def test_empty_mask_means_what_is_present_false_and_zero_too() -> None:
    found = plan(
        id="x",
        etag="y",
        name="",
        is_active=False,
        qualify_frequency=0,
        provider="plivo",
        gateways=[],
        account_id="z",
    )
    assert names(found) == ["name", "provider", "qualify_frequency", "is_active"]
    assert not found.replace


def test_empty_mask_with_nothing_present_means_nothing() -> None:
    assert plan() == Plan(())


def test_mask_of_as_many_paths_as_allowed_is_taken_and_one_more_refused() -> None:
    assert names(plan(*["name"] * PATHS_MAX)) == ["name"]
    found = plan(*["name"] * (PATHS_MAX + 1))
    assert found.fields == ()
    assert [v.reason for v in found.violations] == ["TOO_MANY_PATHS"]


def test_path_that_is_too_long_is_refused() -> None:
    found = plan("name", "x" * (PATH_CHARACTERS_MAX + 1))
    assert found.fields == ()
    assert [v.reason for v in found.violations] == ["PATH_TOO_LONG"]


def test_same_paths_mean_another_plan_for_another_resource() -> None:
    number = phone_number_pb2.PhoneNumber()
    assert names(compile_mask(["name"], number)) == ["name"]
    assert [v.reason for v in compile_mask(["transport"], number).violations] == ["UNKNOWN_PATH"]
    assert names(plan("transport")) == ["transport"]


@settings(database=None, deadline=None)
@given(st.lists(st.sampled_from(sorted(FIELDS)), max_size=PATHS_MAX))
def test_plan_depends_on_the_set_of_paths_alone(paths: list[str]) -> None:
    found = plan(*paths)
    if paths:
        assert set(names(found)) == set(paths) - set(IGNORED)
    assert found == plan(*sorted(set(paths), reverse=True))


@settings(database=None, deadline=None)
@given(st.lists(st.text(max_size=300), max_size=PATHS_MAX + 2))
def test_any_mask_gets_a_plan_or_a_violation_of_the_mask(paths: list[str]) -> None:
    found = compile_mask(paths, SipTrunk())
    assert {v.field for v in found.violations} <= {"update_mask"}
    assert set(names(found)) <= set(paths) | (set(FIELDS) if paths == ["*"] else set())
