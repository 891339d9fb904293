"""Rows of the database as messages, by descriptor: field name = column name. Pure."""

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from siptrunk.v1 import phone_number_pb2, sip_trunk_pb2, sip_trunk_revision_pb2
from trunkline.fields import ETAG, Field, table

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

Row = Any  # an asyncpg.Record: by position and by column name; only the store knows asyncpg
SipTrunk = sip_trunk_pb2.SipTrunk
PhoneNumber = phone_number_pb2.PhoneNumber
TELEPHONY_PROVIDER = "sip-trunk"

# What a message has and its row has not, or has in another form.
_COMPUTED = {"auth_password", "codecs", ETAG, "e164_check_enabled", "telephony_provider"}
_EXPRESSIONS = {
    "auth_password_set": "auth_password_sealed IS NOT NULL",
    "byot_trunk_id": "trunk_id",
}
_NUMBER_TIMES = ("created_at", "updated_at")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def stored_fields(descriptor: "Descriptor") -> Sequence[Field]:
    """The fields of a message that its row has."""
    return [f for f in table(descriptor).values() if f.name not in _COMPUTED]


def select_list(descriptor: "Descriptor", alias: str) -> str:
    """The output columns of a statement, one for each stored field, in their order."""
    columns = []
    for f in stored_fields(descriptor):
        expression = _EXPRESSIONS.get(f.name)
        columns.append(f"{alias}.{expression} AS {f.name}" if expression else f"{alias}.{f.name}")
    return ", ".join(columns)


class TrunkReader:
    """Makes trunks of rows selected with `select_list`, followed by the trunk's revision.

    Args:
        offer: the effective codecs of an `allow` and a `disallow`.
    """

    def __init__(self, offer: Callable[[str, str], Sequence[str]]) -> None:
        self._offer = offer
        self.select = select_list(SipTrunk.DESCRIPTOR, "t") + ", t.revision"
        stored = stored_fields(SipTrunk.DESCRIPTOR)
        self._names = [f.name for f in stored]
        places = list(enumerate(stored))
        self._lists = [(i, f.name) for i, f in places if f.repeated]
        self._times = [(i, f.name) for i, f in places if f.kind == "message" and not f.repeated]
        self._plain = [(i, f.name) for i, f in places if f.kind != "message" and not f.repeated]

    def trunk(self, row: Row) -> sip_trunk_pb2.SipTrunk:
        """The trunk of a row."""
        # What else the row has comes after; a value that is None leaves its field unset.
        values = dict(zip(self._names, row, strict=False))
        for i, name in self._times:
            if row[i] is not None:
                values[name] = timestamp(row[i])
        for i, name in self._lists:
            values[name] = [_item(item) for item in json.loads(row[i])]
        values["codecs"] = self._offer(values["allow"], values["disallow"])
        values[ETAG] = etag(row["revision"], row["updated_at"])
        return SipTrunk(**values)

    def snapshot(self, text: str) -> sip_trunk_pb2.SipTrunk:
        """The trunk of the row that a revision keeps, as JSON without secrets.

        A column that came after the revision was written is absent.
        """
        row = json.loads(text)
        values = {name: row[name] for _, name in self._plain if row.get(name) is not None}
        for _, name in self._times:
            if row.get(name) is not None:
                values[name] = timestamp(datetime.fromisoformat(row[name]))
        for _, name in self._lists:
            values[name] = [_item(item) for item in row[name]]
        values["auth_password_set"] = "auth_password_changed_at" in values
        values["codecs"] = self._offer(values["allow"], values["disallow"])
        values[ETAG] = etag(row["revision"], datetime.fromisoformat(row["updated_at"]))
        return SipTrunk(**values)


def number(row: Row) -> phone_number_pb2.PhoneNumber:
    """The phone number of a row selected with `select_list`."""
    values = {k: v for k, v in row.items() if v is not None}
    values |= {name: timestamp(values[name]) for name in _NUMBER_TIMES if name in values}
    return PhoneNumber(telephony_provider=TELEPHONY_PROVIDER, **values)


def timestamp(at: datetime) -> dict[str, int]:
    """A time as a message's constructor takes it, far sooner than it takes a datetime."""
    since = at - _EPOCH
    return {"seconds": since.days * 86400 + since.seconds, "nanos": since.microseconds * 1000}


def number_changes(text: str | None) -> sip_trunk_revision_pb2.PhoneNumberChanges | None:
    """What a revision says of the numbers: rows of `phone_numbers` by what became of them."""
    if text is None:
        return None
    changes = sip_trunk_revision_pb2.PhoneNumberChanges()
    for kind, found in json.loads(text).items():
        getattr(changes, kind).extend(number_of(row) for row in found)
    return changes


def only(trunk: sip_trunk_pb2.SipTrunk, names: Iterable[str]) -> sip_trunk_pb2.SipTrunk:
    """A trunk with those of its fields alone that are named."""
    found, wanted = SipTrunk(), set(names)
    for descriptor, value in trunk.ListFields():
        if descriptor.name in wanted:
            found.MergeFrom(SipTrunk(**{descriptor.name: value}))
    return found


def parsed(text: str) -> Any:
    """A jsonb value, which the driver hands over as text."""
    return json.loads(text)


def number_of(row: dict[str, Any]) -> phone_number_pb2.PhoneNumber:
    """The phone number of a row of `phone_numbers` that is kept as JSON."""
    values: dict[str, Any] = {n: row[n] for n in ("id", "phone_number", "name")}
    values |= {name: timestamp(datetime.fromisoformat(row[name])) for name in _NUMBER_TIMES}
    return PhoneNumber(
        telephony_provider=TELEPHONY_PROVIDER, byot_trunk_id=row["trunk_id"], **values
    )


def etag(revision: int, updated_at: datetime) -> str:
    """The etag of a trunk: strong and quoted (AIP-154, RFC 9110 section 8.8.3).

    The time in it tells a trunk that came back from a backup from the one that it was.
    """
    since = updated_at - _EPOCH
    micros = (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds
    return f'"{revision:x}-{micros:x}"'


def etag_parts(text: str) -> tuple[int, datetime]:
    """Revision and time of an etag; of a text that is none, what no trunk has."""
    revision, _, micros = text.strip('"').partition("-")
    try:
        parts = int(revision, 16), _EPOCH + int(micros, 16) * _MICROSECOND
    except (ValueError, OverflowError):
        return -1, _EPOCH
    return parts if etag(*parts) == text and parts[0] < 1 << 63 else (-1, _EPOCH)


def _item(item: dict[str, Any]) -> dict[str, Any]:
    if "created_at" in item:
        item["created_at"] = timestamp(datetime.fromisoformat(item["created_at"]))
    return item
