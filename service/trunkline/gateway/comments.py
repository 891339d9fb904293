"""The comments of the protos, as descriptions of the HTTP form. Pure."""

import importlib.resources
import re
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor

from siptrunk.v1 import sip_trunk_pb2
from trunkline.fields import Field, table
from trunkline.gateway.forms import spellings
from trunkline.gateway.problems import STATUSES

_FIRST_FIELD = 2  # the number of DescriptorProto.field, in a source location's path
_CAPITALS = re.compile(r"\b[A-Z][A-Z_]+\b")
# Where the HTTP form does another thing than the method behind it.
_METHODS = {
    "ListSipTrunks": "Lists the account's trunks: all of them, or a page where page_size or"
    " page_token is given.",
    "UpdateSipTrunk": "Changes the fields of a trunk that the body has, wholly or not at all, and"
    " returns the trunk as it then stands.\n\n"
    "400 with every violation, judged on the trunk as it would be; 404 where there is no such"
    " trunk; 409 where the new name is taken, or the body has an etag that is not the trunk's; 412"
    " where If-Match has none of the trunk's. Keys that only replies have are ignored. Where"
    " nothing would change, the trunk is returned as it is and neither etag nor `updated_at`"
    " moves.",
    "DeleteSipTrunk": "Deletes a trunk and its phone numbers.",
    "ListPhoneNumbers": "Lists the phone numbers of a trunk in the order in which they were added:"
    " all of them, or a page where page_size or page_token is given.",
    "UpdatePhoneNumber": "Changes the name of a phone number.",
}


def of(descriptor: Descriptor, f: Field | None = None) -> str:
    """What the protos say of a message, or of a field of it."""
    name = descriptor.full_name if f is None else f"{descriptor.full_name}.{f.name}"
    return _comments()[name]


def of_method(method: str) -> str:
    """What a method does, over HTTP."""
    return _METHODS.get(method) or _comments()[f"siptrunk.v1.SipTrunkService.{method}"]


def of_query(name: str) -> str:
    """What the protos say of a parameter of the list of trunks."""
    return _comments()[f"siptrunk.v1.ListSipTrunksRequest.{name}"]


@cache
def _comments() -> dict[str, str]:
    """By full name, paragraphs unwrapped."""
    raw = importlib.resources.files("siptrunk").joinpath("comments.binpb").read_bytes()
    found: dict[str, str] = {}
    for file in descriptor_pb2.FileDescriptorSet.FromString(raw).file:
        for location in file.source_code_info.location:
            name = _named(file, list(location.path))
            if name:
                found[f"{file.package}.{name}"] = _spelled(_unwrapped(location.leading_comments))
    return found


def _named(file: descriptor_pb2.FileDescriptorProto, path: list[int]) -> str:
    """The name of what a source location is of: a message, its field, or a method; else empty."""
    kinds: dict[int, Any] = {4: file.message_type, 6: file.service}
    if len(path) not in (2, 4) or path[0] not in kinds:
        return ""
    outer = kinds[path[0]][path[1]]
    if len(path) == 2:
        return str(outer.name)
    if path[2] != _FIRST_FIELD:
        return ""
    inner = outer.method if path[0] == 6 else outer.field
    return f"{outer.name}.{inner[path[3]].name}"


def _unwrapped(comment: str) -> str:
    paragraphs = comment.strip().split("\n\n")
    return "\n\n".join(" ".join(line.strip() for line in p.splitlines()) for p in paragraphs)


def _spelled(comment: str) -> str:
    """Codes as HTTP statuses, and the values of auth_type as the form spells them."""
    return _CAPITALS.sub(lambda m: _words().get(m[0], m[0]), comment)


@cache
def _words() -> dict[str, str]:
    auth_type = table(sip_trunk_pb2.SipTrunk.DESCRIPTOR)["auth_type"]
    numbers = {number: spelling for spelling, number in spellings(auth_type).items()}
    values = {name: f"`{numbers[number]}`" for number, name in auth_type.enum_names.items()}
    return {code: str(status) for code, status in STATUSES.items()} | values
