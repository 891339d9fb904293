"""Fixtures: one real PostgreSQL for the run, a database per test, a service on it, a stub."""

import asyncio
import itertools
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.support import SEEN, connected, leaks, search, settings
from trunkline import migrate
from trunkline.embedded import Embedded
from trunkline.server import Running, serving
from trunkline.store.database import Database

_TEMPLATE = "trunkline_template"
_numbers = itertools.count(1)


class _Keep(logging.Handler):
    """Keeps every log line, formatted as the service formats it, for the search for secrets."""

    def emit(self, record: logging.LogRecord) -> None:
        SEEN.add(repr(record.__dict__).encode())


@pytest.fixture(scope="session", autouse=True)
def nothing_leaks() -> Iterator[None]:
    """At the end of the run, no test's password is in a reply, an error or a log line of it."""
    handler = _Keep()
    root = logging.getLogger()
    root.addHandler(handler)
    logging.getLogger("trunkline").setLevel(logging.DEBUG)
    yield
    root.removeHandler(handler)
    assert leaks(SEEN.text(), SEEN.passwords) == []


@pytest.fixture(scope="session")
async def postgres() -> AsyncIterator[str]:
    """The URL of the run's PostgreSQL, without a database's name.

    Another than the embedded one is used where TRUNKLINE_TEST_POSTGRES_BIN names its programs.
    """
    binaries = os.environ.get("TRUNKLINE_TEST_POSTGRES_BIN")
    with tempfile.TemporaryDirectory(prefix="trunkline-test-") as directory:
        embedded = Embedded(Path(directory), Path(binaries) if binaries else None, "the tests")
        with embedded.locked():
            async with embedded.running():
                yield embedded.url
            assert search(Path(directory), SEEN.passwords) == []


@pytest.fixture(scope="session")
async def template(postgres: str) -> str:
    """A database with the schema, to be copied."""
    await _execute(postgres, f"CREATE DATABASE {_TEMPLATE}")
    database = await Database.open(_named(postgres, _TEMPLATE), 1, 0)
    await migrate.apply(database)
    await database.close()
    return _TEMPLATE


@pytest.fixture
async def empty_database(postgres: str) -> AsyncIterator[str]:
    """The URL of a database without a schema."""
    async for url in _copied(postgres, "template1"):
        yield url


@pytest.fixture
async def database(postgres: str, template: str) -> AsyncIterator[str]:
    """The URL of a database of the test's own, with the schema."""
    async for url in _copied(postgres, template):
        yield url


@pytest.fixture
async def service(database: str) -> AsyncIterator[str]:
    """The address of a service on the test's database, ready."""
    async with running(database) as service:
        yield service.grpc_address


@pytest.fixture
async def stub(service: str) -> AsyncIterator[Any]:
    """A stub of the service, in the account `default`."""
    async with connected(service) as stub:
        yield stub


class running:  # noqa: N801 - reads as what it is, a service that runs
    """A service on a database for the length of a block, entered once it is ready."""

    def __init__(self, url: str, **values: Any) -> None:
        self._serving = serving(settings(url, **values))

    async def __aenter__(self) -> Running:
        service = await self._serving.__aenter__()
        async with asyncio.timeout(30):
            ready = asyncio.ensure_future(service.startup.ready.wait())
            await asyncio.wait((ready, service.failed), return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                ready.cancel()
                await self._serving.__aexit__(None, None, None)
                service.failed.result()
        return service

    async def __aexit__(self, *error: Any) -> None:
        await self._serving.__aexit__(*error)


async def _copied(postgres: str, template: str) -> AsyncIterator[str]:
    name = f"test_{next(_numbers)}"
    await _execute(postgres, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _named(postgres, name)
    await _execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


async def _execute(postgres: str, statement: str) -> None:
    connection = await asyncpg.connect(_named(postgres, "postgres"))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _named(url: str, database: str) -> str:
    parts = urlsplit(url)
    # Not _replace().geturl(): that drops the empty host before a socket's path.
    return f"{parts.scheme}://{parts.netloc}/{database}?{parts.query}"
