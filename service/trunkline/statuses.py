"""Makes google.rpc statuses of errors: the one place where an error becomes what is sent."""

from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from trunkline import errors

DETAILS_KEY = "grpc-status-details-bin"


def status(error: errors.TrunklineError) -> status_pb2.Status:
    """The status of an error: its code, a bounded message, ErrorInfo and what else belongs to it.

    A peer takes about 8 KB of trailers, the message travels in them twice, so both the message and
    the list of violations are cut, and the cut is said.
    """
    violations, left_out = _bounded(error)
    text = _text(error, left_out)
    metadata = dict(error.metadata)
    if left_out:
        metadata["violationsLeftOut"] = str(left_out)
    details: list[message.Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=errors.DOMAIN, metadata=metadata)
    ]
    if violations:
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if error.retry_seconds is not None:
        delay = duration_pb2.Duration(nanos=round(error.retry_seconds * 1e9) % 1_000_000_000)
        delay.seconds = int(error.retry_seconds)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        box = any_pb2.Any()
        box.Pack(detail)
        packed.append(box)
    return status_pb2.Status(code=error.code.value[0], message=text, details=packed)


def _bounded(
    error: errors.TrunklineError,
) -> tuple[list[error_details_pb2.BadRequest.FieldViolation], int]:
    kept: list[error_details_pb2.BadRequest.FieldViolation] = []
    size = 0
    for v in error.violations[: errors.VIOLATIONS_MAX]:
        one = error_details_pb2.BadRequest.FieldViolation(
            field=v.field, reason=v.reason, description=v.description
        )
        size += one.ByteSize() + 4
        if size > errors.VIOLATIONS_BYTES_MAX:
            break
        kept.append(one)
    return kept, len(error.violations) - len(kept)


def _text(error: errors.TrunklineError, left_out: int) -> str:
    text = error.message
    tail = f" (and {left_out} more)" if left_out else ""
    if len(text) > errors.MESSAGE_CHARACTERS_MAX:
        text = text[: errors.MESSAGE_CHARACTERS_MAX] + "…"
    return text + tail
