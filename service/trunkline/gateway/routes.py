"""The routes of the HTTP form, read from the protos' `google.api.http` annotations. Pure."""

import re
from dataclasses import dataclass
from typing import Any

from google.api import annotations_pb2

from siptrunk.v1 import sip_trunk_service_pb2

_VARIABLE = re.compile(r"\{([a-z_.]+)\}")
_VERBS = ("get", "put", "post", "delete", "patch")


@dataclass(frozen=True, slots=True)
class Binding:
    """The HTTP form of one method.

    Attributes:
        method: the RPC's name.
        verb: the HTTP method.
        path: with variables in braces, as the annotation has it.
        body: the request's field that the body stands for, `*` for the whole, or empty.
        reply: the name of the reply's message.
        query: the request's lists that are in the query, where there is no body.
        conditional: whether it takes the etag that the trunk must have.
    """

    method: str
    verb: str
    path: str
    body: str
    reply: str
    query: tuple[str, ...]
    conditional: bool

    @property
    def changes(self) -> bool:
        """Whether the method changes something."""
        return self.verb != "GET"

    @property
    def resource(self) -> str:
        """What it is about: `SipTrunk` or `PhoneNumber`."""
        return "PhoneNumber" if "PhoneNumber" in self.method else "SipTrunk"

    @property
    def route(self) -> str:
        """The path with plain names for its variables: `sip_trunk.id` is `id`."""
        return _VARIABLE.sub(lambda m: "{" + m[1].rpartition(".")[2] + "}", self.path)


def bindings() -> list[Binding]:
    """The HTTP forms of all methods, in the order of the proto."""
    found = []
    for method in sip_trunk_service_pb2.DESCRIPTOR.services_by_name["SipTrunkService"].methods:
        extensions: Any = method.GetOptions().Extensions
        rule = extensions[annotations_pb2.http]
        for verb in _VERBS:
            path = getattr(rule, verb)
            if path:
                found.append(_binding(method, verb, path, rule.body))
    return found


def _binding(method: Any, verb: str, path: str, body: str) -> Binding:
    fields = method.input_type.fields_by_name
    lists = tuple(name for name, f in fields.items() if f.is_repeated)
    query = lists if verb == "delete" else ()
    conditional = "etag" in fields or (verb == "patch" and body == "sip_trunk")
    reply = method.output_type.name
    return Binding(method.name, verb.upper(), path, body, reply, query, conditional)
