"""Changes how often a trunk is qualified, once, whatever happens on the way.

change.py ADDRESS TRUNK_ID SECONDS [ETAG]
"""

# ruff: noqa: S311, T201

import random
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
from connection import METADATA, channel, reason, retry_seconds, violations
from google.protobuf.field_mask_pb2 import FieldMask

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from siptrunk.v1.sip_trunk_pb2 import SipTrunk
from siptrunk.v1.sip_trunk_service_pb2_grpc import SipTrunkServiceStub

T = TypeVar("T")
CALL_SECONDS = 10.0
WHOLE_SECONDS_MAX = 60.0
PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.1, 5.0
READS_MAX = 5
LATER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,  # by a server that ends: nothing here cancels a call itself
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


def answered(method: Callable[..., T], request: Any) -> T:
    """The answer to a request, which is sent as it is until it is known what became of it."""
    give_up = time.monotonic() + WHOLE_SECONDS_MAX
    pause = PAUSE_SECONDS
    while True:
        try:
            return method(request, metadata=METADATA, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            wait = again_after(error, pause)
            if wait is None or time.monotonic() + wait > give_up:
                raise
        time.sleep(wait * random.uniform(1, 1.5))
        pause = min(pause * 2, PAUSE_SECONDS_MAX)


def again_after(error: grpc.RpcError, pause: float) -> float | None:
    """How long to wait before the same request is sent again; None where that is no use."""
    asked = retry_seconds(error)
    if error.code() in LATER:
        return max(pause, asked or 0.0)
    if error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED or reason(error) == "REQUEST_IN_FLIGHT":
        return asked
    return None


def qualify(stub: SipTrunkServiceStub, trunk_id: str, etag: str, seconds: int) -> SipTrunk:
    """Set one field of the trunk that has the etag; where it has changed, look at it again."""
    for _ in range(READS_MAX):
        request = pb.UpdateSipTrunkRequest(
            sip_trunk=SipTrunk(id=trunk_id, etag=etag, qualify_frequency=seconds),
            update_mask=FieldMask(paths=["qualify_frequency"]),
            request_id=str(uuid.uuid4()),
        )
        try:
            return answered(stub.UpdateSipTrunk, request)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.ABORTED:
                raise
        trunk = answered(stub.GetSipTrunk, pb.GetSipTrunkRequest(id=trunk_id))
        if not trunk.is_active:
            raise SystemExit("switched off meanwhile: left as it is")
        etag = trunk.etag
    raise SystemExit(f"changed by others {READS_MAX} times in a row")


def main(target: str, trunk_id: str, seconds: str, etag: str = "") -> None:
    """Change the trunk and print what it is now."""
    with channel(target) as connected:
        stub = SipTrunkServiceStub(connected)
        if not etag:
            etag = answered(stub.GetSipTrunk, pb.GetSipTrunkRequest(id=trunk_id)).etag
        try:
            trunk = qualify(stub, trunk_id, etag, int(seconds))
        except grpc.RpcError as error:
            wrong = [f"{v.field} [{v.reason}] {v.description}" for v in violations(error)]
            raise SystemExit(
                "\n".join([f"{error.code().name}: {error.details()}", *wrong])
            ) from None
    print(f"qualify_frequency={trunk.qualify_frequency} etag={trunk.etag}")


if __name__ == "__main__":
    main(*sys.argv[1:])
