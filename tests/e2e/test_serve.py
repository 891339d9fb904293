import asyncio
import os
import shutil
import signal
import stat
from pathlib import Path

import asyncpg
import grpc
import pytest
from grpc_health.v1 import health_pb2

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.e2e.processes import (
    SECONDS_MAX,
    Server,
    command,
    database_url,
    health,
    not_started,
    postgres_pids,
    status,
)
from tests.support import connected, ip_based, update, userpass


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_fresh_data_directory_is_served(tmp_path: Path) -> None:
    async with Server(tmp_path) as server:
        address = await server.ready()
        assert server.out == f"trunkline ready grpc={address}\n"
        assert address.startswith("127.0.0.1:")
        assert await status(address) == "SERVING"
        async with connected(address) as stub:
            trunk = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
            assert await stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk.id)) == trunk


async def test_a_restart_finds_the_same_trunks(tmp_path: Path) -> None:
    async with Server(tmp_path) as server, connected(await server.ready()) as stub:
        made = [
            await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=trunk))
            for trunk in (userpass(), ip_based(description="second"))
        ]
        assert (await server.stop()).code == 0
    async with Server(tmp_path) as server, connected(await server.ready()) as stub:
        found = (await stub.ListSipTrunks(pb.ListSipTrunksRequest())).sip_trunks
        assert list(found) == made


async def test_a_killed_service_is_started_again_on_what_it_left(tmp_path: Path) -> None:
    async with Server(tmp_path) as server, connected(await server.ready()) as stub:
        made = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
        await server.kill()
        async with Server(tmp_path) as again, connected(await again.ready()) as stub_again:
            assert await stub_again.GetSipTrunk(pb.GetSipTrunkRequest(id=made.id)) == made


async def test_only_the_owner_can_look_into_the_data_directory(tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    parent.chmod(0o751)
    data = parent / "data"
    async with Server(tmp_path, "--try", data_dir=str(data), bootstrap_token="") as server:
        await server.ready()
        assert mode(parent) == 0o751
        assert mode(data) == 0o700
        assert mode(data / "secret-keys") == 0o600
        assert mode(data / "token") == 0o600
        assert mode(data / "postgres.log") == 0o600
        assert mode(data / "pg") == 0o700
    assert mode(tmp_path) == 0o700


async def test_the_service_says_that_backups_need_the_keys_it_made(tmp_path: Path) -> None:
    async with Server(tmp_path) as server:
        await server.ready()
        line = await server.logged("secret_keys_made")
        assert str(server.data / "secret-keys") in line
        assert "backup" in line


async def test_a_data_directory_takes_one_service(tmp_path: Path) -> None:
    async with Server(tmp_path) as first:
        address = await first.ready()
        done = await not_started(Server(tmp_path))
        assert done.code == 1
        assert len(done.complaints) == 1
        assert f"{first.data} is in use by trunkline serve, pid {first.pid};" in done.err
        assert await status(address) == "SERVING"
        async with connected(address) as stub:
            await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))


async def test_a_second_server_on_a_port_is_refused_and_leaves_nothing_running(
    tmp_path: Path,
) -> None:
    async with Server(tmp_path) as first:
        address = await first.ready()
        second = Server(tmp_path, data_dir=str(tmp_path / "other"), grpc_address=address)
        done = await not_started(second)
        assert done.code == 1
        assert len(done.complaints) == 1
        assert address in done.complaints[0]
        assert postgres_pids(second.data) == []
        assert await status(address) == "SERVING"


async def test_a_start_that_fails_after_postgresql_leaves_nothing_running(tmp_path: Path) -> None:
    async with Server(tmp_path) as server, connected(await server.ready()) as stub:
        await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
        await server.stop()
    (server.data / "secret-keys").write_text("k2:" + "A" * 43 + "=\n")
    assert (await not_started(Server(tmp_path))).code == 78
    assert postgres_pids(server.data) == []


async def blocked_update(server: Server) -> tuple[asyncpg.Connection, pb.UpdateSipTrunkRequest]:
    """A session that holds a row, and the update that will wait for it."""
    async with connected(await server.ready()) as stub:
        trunk = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=ip_based()))
    holder = await asyncpg.connect(database_url(server.data))
    await holder.execute("BEGIN")
    await holder.execute("SELECT FROM trunks WHERE id = $1 FOR UPDATE", trunk.id)
    return holder, update(trunk.id, "description", description="in flight")


async def waiting(holder: asyncpg.Connection) -> None:
    """Until a session waits for a lock."""
    async with asyncio.timeout(SECONDS_MAX):
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        while not await holder.fetchval(waits):  # noqa: ASYNC110 - the database sends no event
            await asyncio.sleep(0.02)


async def test_sigterm_drains(tmp_path: Path) -> None:
    """SIGTERM with a call in flight and a health stream open.

    The stream says NOT_SERVING and ends, the call is answered, and then everything is gone.
    """
    async with Server(tmp_path) as server:
        address = await server.ready()
        holder, request = await blocked_update(server)
        async with connected(address) as stub, health(address) as health_stub:
            watch = health_stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            call = asyncio.ensure_future(stub.UpdateSipTrunk(request))
            await waiting(holder)
            server.signal(signal.SIGTERM)
            async with asyncio.timeout(SECONDS_MAX):
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
                assert await watch.read() is grpc.aio.EOF
            assert await watch.code() == grpc.StatusCode.OK
            assert server.returncode is None
            assert not call.done()
            await holder.execute("COMMIT")
            await holder.close()
            assert (await call).description == "in flight"
        done = await server.ended()
        assert done.code == 0
        assert postgres_pids(server.data) == []
    async with Server(tmp_path) as server, connected(await server.ready()) as stub:
        read = await stub.GetSipTrunk(pb.GetSipTrunkRequest(id=request.sip_trunk.id))
        assert read.description == "in flight"


async def test_a_second_sigterm_does_not_wait_for_calls(tmp_path: Path) -> None:
    async with Server(tmp_path, drain_seconds="3600") as server:
        address = await server.ready()
        holder, request = await blocked_update(server)
        async with connected(address) as stub:
            call = asyncio.ensure_future(stub.UpdateSipTrunk(request))
            await waiting(holder)
            server.signal(signal.SIGTERM)
            await server.logged("draining")
            server.signal(signal.SIGTERM)
            await server.ended()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        holder.terminate()
        async with Server(tmp_path) as again:
            await again.ready()


async def test_sigint_is_as_good_as_sigterm(tmp_path: Path) -> None:
    async with Server(tmp_path) as server:
        await server.ready()
        server.signal(signal.SIGINT)
        done = await server.ended()
        assert done.code == 0
        assert "Traceback" not in done.err
        assert postgres_pids(server.data) == []


async def test_a_data_directory_of_another_postgresql_is_refused(tmp_path: Path) -> None:
    async with Server(tmp_path) as server:
        await server.ready()
        assert (await server.stop()).code == 0
    copy = tmp_path / "copy"
    shutil.copytree(server.data, copy)
    (copy / "pg" / "PG_VERSION").write_text("17\n")
    done = await not_started(Server(tmp_path, data_dir=str(copy)))
    assert done.code == 1
    for part in (
        str(copy / "pg"),
        "PostgreSQL 17",
        "18",
        "pg_dump --clean --if-exists -h",
        "secret-keys",
    ):
        assert part in done.err
    assert postgres_pids(copy) == []


async def test_a_data_directory_with_a_very_long_path_is_served(tmp_path: Path) -> None:
    data = tmp_path / ("long-" * 20) / ("path-" * 20)
    for _ in range(2):
        async with Server(tmp_path, data_dir=str(data)) as server:
            assert await status(await server.ready()) == "SERVING"
            done = await command("accounts", "list", data_dir=str(data))
            assert done.out.startswith("default  ")
            assert (await server.stop()).code == 0
            assert postgres_pids(data) == []


async def test_a_data_directory_may_be_relative(tmp_path: Path) -> None:
    relative = os.path.relpath(tmp_path / "data")  # noqa: ASYNC240 - reads no file
    async with Server(tmp_path, data_dir=relative) as server:
        assert await status(await server.ready()) == "SERVING"


async def test_an_account_made_before_the_first_start_is_served(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    assert (await command("accounts", "create", "acme", data_dir=data)).code == 0
    arguments = ("--account", "acme", "--name", "first", "--scopes", "trunks:read")
    token = await command("tokens", "create", *arguments, data_dir=data)
    async with (
        Server(tmp_path, data_dir=data) as server,
        connected(await server.ready(), token.out.strip()) as stub,
    ):
        assert not (await stub.ListSipTrunks(pb.ListSipTrunksRequest())).sip_trunks


@pytest.mark.parametrize(
    ("variables", "code", "said"),
    [
        ({"grpc_address": "nonsense"}, 78, "TRUNKLINE_GRPC_ADDRESS"),
        ({"grpc_address": "192.0.2.1:50051"}, 78, "TRUNKLINE_ALLOW_PLAINTEXT=1"),
        ({"grpc_address": "no-such-host.invalid:0", "allow_plaintext": "1"}, 1, "no-such-host"),
        ({"bootstrap_token": "too short"}, 78, "32"),
        ({"database_pool_size": "many"}, 78, "TRUNKLINE_DATABASE_POOL_SIZE"),
        ({"log_level": "loud"}, 78, "TRUNKLINE_LOG_LEVEL"),
        ({"migrate": "perhaps"}, 78, "TRUNKLINE_MIGRATE"),
        ({"data_dir": "/dev/null"}, 1, "/dev/null"),
        ({"postgres_bin": "/nowhere"}, 1, "/nowhere"),
        ({"secret_keys": "nonsense"}, 78, "TRUNKLINE_SECRET_KEYS"),
        ({"secret_keys": "k1:c2hvcnQ="}, 78, "k1"),
        ({"secret_keys_file": "/nowhere/keys"}, 78, "/nowhere/keys"),
        ({"secret_keys_file": "/bin/true"}, 78, "/bin/true"),
    ],
)
async def test_a_setting_that_cannot_be_used_ends_the_start_with_a_message(
    tmp_path: Path, variables: dict[str, str], code: int, said: str
) -> None:
    done = await not_started(Server(tmp_path, **variables))
    assert done.code == code
    assert said in "\n".join(done.complaints)
    assert postgres_pids(tmp_path / "data") == []


async def test_all_settings_that_cannot_be_used_are_named_at_once(tmp_path: Path) -> None:
    variables = {"log_level": "loud", "migrate": "perhaps", "database_pool_size": "0"}
    done = await not_started(Server(tmp_path, **variables))
    assert {line.split(":")[1].strip() for line in done.complaints} == {
        f"TRUNKLINE_{name.upper()}" for name in variables
    }
