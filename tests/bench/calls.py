"""The calls that load generators make, as bytes, made before the clock runs."""

import itertools
import json
import random
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.bench.floor import ID_CHARACTERS
from tests.support import Gateway, IpIdentifier, SipTrunk, password

SERVICE = "/siptrunk.v1.SipTrunkService/"
FLOOR = "/bench.Floor/"
MASK_FIELDS_MAX = 5
PAGE_SIZE = 50
BATCH_SIZE = 100
NUMBERS_PER_TRUNK = 2
_PASSWORD = password()
_BOOLEANS = (
    "media_encryption_optimistic",
    "direct_media",
    "rtp_symmetric",
    "force_rport",
    "ice_support",
    "inbound_enabled",
    "outbound_leading_plus_enabled",
    "is_active",
)
_HOSTS = ("sip-a.example.com", "sip-b.example.com")


def _value(field: str, place: int, turn: int) -> Any:
    """A field's value at its so-many-th turn; each differs from the one before."""
    odd = turn % 2 == 1
    values: dict[str, Any] = {
        "name": f"Site {place} trunk {turn}",
        "description": f"Line {turn} of site {place}",
        "auth_username": f"site-{place}-{turn}",
        "auth_password": _PASSWORD,
        "gateways": [Gateway(gateway_address=h, port=5060 + odd) for h in _HOSTS],
        "ip_identifiers": [IpIdentifier(ip_address=f"203.0.113.{5 + odd}")],
        "allow": "ulaw,alaw,g722" if odd else "ulaw,alaw",
        "disallow": "gsm" if odd else "all",
        "media_encryption": SipTrunk.SDES if odd else SipTrunk.NO,
        "transport": SipTrunk.TCP if odd else SipTrunk.UDP,
        "qualify_frequency": 30 + turn % 1000,
    }
    return values.get(field, odd)


class Trunks:
    """Trunks, and at which turn each of their fields is, so that every update changes something.

    A trunk in an even place has transport TLS and turns its encryption on and off; in an odd place
    it changes its transport. So any choice of fields is valid, and all are chosen from.
    """

    def __init__(self, trunk_ids: Sequence[str]) -> None:
        self.ids = trunk_ids
        self._turns: dict[tuple[int, str], int] = {}
        self._made: list[tuple[int, Sequence[str]]] = []
        self._rng = random.Random(1)
        self._next = -1

    def masks(self, place: int) -> list[str]:
        """The fields that an update of a trunk may name."""
        common = ["name", "description", "auth_username", "auth_password", "gateways"]
        common += ["ip_identifiers", "allow", "disallow", "qualify_frequency", *_BOOLEANS]
        return [*common, "transport" if place % 2 else "media_encryption"]

    def next_update(self) -> pb.UpdateSipTrunkRequest:
        """An update of the next of them, as many as there are, then from the first again."""
        self._next = (self._next + 1) % len(self.ids)
        return self.update(("description", "qualify_frequency"), self._next)

    def update(
        self, fields: Sequence[str] | None = None, place: int | None = None
    ) -> pb.UpdateSipTrunkRequest:
        """An update of one of them: of the fields given, or of one to five at random."""
        if place is None:
            place = self._rng.randrange(len(self.ids))
        if fields is None:
            count = self._rng.randint(1, MASK_FIELDS_MAX)
            fields = self._rng.sample(self.masks(place), count)
        self._made.append((place, fields))
        values = {}
        for field in fields:
            turn = self._turns[place, field] = self._turns.get((place, field), 0) + 1
            values[field] = _value(field, place, turn)
        request = pb.UpdateSipTrunkRequest(sip_trunk=SipTrunk(id=self.ids[place], **values))
        request.update_mask.paths.extend(fields)
        return request

    def unsent(self, count: int) -> None:
        """Say that the last so many updates were never sent, and forget the others."""
        for place, fields in self._made[max(0, len(self._made) - count) :]:
            for field in fields:
                self._turns[place, field] -= 1
        self._made.clear()

    def places(self) -> list[int]:
        """The places of the trunks of the updates made since the last `unsent`."""
        return [place for place, _ in self._made]

    def one(self) -> str:
        """The id of one of them."""
        return self._rng.choice(self.ids)


def first(place: int, name: str | None = None) -> SipTrunk:
    """The trunk of a place as it is created: each field at its turn 0."""
    fields = [f for f in Trunks(()).masks(1) if f != "transport"]
    values = {field: _value(field, place, 0) for field in fields}
    if name is not None:
        values["name"] = name
    transport = SipTrunk.UDP if place % 2 else SipTrunk.TLS
    return SipTrunk(provider="plivo", auth_type=SipTrunk.USERPASS, transport=transport, **values)


Made = list[bytes]
_places = itertools.count(1)
_numbers = itertools.count(1)


def _fixed(trunks: Trunks, count: int) -> Made:
    return [trunks.update(("qualify_frequency",)).SerializeToString() for _ in range(count)]


def _random(trunks: Trunks, count: int) -> Made:
    return [trunks.update().SerializeToString() for _ in range(count)]


def _with_request_id(trunks: Trunks, count: int) -> Made:
    made = []
    for _ in range(count):
        request = trunks.update(("qualify_frequency",))
        request.request_id = str(uuid.uuid4())
        made.append(request.SerializeToString())
    return made


def _get(trunks: Trunks, count: int) -> Made:
    return [pb.GetSipTrunkRequest(id=trunks.one()).SerializeToString() for _ in range(count)]


def _list(trunks: Trunks, count: int) -> Made:
    return [pb.ListSipTrunksRequest(page_size=PAGE_SIZE).SerializeToString()] * count


def _create(trunks: Trunks, count: int) -> Made:
    made = []
    for _ in range(count):
        trunk = first(next(_places), f"Made {uuid.uuid4()}")
        made.append(pb.CreateSipTrunkRequest(sip_trunk=trunk).SerializeToString())
    return made


def _create_with_numbers(trunks: Trunks, count: int) -> Made:
    made = []
    for request in _create(trunks, count):
        create = pb.CreateSipTrunkRequest.FromString(request)
        for _ in range(NUMBERS_PER_TRUNK):
            create.phone_numbers.add(phone_number=f"+1{next(_numbers):010}")
        made.append(create.SerializeToString())
    return made


def _batch(trunks: Trunks, count: int) -> Made:
    made = []
    for _ in range(count):
        batch = pb.BatchUpdateSipTrunksRequest()
        for _ in range(BATCH_SIZE):
            batch.requests.append(trunks.next_update())
        made.append(batch.SerializeToString())
    return made


def _each_once(trunks: Trunks, count: int) -> Made:
    return [trunks.next_update().SerializeToString() for _ in range(count)]


def _patch(trunks: Trunks, count: int) -> Made:
    made = []
    for _ in range(count):
        trunk = trunks.update(("qualify_frequency",)).sip_trunk
        body = json.dumps({"qualify_frequency": trunk.qualify_frequency})
        made.append(
            f"PATCH /sip-trunks/trunks/{trunk.id} HTTP/1.1\r\nhost: bench\r\n"
            "authorization: Bearer {token}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}".encode()
        )
    return made


KINDS: dict[str, tuple[str, Callable[[Trunks, int], Made]]] = {
    "prepared": (FLOOR + "Prepared", _fixed),
    "floor_update": (FLOOR + "Update", _fixed),
    "floor_get": (FLOOR + "Get", _get),
    "update_fixed": (SERVICE + "UpdateSipTrunk", _fixed),
    "update_random": (SERVICE + "UpdateSipTrunk", _random),
    "update_request_id": (SERVICE + "UpdateSipTrunk", _with_request_id),
    "get": (SERVICE + "GetSipTrunk", _get),
    "list": (SERVICE + "ListSipTrunks", _list),
    "create": (SERVICE + "CreateSipTrunk", _create),
    "patch": ("HTTP", _patch),
    "create_with_numbers": (SERVICE + "CreateSipTrunk", _create_with_numbers),
    "batch": (SERVICE + "BatchUpdateSipTrunks", _batch),
    "update_each": (SERVICE + "UpdateSipTrunk", _each_once),
}
"""The method that each kind of call is of, and what makes its requests."""


def floor_ids(count: int) -> list[str]:
    """The ids of the floor's rows."""
    return [f"{n:0{ID_CHARACTERS}}" for n in range(count)]
