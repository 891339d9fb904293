"""The section about size: the same calls on a small database and on a large one, side by side.

Each has a PostgreSQL and a server of its own, all up at once. A large database is slow where work
grows with it, and that shows in the ratio: of pages that are alike, as both databases have an
account of the same size (the peer account), and more trunks than a page in their largest.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import grpc

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from siptrunk.v1 import sip_trunk_service_pb2_grpc
from tests.bench import filling, parts, plans, population, report
from tests.bench.cells import Measured, slice_of
from tests.bench.population import CARRIER, PROVIDER, RANGE_ADDRESS, Population
from tests.bench.report import Ratio, rate
from tests.bench.spread import ANY, LARGEST, PEER, Kind
from tests.support import SipTrunk

Say = Callable[[str], None]
SMALL = 1000
CALLERS = 16
STARTS = 3
TARGET = 0.8
TURNS = 2
"""Turns of each database per kind and round, one after the other's."""
WARM_TURNS = 0.5
TABLES = ("trunks", "phone_numbers", "trunk_revisions", "feed", "requests")

_FEW = {
    "name=": 'name="{name}"',
    "name= prefix": 'name="{name}*"',
    "phone_number=": 'phone_number="{number}"',
    "gateway_address=": 'gateway_address="{gateway}"',
    "source_ip=": "source_ip={address}",
}
_MANY = {
    "is_active=": "is_active=true",
    "provider=": f'provider="{PROVIDER}"',
    "name= prefix": f'name="{population.name(1)}*"',
    "gateway_address=": f'gateway_address="{CARRIER}"',
    "source_ip=": f"source_ip={RANGE_ADDRESS}",
}
KINDS: dict[str, tuple[Kind, int]] = {
    "UpdateSipTrunk": (Kind("update"), CALLERS),
    "UpdateSipTrunk, is_active of the trunk with 20,000 numbers": (Kind("update_wide"), 1),
    "GetSipTrunk": (Kind("get"), CALLERS),
    **{f"list, first page, {w}": (Kind("list", w), CALLERS) for w in (PEER, LARGEST)},
    **{f"list, page in the middle, {w}": (Kind("list_later", w), CALLERS) for w in (PEER, LARGEST)},
    **{f"list, {name} of one": (Kind("list", ANY, text), CALLERS) for name, text in _FEW.items()},
    **{
        f"list, {name} of many, {w}": (Kind("list", w, text), CALLERS)
        for name, text in _MANY.items()
        for w in (PEER, LARGEST)
    },
    "ListSipTrunkRevisions": (Kind("history"), CALLERS),
    "ListSipTrunkRevisions of the trunk with 2,000": (Kind("history_often"), CALLERS),
    "WatchSipTrunks, from now": (Kind("watch"), CALLERS),
}
CREATES: dict[str, tuple[Kind, int]] = {"CreateSipTrunk": (Kind("create"), CALLERS)}
"""Measured last, since they make a small database a larger one."""
_TIDY = ("DELETE FROM trunks WHERE name LIKE 'Made %'", "VACUUM (ANALYZE)")


@dataclass
class Side:
    """One of the two databases.

    Attributes:
        people: who is in it.
        data: its PostgreSQL's directory.
        tokens: of its accounts.
        postgres: which runs.
        server: which is on it.
    """

    people: Population
    data: Path
    tokens: list[str]
    postgres: parts.Postgres = field(init=False)
    server: parts.Part = field(init=False)

    @property
    def name(self) -> str:
        """What the tables call it."""
        return f"{self.people.trunks:,}"


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        trunks: of the large database.
        seconds: per kind, database and round.
        rounds: how many; with none, only starts and plans.
    """

    trunks: int
    seconds: float
    rounds: int

    @property
    def starts(self) -> int:
        """Starts of each server: one for a first look."""
        return 1 if self.rounds == 1 else STARTS


async def scale(
    size: Size, directory: Path | None, written: Path | None, say: Say
) -> tuple[str, Any]:
    """Fill, start, measure; where asked for, write the plans.

    Args:
        size: how much.
        directory: where filled databases stay and are taken from; None for a temporary one.
        written: the file that takes the plans.
        say: tells of progress.
    """
    async with contextlib.AsyncExitStack() as stack:
        if directory is None:
            made = stack.enter_context(TemporaryDirectory(prefix="trunkline-bench-"))
            directory = Path(made)
        sides = [await _filled(directory, Population(n), say) for n in (SMALL, size.trunks)]
        logs = Path(stack.enter_context(TemporaryDirectory(prefix="trunkline-bench-logs-")))
        say("starts")
        starts = {"serve with its PostgreSQL": await _starts(sides, logs, size.starts, up=False)}
        for side in sides:
            side.postgres = await stack.enter_async_context(parts.cluster(side.data))
        starts["serve, PostgreSQL up"] = await _starts(sides, logs, size.starts, up=True)
        sizes = [await _sizes(side) for side in sides]
        measured: Measured = {}
        if size.rounds:
            measured = await _measured(sides, logs, size, say)
        for side in sides:
            await _tidied(side)
        if written is not None:
            say("plans")
            await asyncio.to_thread(written.write_text, await _plans(sides[1]))
    ratios = _ratios(sides) if measured else []
    text = [_sizes_table(sides, sizes), _starts_table(sides, starts)]
    text += [report.cells(measured), report.ratios(ratios, measured)] if measured else []
    found = {"databases": sizes, "starts": starts} | report.as_json(ratios, measured)
    return "\n\n".join(text), found


async def _filled(directory: Path, people: Population, say: Say) -> Side:
    data = directory / str(people.trunks)
    known = directory / f"{people.trunks}.json"
    if known.exists():
        return Side(people, data, json.loads(known.read_text()))
    say(f"fill in {people.trunks:,} trunks")
    async with parts.cluster(data) as postgres:
        tokens = await filling.filled(postgres.url, people)
    known.write_text(json.dumps(tokens))
    return Side(people, data, tokens)


async def _starts(
    sides: Sequence[Side], logs: Path, count: int, *, up: bool
) -> dict[str, dict[str, list[float]]]:
    """How long each server takes to be ready, and its memory then, in turns.

    A server starts its PostgreSQL where that is not `up`.
    """
    found: dict[str, dict[str, list[float]]] = {s.name: {"seconds": [], "mb": []} for s in sides}
    for number in range(count):
        for side in sides if number % 2 == 0 else reversed(sides):
            log = logs / f"start-{side.people.trunks}.log"
            url = side.postgres.url if up else ""
            server = parts.service(url, log, data_dir=side.data)
            started = time.perf_counter()
            async with server:
                found[side.name]["seconds"].append(time.perf_counter() - started)
                found[side.name]["mb"].append(parts.resident(server.pid))
    return found


async def _measured(sides: Sequence[Side], logs: Path, size: Size, say: Say) -> Measured:
    measured: Measured = {}
    seconds = size.seconds / TURNS
    async with contextlib.AsyncExitStack() as stack:
        for side in sides:
            log = logs / f"server-{side.people.trunks}.log"
            server = parts.service(side.postgres.url, log)
            side.server = await stack.enter_async_context(server)
            await _checked(side)
        load = await stack.enter_async_context(parts.load(logs / "load.log", "tests.bench.spread"))
        for side in sides:
            people = {"trunks": side.people.trunks, "tokens": side.tokens}
            await load.ask({"know": side.name} | people)
        for kinds in (KINDS, CREATES):
            for kind, callers in kinds.values():
                for side in sides:
                    await load.ask(_job(side, kind, callers, WARM_TURNS * seconds))
            for number in range(size.rounds):
                say(f"round {number + 1} of {size.rounds}")
                for name, (kind, callers) in kinds.items():
                    turns = [*sides] * TURNS
                    for side in turns if number % 2 == 0 else reversed(turns):
                        result = await load.ask(_job(side, kind, callers, seconds))
                        key = _cell(name, side), callers
                        measured.setdefault(key, []).append(slice_of(result))
    return measured


def _cell(name: str, side: Side) -> str:
    return f"{name}: {side.name}"


def _job(side: Side, kind: Kind, callers: int, seconds: float) -> dict[str, Any]:
    return {
        "kinds": [kind.as_json()],
        "world": side.name,
        "address": side.server.address,
        "callers": callers,
        "seconds": seconds,
        "pids": {"server": side.server.pid},
        "postgres": side.postgres.pid,
    }


async def _checked(side: Side) -> None:
    """See that the service takes what was filled in for its own: read, change, history, watch."""
    n = side.people.trunks // 2
    token, trunk_id = side.tokens[side.people.account(n)], population.trunk_id(n)
    metadata = (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(side.server.address) as channel:
        stub: Any = sip_trunk_service_pb2_grpc.SipTrunkServiceStub(channel)
        trunk = await stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk_id), metadata=metadata)
        stream = stub.WatchSipTrunks(pb.WatchSipTrunksRequest(), metadata=metadata, timeout=30)
        await stream.read()
        change = SipTrunk(id=trunk_id, etag=trunk.etag, description=str(time.time()))
        request = pb.UpdateSipTrunkRequest(sip_trunk=change)
        updated = await stub.UpdateSipTrunk(request, metadata=metadata)
        told = None
        while told is None or not told.events:
            told = await stream.read()
        stream.cancel()
        first = pb.GetSipTrunkRevisionRequest(trunk_id=trunk_id, revision=1)
        created = await stub.GetSipTrunkRevision(first, metadata=metadata)
    names = {trunk.name, updated.name, created.sip_trunk.name, told.events[0].sip_trunk.name}
    if names != {population.name(n)} or created.method != "CreateSipTrunk":
        raise RuntimeError(f"not as the service would have it: {names}")


async def _tidied(side: Side) -> None:
    connection = await asyncpg.connect(side.postgres.url)
    for statement in _TIDY:
        await connection.execute(statement)
    await connection.close()


async def _plans(side: Side) -> str:
    log = side.data / "postgres.log"
    return await plans.document(side.postgres.url, log, side.people, side.tokens[0])


async def _sizes(side: Side) -> dict[str, dict[str, int]]:
    connection = await asyncpg.connect(side.postgres.url)
    try:
        return {
            table: {
                "rows": await connection.fetchval(f"SELECT count(*) FROM {table}"),
                "bytes": await connection.fetchval("SELECT pg_total_relation_size($1)", table),
            }
            for table in TABLES
        }
    finally:
        await connection.close()


def _ratios(sides: Sequence[Side]) -> list[Ratio]:
    small, large = sides
    return [
        Ratio(name, _cell(name, large), _cell(name, small), callers, rate, TARGET)
        for name, (_, callers) in (KINDS | CREATES).items()
    ]


def _sizes_table(sides: Sequence[Side], sizes: Sequence[dict[str, dict[str, int]]]) -> str:
    rows = [
        [f"{side.name} trunks", str(side.people.accounts), f"{len(side.people.of_account(0)):,}"]
        + [f"{one[t]['rows']:,} rows, {one[t]['bytes'] / 1e6:,.0f} MB" for t in TABLES]
        for side, one in zip(sides, sizes, strict=True)
    ]
    return report.table(["database", "accounts", "trunks of the largest", *TABLES], rows)


def _starts_table(
    sides: Sequence[Side], starts: dict[str, dict[str, dict[str, list[float]]]]
) -> str:
    small, large = (side.name for side in sides)
    rows = []
    for how, found in starts.items():
        pairs = zip(found[large]["seconds"], found[small]["seconds"], strict=True)
        rows.append(
            [
                how,
                *(report.Spread.of(found[n]["seconds"]).text() for n in (small, large)),
                report.Spread.of([a / b for a, b in pairs]).text(),
                *(report.Spread.of(found[n]["mb"]).text(".0f") for n in (small, large)),
            ]
        )
    head = ["start", f"{small}: s", f"{large}: s", "ratio", f"{small}: MB", f"{large}: MB"]
    return report.table(head, rows)
