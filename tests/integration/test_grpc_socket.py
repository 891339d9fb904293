"""The UNIX socket that the gRPC server also listens on."""

import asyncio
import os
import socket
import stat
from pathlib import Path

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.certificates import Authority, write
from tests.conftest import running
from tests.integration.conftest import created
from tests.support import connected
from trunkline.sockets import claimed

MASK = os.umask(0)
os.umask(MASK)
LIST = pb.ListSipTrunksRequest()


def left(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


async def test_socket_answers_as_the_port_does_and_is_gone_at_the_end(
    database: str, tmp_path: Path
) -> None:
    path = tmp_path / "trunkline.sock"
    async with (
        running(database, grpc_socket=str(path)) as service,
        connected(service.grpc_address) as port,
        connected(f"unix:{path}") as sidecar,
    ):
        trunk = await created(sidecar)
        assert list((await port.ListSipTrunks(LIST)).sip_trunks) == [trunk]
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        # The mask that the mode came by is the process's: it is as before.
        before = os.umask(0)
        os.umask(before)
        assert before == MASK
    assert left(tmp_path) == []


async def test_socket_is_plaintext_and_asks_for_no_certificate_beside_tls(
    database: str, tmp_path: Path
) -> None:
    authority = Authority("An authority")
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    pair = write(tmp_path / "tls", authority.server())
    path = tmp_path / "trunkline.sock"
    more = {"tls_client_ca": str(tmp_path / "ca.crt"), "grpc_socket": str(path)}
    async with running(database, **pair, **more), connected(f"unix:{path}") as sidecar:
        await created(sidecar)


@pytest.mark.parametrize("setting", ["grpc_socket", "grpc_address"])
async def test_socket_of_a_live_server_is_left_to_it(
    database: str, tmp_path: Path, setting: str
) -> None:
    path = tmp_path / "trunkline.sock"
    value = f"unix:{path}" if setting == "grpc_address" else str(path)
    async with running(database, **{setting: value}):
        with pytest.raises(OSError, match="another server has it") as error:
            async with running(database, **{setting: value}):
                pass
        assert f"unix:{path} can't be listened on" in str(error.value)
        async with connected(f"unix:{path}") as stub:
            await stub.ListSipTrunks(LIST)


async def test_socket_that_another_program_listens_on_is_left_to_it(
    database: str, tmp_path: Path
) -> None:
    path = tmp_path / "trunkline.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(1)
        with pytest.raises(OSError, match="another server has it"):
            async with running(database, grpc_socket=str(path)):
                pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert left(tmp_path) == ["trunkline.sock"]


async def test_socket_of_a_server_that_does_not_listen_yet_is_left_to_it(
    database: str, tmp_path: Path
) -> None:
    """Between the look at what is there and listening, a second one must not look."""
    path = tmp_path / "trunkline.sock"
    with claimed(path):
        with pytest.raises(OSError, match="another server has it"):
            async with running(database, grpc_socket=str(path)):
                pass
        assert left(tmp_path) == ["trunkline.sock.lock"]
    async with running(database, grpc_socket=str(path)), connected(f"unix:{path}") as stub:
        await stub.ListSipTrunks(LIST)


async def test_socket_that_nobody_listens_on_is_replaced(database: str, tmp_path: Path) -> None:
    path = tmp_path / "trunkline.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    (tmp_path / "trunkline.sock.lock").touch()
    async with running(database, grpc_socket=str(path)), connected(f"unix:{path}") as stub:
        await stub.ListSipTrunks(LIST)
    assert left(tmp_path) == []


async def test_file_that_is_no_socket_is_kept(database: str, tmp_path: Path) -> None:
    path = tmp_path / "trunkline.sock"
    path.write_text("precious")
    with pytest.raises(OSError, match="what is there is no socket"):
        async with running(database, grpc_socket=str(path)):
            pass
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing/trunkline.sock", "No such file or directory"),
        ("x" * 120, "the path has more than 107 bytes"),
    ],
)
async def test_socket_that_can_not_be_made_is_named_saying_why(
    database: str, tmp_path: Path, name: str, says: str
) -> None:
    with pytest.raises(OSError, match=says) as error:
        async with running(database, grpc_socket=str(tmp_path / name)):
            pass
    assert str(tmp_path / name) in str(error.value)


async def test_of_servers_that_start_at_once_one_has_the_socket(
    database: str, tmp_path: Path
) -> None:
    path = tmp_path / "trunkline.sock"
    servers = [running(database, grpc_socket=str(path)) for _ in range(4)]
    started = await asyncio.gather(*(s.__aenter__() for s in servers), return_exceptions=True)
    live = [s for s, found in zip(servers, started, strict=True) if not isinstance(found, OSError)]
    assert len(live) == 1
    async with connected(f"unix:{path}") as stub:
        await stub.ListSipTrunks(LIST)
    await live[0].__aexit__(None, None, None)
    assert left(tmp_path) == []
