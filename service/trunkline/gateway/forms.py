"""JSON bodies as messages, by descriptor: a new field needs no code here. Pure."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.message import Message

from siptrunk.v1 import http_form_pb2, phone_number_pb2, sip_trunk_pb2
from trunkline.errors import Violation, quoted
from trunkline.fields import Field, table

SipTrunk = sip_trunk_pb2.SipTrunk
Gateway = sip_trunk_pb2.Gateway
PhoneNumber = phone_number_pb2.PhoneNumber

NUMBERS_SHOWN_MAX = 1000
PORT, PORT_TLS = 5060, 5061
_INTEGERS = {"int32": range(-(1 << 31), 1 << 31), "int64": range(-(1 << 63), 1 << 63)}
_RANK = {bool: "a boolean", int: "a whole number", str: "a string", list: "an array"}
_NOT_UTF8 = "must be text that UTF-8 can carry: it has a lone surrogate"
# Keys of the HTTP form that no field stands behind.
TRUNK_KEYS = ("user_id", "phone_numbers", "phone_numbers_truncated")
GATEWAY_KEYS = ("port_explicit",)
NUMBER_KEYS = ("is_active", "deleted", "agent_id")
NOWHERE: Mapping[str, str] = MappingProxyType({})
# Fields of requests that have a place of their own in HTTP.
ELSEWHERE = {
    "trunk_id": "the path",
    "request_id": "the header Idempotency-Key",
    "validate_only": "the query",
}


class BodyError(ValueError):
    """A body that is not one JSON object; the message says where."""


@dataclass(slots=True)
class Read:
    """What a body says of a resource.

    `named` has the fields that a mask names; `extra` the keys that are no fields; `violations`
    what is not of the right type, with its path.
    """

    message: Message
    named: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    explicit: list[bool | None] = field(default_factory=list)


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object of a body (RFC 8259, in UTF-8).

    Raises:
        BodyError: it is none, or an object in it has a key twice.
    """
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except UnicodeDecodeError:
        raise BodyError("the body is not text in UTF-8") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise BodyError(f"the body is not JSON: {error.msg.lower()} at {where}") from None
    except RecursionError:
        raise BodyError("the body is nested too deeply") from None
    except BodyError:
        raise
    except ValueError:
        raise BodyError("the body has a number with too many digits") from None
    if not isinstance(value, dict):
        raise BodyError("the body is not a JSON object")
    return value


def read(
    body: Mapping[str, Any],
    kind: type[Message],
    extra: Iterable[str] = (),
    elsewhere: Mapping[str, str] = NOWHERE,
) -> Read:
    """A message as a body has it. Output-only keys are passed over, null names a field alone.

    Args:
        body: the object.
        kind: the message class.
        extra: keys that are handed on as they are.
        elsewhere: fields that the body does not have, and where they are.
    """
    found = Read(kind())
    fields = table(kind.DESCRIPTOR)
    extras = set(extra)
    for key, value in body.items():
        if key in extras:
            found.extra[key] = value
        elif key in elsewhere:
            what = f"is not a key of the body: it is in {elsewhere[key]}"
            _refuse(found, key, "UNKNOWN_FIELD", what)
        elif key not in fields:
            _refuse(found, quoted(key).strip('"'), "UNKNOWN_FIELD", "is not a field that there is")
        elif output_only(fields[key]):
            continue
        else:
            _read_field(found, fields[key], value)
    return found


def effective_port(trunk: sip_trunk_pb2.SipTrunk) -> int:
    """The port of a gateway that has none, where there are no SRV records (RFC 3263)."""
    return PORT_TLS if trunk.transport == SipTrunk.TLS else PORT


def key(f: Field) -> str:
    """The key of a field: its name, but for the trunk in a revision or an event."""
    return "trunk" if f.name == "sip_trunk" else f.name


@cache
def visible(f: Field) -> bool:
    """Whether a field is in replies."""
    extensions: Any = f.descriptor.GetOptions().Extensions
    return field_behavior_pb2.INPUT_ONLY not in extensions[field_behavior_pb2.field_behavior]


@cache
def spellings(f: Field) -> dict[str, int]:
    """The values of an enum field by their HTTP spelling."""
    enum = f.descriptor.enum_type
    assert enum is not None
    return {
        v.GetOptions().Extensions[http_form_pb2.http_spelling]: v.number
        for v in enum.values
        if v.number
    }


@cache
def output_only(f: Field) -> bool:
    """Whether a field is the service's to set, whatever is sent in it."""
    extensions: Any = f.descriptor.GetOptions().Extensions
    return field_behavior_pb2.OUTPUT_ONLY in extensions[field_behavior_pb2.field_behavior]


def _read_field(found: Read, f: Field, value: Any) -> None:
    found.named.append(f.name)
    if value is None:
        if f.repeated:
            _refuse(found, f.name, "NOT_CLEARABLE", "can't be null; an empty list is []")
        return
    if not f.repeated:
        _set(found, found.message, f, f.name, value)
        return
    if not isinstance(value, list):
        _refuse(found, f.name, "WRONG_TYPE", f"must be an array, not {_named(value)}")
        return
    for position, item in enumerate(value):
        path = f"{f.name}[{position}]"
        if f.kind == "message":
            _read_item(found, f, path, item)
        else:
            _read_text(found, f, path, item)


def _read_text(found: Read, f: Field, path: str, item: Any) -> None:
    """One of the texts of a list, such as ids."""
    if not isinstance(item, str):
        _refuse(found, path, "WRONG_TYPE", f"must be a string, not {_named(item)}")
        return
    try:
        getattr(found.message, f.name).append(item)
    except (UnicodeEncodeError, ValueError):
        _refuse(found, path, "WRONG_TYPE", _NOT_UTF8)


def _read_item(found: Read, f: Field, path: str, item: Any) -> None:
    target = getattr(found.message, f.name).add()
    if not isinstance(item, dict):
        _refuse(found, path, "WRONG_TYPE", f"must be an object, not {_named(item)}")
        if isinstance(target, Gateway):
            found.explicit.append(None)
        return
    fields = table(target.DESCRIPTOR)
    for key, value in item.items():
        if key in GATEWAY_KEYS and isinstance(target, Gateway):
            if value is not None and not isinstance(value, bool):
                what = f"must be true or false, not {_named(value)}"
                _refuse(found, f"{path}.{key}", "WRONG_TYPE", what)
            continue
        if key not in fields:
            shown_key = quoted(key).strip('"')
            _refuse(found, f"{path}.{shown_key}", "UNKNOWN_FIELD", "is not a field that there is")
        elif not output_only(fields[key]) and value is not None:
            _set(found, target, fields[key], f"{path}.{key}", value)
    if isinstance(target, Gateway):
        found.explicit.append(item.get("port_explicit"))


def _set(found: Read, target: Message, f: Field, path: str, value: Any) -> None:
    fault = _SETTERS[f.kind](target, f, value)
    if fault:
        _refuse(found, path, "WRONG_TYPE" if "must be" in fault else "UNKNOWN_VALUE", fault)


def _set_bool(target: Message, f: Field, value: Any) -> str:
    if not isinstance(value, bool):
        return f"must be true or false, not {_named(value)}"
    setattr(target, f.name, value)
    return ""


def _set_integer(target: Message, f: Field, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        return f"must be a whole number, not {_named(value)}"
    # Beyond its bits there is nothing to hand on; the service names the bounds of what is within.
    bits = _INTEGERS[f.kind]
    clamped = min(max(value, bits.start), bits.stop - 1)
    setattr(target, f.name, clamped)
    return ""


def _set_string(target: Message, f: Field, value: Any) -> str:
    if not isinstance(value, str):
        return f"must be a string, not {_named(value)}"
    try:
        setattr(target, f.name, value)
    except (UnicodeEncodeError, ValueError):
        return _NOT_UTF8
    return ""


def _set_enum(target: Message, f: Field, value: Any) -> str:
    if not isinstance(value, str):
        return f"must be a string, not {_named(value)}"
    known = spellings(f)
    if value not in known:
        setattr(target, f.name, 0)  # which the service refuses, with whatever else is wrong
        return f"{quoted(value)} is none of {', '.join(known)}"
    setattr(target, f.name, known[value])
    return ""


_SETTERS: dict[str, Callable[[Message, Field, Any], str]] = {
    "bool": _set_bool,
    "int32": _set_integer,
    "int64": _set_integer,
    "string": _set_string,
    "enum": _set_enum,
}


def _named(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return "a number with a fraction"
    return _RANK.get(type(value), "an object")


def _refuse(found: Read, path: str, reason: str, description: str) -> None:
    found.violations.append(Violation(path, reason, description))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise BodyError(f"the body has the key {quoted(twice)} twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise BodyError(f"the body has {name}, which is not JSON")
