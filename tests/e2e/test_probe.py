"""`trunkline probe` against real servers: ready, not ready, silent, absent, with TLS."""

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import Authority, write
from tests.conftest import running
from tests.e2e.processes import Server, command, free_address
from tests.support import KEYS

CA = Authority("An authority")
CLIENTS = Authority("The authority of clients")


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])
async def test_server_is_found_by_its_own_settings_and_told_by_code_and_word(
    database: str, host: str
) -> None:
    where: dict[str, Any] = {"grpc_address": f"{host}:0", "allow_plaintext": True}
    async with running(database, **where) as service:
        own = {"grpc_address": service.grpc_address, "allow_plaintext": "1"}
        for name in ("", "siptrunk.v1.SipTrunkService", "liveness"):
            done = await command("probe", "--service", name, **own)
            assert (done.code, done.out, done.err) == (0, "SERVING\n", "")
        done = await command("probe", "--service", "nope", **own)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("NOT_FOUND: ")


async def test_server_without_a_schema_is_alive_and_not_ready(
    empty_database: str, tmp_path: Path
) -> None:
    address = free_address()
    waiting = {"database_url": empty_database, "secret_keys": KEYS, "migrate": "off"}
    async with Server(tmp_path, **waiting, grpc_address=address) as server:
        await server.logged("not_ready")
        done = await command("probe", address)
        assert (done.code, done.out, done.err) == (1, "NOT_SERVING\n", "")
        done = await command("probe", "--service", "liveness", address)
        assert (done.code, done.out, done.err) == (0, "SERVING\n", "")


async def test_address_where_nothing_listens_is_not_healthy() -> None:
    done = await command("probe", grpc_address=free_address())
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("UNAVAILABLE: ")
    assert "Traceback" not in done.err


async def test_server_that_never_answers_is_not_healthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done = await command("probe", "--timeout", "0.5", address)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("DEADLINE_EXCEEDED: ")


async def test_port_with_tls_is_asked_with_its_ca(database: str, tmp_path: Path) -> None:
    pair = write(tmp_path / "tls", CA.server())
    (tmp_path / "ca.crt").write_bytes(CA.pem)
    async with running(database, **pair) as service:
        address = {"grpc_address": service.grpc_address}
        done = await command("probe", **pair, **address, tls_ca=str(tmp_path / "ca.crt"))
        assert (done.code, done.out, done.err) == (0, "SERVING\n", "")
        done = await command("probe", **pair, **address)
    assert done.code == 78
    says = "TRUNKLINE_TLS_CA: is needed to ask a port with TLS; or set TRUNKLINE_GRPC_SOCKET"
    assert done.err == f"trunkline: {says}\n"


async def test_socket_is_asked_where_clients_of_the_port_need_certificates(
    database: str, tmp_path: Path
) -> None:
    (tmp_path / "clients.crt").write_bytes(CLIENTS.pem)
    own = write(tmp_path / "tls", CA.server()) | {
        "tls_client_ca": str(tmp_path / "clients.crt"),
        "grpc_socket": str(tmp_path / "grpc.sock"),
    }
    async with running(database, **own) as service:
        own["grpc_address"] = service.grpc_address
        done = await command("probe", **own)
    assert (done.code, done.out, done.err) == (0, "SERVING\n", "")
