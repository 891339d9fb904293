"""Traced services of this process, their collectors, and calls that can be told apart."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import grpc
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.http.clients import copied
from tests.integration.collecting import SECONDS_MAX, Collector, Seen, collecting, traced, variables
from tests.integration.scraping import LOOK_SECONDS, SERVICE
from tests.support import TOKEN, Stub, userpass
from trunkline.server import Running

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
GET = pb.GetSipTrunkRequest
FAULTS = """
    CREATE FUNCTION objects() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.name = 'Broken' THEN RAISE EXCEPTION 'no' USING ERRCODE = 'P0001'; END IF;
        IF NEW.name = 'Away' THEN RAISE EXCEPTION 'no' USING ERRCODE = '57P01'; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER objects BEFORE INSERT ON trunks FOR EACH ROW EXECUTE FUNCTION objects()"""
_ids = itertools.count(1)


def new_id() -> str:
    """A request id that no other call has."""
    return f"traced-{next(_ids)}"


class Traced:
    """A traced service, its collector, and calls that can be told apart by their request ids."""

    def __init__(self, service: Running, collector: Collector, url: str) -> None:
        self.service, self.collector, self.url = service, collector, url

    def call(self, method: str, request: Any, token: str | None = TOKEN, **options: Any) -> "Sent":
        """Begin a call on a connection of its own."""
        return Sent(self, method, request, token, options)


class Sent:
    """A call under way, for the length of a block; then its span."""

    def __init__(
        self, traced: Traced, method: str, request: Any, token: str | None, options: dict[str, Any]
    ) -> None:
        self._traced, self._request, self._options = traced, request, options
        self._method = method if method.startswith("/") else SERVICE + method
        self.request_id = new_id()
        self._metadata = [("x-request-id", self.request_id), *options.pop("metadata", ())]
        if token is not None:
            self._metadata.append(("authorization", f"Bearer {token}"))
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Any:
        address = self._traced.service.grpc_address
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = await self._stack.enter_async_context(
            grpc.aio.insecure_channel(address, options=options)
        )
        if "Watch" in self._method:
            call: Any = Stub(channel).WatchSipTrunks
        else:
            call = channel.unary_unary(self._method)
        body = self._request
        if call.__class__.__name__ == "UnaryUnaryMultiCallable" and not isinstance(body, bytes):
            body = body.SerializeToString()
        return call(body, metadata=self._metadata, **self._options)

    async def __aexit__(self, *error: Any) -> None:
        await self._stack.aclose()

    async def span(self) -> Seen:
        """The call's span, once it has come."""
        return await self._traced.collector.of(self.request_id)

    async def ended(self) -> str:
        """Wait for the end; the code."""
        async with self as call:
            try:
                await call
            except grpc.aio.AioRpcError as error:
                return error.code().name
        return "OK"


@asynccontextmanager
async def serving(collector: Collector, url: str, **values: Any) -> AsyncIterator[Traced]:
    """A traced service on a database."""
    async with traced(url, **values) as service:
        yield Traced(service, collector, url)


@asynccontextmanager
async def collector_of_this_process() -> AsyncIterator[Collector]:
    """A collector that the services of this process send their spans to."""
    with pytest.MonkeyPatch.context() as environment:
        async with collecting() as found:
            for name, value in variables(found.endpoint).items():
                environment.setenv(name, value)
            yield found


@asynccontextmanager
async def faulty(postgres: str, template: str) -> AsyncIterator[Traced]:
    """A traced service with its gateway, which trunks of some names make fail."""
    async with copied(postgres, template) as url, collector_of_this_process() as collector:
        connection = await asyncpg.connect(url)
        await connection.execute(FAULTS)
        await connection.close()
        async with serving(collector, url, http_address="127.0.0.1:0") as found:
            yield found


def create(**fields: Any) -> pb.CreateSipTrunkRequest:
    """A request for a trunk."""
    return pb.CreateSipTrunkRequest(sip_trunk=userpass(**fields))


async def blocked(traced: Traced, calls: int) -> None:
    """Wait until so many statements wait for a lock."""
    connection = await asyncpg.connect(traced.url)
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    try:
        async with asyncio.timeout(SECONDS_MAX):
            while await connection.fetchval(waiting) < calls:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(LOOK_SECONDS)
    finally:
        await connection.close()
