"""Changes as watchers get them: made once for all, and the tokens to go on from. Pure."""

import base64
import contextlib
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from siptrunk.v1 import sip_trunk_event_pb2, sip_trunk_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline import rows

SipTrunkEvent = sip_trunk_event_pb2.SipTrunkEvent
_EPOCH_BYTES = 8
_POSITION_BYTES = 8
_CHECK_BYTES = 4
_EVENTS = pb.WatchSipTrunksResponse.EVENTS_FIELD_NUMBER
_RESUME_TOKEN = pb.WatchSipTrunksResponse.RESUME_TOKEN_FIELD_NUMBER
_LENGTH_DELIMITED = 2


class Place(NamedTuple):
    """A place in a feed: after the change at a position.

    `check` is of that very change, so that a copy of the database that went on by itself, and gave
    the same position to another one, is told from it. 0 where there is no change to check.
    """

    position: int
    check: int


def check_of(row: Any) -> int:
    """The check of a row of the feed."""
    parts = (row["account_id"], row["trunk_id"], row["revision"], row["numbered_at"].isoformat())
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=_CHECK_BYTES)
    return int.from_bytes(digest.digest(), "big") or 1


class Event:
    """One change at its place in the feed.

    The message is made and serialised when it is first wanted, and once for all who want it: a
    response is its events' bytes, one after the other.

    Args:
        row: `position`, and the row of the revision.
        epoch: the feed's.
        read: makes a trunk of a revision's snapshot.
    """

    __slots__ = ("_bytes", "_epoch", "_read", "_row", "account_id", "active", "position", "size")

    def __init__(
        self, row: Any, epoch: bytes, read: Callable[[str], sip_trunk_pb2.SipTrunk]
    ) -> None:
        self.position: int = row["position"]
        self.account_id: str = row["account_id"]
        self.size = len(row["trunk"]) + len(row["numbers"] or "")
        self.active: bool | None = None
        self._row, self._epoch, self._read = row, epoch, read
        self._bytes: bytes | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The trunk: its account and its id."""
        return self.account_id, self._row["trunk_id"]

    @property
    def revision(self) -> int:
        """The trunk's revision."""
        return int(self._row["revision"])

    @property
    def place(self) -> Place:
        """Where a watch goes on after it."""
        return Place(self.position, check_of(self._row))

    def matches(self, *, is_active: bool | None) -> bool:
        """Whether the trunk is in a filter after the change or was before; None takes all."""
        if is_active is None or "is_active" in self._row["changed"]:
            return True
        if self.active is None:
            self.active = self.message().sip_trunk.is_active
        return self.active == is_active

    def framed(self) -> bytes:
        """The event as a field of a response."""
        if self._bytes is None:
            self._bytes = _frame(_EVENTS, self.message().SerializeToString())
        return self._bytes

    def message(self) -> sip_trunk_event_pb2.SipTrunkEvent:
        """The event."""
        row = self._row
        if row["deleted"]:
            kind = SipTrunkEvent.DELETED
        else:
            first = row["method"] == "CreateSipTrunk"
            kind = SipTrunkEvent.CREATED if first else SipTrunkEvent.UPDATED
        return SipTrunkEvent(
            kind=kind,
            revision=row["revision"],
            sip_trunk=self._read(row["trunk"]),
            changed_fields=row["changed"],
            phone_numbers=rows.number_changes(row["numbers"]),
            changed_at=row["changed_at"],
            resume_token=token(self._epoch, self.place),
        )


def response(events: Iterable[Event], resume_token: str) -> bytes:
    """A WatchSipTrunksResponse, serialised."""
    return b"".join(e.framed() for e in events) + _frame(_RESUME_TOKEN, resume_token.encode())


def token(epoch: bytes, place: Place) -> str:
    """The token of a place in a feed."""
    raw = epoch + place.position.to_bytes(_POSITION_BYTES, "big")
    raw += place.check.to_bytes(_CHECK_BYTES, "big")
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def parse_token(text: str) -> tuple[bytes, Place]:
    """The epoch and the place of a token.

    Raises:
        ValueError: it is none.
    """
    raw = b""
    with contextlib.suppress(ValueError):
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    epoch, rest = raw[:_EPOCH_BYTES], raw[_EPOCH_BYTES:]
    position, check = rest[:_POSITION_BYTES], rest[_POSITION_BYTES:]
    place = Place(int.from_bytes(position, "big"), int.from_bytes(check, "big"))
    whole = len(raw) == _EPOCH_BYTES + _POSITION_BYTES + _CHECK_BYTES
    if not whole or place.position >= 1 << 63 or token(epoch, place) != text:
        raise ValueError("not a token")
    return epoch, place


def _frame(number: int, payload: bytes) -> bytes:
    """A length-delimited field (protobuf encoding): its tag, its length, its bytes."""
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
