"""What makes a trunk or a phone number valid, and the normal form of each value. Pure.

Rules on one field are judged on what was sent. Rules on two are judged on the merged trunk, here
for the messages and in the schema's constraints for what concurrent callers do; a test keeps the
two equal.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Any

from siptrunk.v1 import field_rules_pb2, phone_number_pb2, sip_trunk_pb2
from trunkline import addresses
from trunkline.codecs import Catalogue, CodecError
from trunkline.errors import Violation, quoted
from trunkline.fields import Field, table
from trunkline.masks import Plan

if TYPE_CHECKING:
    from google.protobuf.message import Message

SipTrunk = sip_trunk_pb2.SipTrunk
PhoneNumber = phone_number_pb2.PhoneNumber
Value = str | int | bool | None | list[dict[str, Any]]

FIRST_NUMBERS_MAX = 100
_ADDRESSES = ("gateway_address", "ip_address")
_LABEL = field_rules_pb2.FieldRules.LABEL
_PROSE = field_rules_pb2.FieldRules.PROSE
_NUMBER = re.compile(r"\+?[0-9]{3,15}", re.ASCII)
_E164 = re.compile(r"\+[1-9][0-9]{6,14}", re.ASCII)


@dataclass(slots=True)
class Change:
    """The values that a request asks for, in normal form, by field name.

    Enum values stand as their names, lists as plain dictionaries; None clears. `expected` holds
    what a request says of immutable fields: it must be what is stored. A change with violations
    lacks the values that are wrong.
    """

    values: dict[str, Value] = field(default_factory=dict)
    expected: dict[str, Value] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)

    def refuse(self, path: str, reason: str, description: str) -> None:
        """Add a violation."""
        self.violations.append(Violation(path, reason, description))


class Rules:
    """The rules of one deployment, which differ from another's in the codecs known."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def creation(self, resource: "Message") -> Change:
        """Everything that a new resource has: what was sent, and defaults for the rest."""
        change = Change()
        for f in table(resource.DESCRIPTOR).values():
            if f.ignored:
                continue
            if _present(resource, f) or f.repeated:
                self._set(change, f, resource)
            elif f.required:
                change.refuse(f.name, "REQUIRED", "is required")
            else:
                change.values[f.name] = f.default
        change.values |= change.expected
        change.expected.clear()
        return change

    def new_number(self, number: phone_number_pb2.PhoneNumber) -> Change:
        """Everything that a new phone number has; one that is to be E.164 and is not is refused."""
        change = self.creation(number)
        sent = change.values.get("phone_number")
        if number.e164_check_enabled and isinstance(sent, str) and not _E164.fullmatch(sent):
            change.refuse(
                "phone_number",
                "NOT_E164",
                f'{quoted(sent)} is not in E.164 form: "+" and 7 to 15 digits, the first not 0',
            )
        return change

    def restoration(self, past: sip_trunk_pb2.SipTrunk) -> Change:
        """Every value that an update can set and a trunk's past shows, under today's rules.

        Gateways come back as the ones that they were, with their ids.
        """
        fields = [f for f in table(past.DESCRIPTOR).values() if f.updatable and not f.secret]
        named = [f for f in fields if _present(past, f) or f.repeated or f.rules.clearable]
        change = self.update(Plan(tuple(named)), past)
        gateways = change.values.get("gateways")
        if isinstance(gateways, list):
            for value, gateway in zip(gateways, past.gateways, strict=True):
                value |= {
                    "id": gateway.id,
                    "created_at": gateway.created_at.ToDatetime(UTC),
                }
        return change

    def update(self, plan: Plan, resource: "Message") -> Change:
        """What an update sets, clears and expects, by its plan."""
        change = Change(violations=list(plan.violations))
        for f in plan.fields:
            if _present(resource, f):
                self._set(change, f, resource)
            elif plan.replace:
                self._reset(change, f, resource)
            elif f.repeated:
                self._set(change, f, resource)
            elif f.rules.clearable:
                change.values[f.name] = None
            else:
                why = "can't be changed" if f.immutable else "can't be cleared"
                change.refuse(
                    f.name,
                    "IMMUTABLE" if f.immutable else "NOT_CLEARABLE",
                    f"is named by update_mask but has no value, and {why}",
                )
        return change

    def merged(self, stored: sip_trunk_pb2.SipTrunk, change: Change) -> sip_trunk_pb2.SipTrunk:
        """The trunk as it would be after a change."""
        trunk = SipTrunk()
        trunk.CopyFrom(stored)
        for name, value in change.values.items():
            trunk.ClearField(name)  # type: ignore[arg-type]
            if value is not None:
                trunk.MergeFrom(SipTrunk(**{name: value}))  # type: ignore[arg-type]
        if change.values.get("auth_password") is not None:
            trunk.auth_password_set = True
            trunk.ClearField("auth_password")
        return trunk

    def check(self, trunk: sip_trunk_pb2.SipTrunk, change: Change) -> list[Violation]:
        """What is wrong with a whole trunk that no field shows alone.

        Args:
            trunk: the merged trunk, `auth_password_set` telling of its password.
            change: what led to it; a violation is put on the field that it names.
        """
        refused = {v.field.partition("[")[0] for v in change.violations}
        judged = (rule for fields, rule in _TRUNK_RULES if not fields & refused)
        found = [v for rule in judged for v in rule(self, trunk, change)]
        return [v for v in found if v.field not in refused]

    def unequal(self, stored: "Message", change: Change) -> list[Violation]:
        """Immutable fields that a request names with another value than is stored."""
        fields = table(stored.DESCRIPTOR)
        return [
            Violation(name, "IMMUTABLE", "can't be changed after the create")
            for name, value in change.expected.items()
            if value != value_of(stored, fields[name])
        ]

    def _reset(self, change: Change, f: Field, resource: "Message") -> None:
        if f.immutable or f.rules.kept_on_replace:
            return
        if f.repeated:
            self._set(change, f, resource)
        elif f.required:
            change.refuse(f.name, "REQUIRED", "is required in a full replacement")
        else:
            change.values[f.name] = f.default

    def _set(self, change: Change, f: Field, resource: "Message") -> None:
        before = len(change.violations)
        if f.repeated:
            value: Value = self._items(change, f, resource)
        else:
            value = self._value(change, f.name, f, getattr(resource, f.name))
        if len(change.violations) == before:
            (change.expected if f.immutable else change.values)[f.name] = value

    def _items(self, change: Change, f: Field, resource: "Message") -> list[dict[str, Any]]:
        items = getattr(resource, f.name)
        least, most = f.rules.min_length, f.rules.max_length
        if len(items) > most:
            change.refuse(f.name, "TOO_MANY", f"has {len(items)} entries; at most {most}")
            return []
        if len(items) < least:
            change.refuse(f.name, "TOO_FEW", f"needs at least {least} entry")
            return []
        normal = self.items(change, f.name, items)
        normal.sort(key=lambda item: item.get("priority", 0))
        return normal

    def items(self, change: Change, name: str, sent: "Sequence[Message]") -> list[dict[str, Any]]:
        """The items of a list in normal form, in their order; none may be there twice."""
        normal = [self._item(change, f"{name}[{i}]", item) for i, item in enumerate(sent)]
        _refuse_twins(change, name, normal)
        return normal

    def _item(self, change: Change, path: str, item: "Message") -> dict[str, Any]:
        value: dict[str, Any] = {}
        for f in table(item.DESCRIPTOR).values():
            if f.ignored:
                continue
            if _present(item, f):
                sent = getattr(item, f.name)
                value[f.name] = self._value(change, f"{path}.{f.name}", f, sent)
            elif f.required:
                change.refuse(f"{path}.{f.name}", "REQUIRED", "is required")
            elif f.default is not None:
                value[f.name] = f.default
        return value

    def _value(self, change: Change, path: str, f: Field, sent: Any) -> Value:
        if f.kind == "enum":
            return _enum(change, path, f, sent)
        if f.kind == "int32":
            return _integer(change, path, f, sent)
        if f.kind == "string":
            return self._string(change, path, f, sent)
        return bool(sent)

    def _string(self, change: Change, path: str, f: Field, sent: str) -> str:
        most = f.rules.max_length
        # Before any work that grows with the length; NFC can shrink a text, though not threefold.
        if most and len(sent) > 3 * most:
            change.refuse(path, "TOO_LONG", f"has {len(sent)} characters; at most {most}")
            return ""
        if "\0" in sent:
            change.refuse(path, "CONTROL_CHARACTER", "has a NUL character")
            return ""
        own = _NORMAL_FORMS.get(f.descriptor.full_name)
        if own:
            try:
                return _text(change, path, f, own(self.catalogue, sent))
            except (addresses.AddressError, CodecError, ValueError) as error:
                reason = "REQUIRED" if not sent else "INVALID_FORM"
                shown = "" if f.secret or not sent else f"{quoted(sent)} "
                change.refuse(path, reason, f"{shown}{error}")
                return ""
        return _text(change, path, f, unicodedata.normalize("NFC", sent))


def value_of(message: "Message", f: Field) -> Value:
    """A scalar of a message as a change would hold it; None where absent."""
    if not message.HasField(f.name):
        return None
    value = getattr(message, f.name)
    return f.enum_names[value] if f.kind == "enum" else value


def _present(message: "Message", f: Field) -> bool:
    if f.repeated:
        return bool(getattr(message, f.name))
    return message.HasField(f.name)


def _enum(change: Change, path: str, f: Field, sent: int) -> str:
    names = f.enum_names
    if sent not in names:
        change.refuse(
            path, "UNKNOWN_VALUE", f"has no value {sent}; it is one of {', '.join(names.values())}"
        )
        return ""
    return names[sent]


def _integer(change: Change, path: str, f: Field, sent: int) -> int:
    low, high = f.rules.minimum, f.rules.maximum
    if f.rules.HasField("minimum") and not low <= sent <= high:
        change.refuse(path, "OUT_OF_RANGE", f"is {sent}; it must be {low} to {high}")
    return sent


def _text(change: Change, path: str, f: Field, text: str) -> str:
    most = f.rules.max_length
    if not text and f.rules.min_length:
        change.refuse(path, "REQUIRED", "must not be empty")
    elif most and len(text) > most:
        change.refuse(path, "TOO_LONG", f"has {len(text)} characters; at most {most}")
    elif f.rules.text == _LABEL and text != text.strip():
        change.refuse(path, "BLANK_AT_END", "has a blank at its beginning or end")
    elif _has_control(text, "\t\n" if f.rules.text == _PROSE else ""):
        change.refuse(path, "CONTROL_CHARACTER", "has a control character")
    return text


def _has_control(text: str, allowed: str) -> bool:
    return not text.isprintable() and any(
        unicodedata.category(c) == "Cc" and c not in allowed for c in text
    )


def _refuse_twins(change: Change, name: str, items: Sequence[dict[str, Any]]) -> None:
    first: dict[tuple[Any, ...], int] = {}
    for position, item in enumerate(items):
        key = tuple(v for k, v in sorted(item.items()) if k != "priority")
        if not any(item.get(name) for name in _ADDRESSES):
            continue  # its address is refused already
        if key in first:
            change.refuse(
                f"{name}[{position}]", "DUPLICATE", f"is the same as {name}[{first[key]}]"
            )
        first.setdefault(key, position)


def _phone_number(_: Catalogue, sent: str) -> str:
    if not _NUMBER.fullmatch(sent):
        raise ValueError(
            'is not a phone number: an optional "+" and 3 to 15 digits' if sent else "is required"
        )
    return sent


def _allow(catalogue: Catalogue, sent: str) -> str:
    return catalogue.normal(sent, removal=False)


def _disallow(catalogue: Catalogue, sent: str) -> str:
    return catalogue.normal(sent, removal=True)


_NORMAL_FORMS: dict[str, Callable[[Catalogue, str], str]] = {
    "siptrunk.v1.SipTrunk.allow": _allow,
    "siptrunk.v1.SipTrunk.disallow": _disallow,
    "siptrunk.v1.Gateway.gateway_address": lambda _, sent: addresses.gateway(sent),
    "siptrunk.v1.IpIdentifier.ip_address": lambda _, sent: addresses.ip_range(sent),
    "siptrunk.v1.PhoneNumber.phone_number": _phone_number,
}


def _sdes_needs_tls(_: Rules, trunk: sip_trunk_pb2.SipTrunk, change: Change) -> list[Violation]:
    if trunk.media_encryption != SipTrunk.SDES or trunk.transport == SipTrunk.TLS:
        return []
    path = "transport" if "media_encryption" not in change.values else "media_encryption"
    what = (
        "can't leave TLS while media_encryption is SDES"
        if path == "transport"
        else "can't be SDES without transport TLS: its keys would be readable on the wire"
    )
    return [Violation(path, "SDES_NEEDS_TLS", what)]


def _ip_based_needs_identifiers(
    _: Rules, trunk: sip_trunk_pb2.SipTrunk, __: Change
) -> list[Violation]:
    if trunk.auth_type != SipTrunk.IP_BASED or trunk.ip_identifiers:
        return []
    return [Violation("ip_identifiers", "TOO_FEW", "needs at least one entry on an IP_BASED trunk")]


def _credentials_match_auth_type(
    _: Rules, trunk: sip_trunk_pb2.SipTrunk, __: Change
) -> list[Violation]:
    has = {
        "auth_username": trunk.HasField("auth_username"),
        "auth_password": trunk.auth_password_set,
    }
    if trunk.auth_type == SipTrunk.USERPASS:
        return [
            Violation(name, "REQUIRED", "is required on a USERPASS trunk")
            for name, set_ in has.items()
            if not set_
        ]
    if trunk.auth_type == SipTrunk.IP_BASED:
        return [
            Violation(
                name, "NOT_ON_IP_BASED", "is refused on an IP_BASED trunk, which has no credentials"
            )
            for name, set_ in has.items()
            if set_
        ]
    return []


def _codec_left(rules: Rules, trunk: sip_trunk_pb2.SipTrunk, change: Change) -> list[Violation]:
    if not trunk.allow or not trunk.disallow:
        return []
    if rules.catalogue.offer(trunk.allow, trunk.disallow):
        return []
    path = "disallow" if "allow" not in change.values else "allow"
    return [Violation(path, "NO_CODEC_LEFT", "leaves no codec: disallow takes out all of allow")]


# With the fields that must be sound themselves before the rule says anything of use. What is sent
# as auth_type is not among them: the stored one decides.
_TRUNK_RULES: tuple[tuple[frozenset[str], Callable[..., list[Violation]]], ...] = (
    (frozenset(), _credentials_match_auth_type),
    (frozenset({"ip_identifiers"}), _ip_based_needs_identifiers),
    (frozenset({"media_encryption", "transport"}), _sdes_needs_tls),
    (frozenset({"allow", "disallow"}), _codec_left),
)
