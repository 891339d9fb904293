import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import grpc
import httpx
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.http.clients import client
from tests.integration.conftest import created, minted
from tests.integration.scraping import (
    LOOK_SECONDS,
    OPENMETRICS,
    SECONDS_MAX,
    SERVICE,
    counted,
    locked,
    scraped,
    under_way,
    until,
    watching,
)
from tests.support import SipTrunk, connected, refused, update, userpass
from trunkline import interceptors, startup
from trunkline.tallies import BOUNDS_SECONDS

CALLS = "trunkline_grpc_calls_total"
TOOK = "trunkline_grpc_call_duration_seconds"
BROKEN = """
    CREATE FUNCTION objects() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = 'P0001'; END $$;
    CREATE TRIGGER objects BEFORE INSERT ON trunks FOR EACH ROW EXECUTE FUNCTION objects()"""
PROBES = """
    ALTER TABLE schema_migrations RENAME TO migrations_kept;
    CREATE TABLE probes (outcomes text, next integer);
    INSERT INTO probes VALUES ('{outcomes}', 0);
    CREATE FUNCTION probed() RETURNS boolean LANGUAGE plpgsql AS $$
        DECLARE outcome text;
        BEGIN
            SELECT substr(outcomes, nextval('probe')::integer, 1) INTO outcome FROM probes;
            IF outcome = 'F' THEN RAISE EXCEPTION 'away' USING ERRCODE = '42P01'; END IF;
            RETURN true;
        END $$;
    CREATE SEQUENCE probe;
    CREATE VIEW schema_migrations AS
        SELECT version, sha256 FROM migrations_kept, (SELECT probed() OFFSET 0) AS once"""


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def test_each_outcome_of_a_call_is_counted_by_method_and_code(database: str) -> None:
    made = await minted(database, "ours", ["trunks:read"])
    async with (
        counted(database, bootstrap_token="") as (service, stub),
        connected(service.grpc_address, (await minted(database, "ours")).text) as ours,
        connected(service.grpc_address, made.text) as reader,
        grpc.aio.insecure_channel(service.grpc_address) as channel,
    ):
        trunk = await created(ours)
        got = pb.GetSipTrunkRequest(id=trunk.id)
        for _ in range(3):
            await ours.GetSipTrunk(got)
        await refused(ours.GetSipTrunk(pb.GetSipTrunkRequest(id="absent")))
        await refused(ours.GetSipTrunk(pb.GetSipTrunkRequest()))
        await refused(stub.GetSipTrunk(got))
        await refused(reader.UpdateSipTrunk(update(trunk.id, name="x")))
        await refused(ours.UpdateSipTrunk(update(trunk.id, name="x", etag='"1-0"')))
        await refused(ours.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=trunk)))
        undecodable: Any = channel.unary_unary(f"{SERVICE}GetSipTrunk")
        sent = (("authorization", f"Bearer {made.text}"),)
        await refused(undecodable(b"\xff", metadata=sent))
        unknown: Any = channel.unary_unary("/nobody.Knows/Me")
        await refused(unknown(b""))
        await execute(database, BROKEN)
        await refused(ours.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass())))
        page = await scraped(service.metrics_address)
        counts = {
            (method.removeprefix(SERVICE), code): count
            for (method, code), count in page.values(CALLS, "method", "code").items()
        }
        assert counts == {
            ("CreateSipTrunk", "OK"): 1,
            ("CreateSipTrunk", "INTERNAL"): 1,
            ("CreateSipTrunk", "INVALID_ARGUMENT"): 1,
            ("GetSipTrunk", "OK"): 3,
            ("GetSipTrunk", "NOT_FOUND"): 1,
            ("GetSipTrunk", "INVALID_ARGUMENT"): 2,
            ("GetSipTrunk", "UNAUTHENTICATED"): 1,
            ("UpdateSipTrunk", "PERMISSION_DENIED"): 1,
            ("UpdateSipTrunk", "ABORTED"): 1,
            ("unknown", "UNIMPLEMENTED"): 1,
        }
        assert page.value("trunkline_token_lookups_total") >= 2


async def test_calls_that_their_callers_end_are_counted_as_such(database: str) -> None:
    async with counted(database) as (service, stub):
        trunk = await created(stub)
        method = f"{SERVICE}UpdateSipTrunk"
        async with locked(database, trunk.id):
            call = stub.UpdateSipTrunk(update(trunk.id, name="cancelled"))
            async with under_way(call):
                await until(
                    service.metrics_address, lambda p: p.value("trunkline_in_progress", kind="call")
                )
                call.cancel()
                await until(
                    service.metrics_address,
                    lambda p: p.value(CALLS, method=method, code="CANCELLED") == 1,
                )
            late = stub.UpdateSipTrunk(update(trunk.id, name="late"), timeout=0.2)
            with pytest.raises(grpc.aio.AioRpcError):
                await late
            page = await until(
                service.metrics_address,
                lambda p: p.value(CALLS, method=method, code="DEADLINE_EXCEEDED") == 1,
            )
        assert page.value("trunkline_in_progress", kind="call") == 0
        assert page.value(f"{TOOK}_count", method=method) == 2


async def test_a_call_without_a_near_deadline_is_ended_and_told_so(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptors, "CALL_SECONDS_MAX", 0.2)
    async with counted(database) as (service, stub):
        trunk = await created(stub)
        async with locked(database, trunk.id):
            call = stub.UpdateSipTrunk(update(trunk.id, name="x"), timeout=SECONDS_MAX)
            error = await refused(call)
        assert (error.code, error.reason) == ("DEADLINE_EXCEEDED", "CALL_TOO_LONG")
        page = await scraped(service.metrics_address)
        assert page.value(CALLS, method=f"{SERVICE}UpdateSipTrunk", code="DEADLINE_EXCEEDED") == 1


async def test_buckets_are_cumulative_and_end_with_all(database: str) -> None:
    async with counted(database) as (service, stub):
        for _ in range(20):
            await stub.ListSipTrunks(pb.ListSipTrunksRequest())
        for accept in ("text/plain", OPENMETRICS):
            page = await scraped(service.metrics_address, accept)
            method = f"{SERVICE}ListSipTrunks"
            buckets = {
                float(bound): count
                for (asked, bound), count in page.values(f"{TOOK}_bucket", "method", "le").items()
                if asked == method
            }
            assert [*buckets] == [*BOUNDS_SECONDS, float("inf")]
            assert [*buckets.values()] == sorted(buckets.values())
            assert buckets[float("inf")] == page.value(f"{TOOK}_count", method=method) == 20
            total = page.value(f"{TOOK}_sum", method=method)
            assert total > 0
            # Each took as long as the bound below its bucket at least.
            least = sum(
                below * (buckets[bound] - buckets[below])
                for below, bound in zip(
                    BOUNDS_SECONDS, (*BOUNDS_SECONDS[1:], float("inf")), strict=True
                )
            )
            assert least <= total


async def test_what_goes_on_shows_while_it_does(database: str) -> None:
    async with counted(database, database_pool_size=1) as (service, stub), AsyncExitStack() as held:
        trunk = await created(stub)
        await held.enter_async_context(locked(database, trunk.id))
        for name in ("one", "two"):
            call = stub.UpdateSipTrunk(update(trunk.id, name=name))
            await held.enter_async_context(under_way(call))
        await held.enter_async_context(watching(service.grpc_address))

        def is_seen(page: Any) -> bool:
            return bool(
                page.value("trunkline_in_progress", kind="call") == 2
                and page.value("trunkline_database_waiting", lane="calls") >= 1
                and page.value("trunkline_watchers") == 1
            )

        page = await until(service.metrics_address, is_seen)
        assert page.value("trunkline_in_progress", kind="stream") == 1
        assert page.value("trunkline_in_progress_max", kind="call") == 1000
        assert page.value("trunkline_in_progress_max", kind="stream") == 2000
        assert page.value("trunkline_database_connections_in_use", lane="calls") == 1
        assert page.value("trunkline_database_connections_max", lane="calls") == 1
        await held.aclose()

        def is_over(page: Any) -> bool:
            names = ("trunkline_database_waiting", "trunkline_database_connections_in_use")
            gone = [page.value(name, lane="calls") for name in names]
            gone += [page.value("trunkline_in_progress", kind=kind) for kind in ("call", "stream")]
            return not any((*gone, page.value("trunkline_watchers")))

        page = await until(service.metrics_address, is_over)
        assert page.value("trunkline_database_wait_seconds_count", lane="calls") >= 1


async def test_a_watch_counts_when_it_ends_and_how_long_it_took_does_not(database: str) -> None:
    async with counted(database) as (service, _):
        method = f"{SERVICE}WatchSipTrunks"
        async with watching(service.grpc_address):
            page = await until(service.metrics_address, lambda p: p.value("trunkline_watchers"))
            assert page.values(CALLS) == {}
        page = await until(
            service.metrics_address, lambda p: p.value(CALLS, method=method, code="CANCELLED") == 1
        )
        assert page.values(f"{TOOK}_count") == {}


async def test_requests_are_counted_by_route_and_status(database: str) -> None:
    async with (
        counted(database, http_address="127.0.0.1:0") as (service, stub),
        client(service.http_address) as http,
    ):
        trunk = await created(stub)
        url = f"/sip-trunks/trunks/{trunk.id}"
        await http.get(url)
        await http.get(f"{url}/")
        await http.patch(url, json={"nope": 1})
        await http.get("/sip-trunks/trunks/absent")
        await http.get("/no/such/path")
        await http.post("/docs")
        await http.get("/readyz")
        page = await scraped(service.metrics_address)
    assert page.values("trunkline_http_requests_total", "route", "status") == {
        ("GET /sip-trunks/trunks/{id}", "200"): 2,
        ("PATCH /sip-trunks/trunks/{id}", "400"): 1,
        ("GET /sip-trunks/trunks/{id}", "404"): 1,
        ("none", "404"): 1,
        ("none", "405"): 1,
        ("GET /readyz", "200"): 1,
    }
    took = page.values("trunkline_http_request_duration_seconds_count", "route")
    assert took[("GET /sip-trunks/trunks/{id}",)] == 3


async def test_the_page_is_right_in_both_formats_and_names_nobody(database: str) -> None:
    made = await minted(database, "acme")
    async with (
        counted(database, http_address="127.0.0.1:0") as (service, _),
        connected(service.grpc_address, made.text) as stub,
        client(service.http_address, made.text) as http,
        grpc.aio.insecure_channel(service.grpc_address) as channel,
    ):
        trunk = await created(stub)
        await http.get(f"/sip-trunks/trunks/{trunk.id}")
        await http.get(f"/sip-trunks/trunks/{trunk.id}/{trunk.id}")
        unknown: Any = channel.unary_unary(f"/{trunk.id}/acme")
        await refused(unknown(b""))
        for accept in ("text/plain", OPENMETRICS):
            page = await scraped(service.metrics_address, accept)
            assert page.media_type.startswith(accept.partition(";")[0])
            ours = [f.name for f in page.families if f.name.startswith("trunkline_")]
            assert len(set(ours)) == len(ours) > 15
            assert all(f.documentation for f in page.families)
            for hidden in (trunk.id, trunk.name, "acme", "ours", made.token_id, made.text):
                assert hidden not in page.text
        async with httpx.AsyncClient(trust_env=False) as other:
            answer = await other.get(f"http://{service.metrics_address}/")
        assert answer.status_code == 404


async def test_readiness_and_draining_show_to_the_end(database: str) -> None:
    async with AsyncExitStack() as stack:
        service, stub = await stack.enter_async_context(counted(database, drain_seconds=60))
        trunk = await created(stub)
        page = await scraped(service.metrics_address)
        assert page.value("trunkline_ready") == 1
        assert page.value("trunkline_draining") == 0
        async with connected(service.grpc_address) as other:
            async with locked(database, trunk.id):
                call = asyncio.ensure_future(renamed(other, trunk.id, "drained"))
                await until(
                    service.metrics_address, lambda p: p.value("trunkline_in_progress", kind="call")
                )
                end = asyncio.ensure_future(stack.aclose())
                page = await until(
                    service.metrics_address, lambda p: p.value("trunkline_draining") == 1
                )
                assert page.value("trunkline_ready") == 0
                assert page.value("trunkline_in_progress", kind="call") == 1
            assert (await call).name == "drained"
            await end


async def test_who_keeps_a_connection_to_the_page_is_no_fault_at_the_end(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with httpx.AsyncClient(trust_env=False) as scraper:
        async with counted(database) as (service, _):
            await scraper.get(f"http://{service.metrics_address}/metrics")
        with pytest.raises(httpx.TransportError):
            await scraper.get(f"http://{service.metrics_address}/metrics")
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == []


async def renamed(stub: Any, trunk_id: str, name: str) -> SipTrunk:
    answer = await stub.UpdateSipTrunk(update(trunk_id, name=name))
    assert isinstance(answer, SipTrunk)
    return answer


async def test_readiness_changes_with_two_probes_in_a_row(
    database: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "PROBE_SECONDS", 0.02)
    told = ("schema_mismatch", "not_ready", "ready_again")
    async with running(database) as service:
        await execute(database, PROBES.format(outcomes="SFSFSSFFSFSFFSS"))
        async with asyncio.timeout(SECONDS_MAX):
            while "ready_again" not in caplog.messages:  # noqa: ASYNC110 - a log has no event
                await asyncio.sleep(LOOK_SECONDS)
        assert service.startup.ready.is_set()
    assert [message for message in caplog.messages if message in told] == [
        *("schema_mismatch", "schema_mismatch", "schema_mismatch"),
        *("schema_mismatch", "not_ready"),
        *("schema_mismatch", "schema_mismatch", "schema_mismatch"),
        "ready_again",
    ]
