"""The schemas of what is around the resources: bodies of methods, revisions, events. Pure."""

from google.protobuf.descriptor import Descriptor

from siptrunk.v1 import (
    sip_trunk_event_pb2,
    sip_trunk_pb2,
    sip_trunk_revision_pb2,
    sip_trunk_service_pb2,
)
from trunkline.fields import Field, table
from trunkline.gateway import forms, schemas
from trunkline.gateway.routes import Binding, bindings
from trunkline.gateway.schemas import ID_PATTERN, Schema, ref

REVISION: Schema = {"type": "integer", "minimum": 1, "maximum": (1 << 63) - 1}
# The most entries of a list in a request.
ENTRIES_MAX = {
    "gateways": 32,
    "gateway_ids": 32,
    "ip_identifiers": 256,
    "ip_addresses": 256,
    "phone_numbers": 1000,
    "ids": 1000,
    "requests": 100,
}
_ITEMS = {"phone_numbers": ref("NumberCreate"), "requests": ref("TrunkUpdateInBatch")}
_RESOURCES = {"sip_trunk": "Trunk", "phone_number": "Number"}


def components() -> dict[str, Schema]:
    """The schemas by name."""
    user_id = {"user_id": schemas.trunk_extra()["user_id"]}
    snapshot = schemas.reply(sip_trunk_pb2.SipTrunk.DESCRIPTOR, user_id, optional={"auth_username"})
    found = {
        "TrunkSnapshot": snapshot | {"description": "A trunk as it was, without its numbers."},
        "TrunkBefore": _any_of(snapshot)
        | {"description": "The fields that changed, as they were before."},
        "NumberChanges": schemas.reply(sip_trunk_revision_pb2.PhoneNumberChanges.DESCRIPTOR, {}),
        "Revision": schemas.reply(sip_trunk_revision_pb2.SipTrunkRevision.DESCRIPTOR, {}),
        "Event": schemas.reply(sip_trunk_event_pb2.SipTrunkEvent.DESCRIPTOR, {}),
    }
    for binding in bindings():
        if binding.body == "*":
            found[body_of(binding)] = _body(_request_of(binding))
    return found


def body_of(binding: Binding) -> str:
    """The name of the schema of a body."""
    if binding.body == "*":
        return binding.method
    return _RESOURCES[binding.body] + ("Create" if binding.verb == "POST" else "Update")


def query_list(binding: Binding, name: str) -> Schema:
    """The schema of a list in the query."""
    return _list(_request_of(binding), table(_request_of(binding))[name])


def _body(request: Descriptor) -> Schema:
    fields = [f for f in table(request).values() if f.name not in forms.ELSEWHERE]
    properties = {f.name: _sent(request, f) for f in fields}
    return schemas.object_(properties, [f.name for f in fields if f.required])


def _sent(request: Descriptor, f: Field) -> Schema:
    if f.repeated:
        return _list(request, f)
    found = schemas.sent(f, request)
    if f.name == "revision":
        return found | REVISION
    if f.name.endswith("_id"):
        return found | {"pattern": ID_PATTERN}
    return found


def _list(request: Descriptor, f: Field) -> Schema:
    found = schemas.sent(f, request) | {"minItems": 1, "maxItems": ENTRIES_MAX[f.name]}
    if f.name.endswith("ids"):
        found |= {"items": {"type": "string", "pattern": ID_PATTERN}, "uniqueItems": True}
    if f.name == "ip_addresses":
        found |= {"items": {"type": "string", **schemas.FORMS[schemas.IP_ADDRESS]}}
    if f.name in _ITEMS:
        found |= {"items": _ITEMS[f.name]}
    return found


def _any_of(schema: Schema) -> Schema:
    """The same where each property may be left out, and null where there was none."""
    kept = {n: s if _null(s) else schemas.nullable(s) for n, s in schema["properties"].items()}
    return {"type": "object", "properties": kept}


def _null(schema: Schema) -> bool:
    return "anyOf" in schema or isinstance(schema.get("type"), list)


def _request_of(binding: Binding) -> Descriptor:
    service = sip_trunk_service_pb2.DESCRIPTOR.services_by_name["SipTrunkService"]
    found: Descriptor = service.methods_by_name[binding.method].input_type
    return found
