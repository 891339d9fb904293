"""The methods on trunks; what each does is in the proto."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from siptrunk.v1 import sip_trunk_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline import pages
from trunkline.auth import caller
from trunkline.errors import ConflictError, ExistsError, NotFoundError, PreconditionError, Violation
from trunkline.masks import compile_mask
from trunkline.rules import FIRST_NUMBERS_MAX, Change
from trunkline.store.database import ConstraintError
from trunkline.store.mutations import Mutation
from trunkline.store.reads import FETCH_ROWS_MAX
from trunkline.store.trunks import BATCH_MAX, Edit, Updated
from trunkline.trunks import common
from trunkline.trunks.common import ID, refuse
from trunkline.turns import turn

SipTrunk = sip_trunk_pb2.SipTrunk

UPDATE_ATTEMPTS_MAX = 4
TRUNKS_PAGE_DEFAULT = 50
TRUNKS_PAGE_MAX = 500


class TrunkMethods(common.Methods):
    """Create, get, list, update and delete."""

    async def CreateSipTrunk(self, request: pb.CreateSipTrunkRequest, context: Any) -> SipTrunk:
        refuse(common.missing(request, "sip_trunk") + common.bad_request_id(request))
        change = self._rules.creation(request.sip_trunk)
        merged = self._rules.merged(SipTrunk(), change)
        change.violations += self._rules.check(merged, change)
        numbers = self._first_numbers(request, change)
        refuse(change.violations)
        mutation = common.mutation(request)
        trunk = await self._trunks.create(mutation, change.values, numbers)
        assert trunk is not None
        if mutation.validate_only:
            for name in ("id", "etag", "created_at", "updated_at", "auth_password_changed_at"):
                trunk.ClearField(name)
        return trunk

    async def GetSipTrunk(self, request: pb.GetSipTrunkRequest, context: Any) -> SipTrunk:
        refuse(common.empty("id", request.id))
        trunk = await self._get(request.id)
        if trunk is None:
            raise common.no_trunk()
        return trunk

    async def ListSipTrunks(
        self, request: pb.ListSipTrunksRequest, context: Any
    ) -> pb.ListSipTrunksResponse:
        account_id = caller().account_id
        wanted = pages.size(request.page_size, TRUNKS_PAGE_DEFAULT, TRUNKS_PAGE_MAX)
        order = pages.order(request.order_by)
        conditions = pages.conditions(request.filter)
        binding = (account_id, "trunks", repr(order), repr(conditions))
        after = pages.after(request.page_token, binding, order)
        page, size = pb.ListSipTrunksResponse(), 0
        while True:
            missing = wanted - len(page.sip_trunks)
            found = await self._trunks.list_page(account_id, conditions, order, after, missing + 1)
            for trunk in found:
                size += trunk.ByteSize()
                full = len(page.sip_trunks) == wanted
                if full or (page.sip_trunks and size > common.PAGE_BYTES_MAX):
                    assert after is not None
                    page.next_page_token = pages.token(binding, after)
                    return page
                page.sip_trunks.append(trunk)
                after = (_sort_value(trunk, order.field), trunk.id)
            if len(found) < min(missing + 1, FETCH_ROWS_MAX):
                return page

    async def UpdateSipTrunk(self, request: pb.UpdateSipTrunkRequest, context: Any) -> SipTrunk:
        refuse(common.missing(request, "sip_trunk"))
        sent = request.sip_trunk
        change = self._rules.update(compile_mask(request.update_mask.paths, sent), sent)
        change.violations += common.bad_request_id(request)
        if not sent.id:
            refuse([*common.empty("id", sent.id), *change.violations])
        if not ID.fullmatch(sent.id):
            refuse(change.violations)
            raise common.no_trunk()
        if change.violations:
            await self._refuse_merged(sent.id, change)
        mutation = common.mutation(request)
        edit = Edit(sent.id, sent.etag or None, change)
        return self._told(
            mutation, self._judged(await self._updated(mutation, edit), edit), context
        )

    async def BatchUpdateSipTrunks(
        self, request: pb.BatchUpdateSipTrunksRequest, context: Any
    ) -> pb.BatchUpdateSipTrunksResponse:
        violations = common.bounded("requests", request.requests, BATCH_MAX)
        refuse(violations + common.bad_request_id(request))
        edits = await self._edits(request.requests)
        position = {edit.trunk_id: i for i, edit in enumerate(edits)}
        mutation = common.mutation(request)

        async def judge(stored: Mapping[str, SipTrunk]) -> Sequence[Edit]:
            await self._judge_all(edits, stored)
            return edits

        renames = any("name" in edit.change.values for edit in edits)
        try:
            updated = await self._trunks.edit(mutation, list(position), judge, renames=renames)
        except ExistsError as error:
            raise await self._named_twice(mutation.account_id, edits) or error from None
        if updated is None:
            raise _missing_in_batch(0)
        for one in updated:
            self._told(mutation, one, None)
        return pb.BatchUpdateSipTrunksResponse(sip_trunks=[one.trunk for one in updated])

    async def DeleteSipTrunk(
        self, request: pb.DeleteSipTrunkRequest, context: Any
    ) -> pb.DeleteSipTrunkResponse:
        refuse(common.empty("id", request.id) + common.bad_request_id(request))
        mutation, etag = common.mutation(request), request.etag or None
        deleted = None
        if ID.fullmatch(request.id):
            deleted = await self._trunks.delete(mutation, request.id, etag, force=request.force)
        if deleted is None:
            raise common.no_trunk()
        if not deleted.done:
            common.refuse_stale(etag, deleted.etag)
            count = deleted.phone_number_count
            raise PreconditionError(
                "TRUNK_HAS_PHONE_NUMBERS",
                f"the trunk has {count} phone numbers: remove them, or delete with force",
                phoneNumberCount=str(count),
            )
        return pb.DeleteSipTrunkResponse(phone_numbers_removed=deleted.phone_number_count)

    async def _edits(self, requests: Sequence[pb.UpdateSipTrunkRequest]) -> list[Edit]:
        """The updates of a batch; what is wrong with their form is refused here, all at once."""
        violations, first = list[Violation](), dict[str, int]()
        edits = []
        for position, one in enumerate(requests):
            await turn(position)
            path, sent = f"requests[{position}]", one.sip_trunk
            for name in ("request_id", "validate_only"):
                if getattr(one, name):
                    what = "stands in the batch itself"
                    violations.append(Violation(f"{path}.{name}", "NOT_IN_BATCH", what))
            if not ID.fullmatch(sent.id):
                reason = "INVALID_FORM" if sent.id else "REQUIRED"
                what = "is not an id" if sent.id else "is required"
                violations.append(Violation(f"{path}.sip_trunk.id", reason, what))
            elif first.setdefault(sent.id, position) != position:
                what = f"is the same trunk as requests[{first[sent.id]}]"
                violations.append(Violation(f"{path}.sip_trunk.id", "DUPLICATE", what))
            change = self._rules.update(compile_mask(one.update_mask.paths, sent), sent)
            edits.append(Edit(sent.id, sent.etag or None, change))
        refuse(violations + _in_batch(edits) if violations else [])
        return edits

    async def _judge_all(self, edits: Sequence[Edit], stored: Mapping[str, SipTrunk]) -> None:
        for position, edit in enumerate(edits):
            if edit.trunk_id not in stored:
                refuse(_in_batch(edits))
                raise _missing_in_batch(position)
        for position, edit in enumerate(edits):
            if not edit.change.violations:
                _refuse_stale_in_batch(position, edit, stored[edit.trunk_id])
        violations = []
        for position, edit in enumerate(edits):
            await turn(position)
            found = self._violations(stored[edit.trunk_id], edit.change)
            violations += [_within(position, v) for v in found]
        refuse(violations)

    async def _named_twice(self, account_id: str, edits: Sequence[Edit]) -> ExistsError | None:
        """Which update of a batch asks for a name that is taken."""
        names = {
            str(e.change.values["name"]): i
            for i, e in enumerate(edits)
            if "name" in e.change.values
        }
        taken = await self._trunks.named(account_id, list(names))
        for position, edit in enumerate(edits):
            name = edit.change.values.get("name")
            other = taken.get(str(name))
            twice = name is not None and names[str(name)] != position
            if name is not None and (twice or (other and other != edit.trunk_id)):
                return ExistsError(
                    "NAME_TAKEN",
                    f"requests[{position}]: the account has another trunk of this name",
                    field=f"requests[{position}].sip_trunk.name",
                )
        return None

    async def _get(self, trunk_id: str) -> SipTrunk | None:
        if not ID.fullmatch(trunk_id):
            return None
        return await self._trunks.get(caller().account_id, trunk_id)

    async def _updated(self, mutation: Mutation, edit: Edit) -> Updated | None:
        """Try the update; where a constraint objects, see why, and try again if nothing is wrong.

        Between a refusal and the look at why, another writer may have changed what was wrong. So
        the last attempt holds the row's lock while it looks.
        """
        for _ in range(UPDATE_ATTEMPTS_MAX):
            try:
                return await self._trunks.update(mutation, edit)
            except ConstraintError:
                await self._refuse_merged(edit.trunk_id, edit.change, edit.etag)

        async def judge(stored: Mapping[str, SipTrunk]) -> Sequence[Edit]:
            trunk = stored[edit.trunk_id]
            common.refuse_stale(edit.etag, trunk.etag)
            refuse(self._violations(trunk, edit.change))
            return (edit,)

        updated = await self._trunks.edit(mutation, [edit.trunk_id], judge)
        return updated[0] if updated else None

    async def _refuse_merged(self, trunk_id: str, change: Change, etag: str | None = None) -> None:
        """Read the trunk and say everything that is wrong with the change; return if nothing is."""
        stored = await self._get(trunk_id)
        if stored is None:
            refuse(change.violations)
            raise common.no_trunk()
        if not change.violations:
            common.refuse_stale(etag, stored.etag)
        refuse(self._violations(stored, change))

    def _first_numbers(
        self, request: pb.CreateSipTrunkRequest, change: Change
    ) -> list[dict[str, Any]]:
        count = len(request.phone_numbers)
        if count > FIRST_NUMBERS_MAX:
            what = f"has {count} entries; at most {FIRST_NUMBERS_MAX} with the create"
            change.refuse("phone_numbers", "TOO_MANY", what)
            return []
        return common.number_changes(self._rules, request.phone_numbers, change)


def _sort_value(trunk: SipTrunk, field: str) -> str | datetime:
    return trunk.created_at.ToDatetime(UTC) if field == "created_at" else getattr(trunk, field)


def _within(position: int, violation: Violation) -> Violation:
    """A violation of an update as one of the batch that it is in."""
    inner = violation.field
    if inner != "update_mask":
        inner = f"sip_trunk.{inner}"
    field = f"requests[{position}].{inner}"
    return Violation(field, violation.reason, violation.description)


def _in_batch(edits: Sequence[Edit]) -> list[Violation]:
    return [_within(i, v) for i, edit in enumerate(edits) for v in edit.change.violations]


def _refuse_stale_in_batch(position: int, edit: Edit, stored: SipTrunk) -> None:
    try:
        common.refuse_stale(edit.etag, stored.etag)
    except ConflictError as error:
        raise ConflictError(
            error.reason,
            f"requests[{position}]: {error.message}",
            field=f"requests[{position}].sip_trunk.etag",
            etag=stored.etag,
        ) from None


def _missing_in_batch(position: int) -> NotFoundError:
    error = common.no_trunk()
    path = f"requests[{position}]"
    return NotFoundError(error.reason, f"{path}: {error.message}", field=f"{path}.sip_trunk.id")
