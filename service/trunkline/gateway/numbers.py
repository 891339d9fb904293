"""The routes of phone numbers."""

from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from starlette.requests import Request
from starlette.responses import Response

from siptrunk.v1 import phone_number_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline.gateway import forms, preconditions, problems, replies, requests, views
from trunkline.gateway.upstream import Upstream

PhoneNumber = phone_number_pb2.PhoneNumber

NUMBERS_PAGE_STREAMED = 1000
_LIST_PARAMETERS = {"page_size", "page_token"}


async def create_number(request: Request, upstream: Upstream) -> Response:
    """POST: a number on a trunk; 201, or 200 where nothing is written."""
    read = await requests.body(request, PhoneNumber, forms.NUMBER_KEYS)
    requests.active_only(read)
    requests.refuse(read)
    made = await upstream.change(
        "CreatePhoneNumber",
        pb.CreatePhoneNumberRequest(
            trunk_id=requests.trunk_id(request), phone_number=_number(read)
        ),
    )
    status = 200 if upstream.intent.validate_only else 201
    return replies.answer(views.number(made.reply), status)


async def list_numbers(request: Request, upstream: Upstream) -> Response:
    """GET: an array of a trunk's numbers, paged as trunks are."""
    parameters = requests.parameters(request, _LIST_PARAMETERS)
    trunk_id = requests.trunk_id(request)
    if trunk_id == "-":
        raise problems.ProblemError(404, "TRUNK_NOT_FOUND", "the account has no trunk of this id")
    query = pb.ListPhoneNumbersRequest(trunk_id=trunk_id)
    paged = requests.paged(parameters, query)
    if not paged:
        query.page_size = NUMBERS_PAGE_STREAMED

    async def page() -> tuple[list[dict[str, Any]], str]:
        found = await upstream.call("ListPhoneNumbers", query)
        return _shown(found), found.next_page_token

    return await replies.array(request, query, page, paged=paged)


async def update_number(request: Request, upstream: Upstream) -> Response:
    """PATCH: the name of a number."""
    preconditions.refuse_for_number(request.headers)
    number_id = requests.path_id(request)
    read = await requests.body(request, PhoneNumber, forms.NUMBER_KEYS)
    requests.active_only(read)
    requests.same_id(read, number_id)
    requests.refuse(read)
    sent = _number(read)
    sent.id = number_id
    changed = await upstream.change(
        "UpdatePhoneNumber",
        pb.UpdatePhoneNumberRequest(
            trunk_id=requests.trunk_id(request),
            phone_number=sent,
            update_mask=FieldMask(paths=sorted({*read.named} - {"id"})),
        ),
    )
    return replies.answer(views.number(changed.reply))


async def delete_number(request: Request, upstream: Upstream) -> Response:
    """DELETE: a number of a trunk."""
    preconditions.refuse_for_number(request.headers)
    await upstream.change(
        "DeletePhoneNumber",
        pb.DeletePhoneNumberRequest(
            trunk_id=requests.trunk_id(request), id=requests.path_id(request)
        ),
    )
    if upstream.intent.validate_only:
        return replies.answer({"message": "Nothing was removed. The phone number can be."})
    return replies.answer({"message": "Phone number removed successfully"})


async def create_numbers(request: Request, upstream: Upstream) -> Response:
    """POST: several numbers on a trunk."""
    preconditions.refuse_for_number(request.headers)
    kind = pb.BatchCreatePhoneNumbersRequest
    read = await requests.body(request, kind, ("phone_numbers",), forms.ELSEWHERE)
    sent = requests.numbers(read)
    requests.refuse(read)
    made = await upstream.change(
        "BatchCreatePhoneNumbers", kind(trunk_id=requests.trunk_id(request), phone_numbers=sent)
    )
    return replies.answer(_shown(made.reply))


async def delete_numbers(request: Request, upstream: Upstream) -> Response:
    """POST: several numbers of a trunk go."""
    sent = await _several(request, pb.BatchDeletePhoneNumbersRequest)
    await upstream.change("BatchDeletePhoneNumbers", sent)
    count = f"{len(sent.ids)} phone number(s)"
    if upstream.intent.validate_only:
        return replies.answer({"message": f"Nothing was removed. {count} can be."})
    return replies.answer({"message": f"{count} removed successfully"})


async def move_numbers(request: Request, upstream: Upstream) -> Response:
    """POST: several numbers of a trunk go to another."""
    sent = await _several(request, pb.MovePhoneNumbersRequest)
    moved = await upstream.change("MovePhoneNumbers", sent)
    return replies.answer(_shown(moved.reply))


async def _several(request: Request, kind: Any) -> Any:
    """A request about numbers of a trunk, by their ids."""
    preconditions.refuse_for_number(request.headers)
    read = await requests.body(request, kind, elsewhere=forms.ELSEWHERE)
    requests.refuse(read)
    sent: Any = read.message
    sent.trunk_id = requests.trunk_id(request)
    return sent


def _number(read: forms.Read) -> phone_number_pb2.PhoneNumber:
    assert isinstance(read.message, PhoneNumber)
    return read.message


def _shown(reply: Any) -> list[dict[str, Any]]:
    return [views.number(n) for n in reply.phone_numbers]
