import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from google.api import annotations_pb2, field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from openapi_spec_validator import OpenAPIV31SpecValidator

from siptrunk.v1 import (
    field_rules_pb2,
    http_form_pb2,
    phone_number_pb2,
    sip_trunk_event_pb2,
    sip_trunk_pb2,
    sip_trunk_revision_pb2,
    sip_trunk_service_pb2,
)
from trunkline.gateway import shapes
from trunkline.gateway.openapi import document
from trunkline.gateway.routes import bindings
from trunkline.store.trunks import BATCH_MAX
from trunkline.trunks.items import GATEWAYS_MAX, IP_IDENTIFIERS_MAX
from trunkline.trunks.numbers import NUMBERS_BATCH_MAX

PROTOS = Path(__file__).parents[2] / "protos" / "siptrunk" / "v1"
TRUNK = sip_trunk_pb2.SipTrunk.DESCRIPTOR
GATEWAY = sip_trunk_pb2.Gateway.DESCRIPTOR
IP_IDENTIFIER = sip_trunk_pb2.IpIdentifier.DESCRIPTOR
NUMBER = phone_number_pb2.PhoneNumber.DESCRIPTOR
REVISION = sip_trunk_revision_pb2.SipTrunkRevision.DESCRIPTOR
CHANGES = sip_trunk_revision_pb2.PhoneNumberChanges.DESCRIPTOR
EVENT = sip_trunk_event_pb2.SipTrunkEvent.DESCRIPTOR
# Keys of the HTTP form that no field stands behind.
TRUNK_KEYS = {"user_id", "phone_numbers", "phone_numbers_truncated"}
NUMBER_KEYS = {"is_active", "agent_id", "deleted"}
GATEWAY_KEYS = {"port_explicit"}
SENT = {
    "TrunkCreate": TRUNK,
    "TrunkUpdate": TRUNK,
    "TrunkUpdateInBatch": TRUNK,
    "GatewaySent": GATEWAY,
    "IpIdentifierSent": IP_IDENTIFIER,
    "NumberCreate": NUMBER,
    "NumberUpdate": NUMBER,
}
SHOWN = {
    "Trunk": TRUNK,
    "TrunkTrial": TRUNK,
    "Gateway": GATEWAY,
    "GatewayTrial": GATEWAY,
    "IpIdentifier": IP_IDENTIFIER,
    "Number": NUMBER,
    "NumberTrial": NUMBER,
}
RECORDS = {"Revision": REVISION, "NumberChanges": CHANGES, "Event": EVENT}
MESSAGES = SENT | SHOWN | RECORDS
# Fields of requests that are not in the body: in the path, in a header, in the query.
ELSEWHERE = {"trunk_id", "request_id", "validate_only"}
WHOLE = [b for b in bindings() if b.body == "*"]
# How comments, which name gRPC's codes and values, read over HTTP.
WORDS = {
    "ALREADY_EXISTS": "409",
    "ABORTED": "409",
    "USERPASS": "`userpass`",
    "IP_BASED": "`ip-based`",
    "UPDATED": "`updated`",
    "INITIAL": "`initial`",
    "CREATED": "`created`",
    "DELETED": "`deleted`",
}


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = document()["components"]["schemas"][name]
    return found


def properties(name: str) -> dict[str, Any]:
    found: dict[str, Any] = schema(name)["properties"]
    return found


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, verbs in document()["paths"].items():
        for verb, operation in verbs.items():
            yield path, verb, operation


def rules(field: FieldDescriptor) -> field_rules_pb2.FieldRules:
    return field.GetOptions().Extensions[field_rules_pb2.rules]


def behavior(field: FieldDescriptor) -> set[int]:
    extensions: Any = field.GetOptions().Extensions
    return set(extensions[field_behavior_pb2.field_behavior])


def is_input_only(field: FieldDescriptor) -> bool:
    return field_behavior_pb2.INPUT_ONLY in behavior(field)


def written_comments() -> dict[str, str]:
    """The comments of fields as the proto files have them, by `Message.field`."""
    found: dict[str, str] = {}
    for file in PROTOS.glob("*.proto"):
        message, comment = "", ""
        for line in file.read_text("utf-8").splitlines():
            text = line.strip()
            if opened := re.match(r"message (\w+) \{", line):
                message = opened[1]
            if text.startswith("//"):
                comment += text.removeprefix("//") + "\n"
            else:
                if field := re.match(r"(?:optional |repeated )?[\w.]+ (\w+) = \d+", text):
                    found[f"{message}.{field[1]}"] = " ".join(comment.split())
                comment = ""
    return found


def test_the_document_is_valid_openapi() -> None:
    assert document()["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(json.loads(json.dumps(document()))).validate()


@pytest.mark.parametrize("name", sorted(document()["components"]["schemas"]))
def test_every_schema_can_be_validated_with(name: str) -> None:
    whole = document() | {"$ref": f"#/components/schemas/{name}"}
    assert not jsonschema_rs.Draft202012Validator(whole).is_valid(7)


def test_every_annotated_route_is_an_operation() -> None:
    service = sip_trunk_service_pb2.DESCRIPTOR.services_by_name["SipTrunkService"]
    expected = set()
    for method in service.methods:
        extensions: Any = method.GetOptions().Extensions
        rule = extensions[annotations_pb2.http]
        verb = rule.WhichOneof("pattern")
        expected.add((re.sub(r"\w+\.", "", getattr(rule, verb)), verb, method.name))
    assert {(path, verb, o["operationId"]) for path, verb, o in operations()} == expected
    assert len(expected) == len(service.methods)


@pytest.mark.parametrize(("name", "message"), SENT.items())
def test_every_field_is_in_the_schemas_of_requests(name: str, message: Descriptor) -> None:
    extra = {TRUNK: TRUNK_KEYS, NUMBER: NUMBER_KEYS, GATEWAY: GATEWAY_KEYS}.get(message, set())
    left_out = {"e164_check_enabled"} if name == "NumberUpdate" else set()
    assert set(properties(name)) == {f.name for f in message.fields} - left_out | extra
    assert schema(name)["additionalProperties"] is False


@pytest.mark.parametrize(("name", "message"), SHOWN.items())
def test_every_field_but_input_only_ones_is_in_the_schemas_of_replies(
    name: str, message: Descriptor
) -> None:
    extra = {TRUNK: TRUNK_KEYS, NUMBER: NUMBER_KEYS, GATEWAY: GATEWAY_KEYS}.get(message, set())
    fields = {f.name for f in message.fields if not is_input_only(f)}
    assert set(properties(name)) == fields | extra
    assert set(schema(name)["required"]) == (fields | extra) - {"auth_username"}


@pytest.mark.parametrize(("name", "message"), SENT.items())
def test_what_a_caller_can_not_set_is_read_only(name: str, message: Descriptor) -> None:
    fixed = {field_behavior_pb2.OUTPUT_ONLY, field_behavior_pb2.IDENTIFIER}
    if "Update" in name:
        fixed.add(field_behavior_pb2.IMMUTABLE)
    expected = {f.name for f in message.fields if behavior(f) & fixed} & set(properties(name))
    if name == "TrunkUpdateInBatch":
        expected.remove("id")  # the path has none
    if name.endswith("Create") and "etag" in properties(name):
        expected.add("etag")
    keys = {f.name for f in message.fields}
    assert {n for n, p in properties(name).items() if p.get("readOnly") and n in keys} == expected


@pytest.mark.parametrize(
    ("name", "message"), [(n, m) for n, m in SENT.items() if "Update" not in n]
)
def test_what_a_create_needs_is_required(name: str, message: Descriptor) -> None:
    required = {f.name for f in message.fields if field_behavior_pb2.REQUIRED in behavior(f)}
    assert set(schema(name)["required"]) == required


@pytest.mark.parametrize(("name", "message"), SENT.items())
def test_every_default_is_the_protos(name: str, message: Descriptor) -> None:
    for field in message.fields:
        if field.name not in properties(name):
            continue
        shown = properties(name)[field.name].get("default")
        written = rules(field).default_value
        if not written:
            assert shown is None, field.name
        elif field.enum_type is not None:
            value = field.enum_type.values_by_name[written]
            assert shown == value.GetOptions().Extensions[http_form_pb2.http_spelling]
        elif field.type == field.TYPE_STRING:
            assert shown == written
        else:
            assert json.dumps(shown) == written


@pytest.mark.parametrize(("name", "message"), SENT.items())
def test_bounds_are_constraints(name: str, message: Descriptor) -> None:
    for field in message.fields:
        shown = properties(name).get(field.name)
        if shown is None or shown.get("readOnly"):
            continue
        stated = rules(field)
        if stated.HasField("minimum"):
            assert (shown["minimum"], shown["maximum"]) == (stated.minimum, stated.maximum)
        least, most = ("minItems", "maxItems") if field.is_repeated else ("minLength", "maxLength")
        assert shown.get(least, 0) == stated.min_length
        if stated.max_length:
            assert shown[most] == stated.max_length


@pytest.mark.parametrize(
    ("name", "field", "expected"),
    [
        ("TrunkUpdate", "transport", ["transport-udp", "transport-tcp", "transport-tls"]),
        ("TrunkUpdate", "media_encryption", ["no", "sdes"]),
        ("TrunkCreate", "auth_type", ["userpass", "ip-based"]),
        ("Trunk", "transport", ["transport-udp", "transport-tcp", "transport-tls"]),
    ],
)
def test_enums_have_the_spellings_of_the_form(name: str, field: str, expected: list[str]) -> None:
    assert properties(name)[field]["enum"] == expected


@pytest.mark.parametrize(("name", "message"), MESSAGES.items())
def test_every_field_has_its_comment(name: str, message: Descriptor) -> None:
    comments = written_comments()
    for field in message.fields:
        key = "trunk" if field.name == "sip_trunk" else field.name
        if key not in properties(name):
            continue
        comment = comments[f"{message.name}.{field.name}"]
        for word, spelled in WORDS.items():
            comment = re.sub(rf"\b{word}\b", spelled, comment)
        shown = properties(name)[key].get("description", comment)
        assert " ".join(shown.split()) == comment
        assert comment


def test_every_operation_parameter_and_property_is_described() -> None:
    for _, _, operation in operations():
        assert operation["summary"].endswith(".")
        assert operation["description"]
        assert all(parameter["description"] for parameter in operation["parameters"])
    for found in document()["components"]["schemas"].values():
        assert all(p["description"] for p in found["properties"].values())


def test_no_description_speaks_of_grpc() -> None:
    told = [
        part[key]
        for part in reached(document())
        for key in ("description", "summary")
        if isinstance(part.get(key), str)
    ]
    grpc = r"INVALID_ARGUMENT|NOT_FOUND where|FAILED_PRECONDITION|OUT_OF_RANGE|ABORTED|update_mask"
    assert len(told) > 100
    assert [text for text in told if re.search(grpc, text)] == []


def test_a_body_has_the_fields_of_its_request_that_have_no_other_place() -> None:
    for binding in WHOLE:
        service = sip_trunk_service_pb2.DESCRIPTOR.services_by_name["SipTrunkService"]
        request = service.methods_by_name[binding.method].input_type
        fields = [f for f in request.fields if f.name not in ELSEWHERE]
        assert list(properties(binding.method)) == [f.name for f in fields]
        required = {f.name for f in fields if field_behavior_pb2.REQUIRED in behavior(f)}
        assert set(schema(binding.method)["required"]) == required
        assert schema(binding.method)["additionalProperties"] is False


def test_the_most_entries_of_a_list_are_what_the_service_takes() -> None:
    assert shapes.ENTRIES_MAX == {
        "gateways": GATEWAYS_MAX,
        "gateway_ids": GATEWAYS_MAX,
        "ip_identifiers": IP_IDENTIFIERS_MAX,
        "ip_addresses": IP_IDENTIFIERS_MAX,
        "phone_numbers": NUMBERS_BATCH_MAX,
        "ids": NUMBERS_BATCH_MAX,
        "requests": BATCH_MAX,
    }


@pytest.mark.parametrize(("name", "message"), RECORDS.items())
def test_every_field_of_a_record_is_there_always(name: str, message: Descriptor) -> None:
    keys = {"trunk" if f.name == "sip_trunk" else f.name for f in message.fields}
    assert set(properties(name)) == set(schema(name)["required"]) == keys


def test_a_trunk_as_it_was_is_a_trunk_without_its_numbers() -> None:
    keys = set(properties("Trunk")) - {"phone_numbers", "phone_numbers_truncated"}
    assert set(properties("TrunkSnapshot")) == set(properties("TrunkBefore")) == keys
    assert "required" not in schema("TrunkBefore")


@pytest.mark.parametrize("name", ["Trunk", "Gateway", "Number"])
def test_what_only_a_write_makes_is_null_without_one(name: str) -> None:
    written = {"id", "etag", "created_at", "updated_at"}
    real, tried = properties(name), properties(f"{name}Trial")
    for key, shown in real.items():
        if key in written:
            assert tried[key] == shown | {"type": ["string", "null"]}
        elif key != "gateways":
            assert tried[key] == shown


def test_every_change_takes_a_key_and_can_be_tried() -> None:
    changes = {b.method for b in bindings() if b.verb != "GET"}
    for _, _, operation in operations():
        places = {(p["in"], p["name"]) for p in operation["parameters"]}
        expected = {("header", "Idempotency-Key"), ("query", "validate_only")}
        is_change = operation["operationId"] in changes
        assert places & expected == (expected if is_change else set())
        assert ({"409", "422"} <= set(operation["responses"])) is is_change
        assert "501" not in operation["responses"]


def test_every_change_of_one_trunk_takes_if_match_and_tells_what_changed() -> None:
    taking, telling = set(), set()
    for _, _, operation in operations():
        names = {p["name"] for p in operation["parameters"]}
        success = operation["responses"]["200"].get("headers", {})
        if "If-Match" in names:
            taking.add(operation["operationId"])
            assert "412" in operation["responses"]
        if "X-Changed-Fields" in success:
            telling.add(operation["operationId"])
            assert "ETag" in success
    assert telling == {
        "UpdateSipTrunk",
        "AddGateways",
        "RemoveGateways",
        "AddIpIdentifiers",
        "RemoveIpIdentifiers",
        "RevertSipTrunk",
    }
    assert taking == telling | {"DeleteSipTrunk"}


def test_no_reply_has_a_secret() -> None:
    secrets = {
        field.name
        for message in set(MESSAGES.values())
        for field in message.fields
        if field.GetOptions().debug_redact
    }
    assert "auth_password" in secrets
    seen = 0
    for _, _, operation in operations():
        for response in operation["responses"].values():
            for found in reached(response):
                seen += 1
                assert not secrets & set(found.get("properties", {}))
                assert not found.get("writeOnly")
                assert found.get("format") != "password"
    assert seen


def reached(part: Any, *, passed: frozenset[str] = frozenset()) -> Iterator[dict[str, Any]]:
    """Every object under a part of the document, through its references."""
    if isinstance(part, list):
        for item in part:
            yield from reached(item, passed=passed)
    elif isinstance(part, dict):
        yield part
        name = str(part.get("$ref", "")).rpartition("/")[2]
        if name and name not in passed:
            yield from reached(schema(name), passed=passed | {name})
        for value in part.values():
            yield from reached(value, passed=passed)
