"""TLS on both ports: who is let in, what is logged of it, and files that change meanwhile."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests import support
from tests.certificates import (
    Authority,
    Issued,
    connected,
    context,
    rename,
    shown,
    swap,
    trusting,
    write,
)
from tests.conftest import running
from tests.integration.conftest import created
from trunkline.server import Running

SECONDS_MAX = 30
CA = Authority("An authority")
CLIENTS = Authority("The authority of clients")
OTHER_CLIENTS = Authority("Another authority of clients")
SERVER = CA.server()
LIST = pb.ListSipTrunksRequest()


def mutual(directory: Path, *authorities: Authority) -> dict[str, Any]:
    """Settings with which clients need certificates."""
    path = directory / "clients.crt"
    path.write_bytes(b"".join(a.pem for a in authorities))
    return write(directory / "tls", SERVER) | {"tls_client_ca": str(path)}


async def is_let_in(address: str, client: Issued | None) -> bool:
    async with connected(address, trusting(CA, client=client)) as stub:
        try:
            await stub.ListSipTrunks(LIST, timeout=SECONDS_MAX)
        except grpc.aio.AioRpcError as error:
            return error.code() != grpc.StatusCode.UNAVAILABLE
    return True


async def http_lets_in(service: Running, directory: Path, client: Issued | None) -> bool:
    pair = write(directory / "client", client) if client else None
    async with httpx.AsyncClient(verify=context(CA, client=pair), trust_env=False) as http:
        try:
            answer = await http.get(f"https://{service.http_address}/readyz")
        except httpx.TransportError:
            return False
    return answer.status_code == 200


def logged(caplog: pytest.LogCaptureFixture, event: str, **fields: str) -> list[dict[str, Any]]:
    records = [r.__dict__ for r in caplog.records if r.getMessage() == event]
    return [r for r in records if fields.items() <= r.items()]


async def until_logged(caplog: pytest.LogCaptureFixture, event: str, **fields: str) -> None:
    async with asyncio.timeout(SECONDS_MAX):
        while not logged(caplog, event, **fields):  # noqa: ASYNC110 - the log sends no event
            await asyncio.sleep(0.05)


async def test_both_ports_speak_tls_and_nothing_else(database: str, tmp_path: Path) -> None:
    pair = write(tmp_path / "tls", SERVER)
    async with running(database, http_address="127.0.0.1:0", **pair) as service:
        async with connected(service.grpc_address, trusting(CA)) as stub:
            trunk = await created(stub)
        async with httpx.AsyncClient(
            base_url=f"https://{service.http_address}",
            headers={"Authorization": f"Bearer {support.TOKEN}"},
            verify=context(CA),
            trust_env=False,
        ) as http:
            answer = await http.get(f"/sip-trunks/trunks/{trunk.id}")
            assert (answer.status_code, answer.json()["id"]) == (200, trunk.id)
            page = await http.get("/sip-trunks/trunks", params={"page_size": 1})
            assert page.status_code == 200
        for address in (service.grpc_address, service.http_address):
            assert await shown(address, CA) == SERVER.serial
        async with support.connected(service.grpc_address) as stub:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.ListSipTrunks(LIST, timeout=SECONDS_MAX)
            assert error.value.code() == grpc.StatusCode.UNAVAILABLE
        async with httpx.AsyncClient(trust_env=False) as http:
            with pytest.raises(httpx.TransportError):
                await http.get(f"http://{service.http_address}/readyz")


async def test_next_page_of_https_is_https(database: str, tmp_path: Path) -> None:
    pair = write(tmp_path / "tls", SERVER)
    async with (
        running(database, http_address="127.0.0.1:0", **pair) as service,
        connected(service.grpc_address, trusting(CA)) as stub,
        httpx.AsyncClient(
            headers={"Authorization": f"Bearer {support.TOKEN}"},
            verify=context(CA),
            trust_env=False,
        ) as http,
    ):
        names = {(await created(stub)).id for _ in range(2)}
        address = f"https://{service.http_address}/sip-trunks/trunks"
        first = await http.get(address, params={"page_size": 1})
        second = await http.get(first.request.url.join(first.links["next"]["url"]))
        assert second.request.url.scheme == "https"
        assert {trunk["id"] for trunk in first.json() + second.json()} == names


async def test_server_of_another_authority_is_not_trusted(database: str, tmp_path: Path) -> None:
    async with (
        running(database, **write(tmp_path / "tls", SERVER)) as service,
        connected(service.grpc_address, trusting(CLIENTS)) as stub,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.ListSipTrunks(LIST, timeout=SECONDS_MAX)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_chain_up_to_the_authority_is_shown(database: str, tmp_path: Path) -> None:
    issued = Authority("Between", CA).server()
    pair = write(tmp_path / "tls", issued)
    async with running(database, http_address="127.0.0.1:0", **pair) as service:
        for address in (service.grpc_address, service.http_address):
            assert await shown(address, CA) == issued.serial
        async with connected(service.grpc_address, trusting(CA)) as stub:
            await stub.ListSipTrunks(LIST)


async def test_with_a_client_ca_only_clients_with_certificates_are_let_in(
    database: str, tmp_path: Path
) -> None:
    between = Authority("Between", CLIENTS)
    settings = mutual(tmp_path, CLIENTS) | {"http_address": "127.0.0.1:0"}
    async with running(database, **settings) as service:
        for client, let_in in (
            (None, False),
            (CA.issue("stranger"), False),
            (CLIENTS.issue("late", days=-1), False),
            (CLIENTS.issue("dialler"), True),
            (between.issue("dialler"), True),
        ):
            assert await is_let_in(service.grpc_address, client) is let_in
            assert await http_lets_in(service, tmp_path, client) is let_in


async def test_client_ca_that_is_under_another_one_is_enough(database: str, tmp_path: Path) -> None:
    between = Authority("Between", CLIENTS)
    settings = mutual(tmp_path, between) | {"http_address": "127.0.0.1:0"}
    async with running(database, **settings) as service:
        for client, let_in in ((between.issue("dialler"), True), (CLIENTS.issue("other"), False)):
            assert await is_let_in(service.grpc_address, client) is let_in
            assert await http_lets_in(service, tmp_path, client) is let_in


@pytest.mark.parametrize(
    ("alternatives", "name"),
    [
        ((), "dialler"),
        (("dialler.example", "spiffe://example/dialler"), None),
        (("10.0.0.7",), "10.0.0.7"),
    ],
)
async def test_client_is_logged_by_its_certificate(
    database: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    alternatives: tuple[str, ...],
    name: str | None,
) -> None:
    client = CLIENTS.issue("dialler", *alternatives)
    settings = mutual(tmp_path, CLIENTS) | {"http_address": "127.0.0.1:0"}
    async with running(database, **settings) as service:
        caplog.clear()
        async with connected(service.grpc_address, trusting(CA, client=client)) as stub:
            await stub.ListSipTrunks(LIST)
        (call,) = logged(caplog, "call", method="/siptrunk.v1.SipTrunkService/ListSipTrunks")
        assert await http_lets_in(service, tmp_path, client)
        (connection,) = logged(caplog, "connection")
        (request,) = logged(caplog, "request")
    expected = {name} if name else {",".join(alternatives), ",".join(reversed(alternatives))}
    assert call["client_certificate"] in expected
    assert connection["client_certificate"] in expected
    assert connection["peer"] == request["peer"]


async def test_client_without_a_need_for_a_certificate_is_not_named(
    database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = CLIENTS.issue("dialler")
    async with running(database, **write(tmp_path / "tls", SERVER)) as service:
        caplog.clear()
        assert await is_let_in(service.grpc_address, client)
    (call,) = logged(caplog, "call", method="/siptrunk.v1.SipTrunkService/ListSipTrunks")
    assert call["client_certificate"] is None


@pytest.mark.parametrize("replace", [write, rename, swap])
async def test_new_certificate_is_shown_to_new_connections_and_old_ones_go_on(
    database: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    replace: Callable[[Path, Issued], dict[str, Any]],
) -> None:
    directory = tmp_path / "tls"
    pair = (swap if replace is swap else write)(directory, SERVER)
    newer = Authority("A newer authority")
    async with (
        running(database, http_address="127.0.0.1:0", **pair) as service,
        connected(service.grpc_address, trusting(CA)) as stub,
        httpx.AsyncClient(verify=context(CA), trust_env=False) as http,
    ):
        url = f"https://{service.http_address}/readyz"
        await created(stub)
        assert (await http.get(url)).status_code == 200
        issued = newer.server()
        replace(directory, issued)
        await until_logged(caplog, "tls_reloaded", serial=issued.serial)
        for address in (service.grpc_address, service.http_address):
            assert await shown(address, newer) == issued.serial
        async with connected(service.grpc_address, trusting(newer)) as fresh:
            await created(fresh)
        await created(stub)
        assert (await http.get(url)).status_code == 200
        async with connected(service.grpc_address, trusting(CA)) as late:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await late.ListSipTrunks(LIST, timeout=SECONDS_MAX)
            assert error.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_pair_that_can_not_be_used_leaves_the_last_good_one(
    database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "tls"
    pair = write(directory, SERVER)
    async with running(database, http_address="127.0.0.1:0", **pair) as service:
        (directory / "tls.key").write_bytes(CA.server().key)
        await until_logged(caplog, "tls_reload_failed", path=str(directory / "tls.key"))
        for address in (service.grpc_address, service.http_address):
            assert await shown(address, CA) == SERVER.serial
        assert await is_let_in(service.grpc_address, None)
        issued = CA.server()
        write(directory, issued)
        await until_logged(caplog, "tls_reloaded", serial=issued.serial)
        for address in (service.grpc_address, service.http_address):
            assert await shown(address, CA) == issued.serial
    (failed,) = logged(caplog, "tls_reload_failed", path=str(directory / "tls.key"))
    assert failed["levelno"] == logging.WARNING


async def test_client_ca_that_is_replaced_lets_new_clients_in_and_old_ones_no_more(
    database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = CLIENTS.issue("old"), OTHER_CLIENTS.issue("new")
    settings = mutual(tmp_path, CLIENTS) | {"http_address": "127.0.0.1:0"}
    async with running(database, **settings) as service:
        for client, let_in in ((old, True), (new, False)):
            assert await is_let_in(service.grpc_address, client) is let_in
            assert await http_lets_in(service, tmp_path, client) is let_in
        Path(settings["tls_client_ca"]).write_bytes(OTHER_CLIENTS.pem)  # noqa: ASYNC240
        await until_logged(caplog, "tls_reloaded")
        for client, let_in in ((old, False), (new, True)):
            assert await is_let_in(service.grpc_address, client) is let_in
            assert await http_lets_in(service, tmp_path, client) is let_in
