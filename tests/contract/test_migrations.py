import asyncio
from typing import Any

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.support import TOKEN, Refusal, connected, refused, settings, update, userpass
from trunkline import migrate
from trunkline.migrate import SchemaError
from trunkline.server import serving
from trunkline.startup import PROBE_SECONDS
from trunkline.store.database import Database

SERVERS = 6
STATES_SECONDS_MAX = 30
POLL_SECONDS = 0.05
PROBES_SECONDS = 3 * PROBE_SECONDS
_HEALTH = health_pb2.HealthCheckResponse


async def opened(url: str) -> Database:
    return await Database.open(url, 1, 0)


async def recorded(url: str) -> list[int]:
    """The schema versions that a database says it has."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT version FROM schema_migrations ORDER BY version")
        return [row["version"] for row in rows]
    finally:
        await connection.close()


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def tables(url: str) -> set[str]:
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return {row["tablename"] for row in rows}
    finally:
        await connection.close()


async def refusal_with(stub: Any, reason: str) -> Refusal:
    """The refusal of calls once the server has found out why it can't be ready."""
    async with asyncio.timeout(STATES_SECONDS_MAX):
        while True:
            error = await refused(stub.ListSipTrunks(pb.ListSipTrunksRequest()))
            if error.reason != "STARTING":
                assert error.reason == reason
                return error
            await asyncio.sleep(POLL_SECONDS)


async def health(address: str, name: str) -> Any:
    async with grpc.aio.insecure_channel(address) as channel:
        request = health_pb2.HealthCheckRequest(service=name)
        return (await health_pb2_grpc.HealthStub(channel).Check(request)).status


async def not_serving(address: str) -> None:
    """Wait until a server says that it is not ready."""
    async with (
        asyncio.timeout(STATES_SECONDS_MAX),
        grpc.aio.insecure_channel(address) as channel,
    ):
        states: Any = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        async for state in states:
            if state.status == _HEALTH.NOT_SERVING:
                return


def test_versions_are_numbered_without_a_gap() -> None:
    assert [m.version for m in migrate.known()] == list(range(1, len(migrate.known()) + 1))


async def test_empty_database_gets_every_version_once(empty_database: str) -> None:
    database = await opened(empty_database)
    known = migrate.known()
    assert await migrate.missing(database) == known
    assert await migrate.apply(database) == known
    assert await migrate.missing(database) == []
    assert await migrate.apply(database) == []
    await database.close()
    assert await recorded(empty_database) == [m.version for m in known]


async def test_database_at_an_older_version_gets_the_rest_alone(empty_database: str) -> None:
    first, *rest = migrate.known()
    database = await opened(empty_database)
    await migrate.apply(database)
    await execute(
        empty_database,
        "DELETE FROM schema_migrations WHERE version > 1;"
        " DROP TABLE phone_numbers, trunks, trunk_revisions, feed_pending, feed, feed_state,"
        " requests;"
        " DROP FUNCTION trunk_gateway_keys, trunk_ip_keys, trunk_snapshot, trunk_kept_gateways,"
        " request_claimed",
    )
    assert await migrate.apply(database) == rest
    await database.close()
    assert await recorded(empty_database) == [m.version for m in (first, *rest)]


async def test_migrations_that_start_together_are_applied_once(empty_database: str) -> None:
    databases = [await opened(empty_database) for _ in range(SERVERS)]
    applied = await asyncio.gather(*(migrate.apply(database) for database in databases))
    for database in databases:
        await database.close()
    assert sorted(map(len, applied)) == [0] * (SERVERS - 1) + [len(migrate.known())]
    assert await recorded(empty_database) == [m.version for m in migrate.known()]


async def test_servers_that_start_together_on_an_empty_database_are_all_ready(
    empty_database: str,
) -> None:
    async with (
        serving(settings(empty_database)) as one,
        serving(settings(empty_database)) as other,
        connected(one.grpc_address) as stub,
        connected(other.grpc_address) as peer,
        asyncio.timeout(STATES_SECONDS_MAX),
    ):
        await asyncio.gather(one.startup.ready.wait(), other.startup.ready.wait())
        assert not (await stub.ListSipTrunks(pb.ListSipTrunksRequest())).sip_trunks
        assert not (await peer.ListSipTrunks(pb.ListSipTrunksRequest())).sip_trunks


async def test_migration_that_fails_leaves_nothing(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = migrate.Migration(len(migrate.known()) + 1, "broken", "SELECT no_such_column")
    steps = [*migrate.known(), broken]
    monkeypatch.setattr(migrate, "known", lambda: steps)
    database = await opened(empty_database)
    with pytest.raises(Exception, match="the database has another schema"):
        await migrate.apply(database)
    await database.close()
    assert await tables(empty_database) == set()


@pytest.mark.parametrize("act", [migrate.missing, migrate.apply])
async def test_newer_schema_is_refused_saying_what_to_do(database: str, act: Any) -> None:
    await execute(
        database, "INSERT INTO schema_migrations (version, name, sha256) VALUES (9999, 'new', '')"
    )
    store = await opened(database)
    with pytest.raises(SchemaError) as error:
        await act(store)
    await store.close()
    newest = migrate.known()[-1].version
    assert str(error.value) == (
        f"the database has schema version 9999, this server knows up to {newest:04}:"
        " run a newer server"
    )


@pytest.mark.parametrize("act", [migrate.missing, migrate.apply])
async def test_version_with_other_contents_is_refused_by_number(database: str, act: Any) -> None:
    await execute(database, "UPDATE schema_migrations SET sha256 = 'edited' WHERE version = 2")
    store = await opened(database)
    with pytest.raises(SchemaError, match="schema version 0002 of the database is not the one"):
        await act(store)
    await store.close()


@pytest.mark.parametrize("act", [migrate.missing, migrate.apply])
async def test_newer_schema_that_lets_this_version_go_on_is_taken(database: str, act: Any) -> None:
    newest = migrate.known()[-1].version
    newer = (
        "INSERT INTO schema_migrations (version, name, sha256, oldest) VALUES ({}, 'new', '', {})"
    )
    await execute(database, newer.format(9998, newest))
    store = await opened(database)
    assert await act(store) == []
    await execute(database, newer.format(9999, newest + 1))
    with pytest.raises(SchemaError, match=f"9999, this server knows up to {newest:04}"):
        await act(store)
    await store.close()


async def test_server_goes_on_while_a_schema_that_lets_it_is_made(database: str) -> None:
    newest = migrate.known()[-1].version
    async with running(database) as service, connected(service.grpc_address) as stub:
        made = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
        await execute(
            database,
            "ALTER TABLE trunks ADD COLUMN of_a_later_version text NOT NULL DEFAULT 'kept';"
            "INSERT INTO schema_migrations (version, name, sha256, oldest)"
            f" VALUES (9999, 'new', '', {newest})",
        )
        await asyncio.sleep(PROBES_SECONDS)
        changed = await stub.UpdateSipTrunk(update(made.id, "is_active", is_active=False))
        assert not changed.is_active
        assert await health(service.grpc_address, "") == _HEALTH.SERVING
        revert = pb.RevertSipTrunkRequest(trunk_id=made.id, revision=1)
        assert (await stub.RevertSipTrunk(revert)).is_active


def test_migration_says_which_servers_may_go_on() -> None:
    said = "-- Oldest schema version whose servers may go on: 0003.\nSELECT 1;"
    assert migrate.Migration(7, "additive", said).oldest == 3
    assert migrate.Migration(7, "other", "SELECT 1;").oldest == 7


@pytest.mark.parametrize("mode", ["auto", "off"])
async def test_server_on_a_newer_schema_is_not_ready_and_says_why(database: str, mode: str) -> None:
    await execute(
        database, "INSERT INTO schema_migrations (version, name, sha256) VALUES (9999, 'new', '')"
    )
    async with (
        serving(settings(database, migrate=mode)) as service,
        connected(service.grpc_address) as stub,
    ):
        error = await refusal_with(stub, "SCHEMA_UNKNOWN")
        assert error.code == "UNAVAILABLE"
        assert "9999" in error.message
        assert "run a newer server" in error.message
        assert await health(service.grpc_address, "") == _HEALTH.NOT_SERVING
        assert await health(service.grpc_address, "liveness") == _HEALTH.SERVING
        assert not service.startup.ready.is_set()


async def test_server_that_may_not_migrate_waits_and_is_ready_once_somebody_does(
    empty_database: str,
) -> None:
    async with (
        serving(settings(empty_database, migrate="off")) as service,
        connected(service.grpc_address, TOKEN) as stub,
    ):
        error = await refusal_with(stub, "SCHEMA_BEHIND")
        assert error.code == "UNAVAILABLE"
        assert "`trunkline migrate`" in error.message
        for name in ("", "siptrunk.v1.SipTrunkService"):
            assert await health(service.grpc_address, name) == _HEALTH.NOT_SERVING
        assert await tables(empty_database) == set()
        database = await opened(empty_database)
        await migrate.apply(database)
        await database.close()
        async with asyncio.timeout(STATES_SECONDS_MAX):
            await service.startup.ready.wait()
        for name in ("", "siptrunk.v1.SipTrunkService"):
            assert await health(service.grpc_address, name) == _HEALTH.SERVING
        assert not (await stub.ListSipTrunks(pb.ListSipTrunksRequest())).sip_trunks


async def test_server_that_meets_a_newer_schema_while_it_runs_stops_being_ready(
    database: str,
) -> None:
    async with running(database) as service, connected(service.grpc_address) as stub:
        await execute(
            database,
            "INSERT INTO schema_migrations (version, name, sha256) VALUES (9999, 'new', '')",
        )
        await not_serving(service.grpc_address)
        error = await refusal_with(stub, "SCHEMA_UNKNOWN")
        assert "run a newer server" in error.message
