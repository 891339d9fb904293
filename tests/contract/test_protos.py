import importlib.resources
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.api import annotations_pb2, field_behavior_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from siptrunk.v1 import phone_number_pb2, sip_trunk_pb2, sip_trunk_service_pb2
from trunkline.fields import table

PROTOS = Path(__file__).parents[2] / "protos"
PACKAGE = "siptrunk.v1"
SERVICE = sip_trunk_service_pb2.DESCRIPTOR.services_by_name["SipTrunkService"]
RESOURCES = (sip_trunk_pb2.SipTrunk.DESCRIPTOR, phone_number_pb2.PhoneNumber.DESCRIPTOR)
SECRET_NAME = re.compile(r"password|secret|token|credential|key", re.ASCII)
BEHAVIORS = field_behavior_pb2.FieldBehavior

# The paths of the HTTP form; each variable is written {}.
ROUTES = {
    ("POST", "/sip-trunks/trunks"): "CreateSipTrunk",
    ("GET", "/sip-trunks/trunks"): "ListSipTrunks",
    ("GET", "/sip-trunks/trunks/{}"): "GetSipTrunk",
    ("PATCH", "/sip-trunks/trunks/{}"): "UpdateSipTrunk",
    ("DELETE", "/sip-trunks/trunks/{}"): "DeleteSipTrunk",
    ("POST", "/sip-trunks/trunks/{}/numbers"): "CreatePhoneNumber",
    ("GET", "/sip-trunks/trunks/{}/numbers"): "ListPhoneNumbers",
    ("DELETE", "/sip-trunks/trunks/{}/numbers/{}"): "DeletePhoneNumber",
    ("PATCH", "/sip-trunks/trunks/{}/numbers/{}"): "UpdatePhoneNumber",
    ("POST", "/sip-trunks/trunks:batchUpdate"): "BatchUpdateSipTrunks",
    ("POST", "/sip-trunks/trunks/{}/gateways"): "AddGateways",
    ("DELETE", "/sip-trunks/trunks/{}/gateways"): "RemoveGateways",
    ("POST", "/sip-trunks/trunks/{}/ip-identifiers"): "AddIpIdentifiers",
    ("DELETE", "/sip-trunks/trunks/{}/ip-identifiers"): "RemoveIpIdentifiers",
    ("POST", "/sip-trunks/trunks/{}/numbers:batchCreate"): "BatchCreatePhoneNumbers",
    ("POST", "/sip-trunks/trunks/{}/numbers:batchDelete"): "BatchDeletePhoneNumbers",
    ("POST", "/sip-trunks/trunks/{}/numbers:move"): "MovePhoneNumbers",
    ("GET", "/sip-trunks/trunks/{}/revisions"): "ListSipTrunkRevisions",
    ("GET", "/sip-trunks/trunks/{}/revisions/{}"): "GetSipTrunkRevision",
    ("POST", "/sip-trunks/trunks/{}:revert"): "RevertSipTrunk",
    ("GET", "/sip-trunks/trunks:watch"): "WatchSipTrunks",
}
# A trunk that changes every millisecond would run out of 32 bits in 25 days.
INT64 = {"revision"}

# How the path of an element in a file's source info is made up (descriptor.proto).
_PARTS: dict[type[Any], list[tuple[int, str]]] = {
    descriptor_pb2.FileDescriptorProto: [
        (4, "message_type"),
        (5, "enum_type"),
        (6, "service"),
        (7, "extension"),
    ],
    descriptor_pb2.DescriptorProto: [(2, "field"), (3, "nested_type"), (4, "enum_type")],
    descriptor_pb2.EnumDescriptorProto: [(2, "value")],
    descriptor_pb2.ServiceDescriptorProto: [(2, "method")],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[descriptor_pb2.FileDescriptorProto]:
    """The files of the API, with their comments."""
    out = tmp_path_factory.mktemp("protos") / "api.binpb"
    sources = sorted(str(p) for p in PROTOS.glob("siptrunk/v1/*.proto"))
    options = [f"-I{PROTOS}", "--include_source_info", f"--descriptor_set_out={out}"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options, *sources], check=True)
    found = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    return [f for f in found if f.package == PACKAGE]


def elements(
    parent: Any, path: tuple[int, ...] = (), name: str = ""
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The elements of a file with their places in it, outermost first."""
    for number, attribute in _PARTS.get(type(parent), []):
        for position, child in enumerate(getattr(parent, attribute)):
            place, full = (*path, number, position), f"{name}.{child.name}"
            yield full, place
            yield from elements(child, place, full)


def reachable(descriptor: Descriptor, seen: dict[str, Descriptor]) -> dict[str, Descriptor]:
    """A message of the API and those in it, by name."""
    if descriptor.full_name not in seen and descriptor.file.package == PACKAGE:
        seen[descriptor.full_name] = descriptor
        for field in descriptor.fields:
            if field.message_type is not None:
                reachable(field.message_type, seen)
    return seen


def api_messages() -> list[Descriptor]:
    seen: dict[str, Descriptor] = {}
    for method in SERVICE.methods:
        reachable(method.input_type, seen)
        reachable(method.output_type, seen)
    return list(seen.values())


def api_fields() -> list[FieldDescriptor]:
    return [field for message in api_messages() for field in message.fields]


def behavior(field: FieldDescriptor) -> set[int]:
    extensions: Any = field.GetOptions().Extensions
    return set(extensions[field_behavior_pb2.field_behavior])


def sendable_fields() -> list[FieldDescriptor]:
    """The fields of the resources and of what is in them that a caller may send."""
    seen: dict[str, Descriptor] = {}
    for resource in RESOURCES:
        reachable(resource, seen)
    fields = [field for message in seen.values() for field in message.fields]
    return [f for f in fields if BEHAVIORS.Value("OUTPUT_ONLY") not in behavior(f)]


def route(method: Any) -> tuple[str, str, str]:
    """Verb, path and body of a method's HTTP form."""
    extensions: Any = method.GetOptions().Extensions
    rule = extensions[annotations_pb2.http]
    verb = rule.WhichOneof("pattern")
    return verb.upper(), getattr(rule, verb), rule.body


def by_name(value: Any) -> str:
    return str(getattr(value, "full_name", value))


def test_every_element_has_a_comment(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    seen, bare = 0, []
    for file in files:
        comments = {
            tuple(location.path): location.leading_comments or location.trailing_comments
            for location in file.source_code_info.location
        }
        for name, place in elements(file):
            seen += 1
            if not comments.get(place, "").strip():
                bare.append(name)
    assert seen > 100
    assert bare == []


def test_every_file_of_the_package_is_in_its_directory(
    files: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    assert {f.name for f in files} == {
        f"siptrunk/v1/{p.name}" for p in (PROTOS / "siptrunk/v1").iterdir()
    }


@pytest.mark.parametrize("field", api_fields(), ids=by_name)
def test_field_says_how_it_behaves(field: FieldDescriptor) -> None:
    found = behavior(field)
    kind = {"REQUIRED", "OPTIONAL", "OUTPUT_ONLY", "IDENTIFIER"}
    assert len(found & {BEHAVIORS.Value(name) for name in kind}) == 1


@pytest.mark.parametrize("field", sendable_fields(), ids=by_name)
def test_field_that_a_caller_may_send_has_presence(field: FieldDescriptor) -> None:
    assert field.is_repeated or field.has_presence


@pytest.mark.parametrize("field", api_fields(), ids=by_name)
def test_field_that_is_a_secret_is_redacted_and_never_sent_back(field: FieldDescriptor) -> None:
    text = field.type == field.TYPE_STRING
    sent_only = BEHAVIORS.Value("INPUT_ONLY") in behavior(field)
    secret = text and sent_only and bool(SECRET_NAME.search(field.name))
    assert field.GetOptions().debug_redact == secret


def test_the_digest_password_is_a_secret() -> None:
    fields = [f.name for f in table(sip_trunk_pb2.SipTrunk.DESCRIPTOR).values() if f.secret]
    assert fields == ["auth_password"]


@pytest.mark.parametrize("message", api_messages(), ids=by_name)
def test_message_has_no_unsigned_or_64_bit_integers(message: Descriptor) -> None:
    wide = {f.name for f in message.fields if f.type == f.TYPE_INT64}
    assert wide <= INT64
    kinds = {f.type for f in message.fields if f.name not in INT64}
    assert kinds <= {
        FieldDescriptor.TYPE_BOOL,
        FieldDescriptor.TYPE_ENUM,
        FieldDescriptor.TYPE_INT32,
        FieldDescriptor.TYPE_MESSAGE,
        FieldDescriptor.TYPE_STRING,
    }


def test_methods_have_exactly_the_paths_of_the_http_form() -> None:
    found = {}
    for method in SERVICE.methods:
        verb, path, _ = route(method)
        found[verb, re.sub(r"\{[^}]*\}", "{}", path)] = method.name
    assert found == ROUTES


@pytest.mark.parametrize("method", list(SERVICE.methods), ids=by_name)
def test_path_and_body_of_a_method_name_fields_of_its_request(method: Any) -> None:
    verb, path, body = route(method)
    for variable in re.findall(r"\{([^}]*)\}", path):
        message = method.input_type
        for name in variable.split("."):
            assert message is not None, variable
            field = message.fields_by_name[name]
            message = field.message_type
        assert field.type == (field.TYPE_INT64 if variable in INT64 else field.TYPE_STRING)
    assert body in ("", "*") or body in method.input_type.fields_by_name
    assert bool(body) == (verb in ("POST", "PATCH"))


@pytest.mark.parametrize(
    "enum",
    [e for message in api_messages() for e in message.enum_types],
    ids=by_name,
)
def test_zero_of_an_enum_is_not_a_value(enum: Any) -> None:
    assert enum.values[0].number == 0
    assert enum.values[0].name.endswith("_UNSPECIFIED")


@pytest.mark.parametrize("field", sendable_fields(), ids=by_name)
def test_default_of_a_field_is_within_its_own_rules(field: FieldDescriptor) -> None:
    known = table(field.containing_type)[field.name]
    if known.default is None:
        assert known.rules.default_value == ""
    elif known.kind == "enum":
        assert known.default in known.enum_names.values()
    elif known.kind == "int32":
        assert isinstance(known.default, int)
        assert known.rules.minimum <= known.default <= known.rules.maximum
    elif known.kind == "bool":
        assert known.rules.default_value in ("true", "false")
    else:
        assert len(str(known.default)) <= known.rules.max_length


@pytest.mark.parametrize(
    "path", sorted((PROTOS / "google").rglob("*.proto")), ids=lambda path: path.name
)
def test_vendored_proto_is_the_one_of_the_installed_package(path: Path) -> None:
    installed = importlib.resources.files("google.api") / path.name
    assert path.parent == PROTOS / "google/api"
    assert path.read_bytes() == installed.read_bytes()
