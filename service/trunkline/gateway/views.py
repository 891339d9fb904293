"""Messages as the HTTP form shows them, by descriptor: a new field needs no code here. Pure."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from siptrunk.v1 import (
    phone_number_pb2,
    sip_trunk_event_pb2,
    sip_trunk_pb2,
    sip_trunk_revision_pb2,
)
from trunkline.fields import Field, table
from trunkline.gateway import forms

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

SipTrunk = sip_trunk_pb2.SipTrunk
PhoneNumber = phone_number_pb2.PhoneNumber
Body = dict[str, Any]
Getter = Callable[[Any], Any]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def trunk(
    shown: sip_trunk_pb2.SipTrunk, numbers: Sequence[phone_number_pb2.PhoneNumber], *, cut: bool
) -> Body:
    """A trunk with the numbers given; `cut` where it has more."""
    body = trunk_alone(shown)
    body["phone_numbers"] = [number(n) for n in numbers]
    body["phone_numbers_truncated"] = cut
    return body


def trunk_alone(shown: sip_trunk_pb2.SipTrunk) -> Body:
    """A trunk without its numbers, as history and events have it."""
    body = message(shown)
    if shown.auth_type != SipTrunk.USERPASS:
        del body["auth_username"]
    for gateway in body["gateways"]:
        gateway["port_explicit"] = gateway["port"] is not None
        if gateway["port"] is None:
            gateway["port"] = forms.effective_port(shown)
    body["user_id"] = shown.account_id
    return body


def revision(shown: sip_trunk_revision_pb2.SipTrunkRevision) -> Body:
    """A revision of a trunk."""
    body = message(shown)
    if body["before"] is not None:
        body["before"] = _before(shown)
    return body


def event(shown: sip_trunk_event_pb2.SipTrunkEvent) -> Body:
    """An event of a watch. A kind that is not known is an update."""
    return message(shown) | {"kind": kind(shown)}


def kind(shown: sip_trunk_event_pb2.SipTrunkEvent) -> str:
    """What happened, as the HTTP form spells it."""
    known = forms.spellings(table(shown.DESCRIPTOR)["kind"])
    return next((spelling for spelling, value in known.items() if value == shown.kind), "updated")


def number(shown: phone_number_pb2.PhoneNumber) -> Body:
    """A phone number."""
    return message(shown) | {"is_active": True, "agent_id": None, "deleted": False}


def message(shown: "Message") -> Body:
    """Every field of a message but the secret and the input-only ones, absent ones as null."""
    return {key: get(shown) for key, get in _shape(shown.DESCRIPTOR)}


@cache
def _shape(descriptor: "Descriptor") -> Sequence[tuple[str, Getter]]:
    """The keys of a message, and what gets the value of each."""
    fields = table(descriptor).values()
    return [(forms.key(f), _getter(f)) for f in fields if forms.visible(f)]


def _getter(f: Field) -> Getter:
    get, change, name = attrgetter(f.name), _change(f), f.name
    if f.repeated:
        return lambda shown: [change(item) for item in get(shown)] if change else list(get(shown))
    if not f.descriptor.has_presence:
        return (lambda shown: change(get(shown))) if change else get
    if change is None:
        return lambda shown: get(shown) if shown.HasField(name) else None
    return lambda shown: change(get(shown)) if shown.HasField(name) else None


def _change(f: Field) -> Getter | None:
    """What makes a field's value one of JSON; None where it is one already."""
    if f.kind == "message":
        inner: Any = f.descriptor.message_type
        return _MESSAGES.get(inner.full_name, message)
    if f.kind == "enum":
        by_number = {value: spelling for spelling, value in forms.spellings(f).items()}
        return lambda value: by_number.get(value)
    if f.kind == "string" and not f.repeated and forms.output_only(f):
        return lambda text: text or None
    return None


def _time(at: Any) -> str:
    shown = (_EPOCH + timedelta(0, at.seconds, at.nanos // 1000)).isoformat()
    return shown.removesuffix("+00:00") + "Z"


_MESSAGES: dict[str, Getter] = {
    Timestamp.DESCRIPTOR.full_name: _time,
    FieldMask.DESCRIPTOR.full_name: lambda mask: list(mask.paths),
    SipTrunk.DESCRIPTOR.full_name: trunk_alone,
    PhoneNumber.DESCRIPTOR.full_name: number,
}


def _before(shown: sip_trunk_revision_pb2.SipTrunkRevision) -> Body:
    """The changed fields as they were, put into the rest of the trunk so that ports can show."""
    whole = SipTrunk()
    whole.CopyFrom(shown.sip_trunk)
    for name in shown.changed_fields:
        if name in table(SipTrunk.DESCRIPTOR):
            whole.ClearField(name)  # type: ignore[arg-type]
    whole.MergeFrom(shown.before)
    body = trunk_alone(whole)
    return {name: body[name] for name in shown.changed_fields if name in body}
