"""Errors of the gRPC service as the HTTP form has them. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from trunkline.errors import Violation

IDEMPOTENCY_KEY = "Idempotency-Key"
# grpc-gateway's table; FAILED_PRECONDITION is 400 on purpose, 412 is for If-Match.
STATUSES: Mapping[str, int] = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
_SDES_NEEDS_TLS = "media_encryption='sdes' requires transport='transport-tls'"
# What clients of the form look for, word for word.
_VIOLATIONS = {
    ("name", "REQUIRED"): "Trunk name is required",
    ("provider", "REQUIRED"): "Provider is required",
    ("auth_type", "REQUIRED"): "auth_type must be 'userpass' or 'ip-based'",
    ("auth_type", "UNKNOWN_VALUE"): "auth_type must be 'userpass' or 'ip-based'",
    ("auth_type", "WRONG_TYPE"): "auth_type must be 'userpass' or 'ip-based'",
    ("gateways", "TOO_FEW"): "At least one gateway is required",
    ("auth_username", "REQUIRED"): "auth_username and auth_password are required for userpass auth",
    ("auth_password", "REQUIRED"): "auth_username and auth_password are required for userpass auth",
    ("ip_identifiers", "TOO_FEW"): "ip_identifiers are required for ip-based auth",
    ("media_encryption", "SDES_NEEDS_TLS"): _SDES_NEEDS_TLS,
    ("transport", "SDES_NEEDS_TLS"): _SDES_NEEDS_TLS,
}
# 410: what was asked for was there once, and it is of no use to try again.
_GONE = {"RESUME_TOKEN_EXPIRED", "RESUME_TOKEN_FOREIGN"}
# These alone are 422, not 400.
_UNPROCESSABLE = ({"SDES_NEEDS_TLS"}, {"REQUEST_ID_REUSED"})
TIME_IS_UP = "the request's time is up"
_REASONS = {
    "DEADLINE_EXCEEDED": TIME_IS_UP,
    "REQUEST_IN_FLIGHT": f"a request with the same {IDEMPOTENCY_KEY} is at work: try again",
    "PHONE_NUMBER_TAKEN": "Phone number already exists on another active trunk",
    "TOKEN_MISSING": "Access denied: the request needs the header Authorization: Bearer <token>",
    "TOKEN_UNKNOWN": "Access denied: the token is not known or was revoked",
    "TOKEN_EXPIRED": "Access denied: the token has expired",
}
_WORDS = {
    "USERPASS": "userpass",
    "IP_BASED": "ip-based",
    "SDES": "sdes",
    "TLS": "transport-tls",
    "update_mask": "the body",
    "request_id": IDEMPOTENCY_KEY,
}


@dataclass(slots=True)
class ProblemError(Exception):
    """An answer other than a success.

    Attributes:
        status: the HTTP status.
        reason: stable, UPPER_SNAKE.
        message: for people.
        violations: all that is wrong with the request.
        headers: of the answer.
        resume_token: where a watch that ends with it goes on, or empty.
    """

    status: int
    reason: str
    message: str
    violations: Sequence[Violation] = ()
    headers: dict[str, str] = field(default_factory=dict)
    resume_token: str = ""

    @property
    def body(self) -> dict[str, Any]:
        """The body: `message` and `detail` are one text, which is where clients look for it."""
        return {
            "error": self.status,
            "message": self.message,
            "detail": self.message,
            "reason": self.reason,
            "violations": [
                {"field": v.field, "reason": v.reason, "description": v.description}
                for v in self.violations
            ],
        }


def invalid(violations: Sequence[Violation]) -> ProblemError:
    """The refusal of a request: 422 where that is customary and all that is wrong, else 400."""
    reasons = {v.reason for v in violations}
    status = 422 if reasons in _UNPROCESSABLE else 400
    reason = reasons.pop() if len(reasons) == 1 else "SEVERAL_VIOLATIONS"
    message = "; ".join(dict.fromkeys(_sentence(v) for v in violations))
    return ProblemError(status, reason, message, violations)


def problem(error: grpc.aio.AioRpcError, *, from_header: bool = False) -> ProblemError:
    """The answer to an error of the service.

    Args:
        error: what the call ended with.
        from_header: whether the etag came in If-Match, so that a stale one is 412 and not 409.
    """
    info, bad, retry = _details(error.trailing_metadata() or ())
    code = error.code().name
    reason = info.reason or code
    if bad.field_violations:
        return invalid(
            [
                Violation(_field(v.field), v.reason, _spelled(v.description))
                for v in bad.field_violations
            ]
        )
    if code == "CANCELLED":
        code = "UNAVAILABLE"  # by a service that ends: nobody here has done it
    status = 410 if reason in _GONE else STATUSES.get(code, 500)
    if reason == "ETAG_MISMATCH" and from_header:
        status = 412
    message = _REASONS.get(reason) or _spelled(error.details() or "") or code
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="trunkline"'
    if status in (429, 503) or reason == "REQUEST_IN_FLIGHT":
        seconds = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
        headers["Retry-After"] = str(max(1, math.ceil(seconds)))
    if not info.reason and status == 503:
        # The transport's own text names addresses; callers can do nothing with it.
        message, reason = "the service can't be reached now: try again", "UPSTREAM_UNAVAILABLE"
    token = info.metadata.get("resumeToken", "")
    return ProblemError(status, reason, message, headers=headers, resume_token=token)


def _details(
    trailers: Iterable[tuple[str, Any]],
) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo]:
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for key, value in trailers:
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                detail.Unpack(info)
                detail.Unpack(bad)
                detail.Unpack(retry)
    return info, bad, retry


def _sentence(violation: Violation) -> str:
    exact = _VIOLATIONS.get((violation.field, violation.reason))
    return exact or f"{violation.field} {violation.description}"


def _field(path: str) -> str:
    """The path of a field in the body: a batch has its trunks without a `sip_trunk` around them."""
    if path == "request_id":
        return IDEMPOTENCY_KEY
    return path.replace("].sip_trunk.", "].", 1) if path.startswith("requests[") else path


def _spelled(text: str) -> str:
    for word, spelling in _WORDS.items():
        text = text.replace(word, spelling)
    return text
