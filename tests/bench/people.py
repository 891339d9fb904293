"""What people feel: how late watchers hear, load of all kinds, a big sync beside one's work."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import parts, report
from tests.bench.calls import BATCH_SIZE
from tests.bench.cells import Cell, percentile
from tests.bench.cells import job as load_job
from tests.bench.setting import Setting, minted
from tests.bench.watchers import BUCKET_SECONDS

Say = Callable[[str], None]
RATE = 200
"""Changes per second while watches are measured."""
WATCHERS = (1, 20, 50)
ACCOUNTS = 1000
PROCESSES = 2
SETTLE_SECONDS = 1.0
SYNC_CALLERS = 4
CALLERS_PER_BATCH_CALLER = 4
SYNC_SECONDS_MAX = 1500
_ACCOUNT_TRUNKS = """
INSERT INTO trunks
SELECT (jsonb_populate_record(s.row, jsonb_build_object(
         'account_id', a.id, 'id', 'W' || lpad(substr(a.id, 3), 25, '0')))).*
  FROM (SELECT t AS row FROM trunks AS t WHERE account_id = 'bench' LIMIT 1) AS s
 CROSS JOIN (SELECT id FROM accounts WHERE id LIKE 'w-%') AS a"""


@contextlib.asynccontextmanager
async def _paced(setting: Setting, name: str = "paced") -> AsyncIterator[parts.Part]:
    async with parts.load(setting.directory / f"{name}.log", "tests.bench.paced") as part:
        await part.ask({"know": "bench", "ids": setting.ids})
        yield part


def _paced_job(setting: Setting, seconds: float, *kinds: tuple[str, float]) -> dict[str, Any]:
    return {
        "address": setting.server.address,
        "server": setting.server.pid,
        "postgres": setting.postgres.pid,
        "seconds": seconds,
        "kinds": [
            {"kind": kind, "rate": rate, "trunks": "bench", "tokens": [setting.token]}
            for kind, rate in kinds
        ],
    }


class Crowd:
    """Watchers in processes of their own."""

    def __init__(self, processes: Sequence[parts.Part]) -> None:
        self._processes = processes

    async def open(self, address: str, tokens: Sequence[str], *, everything: bool) -> None:
        """Open a stream for each token, spread over the processes."""
        share = {i: tokens[i :: len(self._processes)] for i in range(len(self._processes))}
        await asyncio.gather(
            *(
                p.ask({"open": share[i], "address": address, "all": everything})
                for i, p in enumerate(self._processes)
            )
        )

    async def read(self) -> tuple[list[float], int, float]:
        """How late the events since the last look were, sorted; the responses; the CPU."""
        found = await asyncio.gather(*(p.ask({"read": True}) for p in self._processes))
        late: Counter[int] = Counter()
        for one in found:
            late.update({int(bucket): count for bucket, count in one["late"].items()})
        ordered = [b * BUCKET_SECONDS for b, count in sorted(late.items()) for _ in range(count)]
        return ordered, sum(f["responses"] for f in found), sum(f["cpu"] for f in found)

    async def close(self) -> None:
        """End the streams."""
        await asyncio.gather(*(p.ask({"close": True}) for p in self._processes))


@contextlib.asynccontextmanager
async def crowd(directory: Path) -> AsyncIterator[Crowd]:
    """Watchers whose logs are in a directory."""
    async with contextlib.AsyncExitStack() as stack:
        yield Crowd(
            [
                await stack.enter_async_context(
                    parts.load(directory / f"watchers-{i}.log", "tests.bench.watchers")
                )
                for i in range(PROCESSES)
            ]
        )


async def watch(setting: Setting, seconds: float, rounds: int, say: Say) -> tuple[str, Any]:
    """How late watchers hear of a change, and what telling them costs."""
    found: dict[str, list[dict[str, float]]] = {}
    accounts = [f"w-{n:04}" for n in range(ACCOUNTS)]
    tokens = await minted(setting.postgres.url, accounts)
    await setting.sql(_ACCOUNT_TRUNKS)
    one = _paced_job(setting, seconds, ("update_fixed", RATE))
    many = _paced_job(setting, seconds, ("update_fixed", RATE))
    many["kinds"][0] |= {"trunks": "accounts", "tokens": tokens}
    runs = [("nobody", one, list[str](), True)]
    runs += [(f"{n}, of everything", one, [setting.token] * n, True) for n in WATCHERS]
    runs += [("nobody, 1,000 accounts", many, [], False)]
    runs += [(f"{ACCOUNTS:,}, of an account each", many, tokens, False)]
    async with _paced(setting) as writer, crowd(setting.directory) as watchers:
        ids = [f"W{account[2:]:0>25}" for account in accounts]
        await writer.ask({"know": "accounts", "ids": ids})
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            quiet = 0.0
            for name, work, who, everything in runs:
                await watchers.open(setting.server.address, who, everything=everything)
                await writer.ask(work | {"seconds": SETTLE_SECONDS})
                await asyncio.sleep(SETTLE_SECONDS)
                await watchers.read()
                told = await _told(watchers, writer, work, quiet)
                quiet = quiet if who else told["server"]
                found.setdefault(name, []).append(told)
                await watchers.close()
    return _watch_table(found), found


async def _told(
    watchers: Crowd, writer: parts.Part, work: dict[str, Any], quiet: float
) -> dict[str, float]:
    result = await writer.ask(work)
    await asyncio.sleep(SETTLE_SECONDS)
    late, responses, cpu = await watchers.read()
    updates = result["kinds"]["update_fixed"]
    seconds, count = result["seconds"], max(1, len(late))
    return {
        "updates": len(updates["latencies"]),
        "errors": updates["errors"],
        "deliveries": len(late),
        "responses": responses,
        "per_second": len(late) / seconds,
        "p50": percentile(late, 0.5),
        "p99": percentile(late, 0.99),
        "server": result["server"] / seconds,
        "cpu_per_delivery": (result["server"] / seconds - quiet) * seconds / count,
        "watcher_cpu_per_delivery": cpu / count,
    }


def _watch_table(found: dict[str, list[dict[str, float]]]) -> str:
    rows = []
    for name, rounds in found.items():
        deaf = not rounds[0]["deliveries"]

        def spread(what: str, form: str, scale: float = 1.0, rounds: Any = rounds) -> str:
            return report.Spread.of([r[what] for r in rounds]).text(form, scale)

        rows.append(
            [
                name,
                f"{median(r['updates'] for r in rounds):.0f}",
                "" if deaf else spread("per_second", ".0f"),
                "" if deaf else spread("p50", ".1f", 1e3),
                "" if deaf else spread("p99", ".1f", 1e3),
                spread("server", ".2f"),
                "" if deaf else spread("cpu_per_delivery", ".0f", 1e6),
            ]
        )
    head = ["watchers", "changes", "deliveries/s", "late p50 ms", "late p99 ms"]
    return report.table([*head, "server CPU, cores", "more server CPU µs/delivery"], rows)


MIX = (("update_random", 50.0), ("list", 20.0), ("get", 50.0))
MIX_WATCHERS = 100


async def mixed(setting: Setting, seconds: float, rounds: int, say: Say) -> tuple[str, Any]:
    """Each kind of call alone at its rate, then all at once with watchers."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    async with _paced(setting) as part, crowd(setting.directory) as watchers:
        await part.ask(_paced_job(setting, SETTLE_SECONDS, *MIX))
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for kind in MIX:
                result = await part.ask(_paced_job(setting, seconds, kind))
                _keep(found, "alone", result)
            who = [setting.token] * MIX_WATCHERS
            await watchers.open(setting.server.address, who, everything=False)
            _keep(found, "together", await part.ask(_paced_job(setting, seconds, *MIX)))
            await watchers.close()
    rows = []
    for name, rate in MIX:
        for when in ("alone", "together"):
            line = found[when][name]
            p50, p99 = (
                report.Spread.of([one[p] for one in line]).text(".1f", 1e3) for p in ("p50", "p99")
            )
            errors = sum(one["errors"] for one in line)
            rows.append([name, f"{rate:.0f}/s", when, p50, p99, f"{errors:.0f}"])
    head = ["call", "rate", "when", "p50 ms", "p99 ms", "errors"]
    return report.table(head, rows), found


def _keep(
    found: dict[str, dict[str, list[dict[str, float]]]], when: str, result: dict[str, Any]
) -> None:
    for kind, one in result["kinds"].items():
        ordered = sorted(us / 1e6 for us in one["latencies"])
        figures = {
            "p50": percentile(ordered, 0.5),
            "p99": percentile(ordered, 0.99),
            "errors": one["errors"],
        }
        found.setdefault(when, {}).setdefault(kind, []).append(figures)


INTERACTIVE = (("update_random", 10.0), ("get", 10.0), ("list", 5.0))
INTERACTIVE_SECONDS = 2.0
QUIET_TURNS = 10
FELT_MAX = 3.0
"""How many times what it is in quiet the p99 of somebody's calls may be beside a sync."""


async def sync(setting: Setting, trunks: int, callers: int, say: Say) -> tuple[str, Any]:
    """Create trunks, update a third in batches and a third one by one, beside somebody's work."""
    in_batches = max(1, callers // CALLERS_PER_BATCH_CALLER)
    (token,) = await minted(setting.postgres.url, ("sync",))
    phases: dict[str, Any] = {}
    third = trunks // 3
    async with (
        _paced(setting) as client,
        parts.load(setting.directory / "sync.log") as load,
    ):
        await load.ask({"know": "sync", "ids": ["none"]})
        base = {"token": token, "trunks": "sync", "seconds": SYNC_SECONDS_MAX}
        await _beside(setting, client, asyncio.sleep(0))
        quiet = await _beside(setting, client, asyncio.sleep(QUIET_TURNS * INTERACTIVE_SECONDS))
        phases["quiet"] = quiet | {"items": 0}
        plan = [
            (f"create {trunks:,}", "create_with_numbers", trunks, trunks, callers),
            (f"update {third:,} in batches", "batch", third // BATCH_SIZE, third, in_batches),
            (f"update {third:,} one by one", "update_each", third, third, callers),
        ]
        for name, kind, count, items, together in plan:
            say(name)
            if kind == "batch":
                ids = await _ids(setting, "sync")
                await load.ask({"know": "sync", "ids": ids})
            work = load_job(setting, Cell(name, kind, setting.server), together, 0) | base
            phases[name] = await _beside(setting, client, load.ask(work | {"count": count}))
            phases[name]["items"] = items
    return _sync_table(phases, callers), phases


async def _ids(setting: Setting, account: str) -> list[str]:
    statement = "SELECT string_agg(id, ' ') FROM trunks WHERE account_id = $1"
    text = await setting.sql(statement, account)
    return str(text).split()


async def _beside(setting: Setting, client: parts.Part, work: Any) -> dict[str, Any]:
    """Do some work while a client goes on; how long it took, and what the client felt of it."""
    task = asyncio.create_task(work)
    calls = list[tuple[str, float, int]]()
    while True:
        result = await client.ask(_paced_job(setting, INTERACTIVE_SECONDS, *INTERACTIVE))
        for kind, one in result["kinds"].items():
            pairs = zip(one["due"], one["latencies"], strict=True)
            calls.extend((kind, due, latency) for due, latency in pairs)
        if task.done():
            break
    done = task.result() or {"started": 0.0, "seconds": float("inf"), "errors": 0}
    # The load generator makes its requests first, and the client goes on for a moment afterwards.
    first, last = done["started"], done["started"] + done["seconds"]
    felt: dict[str, list[float]] = {kind: [] for kind, _ in INTERACTIVE}
    for kind, due, latency in calls:
        if first <= due <= last:
            felt[kind].append(latency / 1e6)
    return {
        "seconds": done["seconds"],
        "errors": done["errors"],
        "calls": sum(len(values) for values in felt.values()),
        "p99": {kind: percentile(sorted(values), 0.99) for kind, values in felt.items()},
    }


def _sync_table(phases: dict[str, Any], callers: int) -> str:
    quiet = phases["quiet"]["p99"]
    rows, worst = [], dict[str, float]()
    for name, phase in phases.items():
        felt = [f"{p99 * 1e3:.1f} ({p99 / quiet[kind]:.1f}x)" for kind, p99 in phase["p99"].items()]
        worst |= {k: max(worst.get(k, 0.0), p99 / quiet[k]) for k, p99 in phase["p99"].items()}
        took = [f"{phase['seconds'] / 60:.2f}", f"{phase['items'] / phase['seconds']:.0f}"]
        took = took if phase["items"] else ["", ""]
        rows.append([name, *took, *felt, str(phase["calls"]), str(phase["errors"])])
    head = ["phase", "minutes", "trunks/s", *(f"{kind} p99 ms" for kind, _ in INTERACTIVE)]
    total = sum(phase["seconds"] for phase in phases.values() if phase["items"])
    kinds = [
        [kind, f"{times:.1f}", f"≤ {FELT_MAX:.1f}: {'met' if times <= FELT_MAX else 'missed'}"]
        for kind, times in worst.items()
    ]
    return "\n\n".join(
        [
            report.table([*head, "client's calls", "errors"], rows),
            report.table(["the client's p99, worst phase / quiet", "times", "target"], kinds),
            f"The whole sync, {callers} callers: {total / 60:.2f} minutes.",
        ]
    )
