"""Metrics as Prometheus reads them, and what holds calls up so that they can be seen."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import grpc
import httpx
from prometheus_client import parser as plain
from prometheus_client.openmetrics import parser as openmetrics

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.support import SEEN, TOKEN, Stub, connected
from trunkline.server import Running

SECONDS_MAX = 60
LOOK_SECONDS = 0.02
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
SERVICE = "/siptrunk.v1.SipTrunkService/"


class Page:
    """One answer of a metrics address, read by the parser that goes with its format."""

    def __init__(self, answer: httpx.Response) -> None:
        self.text = answer.text
        self.media_type = answer.headers["content-type"]
        read: Any = plain
        if self.media_type.startswith("application/openmetrics-text"):
            read = openmetrics
        self.families = list(read.text_string_to_metric_families(self.text))

    def values(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """The samples of a name, by the values of these labels, which are all that they have."""
        found = {}
        for sample in (sample for family in self.families for sample in family.samples):
            if sample.name == name:
                assert set(sample.labels) == set(labels)
                found[tuple(sample.labels[label] for label in labels)] = sample.value
        return found

    def value(self, name: str, **labels: str) -> float:
        """One sample; 0 where there is none, as of what was never counted."""
        return self.values(name, *labels).get(tuple(labels.values()), 0)


async def scraped(address: str, accept: str = "text/plain") -> Page:
    """What a metrics address says now."""
    async with httpx.AsyncClient(timeout=SECONDS_MAX, trust_env=False) as client:
        answer = await client.get(f"http://{address}/metrics", headers={"Accept": accept})
    assert answer.status_code == 200
    SEEN.add(answer.content)
    return Page(answer)


async def until(address: str, seen: Callable[[Page], Any]) -> Page:
    """The first page that something can be seen on."""
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            page = await scraped(address)
            if seen(page):
                return page
            await asyncio.sleep(LOOK_SECONDS)


@asynccontextmanager
async def counted(url: str, **values: Any) -> AsyncIterator[tuple[Running, Any]]:
    """A service with a metrics address, and a stub of it."""
    async with (
        running(url, metrics_address="127.0.0.1:0", **values) as service,
        connected(service.grpc_address) as stub,
    ):
        yield service, stub


@asynccontextmanager
async def locked(url: str, trunk_id: str) -> AsyncIterator[None]:
    """A trunk's row is locked, so that updates of it wait, until the block ends."""
    holder = await asyncpg.connect(url)
    try:
        async with holder.transaction():
            await holder.execute("SELECT FROM trunks WHERE id = $1 FOR UPDATE", trunk_id)
            yield
    finally:
        await holder.close()


@asynccontextmanager
async def watching(address: str, token: str = TOKEN) -> AsyncIterator[Any]:
    """A watch that has begun, ended by its caller with the block."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        metadata = (("authorization", f"Bearer {token}"),)
        call = Stub(channel).WatchSipTrunks(pb.WatchSipTrunksRequest(), metadata=metadata)
        await call.initial_metadata()
        yield call
        call.cancel()


@asynccontextmanager
async def under_way(call: Any) -> AsyncIterator["asyncio.Future[Any]"]:
    """A call that goes on during the block; ended with it unless it is over by then."""
    task = asyncio.ensure_future(_awaited(call))
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def _awaited(call: Any) -> Any:
    return await call
