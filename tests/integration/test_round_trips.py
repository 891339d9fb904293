import asyncio
import random
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import grpc
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.integration import random_trunks
from tests.integration.conftest import created, minted
from tests.integration.random_trunks import plain
from tests.integration.reference_merge import CODECS, LISTS
from tests.support import PhoneNumber, SipTrunk, connected, password, update, userpass

UPDATES = 250
SOCKET = ".s.PGSQL.5432"
# What the service asks for by itself, beside the calls.
BACKGROUND = (
    "FROM tokens",
    "schema_migrations",
    "DELETE FROM feed_pending",
    "FROM feed_state",
    "pg_control_system",
    "LISTEN",
    "DELETE FROM requests",
    "trunkline history",
)


class Trip:
    """A wait for an answer: the texts prepared or run, and the transaction that they are in."""

    def __init__(self, texts: list[str], transaction: list["Trip"]) -> None:
        self.texts = texts
        self.transaction = transaction
        transaction.append(self)

    @property
    def background(self) -> bool:
        """Whether the service does it by itself: known once the transaction has ended."""
        texts = " ".join(text for trip in self.transaction for text in trip.texts)
        return any(name in texts for name in BACKGROUND)


class Wire:
    """A proxy before PostgreSQL that counts how often a client waits for an answer.

    `trips` has one for each Sync, Flush or simple Query that a client sent.
    """

    def __init__(self, upstream: str) -> None:
        self.trips: list[Trip] = []
        self._upstream = upstream

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection."""
        upstream_reader, upstream = await asyncio.open_unix_connection(self._upstream)
        answers = asyncio.create_task(_copy(upstream_reader, writer))
        try:
            await self._requests(reader, upstream)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            upstream.close()
            await answers

    async def _requests(self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter) -> None:
        statements: dict[bytes, str] = {}
        texts: list[str] = []
        transaction: list[Trip] = []
        within = False
        kind = b""  # the first message has none
        while True:
            length = await reader.readexactly(4)
            body = await reader.readexactly(struct.unpack("!I", length)[0] - 4)
            if kind == b"P":
                name, query = body.split(b"\0", 2)[:2]
                statements[name] = query.decode()
                texts.append(statements[name])
            elif kind == b"B":
                texts.append(statements[body.split(b"\0", 2)[1]])
            elif kind == b"Q":
                texts.append(body.rstrip(b"\0").decode())
            if kind in (b"S", b"H", b"Q"):
                self.trips.append(Trip(texts, transaction))
                first = texts[0] if texts else ""
                ends = first.startswith(("COMMIT", "ROLLBACK"))
                within = first.startswith("BEGIN") or (within and not ends)
                texts, transaction = [], transaction if within else []
            upstream.write(kind + length + body)
            kind = await reader.readexactly(1)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while part := await reader.read(1 << 16):
            writer.write(part)
    finally:
        writer.close()


@pytest.fixture
async def wire(database: str) -> AsyncIterator[tuple[Wire, str]]:
    """A proxy before the test's database, and the database's URL through it."""
    parts = urlsplit(database)
    wire = Wire(f"{parse_qs(parts.query)['host'][0]}/{SOCKET}")
    with tempfile.TemporaryDirectory(prefix="wire-") as directory:
        async with await asyncio.start_unix_server(wire.serve, Path(directory) / SOCKET):
            host = quote(directory, safe="")
            yield wire, f"{parts.scheme}://{parts.netloc}{parts.path}?host={host}"


@pytest.fixture
async def stub(wire: tuple[Wire, str], database: str) -> AsyncIterator[Any]:
    """A stub of a service with one connection, which goes through the proxy."""
    token = (await minted(database, "ours")).text
    async with (
        running(wire[1], database_pool_size=1, codecs=",".join(CODECS)) as service,
        connected(service.grpc_address, token) as stub,
    ):
        yield stub


class Bill:
    """Calls and where their round trips begin and end, looked at when all is over."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._items: list[tuple[str, int, int]] = []

    async def add(self, call: Awaitable[Any], what: str) -> Any:
        """Make a call; one that is refused is not on the bill."""
        since = len(self._wire.trips)
        answer = await call
        self._items.append((what, since, len(self._wire.trips)))
        return answer

    def dear(self) -> list[tuple[str, list[list[str]]]]:
        """The calls that cost more or less than one round trip."""
        found = []
        for what, since, until in self._items:
            trips = [trip.texts for trip in self._wire.trips[since:until] if not trip.background]
            if len(trips) != 1:
                found.append((what, trips))
        return found

    def __len__(self) -> int:
        return len(self._items)


async def test_every_update_that_succeeds_costs_one_round_trip(
    stub: Any, wire: tuple[Wire, str]
) -> None:
    rng, secret, bill = random.Random(0), password(), Bill(wire[0])
    trunks = [await created(stub, SipTrunk(**random_trunks.trunk(rng, secret))) for _ in range(10)]
    await stub.UpdateSipTrunk(update(trunks[0].id, "is_active", is_active=False))
    kinds = ("implied", "*", "list", "password", "no-op", "change", "etag", "request_id")
    seen = dict.fromkeys(kinds, 0)
    while len(bill) < UPDATES:
        trunk = rng.choice(trunks)
        before = plain(await stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk.id)))
        mask, patch = random_trunks.change(rng, before, secret)
        if rng.random() < 0.3:
            patch["etag"] = before["etag"]
        request = update(trunk.id, *mask or (), **patch)
        if rng.random() < 0.3:
            request.request_id = f"call-{len(bill)}-{rng.random()}"
        try:
            after = await bill.add(stub.UpdateSipTrunk(request), f"{mask=}, {patch=}")
        except grpc.aio.AioRpcError:
            continue
        named = mask or list(patch)
        seen["implied"] += not mask
        seen["*"] += "*" in named
        seen["list"] += not {*named}.isdisjoint(LISTS)
        seen["password"] += "auth_password" in named
        seen["no-op"] += after.etag == before["etag"]
        seen["change"] += after.etag != before["etag"]
        seen["etag"] += "etag" in patch
        seen["request_id"] += bool(request.request_id)
    assert bill.dear() == []
    assert min(seen.values()) > UPDATES / 50, seen


async def test_every_other_call_costs_one_round_trip(stub: Any, wire: tuple[Wire, str]) -> None:
    for turn in range(2):
        bill = Bill(wire[0])  # a new one for the second turn, when the statements are prepared
        sent = PhoneNumber(phone_number=f"+155501{turn}")
        create = pb.CreateSipTrunkRequest(sip_trunk=userpass(), phone_numbers=[sent])
        own = {"trunk_id": (await bill.add(stub.CreateSipTrunk(create), "create")).id}
        get = pb.GetSipTrunkRequest(id=own["trunk_id"])
        await bill.add(stub.GetSipTrunk(get), "get")
        await bill.add(stub.ListSipTrunks(pb.ListSipTrunksRequest()), "list")
        sent = PhoneNumber(phone_number=f"+155502{turn}")
        add = pb.CreatePhoneNumberRequest(phone_number=sent, **own)
        number = await bill.add(stub.CreatePhoneNumber(add), "create number")
        await bill.add(stub.ListPhoneNumbers(pb.ListPhoneNumbersRequest(**own)), "list numbers")
        remove = pb.DeletePhoneNumberRequest(id=number.id, **own)
        await bill.add(stub.DeletePhoneNumber(remove), "delete number")
        delete = pb.DeleteSipTrunkRequest(id=own["trunk_id"], force=True)
        await bill.add(stub.DeleteSipTrunk(delete), "delete")
    assert len(bill) == 7
    assert bill.dear() == []
