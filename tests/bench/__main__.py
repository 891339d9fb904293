"""`python -m tests.bench`: measures the service beside its floors, and prints tables."""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from tests.bench import memory, people, report, scale, sections, servers
from tests.bench.setting import prepared
from trunkline.embedded import package_binaries

PACED_TIMES = 4
"""Sections that keep a pace make few calls per second: they measure so much longer, less often."""
SECTIONS = ("calls", "path", "cost", "watch", "mixed", "sync", "servers", "memory", "scale")
CALLS, QUICK_CALLS = 200_000, 4000
"""That the section memory makes."""
APART = {"memory", "scale"}
"""Those that have databases of their own, and no use for the one that the others share."""


def main() -> int:
    """Run the sections that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--seconds", type=float, default=2.0, help="per cell and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trunks", type=int, default=5000, help="that the section sync creates")
    parser.add_argument("--callers", type=int, default=people.SYNC_CALLERS, help="of that section")
    parser.add_argument("--large", type=int, default=1_000_000, help="trunks of the section scale")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where it keeps its databases")
    parser.add_argument("--plans", type=Path, metavar="FILE", help="where it writes query plans")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--quick", action="store_true", help="about four minutes, a first look")
    parser.add_argument("--full", action="store_true", help="sync 50,000 trunks")
    chosen = parser.parse_args()
    unknown = set(chosen.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    if chosen.quick:
        chosen.seconds, chosen.rounds, chosen.trunks, chosen.large = 0.5, 2, 500, 20_000
    if chosen.full:
        chosen.trunks = 50_000
    uvloop.run(_run(chosen))
    return 0


async def _run(chosen: argparse.Namespace) -> None:
    started = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {what}", file=sys.stderr, flush=True)

    found: dict[str, Any] = {}
    machine = report.machine(await _postgres_version())
    print(report.table(["machine", ""], [[k, v] for k, v in machine.items()]), flush=True)
    found["machine"] = machine
    wanted = chosen.sections or SECTIONS
    async with contextlib.AsyncExitStack() as stack:
        setting = None
        if set(wanted) - APART:
            setting = await stack.enter_async_context(prepared())
        for name in wanted:
            say(name)
            text, found[name] = await _section(name, setting, chosen, say)
            print(f"\n## {name}\n\n{text}", flush=True)
    say("done")
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


async def _postgres_version() -> str:
    process = await asyncio.create_subprocess_exec(
        package_binaries() / "postgres", "--version", stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    return output.decode().split()[2]


async def _section(name: str, setting: Any, chosen: argparse.Namespace, say: Any) -> Any:
    if name == "calls":
        counted = not chosen.quick
        return await sections.calls(setting, chosen.seconds, chosen.rounds, say, counted=counted)
    if name == "path":
        return await sections.path(setting, chosen.seconds, chosen.rounds, say)
    if name == "cost":
        return await sections.cost(setting, chosen.seconds, chosen.rounds, say)
    if name == "sync":
        return await people.sync(setting, chosen.trunks, chosen.callers, say)
    if name == "memory":
        return await memory.memory(QUICK_CALLS if chosen.quick else CALLS, say)
    if name == "scale":
        rounds = 1 if chosen.quick else chosen.rounds
        size = scale.Size(chosen.large, chosen.seconds, rounds)
        return await scale.scale(size, chosen.data, chosen.plans, say)
    if name == "servers":
        return await servers.servers(setting, chosen.seconds, chosen.rounds, say)
    section = people.watch if name == "watch" else people.mixed
    return await section(setting, chosen.seconds * PACED_TIMES, max(1, chosen.rounds // 2), say)


if __name__ == "__main__":
    sys.exit(main())
