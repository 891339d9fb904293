"""The database away and back, and callers who go away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest

from tests.conftest import running
from tests.http.clients import Connection, client
from tests.http.trunks import TRUNKS, created, problem, read
from tests.integration.link import Link, linked
from tests.support import TOKEN

SECONDS_MAX = 30
POLL_SECONDS = 0.05


@asynccontextmanager
async def over_a_link(database: str) -> AsyncIterator[tuple[Link, httpx.AsyncClient]]:
    """A link to the database that can be cut, and a client of a gateway behind it."""
    async with (
        linked(database) as link,
        running(link.url, http_address="127.0.0.1:0") as service,
        client(service.http_address) as http,
    ):
        yield link, http


async def until_status(http: httpx.AsyncClient, path: str, status: int) -> httpx.Response:
    """The first reply with a status."""
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            response = await http.get(path)
            if response.status_code == status:
                return response
            assert response.status_code in (200, 503), response.text
            await asyncio.sleep(POLL_SECONDS)


async def test_a_database_that_is_away_is_503_with_a_time_to_retry(database: str) -> None:
    async with over_a_link(database) as (link, http):
        trunk = await created(http)
        url = f"{TRUNKS}/{trunk['id']}"
        await link.cut()
        for method, path, body in (
            ("GET", TRUNKS, None),
            ("GET", f"{TRUNKS}?page_size=1", None),
            ("GET", url, None),
            ("PATCH", url, {"is_active": False}),
            ("DELETE", url, None),
            ("POST", f"{url}/numbers", {"phone_number": "+15550100"}),
            ("GET", f"{url}/numbers", None),
        ):
            content: Any = {} if body is None else {"json": body}
            response = await http.request(method, path, **content)
            found = problem(response)
            assert (found.status, found.reason) == (503, "DATABASE_UNAVAILABLE")
            assert int(response.headers["Retry-After"]) >= 1
        await link.mend()
        await until_status(http, url, 200)
        assert await read(http, trunk["id"]) == trunk


async def test_readyz_follows_the_database_and_healthz_does_not(database: str) -> None:
    async with over_a_link(database) as (link, http):
        assert (await http.get("/readyz")).status_code == 200
        await link.cut()
        response = await until_status(http, "/readyz", 503)
        found = problem(response)
        assert found.reason == "NOT_READY"
        assert int(response.headers["Retry-After"]) >= 1
        assert (await http.get("/healthz")).status_code == 200
        await link.mend()
        await until_status(http, "/readyz", 200)


async def test_an_unknown_token_is_not_said_to_be_one_while_the_database_is_away(
    database: str,
) -> None:
    async with over_a_link(database) as (link, http):
        await created(http)
        await link.cut()
        token = f"{TOKEN[:-4]}beef"
        response = await http.get(TRUNKS, headers={"Authorization": f"Bearer {token}"})
        assert response.status_code in (401, 503)
        minted = "tl_" + "0" * 12
        response = await http.get(TRUNKS, headers={"Authorization": f"Bearer {minted}"})
        assert response.status_code in (401, 503)


async def waiting(connection: "asyncpg.Connection[asyncpg.Record]") -> int:
    """How many of the service's sessions wait for a lock."""
    found = await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND application_name = 'trunkline' AND datname = current_database()"
    )
    return int(found)


async def until_waiting(connection: "asyncpg.Connection[asyncpg.Record]", count: int) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while await waiting(connection) != count:  # noqa: ASYNC110 - PostgreSQL has no event
            await asyncio.sleep(POLL_SECONDS)


@pytest.mark.parametrize(
    ("method", "body"),
    [("PATCH", b'{"is_active": false}'), ("DELETE", b"")],
)
async def test_a_caller_who_goes_away_cancels_the_call(
    http: httpx.AsyncClient, address: str, database: str, method: str, body: bytes
) -> None:
    trunk = await created(http)
    url = f"{TRUNKS}/{trunk['id']}"
    holder, watcher = await asyncpg.connect(database), await asyncpg.connect(database)
    try:
        async with holder.transaction():
            await holder.execute("SELECT FROM trunks WHERE id = $1 FOR UPDATE", trunk["id"])
            async with Connection(address.removeprefix("http://")) as connection:
                await connection.send(method, url, body)
                await until_waiting(watcher, 1)
            # Gone, while the lock is still held.
            await until_waiting(watcher, 0)
    finally:
        await holder.close()
        await watcher.close()
    assert await read(http, trunk["id"]) == trunk


async def test_callers_who_go_away_in_numbers_leave_the_service_whole(
    http: httpx.AsyncClient, address: str, database: str
) -> None:
    """More of them than the pool has connections, each in the middle of an update of one row."""
    trunk = await created(http)
    url = f"{TRUNKS}/{trunk['id']}"
    holder, watcher = await asyncpg.connect(database), await asyncpg.connect(database)
    try:
        async with holder.transaction():
            await holder.execute("SELECT FROM trunks WHERE id = $1 FOR UPDATE", trunk["id"])
            connections = [Connection(address.removeprefix("http://")) for _ in range(30)]
            for connection in connections:
                await connection.__aenter__()
                await connection.send("PATCH", url, b'{"is_active": false}')
            await until_waiting(watcher, 10)
            for connection in connections:
                await connection.__aexit__()
            await until_waiting(watcher, 0)
            assert await read(http, trunk["id"]) == trunk
    finally:
        await holder.close()
        await watcher.close()
    response = await http.patch(url, json={"is_active": False})
    assert response.status_code == 200
