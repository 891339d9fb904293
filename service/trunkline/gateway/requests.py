"""What handlers read of a request: parameters, bodies, and what it says beside a change."""

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import grpc
from starlette.requests import Request

from siptrunk.v1 import phone_number_pb2
from trunkline.errors import Violation
from trunkline.gateway import forms, problems
from trunkline.gateway.upstream import Intent

PhoneNumber = phone_number_pb2.PhoneNumber

VALIDATE_ONLY = "validate_only"
_KEY = re.compile(r"[!-~]{1,128}", re.ASCII)


def intent(request: Request, lists: Collection[str]) -> Intent:
    """What a request that changes something says beside the change.

    Args:
        request: whose parameters are read.
        lists: the other parameters that it takes.
    """
    found = parameters(request, {VALIDATE_ONLY}, lists)
    keys = request.headers.getlist(problems.IDEMPOTENCY_KEY)
    if keys and (len(keys) > 1 or not _KEY.fullmatch(keys[0])):
        what = f"{problems.IDEMPOTENCY_KEY} is not 1 to 128 visible ASCII characters"
        raise problems.ProblemError(400, "BAD_HEADER", what)
    return Intent(keys[0] if keys else "", flag(found, VALIDATE_ONLY))


def parameters(
    request: Request, known: Collection[str], lists: Collection[str] = ()
) -> dict[str, str]:
    """The parameters of a request, each given once; `lists` are allowed and left to be read."""
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in lists:
            continue
        if name not in known:
            what = f"is not a parameter; there are {', '.join(sorted({*known, *lists}))}"
            raise problems.invalid([Violation(name[:64], "UNKNOWN_PARAMETER", what)])
        if name in found:
            raise problems.invalid([Violation(name, "TWICE", "is given twice")])
        found[name] = value
    return found


def flag(found: Mapping[str, str], name: str) -> bool:
    """A parameter that is true or false; false where it is not given."""
    value = found.get(name, "false")
    if value not in ("true", "false"):
        raise problems.invalid([Violation(name, "WRONG_TYPE", "must be true or false")])
    return value == "true"


def paged(found: Mapping[str, str], query: Any) -> bool:
    """Put the parameters of a page into a query; whether a page is asked for."""
    text = found.get("page_size")
    if text is not None:
        if not text.isascii() or not text.isdigit() or not int(text[:9]) > 0 or len(text) > 9:
            what = "must be a whole number, at least 1"
            raise problems.invalid([Violation("page_size", "WRONG_TYPE", what)])
        query.page_size = int(text)
    query.page_token = found.get("page_token", "")
    return text is not None or "page_token" in found


async def body(
    request: Request,
    kind: Any,
    extra: Collection[str] = (),
    elsewhere: Mapping[str, str] = forms.NOWHERE,
) -> forms.Read:
    """The body as a message; see `forms.read`."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0]
    if media_type.strip().lower() != "application/json":
        raise problems.ProblemError(415, "NOT_JSON", "the body must be application/json")
    try:
        return forms.read(forms.parsed(await request.body()), kind, extra, elsewhere)
    except forms.BodyError as error:
        raise problems.ProblemError(400, "BAD_BODY", str(error)) from None


def refuse(read: forms.Read) -> None:
    """Refuse a body that can't be handed on; one with unknown enum spellings can, see `told`."""
    if any(v.reason != "UNKNOWN_VALUE" for v in read.violations):
        raise problems.invalid(read.violations)


@contextlib.contextmanager
def told(read: forms.Read) -> Iterator[None]:
    """Put what was found in the body in the place of what the service says of the same fields."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        found = problems.problem(error)
        ours = {v.field: v for v in read.violations}
        if not ours or not found.violations:
            raise
        raise problems.invalid([ours.get(v.field, v) for v in found.violations]) from None


def path_id(request: Request) -> str:
    """The id that ends the path."""
    return str(request.path_params["id"])


def trunk_id(request: Request) -> str:
    """The id of the trunk that the path goes through."""
    return str(request.path_params["trunk_id"])


def same_id(read: forms.Read, expected: str) -> None:
    """Refuse the id of another resource than the path's."""
    sent: Any = read.message
    if "id" in read.named and sent.id != expected:
        read.violations.append(Violation("id", "IMMUTABLE", "is another one than the path's"))


def active_only(read: forms.Read) -> None:
    """Refuse a number that is not active: only trunks can be inactive."""
    if read.extra.get("is_active", True) is not True:
        what = "can't be anything but true: deactivate the trunk"
        read.violations.append(Violation("is_active", "NOT_SUPPORTED", what))


def items(read: forms.Read, name: str) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a list, with their places; what is none is refused."""
    sent = read.extra.get(name, [])
    if not isinstance(sent, list):
        read.violations.append(Violation(name, "WRONG_TYPE", "must be an array"))
        return []
    for position, item in enumerate(sent):
        if not isinstance(item, dict):
            path = f"{name}[{position}]"
            read.violations.append(Violation(path, "WRONG_TYPE", "must be an object"))
    return [(position, item) for position, item in enumerate(sent) if isinstance(item, dict)]


def within(read: forms.Read, path: str, inner: forms.Read) -> None:
    """Take over what is wrong with an object at a path."""
    read.violations += [
        Violation(f"{path}.{v.field}", v.reason, v.description) for v in inner.violations
    ]


def numbers(read: forms.Read) -> list[phone_number_pb2.PhoneNumber]:
    """The new numbers of a body."""
    found = []
    for position, item in items(read, "phone_numbers"):
        one = forms.read(item, PhoneNumber, forms.NUMBER_KEYS)
        active_only(one)
        one.message.ClearField("id")
        assert isinstance(one.message, PhoneNumber)
        found.append(one.message)
        within(read, f"phone_numbers[{position}]", one)
    return found
