"""The command `trunkline` in processes of its own: clean environment, bounded, all output kept."""

import asyncio
import contextlib
import itertools
import json
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support import SEEN, TOKEN
from trunkline.embedded import DATABASE, USER

PROGRAM = Path(sys.executable).parent / "trunkline"
SECONDS_MAX = 90
"""The bound on anything that a process is waited for."""
READY = b"trunkline ready grpc="
PROBES_MAX = 100
PORTS = range(20_000, 32_000)
"""Below those that Linux gives to clients (`ip_local_port_range`)."""
_runs = itertools.count(1)


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """What standard error says to people: its lines but those of the log."""
        return [line for line in self.err.splitlines() if not line.startswith("{")]


def environment(**variables: str) -> dict[str, str]:
    """This environment without settings, and the settings given (by name, in lower case)."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("TRUNKLINE_")}
    return ours | {f"TRUNKLINE_{k.upper()}": v for k, v in variables.items()}


async def command(*arguments: str | Path, stdin: str = "", **variables: str) -> Done:
    """Run `trunkline` to its end."""
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        *arguments,
        env=environment(**variables),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(SECONDS_MAX):
            out, err = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    SEEN.add(out)
    SEEN.add(err)
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


def free_address() -> str:
    """An address that nothing listens on now, and that no client of anybody gets as its own."""
    for port in random.SystemRandom().sample(PORTS, PROBES_MAX):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return f"127.0.0.1:{port}"
    raise AssertionError(f"none of {PROBES_MAX} ports is free")


def events(log: str, event: str = "", **fields: Any) -> list[dict[str, Any]]:
    """The lines of a log that tell of an event with such fields; one that is not whole is none."""
    whole = log.rpartition("\n")[0]
    lines = [json.loads(line) for line in whole.splitlines() if line.startswith("{")]
    return [
        line for line in lines if event in ("", line["event"]) and fields.items() <= line.items()
    ]


class Server:
    """`trunkline serve` for the length of a block: started at its top, gone at its end.

    Args:
        directory: takes its output and, unless there is another database, its data (`data/`).
        arguments: further arguments of `serve`.
        variables: settings; those of a test unless given.
    """

    def __init__(self, directory: Path, *arguments: str, **variables: str) -> None:
        defaults = {
            "grpc_address": "127.0.0.1:0",
            "http_address": "",
            "data_dir": str(directory / "data"),
            "bootstrap_token": TOKEN,
            "log_level": "debug",
            "drain_seconds": "20",
        }
        self.variables = defaults | variables
        self.data = Path(self.variables["data_dir"])
        self._arguments = arguments
        self._errors = directory / f"serve-{next(_runs)}.err"
        self._out: list[bytes] = []
        self._ready = asyncio.Event()
        self._others: set[int] = set()
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._others = set(postgres_pids(self.data))
        with self._errors.open("wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                PROGRAM,
                "serve",
                *self._arguments,
                env=environment(**self.variables),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.kill()
        SEEN.add(self.out.encode())
        SEEN.add(self.err.encode())
        found = set(postgres_pids(self.data))
        if found & self._others:
            return  # it is another server's, which goes on
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return b"".join(self._out).decode()

    @property
    def err(self) -> str:
        """What it has logged so far."""
        return self._errors.read_text()

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, None while it runs."""
        assert self._process is not None
        return self._process.returncode

    @property
    def is_ready(self) -> bool:
        """Whether it has said so."""
        return self._ready.is_set()

    async def ready(self) -> str:
        """Wait until it says that it is ready; its address."""
        ended = asyncio.create_task(self.ended())
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait((ended, ready), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            ready.cancel()
        assert self._ready.is_set(), f"exit code {self.returncode}: {self.err}"
        return self.out.rpartition(READY.decode())[2].split()[0]

    async def logged(self, text: str, count: int = 1) -> str:
        """Wait until so many lines of the log have a text; the last of these."""
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                found = [line for line in self.err.splitlines() if text in line]
                if len(found) >= count:
                    return found[count - 1]
                assert self.returncode is None, self.err
                await asyncio.sleep(0.05)

    async def ended(self) -> Done:
        """Wait for its end."""
        assert self._process is not None
        assert self._reader is not None
        async with asyncio.timeout(SECONDS_MAX):
            code = await self._process.wait()
            await asyncio.shield(self._reader)
        return Done(code, self.out, self.err)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    async def stop(self) -> Done:
        """SIGTERM, and wait for its end."""
        self.signal(signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> None:
        """SIGKILL, unless it has ended; PostgreSQL goes on without it."""
        assert self._process is not None
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self.ended()

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self._out.append(line)
            if line.startswith(READY):
                self._ready.set()


async def not_started(server: Server) -> Done:
    """What became of a server that must end by itself, before it is ready, and say why."""
    async with server:
        done = await server.ended()
    assert not server.is_ready
    assert "Traceback" not in done.err
    # People's lines and log lines alone: no library speaks for itself.
    assert [line for line in done.complaints if not line.startswith("trunkline: ")] == []
    return done


def postgres_pids(data: Path) -> list[int]:
    """The processes of a data directory's PostgreSQL: each has the cluster as working directory."""
    return list(_pids_in((data / "pg").resolve()))


def _pids_in(directory: Path) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink() == directory:
                    yield int(entry.name)


def database_url(data: Path) -> str:
    """The URL of the database in a data directory whose service runs."""
    sockets = quote(str((data / "run").absolute()), safe="")
    return f"postgresql://{USER}@/{DATABASE}?host={sockets}"


@contextlib.asynccontextmanager
async def health(address: str) -> AsyncIterator[Any]:
    """A stub of a server's health service."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def status(address: str, service: str = "") -> str:
    """What a server says of its health, as the name of the enum's value."""
    async with health(address) as stub:
        request = health_pb2.HealthCheckRequest(service=service)
        response = await stub.Check(request, wait_for_ready=True, timeout=SECONDS_MAX)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
