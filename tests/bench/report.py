"""Figures as tables: medians over the rounds, with the smallest and the largest."""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.cells import Measured, Slice

Of = Callable[[Slice], float]


@dataclass(frozen=True)
class Spread:
    """A median with its least and its most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of some values."""
        return cls(median(values), min(values), max(values))

    def text(self, form: str = ".2f", scale: float = 1.0) -> str:
        """As a table has it: the median, then least and most."""
        low, mid, high = (format(v * scale, form) for v in (self.least, self.median, self.most))
        return f"{mid} ({low} to {high})"


def rate(s: Slice) -> float:
    """Calls per second."""
    return s.rate


def p50(s: Slice) -> float:
    """The median latency."""
    return s.latency(0.5)


def p99(s: Slice) -> float:
    """The latency that 99 of 100 calls do not exceed."""
    return s.latency(0.99)


def server_cpu(s: Slice) -> float:
    """The server's CPU seconds per call."""
    return s.cpu["server"]


@dataclass(frozen=True)
class Ratio:
    """One cell against another, round by round.

    Attributes:
        name: what is compared.
        above: the cell whose figure is divided.
        below: the cell by whose figure.
        callers: of both.
        of: the figure.
        target: the least, or the most where `at_most`.
    """

    name: str
    above: str
    below: str
    callers: int
    of: Of
    target: float | None = None
    at_most: bool = False

    def spread(self, measured: Measured) -> Spread:
        """Its values over the rounds."""
        pairs = zip(
            measured[self.above, self.callers], measured[self.below, self.callers], strict=True
        )
        return Spread.of([self.of(a) / self.of(b) for a, b in pairs])

    def met(self, spread: Spread) -> str:
        """The target, and whether the median meets it."""
        if self.target is None:
            return ""
        sign = "≤" if self.at_most else "≥"
        good = spread.median <= self.target if self.at_most else spread.median >= self.target
        return f"{sign} {self.target:.2f}: {'met' if good else 'missed'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cells(measured: Measured) -> str:
    """What was measured, a line per cell and number of callers."""
    rows = []
    for (name, callers), slices in sorted(measured.items(), key=lambda item: item[0][1]):
        cpu = [
            f"{median(s.cpu[who] for s in slices) * 1e6:.0f}" if who in slices[0].cpu else ""
            for who in ("server", "postgres", "load")
        ]
        rows.append(
            [
                name,
                str(callers),
                Spread.of([s.rate for s in slices]).text(".0f"),
                Spread.of([p50(s) for s in slices]).text(".2f", 1e3),
                Spread.of([p99(s) for s in slices]).text(".1f", 1e3),
                *cpu,
                str(sum(s.errors for s in slices)),
            ]
        )
    head = ["call", "callers", "calls/s", "p50 ms", "p99 ms"]
    head += ["server CPU µs/call", "PostgreSQL CPU µs/call", "load CPU µs/call", "errors"]
    return table(head, rows)


def ratios(wanted: Sequence[Ratio], measured: Measured) -> str:
    """Ratios with their targets."""
    rows = []
    for ratio in wanted:
        spread = ratio.spread(measured)
        rows.append([ratio.name, str(ratio.callers), spread.text(), ratio.met(spread)])
    return table(["ratio", "callers", "median (least to most)", "target"], rows)


def cells_as_json(measured: Measured) -> list[dict[str, Any]]:
    """The same with every round."""
    return [
        {
            "call": name,
            "callers": callers,
            "rounds": [
                {
                    "calls": s.calls,
                    "errors": s.errors,
                    "rate": s.rate,
                    "p50": p50(s),
                    "p99": p99(s),
                    "cpu_per_call": s.cpu,
                }
                for s in slices
            ],
        }
        for (name, callers), slices in measured.items()
    ]


def ratios_as_json(wanted: Sequence[Ratio], measured: Measured) -> list[dict[str, Any]]:
    """The same as data."""
    found = []
    for ratio in wanted:
        spread = ratio.spread(measured)
        found.append(
            {
                "ratio": ratio.name,
                "callers": ratio.callers,
                "median": spread.median,
                "min": spread.least,
                "max": spread.most,
                "target": ratio.target,
                "at_most": ratio.at_most,
            }
        )
    return found


def as_json(wanted: Sequence[Ratio], measured: Measured) -> dict[str, Any]:
    """Cells and ratios as data."""
    return {"cells": cells_as_json(measured), "ratios": ratios_as_json(wanted, measured)}


def machine(postgres: str) -> dict[str, str]:
    """What the run ran on."""
    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    names = ("grpcio", "protobuf", "asyncpg", "uvloop", "trunkline")
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "CPU": f"{cpu[0] if cpu else platform.machine()}, {os.cpu_count()} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "PostgreSQL": f"{postgres}, fsync on, same machine",
        "versions": ", ".join(f"{name} {version(name)}" for name in names),
        "load at the start": load,
    }
