"""If-Match and If-None-Match (RFC 9110 section 13.1) against the service's etags."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from starlette.datastructures import Headers

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline.gateway import problems
from trunkline.gateway.upstream import Upstream

ETAGS_MAX = 20
_TAG = re.compile(r'(?:W/)?"[^"]*"')
_TAGS = re.compile(rf"\s*{_TAG.pattern}\s*(?:,\s*{_TAG.pattern}\s*)*")


def not_modified(headers: Headers, etag: str) -> bool:
    """Whether the caller has this version already; compared weakly."""
    sent = _sent(headers, "if-none-match")
    if sent is None:
        return False
    return sent.strip() == "*" or etag in [
        t.removeprefix("W/") for t in _tags(sent, "If-None-Match")
    ]


async def wanted(headers: Headers, trunk_id: str, upstream: Upstream) -> str:
    """The etag that If-Match asks for, to be checked in the same statement; empty for none.

    Raises:
        Problem: 412 where several are given and the trunk has none of them.
    """
    sent = _sent(headers, "if-match")
    if sent is None or sent.strip() == "*":
        return ""
    strong = [t for t in _tags(sent, "If-Match") if not t.startswith("W/")]
    if len(strong) == 1:
        return strong[0]
    if strong and upstream.intent.request_id:
        # Which of them holds is another question once the first try has changed the trunk.
        what = f"If-Match takes one etag beside {problems.IDEMPOTENCY_KEY}"
        raise problems.ProblemError(400, "BAD_HEADER", what)
    trunk = await upstream.call("GetSipTrunk", pb.GetSipTrunkRequest(id=trunk_id))
    if trunk.etag not in strong:
        raise problems.ProblemError(412, "ETAG_MISMATCH", "the trunk has none of these etags")
    return str(trunk.etag)


@contextmanager
def from_header(etag: str) -> Iterator[None]:
    """A stale etag is 412 where it is the one that If-Match asks for."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise problems.problem(error, from_header=bool(etag)) from None


def refuse_for_number(headers: Headers) -> None:
    """A number has no etag, so no If-Match but `*` holds for it.

    Raises:
        Problem: 412 where there is another.
    """
    _refuse_any(headers, "a phone number has no etag: send the trunk's to a change of the trunk")


def refuse_for_batch(headers: Headers) -> None:
    """A batch has no etag, each trunk in it has.

    Raises:
        Problem: 412 where If-Match has another than `*`.
    """
    _refuse_any(headers, "a batch has no etag: each of its requests takes that of its trunk")


def agreed(from_header: str, in_body: str) -> str:
    """The etag that a trunk must have, by the header or by the body; empty for none.

    Raises:
        Problem: 412 where they differ.
    """
    if from_header and in_body and in_body != from_header:
        raise problems.ProblemError(412, "ETAG_MISMATCH", "If-Match and the body's etag differ")
    return from_header or in_body


def _refuse_any(headers: Headers, what: str) -> None:
    sent = _sent(headers, "if-match")
    if sent is not None and sent.strip() != "*":
        raise problems.ProblemError(412, "ETAG_MISMATCH", what)


def _sent(headers: Headers, name: str) -> str | None:
    lines = headers.getlist(name)  # several lines are one list (RFC 9110 section 5.3)
    return ", ".join(lines) if lines else None


def _tags(text: str, header: str) -> list[str]:
    found = _TAG.findall(text) if _TAGS.fullmatch(text) else []
    if len(found) > ETAGS_MAX:
        raise problems.ProblemError(400, "BAD_HEADER", f"{header} has more than {ETAGS_MAX} etags")
    if not found:
        raise problems.ProblemError(400, "BAD_HEADER", f"{header} is not a list of etags")
    return found
