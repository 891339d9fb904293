"""What an operator gets wrong, and is told."""

from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.e2e.processes import Server, command, free_address, status
from tests.support import KEYS

ROLE = "without_rights"


async def test_one_address_for_two_ports_is_refused(database: str) -> None:
    address = free_address()
    done = await command(
        "serve",
        database_url=database,
        secret_keys=KEYS,
        grpc_address="127.0.0.1:0",
        http_address=address,
        metrics_address=address,
    )
    assert done.code == 1
    assert f"trunkline: {address} can't be listened on" in done.complaints[0]


@pytest.fixture
async def poor(empty_database: str) -> str:
    """The URL of a role that may make nothing in a database without a schema."""
    parts = urlsplit(empty_database)
    connection = await asyncpg.connect(empty_database)
    try:
        if not await connection.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = $1", ROLE):
            await connection.execute(f"CREATE ROLE {ROLE} LOGIN")
    finally:
        await connection.close()
    return f"{parts.scheme}://{ROLE}@{parts.path}?{parts.query}"


async def test_right_that_the_role_lacks_is_named_to_the_operator_alone(
    poor: str, tmp_path: Path
) -> None:
    done = await command("migrate", database_url=poor)
    assert done.code == 1
    assert "permission denied for schema public" in done.err
    assert "Traceback" not in done.err
    address = free_address()
    async with Server(
        tmp_path, database_url=poor, secret_keys=KEYS, grpc_address=address
    ) as server:
        assert "permission denied for schema public" in await server.logged("database_forbids")
        assert await status(address) == "NOT_SERVING"
        assert (await server.stop()).code == 0


@pytest.mark.parametrize("parameter", ["pasword=fake", "statement_timeout=soon"])
async def test_parameter_of_the_url_that_postgresql_refuses_is_named(
    empty_database: str, parameter: str
) -> None:
    done = await command("migrate", database_url=f"{empty_database}&{parameter}")
    assert done.code == 1
    assert parameter.partition("=")[0] in done.err
    assert "Traceback" not in done.err
