"""Edits of single items of a trunk's lists, as changes of the whole list. Pure."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from siptrunk.v1 import sip_trunk_pb2
from trunkline.errors import Violation
from trunkline.fields import table
from trunkline.masks import Plan
from trunkline.rules import Change, Rules

if TYPE_CHECKING:
    from google.protobuf.message import Message

SipTrunk = sip_trunk_pb2.SipTrunk
Gateway = sip_trunk_pb2.Gateway
IpIdentifier = sip_trunk_pb2.IpIdentifier
Whole = Callable[[sip_trunk_pb2.SipTrunk], Change]
_FIELDS = table(SipTrunk.DESCRIPTOR)


@dataclass(frozen=True, slots=True)
class ListEdit:
    """What a request asks of a list.

    Attributes:
        violations: what is wrong with the items themselves.
        whole: the change of the whole list, given the trunk as it is stored.
    """

    violations: Sequence[Violation]
    whole: Whole


def add_gateways(rules: Rules, sent: Sequence[sip_trunk_pb2.Gateway]) -> ListEdit:
    """Gateways to add; one whose address and port are there already takes the priority sent."""
    normal, violations = _normal(rules, "gateways", sent)

    def whole(stored: sip_trunk_pb2.SipTrunk) -> Change:
        kept = [Gateway(**_plain(g)) for g in stored.gateways]
        places = {_place(g): g for g in kept}
        for item, one in zip(normal, sent, strict=True):
            new = Gateway(**item)
            known = places.setdefault(_place(new), new)
            if known is new:
                kept.append(new)
            elif one.HasField("priority"):
                known.priority = one.priority
        return _change(rules, "gateways", SipTrunk(gateways=kept))

    return ListEdit(violations, whole)


def remove_gateways(rules: Rules, ids: Collection[str]) -> ListEdit:
    """Gateways to remove by id; ids that are not there are passed over."""

    def whole(stored: sip_trunk_pb2.SipTrunk) -> Change:
        kept = [g for g in stored.gateways if g.id not in ids]
        return _change(rules, "gateways", SipTrunk(gateways=kept))

    return ListEdit((), whole)


def add_ip_identifiers(rules: Rules, sent: Sequence[sip_trunk_pb2.IpIdentifier]) -> ListEdit:
    """Addresses to add; those that are there already are passed over."""
    normal, violations = _normal(rules, "ip_identifiers", sent)

    def whole(stored: sip_trunk_pb2.SipTrunk) -> Change:
        kept = list(stored.ip_identifiers)
        known = {i.ip_address for i in kept}
        kept += [IpIdentifier(**item) for item in normal if item["ip_address"] not in known]
        return _change(rules, "ip_identifiers", SipTrunk(ip_identifiers=kept))

    return ListEdit(violations, whole)


def remove_ip_identifiers(rules: Rules, addresses: Sequence[str]) -> ListEdit:
    """Addresses to remove, in any form; those that are not there are passed over."""
    sent = [IpIdentifier(ip_address=address) for address in addresses]
    normal, found = _normal(rules, "ip_identifiers", sent)
    violations = [
        Violation(
            v.field.replace("ip_identifiers", "ip_addresses").removesuffix(".ip_address"),
            v.reason,
            v.description.replace("ip_identifiers", "ip_addresses"),
        )
        for v in found
    ]
    gone = {item.get("ip_address") for item in normal}

    def whole(stored: sip_trunk_pb2.SipTrunk) -> Change:
        kept = [i for i in stored.ip_identifiers if i.ip_address not in gone]
        return _change(rules, "ip_identifiers", SipTrunk(ip_identifiers=kept))

    return ListEdit(violations, whole)


def _normal(
    rules: Rules, name: str, sent: "Sequence[Message]"
) -> tuple[list[dict[str, Any]], list[Violation]]:
    """Each item in normal form, in the order sent, and what is wrong with them."""
    change = Change()
    normal = rules.items(change, name, sent)
    return normal, change.violations


def _change(rules: Rules, name: str, wanted: sip_trunk_pb2.SipTrunk) -> Change:
    return rules.update(Plan((_FIELDS[name],)), wanted)


def _place(gateway: sip_trunk_pb2.Gateway) -> tuple[str, int | None]:
    return gateway.gateway_address, gateway.port if gateway.HasField("port") else None


def _plain(gateway: sip_trunk_pb2.Gateway) -> dict[str, Any]:
    """What callers say of a gateway, without what the server does."""
    return {
        f.name: getattr(gateway, f.name)
        for f in table(Gateway.DESCRIPTOR).values()
        if not f.ignored and gateway.HasField(f.name)  # type: ignore[arg-type]
    }
