"""siptrunk.v1.SipTrunkService, put together."""

from trunkline.trunks.history import HistoryMethods
from trunkline.trunks.items import ItemMethods
from trunkline.trunks.numbers import NumberMethods
from trunkline.trunks.trunks import TrunkMethods
from trunkline.trunks.watch import WatchMethods


class SipTrunkService(TrunkMethods, NumberMethods, ItemMethods, HistoryMethods, WatchMethods):
    """The trunks and phone numbers of the caller's account."""
