"""Servers that are started and ended while callers call: no call fails, nothing is lost."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.chaos.fleet import bearer
from tests.chaos.rolling_fleet import UPDATE, Rolling, faults, measured, until
from tests.chaos.rolling_links import ENHANCE_YOUR_CALM, Balancer, Pinging
from tests.chaos.rolling_load import CALLERS, HEALTHY, RETRYING, TRUNKS, Access, Load
from tests.chaos.rolling_rotation import Certificates, rotate_keys, rotate_token, token_made
from tests.chaos.rolling_storm import GIVEN_UP, Storm, assert_nothing_is_left
from tests.chaos.size import sized
from tests.conftest import _copied
from tests.e2e.processes import SECONDS_MAX, Server, events, free_address, health, status
from tests.e2e.sealed import opened
from tests.integration.conftest import created
from tests.support import KEYS, KEYS_NEWER, TOKEN, Stub, connected, refusal, update
from trunkline.cli import serve
from trunkline.config import CLIENT_PING_SECONDS_MIN, KEEPALIVE_ANSWER_SECONDS_MAX

ROUNDS = sized(ci=2, full=12)
ROTATIONS = sized(ci=1, full=5)
AGES = sized(ci=1, full=20)
UPDATES_BETWEEN = 25
LET_GO_SECONDS_MAX = 2 * (1 + KEEPALIVE_ANSWER_SECONDS_MAX)
"""Twice as long as the settings say, and not yet the minute after which gRPC gives up anyway."""
PINGS_MAX = 3
"""One more at once, and the connection is lost."""
PINGS = sized(ci=2, full=5)
PING_SECONDS = sized(ci=CLIENT_PING_SECONDS_MIN + 0.5, full=30.0)
SHORT = {"connection_age_seconds": "1", "connection_grace_seconds": "1"}
"""Connections of callers, and how long a watch may outlive one."""
FOREVER = "3600"
DRAIN_SECONDS = sized(ci=2, full=12)
KILLED_AFTER_SECONDS = 10
"""How much longer than the drain's named times an orchestrator waits (`deploy/`)."""
CALLS, IN_PROGRESS = "trunkline_grpc_calls_total", "trunkline_in_progress"
WATCHERS = "trunkline_watchers"
HEALTH_WATCH = "/grpc.health.v1.Health/Watch"


@pytest.fixture(scope="module", autouse=True)
async def peers(
    postgres: str, template: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator["asyncio.Task[tuple[float, list[bool]]]"]:
    """What takes long because it does nothing: it goes on beside the tests of this module."""
    async for database in _copied(postgres, template):
        directory = tmp_path_factory.mktemp("peers")
        async with Rolling(directory, database, 1, keepalive_seconds="1") as fleet:
            task = asyncio.create_task(quiet_peers(fleet))
            yield task
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def quiet_peers(fleet: Rolling) -> tuple[float, list[bool]]:
    """One whose link goes silent, and one that has no calls and pings.

    Returns:
        How many streams are left once the silent one is let go; of each ping, if it was answered.
    """
    left, said = await asyncio.gather(silent(fleet), patient(fleet))
    return left, said


async def silent(fleet: Rolling) -> float:
    async with Balancer(fleet.grpc) as link, raw(link.address) as streams:
        watch = streams.WatchSipTrunks(pb.WatchSipTrunksRequest(), metadata=bearer(TOKEN))
        await watch.read()
        assert await measured(fleet.metrics[0], WATCHERS) == 1
        link.go_silent()
        async with asyncio.timeout(LET_GO_SECONDS_MAX):
            await until(fleet.metrics[0], 0, WATCHERS)
        return await measured(fleet.metrics[0], IN_PROGRESS, "stream")


async def patient(fleet: Rolling) -> list[bool]:
    async with Pinging(fleet.grpc[0]) as pinging:
        said = [await pinging.ping() for _ in range(PINGS_MAX)]
        for _ in range(PINGS):
            await asyncio.sleep(PING_SECONDS)
            said.append(await pinging.ping())
        return said


@pytest.mark.timeout(900)
async def test_servers_restart_one_by_one_with_newer_keys_and_no_call_fails(
    database: str, tmp_path: Path
) -> None:
    """Callers look at health, and retry nothing."""
    async with Rolling(tmp_path, database, drain_delay_seconds="1") as fleet:
        load = Load(Access(fleet.grpc, fleet.http, config=HEALTHY), database)
        async with load.running():
            await load.more(UPDATES_BETWEEN)
            await rotate_keys(fleet, load)
            await rolled(fleet, load, ROUNDS - 2)
        await load.check()
        assert set(load.ends) == {"UNAVAILABLE DRAINING"}
        assert await opened(database, KEYS_NEWER) == load.passwords


@pytest.mark.timeout(900)
async def test_servers_restart_in_a_storm_of_cancelled_calls_and_nothing_is_left(
    database: str, tmp_path: Path
) -> None:
    """Callers do not look at health, and retry."""
    async with Rolling(tmp_path, database) as fleet:
        access = Access(fleet.grpc, fleet.http, config=RETRYING)
        load = Load(access, database)
        async with load.running(), asyncio.TaskGroup() as group:
            async with connected(fleet.grpc[0]) as stub:
                storm = Storm(access, (await created(stub)).id)
            group.create_task(storm.run())
            await rolled(fleet, load, ROUNDS - 1)
            storm.going = False
        await load.check()
        assert set(storm.codes) == {"OK"}
        assert storm.given_up > GIVEN_UP
        await assert_nothing_is_left(fleet, database)


async def rolled(fleet: Rolling, load: Load, rounds: int) -> None:
    """Restart each server, one after the other, each once all callers have found the last one."""
    for place in [*range(len(fleet.grpc))] * rounds:
        await load.more(UPDATES_BETWEEN)
        await fleet.restart(place)
        await fleet.found(place, CALLERS)


@pytest.mark.timeout(900)
async def test_certificates_and_tokens_change_and_no_call_fails(
    database: str, tmp_path: Path
) -> None:
    """Connections are short, so that each change meets new ones."""
    certificates = Certificates(tmp_path)
    async with Rolling(tmp_path, database, **SHORT, **certificates.settings) as fleet:
        access = Access(fleet.grpc, fleet.http, token=await token_made(fleet))
        load = Load(certificates.access(access, 0), database)
        async with load.running():
            for _ in range(ROTATIONS):
                await certificates.rotate(fleet, load)
                await rotate_token(fleet, load)
            await load.more(UPDATES_BETWEEN)
        await load.check()
        assert [fault for server in fleet.servers for fault in faults(server.err)] == []


async def test_connections_turn_over_and_spread_to_a_server_that_joins(
    database: str, tmp_path: Path
) -> None:
    """Behind a balancer of connections. A watch is cut, and misses nothing."""
    async with (
        Rolling(tmp_path, database, **SHORT) as fleet,
        Balancer(fleet.grpc[:1]) as front,
    ):
        load = Load(Access([front.address], fleet.http[:1], config={}), database)
        async with load.running():
            await load.more(UPDATES_BETWEEN)
            assert await measured(fleet.metrics[1], CALLS, UPDATE) == 0
            front.targets.append(fleet.grpc[1])
            await fleet.found(1, AGES * CALLERS)
        await load.check()
        assert set(load.ends) == {"UNAVAILABLE"}


@asynccontextmanager
async def raw(address: str) -> AsyncIterator[Any]:
    """A stub of a server whose streams are as grpc has them."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield Stub(channel)


async def test_a_server_that_is_about_to_end_answers_while_health_says_no(
    database: str, tmp_path: Path
) -> None:
    """Calls and watches, old and new; a client that looks at health does so once.

    Signals that come together are one; a second one ends the process at once.
    """
    async with (
        Rolling(tmp_path, database, 1, drain_delay_seconds=FOREVER) as fleet,
        connected(fleet.grpc[0]) as stub,
        raw(fleet.grpc[0]) as streams,
        health(fleet.grpc[0]) as asked,
        Access(fleet.grpc, fleet.http).channel() as looking,
        httpx.AsyncClient(trust_env=False, timeout=SECONDS_MAX) as http,
    ):
        trunk = await created(stub)
        watch = streams.WatchSipTrunks(pb.WatchSipTrunksRequest(), metadata=bearer(TOKEN))
        await watch.read()
        said = asked.Watch(health_pb2.HealthCheckRequest())
        assert (await said.read()).status == health_pb2.HealthCheckResponse.SERVING
        await looking.channel_ready()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            fleet.servers[0].signal(number)
        assert (await said.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        while looking.get_state() == grpc.ChannelConnectivity.READY:
            await looking.wait_for_state_change(grpc.ChannelConnectivity.READY)
        await stub.UpdateSipTrunk(update(trunk.id, "description", description="late"))
        async with asyncio.timeout(SECONDS_MAX):
            assert [e.revision for e in (await watch.read()).events] == [2]
            late = streams.WatchSipTrunks(
                pb.WatchSipTrunksRequest(initial_state=True), metadata=bearer(TOKEN)
            )
            assert not (await late.read()).events
            assert [e.revision for e in (await late.read()).events] == [2]
        url = f"http://{fleet.http[0]}"
        headers = dict(bearer(TOKEN))
        answer = await http.patch(
            f"{url}{TRUNKS}/{trunk.id}", json={"description": "later"}, headers=headers
        )
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert (await http.get(f"{url}/readyz")).status_code == 503
        assert (await http.get(f"{url}/healthz")).status_code == 200
        assert await status(fleet.grpc[0]) == "NOT_SERVING"
        assert await status(fleet.grpc[0], "liveness") == "SERVING"
        assert await measured(fleet.metrics[0], CALLS, HEALTH_WATCH) == 0
        await asyncio.sleep(serve.TOGETHER_SECONDS)
        fleet.servers[0].signal(signal.SIGTERM)
        assert (await fleet.servers[0].ended()).code == 1


async def test_open_streams_do_not_hold_up_the_end_of_a_server(
    database: str, tmp_path: Path
) -> None:
    """Each is told, in its own way, long before the time for calls is over."""
    async with (
        Rolling(tmp_path, database, 1, drain_seconds=FOREVER) as fleet,
        raw(fleet.grpc[0]) as streams,
        health(fleet.grpc[0]) as asked,
        grpc.aio.insecure_channel(fleet.grpc[0]) as channel,
        httpx.AsyncClient(trust_env=False, timeout=SECONDS_MAX) as http,
        http.stream(
            "GET", f"http://{fleet.http[0]}{TRUNKS}:watch", headers=dict(bearer(TOKEN))
        ) as events,
    ):
        watch = streams.WatchSipTrunks(pb.WatchSipTrunksRequest(), metadata=bearer(TOKEN))
        await watch.read()
        names = ("", "liveness")
        said = [asked.Watch(health_pb2.HealthCheckRequest(service=name)) for name in names]
        for call in said:
            assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVING
        reflected = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await reflected.write(reflection_pb2.ServerReflectionRequest(list_services="*"))
        await reflected.read()
        assert (await fleet.servers[0].stop()).code == 0
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await watch.read()
        found = refusal(error.value)
        assert (found.code, found.reason) == ("UNAVAILABLE", "DRAINING")
        assert found.metadata["resumeToken"]
        assert (await said[0].read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        for call in (*said, reflected):
            assert await call.read() is grpc.aio.EOF
            assert await call.code() == grpc.StatusCode.OK
        assert b'"reason":"DRAINING"' in await events.aread()


async def test_server_with_calls_that_never_end_ends_before_it_is_killed(
    database: str, tmp_path: Path
) -> None:
    """Over gRPC and over HTTP at the same time: it is one time that all of them have.

    A client that looks at health begins its stream once, and not again and again meanwhile.
    """
    settings = {"drain_seconds": str(DRAIN_SECONDS), "log_level": "debug"}
    async with (
        Rolling(tmp_path, database, 1, **settings) as fleet,
        connected(fleet.grpc[0]) as stub,
        Access(fleet.grpc, fleet.http).channel() as looking,
        httpx.AsyncClient(trust_env=False, timeout=SECONDS_MAX) as http,
    ):
        trunk = await created(stub)
        url = f"http://{fleet.http[0]}{TRUNKS}/{trunk.id}"
        holder = await asyncpg.connect(database)
        async with holder.transaction():
            await holder.execute("SELECT FROM trunks WHERE id = $1 FOR UPDATE", trunk.id)
            change = update(trunk.id, "description", description="x")
            call = asyncio.create_task(refused_by_grpc(stub.UpdateSipTrunk(change)))
            sent = http.patch(url, json={"is_active": False}, headers=dict(bearer(TOKEN)))
            request = asyncio.create_task(sent)
            await until(fleet.metrics[0], 2, IN_PROGRESS, "call")
            await looking.channel_ready()
            fleet.servers[0].signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(DRAIN_SECONDS + KILLED_AFTER_SECONDS):
                    done = await fleet.servers[0].ended()
            except TimeoutError:
                pytest.fail("it did not end in time")
            assert done.code == 0
            assert len(events(done.err, "call", method=HEALTH_WATCH)) == 1
            assert await call == "UNAVAILABLE"
            assert (await request).status_code in (500, 503)
        await holder.close()


async def refused_by_grpc(call: Any) -> str:
    """The code that a call ends with, which is of gRPC's own making."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code().name


async def test_call_that_comes_while_a_server_starts_waits_for_it(
    database: str, tmp_path: Path
) -> None:
    """Clients find a server as soon as it listens, which is before it has seen its database."""
    address, counts = free_address(), free_address()
    settings = {"database_url": database, "secret_keys": KEYS}
    holder = await asyncpg.connect(database)
    async with (
        holder.transaction(),
        Server(tmp_path, grpc_address=address, metrics_address=counts, **settings) as server,
        connected(address) as stub,
    ):
        await holder.execute("LOCK TABLE schema_migrations")
        assert await status(address) == "NOT_SERVING"
        call = asyncio.ensure_future(created(stub))
        await until(counts, 1, IN_PROGRESS, "call")
        await holder.execute("COMMIT; BEGIN")
        assert (await call).name
        await server.ready()
    await holder.close()


async def test_peer_that_goes_silent_is_let_go_and_one_that_pings_is_not(
    peers: "asyncio.Task[tuple[float, list[bool]]]",
) -> None:
    assert await peers == (0, [True] * (PINGS_MAX + PINGS))


async def test_peer_that_pings_too_often_loses_its_connection(service: str) -> None:
    async with Pinging(service) as pinging:
        assert [await pinging.ping() for _ in range(PINGS_MAX)] == [True] * PINGS_MAX
        await pinging.ping()
        assert await pinging.lost() == f"{ENHANCE_YOUR_CALM} too_many_pings"
