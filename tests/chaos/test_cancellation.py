"""Callers that leave, deadlines that pass, sessions that are ended: the pool stays whole."""

import asyncio
import random
from collections import Counter
from typing import Any

import asyncpg
import grpc

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.support import connected, update, userpass
from trunkline.server import CONNECTIONS_ASIDE

ROUNDS = 10
CALLS = 64
POOL = 6
TERMINATIONS = 40


async def code_of(call: Any) -> str:
    """How a call ends."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    except asyncio.CancelledError:
        return "CANCELLED"
    return "OK"


async def sessions(url: str) -> Counter[str]:
    """The service's sessions by state; but the feed's, which is none of the pool's."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT state FROM pg_stat_activity"
            " WHERE application_name = 'trunkline' AND datname = current_database()"
            " AND query NOT LIKE '%feed_state%'"
        )
    finally:
        await connection.close()
    return Counter(row["state"] for row in rows)


async def check_pool(url: str, stub: Any, trunk_id: str) -> None:
    """More calls than connections at once are answered, and no session holds anything."""
    changes = [update(trunk_id, "qualify_frequency", qualify_frequency=n) for n in range(POOL * 5)]
    assert {await code_of(call) for call in map(stub.UpdateSipTrunk, changes)} == {"OK"}
    codes = await asyncio.gather(*(code_of(stub.UpdateSipTrunk(change)) for change in changes))
    assert set(codes) == {"OK"}
    found = await sessions(url)
    assert set(found) <= {"idle"}
    assert found.total() <= POOL + CONNECTIONS_ASIDE


async def test_a_storm_of_cancelled_calls_leaves_the_pool_whole(database: str) -> None:
    """Updates of one row, cancelled by their callers at any point, or never."""
    async with (
        running(database, database_pool_size=POOL) as service,
        connected(service.grpc_address) as stub,
    ):
        trunk = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
        codes: Counter[str] = Counter()
        for _ in range(ROUNDS):
            calls = [
                stub.UpdateSipTrunk(update(trunk.id, "description", description=f"n={n}"))
                for n in range(CALLS)
            ]
            ends = [asyncio.ensure_future(code_of(call)) for call in calls]
            for call in random.sample(calls, CALLS * 3 // 4):
                await asyncio.sleep(random.random() * 0.002)
                call.cancel()
            codes.update(await asyncio.gather(*ends))
        assert codes.keys() == {"OK", "CANCELLED"}
        await check_pool(database, stub, trunk.id)


async def test_a_storm_of_short_deadlines_leaves_the_pool_whole(database: str) -> None:
    """Updates of one row with less time than they need, or just enough."""
    async with (
        running(database, database_pool_size=POOL) as service,
        connected(service.grpc_address) as stub,
    ):
        trunk = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
        codes: Counter[str] = Counter()
        for _ in range(ROUNDS):
            requests = [update(trunk.id, "description", description=f"n={n}") for n in range(CALLS)]
            codes.update(
                await asyncio.gather(
                    *(
                        code_of(stub.UpdateSipTrunk(r, timeout=random.uniform(0.001, 0.15)))
                        for r in requests
                    )
                )
            )
        assert codes["DEADLINE_EXCEEDED"]
        assert codes.keys() <= {"OK", "DEADLINE_EXCEEDED"}
        await check_pool(database, stub, trunk.id)


async def until_nobody_waits(holder: "asyncpg.Connection[asyncpg.Record]") -> None:
    waiting = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    async with asyncio.timeout(30):
        while True:
            if not await holder.fetchval(waiting):
                return
            await asyncio.sleep(0.02)


async def test_callers_that_leave_in_a_row_lock_queue_leave_the_pool_whole(database: str) -> None:
    """Every connection of the pool waits for a row that another session holds."""
    async with (
        running(database, database_pool_size=POOL) as service,
        connected(service.grpc_address) as stub,
    ):
        trunk = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
        holder = await asyncpg.connect(database)
        for _ in range(3):
            async with holder.transaction():
                await holder.execute("SELECT FROM trunks WHERE id = $1 FOR UPDATE", trunk.id)
                calls = [
                    code_of(
                        stub.UpdateSipTrunk(
                            update(trunk.id, "description", description=f"n={n}"), timeout=0.3
                        )
                    )
                    for n in range(CALLS)
                ]
                assert set(await asyncio.gather(*calls)) == {"DEADLINE_EXCEEDED"}
                # A caller's deadline may pass before its cancel has reached PostgreSQL.
                await until_nobody_waits(holder)
        await holder.close()
        read = await stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk.id))
        assert not read.HasField("description")
        await check_pool(database, stub, trunk.id)


async def test_a_session_that_is_ended_gives_its_caller_an_answer(database: str) -> None:
    """pg_terminate_backend on every session of the service while calls run.

    Each call ends with OK or UNAVAILABLE, and none waits for ever: what is cancelled inside a
    handler, and not by the caller, must have an answer too.
    """
    async with (
        running(database, database_pool_size=POOL) as service,
        connected(service.grpc_address) as stub,
    ):
        trunk = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
        killer = await asyncpg.connect(database)
        codes: Counter[str] = Counter()
        ended = 0
        for _ in range(TERMINATIONS):
            calls = [
                asyncio.ensure_future(
                    code_of(
                        stub.UpdateSipTrunk(
                            update(trunk.id, "description", description=f"n={n}"), timeout=20
                        )
                    )
                )
                for n in range(POOL * 2)
            ]
            await asyncio.sleep(random.random() * 0.01)
            ended += await killer.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name = 'trunkline' AND datname = current_database()"
            )
            codes.update(await asyncio.gather(*calls))
        await killer.close()
        assert ended >= TERMINATIONS
        assert codes.keys() == {"OK", "UNAVAILABLE"}
        await check_pool(database, stub, trunk.id)
