"""The client guide and its programs, against servers that fail on the way."""

import asyncio
import contextlib
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.certificates import Authority, trusting, write
from tests.certificates import connected as connected_by_tls
from tests.e2e.client_programs import (
    BUILD_SECONDS_MAX,
    GUIDE,
    ROOT,
    SERVICE,
    Fault,
    Programs,
    blocks,
    programs_of,
    relayed,
    set_up,
)
from tests.e2e.processes import SECONDS_MAX, Server, command, free_address
from tests.integration.conftest import created, read
from tests.support import KEYS, connected, ip_based, update
from trunkline.config import CLIENT_PING_SECONDS_MIN, CLIENT_VARIABLES, Settings
from trunkline.errors import ConflictError, ExhaustedError
from trunkline.trunks.watch import HEARTBEAT_SECONDS

POLL_SECONDS = 0.05
LANGUAGES = ("python", "node", "go")
SOON = 0.05
CHANGES_BETWEEN = 3
CA = Authority("An authority")
CLIENTS = Authority("The authority of clients")

pytestmark = pytest.mark.timeout(BUILD_SECONDS_MAX + SECONDS_MAX)


@pytest.fixture(scope="module")
async def absent() -> dict[str, str]:
    """Every language is set up; why one can't be had here."""
    return await set_up()


@pytest.fixture(params=LANGUAGES)
def programs(request: pytest.FixtureRequest, absent: dict[str, str]) -> Programs:
    """The programs of each language."""
    if request.param in absent:
        pytest.skip(f"{request.param}: {absent[request.param]}")
    return programs_of(request.param)


@pytest.fixture
def every(absent: dict[str, str]) -> list[Programs]:
    """The programs of every language that is there: Python at least."""
    return [programs_of(language) for language in LANGUAGES if language not in absent]


@contextlib.asynccontextmanager
async def serving(directory: Path, database: str, **variables: str) -> AsyncIterator[Server]:
    """`trunkline serve` on a test's database, ready."""
    settings = {"database_url": database, "secret_keys": KEYS}
    async with Server(directory, **settings | variables) as server:
        await server.ready()
        yield server


async def history(stub: Any, trunk_id: str) -> list[tuple[int, str]]:
    """The revisions of a trunk and their methods, the newest first."""
    request = pb.ListSipTrunkRevisionsRequest(trunk_id=trunk_id)
    page = await stub.ListSipTrunkRevisions(request)
    return [(r.revision, r.method) for r in page.sip_trunk_revisions]


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_excerpt_of_the_guide_is_in_the_programs(language: str) -> None:
    suffix = {"python": "py", "node": "js", "go": "go"}[language]
    files = sorted((ROOT / "deploy/clients" / language).glob(f"*.{suffix}"))
    code = "".join(path.read_text("utf-8") for path in files)
    excerpts = blocks(language if language != "node" else "js")
    assert len(excerpts) >= 3
    assert [e for e in excerpts if e not in code] == []
    (config,) = blocks("json")
    assert f"\n{config}" in code
    assert json.loads(config)["methodConfig"][0]["name"] == [{"service": SERVICE}]


@pytest.mark.parametrize("name", ["clients", "backup", "compatibility"])
def test_each_reason_and_setting_that_a_guide_names_is_there(name: str) -> None:
    text = (ROOT / f"deploy/{name}.md").read_text("utf-8")
    named = set(re.findall(r"`((?:[A-Z]+_)+[A-Z]+)[`=]", text))
    named -= {code.name for code in grpc.StatusCode} | CLIENT_VARIABLES
    source = "".join(p.read_text("utf-8") for p in (ROOT / "service").rglob("*.py"))
    reasons = {n for n in named if f'"{n}"' in source}
    settings = {n for n in named if hasattr(Settings, n.removeprefix("TRUNKLINE_").lower())}
    assert named == reasons | settings
    assert len(named) > 5


def test_the_guide_lets_clients_ping_as_often_as_servers_do_and_knows_when_they_speak() -> None:
    (seconds,) = re.findall(r"Ping no more often than every (\d+) seconds", GUIDE)
    assert int(seconds) >= CLIENT_PING_SECONDS_MIN
    (seconds,) = re.findall(r"sends a response at least every (\d+) seconds", GUIDE)
    assert int(seconds) == HEARTBEAT_SECONDS


async def test_programs_run_as_the_guide_runs_them(programs: Programs, service: str) -> None:
    async with connected(service) as stub:
        trunk = await created(stub, ip_based())
        done = await programs.changed(service, trunk.id, 30)
        after = await read(stub, trunk.id)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"qualify_frequency=30 etag={after.etag}\n"
    assert after.qualify_frequency == 30
    async with programs.watching(service) as watching:
        assert await watching.until("trunks") == "1 trunks"
    assert watching.lines[0] == f"INITIAL {trunk.id} revision=2 etag={after.etag}"


async def test_what_is_wrong_is_told_and_not_sent_again(programs: Programs, service: str) -> None:
    async with connected(service) as stub:
        trunk = await created(stub, ip_based())
        async with relayed(service) as (relay, address):
            done = await programs.changed(address, trunk.id, 100_000)
    assert done.code == 1
    assert "qualify_frequency [OUT_OF_RANGE] is 100000; it must be 0 to 86400" in done.err
    assert len(relay.seen) == 1


async def test_a_change_is_done_once_whatever_is_answered_on_the_way(
    programs: Programs, service: str
) -> None:
    full = ExhaustedError("TOO_MANY_CALLS", "wait", retry_seconds=SOON)
    in_flight = ConflictError("REQUEST_IN_FLIGHT", "wait", retry_seconds=SOON)
    faults = [
        Fault(grpc.StatusCode.UNAVAILABLE, passes_on=True),
        Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, full),
        Fault(grpc.StatusCode.ABORTED, in_flight),
        Fault(grpc.StatusCode.DEADLINE_EXCEEDED, passes_on=True),
        Fault(grpc.StatusCode.CANCELLED, passes_on=True),
    ]
    async with connected(service) as stub:
        trunk = await created(stub, ip_based())
        async with relayed(service, *faults) as (relay, address):
            done = await programs.changed(address, trunk.id, 30)
        assert (done.code, done.err) == (0, "")
        # The second was sent by the service config, those after it by the program.
        assert relay.attempts == ["0", "1", "0", "0", "0", "0"]
        assert len(set(relay.seen)) == 1
        assert pb.UpdateSipTrunkRequest.FromString(relay.seen[0]).request_id
        assert await history(stub, trunk.id) == [(2, "UpdateSipTrunk"), (1, "CreateSipTrunk")]
        assert (await read(stub, trunk.id)).etag in done.out


async def test_a_watch_that_a_server_cancels_goes_on(programs: Programs, service: str) -> None:
    cut = Fault(grpc.StatusCode.CANCELLED)
    async with relayed(service, cut) as (_, address), programs.watching(address) as watching:
        assert (await watching.until("go on")).upper().startswith("CANCEL")
        assert await watching.until("trunks") == "0 trunks"


async def test_a_stale_etag_is_read_again_and_decided_on(programs: Programs, service: str) -> None:
    async with connected(service) as stub:
        stale = await created(stub, ip_based())
        named = await stub.UpdateSipTrunk(update(stale.id, "name", name="By somebody else"))
        async with relayed(service) as (relay, address):
            done = await programs.changed(address, stale.id, 30, stale.etag)
        assert (done.code, done.err) == (0, "")
        first, second = map(pb.UpdateSipTrunkRequest.FromString, relay.seen)
        assert [r.sip_trunk.etag for r in (first, second)] == [stale.etag, named.etag]
        assert first.request_id != second.request_id
        trunk = await read(stub, stale.id)
        assert (trunk.name, trunk.qualify_frequency) == ("By somebody else", 30)
        await stub.UpdateSipTrunk(update(stale.id, "is_active", is_active=False))
        done = await programs.changed(service, stale.id, 40, trunk.etag)
        assert (done.code, done.out) == (1, "")
        assert "switched off meanwhile: left as it is" in done.err
        assert (await read(stub, stale.id)).qualify_frequency == 30


async def test_a_killed_server_costs_neither_the_change_nor_an_event(
    programs: Programs, database: str, tmp_path: Path
) -> None:
    """The server dies while the change waits for a lock; the database does it all the same."""
    address = free_address()
    async with serving(tmp_path, database, grpc_address=address) as server:
        async with connected(address) as stub:
            trunk = await created(stub, ip_based())
        async with programs.watching(address) as watching:
            await watching.until("trunks")
            async with locked(database, trunk.id):
                change = asyncio.create_task(programs.changed(address, trunk.id, 30, trunk.etag))
                await queried(database, WAITING)
                await server.kill()
            await queried(database, f"{REVISION} WHERE revision = 2")
            async with serving(tmp_path, database, grpc_address=address) as second:
                done = await change
                assert (done.code, done.err) == (0, "")
                assert '"2-' in done.out
                await second.logged(f"/{SERVICE}/UpdateSipTrunk")
                answers = re.findall(rf'"/{SERVICE}/UpdateSipTrunk", "code": "(\w+)"', second.err)
                assert answers == ["OK"]
                async with connected(address) as stub:
                    expected = [(2, "UpdateSipTrunk"), (1, "CreateSipTrunk")]
                    assert await history(stub, trunk.id) == expected
                    await watching.until("revision=2")
                    await stub.UpdateSipTrunk(update(trunk.id, "name", name="After"))
                await watching.until("revision=3")
    assert watching.revisions() == ["INITIAL 1", "UPDATED 2", "UPDATED 3"]
    assert watching.lines.count("1 trunks") == 1
    assert any(line.endswith("go on") for line in watching.lines)


WAITING = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
)
REVISION = "SELECT count(*) FROM trunks"


@contextlib.asynccontextmanager
async def locked(database: str, trunk_id: str) -> AsyncIterator[None]:
    """The row of a trunk is locked while the block runs."""
    connection = await asyncpg.connect(database)
    try:
        async with connection.transaction():
            await connection.fetchrow("SELECT FROM trunks WHERE id = $1 FOR UPDATE", trunk_id)
            yield
    finally:
        await connection.close()


async def queried(database: str, count: str) -> None:
    """Wait until the database counts something."""
    connection = await asyncpg.connect(database)
    try:
        async with asyncio.timeout(SECONDS_MAX):
            while not await connection.fetchval(count):  # noqa: ASYNC110 - others count
                await asyncio.sleep(POLL_SECONDS)
    finally:
        await connection.close()


async def test_a_token_of_another_history_makes_a_watcher_list_again(
    every: list[Programs], database: str, tmp_path: Path
) -> None:
    """The feed is made anew, as it is where a dump is restored; a trunk is gone meanwhile."""
    address = free_address()
    async with contextlib.AsyncExitStack() as stack:
        async with serving(tmp_path, database, grpc_address=address) as server:
            async with connected(address) as stub:
                kept, gone = [await created(stub, ip_based()) for _ in range(2)]
            watching = [await stack.enter_async_context(p.watching(address)) for p in every]
            assert [await w.until("trunks") for w in watching] == ["2 trunks"] * len(every)
            await server.kill()
        await executed(
            database,
            "CREATE TABLE feed_state_new (LIKE feed_state INCLUDING ALL)",
            "INSERT INTO feed_state_new SELECT * FROM feed_state",
            "DROP TABLE feed_state",
            "ALTER TABLE feed_state_new RENAME TO feed_state",
            f"DELETE FROM trunks WHERE id = '{gone.id}'",
        )
        async with serving(tmp_path, database, grpc_address=address):
            assert [await w.until("trunks") for w in watching] == ["1 trunks"] * len(every)
        for one in watching:
            assert "RESUME_TOKEN_FOREIGN: go on" in "\n".join(one.lines)
            assert one.lines[-2].split()[:2] == ["INITIAL", kept.id]


async def executed(database: str, *statements: str) -> None:
    connection = await asyncpg.connect(database)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_programs_trust_a_ca_and_show_a_certificate(
    every: list[Programs], database: str, tmp_path: Path
) -> None:
    for name, authority in (("ca", CA), ("clients", CLIENTS)):
        (tmp_path / f"{name}.crt").write_bytes(authority.pem)
    pair = write(tmp_path / "tls", CA.server())
    own = write(tmp_path / "own", CLIENTS.issue("a-client"))
    files = {"tls_ca": str(tmp_path / "ca.crt"), **own}
    clients = str(tmp_path / "clients.crt")
    async with serving(tmp_path, database, **pair, tls_client_ca=clients) as server:
        address = (await server.ready()).replace("127.0.0.1", "localhost")
        credentials = trusting(CA, client=CLIENTS.issue("the-test"))
        async with connected_by_tls(address, credentials) as stub:
            trunk = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=ip_based()))
        variables = {f"TRUNKLINE_{name.upper()}": path for name, path in files.items()}
        for number, programs in enumerate(every, 1):
            done = await programs.changed(address, trunk.id, number, **variables)
            assert (done.code, done.err) == (0, "")
            assert f"qualify_frequency={number} " in done.out
        # Each reads the trunk, and changes it.
        await server.logged('"client_certificate": "a-client"', 2 * len(every))
        assert server.err.count('"client_certificate": "a-client"') == 2 * len(every)


async def test_servers_of_a_newer_version_take_over_without_a_failed_change(
    every: list[Programs], database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order that compatibility.md says; the newer version brings one more migration."""
    settings = {"database_url": database, "secret_keys": KEYS}
    async with serving(tmp_path, database) as old, connected(await old.ready()) as stub:
        trunk = await created(stub, ip_based())
        monkeypatch.setenv("PYTHONPATH", newer(tmp_path))
        address = free_address()
        async with Server(tmp_path, **settings, grpc_address=address, migrate="off") as new:
            await new.logged("SCHEMA_BEHIND")
            monkeypatch.undo()
            changes = Changes(every[0], f"ipv4:{await old.ready()},{address}", trunk.id)
            changing = asyncio.create_task(changes.run())
            await changes.more()
            monkeypatch.setenv("PYTHONPATH", newer(tmp_path))
            assert (await command("migrate", **settings)).out.startswith("applied 9999")
            monkeypatch.undo()
            await new.ready()
            await old.logged("SCHEMA_UNKNOWN")
            await changes.more()
            assert (await old.stop()).code == 0
            await changes.more()
            changes.going = False
            await changing
            async with connected(address) as there:
                assert (await history(there, trunk.id))[0] == (changes.count + 1, "UpdateSipTrunk")


def newer(directory: Path) -> str:
    """A Python path on which Trunkline is a version with one more migration."""
    path = directory / "newer"
    if not path.exists():
        shutil.copytree(ROOT / "service/trunkline", path / "trunkline")
        more = path / "trunkline/schema/9999_more.sql"
        more.write_text("ALTER TABLE trunks ADD COLUMN more text NOT NULL DEFAULT '';")
    return os.pathsep.join([str(path), str(ROOT / "generated")])


@dataclass
class Changes:
    """A program that changes a trunk, again and again."""

    programs: Programs
    target: str
    trunk_id: str
    count: int = 0
    going: bool = True

    async def run(self) -> None:
        """Change the trunk until told to end."""
        while self.going:
            done = await self.programs.changed(self.target, self.trunk_id, self.count + 1)
            assert (done.code, done.err) == (0, "")
            self.count += 1

    async def more(self) -> None:
        """Wait until further changes are done."""
        wanted = self.count + CHANGES_BETWEEN
        async with asyncio.timeout(SECONDS_MAX):
            while self.count < wanted:  # noqa: ASYNC110 - simpler than a condition
                await asyncio.sleep(POLL_SECONDS)
