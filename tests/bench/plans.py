"""How PostgreSQL runs every statement of the store on a large database, as a document.

A service makes every kind of call in the largest account, several times over one connection, and
PostgreSQL tells (auto_explain) how it ran each statement. What is shown of each is the run that
looked at the most rows, the last of equal ones, which has the plan that is kept. Statements that
only `tests/integration/test_plans.py` knows how to provoke are planned and not run.
"""

import asyncio
import contextlib
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import asyncpg
import grpc

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.bench import population
from tests.bench.population import Population
from tests.conftest import running
from tests.integration import test_plans
from tests.integration.test_request_id import MUTATIONS, World
from tests.integration.watching import watching
from tests.support import KEYS, IpIdentifier, PhoneNumber, connected, ip_based, update
from trunkline import feed, housekeeping, keys, migrate, tokens
from trunkline.config import Settings
from trunkline.sealing import KeyRing
from trunkline.store.database import Database
from trunkline.store.identities import IdentityStore
from trunkline.store.secrets import FIELDS, START, SecretStore

TIMES = 8
"""After five runs PostgreSQL decides whether it keeps a plan for a statement."""
BACKGROUND_SECONDS = 3.0
PAGES_MIN = 3
PROVOKED = "plans_provoked"
_TOLD = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_buffers": "off",
    "auto_explain.log_parameter_max_length": "0",
}
_ENTRY = re.compile(r"duration: [0-9.]+ ms  plan:\n((?:\t.*\n)+)")
_COSTS = re.compile(r"  \(cost=\S+ rows=\d+ width=\d+\)")
_ACTUAL = re.compile(r"\(actual rows=([0-9.]+) loops=(\d+)\)")
_LITERAL = re.compile(r"'[^'\n]*'")
_VARYING = re.compile(r"[0-9A-Z]{26}|[0-9]{2}:[0-9]{2}:|\\x|.{40}")
_SCANNED = re.compile(r"Seq Scan on (\w+)[^(]*(?:\(actual rows=([0-9.]+))?")
_DRIVERS = re.compile(r"typeinfo_tree|set_config\('jit'")
"""What asyncpg asks of its own accord."""
_RUN = re.compile(r"\s*(WITH|SELECT|INSERT|UPDATE|DELETE)\b")


_HEAD = """# Query plans with {trunks:,} trunks

Written by `python -m tests.bench scale --plans FILE`; what is in the database, and how a plan is
had, is in README.md and `plans.py`. *Once*: PostgreSQL keeps a plan for any values; *each time*: it
plans for those of the call, or there are none. *Rows looked at* are those of all scans of one run.

Sequential scans of tables that grow: {scans}.

|  | sent by | planned | rows looked at |
| --- | --- | --- | --- |
"""


@dataclass
class Found:
    """A statement, the call that sent it first, and its plan."""

    of: str
    plan: str


class Told:
    """What PostgreSQL has told in its log since this was made, by statement."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._place = log.stat().st_size
        self.found: dict[str, Found] = {}

    def look(self, of: str) -> None:
        """Take in what came since the last look, which calls of a kind have sent."""
        with self._log.open("rb") as file:
            file.seek(self._place)
            content = file.read()
        whole = content.rpartition(b"\n")[0]
        self._place += len(whole)
        for entry in _ENTRY.finditer(whole.decode(errors="replace") + "\n"):
            lines = [line[1:] for line in entry[1].splitlines()]
            first = next(i for i, line in enumerate(lines) if "(cost=" in line)
            statement = "\n".join(lines[:first]).removeprefix("Query Text: ")
            plan = "\n".join(lines[first:])
            known = self.found.setdefault(statement, Found(of, plan))
            if looked_at(plan) >= looked_at(known.plan):
                known.plan = plan


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    """Housekeeping at once, and a ring so short that one who comes back reads from the database."""
    with (
        mock.patch.object(housekeeping, "IDLE_SECONDS", 0.05),
        mock.patch.object(feed, "EVENTS_KEPT_MAX", 5),
    ):
        yield


async def document(url: str, log: Path, people: Population, token: str) -> str:
    """Plans of every statement, in Markdown.

    Args:
        url: the large database.
        log: what its PostgreSQL writes.
        people: who is in it.
        token: of the largest account.
    """
    provoked = await _provoked(url)
    told = Told(log)
    explained = url + "".join(f"&{name}={value}" for name, value in _TOLD.items())
    with _eager():
        async with running(explained, database_pool_size=1) as service:
            async with connected(service.grpc_address, tokens.mint().text) as stranger:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await stranger.GetSipTrunk(pb.GetSipTrunkRequest(id="x"))
            await asyncio.sleep(BACKGROUND_SECONDS)
            told.look("beside the calls")
            async with connected(service.grpc_address, token) as stub:
                async for of in _calls(stub, people):
                    told.look(of)
    await _commands(explained)
    told.look("commands")
    connection = await asyncpg.connect(url)
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    for statement in sorted(provoked - told.found.keys()):
        if _RUN.match(statement):
            plan = await test_plans.plan(connection, statement)
            told.found[statement] = Found("planned, not run", plan)
    await connection.close()
    return _text(people, told.found)


async def _provoked(url: str) -> set[str]:
    """Every statement that the tests know of, by a small database beside the large one."""
    connection = await asyncpg.connect(url)
    other = re.sub(r"/[^/?]*\?", f"/{PROVOKED}?", url)
    await connection.execute(f"DROP DATABASE IF EXISTS {PROVOKED}")
    await connection.execute(f"CREATE DATABASE {PROVOKED}")
    try:
        database = await Database.open(other, 1, 0)
        await migrate.apply(database)
        await database.close()
        filling = await asyncpg.connect(other)
        await filling.execute(test_plans.FILL)
        await filling.close()
        with _eager():
            return await test_plans.statements(other)
    finally:
        await connection.execute(f"DROP DATABASE {PROVOKED} WITH (FORCE)")
        await connection.close()


async def _calls(stub: Any, people: Population) -> AsyncIterator[str]:
    """Make calls of each kind; their name after each."""
    mine = people.of_account(0)
    n, other = people.middle(0), mine[len(mine) // 3]
    ids = [population.trunk_id(n), population.trunk_id(other)]
    for name, read in _reads(stub, n, ids):
        for _ in range(TIMES):
            await read()
        yield name
    async with watching(stub, initial_state=True) as watcher:
        await watcher.until(lambda w: len(w.responses) >= PAGES_MIN)
    async with watching(stub) as watcher:
        resume = watcher.token
    yield "WatchSipTrunks"
    async for name in _writes(stub):
        yield name
    async with watching(stub, resume_token=resume) as watcher:
        await watcher.until(lambda w: bool(w.events))
    yield "WatchSipTrunks, resumed"
    async with watching(stub, all_accounts=True, initial_state=True) as watcher:
        await watcher.until(lambda w: len(w.responses) >= PAGES_MIN)
    async with watching(stub, all_accounts=True, resume_token=resume) as watcher:
        await watcher.until(lambda w: bool(w.events))
    yield "WatchSipTrunks, all accounts"


def _reads(stub: Any, n: int, ids: list[str]) -> Iterator[tuple[str, Callable[[], Awaitable[Any]]]]:
    def listed(**fields: Any) -> Callable[[], Awaitable[Any]]:
        return lambda: stub.ListSipTrunks(pb.ListSipTrunksRequest(page_size=50, **fields))

    def paged(order: str) -> Callable[[], Awaitable[Any]]:
        async def read() -> None:
            page = await listed(order_by=order)()
            await listed(order_by=order, page_token=page.next_page_token)()

        return read

    yield "GetSipTrunk", lambda: stub.GetSipTrunk(pb.GetSipTrunkRequest(id=ids[0]))
    filters = {
        "is_active": "is_active=true",
        "provider": f'provider="{population.PROVIDER}"',
        "name": f'name="{population.name(n)}"',
        "name prefix": f'name="{population.name(1)}*"',
        "phone_number": f'phone_number="{population.number(n)}"',
        "gateway_address": f'gateway_address="{population.own_gateway(n)}"',
        "source_ip": f"source_ip={population.own_address(n)}",
    }
    for order in test_plans.ORDERS:
        yield f"ListSipTrunks by {order}", paged(order)
    for name, text in filters.items():
        yield f"ListSipTrunks, {name}", listed(filter=text)
    numbers, revisions = pb.ListPhoneNumbersRequest, pb.ListSipTrunkRevisionsRequest
    yield "ListPhoneNumbers", lambda: stub.ListPhoneNumbers(numbers(trunk_id=ids[0]))
    several = numbers(trunk_id="-", trunk_ids=ids)
    yield "ListPhoneNumbers of several trunks", lambda: stub.ListPhoneNumbers(several)
    yield "ListSipTrunkRevisions", lambda: stub.ListSipTrunkRevisions(revisions(trunk_id=ids[0]))
    middle = population.OFTEN_CHANGES // 2
    one = pb.GetSipTrunkRevisionRequest(trunk_id=ids[0], revision=middle)
    yield "GetSipTrunkRevision", lambda: stub.GetSipTrunkRevision(one)


async def _writes(stub: Any) -> AsyncIterator[str]:
    """Each method that writes, twice with the same request_id; then what is refused."""
    trunk = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=ip_based()))
    yield "CreateSipTrunk"
    for turn in range(TIMES):
        request = update(trunk.id, "description", description=f"Turn {turn}")
        await stub.UpdateSipTrunk(request)
    yield "UpdateSipTrunk"
    await stub.DeleteSipTrunk(pb.DeleteSipTrunkRequest(id=trunk.id))
    yield "DeleteSipTrunk"
    world = World(stub)
    gateways = [{"gateway_address": f"{name}.example.com"} for name in "ab"]
    addresses = [IpIdentifier(ip_address=f"192.0.2.{i}") for i in (1, 2)]
    for method in MUTATIONS:
        for _ in range(TIMES):
            await world.make()
            two = ip_based(gateways=gateways, ip_identifiers=addresses)
            world.two = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=two))
            gone = [world.two, world.trunk, world.other]
            request_id = str(uuid.uuid4())
            for _ in range(2):
                answer = await world.call(method, request_id)
            if method == "CreateSipTrunk":
                gone.append(answer)
            if method == "DeleteSipTrunk":
                gone.remove(world.trunk)
            if method == "BatchUpdateSipTrunks":
                await _refused(world)
            for trunk in gone:
                await stub.DeleteSipTrunk(pb.DeleteSipTrunkRequest(id=trunk.id, force=True))
        yield f"{method}, again with its request_id"


async def _refused(world: World) -> None:
    """Names and numbers that are taken, of which the caller is told which."""
    renames = [update(t.id, "name", name=world.two.name) for t in (world.trunk, world.other)]
    numbers = [PhoneNumber(phone_number=n.phone_number) for n in world.numbers]
    for call in (
        world.stub.BatchUpdateSipTrunks(pb.BatchUpdateSipTrunksRequest(requests=renames[:1])),
        world.stub.BatchCreatePhoneNumbers(
            pb.BatchCreatePhoneNumbersRequest(trunk_id=world.other.id, phone_numbers=numbers)
        ),
    ):
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call


async def _commands(url: str) -> None:
    """What the commands of the command line ask."""
    database = await Database.open(url, 1, 0)
    identities, secrets = IdentityStore(database), SecretStore(database)
    ring = KeyRing(keys.given(Settings(secret_keys=KEYS)))
    await keys.check(identities, ring)
    await identities.sealed_count(ring.newest)
    await identities.list_accounts()
    await identities.list_tokens()
    await identities.revoke_token("no such token")
    await secrets.secrets()
    await secrets.answers()
    for field in FIELDS:
        found, _ = await secrets.others(field, "another key", START)
        some = found[: keys.BATCH_MAX]
        sealed = [ring.seal(ring.open(s.sealed, s.key_id, *s.context), *s.context) for s in some]
        await secrets.reseal(field, ring.newest, some, sealed)
    await database.close()


def _text(people: Population, found: dict[str, Found]) -> str:
    scans, rows, parts = [], [], []
    ours = {s: one for s, one in found.items() if not _DRIVERS.search(s)}
    for place, (statement, one) in enumerate(ours.items(), 1):
        shown = _LITERAL.sub(_steady, _COSTS.sub("", one.plan))
        for table, actual in _SCANNED.findall(shown):
            if table in test_plans.LARGE:
                known = ", as it should be" if test_plans.SCANNED.search(statement) else ""
                scans.append(f"{place}: {table} ({float(actual or 0):,.0f} rows{known})")
        kept = "once" if "$1" in shown else "each time"
        count = f"{looked_at(shown):,.0f}" if "(actual" in shown else ""
        rows.append(f"| {place} | {one.of} | {kept} | {count} |")
        text = "\n".join(line.rstrip() for line in statement.strip().splitlines())
        parts.append(f"## {place}. {one.of}\n\n```sql\n{text}\n```\n\n```\n{shown}\n```")
    head = _HEAD.format(trunks=people.trunks, scans="; ".join(scans) or "none")
    return head + "\n".join(rows) + "\n\n" + "\n\n".join(parts) + "\n"


def _steady(literal: re.Match[str]) -> str:
    """A literal of a plan, where it is not another one in each run."""
    return "'…'" if _VARYING.search(literal[0]) else literal[0]


def looked_at(plan: str) -> float:
    """The rows that the scans of a plan went through, those that a filter took out too."""
    total, loops = 0.0, 1
    for line in plan.splitlines():
        if actual := _ACTUAL.search(line):
            loops = int(actual[2])
            if "Scan" in line and "CTE Scan" not in line and "Subquery Scan" not in line:
                total += float(actual[1]) * loops
        elif removed := re.search(r"Rows Removed by (?:Filter|Index Recheck): ([0-9.]+)", line):
            total += float(removed[1]) * loops
    return total
