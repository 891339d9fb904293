"""The methods on revisions; what each does is in the proto."""

from collections.abc import Mapping, Sequence
from typing import Any

from siptrunk.v1 import sip_trunk_pb2, sip_trunk_revision_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline import pages
from trunkline.auth import caller
from trunkline.errors import NotFoundError, Violation
from trunkline.store.history import FETCH_ROWS_MAX
from trunkline.store.trunks import Edit
from trunkline.trunks import common
from trunkline.trunks.common import ID, refuse

SipTrunk = sip_trunk_pb2.SipTrunk
SipTrunkRevision = sip_trunk_revision_pb2.SipTrunkRevision

REVISIONS_PAGE_DEFAULT = 50
REVISIONS_PAGE_MAX = 500


class HistoryMethods(common.Methods):
    """List and get revisions, and go back to one."""

    async def ListSipTrunkRevisions(
        self, request: pb.ListSipTrunkRevisionsRequest, context: Any
    ) -> pb.ListSipTrunkRevisionsResponse:
        refuse(common.empty("trunk_id", request.trunk_id))
        account_id, trunk_id = caller().account_id, request.trunk_id
        wanted = pages.size(request.page_size, REVISIONS_PAGE_DEFAULT, REVISIONS_PAGE_MAX)
        binding = (account_id, "revisions", trunk_id)
        after = pages.after(request.page_token, binding)
        before = int(after[1]) if after else None
        page, size = pb.ListSipTrunkRevisionsResponse(), 0
        while ID.fullmatch(trunk_id):
            missing = wanted - len(page.sip_trunk_revisions)
            found = await self._history.list_page(account_id, trunk_id, before, missing + 1)
            for revision in found:
                size += revision.ByteSize()
                full = len(page.sip_trunk_revisions) == wanted
                if full or (page.sip_trunk_revisions and size > common.PAGE_BYTES_MAX):
                    page.next_page_token = pages.token(binding, ("", str(before)))
                    return page
                page.sip_trunk_revisions.append(revision)
                before = revision.revision
            if len(found) < min(missing + 1, FETCH_ROWS_MAX):
                break
        if not page.sip_trunk_revisions and not request.page_token:
            raise common.no_trunk()
        return page

    async def GetSipTrunkRevision(
        self, request: pb.GetSipTrunkRevisionRequest, context: Any
    ) -> SipTrunkRevision:
        refuse(common.empty("trunk_id", request.trunk_id) + _bad_revision(request.revision))
        return await self._revision(request.trunk_id, request.revision)

    async def RevertSipTrunk(self, request: pb.RevertSipTrunkRequest, context: Any) -> SipTrunk:
        trunk_id, etag = request.trunk_id, request.etag or None
        violations = common.empty("trunk_id", trunk_id) + _bad_revision(request.revision)
        refuse(violations + common.bad_request_id(request))
        mutation = common.mutation(request)
        past = None

        async def judge(stored: Mapping[str, SipTrunk]) -> Sequence[Edit]:
            assert past is not None
            trunk = stored[trunk_id]
            common.refuse_stale(etag, trunk.etag)
            change = self._rules.restoration(past.sip_trunk)
            refuse(self._violations(trunk, change))
            return (Edit(trunk_id, etag, change),)

        try:
            past = await self._revision(trunk_id, request.revision)
        except NotFoundError:
            # A retry is answered all the same where what it went back to is forgotten since.
            earlier = await self._trunks.edited_before(mutation)
            if not earlier:
                raise
            return self._told(mutation, earlier[0], context)
        updated = await self._trunks.edit(mutation, [trunk_id], judge)
        if not updated:
            raise common.no_trunk()
        return self._told(mutation, updated[0], context)

    async def _revision(self, trunk_id: str, number: int) -> SipTrunkRevision:
        found = None
        if ID.fullmatch(trunk_id):
            found = await self._history.get(caller().account_id, trunk_id, number)
        if found is None:
            raise NotFoundError(
                "REVISION_NOT_FOUND", "the account has no such revision, or keeps it no longer"
            )
        return found


def _bad_revision(number: int) -> list[Violation]:
    if number > 0:
        return []
    reason, what = ("REQUIRED", "is required") if not number else ("OUT_OF_RANGE", "is below 1")
    return [Violation("revision", reason, what)]
