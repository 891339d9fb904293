"""What bad input leaves behind in a server's memory."""

import re
from pathlib import Path
from typing import Any

import grpc
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.e2e.processes import Server
from tests.support import TOKEN, Gateway, SipTrunk, connected

GROWTH_MB_MAX = 60
WARM_UP = 20
ROUNDS = 100
UPDATE = "/siptrunk.v1.SipTrunkService/UpdateSipTrunk"


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


def hostile() -> list[bytes]:
    """Requests that are refused, most of them near or beyond the limit of a message."""
    mask = pb.UpdateSipTrunkRequest(sip_trunk=SipTrunk(id="x"))
    mask.update_mask.paths.extend(["a"] * 200_000)
    gateways = [Gateway(gateway_address=f"gateway-{i}.example.com") for i in range(5_000)]
    many = pb.UpdateSipTrunkRequest(sip_trunk=SipTrunk(id="x", gateways=gateways))
    long = pb.UpdateSipTrunkRequest(sip_trunk=SipTrunk(id="x", description="d" * 900_000))
    unknown = b"\xfa\x3f\x80\xe8\x36" + b"u" * 896_000  # a field of a newer version, 896,000 bytes
    return [
        mask.SerializeToString(),
        many.SerializeToString(),
        long.SerializeToString(),
        unknown,
        b"\xff" * 900_000,
        b"\0" * 10_000_000,
    ]


@pytest.mark.timeout(170)
async def test_memory_returns_after_bad_input(tmp_path: Path) -> None:
    async with Server(tmp_path, log_level="error") as server:
        address = await server.ready()
        options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            call: Any = channel.unary_unary(UPDATE)
            requests = hostile()
            codes = set()
            before = 0.0
            for round_number in range(ROUNDS):
                if round_number == WARM_UP:
                    before = resident_mb(server.pid)
                for request in requests:
                    with pytest.raises(grpc.aio.AioRpcError) as refused:
                        await call(request, metadata=(("authorization", f"Bearer {TOKEN}"),))
                    codes.add(refused.value.code().name)
        assert codes == {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}
        assert resident_mb(server.pid) - before < GROWTH_MB_MAX
        async with connected(address) as stub:
            assert not (await stub.ListSipTrunks(pb.ListSipTrunksRequest())).sip_trunks
