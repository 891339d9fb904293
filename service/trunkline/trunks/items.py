"""The methods that edit single items of a trunk's lists; what each does is in the proto."""

from collections.abc import Mapping, Sequence
from typing import Any

from siptrunk.v1 import sip_trunk_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline import items
from trunkline.errors import Violation
from trunkline.store.trunks import Edit
from trunkline.trunks import common
from trunkline.trunks.common import ID, refuse

SipTrunk = sip_trunk_pb2.SipTrunk

GATEWAYS_MAX = 32
IP_IDENTIFIERS_MAX = 256


class ItemMethods(common.Methods):
    """Add and remove gateways and IP identifiers."""

    async def AddGateways(self, request: pb.AddGatewaysRequest, context: Any) -> SipTrunk:
        bounds = common.bounded("gateways", request.gateways, GATEWAYS_MAX)
        edit = items.add_gateways(self._rules, [] if bounds else request.gateways)
        return await self._edited(request, bounds, edit, context)

    async def RemoveGateways(self, request: pb.RemoveGatewaysRequest, context: Any) -> SipTrunk:
        bounds = common.ids("gateway_ids", request.gateway_ids, GATEWAYS_MAX)
        edit = items.remove_gateways(self._rules, set(request.gateway_ids))
        return await self._edited(request, bounds, edit, context)

    async def AddIpIdentifiers(self, request: pb.AddIpIdentifiersRequest, context: Any) -> SipTrunk:
        bounds = common.bounded("ip_identifiers", request.ip_identifiers, IP_IDENTIFIERS_MAX)
        edit = items.add_ip_identifiers(self._rules, [] if bounds else request.ip_identifiers)
        return await self._edited(request, bounds, edit, context)

    async def RemoveIpIdentifiers(
        self, request: pb.RemoveIpIdentifiersRequest, context: Any
    ) -> SipTrunk:
        bounds = common.bounded("ip_addresses", request.ip_addresses, IP_IDENTIFIERS_MAX)
        edit = items.remove_ip_identifiers(self._rules, [] if bounds else request.ip_addresses)
        return await self._edited(request, bounds, edit, context)

    async def _edited(
        self,
        request: Any,
        bounds: Sequence[Violation],
        edit: items.ListEdit,
        context: Any,
    ) -> SipTrunk:
        trunk_id, etag = request.trunk_id, request.etag or None
        violations = [*common.empty("trunk_id", trunk_id), *bounds, *edit.violations]
        refuse(violations + common.bad_request_id(request))
        if not ID.fullmatch(trunk_id):
            raise common.no_trunk()
        mutation, made = common.mutation(request), None

        async def judge(stored: Mapping[str, SipTrunk]) -> Sequence[Edit]:
            nonlocal made
            trunk = stored[trunk_id]
            common.refuse_stale(etag, trunk.etag)
            made = Edit(trunk_id, etag, edit.whole(trunk))
            refuse(self._violations(trunk, made.change))
            return (made,)

        updated = await self._trunks.edit(mutation, [trunk_id], judge)
        if not updated:
            raise common.no_trunk()
        return self._told(mutation, updated[0], context)
