"""The methods on phone numbers; what each does is in the proto."""

from typing import Any

from siptrunk.v1 import phone_number_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline import pages
from trunkline.auth import caller
from trunkline.errors import ExistsError, NotFoundError, Violation
from trunkline.masks import compile_mask
from trunkline.rules import Change
from trunkline.trunks import common
from trunkline.trunks.common import ID, refuse

PhoneNumber = phone_number_pb2.PhoneNumber

NUMBERS_PAGE_DEFAULT = 100
NUMBERS_PAGE_MAX = 1000
NUMBERS_BATCH_MAX = 1000
SEVERAL = "-"
TRUNKS_LISTED_MAX = 500


class NumberMethods(common.Methods):
    """Create, list, update, delete and move, one or several at once."""

    async def CreatePhoneNumber(
        self, request: pb.CreatePhoneNumberRequest, context: Any
    ) -> PhoneNumber:
        violations = [
            *common.empty("trunk_id", request.trunk_id),
            *common.missing(request, "phone_number"),
            *common.bad_request_id(request),
        ]
        change = Change()
        if request.HasField("phone_number"):
            change = self._rules.new_number(request.phone_number)
        refuse([*violations, *change.violations])
        mutation, made = common.mutation(request), None
        if ID.fullmatch(request.trunk_id):
            values = common.number_values(change)
            made = await self._numbers.create(mutation, request.trunk_id, [values])
        if made is None:
            raise common.no_trunk()
        return _answered(made[0], trial=mutation.validate_only)

    async def BatchCreatePhoneNumbers(
        self, request: pb.BatchCreatePhoneNumbersRequest, context: Any
    ) -> pb.BatchCreatePhoneNumbersResponse:
        change = Change()
        change.violations += common.empty("trunk_id", request.trunk_id)
        change.violations += common.bad_request_id(request)
        bounds = common.bounded("phone_numbers", request.phone_numbers, NUMBERS_BATCH_MAX)
        change.violations += bounds
        values = []
        if not bounds:
            values = common.number_changes(self._rules, request.phone_numbers, change)
        refuse(change.violations)
        mutation, made = common.mutation(request), None
        if ID.fullmatch(request.trunk_id):
            try:
                made = await self._numbers.create(mutation, request.trunk_id, values)
            except ExistsError as error:
                raise await self._taken(request) or error from None
        if made is None:
            raise common.no_trunk()
        answered = [_answered(number, trial=mutation.validate_only) for number in made]
        return pb.BatchCreatePhoneNumbersResponse(phone_numbers=answered)

    async def ListPhoneNumbers(
        self, request: pb.ListPhoneNumbersRequest, context: Any
    ) -> pb.ListPhoneNumbersResponse:
        refuse([*common.empty("trunk_id", request.trunk_id), *_several(request)])
        if not ID.fullmatch(request.trunk_id):
            raise common.no_trunk()
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
                raise common.no_trunk()
        page = pb.ListPhoneNumbersResponse(phone_numbers=found[:wanted])
        if len(found) > wanted:
            last = found[wanted - 1]
            page.next_page_token = pages.token(binding, (last.byot_trunk_id, last.id))
        return page

    async def UpdatePhoneNumber(
        self, request: pb.UpdatePhoneNumberRequest, context: Any
    ) -> PhoneNumber:
        sent, trunk_id = request.phone_number, request.trunk_id
        violations = common.empty("trunk_id", trunk_id) + common.missing(request, "phone_number")
        if request.HasField("phone_number"):
            violations += common.empty("id", sent.id)
        refuse(violations + common.bad_request_id(request))
        change = self._rules.update(compile_mask(request.update_mask.paths, sent), sent)
        mutation, stored = common.mutation(request), None
        if ID.fullmatch(trunk_id) and ID.fullmatch(sent.id):
            if change.violations:
                stored = await self._numbers.get(mutation.account_id, trunk_id, sent.id)
            else:
                stored = await self._numbers.update(
                    mutation, trunk_id, sent.id, change.values, _expected(change)
                )
        if stored is not None:
            change.violations += self._rules.unequal(stored, change)
        refuse(change.violations)
        if stored is None:
            raise common.no_number()
        if mutation.validate_only:
            stored.ClearField("updated_at")
        return stored

    async def DeletePhoneNumber(
        self, request: pb.DeletePhoneNumberRequest, context: Any
    ) -> pb.DeletePhoneNumberResponse:
        refuse(
            [
                *common.empty("trunk_id", request.trunk_id),
                *common.empty("id", request.id),
                *common.bad_request_id(request),
            ]
        )
        missing = None
        if ID.fullmatch(request.trunk_id) and ID.fullmatch(request.id):
            mutation = common.mutation(request)
            missing = await self._numbers.delete(mutation, request.trunk_id, [request.id])
        if missing is None or missing:
            raise common.no_number()
        return pb.DeletePhoneNumberResponse()

    async def BatchDeletePhoneNumbers(
        self, request: pb.BatchDeletePhoneNumbersRequest, context: Any
    ) -> pb.BatchDeletePhoneNumbersResponse:
        refuse(
            [
                *common.empty("trunk_id", request.trunk_id),
                *common.ids("ids", request.ids, NUMBERS_BATCH_MAX),
                *common.bad_request_id(request),
            ]
        )
        missing = None
        if ID.fullmatch(request.trunk_id):
            mutation = common.mutation(request)
            missing = await self._numbers.delete(mutation, request.trunk_id, request.ids)
        if missing is None:
            raise common.no_trunk()
        if missing:
            raise _missing(list(request.ids), set(missing))
        return pb.BatchDeletePhoneNumbersResponse()

    async def MovePhoneNumbers(
        self, request: pb.MovePhoneNumbersRequest, context: Any
    ) -> pb.MovePhoneNumbersResponse:
        trunk_id, target_id = request.trunk_id, request.target_trunk_id
        violations = common.empty("trunk_id", trunk_id)
        violations += common.empty("target_trunk_id", target_id)
        if trunk_id and trunk_id == target_id:
            what = "is the trunk that the numbers are to leave"
            violations.append(Violation("target_trunk_id", "SAME_TRUNK", what))
        violations += common.ids("ids", request.ids, NUMBERS_BATCH_MAX)
        refuse(violations + common.bad_request_id(request))
        mutation, moved = common.mutation(request), None
        if ID.fullmatch(trunk_id) and ID.fullmatch(target_id):
            moved = await self._numbers.move(mutation, trunk_id, target_id, request.ids)
        for name, one in (("trunk_id", trunk_id), ("target_trunk_id", target_id)):
            if moved is None or one not in moved.trunk_ids:
                error = common.no_trunk()
                raise NotFoundError(error.reason, error.message, field=name)
        assert moved is not None
        if moved.missing:
            raise _missing(list(request.ids), set(moved.missing))
        for number in moved.numbers if mutation.validate_only else ():
            number.ClearField("updated_at")
        return pb.MovePhoneNumbersResponse(phone_numbers=moved.numbers)

    async def _taken(self, request: pb.BatchCreatePhoneNumbersRequest) -> ExistsError | None:
        """Which number of a batch is taken."""
        sent = [number.phone_number for number in request.phone_numbers]
        taken = await self._numbers.taken(caller().account_id, sent)
        for position, number in enumerate(sent):
            if number.lstrip("+") in taken:
                path = f"phone_numbers[{position}]"
                what = f"{path}: the account has this phone number on a trunk already"
                return ExistsError("PHONE_NUMBER_TAKEN", what, field=f"{path}.phone_number")
        return None


def _answered(number: PhoneNumber, *, trial: bool) -> PhoneNumber:
    if trial:
        for name in ("id", "created_at", "updated_at"):
            number.ClearField(name)
    return number


def _expected(change: Change) -> str | None:
    """What the number must be; what none is, where the request names what no number has."""
    if not change.expected.keys() <= {"phone_number"}:
        return ""
    expected = change.expected.get("phone_number")
    return None if expected is None else str(expected)


def _missing(asked: list[str], missing: set[str]) -> NotFoundError:
    position = next(i for i, one in enumerate(asked) if one in missing)
    error = common.no_number()
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    return NotFoundError(
        error.reason, f"ids[{position}]: {error.message}{more}", field=f"ids[{position}]"
    )


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
    bad = (i for i, trunk_id in enumerate(request.trunk_ids) if not ID.fullmatch(trunk_id))
    return [Violation(f"trunk_ids[{i}]", "INVALID_FORM", "is not an id") for i in bad]
