"""What a body echoes of an earlier reply, told from what it means to change."""

from typing import Any

import grpc

from siptrunk.v1 import sip_trunk_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline.errors import Violation
from trunkline.gateway import forms, views
from trunkline.gateway.upstream import Upstream

SipTrunk = sip_trunk_pb2.SipTrunk

_PORTS = (forms.PORT, forms.PORT_TLS)


async def settle(read: forms.Read, trunk_id: str, upstream: Upstream) -> None:
    """Take from the body of an update what only echoes the trunk, or refuse what it can't change.

    Beside an Idempotency-Key the ports are judged by the body alone: the trunk may have changed by
    the time of a retry, by the first try for one, and the retry must be the same request.
    """
    again = bool(upstream.intent.request_id)
    if again:
        drop_ports(read)
    judged_by_trunk = not again and _names_port(read)
    if not judged_by_trunk and "phone_numbers" not in read.extra:
        return
    stored = await _stored(trunk_id, upstream)
    if stored is None:
        return
    if judged_by_trunk:
        _keep_ports_absent(read, stored)
    if "phone_numbers" in read.extra:
        await _same_numbers(read, stored, upstream)


def drop_ports(read: forms.Read, ports: tuple[int, ...] = _PORTS) -> None:
    """A port that is said not to be explicit, and is one that applies without one, is absent."""
    sent: Any = read.message
    for gateway, explicit in zip(sent.gateways, read.explicit, strict=True):
        if explicit is False and gateway.port in ports:
            gateway.ClearField("port")


def _names_port(read: forms.Read) -> bool:
    sent: Any = read.message
    return any(g.port in _PORTS for g in sent.gateways)


async def _stored(trunk_id: str, upstream: Upstream) -> sip_trunk_pb2.SipTrunk | None:
    try:
        trunk = await upstream.call("GetSipTrunk", pb.GetSipTrunkRequest(id=trunk_id))
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise
        return None  # the update says so, after what is wrong with the body
    assert isinstance(trunk, SipTrunk)
    return trunk


def _keep_ports_absent(read: forms.Read, stored: sip_trunk_pb2.SipTrunk) -> None:
    """A port that is only the echo of the effective one of a gateway without a port stays absent.

    Not where `port_explicit` is true, and without it not where the same body moves the transport:
    there the port is meant.
    """
    sent: Any = read.message
    moved = "transport" in read.named and sent.transport != stored.transport
    effective = forms.effective_port(stored)
    portless = {g.gateway_address for g in stored.gateways if not g.HasField("port")}
    for gateway, explicit in zip(sent.gateways, read.explicit, strict=True):
        if not gateway.HasField("port"):
            continue
        address = gateway.gateway_address.lower().rstrip(".")
        if explicit is False:
            new = forms.effective_port(sent) if moved else effective
            absent = gateway.port in (effective, new)
        else:
            absent = explicit is None and not moved and gateway.port == effective
            absent = absent and address in portless
        if absent:
            gateway.ClearField("port")
            portless.discard(address)


async def _same_numbers(
    read: forms.Read, stored: sip_trunk_pb2.SipTrunk, upstream: Upstream
) -> None:
    """Numbers in a PATCH are an echo of a GET, or refused: they have routes of their own."""
    shown, _ = await upstream.numbers(stored)
    sent = read.extra["phone_numbers"]
    ours = [views.number(n) for n in shown]
    if not (
        isinstance(sent, list)
        and len(sent) == len(ours)
        and all(isinstance(item, dict) for item in sent)
        and all(
            one == one | {"name": None, "phone_number": None} | item
            for one, item in zip(ours, sent, strict=True)
        )
    ):
        what = f"can't be changed here: use /sip-trunks/trunks/{stored.id}/numbers"
        read.violations.append(Violation("phone_numbers", "IMMUTABLE", what))
