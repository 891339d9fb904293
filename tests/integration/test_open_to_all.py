"""What callers without a token may take: never what is for those who have one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.conftest import running
from tests.http.clients import client
from tests.integration.scraping import counted, scraped, watching
from tests.support import TOKEN, refusal
from trunkline import interceptors
from trunkline.gateway import app

LIST = reflection_pb2.ServerReflectionRequest(list_services="*")
METHODS = ["BIND", "COPY", "LINK", "LOCK", "MERGE", "MKCOL", "MOVE", "PROPFIND", "PURGE", "UNLOCK"]
"""Of those who have extended HTTP."""
ANSWER_SECONDS_MAX = 30


async def reflected(stack: AsyncExitStack, address: str) -> Any:
    """A reflection stream that stays open, on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=options))
    return reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(asked())


async def asked() -> AsyncIterator[Any]:
    """One question, and then none; a stream that is refused at once may not take even that."""
    yield LIST
    await asyncio.Event().wait()


async def test_reflection_takes_no_watch_its_place(database: str) -> None:
    async with counted(database, streams_max=1) as (service, _), AsyncExitStack() as stack:
        for _ in range(3):
            assert (await (await reflected(stack, service.grpc_address)).read()) is not grpc.aio.EOF
        async with watching(service.grpc_address):
            page = await scraped(service.metrics_address)
        assert page.value("trunkline_in_progress", kind="stream") == 1


async def test_reflection_has_its_own_bounds(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptors, "OPEN_STREAMS_MAX", 1)
    monkeypatch.setattr(interceptors, "REFLECTION_SECONDS_MAX", 1.0)
    async with running(database) as service, AsyncExitStack() as stack:
        first = await reflected(stack, service.grpc_address)
        await first.read()
        second = await reflected(stack, service.grpc_address)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await second.read()
        assert refusal(error.value).reason == "TOO_MANY_CALLS"
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await first.read()
        assert refusal(error.value).code == "DEADLINE_EXCEEDED"
        assert (await (await reflected(stack, service.grpc_address)).read()) is not grpc.aio.EOF


@pytest.mark.parametrize(("token", "status"), [(TOKEN, 408), ("", 401)])
async def test_a_body_that_does_not_come_gives_its_place_back(
    database: str, monkeypatch: pytest.MonkeyPatch, token: str, status: int
) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS_MAX", 0.5)
    head = (
        "POST /sip-trunks/trunks HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {token}\r\ncontent-length: 10\r\n\r\n{{"
    )
    async with running(database, http_address="127.0.0.1:0", calls_max=1) as service:
        host, _, port = service.http_address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(head.encode())
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                answer = await reader.readuntil(b"\r\n")
        finally:
            writer.close()
            await writer.wait_closed()
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        async with client(service.http_address) as http:
            assert (await http.get("/sip-trunks/trunks")).status_code == 200


async def test_methods_that_http_does_not_have_are_counted_as_one(database: str) -> None:
    async with (
        counted(database, http_address="127.0.0.1:0") as (service, _),
        client(service.http_address) as http,
    ):
        for method in METHODS:
            answer = await http.request(method, "/sip-trunks/trunks")
            assert answer.status_code == 405
        for number in range(len(METHODS)):
            answer = await http.request(f"XX{number}", "/sip-trunks/trunks")
            assert (answer.status_code, answer.json()["reason"]) == (400, "NOT_HTTP")
        page = await scraped(service.metrics_address)
        counts = page.values("trunkline_http_requests_total", "route", "status")
        assert counts == {("_OTHER /sip-trunks/trunks", "405"): len(METHODS)}
