"""The comments of the protos, as descriptions of the HTTP form. Pure."""

import importlib.resources
import re
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor

from siptrunk.v1 import sip_trunk_event_pb2, sip_trunk_pb2
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
    "BatchUpdateSipTrunks": "Changes up to 100 trunks at once, all of them or none.\n\n"
    "Each of the requests is the `id` of another trunk and the fields to change, as in a PATCH of"
    " it; an `etag` in it is a condition. Errors are those of a PATCH, and fields are named from"
    " `requests[3]` on.",
    "ListSipTrunkRevisions": "Lists the revisions of a trunk, the newest first: all of them, or a"
    " page where page_size or page_token is given. A deleted trunk has them still.\n\n"
    "404 where the account never had such a trunk, or has forgotten it.",
    "WatchSipTrunks": "Streams the changes of the account's trunks as server-sent events: from now"
    " on, from a token on, or the initial state and then its changes.\n\n"
    "Every change committed after the stream began, or after the token, is delivered at least once,"
    " whatever the order of commits; within a stream the revisions of a trunk rise. When a stream"
    " ends, whatever the reason, go on from the last id: browsers do, with `Last-Event-ID`. 410"
    " means that the token can't be gone on from, since it is older than the history kept, or"
    " another database's or a restored one's: start with the initial state.\n\n"
    "Events are `initial`, `created`, `updated` and `deleted`, each with an Event as its data;"
    " `initial_state_complete`, once in a stream that began with it; and `error`, with an Error and"
    " its `resume_token`, after which the stream ends. `id` is the token to go on from, and absent"
    " until the initial state is complete. Comments, and ids without data, keep the stream alive."
    " `X-Request-Timeout` bounds the time to the first byte alone.",
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


def of_query(method: str, name: str) -> str:
    """What the protos say of a field of a method's request."""
    return _comments()[f"siptrunk.v1.{method}Request.{name}"]


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
    """Codes as HTTP statuses, and some values as the form spells them."""
    return _CAPITALS.sub(lambda m: _words().get(m[0], m[0]), comment)


@cache
def _words() -> dict[str, str]:
    values: dict[str, str] = {}
    for f in (
        table(sip_trunk_pb2.SipTrunk.DESCRIPTOR)["auth_type"],
        table(sip_trunk_event_pb2.SipTrunkEvent.DESCRIPTOR)["kind"],
    ):
        numbers = {number: spelling for spelling, number in spellings(f).items()}
        values |= {name: f"`{numbers[number]}`" for number, name in f.enum_names.items()}
    return {code: str(status) for code, status in STATUSES.items()} | values
