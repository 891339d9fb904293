"""TLS in processes: what ends a start, commands, certificates that change under load, draining."""

import asyncio
import itertools
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.certificates import Authority, connected, context, shown, swap, trusting, write
from tests.e2e.processes import (
    PROGRAM,
    SECONDS_MAX,
    Server,
    command,
    environment,
    events,
    free_address,
    not_started,
)
from tests.support import KEYS, SEEN, TOKEN, ip_based, update
from tests.support import connected as connected_in_plaintext

CA = Authority("An authority")
NEWER_CA = Authority("A newer authority")
CLIENTS = Authority("The authority of clients")
UPDATES_PER_SECOND = 50
UPDATES_MAX = 5000
UPDATES_BETWEEN = 25
ROTATIONS = 4
LIST = pb.ListSipTrunksRequest()


@asynccontextmanager
async def serving(directory: Path, database: str, **variables: str) -> AsyncIterator[Server]:
    """`trunkline serve` on a test's database, ready."""
    settings = {"database_url": database, "secret_keys": KEYS}
    async with Server(directory, **settings | variables) as server:
        await server.ready()
        yield server


def http_address(server: Server) -> str:
    return server.out.rpartition("http=")[2].strip()


@pytest.fixture
def ca_file(tmp_path: Path) -> str:
    path = tmp_path / "ca.crt"
    path.write_bytes(CA.pem)
    return str(path)


@pytest.fixture
def token_file(tmp_path: Path) -> str:
    path = tmp_path / "a-token"
    path.write_text(TOKEN)
    return str(path)


async def test_start_with_a_pair_that_can_not_be_used_ends_with_a_message(tmp_path: Path) -> None:
    pair = write(tmp_path / "tls", CA.server())
    done = await not_started(Server(tmp_path, **pair | {"tls_key": "/nowhere/tls.key"}))
    assert done.code == 78
    says = "TRUNKLINE_TLS_KEY: /nowhere/tls.key can't be read: No such file or directory"
    assert done.complaints == [f"trunkline: {says}"]
    (tmp_path / "tls" / "tls.key").write_bytes(CA.server().key)
    done = await not_started(Server(tmp_path, **pair))
    assert done.code == 78
    assert len(done.complaints) == 1
    assert "is not the key of the first certificate in" in done.complaints[0]


async def test_server_that_knows_only_whom_to_trust_does_not_listen_for_all_in_plaintext(
    tmp_path: Path, ca_file: str
) -> None:
    server = Server(tmp_path, grpc_address="0.0.0.0:0", http_address="[::]:0", tls_ca=ca_file)
    done = await not_started(server)
    assert done.code == 78
    assert ["GRPC_ADDRESS" in done.complaints[0], "HTTP_ADDRESS" in done.complaints[1]] == [
        True
    ] * 2
    done = await command(
        "gateway", "--upstream", "127.0.0.1:1", http_address="0.0.0.0:0", tls_ca=ca_file
    )
    assert done.code == 78
    assert "TRUNKLINE_HTTP_ADDRESS: is not loopback" in done.err


async def test_server_with_a_certificate_listens_for_all(database: str, tmp_path: Path) -> None:
    pair = write(tmp_path / "tls", CA.server())
    async with serving(
        tmp_path, database, grpc_address="0.0.0.0:0", http_address="0.0.0.0:0", **pair
    ) as server:
        assert events(server.err, "plaintext") == []
        address = (await server.ready()).replace("0.0.0.0", "127.0.0.1")
        async with connected(address, trusting(CA)) as stub:
            await stub.ListSipTrunks(LIST)


async def test_commands_call_a_server_with_tls(
    database: str, tmp_path: Path, ca_file: str, token_file: str
) -> None:
    (tmp_path / "clients.crt").write_bytes(CLIENTS.pem)
    pair = write(tmp_path / "tls", CA.server())
    client = write(tmp_path / "client", CLIENTS.issue("a-person"))
    more = {"tls_client_ca": str(tmp_path / "clients.crt")}
    async with serving(tmp_path, database, **pair, **more) as server:
        address = await server.ready()
        trusts = ("--tls-ca", ca_file, "--grpc-address", address, "--token-file", token_file)
        shows = ("--tls-cert", client["tls_cert"], "--tls-key", client["tls_key"])
        done = await command("call", *trusts, "ListSipTrunks")
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("UNAVAILABLE: ")
        async with connected(address, trusting(CA, client=CLIENTS.issue("me"))) as stub:
            request = pb.CreateSipTrunkRequest(sip_trunk=ip_based())
            trunk = await stub.CreateSipTrunk(request)
        done = await command("call", *trusts, *shows, "ListSipTrunks")
        assert (done.code, done.err) == (0, "")
        assert json.loads(done.out)["sip_trunks"][0]["id"] == trunk.id
        variables = {f"tls_{n}": p for n, p in zip(("cert", "key"), shows[1::2], strict=True)}
        done = await command(
            "history",
            "--token-file",
            token_file,
            trunk.id,
            grpc_address=address,
            tls_ca=ca_file,
            **variables,
        )
        assert (done.code, done.out.split()[:2]) == (0, ["revision", "1"])
        await server.logged("ListSipTrunkRevisions")
        names = {line["client_certificate"] for line in events(server.err, "call")}
        assert names == {"a-person", "me"}


async def test_watch_follows_a_server_with_tls(
    database: str, tmp_path: Path, ca_file: str, token_file: str
) -> None:
    pair = write(tmp_path / "tls", CA.server())
    async with serving(tmp_path, database, **pair) as server:
        address = await server.ready()
        async with connected(address, trusting(CA)) as stub:
            request = pb.CreateSipTrunkRequest(sip_trunk=ip_based(name="Followed"))
            await stub.CreateSipTrunk(request)
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            "watch",
            "--initial",
            "--token-file",
            token_file,
            env=environment(grpc_address=address, tls_ca=ca_file),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(SECONDS_MAX):
                line = await process.stdout.readline()
        finally:
            process.kill()
            await process.wait()
        SEEN.add(line)
        assert b'name="Followed"' in line


async def test_files_of_a_command_that_can_not_be_used_are_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "ca.crt")
    done = await command("call", "--tls-ca", missing, "ListSipTrunks", grpc_address="127.0.0.1:1")
    assert done.code == 78
    says = f"TRUNKLINE_TLS_CA: {missing} can't be read: No such file or directory"
    assert done.err == f"trunkline: {says}\n"


async def test_gateway_alone_speaks_tls_to_both_sides(
    database: str, tmp_path: Path, ca_file: str
) -> None:
    (tmp_path / "clients.crt").write_bytes(CLIENTS.pem)
    pair = write(tmp_path / "tls", CA.server())
    own = write(tmp_path / "gateway", CLIENTS.server())
    more = {"tls_client_ca": str(tmp_path / "clients.crt")}
    at = free_address()
    async with serving(tmp_path, database, **pair, **more) as server:
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            "gateway",
            "--upstream",
            await server.ready(),
            env=environment(http_address=at, tls_ca=ca_file, **own),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(SECONDS_MAX):
                assert await process.stdout.readline() == f"trunkline ready http={at}\n".encode()
            async with httpx.AsyncClient(verify=context(CLIENTS), trust_env=False) as http:
                assert (await http.get(f"https://{at}/readyz")).status_code == 200
            write(tmp_path / "gateway", NEWER_CA.server())
            async with asyncio.timeout(SECONDS_MAX):
                while not await is_under(at, NEWER_CA):  # noqa: ASYNC110 - the log is not kept
                    await asyncio.sleep(0.1)
        finally:
            process.terminate()
            async with asyncio.timeout(SECONDS_MAX):
                code = await process.wait()
        assert code == 0


async def is_under(address: str, authority: Authority) -> bool:
    try:
        await shown(address, authority)
    except ssl.SSLCertVerificationError:
        return False
    return True


@dataclass
class Load:
    """Updates at a steady pace, each on a connection of its own, of both authorities' servers."""

    address: str
    trunk_id: str
    done: int = 0
    failed: list[str] = field(default_factory=list)
    ended: bool = False

    async def run(self) -> None:
        """Update until told to end."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for number in itertools.count(1):
                if self.ended or number > UPDATES_MAX:
                    return
                await asyncio.sleep(begun + number / UPDATES_PER_SECOND - loop.time())
                tasks.create_task(self._update(number))

    async def more(self) -> None:
        """Wait until further updates have been answered."""
        wanted = self.done + UPDATES_BETWEEN
        async with asyncio.timeout(SECONDS_MAX):
            while self.done < wanted:  # noqa: ASYNC110 - simpler than a condition
                await asyncio.sleep(0.05)

    async def _update(self, number: int) -> None:
        text = f"n={number}"
        try:
            async with connected(self.address, trusting(CA, NEWER_CA)) as stub:
                request = update(self.trunk_id, "description", description=text)
                trunk = await stub.UpdateSipTrunk(request, timeout=SECONDS_MAX)
        except grpc.aio.AioRpcError as error:
            self.failed.append(f"{error.code()} {error.details()}")
            return
        assert trunk.description == text
        self.done += 1


async def test_certificates_change_under_load_without_a_failed_call(
    database: str, tmp_path: Path
) -> None:
    directory = tmp_path / "tls"
    pair = swap(directory, CA.server())
    async with serving(tmp_path, database, http_address="127.0.0.1:0", **pair) as server:
        address = await server.ready()
        async with connected(address, trusting(CA)) as stub:
            request = pb.CreateSipTrunkRequest(sip_trunk=ip_based())
            load = Load(address, (await stub.CreateSipTrunk(request)).id)
        running = asyncio.create_task(load.run())
        for number in range(ROTATIONS):
            issued = (NEWER_CA if number % 2 == 0 else CA).server()
            swap(directory, issued)
            await server.logged(issued.serial)
            await load.more()
        (directory / "..data" / "tls.key").write_bytes(CA.server().key)
        await server.logged("tls_reload_failed")
        assert await shown(address, CA) == issued.serial
        await load.more()
        last = NEWER_CA.server()
        swap(directory, last)
        await server.logged(last.serial)
        await load.more()
        load.ended = True
        await running
        assert load.failed == []
        assert len(events(server.err, "tls_reload_failed")) == 1
        assert len(events(server.err, "tls_reloaded")) == ROTATIONS + 1
        for port in (address, http_address(server)):
            assert await shown(port, NEWER_CA) == last.serial
            assert not await is_under(port, CA)
        method = "/siptrunk.v1.SipTrunkService/UpdateSipTrunk"
        await server.logged(method, load.done)
        updates = events(server.err, "call", method=method)
        assert {line["code"] for line in updates} == {"OK"}
        assert len(updates) == load.done
        assert "PRIVATE KEY" not in server.err


async def test_socket_of_a_killed_server_is_taken_over(database: str, tmp_path: Path) -> None:
    path = tmp_path / "trunkline.sock"
    async with serving(tmp_path, database, grpc_socket=str(path)) as server:
        second = Server(tmp_path, database_url=database, secret_keys=KEYS, grpc_socket=str(path))
        done = await not_started(second)
        assert done.code == 1
        says = f"trunkline: unix:{path} can't be listened on: another server has it"
        assert done.complaints == [says]
        await server.kill()
    assert path.exists()
    async with serving(tmp_path, database, grpc_socket=str(path)) as server:
        async with connected_in_plaintext(f"unix:{path}") as stub:
            await stub.ListSipTrunks(LIST)
        assert (await server.stop()).code == 0
    assert not path.exists()


async def test_sigterm_does_not_wait_for_https_clients_that_do_not_part(
    database: str, tmp_path: Path
) -> None:
    """A client keeps its connection and does nothing on it, not even after the server's goodbye."""
    pair = write(tmp_path / "tls", CA.server())
    async with serving(
        tmp_path, database, http_address="127.0.0.1:0", drain_seconds="20", **pair
    ) as server:
        async with httpx.AsyncClient(verify=context(CA), trust_env=False) as http:
            answer = await http.get(f"https://{http_address(server)}/healthz")
            assert answer.status_code == 200
            done = await server.stop()
        assert done.code == 0
        assert "timeout graceful shutdown exceeded" not in done.err


@pytest.mark.parametrize("settings", [["tls_ca"], ["tls_ca", "tls_client_ca"]])
async def test_first_calls_that_are_printed_fit_the_server(
    tmp_path: Path, ca_file: str, settings: list[str]
) -> None:
    pair = write(tmp_path / "tls", CA.server()) | dict.fromkeys(settings, ca_file)
    async with Server(
        tmp_path, "--try", bootstrap_token="", http_address="127.0.0.1:0", **pair
    ) as server:
        await server.ready()
        assert f"grpcurl -cacert {ca_file} " in server.out
        assert f"curl --cacert {ca_file} " in server.out
        assert f"https://{http_address(server)}/" in server.out
        assert f" --tls-ca {ca_file} --" in server.out
        assert ("--cert FILE --key FILE" in server.out) is ("tls_client_ca" in settings)
        assert "-plaintext" not in server.out
