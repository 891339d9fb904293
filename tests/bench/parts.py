"""PostgreSQL, servers and load generators, each in a process of its own, and the CPU they use."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trunkline.embedded import Embedded

START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 30
JOB_SECONDS_MAX = 1800
LINE_BYTES_MAX = 64 << 20
_TICKS = os.sysconf("SC_CLK_TCK")
SECRET_KEYS = "k1:dGVzdC1vbmx5LWtleS1vZi0zMi1ieXRlcy1hYWFhYWE="


@dataclass(frozen=True)
class Postgres:
    """The PostgreSQL of the run."""

    url: str
    pid: int
    sockets: Path


@contextlib.asynccontextmanager
async def postgres() -> AsyncIterator[Postgres]:
    """The embedded PostgreSQL in a directory of its own, as `trunkline serve` runs it: fsync on."""
    with tempfile.TemporaryDirectory(prefix="trunkline-bench-") as directory:
        async with cluster(Path(directory)) as found:
            yield found


@contextlib.asynccontextmanager
async def cluster(data: Path) -> AsyncIterator[Postgres]:
    """The same in a directory that stays."""
    embedded = Embedded(data, None, "the benchmark")
    with embedded.locked():
        async with embedded.running():
            pid = int((data / "pg" / "postmaster.pid").read_text().split()[0])
            yield Postgres(embedded.url, pid, data / "run")


def cpu_of(pid: int, *, waited: bool = False) -> float:
    """The CPU seconds, user and system, of a process so far; with those of ended children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(f) for f in fields[11 : 15 if waited else 13]) / _TICKS


def cpu_of_family(pid: int) -> float:
    """The same of a process and its children, those that have ended too."""
    total = cpu_of(pid, waited=True)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in children:
        with contextlib.suppress(OSError):
            total += cpu_of(int(child))
    return total


def resident(pid: int) -> float:
    """The memory of a process that is in RAM, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (found,) = (line.split()[1] for line in lines if line.startswith("VmRSS:"))
    return int(found) / 1024


class Part:
    """A process that says when it is ready, for the length of a block.

    Args:
        module: what Python runs.
        arguments: its arguments.
        ready: how the line begins that says so.
        log: takes its standard error.
        variables: settings, by name in lower case.
    """

    def __init__(
        self, module: str, *arguments: str, ready: str, log: Path, **variables: str
    ) -> None:
        self._command = [sys.executable, "-m", module, *arguments]
        self._ready = ready
        self._log = log
        self._variables = {f"TRUNKLINE_{k.upper()}": v for k, v in variables.items()}
        self._process: asyncio.subprocess.Process | None = None
        self.address = ""
        self.http_address = ""

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    async def __aenter__(self) -> "Part":
        ours = {k: v for k, v in os.environ.items() if not k.startswith("TRUNKLINE_")}
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=ours | self._variables,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=LINE_BYTES_MAX,
            )
        try:
            async with asyncio.timeout(START_SECONDS_MAX):
                await self._wait()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _wait(self) -> None:
        while True:
            line = (await self._read()).decode()
            if line.startswith(self._ready):
                found = dict(w.split("=", 1) for w in line.split() if "=" in w)
                self.address = found.get("grpc", "")
                self.http_address = found.get("http", "")
                return

    async def _read(self) -> bytes:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._command[2]} has ended: {self._log.read_text()[-2000:]}")
        return line

    async def ask(self, job: dict[str, Any]) -> Any:
        """Send a job as a line of JSON; the line that answers it."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        await self._process.stdin.drain()
        async with asyncio.timeout(JOB_SECONDS_MAX):
            return json.loads(await self._read())

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL where that is not enough."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS_MAX):
                    await process.communicate()
                    return


def service(
    url: str,
    log: Path,
    *,
    module: str = "trunkline",
    arguments: Sequence[str] = (),
    http: bool = False,
    pool_size: int = 10,
    data_dir: Path | None = None,
) -> Part:
    """`trunkline serve` on a database, its access log in a file, with the gateway or without.

    With a `data_dir` and no URL, on the PostgreSQL in there, which it starts.
    """
    return Part(
        module,
        *arguments,
        "serve",
        ready="trunkline ready",
        log=log,
        grpc_address="127.0.0.1:0",
        http_address="127.0.0.1:0" if http else "",
        database_url=url,
        database_pool_size=str(pool_size),
        **({"data_dir": str(data_dir)} if data_dir else {}),
        secret_keys=SECRET_KEYS,
        drain_seconds="1",
    )


def gateway(upstream: Part, log: Path) -> Part:
    """`trunkline gateway` before a service, its access log in a file."""
    return Part(
        "trunkline",
        "gateway",
        "--upstream",
        upstream.address,
        ready="trunkline",
        log=log,
        http_address="127.0.0.1:0",
    )


def floor(url: str, log: Path) -> Part:
    """The floor's server."""
    return Part("tests.bench.floor", url, ready="floor ready", log=log)


def load(log: Path, name: str = "tests.bench.load") -> Part:
    """A load generator."""
    return Part(name, ready="load ready", log=log)
