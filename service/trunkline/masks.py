"""Compiles an update mask against a resource (AIP-134, AIP-161). Pure.

protobuf's own FieldMask.MergeMessage is not used: it raises KeyError on an unknown path, accepts
some silently, appends to lists, and does not clear a leaf whose parent is unset.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from trunkline.errors import Violation, quoted
from trunkline.fields import Field, table

if TYPE_CHECKING:
    from google.protobuf.message import Message

PATHS_MAX = 64
PATH_CHARACTERS_MAX = 256
MASK_FIELD = "update_mask"
WILDCARD = "*"
_place = attrgetter("place")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a mask names, in the order of the proto.

    `fields` has the updatable and immutable fields named; ignored ones are gone. `replace` says
    that the mask was `*`. Where there are violations, the rest still holds for what was valid.
    """

    fields: tuple[Field, ...]
    replace: bool = False
    violations: tuple[Violation, ...] = ()


def compile_mask(paths: Sequence[str], resource: "Message") -> Plan:
    """The plan of an update: of the mask, or where it is empty of the fields that are present."""
    if not paths:
        return _implied(resource)
    fields = table(resource.DESCRIPTOR)
    named = [fields.get(path) for path in paths]
    if None not in named and len(named) <= PATHS_MAX:
        return Plan(_in_order(named))
    if len(paths) > PATHS_MAX:
        return _refused("TOO_MANY_PATHS", f"names {len(paths)} paths; at most {PATHS_MAX}")
    if any(len(path) > PATH_CHARACTERS_MAX for path in paths):
        return _refused(
            "PATH_TOO_LONG", f"has a path of more than {PATH_CHARACTERS_MAX} characters"
        )
    return _checked(fields, resource.DESCRIPTOR.name, paths)


def _implied(resource: "Message") -> Plan:
    fields = table(resource.DESCRIPTOR)
    present = (fields[d.name] for d, _ in resource.ListFields())
    return Plan(tuple(f for f in present if not f.ignored))


def _in_order(named: Iterable[Field | None]) -> tuple[Field, ...]:
    """The fields that count, each once, in the order of the proto."""
    counting = {f for f in named if f is not None and not f.ignored}
    return tuple(sorted(counting, key=_place) if len(counting) > 1 else counting)


def _checked(fields: Mapping[str, Field], resource: str, paths: Iterable[str]) -> Plan:
    """The plan of a mask that does not name whole fields only."""
    if WILDCARD in paths:
        if set(paths) != {WILDCARD}:
            return _refused("WILDCARD_NOT_ALONE", '"*" means every field and must stand alone')
        return Plan(tuple(f for f in fields.values() if not f.ignored), replace=True)
    unique = dict.fromkeys(paths)
    violations = [v for v in (_fault(path, fields, resource) for path in unique) if v]
    named = _in_order(fields.get(path) for path in unique)
    return Plan(named, violations=tuple(violations))


def _fault(path: str, fields: Mapping[str, Field], resource: str) -> Violation | None:
    head, _, rest = path.partition(".")
    field = fields.get(head)
    if field is None:
        return Violation(MASK_FIELD, "UNKNOWN_PATH", _unknown(path, fields, resource))
    if not rest and path == head:
        return None
    if field.ignored and field.kind == "message":
        return None
    if field.repeated:
        return Violation(
            MASK_FIELD,
            "PATH_INTO_LIST",
            f"{quoted(path)} points into a list; name {head}, which is replaced whole",
        )
    return Violation(MASK_FIELD, "UNKNOWN_PATH", _unknown(path, fields, resource))


def _unknown(path: str, fields: Mapping[str, Field], resource: str) -> str:
    snake = "".join(f"_{c.lower()}" if c.isupper() else c for c in path).strip(" _")
    hint = f"; did you mean {snake}?" if snake in fields else ""
    return f"{quoted(path)} is not a field of {resource}{hint}"


def _refused(reason: str, description: str) -> Plan:
    return Plan((), violations=(Violation(MASK_FIELD, reason, description),))
