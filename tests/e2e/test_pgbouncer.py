"""The service behind pgbouncer in transaction mode, with fewer sessions than it has connections."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.chaos.test_cancellation import code_of, until_nobody_waits
from tests.e2e.pooler import IGNORING, PACKAGE, pooled, program, server_sessions
from tests.e2e.processes import Server, command, free_address, status
from tests.integration.conftest import created
from tests.integration.watching import watching
from tests.support import KEYS, connected, update
from trunkline.store.database import SETTINGS as BOUNDS

README = Path(__file__).parents[2] / "README.md"
SESSIONS = 4
SERVERS = 2
CALLERS = 12
UPDATES = 10
SHORT_SECONDS = 0.3


@pytest.fixture(scope="module")
def pgbouncer() -> Path:
    """Its program."""
    found = program()
    if found is None:
        pytest.skip(f"{PACKAGE} is not there: install the package {PACKAGE}")
    return found


@pytest.fixture
async def through(pgbouncer: Path, empty_database: str, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a database without a schema through pgbouncer."""
    directory = tmp_path / "pooler"
    directory.mkdir(mode=0o700)
    async with pooled(pgbouncer, empty_database, directory, SESSIONS) as url:
        yield url


def started(directory: Path, url: str, **variables: str) -> Server:
    """A server as one behind pgbouncer is set up."""
    defaults = {"database_statement_cache": "0", "secret_keys": KEYS}
    return Server(directory, database_url=url, **defaults | variables)


async def count(stub: Any, trunk_id: str, caller: int) -> None:
    """Update a trunk again and again; the same request, sent to be retried, changes nothing."""
    for n in range(UPDATES):
        request = update(trunk_id, "description", description=f"caller {caller}, {n}")
        request.request_id = f"{caller}-{n}"
        answer = await stub.UpdateSipTrunk(request)
        assert answer.description == request.sip_trunk.description
        assert await stub.UpdateSipTrunk(request) == answer


async def test_servers_share_a_few_sessions(
    tmp_path: Path, through: str, empty_database: str
) -> None:
    """Migrations, updates, request_ids and watches, each statement in whatever session is free."""
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(started(tmp_path, through)) for _ in range(SERVERS)
        ]
        addresses = await asyncio.gather(*(server.ready() for server in servers))
        stubs = [await stack.enter_async_context(connected(a)) for a in addresses]
        trunks = [await created(stubs[0]) for _ in range(SERVERS)]
        watchers = [await stack.enter_async_context(watching(stub)) for stub in stubs]
        async with asyncio.TaskGroup() as group:
            for caller in range(CALLERS):
                trunk, stub = trunks[caller % 2], stubs[caller // 2 % 2]
                group.create_task(count(stub, trunk.id, caller))
        assert 0 < await server_sessions(empty_database) <= SESSIONS
        changes = CALLERS * UPDATES
        for watcher in watchers:
            await watcher.has(changes)
            for trunk in trunks:
                revisions = [r for trunk_id, r in watcher.revisions if trunk_id == trunk.id]
                assert revisions == list(range(2, 2 + changes // SERVERS))
        for server in servers:
            assert (await server.stop()).code == 0
            assert "Traceback" not in server.err


async def test_calls_that_are_left_take_no_session_with_them(
    tmp_path: Path, through: str, empty_database: str
) -> None:
    """Each session waits for a row; pgbouncer passes the cancels on."""
    async with (
        started(tmp_path, through) as server,
        connected(await server.ready()) as stub,
    ):
        trunk = await created(stub)
        holder = await asyncpg.connect(empty_database)
        async with holder.transaction():
            await holder.execute("SELECT FROM trunks WHERE id = $1 FOR UPDATE", trunk.id)
            changes = [update(trunk.id, "description", description="x") for _ in range(CALLERS)]
            calls = [code_of(stub.UpdateSipTrunk(c, timeout=SHORT_SECONDS)) for c in changes]
            assert set(await asyncio.gather(*calls)) == {"DEADLINE_EXCEEDED"}
            await until_nobody_waits(holder)
        await holder.close()
        unchanged = await stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk.id))
        assert unchanged == trunk
        for change in changes:
            await stub.UpdateSipTrunk(change)
        assert (await server.stop()).code == 0
        assert "Traceback" not in server.err


@pytest.mark.parametrize(
    ("more", "why"),
    [("", "unsupported startup parameter"), (IGNORING, "does not keep the session's settings")],
)
async def test_a_server_that_is_not_set_up_for_pgbouncer_says_what_to_set(
    pgbouncer: Path, empty_database: str, tmp_path: Path, more: str, why: str
) -> None:
    """Its sessions would have the prepared statements of others, under the same names."""
    address, directory = free_address(), tmp_path / "pooler"
    directory.mkdir(mode=0o700)
    async with (
        pooled(pgbouncer, empty_database, directory, SESSIONS, more) as url,
        started(tmp_path, url, database_statement_cache="200", grpc_address=address) as server,
    ):
        line = await server.logged("database_refuses")
        assert why in line
        assert "TRUNKLINE_DATABASE_STATEMENT_CACHE=0" in line
        assert await status(address) == "NOT_SERVING"
        assert (await server.stop()).code == 0
        assert not server.is_ready


async def test_commands_work_through_pgbouncer(through: str) -> None:
    variables = {"database_url": through, "secret_keys": KEYS, "database_statement_cache": "0"}
    for arguments in (
        ("migrate",),
        ("accounts", "create", "acme"),
        ("tokens", "create", "--account", "acme", "--name", "a", "--scopes", "trunks:read"),
        ("tokens", "list"),
        ("secrets", "status"),
        ("secrets", "rotate"),
    ):
        done = await command(*arguments, **variables)
        assert done.code == 0, done.err


async def test_roles_bound_statements_as_readme_says(through: str, empty_database: str) -> None:
    (statements,) = re.findall(r"^```sql\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    name = urlsplit(empty_database).path[1:]
    asked = "SELECT setting || unit FROM pg_settings WHERE name = $1"
    connection = await asyncpg.connect(empty_database)
    try:
        # The role is that of all tests, which run on databases of their own.
        here = statements.replace("ROLE trunkline", f"ROLE trunkline IN DATABASE {name}")
        await connection.execute(here)
    finally:
        await connection.close()
    pooled_connection = await asyncpg.connect(through, statement_cache_size=0)
    try:
        for setting in ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"):
            assert await pooled_connection.fetchval(asked, setting) == f"{BOUNDS[setting]}ms"
        assert await pooled_connection.fetchval("SHOW jit") == "off"
    finally:
        await pooled_connection.close()
