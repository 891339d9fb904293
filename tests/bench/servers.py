"""One server beside two on the same database: what another one brings, and what it costs."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from tests.bench import cells, parts, report
from tests.bench.cells import Cell, Measured, Slice
from tests.bench.report import Ratio, p50, p99, rate, server_cpu
from tests.bench.setting import WARM_SECONDS, Setting

LOADS = 2
CALLERS = 64
KINDS = {"UpdateSipTrunk": "update_fixed", "GetSipTrunk": "get"}
_ONE, _TWO = "{}, one server", "{}, two servers"


async def servers(
    setting: Setting, seconds: float, rounds: int, say: Callable[[str], None]
) -> tuple[str, Any]:
    """The same callers on one server, and half of them on each of two."""
    async with contextlib.AsyncExitStack() as stack:
        other = await stack.enter_async_context(
            parts.service(setting.postgres.url, setting.directory / "other.log")
        )
        loads = [setting.load]
        loads.append(
            await stack.enter_async_context(parts.load(setting.directory / "other-load.log"))
        )
        for place, load in enumerate(loads):  # no trunk is two generators'
            await load.ask({"know": "half", "ids": setting.ids[place::LOADS]})
        layouts = {_ONE: [setting.server, setting.server], _TWO: [setting.server, other]}
        found: Measured = {}
        for number in range(-1, rounds):
            say(f"round {number + 1} of {rounds}")
            for name, kind in KINDS.items():
                for layout in list(layouts)[:: 1 if number % 2 else -1]:
                    lasts = seconds if number >= 0 else WARM_SECONDS
                    one = await _slice(setting, kind, loads, layouts[layout], lasts)
                    if number >= 0:
                        found.setdefault((layout.format(name), CALLERS), []).append(one)
    wanted = [
        Ratio(
            f"{name}, two servers / one: {what}", _TWO.format(name), _ONE.format(name), CALLERS, of
        )
        for name in KINDS
        for what, of in (
            ("calls/s", rate),
            ("p50", p50),
            ("p99", p99),
            ("servers' CPU per call", server_cpu),
            ("PostgreSQL's CPU per call", lambda s: s.cpu["postgres"]),
        )
    ]
    text = f"{report.cells(found)}\n\n{report.ratios(wanted, found)}"
    return text, report.as_json(wanted, found)


async def _slice(
    setting: Setting,
    kind: str,
    loads: Sequence[parts.Part],
    servers: Sequence[parts.Part],
    seconds: float,
) -> Slice:
    jobs = [
        cells.job(setting, Cell("", kind, server, "half"), CALLERS // LOADS, seconds)
        for server in servers
    ]
    told = await asyncio.gather(*(load.ask(job) for load, job in zip(loads, jobs, strict=True)))
    if kind.startswith("update"):
        setting.updates += sum(len(one["latencies"]) for one in told)
    ordered = sorted(us / 1e6 for one in told for us in one["latencies"])
    count = max(1, len(ordered))
    # Each generator tells what its server used, and PostgreSQL, meanwhile.
    used = {server.pid: one["cpu"]["server"] for server, one in zip(servers, told, strict=True)}
    cpu = {
        "server": sum(used.values()) / count,
        "postgres": max(one["cpu"]["postgres"] for one in told) / count,
        "load": sum(one["cpu"]["load"] for one in told) / count,
    }
    calls_per_second = sum(len(one["latencies"]) / one["seconds"] for one in told)
    errors = sum(one["errors"] for one in told)
    return Slice(len(ordered), errors, calls_per_second, ordered, cpu)
