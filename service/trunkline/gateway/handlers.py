"""One function per route: the request as a call of the service, the reply as the form has it."""

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from siptrunk.v1 import phone_number_pb2, sip_trunk_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline.errors import Violation
from trunkline.gateway import forms, preconditions, problems
from trunkline.gateway.upstream import Upstream

SipTrunk = sip_trunk_pb2.SipTrunk
Gateway = sip_trunk_pb2.Gateway
PhoneNumber = phone_number_pb2.PhoneNumber
Handler = Callable[[Request, Upstream], Awaitable[Response]]

PAGE_STREAMED = 100
NUMBERS_PAGE_STREAMED = 1000
_LIST_PARAMETERS = {"is_active", "filter", "order_by", "page_size", "page_token"}
_NUMBERS_PARAMETERS = {"page_size", "page_token"}


async def create_trunk(request: Request, upstream: Upstream) -> Response:
    """POST: a trunk with its first numbers; 201."""
    read = await _body(request, SipTrunk, forms.TRUNK_KEYS)
    numbers = _first_numbers(read)
    _refuse(read)
    sent = _as(read, SipTrunk)
    for gateway, explicit in zip(sent.gateways, read.explicit, strict=True):
        if explicit is False and gateway.port == forms.effective_port(sent):
            gateway.ClearField("port")
    read.message.ClearField("id")
    with _told(read):
        trunk = await upstream.call(
            "CreateSipTrunk", pb.CreateSipTrunkRequest(sip_trunk=sent, phone_numbers=numbers)
        )
    return await _trunk(trunk, upstream, 201)


async def get_trunk(request: Request, upstream: Upstream) -> Response:
    """GET: a trunk; 304 where If-None-Match has its etag."""
    trunk = await upstream.call("GetSipTrunk", pb.GetSipTrunkRequest(id=_id(request)))
    if preconditions.not_modified(request.headers, trunk.etag):
        return Response(status_code=304, headers={"ETag": trunk.etag})
    return await _trunk(trunk, upstream, 200)


async def list_trunks(request: Request, upstream: Upstream) -> Response:
    """GET: an array of trunks: a page where one is asked for, else all of them as a stream."""
    parameters = _parameters(request, _LIST_PARAMETERS)
    query = pb.ListSipTrunksRequest(
        filter=_filter(parameters), order_by=parameters.get("order_by", "")
    )
    paged = _paged(parameters, query)
    if not paged:
        query.page_size = PAGE_STREAMED

    async def page() -> tuple[list[dict[str, Any]], str]:
        found = await upstream.call("ListSipTrunks", query)
        numbers = await upstream.numbers_of(found.sip_trunks)
        shown = [
            forms.shown_trunk(t, numbers[t.id][0], cut=numbers[t.id][1]) for t in found.sip_trunks
        ]
        return shown, found.next_page_token

    return await _array(request, query, page, paged=paged)


async def update_trunk(request: Request, upstream: Upstream) -> Response:
    """PATCH: the keys of the body are the mask."""
    trunk_id = _id(request)
    read = await _body(request, SipTrunk, forms.TRUNK_KEYS)
    sent = _as(read, SipTrunk)
    _same_id(read, trunk_id)
    stored = None
    if "phone_numbers" in read.extra or _echoes_port(sent):
        stored = await _stored(trunk_id, upstream)
    if stored is not None:
        _keep_ports_absent(read, stored)
    if stored is not None and "phone_numbers" in read.extra:
        await _same_numbers(read, stored, upstream)
    _refuse(read)
    sent.id = trunk_id
    etag = await preconditions.wanted(request.headers, trunk_id, upstream)
    if etag and sent.etag and sent.etag != etag:
        raise problems.ProblemError(412, "ETAG_MISMATCH", "If-Match and the body's etag differ")
    if etag:
        sent.etag = etag
    mask = FieldMask(paths=[n for n in read.named if n not in ("id", "etag")])
    if not mask.paths:
        etag_sent = sent.etag
        sent = SipTrunk(id=trunk_id, etag=etag_sent) if etag_sent else SipTrunk(id=trunk_id)
    with preconditions.from_header(etag), _told(read):
        trunk = await upstream.call(
            "UpdateSipTrunk", pb.UpdateSipTrunkRequest(sip_trunk=sent, update_mask=mask)
        )
    return await _trunk(trunk, upstream, 200)


async def delete_trunk(request: Request, upstream: Upstream) -> Response:
    """DELETE: a trunk and its numbers."""
    trunk_id = _id(request)
    etag = await preconditions.wanted(request.headers, trunk_id, upstream)
    with preconditions.from_header(etag):
        gone = await upstream.call(
            "DeleteSipTrunk", pb.DeleteSipTrunkRequest(id=trunk_id, etag=etag, force=True)
        )
    count = gone.phone_numbers_removed
    return _json({"message": f"Trunk deleted successfully. {count} phone number(s) removed."})


async def create_number(request: Request, upstream: Upstream) -> Response:
    """POST: a number on a trunk; 201."""
    read = await _body(request, PhoneNumber, forms.NUMBER_KEYS)
    _active_only(read, "")
    _refuse(read)
    number = await upstream.call(
        "CreatePhoneNumber",
        pb.CreatePhoneNumberRequest(
            trunk_id=request.path_params["trunk_id"], phone_number=_as(read, PhoneNumber)
        ),
    )
    return _json(forms.shown_number(number), 201)


async def list_numbers(request: Request, upstream: Upstream) -> Response:
    """GET: an array of a trunk's numbers, paged as trunks are."""
    parameters = _parameters(request, _NUMBERS_PARAMETERS)
    trunk_id = request.path_params["trunk_id"]
    if trunk_id == "-":
        raise problems.ProblemError(404, "TRUNK_NOT_FOUND", "the account has no trunk of this id")
    query = pb.ListPhoneNumbersRequest(trunk_id=trunk_id)
    paged = _paged(parameters, query)
    if not paged:
        query.page_size = NUMBERS_PAGE_STREAMED

    async def page() -> tuple[list[dict[str, Any]], str]:
        found = await upstream.call("ListPhoneNumbers", query)
        return [forms.shown_number(n) for n in found.phone_numbers], found.next_page_token

    return await _array(request, query, page, paged=paged)


async def update_number(request: Request, upstream: Upstream) -> Response:
    """PATCH: the name of a number."""
    preconditions.refuse_for_number(request.headers)
    read = await _body(request, PhoneNumber, forms.NUMBER_KEYS)
    _active_only(read, "")
    _same_id(read, _id(request))
    _refuse(read)
    sent = _as(read, PhoneNumber)
    sent.id = _id(request)
    number = await upstream.call(
        "UpdatePhoneNumber",
        pb.UpdatePhoneNumberRequest(
            trunk_id=request.path_params["trunk_id"],
            phone_number=sent,
            update_mask=FieldMask(paths=[n for n in read.named if n != "id"]),
        ),
    )
    return _json(forms.shown_number(number))


async def delete_number(request: Request, upstream: Upstream) -> Response:
    """DELETE: a number of a trunk."""
    preconditions.refuse_for_number(request.headers)
    await upstream.call(
        "DeletePhoneNumber",
        pb.DeletePhoneNumberRequest(trunk_id=request.path_params["trunk_id"], id=_id(request)),
    )
    return _json({"message": "Phone number removed successfully"})


HANDLERS: Mapping[str, Handler] = {
    "CreateSipTrunk": create_trunk,
    "GetSipTrunk": get_trunk,
    "ListSipTrunks": list_trunks,
    "UpdateSipTrunk": update_trunk,
    "DeleteSipTrunk": delete_trunk,
    "CreatePhoneNumber": create_number,
    "ListPhoneNumbers": list_numbers,
    "UpdatePhoneNumber": update_number,
    "DeletePhoneNumber": delete_number,
}


async def _trunk(trunk: SipTrunk, upstream: Upstream, status: int) -> Response:
    numbers, cut = await upstream.numbers(trunk)
    return _json(forms.shown_trunk(trunk, numbers, cut=cut), status, {"ETag": trunk.etag})


async def _array(
    request: Request,
    query: Any,
    page: Callable[[], Awaitable[tuple[list[dict[str, Any]], str]]],
    *,
    paged: bool,
) -> Response:
    items, token = await page()  # before the answer begins, so that errors have their status
    if paged:
        headers = {}
        if token:
            parameters = dict(request.query_params) | {"page_token": token}
            headers["Link"] = f'<{request.url.path}?{urlencode(parameters)}>; rel="next"'
        return _json(items, 200, headers)

    async def stream() -> AsyncIterator[bytes]:
        nonlocal items, token
        yield b"["
        separator = b""
        while True:
            for item in items:
                yield separator + _dumped(item)
                separator = b","
            if not token:
                break
            query.page_token = token
            items, token = await page()
        yield b"]"

    return StreamingResponse(stream(), media_type="application/json")


async def _body(request: Request, kind: Any, extra: tuple[str, ...]) -> forms.Read:
    media_type = request.headers.get("content-type", "application/json").partition(";")[0]
    if media_type.strip().lower() != "application/json":
        raise problems.ProblemError(415, "NOT_JSON", "the body must be application/json")
    try:
        return forms.read(forms.parsed(await request.body()), kind, extra)
    except forms.BodyError as error:
        raise problems.ProblemError(400, "BAD_BODY", str(error)) from None


def _as(read: forms.Read, kind: type[Any]) -> Any:
    assert isinstance(read.message, kind)
    return read.message


def _refuse(read: forms.Read) -> None:
    """Refuse a body that can't be handed on; one with unknown enum spellings can, see `_told`."""
    if any(v.reason != "UNKNOWN_VALUE" for v in read.violations):
        raise problems.invalid(read.violations)


@contextlib.contextmanager
def _told(read: forms.Read) -> Iterator[None]:
    """Put what was found in the body in the place of what the service says of the same fields."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        told = problems.problem(error)
        ours = {v.field: v for v in read.violations}
        if not ours or not told.violations:
            raise
        raise problems.invalid([ours.get(v.field, v) for v in told.violations]) from None


def _id(request: Request) -> str:
    return str(request.path_params["id"])


def _same_id(read: forms.Read, trunk_id: str) -> None:
    if "id" in read.named and _as(read, object).id != trunk_id:
        read.violations.append(Violation("id", "IMMUTABLE", "is another one than the path's"))


def _active_only(read: forms.Read, prefix: str) -> None:
    if read.extra.get("is_active", True) is not True:
        what = "can't be anything but true: deactivate the trunk"
        read.violations.append(Violation(f"{prefix}is_active", "NOT_SUPPORTED", what))


def _first_numbers(read: forms.Read) -> list[PhoneNumber]:
    sent = read.extra.get("phone_numbers", [])
    if not isinstance(sent, list):
        read.violations.append(Violation("phone_numbers", "WRONG_TYPE", "must be an array"))
        return []
    found = []
    for position, item in enumerate(sent):
        path = f"phone_numbers[{position}]"
        if not isinstance(item, dict):
            read.violations.append(Violation(path, "WRONG_TYPE", "must be an object"))
            continue
        one = forms.read(item, PhoneNumber, forms.NUMBER_KEYS)
        _active_only(one, "")
        one.message.ClearField("id")
        found.append(_as(one, PhoneNumber))
        read.violations += [
            Violation(f"{path}.{v.field}", v.reason, v.description) for v in one.violations
        ]
    return found


async def _same_numbers(read: forms.Read, stored: SipTrunk, upstream: Upstream) -> None:
    """Numbers in a PATCH are an echo of a GET, or refused: they have routes of their own."""
    shown, _ = await upstream.numbers(stored)
    sent = read.extra["phone_numbers"]
    ours = [forms.shown_number(n) for n in shown]
    if not (
        isinstance(sent, list)
        and len(sent) == len(ours)
        and all(isinstance(item, dict) for item in sent)
        and all(
            one == one | {"name": None, "phone_number": None} | item
            for one, item in zip(ours, sent, strict=True)
        )
    ):
        what = f"can't be changed here: use /sip-trunks/trunks/{stored.id}/numbers"
        read.violations.append(Violation("phone_numbers", "IMMUTABLE", what))


def _echoes_port(sent: SipTrunk) -> bool:
    return any(g.port in (forms.PORT, forms.PORT_TLS) for g in sent.gateways)


async def _stored(trunk_id: str, upstream: Upstream) -> SipTrunk | None:
    try:
        trunk = await upstream.call("GetSipTrunk", pb.GetSipTrunkRequest(id=trunk_id))
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise
        return None  # the update says so, after what is wrong with the body
    assert isinstance(trunk, SipTrunk)
    return trunk


def _keep_ports_absent(read: forms.Read, stored: SipTrunk) -> None:
    """A port that is only the echo of the effective one of a gateway without a port stays absent.

    Not where `port_explicit` is true, and without it not where the same body moves the transport:
    there the port is meant.
    """
    sent = _as(read, SipTrunk)
    moved = "transport" in read.named and sent.transport != stored.transport
    effective = forms.effective_port(stored)
    portless = {g.gateway_address for g in stored.gateways if not g.HasField("port")}
    for gateway, explicit in zip(sent.gateways, read.explicit, strict=True):
        if not gateway.HasField("port"):
            continue
        address = gateway.gateway_address.lower().rstrip(".")
        if explicit is False:
            new = forms.effective_port(sent) if moved else effective
            absent = gateway.port in (effective, new)
        else:
            absent = explicit is None and not moved and gateway.port == effective
            absent = absent and address in portless
        if absent:
            gateway.ClearField("port")
            portless.discard(address)


def _parameters(request: Request, known: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            what = f"is not a parameter; there are {', '.join(sorted(known))}"
            raise problems.invalid([Violation(name[:64], "UNKNOWN_PARAMETER", what)])
        if name in found:
            raise problems.invalid([Violation(name, "TWICE", "is given twice")])
        found[name] = value
    return found


def _filter(parameters: dict[str, str]) -> str:
    active = parameters.get("is_active")
    if active is None:
        return parameters.get("filter", "")
    if active not in ("true", "false"):
        raise problems.invalid([Violation("is_active", "WRONG_TYPE", "must be true or false")])
    rest = parameters.get("filter", "")
    return f"is_active={active} AND {rest}" if rest.strip() else f"is_active={active}"


def _paged(parameters: dict[str, str], query: Any) -> bool:
    text = parameters.get("page_size")
    if text is not None:
        if not text.isascii() or not text.isdigit() or not int(text[:9]) > 0 or len(text) > 9:
            what = "must be a whole number, at least 1"
            raise problems.invalid([Violation("page_size", "WRONG_TYPE", what)])
        query.page_size = int(text)
    query.page_token = parameters.get("page_token", "")
    return text is not None or "page_token" in parameters


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(_dumped(value), status, headers, "application/json")


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
