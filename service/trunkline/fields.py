"""What the descriptors say of a resource's fields: behaviour, rules, defaults. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from google.api import field_behavior_pb2

from siptrunk.v1 import field_rules_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor

ETAG = "etag"
SQL_TYPES = {"bool": "boolean", "int32": "integer", "string": "text", "enum": "text"}


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """One field of a resource, read once from its descriptor.

    `ignored` fields are the server's to set, or not data (id, etag): what a caller sends in them
    does not count. `place` is its place in the proto. `default` is None where the field has none;
    an enum's is the value's name. `enum_names` has the names of an enum field's values that may be
    sent, by number.
    """

    name: str
    place: int
    descriptor: "FieldDescriptor"
    rules: field_rules_pb2.FieldRules
    ignored: bool
    immutable: bool
    required: bool
    secret: bool
    repeated: bool
    kind: str
    default: str | int | bool | None
    enum_names: Mapping[int, str]

    @property
    def updatable(self) -> bool:
        """Whether an update may change it."""
        return not (self.ignored or self.immutable)


@cache
def table(descriptor: "Descriptor") -> Mapping[str, Field]:
    """The fields of a message by name, in the order of the proto."""
    return {d.name: _field(d, place) for place, d in enumerate(descriptor.fields)}


def _field(descriptor: "FieldDescriptor", place: int) -> Field:
    options = descriptor.GetOptions()
    extensions: Any = options.Extensions  # the stubs know no repeated extension
    behavior = set(extensions[field_behavior_pb2.field_behavior])
    rules = options.Extensions[field_rules_pb2.rules]
    kind, enum = _kind(descriptor), descriptor.enum_type
    return Field(
        name=descriptor.name,
        place=place,
        descriptor=descriptor,
        rules=rules,
        ignored=bool(behavior & {field_behavior_pb2.OUTPUT_ONLY, field_behavior_pb2.IDENTIFIER})
        or descriptor.name == ETAG,
        immutable=field_behavior_pb2.IMMUTABLE in behavior,
        required=field_behavior_pb2.REQUIRED in behavior,
        secret=options.debug_redact,
        repeated=descriptor.is_repeated,
        kind=kind,
        default=_default(rules.default_value, kind),
        enum_names={v.number: v.name for v in enum.values if v.number} if enum else {},
    )


def _kind(descriptor: "FieldDescriptor") -> str:
    kinds: dict[Any, str] = {
        descriptor.TYPE_BOOL: "bool",
        descriptor.TYPE_INT32: "int32",
        descriptor.TYPE_INT64: "int64",
        descriptor.TYPE_STRING: "string",
        descriptor.TYPE_ENUM: "enum",
        descriptor.TYPE_MESSAGE: "message",
    }
    return kinds[descriptor.type]


def _default(text: str, kind: str) -> str | int | bool | None:
    if not text:
        return None
    if kind == "bool":
        return text == "true"
    return int(text) if kind == "int32" else text
