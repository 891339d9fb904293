"""The routes of trunks."""

from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from starlette.requests import Request
from starlette.responses import Response

from siptrunk.v1 import sip_trunk_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline.gateway import echoes, forms, preconditions, replies, requests
from trunkline.gateway.upstream import Upstream

SipTrunk = sip_trunk_pb2.SipTrunk

PAGE_STREAMED = 100
BATCH_MAX = 100
_LIST_PARAMETERS = {"is_active", "filter", "order_by", "page_size", "page_token"}


async def create_trunk(request: Request, upstream: Upstream) -> Response:
    """POST: a trunk with its first numbers; 201, or 200 where nothing is written."""
    read = await requests.body(request, SipTrunk, forms.TRUNK_KEYS)
    numbers = requests.numbers(read)
    requests.refuse(read)
    sent = _trunk(read)
    echoes.drop_ports(read, (forms.effective_port(sent),))
    sent.ClearField("id")
    with requests.told(read):
        made = await upstream.change(
            "CreateSipTrunk", pb.CreateSipTrunkRequest(sip_trunk=sent, phone_numbers=numbers)
        )
    status = 200 if upstream.intent.validate_only else 201
    return await replies.trunk(made.reply, upstream, status)


async def get_trunk(request: Request, upstream: Upstream) -> Response:
    """GET: a trunk; 304 where If-None-Match has its etag."""
    query = pb.GetSipTrunkRequest(id=requests.path_id(request))
    trunk = await upstream.call("GetSipTrunk", query)
    if preconditions.not_modified(request.headers, trunk.etag):
        return Response(status_code=304, headers={"ETag": trunk.etag})
    return await replies.trunk(trunk, upstream)


async def list_trunks(request: Request, upstream: Upstream) -> Response:
    """GET: an array of trunks: a page where one is asked for, else all of them as a stream."""
    parameters = requests.parameters(request, _LIST_PARAMETERS)
    query = pb.ListSipTrunksRequest(
        filter=_filter(parameters), order_by=parameters.get("order_by", "")
    )
    paged = requests.paged(parameters, query)
    if not paged:
        query.page_size = PAGE_STREAMED

    async def page() -> tuple[list[dict[str, Any]], str]:
        found = await upstream.call("ListSipTrunks", query)
        return await replies.trunks(found.sip_trunks, upstream), found.next_page_token

    return await replies.array(request, query, page, paged=paged)


async def update_trunk(request: Request, upstream: Upstream) -> Response:
    """PATCH: the keys of the body are the mask."""
    trunk_id = requests.path_id(request)
    read = await requests.body(request, SipTrunk, forms.TRUNK_KEYS)
    requests.same_id(read, trunk_id)
    await echoes.settle(read, trunk_id, upstream)
    requests.refuse(read)
    etag = await preconditions.wanted(request.headers, trunk_id, upstream)
    update = _update(read, trunk_id, etag)
    with preconditions.from_header(etag), requests.told(read):
        changed = await upstream.change("UpdateSipTrunk", update)
    return await replies.changed_trunk(changed, upstream)


async def update_trunks(request: Request, upstream: Upstream) -> Response:
    """POST: several updates; the keys of each are its mask."""
    preconditions.refuse_for_batch(request.headers)
    kind = pb.BatchUpdateSipTrunksRequest
    read = await requests.body(request, kind, ("requests",), forms.ELSEWHERE)
    sent = requests.items(read, "requests")
    updates = []
    for position, item in sent:
        one = forms.read(item, SipTrunk, forms.TRUNK_KEYS)
        trunk_id = _trunk(one).id
        if trunk_id and len(sent) <= BATCH_MAX:  # else the service refuses it, unread
            await echoes.settle(one, trunk_id, upstream)
        requests.within(read, f"requests[{position}]", one)
        updates.append(_update(one, trunk_id, ""))
    requests.refuse(read)
    with requests.told(read):
        changed = await upstream.change("BatchUpdateSipTrunks", kind(requests=updates))
    return replies.answer(await replies.trunks(changed.reply.sip_trunks, upstream))


async def delete_trunk(request: Request, upstream: Upstream) -> Response:
    """DELETE: a trunk and its numbers."""
    trunk_id = requests.path_id(request)
    etag = await preconditions.wanted(request.headers, trunk_id, upstream)
    with preconditions.from_header(etag):
        gone = await upstream.change(
            "DeleteSipTrunk", pb.DeleteSipTrunkRequest(id=trunk_id, etag=etag, force=True)
        )
    count = f"{gone.reply.phone_numbers_removed} phone number(s)"
    if upstream.intent.validate_only:
        return replies.answer({"message": f"Nothing was deleted. The trunk can be, with {count}."})
    return replies.answer({"message": f"Trunk deleted successfully. {count} removed."})


def _trunk(read: forms.Read) -> sip_trunk_pb2.SipTrunk:
    assert isinstance(read.message, SipTrunk)
    return read.message


def _update(read: forms.Read, trunk_id: str, etag: str) -> pb.UpdateSipTrunkRequest:
    """The update that a body stands for."""
    sent = _trunk(read)
    etag = preconditions.agreed(etag, sent.etag)
    # In an order of its own: a retry is the same request, however its keys are ordered.
    mask = FieldMask(paths=sorted({*read.named} - {"id", "etag"}))
    if not mask.paths:
        sent = SipTrunk()
    sent.id = trunk_id
    sent.ClearField("etag")
    if etag:
        sent.etag = etag
    return pb.UpdateSipTrunkRequest(sip_trunk=sent, update_mask=mask)


def _filter(parameters: dict[str, str]) -> str:
    if "is_active" not in parameters:
        return parameters.get("filter", "")
    active = "true" if requests.flag(parameters, "is_active") else "false"
    rest = parameters.get("filter", "")
    return f"is_active={active} AND {rest}" if rest.strip() else f"is_active={active}"
