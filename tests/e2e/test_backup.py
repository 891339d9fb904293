"""Runs what the backup guide says, in its order, on two clusters, and compares what it prints."""

import asyncio
import os
import re
import signal
from collections.abc import Mapping
from pathlib import Path

import asyncpg

from tests.chaos.test_dump_restore import binaries, cluster, now
from tests.conftest import _named
from tests.e2e.processes import PROGRAM, Server, environment, free_address
from tests.e2e.test_readme import _settled
from tests.integration.conftest import created, minted
from tests.support import KEYS, SEEN, connected, update

GUIDE = (Path(__file__).parents[2] / "deploy/backup.md").read_text("utf-8")
SECONDS_MAX = 150
MARK = "-- the end of step"
KEYS_PATH = "/etc/trunkline/keys"


def steps() -> list[tuple[str, str]]:
    """The commands of the guide, each with what follows it."""
    blocks = re.findall(r"^```(?:console|sh)\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    found = []
    for step in re.split(r"^\$ ", "".join(blocks), flags=re.MULTILINE)[1:]:
        command, _, output = step.partition("\n")
        found.append((command, output))
    return found


async def run(directory: Path, stands_for: Mapping[str, str], **variables: str) -> list[str]:
    """Run the guide's commands in one shell; what each printed, to both outputs."""
    script = "".join(f"{command}\necho '{MARK}'\n" for command, _ in steps())
    for name, actual in stands_for.items():
        assert name in script
        script = script.replace(name, actual)
    path = os.pathsep.join([str(PROGRAM.parent), str(binaries()), os.environ["PATH"]])
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        script,
        cwd=directory,
        env=environment(http_address="", grpc_address="127.0.0.1:0") | {"PATH": path} | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(SECONDS_MAX):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    SEEN.add(output)
    return output.decode().split(f"{MARK}\n")[:-1]


async def emptied(url: str) -> str:
    """A cluster without the database that a server would make; its URL."""
    connection = await asyncpg.connect(_named(url, "postgres"))
    await connection.execute("DROP DATABASE trunkline")
    await connection.close()
    return url


async def test_the_guide_prints_what_it_says(database: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEYS + "\n")
    token = (await minted(database, "acme")).text
    settings = {"database_url": database, "secret_keys_file": str(tmp_path / "keys")}
    async with cluster(tmp_path / "data") as other, Server(tmp_path, **settings) as server:
        address = await server.ready()
        async with connected(address, token) as stub:
            trunk = await created(stub)
            resume = await now(stub)
            request = update(trunk.id, qualify_frequency=30)
            request.request_id = "before-the-backup"
            await stub.UpdateSipTrunk(request)
        stands_for = {
            "postgresql://trunkline@db1/trunkline": database,
            "postgresql://trunkline@db2/trunkline": await emptied(other),
            "postgresql://trunkline@db2/postgres": _named(other, "postgres"),
            "127.0.0.1:50051": address,
            "127.0.0.1:50052": free_address(),
            KEYS_PATH: str(tmp_path / "keys"),
        }
        variables = {"TRUNKLINE_TOKEN": token, "ID": trunk.id, "RESUME": resume}
        printed = await run(tmp_path, stands_for, **variables)
    commands = [command for command, _ in steps()]
    expected = [_settled(output) for _, output in steps()]
    actual = [_settled(output) for output in printed]
    assert list(zip(commands, actual, strict=False)) == list(zip(commands, expected, strict=True))
