"""siptrunk.v1.SipTrunkService: a short method per RPC, which are described in the proto."""

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from siptrunk.v1 import phone_number_pb2, sip_trunk_pb2, sip_trunk_service_pb2_grpc
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline import pages
from trunkline.auth import caller
from trunkline.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    PreconditionError,
    Violation,
)
from trunkline.masks import compile_mask
from trunkline.rules import FIRST_NUMBERS_MAX, Change, Rules, check_number
from trunkline.store.database import ConstraintError
from trunkline.store.phone_numbers import PhoneNumberStore
from trunkline.store.trunks import FETCH_ROWS_MAX, TrunkStore, Updated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.message import Message

SipTrunk = sip_trunk_pb2.SipTrunk
PhoneNumber = phone_number_pb2.PhoneNumber

UPDATE_ATTEMPTS_MAX = 4
TRUNKS_PAGE_DEFAULT = 50
TRUNKS_PAGE_MAX = 500
NUMBERS_PAGE_DEFAULT = 100
NUMBERS_PAGE_MAX = 1000
PAGE_BYTES_MAX = 1 << 20
SEVERAL = "-"
TRUNKS_LISTED_MAX = 500
_ID = re.compile(r"[!-~]{1,64}", re.ASCII)


class SipTrunkService(sip_trunk_service_pb2_grpc.SipTrunkServiceServicer):
    """The trunks and phone numbers of the caller's account."""

    def __init__(self, trunks: TrunkStore, numbers: PhoneNumberStore, rules: Rules) -> None:
        self._trunks = trunks
        self._numbers = numbers
        self._rules = rules

    async def CreateSipTrunk(self, request: pb.CreateSipTrunkRequest, context: Any) -> SipTrunk:
        _require(request, "sip_trunk")
        change = self._rules.creation(request.sip_trunk)
        merged = self._rules.merged(SipTrunk(), change)
        change.violations += self._rules.check(merged, change)
        numbers = self._first_numbers(request.phone_numbers, change)
        _refuse(change.violations)
        return await self._trunks.create(caller().account_id, change.values, numbers)

    async def GetSipTrunk(self, request: pb.GetSipTrunkRequest, context: Any) -> SipTrunk:
        _refuse(_empty("id", request.id))
        trunk = await self._get(request.id)
        if trunk is None:
            raise _no_trunk()
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
                if len(page.sip_trunks) == wanted or (page.sip_trunks and size > PAGE_BYTES_MAX):
                    assert after is not None
                    page.next_page_token = pages.token(binding, after)
                    return page
                page.sip_trunks.append(trunk)
                after = (_sort_value(trunk, order.field), trunk.id)
            if len(found) < min(missing + 1, FETCH_ROWS_MAX):
                return page

    async def UpdateSipTrunk(self, request: pb.UpdateSipTrunkRequest, context: Any) -> SipTrunk:
        _require(request, "sip_trunk")
        sent = request.sip_trunk
        plan = compile_mask(request.update_mask.paths, sent)
        change = self._rules.update(plan, sent)
        if not sent.id:
            _refuse([*_empty("id", sent.id), *change.violations])
        if not _ID.fullmatch(sent.id):
            _refuse(change.violations)
            raise _no_trunk()
        if change.violations:
            await self._refuse_merged(sent.id, change)
        return await self._updated(sent.id, sent.etag or None, change)

    async def DeleteSipTrunk(
        self, request: pb.DeleteSipTrunkRequest, context: Any
    ) -> pb.DeleteSipTrunkResponse:
        _refuse(_empty("id", request.id))
        account_id, etag = caller().account_id, request.etag or None
        deleted = None
        if _ID.fullmatch(request.id):
            deleted = await self._trunks.delete(account_id, request.id, etag, force=request.force)
        if deleted is None:
            raise _no_trunk()
        if not deleted.done:
            _refuse_stale(etag, deleted.etag)
            count = deleted.phone_number_count
            raise PreconditionError(
                "TRUNK_HAS_PHONE_NUMBERS",
                f"the trunk has {count} phone numbers: remove them, or delete with force",
                phoneNumberCount=str(count),
            )
        return pb.DeleteSipTrunkResponse(phone_numbers_removed=deleted.phone_number_count)

    async def CreatePhoneNumber(
        self, request: pb.CreatePhoneNumberRequest, context: Any
    ) -> PhoneNumber:
        violations = [*_empty("trunk_id", request.trunk_id), *_missing(request, "phone_number")]
        change = Change()
        if request.HasField("phone_number"):
            change = self._number_change(request.phone_number)
        _refuse([*violations, *change.violations])
        number = None
        if _ID.fullmatch(request.trunk_id):
            values = _number_values(change)
            number = await self._numbers.create(caller().account_id, request.trunk_id, **values)
        if number is None:
            raise _no_trunk()
        return number

    async def ListPhoneNumbers(
        self, request: pb.ListPhoneNumbersRequest, context: Any
    ) -> pb.ListPhoneNumbersResponse:
        _refuse([*_empty("trunk_id", request.trunk_id), *_several(request)])
        if not _ID.fullmatch(request.trunk_id):
            raise _no_trunk()
        account_id, trunk_id = caller().account_id, request.trunk_id
        wanted = pages.size(request.page_size, NUMBERS_PAGE_DEFAULT, NUMBERS_PAGE_MAX)
        binding = (account_id, "numbers", trunk_id, *request.trunk_ids)
        after = pages.after(request.page_token, binding) or ("", "")
        if trunk_id == SEVERAL:
            found = await self._numbers.list_page_of_several(
                account_id, request.trunk_ids, (str(after[0]), after[1]), wanted + 1
            )
        else:
            found = await self._numbers.list_page(account_id, trunk_id, after[1], wanted + 1)
            if not found and not await self._numbers.trunk_exists(account_id, trunk_id):
                raise _no_trunk()
        page = pb.ListPhoneNumbersResponse(phone_numbers=found[:wanted])
        if len(found) > wanted:
            last = found[wanted - 1]
            page.next_page_token = pages.token(binding, (last.byot_trunk_id, last.id))
        return page

    async def UpdatePhoneNumber(
        self, request: pb.UpdatePhoneNumberRequest, context: Any
    ) -> PhoneNumber:
        sent, trunk_id = request.phone_number, request.trunk_id
        violations = _empty("trunk_id", trunk_id) + _missing(request, "phone_number")
        if request.HasField("phone_number"):
            violations += _empty("id", sent.id)
        _refuse(violations)
        account_id = caller().account_id
        plan = compile_mask(request.update_mask.paths, sent)
        change = self._rules.update(plan, sent)
        stored = None
        if _ID.fullmatch(trunk_id) and _ID.fullmatch(sent.id):
            stored = await self._numbers.get(account_id, trunk_id, sent.id)
        if stored is not None:
            change.violations += self._rules.unequal(stored, change)
        _refuse(change.violations)
        if stored is not None and "name" in change.values:
            name = change.values["name"]
            assert name is None or isinstance(name, str)
            stored = await self._numbers.rename(account_id, trunk_id, sent.id, name)
        if stored is None:
            raise _no_number()
        return stored

    async def DeletePhoneNumber(
        self, request: pb.DeletePhoneNumberRequest, context: Any
    ) -> pb.DeletePhoneNumberResponse:
        _refuse([*_empty("trunk_id", request.trunk_id), *_empty("id", request.id)])
        known = _ID.fullmatch(request.trunk_id) and _ID.fullmatch(request.id)
        if not known or not await self._numbers.delete(
            caller().account_id, request.trunk_id, request.id
        ):
            raise _no_number()
        return pb.DeletePhoneNumberResponse()

    async def _get(self, trunk_id: str) -> SipTrunk | None:
        if not _ID.fullmatch(trunk_id):
            return None
        return await self._trunks.get(caller().account_id, trunk_id)

    async def _updated(self, trunk_id: str, etag: str | None, change: Change) -> SipTrunk:
        """Try the update; where a constraint objects, see why, and try again if nothing is wrong.

        Between a refusal and the look at why, another writer may have changed what was wrong. So
        the last attempt holds the row's lock while it looks.
        """
        account_id = caller().account_id
        for _ in range(UPDATE_ATTEMPTS_MAX):
            try:
                updated = await self._trunks.update(account_id, trunk_id, etag, change)
            except ConstraintError:
                await self._refuse_merged(trunk_id, change, etag)
            else:
                return self._judged(updated, etag, change)
        updated, violations = await self._trunks.update_locked(
            account_id, trunk_id, etag, change, lambda stored: self._violations(stored, change)
        )
        _refuse(violations)
        return self._judged(updated, etag, change)

    def _judged(self, updated: Updated | None, etag: str | None, change: Change) -> SipTrunk:
        if updated is None:
            raise _no_trunk()
        if not updated.written:
            if self._rules.unequal(updated.trunk, change):
                _refuse(self._violations(updated.trunk, change))
            _refuse_stale(etag, updated.trunk.etag)
        return updated.trunk

    async def _refuse_merged(self, trunk_id: str, change: Change, etag: str | None = None) -> None:
        """Read the trunk and say everything that is wrong with the change; return if nothing is."""
        stored = await self._get(trunk_id)
        if stored is None:
            _refuse(change.violations)
            raise _no_trunk()
        if not change.violations:
            _refuse_stale(etag, stored.etag)
        _refuse(self._violations(stored, change))

    def _violations(self, stored: SipTrunk, change: Change) -> list[Violation]:
        merged = self._rules.merged(stored, change)
        unequal = self._rules.unequal(stored, change)
        return [*change.violations, *unequal, *self._rules.check(merged, change)]

    def _number_change(self, number: PhoneNumber) -> Change:
        change = self._rules.creation(number)
        check_number(number, change)
        return change

    def _first_numbers(
        self, numbers: "Sequence[PhoneNumber]", change: Change
    ) -> list[dict[str, Any]]:
        if len(numbers) > FIRST_NUMBERS_MAX:
            change.refuse(
                "phone_numbers",
                "TOO_MANY",
                f"has {len(numbers)} entries; at most {FIRST_NUMBERS_MAX} with the create",
            )
            return []
        found, first = [], dict[str, int]()
        for position, number in enumerate(numbers):
            one = self._number_change(number)
            path = f"phone_numbers[{position}]"
            for v in one.violations:
                change.refuse(f"{path}.{v.field}", v.reason, v.description)
            digits = number.phone_number.lstrip("+")
            if first.setdefault(digits, position) != position and not one.violations:
                twin = f"phone_numbers[{first[digits]}]"
                change.refuse(path, "DUPLICATE", f"is the same number as {twin}")
            found.append(_number_values(one))
        return found


def _number_values(change: Change) -> dict[str, Any]:
    return {name: change.values.get(name) for name in ("phone_number", "name")}


def _sort_value(trunk: SipTrunk, field: str) -> str | datetime:
    return trunk.created_at.ToDatetime(UTC) if field == "created_at" else getattr(trunk, field)


def _refuse(violations: "Sequence[Violation]") -> None:
    if violations:
        raise InvalidError(violations)


def _refuse_stale(etag: str | None, current: str) -> None:
    if etag is not None and etag != current:
        raise ConflictError(
            "ETAG_MISMATCH", "the trunk has changed since this etag: read it again", etag=current
        )


def _require(request: "Message", name: str) -> None:
    _refuse(_missing(request, name))


def _missing(request: "Message", name: str) -> list[Violation]:
    if request.HasField(name):
        return []
    return [Violation(name, "REQUIRED", "is required")]


def _empty(name: str, value: str) -> list[Violation]:
    return [] if value else [Violation(name, "REQUIRED", "is required")]


def _several(request: pb.ListPhoneNumbersRequest) -> list[Violation]:
    count = len(request.trunk_ids)
    if request.trunk_id != SEVERAL:
        what = f'is for trunk_id "{SEVERAL}" only'
        return [Violation("trunk_ids", "NOT_WITH_ONE_TRUNK", what)] if count else []
    if count > TRUNKS_LISTED_MAX:
        what = f"has {count} entries; at most {TRUNKS_LISTED_MAX}"
        return [Violation("trunk_ids", "TOO_MANY", what)]
    if not count:
        return [Violation("trunk_ids", "REQUIRED", "is required")]
    bad = (i for i, trunk_id in enumerate(request.trunk_ids) if not _ID.fullmatch(trunk_id))
    return [Violation(f"trunk_ids[{i}]", "INVALID_FORM", "is not an id") for i in bad]


def _no_trunk() -> NotFoundError:
    return NotFoundError("TRUNK_NOT_FOUND", "the account has no trunk of this id")


def _no_number() -> NotFoundError:
    return NotFoundError("PHONE_NUMBER_NOT_FOUND", "the trunk has no phone number of this id")
