"""Fields of a request that this server does not know: it may be older than its caller."""

from typing import Any

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from trunkline import errors

FIELDS_MAX = 20
"""How many are named."""


def refuse(request: Message) -> None:
    """See that a request has no field that this server does not know.

    Raises:
        InvalidError: it has; the first of them are named.
    """
    known = type(request)()
    known.CopyFrom(request)
    known.DiscardUnknownFields()
    if known.ByteSize() == request.ByteSize():
        return
    raise errors.InvalidError(
        [
            errors.Violation(
                path, "UNKNOWN_FIELD", "is a field that this server does not know; is it older?"
            )
            for path in _paths(request, "")[:FIELDS_MAX]
        ]
    )


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
