"""Streams of changes over HTTP, with servers and gateways in processes that end."""

import asyncio
import signal
from pathlib import Path

from tests.e2e.processes import SECONDS_MAX
from tests.e2e.test_http_drain import Gateway, http_address, serving
from tests.http.clients import client
from tests.http.events import Event, Stream, watching
from tests.http.trunks import TRUNKS, created


async def assert_ended(stream: Stream, *, reason: str) -> None:
    """See that a stream ends with a reason, and with the place to go on from."""
    event = await stream.next()
    assert (event.kind, event.data["error"], event.data["reason"]) == ("error", 503, reason)
    assert event.data["resume_token"] == stream.last_id
    assert await stream.ended()


async def test_a_stream_ends_at_sigterm_and_another_server_goes_on_from_it(
    database: str, tmp_path: Path
) -> None:
    async with serving(tmp_path, database) as server:
        address = http_address(server)
        async with watching(address) as stream, client(address) as http:
            await stream.begun()
            trunk = await created(http)
            assert (await stream.next()).data["trunk"]["id"] == trunk["id"]
            server.signal(signal.SIGTERM)
            await assert_ended(stream, reason="DRAINING")
        done = await server.ended()
        assert done.code == 0
        assert "Traceback" not in done.err
    async with serving(tmp_path, database) as server:
        address = http_address(server)
        async with client(address) as http:
            await http.patch(f"{TRUNKS}/{trunk['id']}", json={"is_active": False})
        async with watching(address, {"Last-Event-ID": stream.last_id}) as again:
            event = await again.next()
            assert (event.kind, event.data["revision"]) == ("updated", 2)


async def test_a_gateway_alone_streams_and_ends_its_streams_at_sigterm(
    database: str, tmp_path: Path
) -> None:
    async with (
        serving(tmp_path, database, "") as server,
        Gateway(await server.ready(), tmp_path / "gateway.err") as front,
        client(front.address) as http,
    ):
        async with watching(front.address, initial_state="true") as stream:
            event = await stream.next()
            assert event.kind == "initial_state_complete"
            trunk = await created(http)
            event = await stream.next()
            assert event == Event("created", event.data, event.data["resume_token"])
            assert event.data["trunk"]["id"] == trunk["id"]
            front.process.send_signal(signal.SIGTERM)
            await assert_ended(stream, reason="DRAINING")
        async with asyncio.timeout(SECONDS_MAX):
            assert await front.process.wait() == 0
        assert "Traceback" not in front.err


async def test_a_stream_of_a_gateway_alone_ends_where_the_service_dies(
    database: str, tmp_path: Path
) -> None:
    async with (
        serving(tmp_path, database, "") as server,
        Gateway(await server.ready(), tmp_path / "gateway.err") as front,
        watching(front.address) as stream,
    ):
        await stream.begun()
        await server.kill()
        await assert_ended(stream, reason="UPSTREAM_UNAVAILABLE")
