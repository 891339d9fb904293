"""What the methods share: the call as a mutation, and how requests are refused."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from siptrunk.v1 import phone_number_pb2, sip_trunk_pb2, sip_trunk_service_pb2_grpc
from trunkline.auth import caller
from trunkline.errors import ConflictError, InvalidError, NotFoundError, Violation
from trunkline.feed import Feed
from trunkline.rules import Change, Rules
from trunkline.store.history import HistoryStore
from trunkline.store.mutations import Mutation
from trunkline.store.phone_numbers import PhoneNumberStore
from trunkline.store.trunks import Edit, TrunkStore, Updated

if TYPE_CHECKING:
    from google.protobuf.message import Message

PAGE_BYTES_MAX = 1 << 20
CHANGED_FIELDS_KEY = "x-changed-fields"
"""Trailing metadata of what changes a trunk: the fields that changed, separated by commas."""
ID = re.compile(r"[!-~]{1,64}", re.ASCII)
_REQUEST_ID = re.compile(r"[!-~]{1,128}", re.ASCII)


def mutation(request: Any) -> Mutation:
    """The caller's request as a mutation. `bad_request_id` says whether its id may be one."""
    who, content = caller(), None
    if request.request_id:
        bare = type(request)()
        bare.CopyFrom(request)
        bare.ClearField("request_id")
        content = bare.SerializeToString(deterministic=True)
    return Mutation(
        who.account_id,
        who.token_id,
        request.DESCRIPTOR.name.removesuffix("Request"),
        request.request_id or None,
        content,
        request.validate_only,
    )


def bad_request_id(request: Any) -> list[Violation]:
    """What is wrong with the id that makes a request safe to retry."""
    if not request.request_id or _REQUEST_ID.fullmatch(request.request_id):
        return []
    return [Violation("request_id", "INVALID_FORM", "is not 1 to 128 visible ASCII characters")]


def refuse(violations: Sequence[Violation]) -> None:
    """Refuse a request that has violations."""
    if violations:
        raise InvalidError(violations)


def refuse_stale(etag: str | None, current: str) -> None:
    """Refuse a request whose etag is not the current one."""
    if etag is not None and etag != current:
        raise ConflictError(
            "ETAG_MISMATCH", "the trunk has changed since this etag: read it again", etag=current
        )


def missing(request: "Message", name: str) -> list[Violation]:
    """The violation of a message field that is not there."""
    if request.HasField(name):
        return []
    return [Violation(name, "REQUIRED", "is required")]


def empty(name: str, value: object) -> list[Violation]:
    """The violation of a field that is empty."""
    return [] if value else [Violation(name, "REQUIRED", "is required")]


def bounded(name: str, items: Sequence[Any], most: int) -> list[Violation]:
    """The violation of a list that is empty or too long."""
    if not items:
        return [Violation(name, "REQUIRED", "is required")]
    if len(items) > most:
        return [Violation(name, "TOO_MANY", f"has {len(items)} entries; at most {most}")]
    return []


def ids(name: str, found: Sequence[str], most: int) -> list[Violation]:
    """What is wrong with a list of ids."""
    violations = bounded(name, found, most)
    if violations:
        return violations
    first = dict[str, int]()
    for position, one in enumerate(found):
        path = f"{name}[{position}]"
        if not ID.fullmatch(one):
            violations.append(Violation(path, "INVALID_FORM", "is not an id"))
        elif first.setdefault(one, position) != position:
            twin = f"is the same as {name}[{first[one]}]"
            violations.append(Violation(path, "DUPLICATE", twin))
    return violations


def number_changes(
    rules: Rules, numbers: "Sequence[phone_number_pb2.PhoneNumber]", change: Change
) -> list[dict[str, Any]]:
    """The values of new phone numbers; what is wrong with them is put on the change."""
    found, first = [], dict[str, int]()
    for position, number in enumerate(numbers):
        one = rules.new_number(number)
        path = f"phone_numbers[{position}]"
        for v in one.violations:
            change.refuse(f"{path}.{v.field}", v.reason, v.description)
        digits = number.phone_number.lstrip("+")
        if first.setdefault(digits, position) != position and not one.violations:
            twin = f"phone_numbers[{first[digits]}]"
            change.refuse(path, "DUPLICATE", f"is the same number as {twin}")
        found.append(number_values(one))
    return found


def number_values(change: Change) -> dict[str, Any]:
    """The columns of a new phone number."""
    return {name: change.values.get(name) for name in ("phone_number", "name")}


def no_trunk() -> NotFoundError:
    """There is no such trunk, or it is another account's."""
    return NotFoundError("TRUNK_NOT_FOUND", "the account has no trunk of this id")


def no_number() -> NotFoundError:
    """There is no such number on the trunk."""
    return NotFoundError("PHONE_NUMBER_NOT_FOUND", "the trunk has no phone number of this id")


class Methods(sip_trunk_service_pb2_grpc.SipTrunkServiceServicer):
    """What the methods work with.

    Args:
        trunks: the statements on trunks.
        numbers: those on phone numbers.
        history: those on revisions.
        feed: what has changed.
        rules: the deployment's.
    """

    def __init__(
        self,
        trunks: TrunkStore,
        numbers: PhoneNumberStore,
        history: HistoryStore,
        feed: Feed,
        rules: Rules,
    ) -> None:
        self._trunks = trunks
        self._numbers = numbers
        self._history = history
        self._feed = feed
        self._rules = rules

    def _violations(self, stored: sip_trunk_pb2.SipTrunk, change: Change) -> list[Violation]:
        """All that is wrong with a change of a trunk."""
        merged = self._rules.merged(stored, change)
        unequal = self._rules.unequal(stored, change)
        return [*change.violations, *unequal, *self._rules.check(merged, change)]

    def _judged(self, updated: Updated | None, edit: Edit) -> Updated:
        """An update that was done; refused where it was not."""
        if updated is None:
            raise no_trunk()
        if not updated.fits:
            if self._rules.unequal(updated.trunk, edit.change):
                refuse(self._violations(updated.trunk, edit.change))
            refuse_stale(edit.etag, updated.trunk.etag)
        return updated

    def _told(self, mutation: Mutation, updated: Updated, context: Any) -> sip_trunk_pb2.SipTrunk:
        """The trunk as it is answered, with the names of what changed beside it."""
        if context is not None:
            context.set_trailing_metadata(((CHANGED_FIELDS_KEY, ",".join(updated.changed)),))
        trunk = updated.trunk
        if mutation.validate_only and updated.changed:
            trunk.ClearField("etag")
            trunk.ClearField("updated_at")
            if "auth_password" in updated.changed:
                trunk.ClearField("auth_password_changed_at")
        return trunk
