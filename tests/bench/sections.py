"""The sections about single calls: floors and calls, and what history and idempotency cost."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from tests.bench import cells, parts, report, stages, variant
from tests.bench.cells import Cell
from tests.bench.report import Ratio, p50, p99, rate, server_cpu
from tests.bench.setting import Setting, floored

Say = Callable[[str], None]
CALLERS = (1, 16, 64)
MOST = CALLERS[-1]
COUNTED_SECONDS = 1.0
STATISTICS_SECONDS = 1.1
"""How long a connection keeps its statistics to itself, and a little more."""
IDLE_STATISTICS_SECONDS = 11
"""How long one that is idle does."""
COUNTED = (
    "update_fixed", "update_random", "update_request_id", "patch", "create", "get", "list",
)  # fmt: skip
_UPDATE, _RANDOM, _RETRIED = "UpdateSipTrunk", "UpdateSipTrunk, random masks", "… with request_id"
_APART = "PATCH, the gateway apart"
_PREPARED = "floor: prepared answer"
_BARE, _BARE_GET = "floor: UPDATE … RETURNING", "floor: SELECT"

RATIOS = [
    Ratio("UpdateSipTrunk / bare UPDATE, calls/s", _UPDATE, _BARE, MOST, rate, 0.90),
    Ratio("… server CPU per call", _UPDATE, _BARE, MOST, server_cpu, 1.15, at_most=True),
    Ratio("… p99", _UPDATE, _BARE, MOST, p99, 1.20, at_most=True),
    Ratio("… p50, one caller", _UPDATE, _BARE, 1, p50, 1.25, at_most=True),
    Ratio("random masks / bare UPDATE, calls/s", _RANDOM, _BARE, MOST, rate),
    Ratio("random masks / fixed mask, calls/s", _RANDOM, _UPDATE, MOST, rate, 0.90),
    Ratio("with request_id / without, calls/s", _RETRIED, _UPDATE, MOST, rate),
    Ratio("GetSipTrunk / bare SELECT, calls/s", "GetSipTrunk", _BARE_GET, MOST, rate, 0.85),
    Ratio("PATCH over HTTP / UpdateSipTrunk, calls/s", "PATCH", _UPDATE, MOST, rate, 0.60),
    Ratio("… through `trunkline gateway`, calls/s", _APART, _UPDATE, MOST, rate, 0.60),
]


async def calls(
    setting: Setting, seconds: float, rounds: int, say: Say, *, counted: bool
) -> tuple[str, Any]:
    """Every kind of call beside its floor; where `counted`, transactions per call as well."""
    server = setting.server
    gateway = parts.gateway(server, setting.directory / "gateway.log")
    async with floored(setting) as floor, gateway:
        wanted = [
            Cell(_PREPARED, "prepared", floor, "floor"),
            Cell("floor: pgbench", "pgbench", None),
            Cell(_BARE, "floor_update", floor, "floor"),
            Cell(_UPDATE, "update_fixed", server),
            Cell(_RANDOM, "update_random", server),
            Cell(_RETRIED, "update_request_id", server),
            Cell("PATCH", "patch", server),
            Cell(_APART, "patch", gateway),
            Cell("CreateSipTrunk", "create", server, made=True),
            Cell(_BARE_GET, "floor_get", floor, "floor"),
            Cell("GetSipTrunk", "get", server),
            Cell("ListSipTrunks, page of 50", "list", server),
        ]
        before = await _revisions(setting)
        measured = await cells.measure(setting, wanted, CALLERS, seconds, rounds, say)
        changed = await _revisions(setting) - before
    trips = await _transactions(setting) if counted else []
    text = "\n\n".join(
        [
            report.cells(measured),
            report.ratios(RATIOS, measured),
            *([report.table(["call", "transactions per call"], trips)] if trips else []),
            f"Updates sent: {setting.updates}; that changed something: {changed}.",
        ]
    )
    return text, report.as_json(RATIOS, measured) | {"transactions_per_call": dict(trips)}


async def cost(setting: Setting, seconds: float, rounds: int, say: Say) -> tuple[str, Any]:
    """The update with parts of its statement left out."""
    async with contextlib.AsyncExitStack() as stack:
        wanted = [
            Cell("full", "update_fixed", setting.server),
            Cell("full, with request_id", "update_request_id", setting.server),
        ]
        for name in (variant.NO_HISTORY, variant.NO_IDEMPOTENCY, variant.NEITHER):
            part = await stack.enter_async_context(_altered(setting, "variant", name))
            wanted.append(Cell(name, "update_fixed", part))
        measured = await cells.measure(setting, wanted, (1, MOST), seconds, rounds, say)
    wanted_ratios = [
        Ratio("full / neither, calls/s", "full", variant.NEITHER, MOST, rate, 0.85),
        Ratio(
            "full with request_id / neither, calls/s",
            "full, with request_id", variant.NEITHER, MOST, rate, 0.85,
        ),
        Ratio("full / no-history, calls/s", "full", variant.NO_HISTORY, MOST, rate),
        Ratio("full / no-idempotency, calls/s", "full", variant.NO_IDEMPOTENCY, MOST, rate),
        Ratio("full / neither, p50, one caller", "full", variant.NEITHER, 1, p50),
    ]  # fmt: skip
    text = f"{report.cells(measured)}\n\n{report.ratios(wanted_ratios, measured)}"
    return text, report.as_json(wanted_ratios, measured)


async def path(setting: Setting, seconds: float, rounds: int, say: Say) -> tuple[str, Any]:
    """The update stage by stage, beside the floor's."""
    async with contextlib.AsyncExitStack() as stack:
        floor = await stack.enter_async_context(floored(setting))
        wanted = [
            Cell(_PREPARED, "prepared", floor, "floor"),
            Cell(_BARE, "floor_update", floor, "floor"),
        ]
        for name in stages.STAGES:
            part = await stack.enter_async_context(_altered(setting, "stages", name))
            wanted += [
                Cell(f"to the end of: {name}", "update_fixed", part),
                Cell(f"to the end of: {name}, random masks", "update_random", part),
            ]
        wanted += [
            Cell(_UPDATE, "update_fixed", setting.server),
            Cell(_RANDOM, "update_random", setting.server),
        ]
        measured = await cells.measure(setting, wanted, (MOST,), seconds, rounds, say)
    return report.cells(measured), report.as_json([], measured)


def _altered(setting: Setting, module: str, name: str) -> parts.Part:
    """The service as a module of the benchmark alters it."""
    log = setting.directory / f"{name}.log"
    module = f"tests.bench.{module}"
    return parts.service(setting.postgres.url, log, module=module, arguments=(name,))


async def _revisions(setting: Setting) -> int:
    return int(
        await setting.sql("SELECT sum(revision)::bigint FROM trunks WHERE account_id = 'bench'")
    )


async def _transactions(setting: Setting) -> list[list[str]]:
    """Transactions that the database committed per call, by kind of call.

    Counted on a server with one connection, which tells of its transactions with the first one
    after STATISTICS_SECONDS; so one call is made before each look. What the servers do beside the
    calls, a few per second, is in it.
    """
    log, rows = setting.directory / "counted.log", []
    async with parts.service(setting.postgres.url, log, http=True, pool_size=1) as server:
        await asyncio.sleep(IDLE_STATISTICS_SECONDS)
        for kind in COUNTED:
            cell = Cell(kind, kind, server, made=kind == "create")
            job = cells.job(setting, cell, 1, COUNTED_SECONDS)
            before = await _committed(setting, job)
            result = await setting.load.ask(job)
            committed = await _committed(setting, job) - before
            rows.append([kind, f"{committed / (len(result['latencies']) + 1):.2f}"])
    return rows


async def _committed(setting: Setting, job: dict[str, Any]) -> int:
    await asyncio.sleep(STATISTICS_SECONDS)
    await setting.load.ask(job | {"count": 1})
    statement = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    return int(await setting.sql(statement))
