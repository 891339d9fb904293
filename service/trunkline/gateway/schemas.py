"""The schemas of the OpenAPI document: fields, rules and defaults from the descriptors. Pure."""

from typing import Any

from google.protobuf.descriptor import Descriptor

from siptrunk.v1 import field_rules_pb2, phone_number_pb2, sip_trunk_pb2
from trunkline.fields import ETAG, Field, table
from trunkline.gateway import comments, examples, forms

SipTrunk = sip_trunk_pb2.SipTrunk
Gateway = sip_trunk_pb2.Gateway
IpIdentifier = sip_trunk_pb2.IpIdentifier
PhoneNumber = phone_number_pb2.PhoneNumber
Schema = dict[str, Any]

ID_PATTERN = "^[!-.0-~]{1,64}$"
# The schemas of messages that have another name than theirs.
_SCHEMAS = {
    "SipTrunk": "TrunkSnapshot",
    "PhoneNumber": "Number",
    "PhoneNumberChanges": "NumberChanges",
}
_TYPES = {"bool": "boolean", "int32": "integer", "int64": "integer", "string": "string"}
# In revisions and events: messages that are never absent, and texts that may be.
_ALWAYS = ("sip_trunk", "changed_at")
_MAY_BE_EMPTY = ("token_id", "request_id", "method", "resume_token")
_CREATE, _UPDATE, _ITEM = "create", "update", "item"
_CONTROL = r"\u0000-\u001f\u007f-\u009f"
_TEXT_PATTERNS = {
    field_rules_pb2.FieldRules.LABEL: rf"^[^\s{_CONTROL}]([^{_CONTROL}]*[^\s{_CONTROL}])?$",
    field_rules_pb2.FieldRules.PROSE: r"^[^\u0000-\u0008\u000b-\u001f\u007f-\u009f]*$",
}
IP_ADDRESS = "siptrunk.v1.IpIdentifier.ip_address"
# Text with a form of its own. These take whatever the service takes, and some more: it judges.
FORMS: dict[str, Schema] = {
    "siptrunk.v1.SipTrunk.allow": {"pattern": "^[!:,0-9A-Za-z ]+$"},
    "siptrunk.v1.SipTrunk.disallow": {"pattern": "^[!:,0-9A-Za-z ]+$"},
    "siptrunk.v1.Gateway.gateway_address": {
        "anyOf": [
            {"format": "ipv4"},
            {"format": "ipv6"},
            {"pattern": r"^\[[0-9A-Fa-f:.]+\]$"},
            {"pattern": r"^([0-9A-Za-z_-]+\.)*[0-9A-Za-z_-]*[A-Za-z_-][0-9A-Za-z_-]*\.?$"},
        ],
        "maxLength": 255,
    },
    IP_ADDRESS: {
        "anyOf": [
            {"format": "ipv4"},
            {"format": "ipv6"},
            {"pattern": "^[0-9A-Fa-f:.]+/[0-9]{1,3}$"},
        ]
    },
    "siptrunk.v1.PhoneNumber.phone_number": {"pattern": r"^\+?[0-9]{3,15}$"},
}


# What replies to a request that writes nothing do not have.
_WRITTEN = ("id", ETAG, "created_at", "updated_at")


def components() -> dict[str, Schema]:
    """The schemas of trunks, numbers and errors by name."""
    gateway_extra = {
        "port_explicit": {
            "type": "boolean",
            "description": "Whether `port` was given, or is what applies without SRV records."
            " Sent as false beside the port that applies, it keeps the port absent.",
        }
    }
    gateway_sent = {n: {**s, "type": [s["type"], "null"]} for n, s in gateway_extra.items()}
    return {
        "Trunk": reply(SipTrunk.DESCRIPTOR, trunk_extra(), optional={"auth_username"}),
        "TrunkTrial": _trial(
            reply(SipTrunk.DESCRIPTOR, trunk_extra(), "Trial", optional={"auth_username"})
        ),
        "TrunkCreate": _request(SipTrunk.DESCRIPTOR, _CREATE, _create_extra()) | _create_rules(),
        "TrunkUpdate": _request(SipTrunk.DESCRIPTOR, _UPDATE, _echoed(trunk_extra())),
        "TrunkUpdateInBatch": _named(
            _request(SipTrunk.DESCRIPTOR, _UPDATE, _echoed(trunk_extra()))
        ),
        "Gateway": reply(Gateway.DESCRIPTOR, gateway_extra),
        "GatewayTrial": _trial(reply(Gateway.DESCRIPTOR, gateway_extra)),
        "GatewaySent": _request(Gateway.DESCRIPTOR, _ITEM, gateway_sent),
        "IpIdentifier": reply(IpIdentifier.DESCRIPTOR, {}),
        "IpIdentifierSent": _request(IpIdentifier.DESCRIPTOR, _ITEM, {}),
        "Number": reply(PhoneNumber.DESCRIPTOR, _number_extra()),
        "NumberTrial": _trial(reply(PhoneNumber.DESCRIPTOR, _number_extra())),
        "NumberCreate": _request(PhoneNumber.DESCRIPTOR, _CREATE, _echoed(_number_extra())),
        "NumberUpdate": _request(PhoneNumber.DESCRIPTOR, _UPDATE, _echoed(_number_extra())),
        "Message": object_({"message": {"type": "string", "description": "What was done."}}),
        "Error": object_(
            {
                "error": {"type": "integer", "description": "The HTTP status."},
                "message": {"type": "string", "description": "What is wrong, for people."},
                "detail": {"type": "string", "description": "The same as `message`."},
                "reason": {"type": "string", "description": "Stable, UPPER_SNAKE."},
                "violations": {
                    "type": "array",
                    "items": ref("Violation"),
                    "description": "All that is wrong with the request; empty for other errors.",
                },
            }
        ),
        "Violation": object_(
            {
                "field": {"type": "string", "description": "A path, such as gateways[1].port."},
                "reason": {"type": "string", "description": "Stable, UPPER_SNAKE."},
                "description": {"type": "string", "description": "What is wrong, for people."},
            }
        ),
    }


def ref(name: str) -> dict[str, str]:
    """A reference to a schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def reply(
    descriptor: Descriptor,
    extra: Schema,
    suffix: str = "",
    optional: frozenset[str] | set[str] = frozenset(),
) -> Schema:
    """The schema of a message in replies.

    Args:
        descriptor: of the message.
        extra: the properties that no field stands behind.
        suffix: of the names of the schemas of its gateways.
        optional: what a reply may lack.
    """
    fields = [f for f in table(descriptor).values() if forms.visible(f)]
    properties = {forms.key(f): _shown(f, descriptor, suffix) for f in fields} | extra
    found = object_(properties, required=[n for n in properties if n not in optional])
    found.pop("additionalProperties")  # replies may grow
    return found | {"description": comments.of(descriptor)}


def sent(f: Field, descriptor: Descriptor) -> Schema:
    """The schema of a field of a body that is no resource."""
    if f.name == ETAG:
        return nullable(_property(f, descriptor, suffix="Sent"))
    return _property(f, descriptor, suffix="Sent")


def nullable(schema: Schema) -> Schema:
    """The same, or null."""
    if "$ref" in schema:
        alternatives = [{"$ref": schema["$ref"]}, {"type": "null"}]
        return {"description": schema["description"], "anyOf": alternatives}
    found = dict(schema)
    _allow_null(found)
    return found


def _trial(schema: Schema) -> Schema:
    """What is answered where nothing is written: no ids, no etag, no times of a write."""
    properties = {
        name: nullable(found) if name in _WRITTEN else found
        for name, found in schema["properties"].items()
    }
    what = "As it would be, where nothing was written: what only a write makes is null."
    return {**schema, "properties": properties, "description": what}


def _named(schema: Schema) -> Schema:
    """An update that says of which trunk."""
    properties = dict(schema["properties"])
    named = {k: v for k, v in properties["id"].items() if k != "readOnly"}
    properties["id"] = named | {"pattern": ID_PATTERN}
    return {**schema, "properties": properties, "required": ["id"]}


def _request(descriptor: Descriptor, use: str, extra: Schema) -> Schema:
    fields = [
        f
        for f in table(descriptor).values()
        # What a create alone can say, and no reply echoes, an update does not take.
        if use != _UPDATE or forms.visible(f) or not f.immutable
    ]
    properties = {f.name: _sent(f, descriptor, use) for f in fields}
    required = [f.name for f in fields if f.required and use != _UPDATE]
    return object_(properties | extra, required)


def _shown(f: Field, descriptor: Descriptor, suffix: str) -> Schema:
    found = _property(f, descriptor, suffix if f.name == "gateways" else "")
    if f.ignored:
        found["readOnly"] = True
    absent = f.descriptor.has_presence and not f.repeated and f.default is None and not f.required
    if f.descriptor.full_name == "siptrunk.v1.Gateway.port":
        absent = False  # the effective one is shown
    if (absent and f.name not in _WRITTEN and f.name not in _ALWAYS) or f.name in _MAY_BE_EMPTY:
        return nullable(found)
    return found


def _sent(f: Field, descriptor: Descriptor, use: str) -> Schema:
    found = _property(f, descriptor, suffix="Sent")
    if f.name == ETAG and use == _UPDATE:
        _allow_null(found)
        return found
    if f.ignored:
        return found | {"readOnly": True}
    if f.repeated:
        found["uniqueItems"] = True
        _bounds(found, f, "minItems", "maxItems")
    elif f.kind == "string":
        _text(found, f)
    if f.rules.HasField("minimum"):
        found |= {"minimum": f.rules.minimum, "maximum": f.rules.maximum}
    if f.default is not None:
        found["default"] = _default(f)
    if f.secret:
        found |= {"writeOnly": True, "format": "password"}
    if f.immutable and use == _UPDATE:
        found["readOnly"] = True  # ignored where it is what is stored, else refused
    if f.rules.clearable or (use != _UPDATE and not f.required and not f.repeated):
        _allow_null(found)
    return found


def _property(f: Field, descriptor: Descriptor, suffix: str) -> Schema:
    found: Schema = {"description": comments.of(descriptor, f)}
    if f.descriptor.full_name in examples.VALUES:
        found["examples"] = [examples.VALUES[f.descriptor.full_name]]
    if f.kind == "message" and f.repeated:
        item = f.descriptor.message_type
        assert item is not None
        name = _SCHEMAS.get(item.name, item.name)
        return found | {"type": "array", "items": ref(f"{name}{suffix}")}
    if f.repeated:
        return found | {"type": "array", "items": {"type": "string"}}
    if f.kind == "message":
        return found | _message(f)
    if f.kind == "enum":
        return found | {"type": "string", "enum": list(forms.spellings(f))}
    return found | {"type": _TYPES[f.kind]}


def _message(f: Field) -> Schema:
    message = f.descriptor.message_type
    assert message is not None
    if message.name == "Timestamp":
        return {"type": "string", "format": "date-time"}
    if message.name == "FieldMask":
        return {"type": "array", "items": {"type": "string"}}
    return ref("TrunkBefore" if f.name == "before" else _SCHEMAS[message.name])


def _text(found: Schema, f: Field) -> None:
    _bounds(found, f, "minLength", "maxLength")
    if f.rules.text:
        pattern = _TEXT_PATTERNS[f.rules.text]
        if f.rules.text == field_rules_pb2.FieldRules.LABEL and not f.rules.min_length:
            pattern = f"^$|{pattern}"
        found["pattern"] = pattern
    found |= FORMS.get(f.descriptor.full_name, {})


def _bounds(found: Schema, f: Field, least: str, most: str) -> None:
    if f.rules.min_length:
        found[least] = f.rules.min_length
    if f.rules.max_length:
        found[most] = f.rules.max_length


def _default(f: Field) -> Any:
    if f.kind == "enum":
        enum = f.descriptor.enum_type
        assert enum is not None
        number = enum.values_by_name[str(f.default)].number
        return next(s for s, n in forms.spellings(f).items() if n == number)
    return f.default


def _allow_null(found: Schema) -> None:
    found["type"] = [found["type"], "null"]
    if "enum" in found:
        found["enum"] = [*found["enum"], None]


def _create_rules() -> Schema:
    """What a create holds two fields to."""
    text = {"type": "string"}
    return {
        "allOf": [
            _where(
                "auth_type",
                "userpass",
                {
                    "required": ["auth_username", "auth_password"],
                    "properties": {"auth_username": text, "auth_password": text},
                },
            ),
            _where(
                "auth_type",
                "ip-based",
                {
                    "required": ["ip_identifiers"],
                    "properties": {
                        "ip_identifiers": {"minItems": 1},
                        "auth_username": {"type": "null"},
                        "auth_password": {"type": "null"},
                    },
                },
            ),
            _where(
                "media_encryption",
                "sdes",
                {
                    "required": ["transport"],
                    "properties": {"transport": {"const": "transport-tls"}},
                },
            ),
        ]
    }


def _where(name: str, value: str, then: Schema) -> Schema:
    return {"if": {"required": [name], "properties": {name: {"const": value}}}, "then": then}


def trunk_extra() -> Schema:
    """The keys of a trunk that no field stands behind."""
    return {
        "user_id": {"type": "string", "description": "The account, as `account_id`."},
        "phone_numbers": {
            "type": "array",
            "items": ref("Number"),
            "description": f"The trunk's numbers, the first {forms.NUMBERS_SHOWN_MAX} of them.",
        },
        "phone_numbers_truncated": {
            "type": "boolean",
            "description": "Whether the trunk has more numbers than are shown.",
        },
    }


def _create_extra() -> Schema:
    numbers = {
        "type": "array",
        "items": ref("NumberCreate"),
        "maxItems": 100,
        "description": "The trunk's first numbers, at most 100.",
    }
    return _echoed(trunk_extra()) | {"phone_numbers": numbers}


def _number_extra() -> Schema:
    return {
        "is_active": {"type": "boolean", "const": True, "description": "Always true."},
        "agent_id": {"type": "null", "description": "Always null: agents are kept elsewhere."},
        "deleted": {"type": "boolean", "const": False, "description": "Always false."},
    }


def _echoed(extra: Schema) -> Schema:
    """Keys that a reply has, as a request may send them back."""
    return {name: {**schema, "readOnly": True} for name, schema in extra.items()}


def object_(properties: Schema, required: list[str] | None = None) -> Schema:
    """An object with these properties and no others."""
    found: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    needed = list(properties) if required is None else required
    return found | ({"required": needed} if needed else {})
