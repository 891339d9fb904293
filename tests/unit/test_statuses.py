import base64
import inspect
import re
from typing import Any
from urllib.parse import quote

import pytest
from google.rpc import error_details_pb2, status_pb2

from siptrunk.v1 import sip_trunk_pb2
from tests.support import IpIdentifier, ip_based
from trunkline import errors, statuses
from trunkline.codecs import DEFAULT_CODECS, Catalogue
from trunkline.errors import InvalidError, TrunklineError, Violation
from trunkline.masks import PATHS_MAX, compile_mask
from trunkline.rules import Rules

TRAILERS_BYTES_MAX = 6144
# HTTP/2 counts 32 bytes for each header besides its name and value (RFC 9113 section 10.5.1).
HEADER_BYTES = 32
KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, TrunklineError) and kind not in (TrunklineError, InvalidError)
]
RULES = Rules(Catalogue(DEFAULT_CODECS.split(",")))
WIDE = "\U0001f4de\u00fc\u4f8b\n"


def detail(status: status_pb2.Status, kind: Any) -> Any:
    """The detail of a kind, None where there is none."""
    found = [kind() for packed in status.details if packed.Is(kind.DESCRIPTOR)]
    assert len(found) <= 1
    for packed in status.details:
        if found and packed.Is(kind.DESCRIPTOR):
            packed.Unpack(found[0])
    return found[0] if found else None


def info(status: status_pb2.Status) -> Any:
    return detail(status, error_details_pb2.ErrorInfo)


def violations(status: status_pb2.Status) -> list[Any]:
    return list(detail(status, error_details_pb2.BadRequest).field_violations)


def trailers_bytes(status: status_pb2.Status) -> int:
    """What the trailers of a call weigh: the message percent-encoded, the details in base64."""
    trailers = {
        "grpc-status": str(status.code),
        "grpc-message": quote(status.message, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}"),
        statuses.DETAILS_KEY: base64.b64encode(status.SerializeToString()).decode(),
        "x-request-id": "r" * 128,
    }
    return sum(len(key) + len(value) + HEADER_BYTES for key, value in trailers.items())


def refused(count: int, description: str) -> InvalidError:
    return InvalidError(
        [
            Violation(f"gateways[{i}].gateway_address", "INVALID_FORM", description)
            for i in range(count)
        ]
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_its_code_message_and_error_info(kind: type[TrunklineError]) -> None:
    status = statuses.status(kind("SOME_REASON", "what happened", etag='"1-2"'))
    assert status.code == kind.code.value[0]
    assert status.message == "what happened"
    assert info(status) == error_details_pb2.ErrorInfo(
        reason="SOME_REASON", domain="trunkline", metadata={"etag": '"1-2"'}
    )
    assert detail(status, error_details_pb2.BadRequest) is None
    assert detail(status, error_details_pb2.RetryInfo) is None


def test_error_without_metadata_has_error_info_all_the_same() -> None:
    status = statuses.status(errors.NotFoundError("TRUNK_NOT_FOUND", "no such trunk"))
    assert info(status).reason == "TRUNK_NOT_FOUND"
    assert dict(info(status).metadata) == {}


@pytest.mark.parametrize("seconds", [0.25, 1.0, 1.5, 90.0])
def test_error_that_may_be_tried_again_says_when(seconds: float) -> None:
    status = statuses.status(errors.UnavailableError("STARTING", "x", retry_seconds=seconds))
    delay = detail(status, error_details_pb2.RetryInfo).retry_delay
    assert delay.seconds + delay.nanos / 1e9 == seconds


def test_violation_is_reported_with_its_path_reason_and_description() -> None:
    status = statuses.status(
        InvalidError([Violation("gateways[1].port", "OUT_OF_RANGE", "is 0; it must be 1 to 65535")])
    )
    assert status.code == 3
    assert info(status).reason == "OUT_OF_RANGE"
    assert [(v.field, v.reason, v.description) for v in violations(status)] == [
        ("gateways[1].port", "OUT_OF_RANGE", "is 0; it must be 1 to 65535")
    ]
    assert status.message == "gateways[1].port: is 0; it must be 1 to 65535"


def test_violations_of_different_reasons_are_several() -> None:
    status = statuses.status(
        InvalidError([Violation("name", "REQUIRED", "x"), Violation("allow", "TOO_LONG", "y")])
    )
    assert info(status).reason == "SEVERAL_VIOLATIONS"
    assert [v.field for v in violations(status)] == ["name", "allow"]
    assert "violationsLeftOut" not in info(status).metadata


@pytest.mark.parametrize("count", [1, errors.VIOLATIONS_MAX, errors.VIOLATIONS_MAX + 1, 1000])
@pytest.mark.parametrize(
    "description", ["x", "x" * 100, "x" * 4000, errors.quoted(WIDE * 100), WIDE, WIDE * 500]
)
def test_violations_are_kept_or_counted_within_the_trailers_bound(
    count: int, description: str
) -> None:
    status = statuses.status(refused(count, description))
    bad = detail(status, error_details_pb2.BadRequest)
    kept = len(bad.field_violations) if bad else 0
    left_out = int(info(status).metadata.get("violationsLeftOut", "0"))
    assert kept + left_out == count
    assert kept <= errors.VIOLATIONS_MAX
    assert trailers_bytes(status) < TRAILERS_BYTES_MAX


def test_count_of_violations_left_out_is_in_the_message_too() -> None:
    status = statuses.status(refused(1000, "is wrong"))
    left_out = info(status).metadata["violationsLeftOut"]
    assert status.message.endswith(f" (and {left_out} more)")


@pytest.mark.parametrize("text", ["not-an-address " * 20, WIDE * 40, "\U0001f4de" * 300])
def test_refusal_of_a_request_full_of_bad_entries_stays_within_the_trailers_bound(
    text: str,
) -> None:
    change = RULES.creation(
        ip_based(
            name=text,
            allow=text,
            disallow=text,
            gateways=[sip_trunk_pb2.Gateway(gateway_address=text, port=-1)] * 32,
            ip_identifiers=[IpIdentifier(ip_address=text)] * 256,
        )
    )
    found = [*change.violations, *compile_mask([text[:200]] * PATHS_MAX, ip_based()).violations]
    assert len(found) > 300
    status = statuses.status(InvalidError(found))
    left_out = int(info(status).metadata["violationsLeftOut"])
    assert len(violations(status)) + left_out == len(found)
    assert violations(status)
    assert trailers_bytes(status) < TRAILERS_BYTES_MAX


@pytest.mark.parametrize("text", ["x" * 100_000, WIDE * 25_000])
def test_message_of_any_length_stays_within_the_trailers_bound(text: str) -> None:
    status = statuses.status(errors.InternalError("INTERNAL", text, requestId="r" * 128))
    assert trailers_bytes(status) < TRAILERS_BYTES_MAX


def test_keys_of_error_info_metadata_are_as_aip_193_has_them() -> None:
    status = statuses.status(refused(1000, "is wrong"))
    assert all(re.fullmatch(r"[a-z][A-Za-z0-9_-]{1,63}", key) for key in info(status).metadata)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain", '"plain"'),
        ("two\nlines", r'"two\nlines"'),
        ("\u00fc\u202e\0", r'"\xfc\u202e\x00"'),
        ("x" * 64, f'"{"x" * 64}"'),
        ("x" * 65, f'"{"x" * 64}\u2026"'),
    ],
)
def test_value_from_a_request_is_quoted_on_one_line_in_ascii(value: str, shown: str) -> None:
    assert errors.quoted(value) == shown
