"""`trunkline watch` and `trunkline history`, as a person reads them."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.e2e.processes import PROGRAM, SECONDS_MAX, Server, command, environment, free_address
from tests.support import (
    SEEN,
    TOKEN,
    IpIdentifier,
    PhoneNumber,
    connected,
    ip_based,
    password,
    update,
    userpass,
)

PAUSE_SECONDS = 0.005
# Tests that run in the background of a shell ignore SIGINT, which children inherit. It is not for
# a function between fork and exec: gRPC's threads in this process may hold what it needs.
_HEEDS_INTERRUPTS = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
    " os.execv(sys.argv[1], sys.argv[1:])"
)


class Output:
    """A `trunkline watch` that runs: its lines so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def line(self) -> str:
        """The next line."""
        assert self.process.stdout is not None
        async with asyncio.timeout(SECONDS_MAX):
            raw = await self.process.stdout.readline()
            if not raw:
                _, errors = await self.process.communicate()
                raise AssertionError(f"it has ended: {errors.decode()}")
        SEEN.add(raw)
        self.lines.append(raw.decode().rstrip("\n"))
        return self.lines[-1]

    async def interrupt(self) -> str:
        """Ctrl-C, pressed until it has ended; what it says on standard error."""
        async with asyncio.timeout(SECONDS_MAX):
            ending = asyncio.create_task(self.process.communicate())
            while not ending.done():
                # Not `send_signal`, which takes the status that asyncio waits for.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.process.pid, signal.SIGINT)
                await asyncio.sleep(PAUSE_SECONDS)
            _, errors = await ending
        assert self.process.returncode == 0
        return errors.decode()


@asynccontextmanager
async def watch(address: str, *arguments: str) -> AsyncIterator[Output]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _HEEDS_INTERRUPTS,
        PROGRAM,
        "watch",
        *arguments,
        env=environment(grpc_address=address, token=TOKEN),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Output(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def change(stub: Any) -> Any:
    """A trunk with a little history, which ends in its delete."""
    create = pb.CreateSipTrunkRequest(
        sip_trunk=userpass(name="Acme Mumbai"),
        phone_numbers=[PhoneNumber(phone_number=f"+155507{i:02}") for i in range(12)],
        request_id="make-acme",
    )
    trunk = await stub.CreateSipTrunk(create)
    new = update(
        trunk.id,
        "qualify_frequency",
        "description",
        "auth_password",
        qualify_frequency=30,
        description='Mumbai "Süd"',
        auth_password=password(),
    )
    await stub.UpdateSipTrunk(new)
    await stub.AddIpIdentifiers(
        pb.AddIpIdentifiersRequest(
            trunk_id=trunk.id, ip_identifiers=[IpIdentifier(ip_address="192.0.2.0/24")]
        )
    )
    await stub.UpdateSipTrunk(update(trunk.id, "description"))
    await stub.DeleteSipTrunk(pb.DeleteSipTrunkRequest(id=trunk.id, force=True))
    return trunk


async def test_watch_and_history_print_what_changed(tmp_path: Path) -> None:
    async with Server(tmp_path) as server:
        address = await server.ready()
        async with connected(address) as stub:
            kept = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=ip_based()))
            async with watch(address, "--initial") as output:
                assert f"initial  default  {kept.id}  revision=1" in await output.line()
                assert await output.line() == "-- that is the initial state; changes follow"
                trunk = await change(stub)
                for _ in range(5):
                    await output.line()
                errors = await output.interrupt()
            made, updated, added, cleared, deleted = output.lines[2:]
            assert "created" in made
            assert made.endswith("+ +15550709  + 2 more numbers")
            assert updated.endswith(
                r'revision=2  name="Acme Mumbai"  description="Mumbai \"Süd\""'
                "  auth_password=…  qualify_frequency=30"
            )
            assert added.endswith("ip_identifiers=[192.0.2.0/24]")
            assert cleared.endswith("description=(none)")
            assert deleted.endswith('revision=5  name="Acme Mumbai"')
            before, token = errors.split("--resume ")
            assert before == "go on with: "
            token = token.strip()
            await stub.UpdateSipTrunk(update(kept.id, "is_active", is_active=False))
            async with watch(address, "--resume", token, "--json") as output:
                event = json.loads(await output.line())
                assert event["changed_fields"] == ["is_active"]
                assert event["kind"] == "UPDATED"
            variables = {"grpc_address": address, "token": TOKEN}
            shown = await command("history", trunk.id, **variables)
            heads = [line for line in shown.out.splitlines() if not line.startswith(" ")]
            assert [head.split("  ")[0] for head in heads] == [
                f"revision {number}" for number in range(5, 0, -1)
            ]
            assert heads[4].endswith("CreateSipTrunk  token=bootstrap  request_id=make-acme")
            for line in (
                '  deleted: "Acme Mumbai"',
                r'  description: "Mumbai \"Süd\"" -> (none)',
                "  ip_identifiers: + 192.0.2.0/24",
                r'  description: (none) -> "Mumbai \"Süd\""',
                "  auth_password: (changed)",
                "  qualify_frequency: 60 -> 30",
                "  phone_numbers: + +15550700",
            ):
                assert line in shown.out.splitlines()
            two = await command("history", trunk.id, "--limit", "2", "--json", **variables)
            revisions = [json.loads(line) for line in two.out.splitlines()]
            assert [revision["revision"] for revision in revisions] == ["5", "4"]


async def test_watch_goes_on_by_itself_when_the_server_restarts(tmp_path: Path) -> None:
    address = free_address()
    async with Server(tmp_path, grpc_address=address) as server:
        await server.ready()
        async with connected(address) as stub:
            request = pb.CreateSipTrunkRequest(sip_trunk=ip_based())
            trunk = await stub.CreateSipTrunk(request, wait_for_ready=True)
        async with watch(address, "--initial") as output:
            await output.line()
            await output.line()
            await server.stop()
            async with Server(tmp_path, grpc_address=address) as again:
                await again.ready()
                async with connected(address) as stub:
                    await stub.UpdateSipTrunk(
                        update(trunk.id, "description", description="after"), wait_for_ready=True
                    )
                assert 'description="after"' in await output.line()


async def test_fault_is_said_on_standard_error(tmp_path: Path) -> None:
    async with Server(tmp_path) as server:
        variables = {"grpc_address": await server.ready(), "token": TOKEN}
        absent = await command("history", "absent", **variables)
        assert absent.code == 1
        assert absent.err.splitlines()[1] == "  reason TRUNK_NOT_FOUND"
        bad = await command("watch", "--resume", "nope", **variables)
        assert bad.code == 1
        assert "resume_token [BAD_RESUME_TOKEN]" in bad.err
        both = await command("watch", "--resume", "x", "--initial", **variables)
        assert both.code == 2
        none = await command("history", "x", "--limit", "0", **variables)
        assert none.code == 2
        batch = {"requests": [{"sip_trunk": {"id": "x"}, "update_mask": "is_active,rtp_symmetric"}]}
        call = await command("call", "BatchUpdateSipTrunks", json.dumps(batch), **variables)
        assert call.code == 1
        assert "NOT_CLEARABLE" in call.err or "TRUNK_NOT_FOUND" in call.err
