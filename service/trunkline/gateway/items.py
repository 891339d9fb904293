"""The routes of single items of a trunk's lists, and of going back to a revision."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline.errors import Violation
from trunkline.gateway import echoes, forms, preconditions, problems, replies, requests
from trunkline.gateway.upstream import Upstream


async def add_gateways(request: Request, upstream: Upstream) -> Response:
    """POST: gateways join a trunk."""
    read = await requests.body(request, pb.AddGatewaysRequest, elsewhere=forms.ELSEWHERE)
    echoes.drop_ports(read)
    requests.refuse(read)
    return await _edited("AddGateways", read.message, request, upstream)


async def remove_gateways(request: Request, upstream: Upstream) -> Response:
    """DELETE: gateways leave a trunk."""
    sent = pb.RemoveGatewaysRequest(gateway_ids=_list(request, "gateway_ids"))
    return await _edited("RemoveGateways", sent, request, upstream)


async def add_ip_identifiers(request: Request, upstream: Upstream) -> Response:
    """POST: addresses join a trunk."""
    read = await requests.body(request, pb.AddIpIdentifiersRequest, elsewhere=forms.ELSEWHERE)
    requests.refuse(read)
    return await _edited("AddIpIdentifiers", read.message, request, upstream)


async def remove_ip_identifiers(request: Request, upstream: Upstream) -> Response:
    """DELETE: addresses leave a trunk."""
    sent = pb.RemoveIpIdentifiersRequest(ip_addresses=_list(request, "ip_addresses"))
    return await _edited("RemoveIpIdentifiers", sent, request, upstream)


async def revert_trunk(request: Request, upstream: Upstream) -> Response:
    """POST: a trunk gets the values of an earlier revision."""
    read = await requests.body(request, pb.RevertSipTrunkRequest, elsewhere=forms.ELSEWHERE)
    requests.refuse(read)
    return await _edited("RevertSipTrunk", read.message, request, upstream)


async def _edited(method: str, sent: Any, request: Request, upstream: Upstream) -> Response:
    """The trunk after an edit, on the condition that the header or the body states."""
    sent.trunk_id = requests.trunk_id(request)
    etag = await preconditions.wanted(request.headers, sent.trunk_id, upstream)
    sent.etag = preconditions.agreed(etag, sent.etag)
    with preconditions.from_header(etag):
        changed = await upstream.change(method, sent)
    return await replies.changed_trunk(changed, upstream)


def _list(request: Request, name: str) -> list[str]:
    """A list in the query: the parameter once for each item."""
    found = request.query_params.getlist(name)
    for position, item in enumerate(found):
        if not item.isprintable():
            what = "has characters that can't be printed"
            raise problems.invalid([Violation(f"{name}[{position}]", "INVALID_FORM", what)])
    return found
