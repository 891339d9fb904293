"""The programs of the client guide, set up and run as it says, and a proxy that fails."""

import asyncio
import contextlib
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from tests.e2e.processes import SECONDS_MAX, Done
from tests.support import SEEN, TOKEN
from trunkline import statuses
from trunkline.errors import TrunklineError

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "deploy/clients.md").read_text("utf-8")
TOOLS = Path(sys.prefix) / "tools"
CLONE = TOOLS / "clients"
BUILD_SECONDS_MAX = 500
ADDRESS = "127.0.0.1:50051"
SERVICE = "siptrunk.v1.SipTrunkService"


def blocks(language: str) -> list[str]:
    """The guide's blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


def lines(language: str) -> tuple[list[str], list[str]]:
    """The commands that set a language's programs up, and those that run them."""
    (block,) = [b for b in blocks("sh") if f"cd deploy/clients/{language}\n" in b]
    commands = block.replace("\\\n", "").splitlines()
    running = [c for c in commands if ADDRESS in c]
    return [c for c in commands if c not in running], running


def environment(**variables: str) -> dict[str, str]:
    """What a program sees: the guide's tools, and the token."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith("TRUNKLINE_")}
    path = os.pathsep.join([str(CLONE / "bin"), os.environ["PATH"]])
    more = {"PATH": path, "GOBIN": str(CLONE / "bin"), "TRUNKLINE_TOKEN": TOKEN}
    return ours | more | variables


async def shell(script: str, **variables: str) -> Done:
    """Run a script from the root of the clone to its end."""
    async with started(script, **variables) as process:
        async with asyncio.timeout(BUILD_SECONDS_MAX):
            out, err = await process.communicate()
    SEEN.add(out)
    SEEN.add(err)
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


@contextlib.asynccontextmanager
async def started(script: str, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A script that runs while the block does."""
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        script,
        cwd=CLONE,
        env=environment(**variables),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def clone() -> None:
    """Make what the guide's commands see of a clone anew, but for what was fetched."""
    (CLONE / "bin").mkdir(parents=True, exist_ok=True)
    for path in (CLONE / "deploy/clients").glob("*/*"):
        if path.name != "node_modules":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(ROOT / "deploy/clients", CLONE / "deploy/clients", dirs_exist_ok=True)
    for name in ("protos", ".venv"):
        (CLONE / name).unlink(missing_ok=True)
        (CLONE / name).symlink_to(ROOT / name)
    (CLONE / "bin/protoc").write_text(f'#!/bin/sh\nexec {sys.executable} -m grpc_tools.protoc "$@"')
    (CLONE / "bin/protoc").chmod(0o755)


async def set_up() -> dict[str, str]:
    """Do what the guide says for each language; why one can't be had here, by language."""
    clone()
    absent = {}
    for language, tool, fetch in (
        ("python", sys.executable, "true"),
        ("node", "npm", "npm install --no-audit --no-fund"),
        ("go", "go", "go mod download"),
    ):
        if not shutil.which(tool):
            absent[language] = f"there is no {tool}"
            continue
        done = await shell(f"cd deploy/clients/{language} && {fetch}")
        if done.code:
            absent[language] = f"what it needs can't be fetched: {done.err.strip()[-200:]}"
            continue
        script = "\n".join(["set -e", *lines(language)[0]])
        done = await shell(script)
        assert done.code == 0, done.out + done.err
    return absent


@dataclass(frozen=True)
class Programs:
    """The two programs of a language, as command lines without what follows the address."""

    change: str
    watch: str

    async def changed(self, address: str, *arguments: object, **variables: str) -> Done:
        """Run the one that changes a trunk."""
        given = " ".join(f"'{a}'" for a in arguments)
        return await shell(f"{self.change} {address} {given}", **variables)

    @contextlib.asynccontextmanager
    async def watching(self, address: str) -> AsyncIterator["Watching"]:
        """The one that watches, while the block runs."""
        async with started(f"{self.watch} {address}") as process:
            yield Watching(process)


def programs_of(language: str) -> Programs:
    """The programs of a language."""
    found = [line.partition(ADDRESS)[0].strip() for line in lines(language)[1]]
    change, watch = (f"cd deploy/clients/{language} && exec {line}" for line in found)
    return Programs(change, watch)


@dataclass
class Watching:
    """A program that watches, and the lines that it has printed."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)

    async def until(self, text: str) -> str:
        """Read on until a line has a text; the line."""
        assert self.process.stdout is not None
        async with asyncio.timeout(SECONDS_MAX):
            while True:
                line = (await self.process.stdout.readline()).decode()
                assert line, (self.lines, self.process.returncode)
                SEEN.add(line.encode())
                self.lines.append(line.strip())
                if text in line:
                    return line.strip()

    def revisions(self) -> list[str]:
        """The kind and revision of each event."""
        events = [line.split() for line in self.lines if " revision=" in line]
        return [f"{kind} {revision.partition('=')[2]}" for kind, _, revision, _ in events]


@dataclass(frozen=True)
class Fault:
    """What a relay answers of its own accord, and whether it has passed the call on before."""

    code: grpc.StatusCode
    error: TrunklineError | None = None
    passes_on: bool = False


class Relay(grpc.GenericRpcHandler):
    """A proxy in the way, which passes bytes on and fails as it is told to."""

    def __init__(self, upstream: grpc.aio.Channel, faults: list[Fault]) -> None:
        self.seen: list[bytes] = []
        self.attempts: list[str] = []
        self._upstream = upstream
        self._faults = faults

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if details.method.endswith("/WatchSipTrunks"):
            return grpc.unary_stream_rpc_method_handler(self._watched)

        async def answer(request: bytes, context: Any) -> bytes:
            sent = dict(context.invocation_metadata())
            changes = details.method.endswith("/UpdateSipTrunk")
            fault = self._faults.pop(0) if changes and self._faults else None
            if changes:
                self.seen.append(request)
                self.attempts.append(str(sent.get("grpc-previous-rpc-attempts", "0")))
            if fault is None or fault.passes_on:
                response = await self._passed_on(details.method, request, sent, context)
            if fault is not None:
                status = statuses.status(fault.error) if fault.error else None
                trailers = ((statuses.DETAILS_KEY, status.SerializeToString()),) if status else ()
                text = status.message if status else "the answer is lost"
                await context.abort(fault.code, text, trailers)
            return response

        return grpc.unary_unary_rpc_method_handler(answer)

    async def _watched(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        if self._faults:
            await context.abort(self._faults.pop(0).code, "the stream is cut")
        name = f"/{SERVICE}/WatchSipTrunks"
        token = dict(context.invocation_metadata())["authorization"]
        method: Any = self._upstream.unary_stream(name)
        async for response in method(request, metadata=(("authorization", token),)):
            yield response

    async def _passed_on(self, name: str, request: bytes, sent: Any, context: Any) -> bytes:
        method: Any = self._upstream.unary_unary(name)
        metadata = (("authorization", sent["authorization"]),)
        try:
            response: bytes = await method(request, metadata=metadata, timeout=SECONDS_MAX)
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details(), tuple(error.trailing_metadata()))
        return response


@contextlib.asynccontextmanager
async def relayed(address: str, *faults: Fault) -> AsyncIterator[tuple[Relay, str]]:
    """A relay before a server, and its address."""
    async with grpc.aio.insecure_channel(address) as upstream:
        relay = Relay(upstream, list(faults))
        server = grpc.aio.server(handlers=[relay])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield relay, f"127.0.0.1:{port}"
        finally:
            await server.stop(None)
