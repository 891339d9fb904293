import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from siptrunk.v1 import phone_number_pb2, sip_trunk_pb2
from trunkline import rows
from trunkline.fields import table

SipTrunk = sip_trunk_pb2.SipTrunk
NOW = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
TIMES = st.datetimes(datetime(1970, 1, 1), datetime(2300, 1, 1)).map(  # noqa: DTZ001
    lambda time: time.replace(tzinfo=UTC)
)
REVISIONS = st.integers(1, 2**63 - 1)


class Record:
    """A row as the driver gives it: by position, by name, as a mapping."""

    def __init__(self, **values: Any) -> None:
        self._values = values

    def __getitem__(self, key: int | str) -> Any:
        return self._values[key] if isinstance(key, str) else [*self._values.values()][key]

    def items(self) -> Any:
        return self._values.items()


def trunk_row(**values: Any) -> Record:
    defaults: dict[str, Any] = dict.fromkeys(
        f.name for f in rows.stored_fields(SipTrunk.DESCRIPTOR)
    )
    defaults |= {
        "id": "01ABC",
        "allow": "ulaw,alaw",
        "disallow": "all",
        "gateways": "[]",
        "ip_identifiers": "[]",
        "updated_at": NOW,
        "revision": 1,
    }
    return Record(**defaults | values)


def offer(allow: str, disallow: str) -> Sequence[str]:
    return [f"{allow}-{disallow}"]


READER = rows.TrunkReader(offer)


@settings(database=None, deadline=None)
@given(REVISIONS, TIMES)
def test_parts_of_an_etag_are_those_that_it_was_made_of(revision: int, time: datetime) -> None:
    assert rows.etag_parts(rows.etag(revision, time)) == (revision, time)


@settings(database=None, deadline=None)
@given(REVISIONS, TIMES, REVISIONS, TIMES)
def test_etags_are_equal_only_for_the_same_revision_and_time(
    revision: int, time: datetime, other_revision: int, other_time: datetime
) -> None:
    same = (revision, time) == (other_revision, other_time)
    assert (rows.etag(revision, time) == rows.etag(other_revision, other_time)) == same


def test_etag_is_strong_and_quoted() -> None:
    found = rows.etag(26, NOW)
    assert found.startswith('"1a-')
    assert found.endswith('"')
    assert found.isascii()
    assert found.isprintable()


def test_etag_tells_a_microsecond_apart() -> None:
    assert rows.etag(1, NOW) != rows.etag(1, NOW + timedelta(microseconds=1))


ETAG = rows.etag(26, NOW)


@pytest.mark.parametrize(
    "text",
    [
        "x",
        '""',
        '"',
        "-",
        "*",
        f"W/{ETAG}",
        ETAG.strip('"'),
        ETAG + " ",
        " " + ETAG,
        ETAG.upper(),
        f'"{ETAG}"',
        ETAG.replace('"1a', '"01a'),
        ETAG.replace('"1a', '"0x1a'),
        ETAG.replace('"1a', '"+1a'),
        ETAG.replace('"1a', '" 1a'),
        ETAG.replace('"1a', '"1_a'),
        ETAG.replace('"1a', '"\uff11a'),
        '"1-"',
        '"-1"',
        '"1-2-3"',
        '"8000000000000000-1"',
        '"1-' + "f" * 40 + '"',
        '"' + "f" * 4000 + '-1"',
        '"g-1"',
        "\0",
    ],
)
def test_text_that_is_no_etag_has_the_parts_of_no_trunk(text: str) -> None:
    revision, time = rows.etag_parts(text)
    assert revision < 1
    assert time.tzinfo is UTC


@settings(database=None, deadline=None)
@given(st.text(max_size=200) | st.text('"-+0123456789abcdefx_ ', max_size=40))
def test_any_text_has_parts_that_fit_the_columns(text: str) -> None:
    revision, time = rows.etag_parts(text)
    assert -1 <= revision < 2**63
    assert time.tzinfo is UTC
    assert revision == -1 or rows.etag(revision, time) == text


def test_null_column_is_an_absent_field() -> None:
    trunk = READER.trunk(trunk_row(description=None, auth_username=None))
    assert not trunk.HasField("description")
    assert not trunk.HasField("auth_username")
    assert not trunk.HasField("auth_password_changed_at")


def test_false_zero_and_empty_columns_are_present_fields() -> None:
    trunk = READER.trunk(trunk_row(description="", is_active=False, qualify_frequency=0))
    for name in ("description", "is_active", "qualify_frequency"):
        assert trunk.HasField(name)
    assert (trunk.description, trunk.is_active, trunk.qualify_frequency) == ("", False, 0)


def test_row_is_read_with_its_lists_codecs_and_etag() -> None:
    joined = "2026-01-02T03:04:05.678901+00:00"
    trunk = READER.trunk(
        trunk_row(
            revision=26,
            transport="TLS",
            gateways='[{"gateway_address": "sip.example.com", "priority": 0, "id": "01G",'
            f' "created_at": "{joined}"}}]',
            ip_identifiers='[{"ip_address": "203.0.113.0/24"}]',
        )
    )
    (gateway,) = trunk.gateways
    assert (gateway.gateway_address, gateway.priority, gateway.id) == ("sip.example.com", 0, "01G")
    assert gateway.created_at.ToDatetime(UTC).isoformat() == joined
    assert not gateway.HasField("port")
    assert [i.ip_address for i in trunk.ip_identifiers] == ["203.0.113.0/24"]
    assert trunk.transport == SipTrunk.TLS
    assert list(trunk.codecs) == ["ulaw,alaw-all"]
    assert trunk.etag == rows.etag(26, NOW)
    assert trunk.updated_at.ToDatetime(UTC) == NOW


def test_password_is_in_no_statement_that_reads_a_trunk() -> None:
    assert "t.auth_password_sealed IS NOT NULL AS auth_password_set" in READER.select
    assert READER.select.count("auth_password_sealed") == 1
    assert "auth_password," not in READER.select


@pytest.mark.parametrize(
    ("descriptor", "computed"),
    [
        (SipTrunk.DESCRIPTOR, {"auth_password", "codecs", "etag"}),
        (
            phone_number_pb2.PhoneNumber.DESCRIPTOR,
            {"e164_check_enabled", "telephony_provider"},
        ),
    ],
)
def test_every_field_but_the_computed_ones_is_read(descriptor: Any, computed: set[str]) -> None:
    read = [f.name for f in rows.stored_fields(descriptor)]
    assert read == [name for name in table(descriptor) if name not in computed]


def test_phone_number_of_a_row_has_its_constant_provider() -> None:
    number = rows.number(
        Record(id="01N", phone_number="+15550100", name=None, byot_trunk_id="01T", created_at=NOW)
    )
    assert number.telephony_provider == "sip-trunk"
    assert number.byot_trunk_id == "01T"
    assert not number.HasField("name")


def test_snapshot_of_a_row_is_the_trunk_that_the_row_is() -> None:
    row = trunk_row()
    reader = rows.TrunkReader(offer)
    trunk = reader.trunk(row)
    kept = {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in row.items()
        if name != "auth_password_set"
    }
    kept |= {name: json.loads(kept[name]) for name in ("gateways", "ip_identifiers")}
    assert reader.snapshot(json.dumps(kept)) == trunk


def test_snapshot_from_before_a_column_lacks_its_field() -> None:
    reader = rows.TrunkReader(offer)
    row = {
        "id": "t",
        "allow": "ulaw",
        "disallow": "all",
        "gateways": [],
        "ip_identifiers": [],
        "revision": 1,
        "updated_at": "2026-01-02T03:04:05.1+02:00",
        "later_column": {"a": 1},
    }
    trunk = reader.snapshot(json.dumps(row))
    assert trunk.id == "t"
    assert not trunk.HasField("is_active")
    assert trunk.updated_at.ToJsonString() == "2026-01-02T01:04:05.100Z"


def test_changes_of_numbers_are_read_by_kind() -> None:
    number = {
        "id": "n",
        "phone_number": "+15550100",
        "name": None,
        "trunk_id": "t",
        "created_at": "2026-01-02T03:04:05+00:00",
        "updated_at": "2026-01-02T03:04:05+00:00",
        "digits": "15550100",
    }
    changes = rows.number_changes(json.dumps({"added": [number], "removed": []}))
    assert changes is not None
    assert [n.phone_number for n in changes.added] == ["+15550100"]
    assert not changes.added[0].HasField("name")
    assert rows.number_changes(None) is None


def test_only_the_named_fields_are_left_of_a_trunk() -> None:
    trunk = rows.TrunkReader(offer).trunk(trunk_row())
    left = rows.only(trunk, ["name", "gateways", "auth_password", "phone_numbers"])
    assert {f.name for f, _ in left.ListFields()} <= {"name", "gateways"}
    assert left.name == trunk.name
