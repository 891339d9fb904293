"""A cell: one kind of call on one server by so many callers; and how cells are measured in turn.

In each round every cell gets its few seconds, next to those that it is compared with, in the
opposite order in every other round. So what the machine does meanwhile meets both sides of a ratio.
"""

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import floor, parts
from tests.bench.setting import TRUNKS, WARM_SECONDS, Setting
from trunkline.embedded import DATABASE, USER, package_binaries

REAPED_SECONDS = 0.2
"""Within which PostgreSQL has taken note of a connection's end, and of the CPU that it used."""


@dataclass(frozen=True)
class Cell:
    """What is measured.

    Attributes:
        name: as the table has it.
        kind: one of `calls.KINDS`, or `pgbench`.
        part: the server; None for pgbench.
        trunks: the name under which the load generator knows the trunks.
        made: whether it acts in the account in which trunks are created.
    """

    name: str
    kind: str
    part: parts.Part | None
    trunks: str = "bench"
    made: bool = False


@dataclass(frozen=True)
class Slice:
    """One cell in one round. Latencies in seconds, sorted; CPU in seconds per call."""

    calls: int
    errors: int
    rate: float
    latencies: Sequence[float]
    cpu: dict[str, float]

    def latency(self, share: float) -> float:
        """The latency that so many of the calls do not exceed."""
        return percentile(self.latencies, share)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value of a sorted list that so many of its values do not exceed; NaN of none."""
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


Key = tuple[str, int]
Measured = dict[Key, list[Slice]]


async def measure(
    setting: Setting,
    cells: Sequence[Cell],
    callers: Sequence[int],
    seconds: float,
    rounds: int,
    say: Callable[[str], None],
) -> Measured:
    """Measure cells, so many callers each, in turn; by name and number of callers."""
    found: Measured = {}
    for cell in cells:
        if cell.part is not None:
            await _slice(setting, cell, 16, WARM_SECONDS)
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for count in callers:
            for cell in cells if number % 2 == 0 else reversed(cells):
                measured = await _slice(setting, cell, count, seconds)
                found.setdefault((cell.name, count), []).append(measured)
    return found


async def _slice(setting: Setting, cell: Cell, callers: int, seconds: float) -> Slice:
    if cell.part is None:
        return await _pgbench(setting, callers, seconds)
    found = slice_of(await setting.load.ask(job(setting, cell, callers, seconds)))
    if cell.kind.startswith("update") or cell.kind == "patch":
        setting.updates += found.calls
    return found


def slice_of(result: dict[str, Any]) -> Slice:
    """What a load generator has measured."""
    ordered = sorted(us / 1e6 for us in result["latencies"])
    count = max(1, len(ordered))
    cpu = {name: used / count for name, used in result["cpu"].items()}
    return Slice(len(ordered), result["errors"], len(ordered) / result["seconds"], ordered, cpu)


def job(setting: Setting, cell: Cell, callers: int, seconds: float) -> dict[str, Any]:
    """A cell as the load generator is told of it."""
    assert cell.part is not None
    http = cell.kind == "patch"
    return {
        "kind": cell.kind,
        "address": cell.part.http_address if http else cell.part.address,
        "token": setting.made_token if cell.made else setting.token,
        "trunks": cell.trunks,
        "callers": callers,
        "seconds": seconds,
        "pids": {"server": cell.part.pid},
        "postgres": setting.postgres.pid,
    }


async def _pgbench(setting: Setting, callers: int, seconds: float) -> Slice:
    """The floor's statement from pgbench, over as many connections as a pool has."""
    clients = min(callers, floor.POOL_SIZE)
    with tempfile.TemporaryDirectory(prefix="trunkline-bench-pgbench-") as directory:
        script = Path(directory) / "update.sql"
        script.write_text(floor.PGBENCH.replace(";\n", ";").replace("\n ", " "))
        before = parts.cpu_of_family(setting.postgres.pid)
        process = await asyncio.create_subprocess_exec(
            package_binaries() / "pgbench", "-n", "-M", "prepared", "-c", str(clients), "-j", "1",
            "-T", str(max(1, round(seconds))), "-D", f"trunks={TRUNKS}", "-f", script,
            "-l", "--log-prefix", "log", "-h", setting.postgres.sockets, "-U", USER, DATABASE,
            cwd=directory,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await process.communicate()
        await asyncio.sleep(REAPED_SECONDS)
        used = parts.cpu_of_family(setting.postgres.pid) - before
        lines = _logged(Path(directory))
    ordered = sorted(int(line[2]) / 1e6 for line in lines)
    found = [line for line in output.decode().splitlines() if line.startswith("tps = ")]
    if process.returncode or not found:
        raise RuntimeError(f"pgbench failed: {output.decode()[-1000:]}")
    rate = float(found[0].split()[2])
    return Slice(len(ordered), 0, rate, ordered, {"postgres": used / max(1, len(ordered))})


def _logged(directory: Path) -> list[list[str]]:
    """Pgbench's own log: a line per transaction, the third word its microseconds."""
    return [line.split() for file in directory.glob("log.*") for line in file.open()]
