"""What seals secrets must be there when the service starts, not when the first secret is read."""

from pathlib import Path

import asyncpg
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.e2e.processes import Server, database_url, not_started
from tests.support import KEYS, KEYS_NEWER, KEYS_OTHER, connected, userpass

TRUNKS = 3


@pytest.fixture
async def data(tmp_path: Path) -> Path:
    """A data directory with sealed secrets under the key k1, nothing running."""
    async with Server(tmp_path) as server, connected(await server.ready()) as stub:
        for _ in range(TRUNKS):
            await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
        assert (await server.stop()).code == 0
    return server.data


async def test_a_deleted_key_file_is_refused(tmp_path: Path, data: Path) -> None:
    kept = (data / "secret-keys").read_text()
    (data / "secret-keys").unlink()
    done = await not_started(Server(tmp_path))
    assert done.code == 78
    assert str(data / "secret-keys") in "\n".join(done.complaints)
    assert not (data / "secret-keys").exists()
    (data / "secret-keys").write_text(kept)
    async with Server(tmp_path) as server:
        await server.ready()


async def test_another_key_of_the_same_id_is_refused(tmp_path: Path, data: Path) -> None:
    (data / "secret-keys").write_text(KEYS_OTHER + "\n")
    done = await not_started(Server(tmp_path))
    assert done.code == 78
    assert len(done.complaints) == 1
    assert " k1 " in done.complaints[0]
    assert KEYS_OTHER.partition(":")[2] not in done.err


async def test_a_missing_key_is_refused_with_the_number_of_its_secrets(
    tmp_path: Path, data: Path
) -> None:
    (data / "secret-keys").write_text(KEYS_NEWER + "\n")
    done = await not_started(Server(tmp_path))
    assert done.code == 78
    assert len(done.complaints) == 1
    assert f"k1 ({TRUNKS} secrets)" in done.complaints[0]


async def test_a_refused_key_leaves_no_trace_in_the_database(tmp_path: Path, data: Path) -> None:
    ours = (data / "secret-keys").read_text()
    (data / "secret-keys").write_text(KEYS_NEWER + "\n")
    await not_started(Server(tmp_path))
    (data / "secret-keys").write_text(ours)
    async with Server(tmp_path) as server:
        await server.ready()
        connection = await asyncpg.connect(database_url(data))
        try:
            known = await connection.fetch("SELECT key_id FROM secret_checks")
        finally:
            await connection.close()
        assert [row["key_id"] for row in known] == ["k1"]


async def test_a_newer_key_seals_while_the_old_one_opens(tmp_path: Path, data: Path) -> None:
    ours = (data / "secret-keys").read_text()
    (data / "secret-keys").write_text(KEYS_NEWER + "\n" + ours)
    async with Server(tmp_path) as server, connected(await server.ready()) as stub:
        await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
        await server.stop()
    (data / "secret-keys").write_text(ours)
    done = await not_started(Server(tmp_path))
    assert done.code == 78
    assert "k2 (1 secret" in done.complaints[0]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"k1:short\n", b"no colon\n"])
async def test_a_damaged_key_file_is_refused(tmp_path: Path, data: Path, content: bytes) -> None:
    (data / "secret-keys").write_bytes(content)
    done = await not_started(Server(tmp_path))
    assert done.code == 78
    assert len(done.complaints) == 1
    assert str(data / "secret-keys") in done.complaints[0]


async def test_a_database_url_without_keys_is_refused(tmp_path: Path, database: str) -> None:
    done = await not_started(Server(tmp_path, database_url=database))
    assert done.code == 78
    assert len(done.complaints) == 1
    assert "TRUNKLINE_SECRET_KEYS" in done.complaints[0]
    assert not (tmp_path / "data").exists()


async def test_keys_may_come_from_a_file(tmp_path: Path, database: str) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"# newest first\n{KEYS_NEWER}\n\n{KEYS}\n")
    async with Server(tmp_path, database_url=database, secret_keys_file=str(keys)) as server:
        await server.ready()


async def test_a_wrong_key_for_the_database_of_an_url_is_refused(
    tmp_path: Path, database: str
) -> None:
    async with Server(tmp_path, database_url=database, secret_keys=KEYS) as server:
        await server.ready()
    done = await not_started(Server(tmp_path, database_url=database, secret_keys=KEYS_OTHER))
    assert done.code == 78
    assert " k1 " in done.complaints[0]
