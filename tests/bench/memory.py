"""The section about memory: a server's at rest, under load, with many watchers, and over time."""

import contextlib
from pathlib import Path
from statistics import linear_regression
from tempfile import TemporaryDirectory
from typing import Any

from tests.bench import filling, parts, report
from tests.bench.people import ACCOUNTS, Say, crowd
from tests.bench.population import Population
from tests.bench.spread import ANY, Kind

CALLERS = 64
LOAD_SECONDS = 5.0
PARTS_OF_GROWTH = 4
GROWTH_SECONDS_MAX = 1500
BAD = ("bad_update", "bad_mask", "bad_get")
MIX = ("update", "get", "update", "list", "get", *BAD[:1], "update", "get", "list", *BAD[1:])
"""The kinds of call, in turn."""


async def memory(calls: int, say: Say) -> tuple[str, Any]:
    """Measure two servers: one by what it does, one over many calls of several kinds.

    Args:
        calls: how many the second one is to answer.
        say: tells of progress.
    """
    people = Population(ACCOUNTS * 10)
    async with contextlib.AsyncExitStack() as stack:
        logs = Path(stack.enter_context(TemporaryDirectory(prefix="trunkline-bench-logs-")))
        postgres = await stack.enter_async_context(parts.postgres())
        tokens = await filling.filled(postgres.url, people)
        load = await stack.enter_async_context(parts.load(logs / "load.log", "tests.bench.spread"))
        await load.ask({"know": "all", "trunks": people.trunks, "tokens": tokens})
        found: dict[str, float] = {}
        say("states")
        async with parts.service(postgres.url, logs / "server-1.log") as server:
            found["idle, just started"] = parts.resident(server.pid)
            job = _job(postgres, server, "update", "get", "list") | {"seconds": LOAD_SECONDS}
            await load.ask(job)
            found[f"after {CALLERS} callers, {LOAD_SECONDS:.0f} s"] = parts.resident(server.pid)
            async with crowd(logs) as watchers:
                await watchers.open(server.address, tokens, everything=False)
                found[f"{len(tokens):,} watchers in as many accounts"] = parts.resident(server.pid)
                await load.ask(job)
                found["… with load beside them"] = parts.resident(server.pid)
                await watchers.close()
        say(f"growth over {calls:,} calls")
        async with parts.service(postgres.url, logs / "server-2.log") as server:
            growth, refused = [(0, parts.resident(server.pid))], 0
            for part in range(1, PARTS_OF_GROWTH + 1):
                job = _job(postgres, server, *MIX) | {"count": calls // PARTS_OF_GROWTH}
                refused += (await load.ask(job | {"seconds": GROWTH_SECONDS_MAX}))["errors"]
                growth.append((part * calls // PARTS_OF_GROWTH, parts.resident(server.pid)))
    slope = linear_regression(*zip(*growth[1:], strict=True)).slope
    return _text(found, growth, slope, refused), {
        "states": found,
        "growth": growth,
        "bytes_per_call": slope * 2**20,
        "refused": refused,
    }


def _job(postgres: parts.Postgres, server: parts.Part, *kinds: str) -> dict[str, Any]:
    return {
        "kinds": [Kind(kind, ANY).as_json() for kind in kinds],
        "world": "all",
        "address": server.address,
        "callers": CALLERS,
        "pids": {"server": server.pid},
        "postgres": postgres.pid,
    }


def _text(
    found: dict[str, float], growth: list[tuple[int, float]], slope: float, refused: int
) -> str:
    states = [[name, f"{mb:.0f}"] for name, mb in found.items()]
    after = [[f"{calls:,}", f"{mb:.1f}"] for calls, mb in growth]
    return "\n\n".join(
        [
            report.table(["server", "MB resident"], states),
            report.table(["calls answered", "MB resident"], after),
            f"Slope after the first {growth[1][0]:,} calls: {slope * 2**20:+.1f} bytes per call."
            f" Of the calls {refused:,} were refused, as they should be.",
        ]
    )
