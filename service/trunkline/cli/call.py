"""`trunkline call`: one call of a running service, for people and scripts without grpcurl."""

import argparse
import json
import re
import sys
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from siptrunk.v1 import sip_trunk_service_pb2
from trunkline.cli import remote
from trunkline.config import Settings

SECONDS = 30.0
_SERVICE = sip_trunk_service_pb2.DESCRIPTOR.services_by_name["SipTrunkService"]


def run(settings: Settings, parsed: argparse.Namespace) -> int:
    """Send the request, print each response as JSON; errors go to standard error."""
    method = _SERVICE.methods_by_name.get(parsed.method.rpartition("/")[2])
    if method is None:
        known = ", ".join(_SERVICE.methods_by_name)
        return remote.usage(f"there is no method {parsed.method}; there are {known}")
    try:
        request = _request(method, sys.stdin.read() if parsed.json == "-" else parsed.json)
        metadata = remote.metadata(parsed.token_file)
    except remote.UsageError as error:
        return remote.usage(error)
    with remote.connected(settings) as stub:
        call = getattr(stub, method.name)
        try:
            if not method.server_streaming:
                _print(call(request, metadata=metadata, timeout=parsed.timeout))
                return 0
            for response in call(request, metadata=metadata):
                _print(response)
        except grpc.RpcError as error:
            return remote.failed(error)
    return 0


def _request(method: Any, text: str) -> Message:
    name = method.input_type.name
    try:
        sent = json.loads(text)
        if not isinstance(sent, dict):
            raise remote.UsageError(f"the JSON is not a {name}: it is not an object")
        return json_format.ParseDict(_camel_masks(sent), GetMessageClass(method.input_type)())
    except (ValueError, json_format.ParseError) as error:
        what = str(error).partition("\n")[0]
        raise remote.UsageError(f"the JSON is not a {name}: {what}") from None


def _print(response: Message) -> None:
    text = json_format.MessageToJson(
        response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    print(text, flush=True)


def _camel_masks(value: dict[str, Any]) -> dict[str, Any]:
    """Spell update masks as protobuf's JSON wants them: one string, camelCase."""
    for key in ("update_mask", "updateMask"):
        mask = value.get(key)
        if isinstance(mask, dict) and mask.keys() == {"paths"} and isinstance(mask["paths"], list):
            mask = ",".join(str(path) for path in mask["paths"])  # as grpcurl has it
        if isinstance(mask, str):
            value[key] = re.sub(r"_([a-z])", lambda m: m[1].upper(), mask)
    for one in value.get("requests") or ():
        if isinstance(one, dict):
            _camel_masks(one)
    return value
