"""A list of everything arrives whole, and the server does not hold it all."""

import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.e2e.processes import Server
from tests.http.clients import SECONDS_MAX, Connection, client
from tests.http.trunks import TRUNKS
from tests.support import KEYS, TOKEN

TRUNKS_STORED = 30_000
DESCRIPTION_CHARACTERS = 400
GROWTH_BYTES_MAX = 16 << 20
"""Less than half of what the list is as JSON, let alone as objects."""
UNREAD = 3
_GATEWAY = (
    '[{"id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "gateway_address": "sip.example.com",'
    ' "priority": 1, "created_at": "2026-05-09T10:00:00+00:00"}]'
)


async def filled(url: str) -> None:
    """Write trunks straight into the table."""
    connection = await asyncpg.connect(url)
    await connection.execute(
        "INSERT INTO trunks (account_id, id, name, provider, description, auth_type, gateways,"
        " ip_identifiers, created_at, updated_at)"
        " SELECT 'default', 'T' || lpad(n::text, 8, '0'), 'Trunk ' || n, 'plivo',"
        " repeat('x', $1), 'IP_BASED', $2::jsonb, $3::jsonb, now(), now()"
        " FROM generate_series(1, $4) AS n",
        DESCRIPTION_CHARACTERS,
        _GATEWAY,
        '[{"ip_address": "203.0.113.5"}]',
        TRUNKS_STORED,
    )
    await connection.execute("ANALYZE trunks")
    await connection.close()


def peak(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) << 10


def http_address(server: Server) -> str:
    return server.out.rpartition("http=")[2].strip()


@pytest.fixture
async def server(database: str, tmp_path: Path) -> AsyncIterator[Server]:
    """A service in a process of its own, ready and warm, with a large account."""
    variables = {"database_url": database, "secret_keys": KEYS, "log_level": "warning"}
    async with Server(tmp_path, http_address="127.0.0.1:0", **variables) as started:
        await started.ready()
        await filled(database)
        async with client(http_address(started)) as http:
            for path in (f"{TRUNKS}?page_size=500", f"{TRUNKS}?filter=name%3D%22Trunk%201%22"):
                assert (await http.get(path)).status_code == 200
        yield started


async def whole_list(server: Server) -> bytes:
    headers = {"Authorization": f"Bearer {TOKEN}", "Accept-Encoding": "identity"}
    async with (
        httpx.AsyncClient(trust_env=False, timeout=SECONDS_MAX) as http,
        http.stream("GET", f"http://{http_address(server)}{TRUNKS}", headers=headers) as response,
    ):
        assert response.status_code == 200
        return b"".join([part async for part in response.aiter_raw()])


async def test_a_list_of_everything_arrives_whole_in_bounded_memory(server: Server) -> None:
    before = peak(server.pid)
    body = await whole_list(server)
    assert peak(server.pid) - before < GROWTH_BYTES_MAX < len(body) / 2
    ids = [trunk["id"] for trunk in json.loads(body)]
    assert ids == [f"T{n:08}" for n in range(1, TRUNKS_STORED + 1)]


async def test_lists_that_nobody_reads_are_not_piled_up(server: Server) -> None:
    before = peak(server.pid)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(UNREAD):
            connection = Connection(http_address(server))
            await stack.enter_async_context(connection)
            await connection.send("GET", TRUNKS)
            assert (await connection.reader.readline()).startswith(b"HTTP/1.1 200")
        # In the time of this one the others would be made too, if nothing held the server back.
        await whole_list(server)
        assert peak(server.pid) - before < GROWTH_BYTES_MAX
