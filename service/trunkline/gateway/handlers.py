"""One function per method: the request as a call of the service, the reply as the form has it."""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response

from trunkline.gateway import history, items, numbers, trunks, watch
from trunkline.gateway.upstream import Upstream

Handler = Callable[[Request, Upstream], Awaitable[Response]]

HANDLERS: Mapping[str, Handler] = {
    "CreateSipTrunk": trunks.create_trunk,
    "GetSipTrunk": trunks.get_trunk,
    "ListSipTrunks": trunks.list_trunks,
    "UpdateSipTrunk": trunks.update_trunk,
    "BatchUpdateSipTrunks": trunks.update_trunks,
    "DeleteSipTrunk": trunks.delete_trunk,
    "CreatePhoneNumber": numbers.create_number,
    "ListPhoneNumbers": numbers.list_numbers,
    "UpdatePhoneNumber": numbers.update_number,
    "DeletePhoneNumber": numbers.delete_number,
    "BatchCreatePhoneNumbers": numbers.create_numbers,
    "BatchDeletePhoneNumbers": numbers.delete_numbers,
    "MovePhoneNumbers": numbers.move_numbers,
    "AddGateways": items.add_gateways,
    "RemoveGateways": items.remove_gateways,
    "AddIpIdentifiers": items.add_ip_identifiers,
    "RemoveIpIdentifiers": items.remove_ip_identifiers,
    "ListSipTrunkRevisions": history.list_revisions,
    "GetSipTrunkRevision": history.get_revision,
    "RevertSipTrunk": items.revert_trunk,
    "WatchSipTrunks": watch.watch_trunks,
}
