"""How streams of changes end, and what they leave alone while they go on."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import asyncpg
import httpx
import pytest

from tests.conftest import running
from tests.http.clients import Connection, client
from tests.http.document import faults
from tests.http.events import SECONDS_MAX, WATCH, Service, of, shared, watching
from tests.http.relay import relayed
from tests.http.trunks import TRUNKS, created, ip_based, problem, read, userpass
from tests.integration.conftest import identities, minted
from tests.support import TOKEN, password

POLL_SECONDS = 0.05
FOREIGN = "AAAAAAAAAAAAAAAAAAAAAAAAAAA"


@pytest.fixture(scope="module")
async def service(postgres: str, template: str) -> AsyncIterator[Service]:
    """A service that the module's tests share; each minds its own trunks."""
    async with shared(postgres, template) as made:
        yield made


async def test_a_token_that_is_forgotten_is_410_or_ends_the_stream(database: str) -> None:
    async with (
        running(database, http_address="127.0.0.1:0") as served,
        client(served.http_address) as http,
    ):
        async with watching(served.http_address) as stream:
            await stream.begun()
            token = stream.last_id
            trunk = await created(http)
            assert await of(stream, trunk["id"], "created")
        connection = await asyncpg.connect(database)
        await connection.execute("UPDATE feed_state SET floor = position")
        await connection.close()
        async with watching(served.http_address, {"Last-Event-ID": token}) as stream:
            if stream.response.status_code == 200:
                event = await stream.next()
                assert (event.kind, event.data["error"]) == ("error", 410)
                assert event.data["reason"] == "RESUME_TOKEN_EXPIRED"
                assert await stream.ended()
            else:
                found = problem(stream.response)
                assert (found.status, found.reason) == (410, "RESUME_TOKEN_EXPIRED")


async def test_all_accounts_takes_a_token_of_an_operator(database: str) -> None:
    async with running(database, http_address="127.0.0.1:0") as served:
        operator = await minted(database, "ours", ["trunks:read", "operator:read"])
        reader = await minted(database, "ours", ["trunks:read"])
        ours, theirs = [await minted(database, name) for name in ("ours", "theirs")]
        async with watching(served.http_address, token=reader.text, all_accounts="true") as stream:
            found = problem(stream.response)
            assert (found.status, found.reason) == (403, "SCOPE_MISSING")
        async with (
            watching(served.http_address, token=operator.text, all_accounts="true") as every,
            watching(served.http_address, token=reader.text) as own,
            client(served.http_address, theirs.text) as http,
        ):
            await every.begun()
            await own.begun()
            trunk = await created(http)
            assert (await of(every, trunk["id"], "created"))["trunk"]["user_id"] == "theirs"
            async with client(served.http_address, ours.text) as http:
                mine = await created(http)
            assert (await own.next()).data["trunk"]["id"] == mine["id"]


async def test_who_calls_is_known_before_the_stream(service: Service) -> None:
    async with watching(service.address, token=f"{TOKEN}x") as stream:
        assert problem(stream.response).status == 401
        assert stream.response.headers["WWW-Authenticate"].startswith("Bearer")
    async with watching(service.address, token=f"{TOKEN}x", initial_state="maybe") as stream:
        assert problem(stream.response).status == 401


async def test_a_token_that_is_revoked_ends_its_stream(database: str) -> None:
    async with running(database, http_address="127.0.0.1:0") as served:
        token = await minted(database, "default")
        async with (
            watching(served.http_address, token=token.text) as stream,
            client(served.http_address, token.text) as http,
        ):
            await stream.begun()
            trunk = await created(http)
            assert await of(stream, trunk["id"], "created")
            last = stream.last_id
            async with identities(database) as store:
                assert await store.revoke_token(token.token_id)
            event = await stream.next()
            assert (event.kind, event.data["error"], event.data["reason"]) == (
                "error",
                401,
                "TOKEN_UNKNOWN",
            )
            assert event.data["resume_token"] == last == stream.last_id
            body = {k: v for k, v in event.data.items() if k != "resume_token"}
            assert faults("Error", body) == []
            assert await stream.ended()


async def test_a_server_that_drains_ends_the_stream_with_where_to_go_on(database: str) -> None:
    async with running(database, http_address="127.0.0.1:0") as other:
        async with contextlib.AsyncExitStack() as stack:
            served = running(database, http_address="127.0.0.1:0", drain_seconds=SECONDS_MAX)
            address = (await stack.enter_async_context(served)).http_address
            stream = await stack.enter_async_context(watching(address))
            await stream.begun()
            draining = asyncio.create_task(served.__aexit__(None, None, None))
            event = await stream.next()
            assert (event.kind, event.data["error"]) == ("error", 503)
            assert event.data["reason"] == "DRAINING"
            assert event.data["resume_token"] == event.id
            assert await stream.ended()
            async with asyncio.timeout(SECONDS_MAX / 2):
                await draining
            stack.pop_all()
        async with (
            client(other.http_address) as http,
            watching(other.http_address, {"Last-Event-ID": stream.last_id}) as again,
        ):
            trunk = await created(http)
            assert await of(again, trunk["id"], "created")


async def watches(caplog: pytest.LogCaptureFixture, count: int) -> list[str]:
    """The codes of watches that have ended, once there are so many."""
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            ended = [
                record.__dict__["code"]
                for record in caplog.records
                if record.name == "trunkline.call"
                and record.__dict__["method"].endswith("/WatchSipTrunks")
            ]
            if len(ended) >= count:
                return ended
            await asyncio.sleep(POLL_SECONDS)


async def test_a_client_that_goes_away_cancels_the_watch(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with service.watching() as stream:
            await stream.begun()
            assert await watches(caplog, 0) == []
        assert await watches(caplog, 1) == ["CANCELLED"]


async def test_a_head_is_answered_and_watches_nothing(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        response = await service.http.head(WATCH)
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["Content-Type"].startswith("text/event-stream")
        assert await watches(caplog, 1) == ["CANCELLED"]
    assert problem_free(await service.http.head(f"{WATCH}?initial_state=x")) == 400


def problem_free(response: httpx.Response) -> int:
    assert response.content == b""
    return response.status_code


async def test_a_stream_has_no_deadline_and_other_calls_have(database: str) -> None:
    async with running(database) as service, relayed(service.grpc_address) as (relay, http):
        address = http.base_url.netloc.decode()
        headers = {"X-Request-Timeout": "20", "X-Request-Id": "w1"}
        async with watching(address, headers) as stream:
            await stream.begun()
            trunk = await created(http)
            assert await of(stream, trunk["id"], "created")
        calls = {call.method: call for call in relay.calls}
        assert calls["WatchSipTrunks"].seconds is None
        assert calls["WatchSipTrunks"].metadata["x-request-id"] == "w1"
        assert calls["CreateSipTrunk"].seconds is not None


async def test_many_streams_leave_the_other_calls_alone(service: Service) -> None:
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(service.watching()) for _ in range(60)]
        await asyncio.gather(*(s.begun() for s in streams))
        trunk = await created(service.http, ip_based())
        told = await asyncio.gather(*(of(s, trunk["id"], "created") for s in streams))
        assert all(event == told[0] for event in told)
        assert await read(service.http, trunk["id"]) == trunk


async def test_a_watch_too_many_is_429_with_a_time_to_retry(service: Service) -> None:
    token = (await minted(service.url, "greedy")).text
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(200):
            stream = await stack.enter_async_context(watching(service.address, token=token))
            assert stream.response.status_code == 200
        one_more = await stack.enter_async_context(watching(service.address, token=token))
        found = problem(one_more.response)
        assert (found.status, found.reason) == (429, "TOO_MANY_WATCHERS")
        assert int(one_more.response.headers["Retry-After"]) >= 1


async def test_a_client_that_reads_nothing_holds_nobody_up(service: Service) -> None:
    async with Connection(service.address) as idle, service.watching() as stream:
        await idle.send("GET", WATCH, headers={"Authorization": f"Bearer {service.token}"})
        await stream.begun()
        trunk = await created(service.http, userpass(auth_password=password()))
        for number in range(100):
            body = {"description": f"{number} " + "x" * 400}
            await service.http.patch(f"{TRUNKS}/{trunk['id']}", json=body)
        assert await of(stream, trunk["id"], "created")
        events = [await of(stream, trunk["id"], "updated") for _ in range(100)]
    assert [e["revision"] for e in events] == list(range(2, 102))


async def test_a_service_that_has_fallen_silent_ends_the_stream(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.gateway.watch.SILENCE_SECONDS_MAX", 0.2)
    async with service.watching() as stream:
        await stream.begun()
        event = await stream.next()
        assert (event.data["error"], event.data["reason"]) == (503, "UPSTREAM_UNAVAILABLE")
        assert event.data["resume_token"] == stream.last_id
        assert await stream.ended()


async def test_a_gateway_takes_so_many_streams_and_others_when_some_end(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.gateway.watch.WATCHES_MAX", 2)
    async with service.watching() as one, service.watching() as two:
        await one.begun()
        await two.begun()
        response = await service.http.get(WATCH)
        found = problem(response)
        assert (found.status, found.reason) == (429, "TOO_MANY_WATCHERS")
        assert int(response.headers["Retry-After"]) >= 1
    async with asyncio.timeout(SECONDS_MAX):
        while True:
            async with service.watching() as again:
                if again.response.status_code == 200:
                    break
            await asyncio.sleep(POLL_SECONDS)
