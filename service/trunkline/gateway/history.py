"""The routes of revisions."""

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline.gateway import problems, replies, requests, views
from trunkline.gateway.upstream import Upstream

PAGE_STREAMED = 100
_LIST_PARAMETERS = {"page_size", "page_token"}
_NUMBER = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)


async def list_revisions(request: Request, upstream: Upstream) -> Response:
    """GET: an array of a trunk's revisions, the newest first, paged as trunks are."""
    parameters = requests.parameters(request, _LIST_PARAMETERS)
    query = pb.ListSipTrunkRevisionsRequest(trunk_id=requests.trunk_id(request))
    paged = requests.paged(parameters, query)
    if not paged:
        query.page_size = PAGE_STREAMED

    async def page() -> tuple[list[dict[str, Any]], str]:
        found = await upstream.call("ListSipTrunkRevisions", query)
        shown = [views.revision(r) for r in found.sip_trunk_revisions]
        return shown, found.next_page_token

    return await replies.array(request, query, page, paged=paged)


async def get_revision(request: Request, upstream: Upstream) -> Response:
    """GET: one revision of a trunk."""
    number = str(request.path_params["revision"])
    if not _NUMBER.fullmatch(number):
        what = "the account has no such revision, or keeps it no longer"
        raise problems.ProblemError(404, "REVISION_NOT_FOUND", what)
    query = pb.GetSipTrunkRevisionRequest(trunk_id=requests.trunk_id(request), revision=int(number))
    return replies.answer(views.revision(await upstream.call("GetSipTrunkRevision", query)))
