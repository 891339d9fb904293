"""Fixtures: a service with its HTTP gateway, and a client that carries a token."""

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.conftest import running
from tests.support import SEEN, TOKEN


async def _keep(response: httpx.Response) -> None:
    await response.aread()
    SEEN.add(response.content + repr(response.headers).encode())


@pytest.fixture
async def address(database: str) -> AsyncIterator[str]:
    """The base URL of a gateway on the test's database."""
    async with running(database, http_address="127.0.0.1:0") as service:
        yield f"http://{service.http_address}"


@pytest.fixture
async def http(address: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the gateway, in the account `default`."""
    async with httpx.AsyncClient(
        base_url=address,
        headers={"Authorization": f"Bearer {TOKEN}"},
        timeout=30,
        event_hooks={"response": [_keep]},
        trust_env=False,
    ) as client:
        yield client
