"""Fields of a request that this server does not know: it may be older than its caller."""

from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from trunkline.errors import InvalidError, Violation

FIELDS_MAX = 20
"""How many are named."""


def discarded(request: Message) -> bool:
    """Take out of a request what this server does not know; whether there was any of it."""
    size = request.ByteSize()
    request.DiscardUnknownFields()
    return request.ByteSize() != size


def refusal(request: Message) -> InvalidError:
    """What a request with fields that this server does not know is refused with: the first ones."""
    what = "is a field that this server does not know; is it older?"
    paths = _paths(request, "")[:FIELDS_MAX]
    return InvalidError([Violation(path, "UNKNOWN_FIELD", what) for path in paths])


def _paths(message: Message, prefix: str) -> list[str]:
    unknown: Any = UnknownFieldSet(message)  # iterable, which the stubs do not know
    numbers = sorted({f.field_number for f in unknown})
    found = [f"{prefix}{number}" for number in numbers]
    for descriptor, value in message.ListFields():
        if len(found) >= FIELDS_MAX:
            break
        if descriptor.type != descriptor.TYPE_MESSAGE:
            continue
        if not descriptor.is_repeated:
            found += _paths(value, f"{prefix}{descriptor.name}.")
            continue
        for position, item in enumerate(value):
            found += _paths(item, f"{prefix}{descriptor.name}[{position}].")
            if len(found) >= FIELDS_MAX:
                break
    return found
