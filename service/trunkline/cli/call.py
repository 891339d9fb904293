"""`trunkline call`: one call of a running service, for people and scripts without grpcurl."""

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from siptrunk.v1 import sip_trunk_service_pb2
from trunkline import statuses
from trunkline.config import Settings

SECONDS = 30.0
USAGE = 2
_SERVICE = sip_trunk_service_pb2.DESCRIPTOR.services_by_name["SipTrunkService"]


def run(settings: Settings, parsed: argparse.Namespace) -> int:
    """Send the request, print the response as JSON; errors go to standard error."""
    method = _SERVICE.methods_by_name.get(parsed.method.rpartition("/")[2])
    if method is None:
        known = ", ".join(_SERVICE.methods_by_name)
        return _usage(f"there is no method {parsed.method}; there are {known}")
    try:
        text = sys.stdin.read() if parsed.json == "-" else parsed.json
        sent = json.loads(text)
        if not isinstance(sent, dict):
            return _usage(f"the JSON is not a {method.input_type.name}: it is not an object")
        request = json_format.ParseDict(_camel_masks(sent), GetMessageClass(method.input_type)())
    except (ValueError, json_format.ParseError) as error:
        what = str(error).partition("\n")[0]
        return _usage(f"the JSON is not a {method.input_type.name}: {what}")
    token = _token(parsed.token_file)
    if not token.isascii() or not token.isprintable():
        return _usage("the token has characters that no token has")
    metadata = [("authorization", f"Bearer {token}")] if token else []
    reply = GetMessageClass(method.output_type)
    with grpc.insecure_channel(settings.grpc_address) as channel:
        call: Any = channel.unary_unary(
            f"/{_SERVICE.full_name}/{method.name}",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        try:
            response: Any = call(request, metadata=metadata, timeout=parsed.timeout)
        except grpc.RpcError as error:
            return _failed(error)
    print(
        json_format.MessageToJson(
            response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    )
    return 0


def _camel_masks(value: dict[str, Any]) -> dict[str, Any]:
    """Spell update masks as protobuf's JSON wants them: one string, camelCase."""
    for key in ("update_mask", "updateMask"):
        mask = value.get(key)
        if isinstance(mask, dict) and mask.keys() == {"paths"} and isinstance(mask["paths"], list):
            mask = ",".join(str(path) for path in mask["paths"])  # as grpcurl has it
        if isinstance(mask, str):
            value[key] = re.sub(r"_([a-z])", lambda m: m[1].upper(), mask)
    return value


def _token(path: str | None) -> str:
    if path:
        return Path(path).read_text("utf-8", errors="replace").strip()
    return os.environ.get("TRUNKLINE_TOKEN", "").strip()


def _failed(error: grpc.RpcError) -> int:
    assert isinstance(error, grpc.Call)
    print(f"{error.code().name}: {error.details()}", file=sys.stderr)
    for key, value in error.trailing_metadata() or ():
        if key != statuses.DETAILS_KEY or not isinstance(value, bytes):
            continue
        for detail in status_pb2.Status.FromString(value).details:
            _print_detail(detail)
    return 1


def _print_detail(detail: Any) -> None:
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    if detail.Unpack(info):
        extra = "".join(f" {k}={v}" for k, v in sorted(info.metadata.items()))
        print(f"  reason {info.reason}{extra}", file=sys.stderr)
    elif detail.Unpack(bad):
        for v in bad.field_violations:
            print(f"  {v.field} [{v.reason}] {v.description}", file=sys.stderr)


def _usage(what: str) -> int:
    print(f"trunkline: {what}", file=sys.stderr)
    return USAGE
