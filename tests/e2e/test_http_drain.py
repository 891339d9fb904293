"""The HTTP gateway in processes: draining, alone, away, absent, and what it must not show."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from tests.e2e.processes import SECONDS_MAX, Server, environment, free_address
from tests.http.clients import Connection, CutError, client
from tests.http.trunks import ABSENT, TRUNKS, created, ip_based, problem, read, userpass
from tests.support import KEYS, SEEN, TOKEN, leaks, password

CLIENTS = 64
CHANGES_BEFORE = 3
POLL_SECONDS = 0.1


def http_address(server: Server) -> str:
    return server.out.rpartition("http=")[2].strip()


@asynccontextmanager
async def serving(
    directory: Path, database: str, http_at: str = "127.0.0.1:0", **variables: str
) -> AsyncIterator[Server]:
    """`trunkline serve` on a test's database, ready."""
    settings = {"database_url": database, "secret_keys": KEYS, "http_address": http_at}
    async with Server(directory, **settings | variables) as server:
        await server.ready()
        yield server


@dataclass
class Writer:
    """One client, which changes its own trunk over and over, three fields at a time."""

    trunk_id: str
    acknowledged: int = 0
    statuses: set[int] = field(default_factory=set)
    begun: bool = False
    changes: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def run(self, address: str) -> None:
        """Change, on one connection as long as it lasts, until no connection can be had."""
        number = itertools.count(1)
        with contextlib.suppress(ConnectionError):
            while True:
                async with Connection(address) as connection:
                    await self._changes(connection, number)

    async def _changes(self, connection: Connection, numbers: "itertools.count[int]") -> None:
        for number in numbers:
            fields = {"qualify_frequency": number, "description": f"n={number}"}
            body = fields | {"gateways": [{"gateway_address": f"h{number}.example"}]}
            path = f"{TRUNKS}/{self.trunk_id}"
            try:
                answer = await connection.ask("PATCH", path, json.dumps(body).encode())
            except (CutError, ConnectionError) as error:
                self.begun |= isinstance(error, CutError) and error.begun
                return
            self.statuses.add(answer.status)
            if answer.status == 200:
                assert answer.json()["qualify_frequency"] == number
                self.acknowledged = number
                self.changes.release()
            if answer.headers.get("connection") == "close":
                return


async def stored(url: str) -> dict[str, tuple[int, str, str]]:
    connection = await asyncpg.connect(url)
    rows = await connection.fetch(
        "SELECT id, qualify_frequency, description,"
        " gateways -> 0 ->> 'gateway_address' AS gateway FROM trunks"
    )
    await connection.close()
    return {r["id"]: (r["qualify_frequency"], r["description"], r["gateway"]) for r in rows}


@pytest.mark.parametrize("round_number", range(2))
async def test_a_process_that_drains_answers_what_it_has_accepted(
    database: str, tmp_path: Path, round_number: int
) -> None:
    """64 clients write while SIGTERM comes.

    A change is acknowledged and there, or its connection ended before it was accepted and it is
    not there.
    """
    async with serving(tmp_path, database, log_level="warning") as server:
        address = http_address(server)
        async with client(address) as http:
            trunks = [await created(http, ip_based(qualify_frequency=0)) for _ in range(CLIENTS)]
        writers = [Writer(trunk["id"]) for trunk in trunks]
        running = [asyncio.create_task(writer.run(address)) for writer in writers]
        for writer in writers:
            for _ in range(CHANGES_BEFORE):
                await writer.changes.acquire()
        server.signal(signal.SIGTERM)
        async with asyncio.timeout(SECONDS_MAX):
            await asyncio.gather(*running)
        done = await server.ended()
    assert done.code == 0
    assert "Traceback" not in done.err
    rows = await stored(database)
    for writer in writers:
        assert not writer.begun
        # The one answer that is no success says so in full, and nothing was written.
        assert writer.statuses <= {200, 503}
        number = rows[writer.trunk_id][0]
        whole = (number, f"n={number}", f"h{number}.example")
        assert rows[writer.trunk_id] == whole
        assert number == writer.acknowledged


async def until_one_waits(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    statement = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        " AND datname = current_database()"
    )
    async with asyncio.timeout(SECONDS_MAX):
        while not await connection.fetchval(statement):  # noqa: ASYNC110 - PostgreSQL has no event
            await asyncio.sleep(POLL_SECONDS)


async def test_a_request_under_way_is_answered_after_sigterm(database: str, tmp_path: Path) -> None:
    async with serving(tmp_path, database) as server:
        async with client(http_address(server)) as http:
            trunk = await created(http)
        holder = await asyncpg.connect(database)
        async with Connection(http_address(server)) as connection:
            transaction = holder.transaction()
            await transaction.start()
            await holder.execute("SELECT FROM trunks WHERE id = $1 FOR UPDATE", trunk["id"])
            path = f"{TRUNKS}/{trunk['id']}"
            await connection.send("PATCH", path, b'{"is_active": false}')
            await until_one_waits(holder)
            server.signal(signal.SIGTERM)
            await server.logged('"draining"')
            await transaction.commit()
            answer = await connection.answer()
        await holder.close()
        assert (answer.status, answer.json()["is_active"]) == (200, False)
        assert (await server.ended()).code == 0


async def test_a_list_under_way_is_finished_after_sigterm(database: str, tmp_path: Path) -> None:
    async with serving(tmp_path, database) as server:
        address = http_address(server)
        async with client(address) as http:
            ranges = [{"ip_address": f"198.18.0.{n}"} for n in range(250)]
            trunks = [await created(http, ip_based(ip_identifiers=ranges)) for _ in range(250)]
        headers = {"Authorization": f"Bearer {TOKEN}", "Accept-Encoding": "identity"}
        async with (
            httpx.AsyncClient(trust_env=False, timeout=SECONDS_MAX) as reader,
            reader.stream("GET", f"http://{address}{TRUNKS}", headers=headers) as response,
        ):
            parts = response.aiter_raw()
            first = await anext(parts)
            server.signal(signal.SIGTERM)
            await server.logged('"draining"')
            body = first + b"".join([part async for part in parts])
        assert [t["id"] for t in json.loads(body)] == [t["id"] for t in trunks]
        assert (await server.ended()).code == 0


async def test_without_an_http_address_there_is_no_gateway(database: str, tmp_path: Path) -> None:
    async with serving(tmp_path, database, "") as server:
        assert "http=" not in server.out
        listening = {line.split()[1] for line in tcp_listeners(server.pid)}
        assert len(listening) == 1


def tcp_listeners(pid: int) -> list[str]:
    """The lines of /proc/net/tcp for the sockets that a process listens on."""
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(entry.readlink()))
    tables = (Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6"))
    lines = [line for table in tables for line in table.splitlines()[1:]]
    return [li for li in lines if li.split()[3] == "0A" and f"socket:[{li.split()[9]}]" in inodes]


class Gateway:
    """`trunkline gateway` in a process of its own."""

    def __init__(self, upstream: str, log: Path) -> None:
        self._upstream = upstream
        self._log = log
        self.address = ""

    async def __aenter__(self) -> "Gateway":
        with self._log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "trunkline", "gateway", "--upstream", self._upstream),
                env=environment(http_address="127.0.0.1:0", log_level="debug"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        async with asyncio.timeout(SECONDS_MAX):
            line = (await self.process.stdout.readline()).decode()
        assert line.startswith("trunkline ready http="), self.err
        self.address = line.partition("http=")[2].strip()
        return self

    async def __aexit__(self, *error: object) -> None:
        if self.process.returncode is None:
            os.kill(self.process.pid, signal.SIGKILL)
        await self.process.wait()
        SEEN.add(self.err.encode())

    @property
    def err(self) -> str:
        """What it has logged so far."""
        return self._log.read_text()

    async def stop(self) -> int:
        """SIGTERM, and wait for its end; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(SECONDS_MAX):
            return await self.process.wait()


async def test_a_gateway_alone_serves_what_a_service_elsewhere_has(
    database: str, tmp_path: Path
) -> None:
    async with (
        serving(tmp_path, database, "") as server,
        Gateway(await server.ready(), tmp_path / "gateway.err") as front,
        client(front.address) as http,
    ):
        assert (await http.get("/readyz")).status_code == 200
        trunk = await created(http)
        url = f"{TRUNKS}/{trunk['id']}"
        changed = await http.patch(url, json={"is_active": False})
        assert (changed.status_code, changed.json()["is_active"]) == (200, False)
        assert (await http.get(TRUNKS)).json() == [changed.json()]
        assert problem(await http.get(f"{TRUNKS}/{ABSENT}")).status == 404
        assert (await http.delete(url)).status_code == 200
        assert await front.stop() == 0
        assert "Traceback" not in front.err


async def until(http: httpx.AsyncClient, path: str, status: int) -> httpx.Response:
    """The first reply with a status; before it come others of the two that are expected."""
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            response = await http.get(path)
            if response.status_code == status:
                return response
            assert response.status_code in (200, 503), response.text
            await asyncio.sleep(POLL_SECONDS)


async def test_a_gateway_says_503_while_the_service_is_away_and_finds_it_again(
    database: str, tmp_path: Path
) -> None:
    upstream = free_address()
    async with (
        Gateway(upstream, tmp_path / "gateway.err") as front,
        client(front.address) as http,
    ):
        await assert_away(http, upstream)
        async with serving(tmp_path, database, "", grpc_address=upstream) as server:
            await until(http, "/readyz", 200)
            trunk = await created(http)
            await server.stop()
        await assert_away(http, upstream)
        async with serving(tmp_path, database, "", grpc_address=upstream):
            await until(http, f"{TRUNKS}/{trunk['id']}", 200)
            assert await read(http, trunk["id"]) == trunk


async def assert_away(http: httpx.AsyncClient, upstream: str) -> None:
    """Every route says so, with a time to retry, and the process is well."""
    url = f"{TRUNKS}/{ABSENT}"
    requests: list[tuple[str, str, Any]] = [
        ("GET", TRUNKS, None),
        ("POST", TRUNKS, userpass()),
        ("GET", url, None),
        ("PATCH", url, {"is_active": False}),
        ("DELETE", url, None),
        ("GET", f"{url}/numbers", None),
        ("GET", f"{TRUNKS}:watch", None),
        ("GET", f"{url}/revisions", None),
        ("POST", f"{url}:revert", {"revision": 1}),
        ("GET", "/readyz", None),
    ]
    for method, path, body in requests:
        content: Any = {} if body is None else {"json": body}
        response = await http.request(method, path, **content)
        found = problem(response)
        assert found.status == 503
        assert int(response.headers["Retry-After"]) >= 1
        assert upstream not in response.text
        assert "ipv4" not in response.text
    assert (await http.get("/healthz")).status_code == 200


async def test_no_password_is_in_a_reply_or_in_a_line_of_the_log(
    database: str, tmp_path: Path
) -> None:
    given = {name: password() for name in ("first", "second", "wrong", "body")}
    replies: list[bytes] = []
    async with (
        serving(tmp_path, database) as server,
        Gateway(await server.ready(), tmp_path / "gateway.err") as front,
    ):
        for address in (http_address(server), front.address):
            async with client(address) as http:
                replies += await spoken(http, given)
        await front.stop()
        output = server.out + server.err + front.err
        assert '"request"' in output
    assert leaks(output.encode(), set(given.values())) == []
    assert leaks(b"\n".join(replies), set(given.values())) == []


async def spoken(http: httpx.AsyncClient, given: dict[str, str]) -> list[bytes]:
    """What a gateway answers to requests that have passwords in every place that takes one."""
    first, second, wrong, body = given.values()
    made = await http.post(TRUNKS, json=userpass(auth_password=first))
    assert made.status_code == 201, made.text
    url = f"{TRUNKS}/{made.json()['id']}"
    headers = {"Content-Type": "application/json"}
    texts = [
        f'{{"auth_password": "{body}"',
        f'{{"auth_password": "{body}", "auth_password": "{body}"}}',
        f'{{"auth_password": "{body}", "x": NaN}}',
        f'"{body}"',
        f'{{"auth_password": "{body}\\ud800"}}',
    ]
    values: list[Any] = [wrong + "x" * 300, wrong + "\n", f" {wrong}", [wrong], {"is": wrong}]
    responses = [made, await http.get(url), await http.get(TRUNKS)]
    responses += [await http.patch(url, json={"auth_password": second})]
    responses += [await http.patch(url, json={"auth_password": v, "name": ""}) for v in values]
    responses += [await http.post(TRUNKS, json=userpass(auth_password=v)) for v in values]
    responses += [await http.patch(url, content=text, headers=headers) for text in texts]
    responses += [await http.post(TRUNKS, json=ip_based(auth_password=wrong))]
    responses += [await http.post(TRUNKS, json=userpass(auth_password=first, provider=""))]
    responses += [await http.patch(f"{TRUNKS}/{ABSENT}", json={"auth_password": second})]
    responses += [
        await http.patch(url, json={"auth_password": second}, headers={"If-Match": '"0"'})
    ]
    responses += [await http.get(url)]
    statuses = [response.status_code for response in responses]
    assert statuses[:4] == [201, 200, 200, 200]
    assert set(statuses[4:-1]) == {400, 404, 412}
    return [r.content + repr(r.headers).encode() for r in responses]
