"""Random calls of many at several servers while things break: what was told is what happened."""

import asyncio
import contextlib
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.chaos.fleet import Fleet, reaching
from tests.chaos.size import sized
from tests.integration.conftest import minted
from tests.integration.link import Link, linked
from tests.model import trunk as model
from tests.model.checker import check, overlapping
from tests.model.faults import Faults
from tests.model.traffic import Call, Record, Traffic
from tests.model.trunk import Place, Shown, Values, absent, hope, step
from tests.model.watchers import Change, Watcher, check_watcher, feed_of
from tests.support import update
from trunkline.rows import TrunkReader

OPERATIONS = sized(3000, 20_000)
CALLERS = 14
OVERLAPPING_MIN = 1000
SETTLE_SECONDS = 60
QUIET_SECONDS = 2.0
"""In which what was cancelled has been heard of."""
LATE_CUTS = 3
SEED = "TRUNKLINE_TEST_SEED"
DEADLINE = sized(170, 1800)


def seed() -> int:
    """The seed of this run: drawn, or the one that is to be run again."""
    return int(os.environ.get(SEED) or random.SystemRandom().randrange(1 << 32))


@contextlib.asynccontextmanager
async def stubs_of(fleet: Fleet, token: str) -> AsyncIterator[list[Any]]:
    """A stub for each server."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(reaching(a, token)) for a in fleet.addresses]


@contextlib.asynccontextmanager
async def soon(told: Callable[[], object]) -> AsyncIterator[None]:
    """A block that ends within SETTLE_SECONDS, or the test fails with what is told then."""
    try:
        async with asyncio.timeout(SETTLE_SECONDS):
            yield
    except TimeoutError as error:
        raise AssertionError(f"not within {SETTLE_SECONDS} s: {told()}") from error


@dataclass(frozen=True, slots=True)
class Run:
    """What took part."""

    traffic: Sequence[Traffic]
    watchers: list[Watcher]
    faults: Faults


@pytest.mark.timeout(DEADLINE)
async def test_what_callers_and_watchers_saw_is_one_history(database: str, tmp_path: Path) -> None:
    number = seed()
    print(f"{SEED}={number}")
    async with (
        linked(database) as link,
        Fleet(tmp_path, [database, database, link.url], database_pool_size="6") as fleet,
    ):
        run = await worked(database, fleet, link, random.Random(number))
        logged = fleet.log
    pairs, feed = await check_stored(database, [t.record for t in run.traffic])
    seen = {w.name: check_watcher(w, feed) for w in run.watchers}
    print(f"{pairs} overlapping pairs, {len(feed)} changes, {dict(run.faults.count)}")
    for traffic in run.traffic:
        print(f"{dict(traffic.record.codes)}, answered again: {traffic.record.repeated}")
    print({w.name: (seen[w.name], len(w.streams), w.cuts, w.codes) for w in run.watchers})
    assert [c for traffic in run.traffic for c in traffic.record.complaints] == []
    assert pairs >= OVERLAPPING_MIN
    assert {w.name for w in run.watchers if not seen[w.name] or not w.cuts} == set()
    assert run.faults.enough(), run.faults.count
    assert_quiet(logged)


async def worked(database: str, fleet: Fleet, link: Link, rng: random.Random) -> Run:
    """All callers and watchers at work while things break, until every watcher has seen all."""
    ours = (await minted(database, "ours")).text
    theirs = (await minted(database, "theirs")).text
    async with stubs_of(fleet, ours) as stubs, stubs_of(fleet, theirs) as others:
        traffic = Traffic(random.Random(rng.random()), stubs, OPERATIONS)
        other = Traffic(random.Random(rng.random()), others, OPERATIONS // 10)
        faults = Faults(random.Random(rng.random()), database, fleet, link)
        watchers, begun = made(rng, stubs, ours), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(watcher.watch()) for watcher in watchers]
            tasks.append(group.create_task(begun_late(watchers, stubs, ours, begun)))
            async with faults.happening(lambda: list(traffic.known)):
                await asyncio.gather(
                    traffic.run(CALLERS, faults.enough), other.run(2, faults.enough)
                )
            async with soon(lambda: [w.told() for w in watchers]):
                await begun.wait()
            await settled(database, stubs[0], traffic)
            await check_sessions(database)
            place = await marked(database, [(stubs[0], traffic), (others[0], other)])
            for watcher in watchers:
                watcher.finish(place[watcher.account_id])
            _, late = await asyncio.wait(tasks, timeout=SETTLE_SECONDS)
            assert not late, [w.told() for w in watchers]
    return Run((traffic, other), watchers, faults)


async def check_stored(database: str, records: Sequence[Record]) -> tuple[int, list[Change]]:
    """Compare what was told with what is stored; overlapping pairs of calls, and the feed."""
    connection = await asyncpg.connect(database)
    try:
        await check_tables(connection)
        pairs = 0
        for record in records:
            await check_answers(connection, record)
            pairs += await check_histories(connection, record)
        return pairs, await feed_of(connection)
    finally:
        await connection.close()


def made(rng: random.Random, stubs: Sequence[Any], token: str) -> list[Watcher]:
    """Watchers of every kind."""

    def one(name: str, account_id: str | None, begins: str, **more: Any) -> Watcher:
        drawn = random.Random(rng.random())
        return Watcher(name, stubs, token, drawn, account_id, begins, **more)

    return [
        one("from now", "ours", "now"),
        one("from now, all accounts", None, "now"),
        one("from now, active", "ours", "now", is_active=True),
        one("from now, inactive", "ours", "now", is_active=False),
        one("initial state", "ours", "initial"),
        one("initial state, all accounts", None, "initial", anew=True),
        one("initial state, active", "ours", "initial", is_active=True, anew=True),
    ]


async def begun_late(
    watchers: list[Watcher], stubs: Sequence[Any], token: str, begun: asyncio.Event
) -> None:
    """Once the first watcher has been cut, another begins where that one began, and catches up."""
    first = watchers[0]
    while first.cuts < LATE_CUTS or not first.first_token:  # noqa: ASYNC110 - a count
        await asyncio.sleep(0.1)
    begins, drawn = first.first_token, random.Random(first.cuts)
    late = Watcher("from an old token", stubs, token, drawn, first.account_id, begins)
    watchers.append(late)
    begun.set()
    await late.watch()


async def settled(database: str, stub: Any, traffic: Traffic) -> None:
    """Wait until no call that nobody waits for any more is at work in the database."""
    early = (
        "SELECT pid, state, wait_event, query FROM pg_stat_activity"
        " WHERE application_name = 'trunkline' AND datname = current_database()"
        " AND state <> 'idle' AND query_start < $1"
    )
    await asyncio.sleep(QUIET_SECONDS)
    connection = await asyncpg.connect(database)
    try:
        since = await connection.fetchval("SELECT clock_timestamp()")
        rows: list[Any] = [None]
        async with soon(lambda: f"the end of {rows}"):
            while rows:
                rows = await connection.fetch(early, since)
                await asyncio.sleep(0.1)
    finally:
        await connection.close()
    for trunk_id in list(traffic.known):
        # The last word on each trunk: an acknowledged write that is missing shows here.
        call = Call("GetSipTrunk", pb.GetSipTrunkRequest(id=trunk_id), model.Get())
        await traffic.make(call)


async def check_sessions(database: str) -> None:
    """No session of the service was left within a transaction."""
    connection = await asyncpg.connect(database)
    try:
        left = await connection.fetch(
            "SELECT state, query FROM pg_stat_activity WHERE application_name = 'trunkline'"
            " AND datname = current_database() AND state LIKE 'idle in transaction%'"
        )
    finally:
        await connection.close()
    assert left == []


async def marked(database: str, accounts: Sequence[tuple[Any, Traffic]]) -> dict[str | None, int]:
    """A last change for each account that every watcher gets; the positions, by account."""
    connection = await asyncpg.connect(database)
    found = dict[str | None, int]()
    try:
        for (stub, traffic), account_id in zip(accounts, ("ours", "theirs"), strict=True):
            trunk_id = await traffic.create()
            for active in (False, True):
                request = update(trunk_id, "is_active", is_active=active)
                trunk = await stub.UpdateSipTrunk(request, timeout=10, wait_for_ready=True)
            traffic.record.history.pop(trunk_id)
            assert trunk.is_active
            place = (
                "SELECT position FROM feed WHERE account_id = $1 AND trunk_id = $2 AND revision = 3"
            )
            async with soon(lambda: f"a position of the last change of {account_id}"):  # noqa: B023
                while (at := await connection.fetchval(place, account_id, trunk_id)) is None:  # noqa: ASYNC110 - a row
                    await asyncio.sleep(0.05)
            found[account_id] = found[None] = at
    finally:
        await connection.close()
    return found


async def check_tables(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Revisions and positions have no gap, and nothing was done twice."""
    gaps = await connection.fetch(
        "SELECT account_id, trunk_id FROM trunk_revisions GROUP BY 1, 2"
        " HAVING min(revision) <> 1 OR max(revision) <> count(*)"
    )
    assert gaps == []
    feed = await connection.fetchrow(
        "SELECT min(position), max(position), count(*), (SELECT position FROM feed_state),"
        " (SELECT count(*) FROM trunk_revisions), (SELECT count(*) FROM feed_pending) FROM feed"
    )
    assert feed is not None
    assert feed[0] == 1
    assert feed[1] == feed[2] == feed[3] == feed[4]
    assert feed[5] == 0
    backwards = await connection.fetch(
        "SELECT * FROM (SELECT account_id, trunk_id, revision, lag(revision) OVER ("
        " PARTITION BY account_id, trunk_id ORDER BY position) AS before FROM feed) AS f"
        " WHERE coalesce(before, 0) <> revision - 1"
    )
    assert backwards == []
    twice = await connection.fetch(
        "SELECT account_id, method, request_id FROM trunk_revisions"
        " WHERE request_id IS NOT NULL GROUP BY 1, 2, 3 HAVING count(*) > 1"
    )
    assert twice == []
    current = await connection.fetch(
        "SELECT t.id FROM trunks AS t LEFT JOIN trunk_revisions AS r"
        " ON r.account_id = t.account_id AND r.trunk_id = t.id AND r.revision = t.revision"
        " WHERE r.trunk IS DISTINCT FROM trunk_snapshot(to_jsonb(t))"
        " OR EXISTS (SELECT FROM trunk_revisions AS n WHERE n.account_id = t.account_id"
        " AND n.trunk_id = t.id AND n.revision > t.revision)"
    )
    assert current == []


async def check_answers(connection: "asyncpg.Connection[asyncpg.Record]", record: Record) -> None:
    """Each trunk that was shown is, at its revision, what history has."""
    reader = TrunkReader(lambda *_: [])
    for trunk_id, history in record.history.items():
        rows = await connection.fetch(
            "SELECT revision, trunk FROM trunk_revisions WHERE trunk_id = $1 AND NOT deleted",
            trunk_id,
        )
        stored = {row["revision"]: reader.snapshot(row["trunk"]) for row in rows}
        for one in history:
            if isinstance(one.answer, Shown):
                trunk = stored[one.answer.revision]
                assert one.answer.values == Values.of(trunk), one
                assert record.etags.get((trunk_id, one.answer.revision), trunk.etag) == trunk.etag


async def check_histories(connection: "asyncpg.Connection[asyncpg.Record]", record: Record) -> int:
    """The history of each trunk is linearizable; how many pairs in them overlapped."""
    unmade = dict[str, set[int]]()
    for request_id, (trunk_id, place) in record.without_answer.items():
        row = await connection.fetchrow(
            "SELECT revision, trunk FROM trunk_revisions WHERE trunk_id = $1 AND request_id = $2",
            trunk_id,
            request_id,
        )
        if row is None:
            # What left nothing behind changed nothing: no order can be found by it.
            unmade.setdefault(trunk_id, set()).add(place)
            continue
        # Ids are the service's to choose: of a call without an answer, history tells them.
        trunk = TrunkReader(lambda *_: []).snapshot(row["trunk"])
        ids: dict[Place, str] = {g.place: g.id for g in Values.of(trunk).gateways}
        one = record.history[trunk_id][place]
        asked = replace(one.what, ids=ids, revision=row["revision"])
        record.history[trunk_id][place] = replace(one, what=asked)
    for trunk_id, places in unmade.items():
        history = record.history[trunk_id]
        record.history[trunk_id] = [o for n, o in enumerate(history) if n not in places]
    for trunk_id, history in record.history.items():
        verdict = check(history, step, hope, absent(history))
        assert verdict.linearizable, f"{trunk_id}: {verdict}"
    return sum(overlapping(history) for history in record.history.values())


def assert_quiet(logged: str) -> None:
    """The servers have met no error that they do not know."""
    bad = [
        line
        for line in logged.splitlines()
        if any(f'"event": "{e}"' in line for e in ("failed", "feed_failed", "feed_gap"))
        or "Traceback" in line
    ]
    assert bad == [], Counter(bad).most_common(5)
