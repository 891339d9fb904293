import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.e2e.processes import PROGRAM, environment
from tests.e2e.processes import SECONDS_MAX as PROCESS_SECONDS_MAX
from tests.http.clients import client
from tests.integration.conftest import created, read
from tests.integration.scraping import (
    SERVICE,
    counted,
    locked,
    scraped,
    under_way,
    until,
    watching,
)
from tests.support import TOKEN, Refusal, SipTrunk, connected, refusal, refused, update
from trunkline.admission import RETRY_SECONDS
from trunkline.interceptors import DEADLINE_SECONDS_MIN
from trunkline.store.pool import RETRY_SECONDS as DATABASE_RETRY_SECONDS

LYING_CALLS_MAX = 200
LIST = pb.ListSipTrunksRequest()


async def is_healthy(address: str) -> bool:
    async with grpc.aio.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.parametrize("most", [1, 2])
async def test_calls_beyond_those_at_once_are_turned_away(database: str, most: int) -> None:
    async with counted(database, calls_max=most) as (service, stub), AsyncExitStack() as held:
        trunk = await created(stub)
        await held.enter_async_context(locked(database, trunk.id))
        for name in range(most):
            call = stub.UpdateSipTrunk(update(trunk.id, name=f"{name}"))
            await held.enter_async_context(under_way(call))
        await until(
            service.metrics_address, lambda p: p.value("trunkline_in_progress", kind="call") == most
        )
        for call in (
            stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk.id)),
            stub.ListSipTrunks(LIST),
        ):
            error = await refused(call)
            assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")
            assert error.retry_seconds == RETRY_SECONDS
            assert f"({most})" in error.message
        assert await is_healthy(service.grpc_address)
        async with watching(service.grpc_address):
            page = await scraped(service.metrics_address)
        assert page.values("trunkline_turned_away_total", "kind") == {
            ("call",): 2,
            ("stream",): 0,
            ("http_request",): 0,
            ("http_watch",): 0,
        }
        method = f"{SERVICE}ListSipTrunks"
        counts = page.values("trunkline_grpc_calls_total", "method", "code")
        assert counts[method, "RESOURCE_EXHAUSTED"] == 1
        assert page.value("trunkline_in_progress", kind="call") == most
        await held.aclose()
        await until(
            service.metrics_address, lambda p: not p.value("trunkline_in_progress", kind="call")
        )
        assert (await read(stub, trunk.id)).id == trunk.id


async def test_streams_beyond_those_at_once_are_turned_away_and_calls_are_not(
    database: str,
) -> None:
    async with (
        counted(database, streams_max=1, http_address="127.0.0.1:0") as (service, stub),
        client(service.http_address) as http,
    ):
        async with watching(service.grpc_address):
            await until(service.metrics_address, lambda p: p.value("trunkline_watchers") == 1)
            async with connected(service.grpc_address) as other:
                try:
                    async for _ in other.WatchSipTrunks(pb.WatchSipTrunksRequest()):
                        raise AssertionError("a second watch was let in")
                except grpc.aio.AioRpcError as ended:
                    error = refusal(ended)
            assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")
            await stub.ListSipTrunks(LIST)
            answer = await http.get("/sip-trunks/trunks:watch")
            assert (answer.status_code, answer.json()["reason"]) == (429, "TOO_MANY_CALLS")
            page = await scraped(service.metrics_address)
        assert page.value("trunkline_turned_away_total", kind="stream") == 2
        assert page.value("trunkline_turned_away_total", kind="http_watch") == 0


async def test_requests_beyond_those_at_once_are_told_when_to_try_again(database: str) -> None:
    async with (
        counted(database, calls_max=1, http_address="127.0.0.1:0") as (service, stub),
        client(service.http_address) as http,
        AsyncExitStack() as held,
    ):
        trunk = await created(stub)
        url = f"/sip-trunks/trunks/{trunk.id}"
        await held.enter_async_context(locked(database, trunk.id))
        await held.enter_async_context(under_way(http.patch(url, json={"name": "held"})))
        await until(
            service.metrics_address, lambda p: p.value("trunkline_in_progress", kind="call") == 1
        )
        answer = await http.get(url)
        assert (answer.status_code, answer.json()["reason"]) == (429, "TOO_MANY_CALLS")
        assert int(answer.headers["Retry-After"]) >= 1
        assert "x-request-id" in answer.headers
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.get("/readyz")).status_code == 200
        page = await scraped(service.metrics_address)
        assert page.value("trunkline_turned_away_total", kind="http_request") == 1
        assert page.value("trunkline_turned_away_total", kind="call") == 0
        counts = page.values("trunkline_http_requests_total", "route", "status")
        assert counts["none", "429"] == 1


async def test_a_request_for_which_the_service_has_no_room_is_told_when_to_try_again(
    database: str,
) -> None:
    async with (
        counted(database, calls_max=1, http_address="127.0.0.1:0") as (service, stub),
        client(service.http_address) as http,
        AsyncExitStack() as held,
    ):
        trunk = await created(stub)
        await held.enter_async_context(locked(database, trunk.id))
        call = stub.UpdateSipTrunk(update(trunk.id, name="held"))
        await held.enter_async_context(under_way(call))
        await until(
            service.metrics_address, lambda p: p.value("trunkline_in_progress", kind="call") == 1
        )
        answer = await http.get(f"/sip-trunks/trunks/{trunk.id}")
        assert (answer.status_code, answer.json()["reason"]) == (429, "TOO_MANY_CALLS")
        assert int(answer.headers["Retry-After"]) >= 1
        page = await scraped(service.metrics_address)
        assert page.value("trunkline_turned_away_total", kind="call") == 1
        assert page.value("trunkline_turned_away_total", kind="http_request") == 0


async def test_a_call_waits_for_a_connection_for_so_long_and_is_told_to_try_again(
    database: str,
) -> None:
    limits = {"database_pool_size": 1, "database_wait_seconds": 1}
    async with counted(database, **limits) as (service, stub), AsyncExitStack() as held:
        trunk = await created(stub)
        await held.enter_async_context(locked(database, trunk.id))
        call = stub.UpdateSipTrunk(update(trunk.id, name="held"))
        await held.enter_async_context(under_way(call))
        await until(
            service.metrics_address,
            lambda p: p.value("trunkline_database_connections_in_use", lane="calls") == 1,
        )
        error = await refused(stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk.id)))
        assert (error.code, error.reason) == ("UNAVAILABLE", "DATABASE_BUSY")
        assert error.retry_seconds == DATABASE_RETRY_SECONDS
        assert await is_healthy(service.grpc_address)
        page = await scraped(service.metrics_address)
        # At least: what goes on beside the calls takes its turn, too.
        assert page.value("trunkline_database_waited_in_vain_total", lane="calls") >= 1
        assert page.value("trunkline_database_wait_seconds_count", lane="calls") >= 1
        assert page.value("trunkline_database_wait_seconds_sum", lane="calls") >= 1
        assert page.value("trunkline_database_lost_total", lane="calls") == 0
        assert page.value("trunkline_ready") == 1
        await held.aclose()
        assert (await read(stub, trunk.id)).id == trunk.id


async def _lied(address: str, trunk: SipTrunk, timeout: str) -> Refusal | None:
    """What a caller is told who says how long it waits, and waits for longer."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        call: Any = channel.unary_unary(f"{SERVICE}GetSipTrunk")
        metadata = (("authorization", f"Bearer {TOKEN}"), ("grpc-timeout", timeout))
        try:
            await call(pb.GetSipTrunkRequest(id=trunk.id).SerializeToString(), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            # The server's transport may be faster than the server: then there are no details.
            return refusal(error) if "details" in str(error.trailing_metadata()) else None
    return None


async def test_a_call_with_too_little_time_left_is_refused_before_anything_is_done(
    database: str,
) -> None:
    timeout = f"{DEADLINE_SECONDS_MIN * 1000 - 1:.0f}m"
    async with counted(database) as (service, stub):
        trunk = await created(stub)
        for _ in range(LYING_CALLS_MAX):
            error = await _lied(service.grpc_address, trunk, timeout)
            if error is not None:
                break
        assert error is not None
        assert (error.code, error.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_TOO_SHORT")
        page = await scraped(service.metrics_address)
        counts = page.values("trunkline_grpc_calls_total", "method", "code")
        assert {code for method, code in counts if method == f"{SERVICE}GetSipTrunk"} == {
            "DEADLINE_EXCEEDED"
        }


def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()


async def test_a_gateway_alone_has_a_page_of_its_own(database: str, tmp_path: Path) -> None:
    async with counted(database) as (service, stub), AsyncExitStack() as stack:
        trunk = await created(stub)
        with (tmp_path / "gateway.err").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *(PROGRAM, "gateway", "--upstream", service.grpc_address),
                env=environment(http_address="127.0.0.1:0", metrics_address="127.0.0.1:0"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        stack.push_async_callback(process.wait)
        stack.callback(_end, process)
        assert process.stdout is not None
        async with asyncio.timeout(PROCESS_SECONDS_MAX):
            line = (await process.stdout.readline()).decode()
        told = dict(part.split("=") for part in line.split() if "=" in part)
        async with client(told["http"]) as http:
            assert (await http.get(f"/sip-trunks/trunks/{trunk.id}")).status_code == 200
        page = await scraped(told["metrics"])
        route = "GET /sip-trunks/trunks/{id}"
        counts = page.values("trunkline_http_requests_total", "route", "status")
        assert counts == {(route, "200"): 1}
        assert page.values("trunkline_in_progress", "kind") == {
            ("http_request",): 0,
            ("http_watch",): 0,
        }
        assert page.values("trunkline_grpc_calls_total", "method", "code") == {}
        assert not [f for f in page.families if f.name.startswith("trunkline_database")]
        assert trunk.id not in page.text
        process.terminate()
        async with asyncio.timeout(PROCESS_SECONDS_MAX):
            assert await process.wait() == 0
        assert (tmp_path / "gateway.err").read_text().count('"level": "error"') == 0
        with pytest.raises(httpx.ConnectError):
            await scraped(told["metrics"])
