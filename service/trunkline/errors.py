"""What can go wrong with a call, each kind with its status code and reason.

    TrunklineError
    ├── InvalidError            INVALID_ARGUMENT, with every violation
    ├── UnauthenticatedError    UNAUTHENTICATED
    ├── DeniedError             PERMISSION_DENIED
    ├── NotFoundError           NOT_FOUND
    ├── ExistsError             ALREADY_EXISTS
    ├── PreconditionError       FAILED_PRECONDITION
    ├── ConflictError           ABORTED
    ├── PastError               OUT_OF_RANGE
    ├── ExhaustedError          RESOURCE_EXHAUSTED
    ├── UnavailableError        UNAVAILABLE
    ├── DeadlineError           DEADLINE_EXCEEDED
    ├── UnimplementedError      UNIMPLEMENTED
    └── InternalError           INTERNAL

Messages are written for the caller: no SQL, no class name, no address of the database, no secret.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc

DOMAIN = "trunkline"
VIOLATIONS_MAX = 50
VIOLATIONS_BYTES_MAX = 3400
MESSAGE_CHARACTERS_MAX = 320
QUOTED_CHARACTERS_MAX = 64


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with a request.

    `field` is a path relative to the resource (`gateways[1].port`) or the name of a request field
    (`update_mask`); `reason` is stable, UPPER_SNAKE; `description` is for people.
    """

    field: str
    reason: str
    description: str


class TrunklineError(Exception):
    """Anything that a caller is told about, with what the boundary needs to say it.

    Attributes:
        detail: what operators are told beside it, in logs and on the command line; never callers.
    """

    code = grpc.StatusCode.INTERNAL

    def __init__(
        self, reason: str, message: str, *, retry_seconds: float | None = None, **metadata: str
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = metadata
        self.retry_seconds = retry_seconds
        self.detail = ""
        self.violations: Sequence[Violation] = ()


class InvalidError(TrunklineError):
    """The request breaks rules; all of them are listed."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, violations: Sequence[Violation]) -> None:
        first = violations[0]
        reasons = {v.reason for v in violations}
        super().__init__(
            first.reason if len(reasons) == 1 else "SEVERAL_VIOLATIONS",
            "; ".join(f"{v.field}: {v.description}" for v in violations),
        )
        self.violations = violations


class UnauthenticatedError(TrunklineError):
    """The caller has not said, or not proved, who it is."""

    code = grpc.StatusCode.UNAUTHENTICATED


class DeniedError(TrunklineError):
    """The caller's token does not reach this far."""

    code = grpc.StatusCode.PERMISSION_DENIED


class NotFoundError(TrunklineError):
    """There is no such thing in the caller's account."""

    code = grpc.StatusCode.NOT_FOUND


class ExistsError(TrunklineError):
    """What is to be unique in the account is taken."""

    code = grpc.StatusCode.ALREADY_EXISTS


class PreconditionError(TrunklineError):
    """The state of things does not allow it."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class ConflictError(TrunklineError):
    """Somebody else changed it: read again, then decide (AIP-154)."""

    code = grpc.StatusCode.ABORTED


class PastError(TrunklineError):
    """What is asked for lies before what is kept, or in another history: start anew."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ExhaustedError(TrunklineError):
    """A bound is reached: on what one caller, or all of them, may take."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class UnavailableError(TrunklineError):
    """The database can't be asked now. Whether a write was done is not known."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineError(TrunklineError):
    """The call's time was up. Whether a write was done is not known."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class UnimplementedError(TrunklineError):
    """The server has no such method."""

    code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(TrunklineError):
    """A fault of the service; the log knows more under the request id."""

    code = grpc.StatusCode.INTERNAL


def quoted(value: str) -> str:
    """A value from a request as it may stand in a message: on one line, in ASCII, bounded."""
    shown = ascii(value[:QUOTED_CHARACTERS_MAX])[1:-1]
    return f'"{shown}{"…" if len(value) > QUOTED_CHARACTERS_MAX else ""}"'
