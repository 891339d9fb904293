"""The stream of changes as server-sent events."""

from collections.abc import AsyncIterator

import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.http.clients import client
from tests.http.document import faults
from tests.http.events import WATCH, Service, of, shared
from tests.http.trunks import TRUNKS, alone, created, problem, userpass
from tests.integration.conftest import minted
from tests.support import connected

POLL_SECONDS = 0.05
FOREIGN = "AAAAAAAAAAAAAAAAAAAAAAAAAAA"


@pytest.fixture(scope="module")
async def service(postgres: str, template: str) -> AsyncIterator[Service]:
    """A service that the module's tests share; each minds its own trunks."""
    async with shared(postgres, template) as made:
        yield made


async def test_changes_are_told_as_they_happen(service: Service) -> None:
    async with service.watching() as stream:
        assert stream.response.status_code == 200
        headers = stream.response.headers
        assert headers["Content-Type"].partition(";")[0] == "text/event-stream"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Accel-Buffering"] == "no"
        assert "Content-Encoding" not in headers
        await stream.begun()
        assert stream.retry
        assert stream.last_id
        trunk = await created(service.http, userpass(phone_numbers=[{"phone_number": "+15550130"}]))
        url = f"{TRUNKS}/{trunk['id']}"
        body = {"description": "a\nb\u2028c", "qualify_frequency": 1}
        changed = (await service.http.patch(url, json=body)).json()
        await service.http.delete(f"{url}/numbers/{trunk['phone_numbers'][0]['id']}")
        await service.http.delete(url)
        events = await stream.some(4)
    assert [e.kind for e in events] == ["created", "updated", "updated", "deleted"]
    assert [e.data["revision"] for e in events] == [1, 2, 3, 4]
    assert events[0].data["trunk"] == alone(trunk)
    assert events[0].data["phone_numbers"]["added"] == trunk["phone_numbers"]
    assert events[1].data["trunk"] == alone(changed)
    assert sorted(events[1].data["changed_fields"]) == ["description", "qualify_frequency"]
    assert events[1].data["changed_at"] == changed["updated_at"]
    assert events[2].data["phone_numbers"]["removed"] == trunk["phone_numbers"]
    for event in events:
        assert event.id == event.data["resume_token"]
        assert event.data["kind"] == event.kind
        assert faults("Event", event.data) == []
    assert len({e.id for e in events}) == 4


async def test_a_stream_is_not_compressed_for_those_who_ask(service: Service) -> None:
    async with service.watching({"Accept-Encoding": "gzip"}) as stream:
        assert "Content-Encoding" not in stream.response.headers
        await stream.begun()
        trunk = await created(service.http)
        assert await of(stream, trunk["id"], "created")


async def test_the_initial_state_comes_first_and_is_said_to_be_complete(service: Service) -> None:
    trunks = [await created(service.http, userpass(is_active=n > 0)) for n in range(3)]
    async with service.watching(initial_state="true") as stream:
        await stream.begun()
        assert stream.last_id == ""
        seen = {}
        while (event := await stream.next()).kind == "initial":
            assert event.id is None
            assert event.data["resume_token"] is None
            assert event.data["changed_fields"] == []
            assert faults("Event", event.data) == []
            seen[event.data["trunk"]["id"]] = event.data["trunk"]
        assert (event.kind, event.id) == ("initial_state_complete", event.data["resume_token"])
        assert stream.last_id == event.id
        await service.http.patch(f"{TRUNKS}/{trunks[0]['id']}", json={"description": "later"})
        assert (await of(stream, trunks[0]["id"], "updated"))["revision"] == 2
    every = (await service.http.get(TRUNKS)).json()
    assert set(seen) == {t["id"] for t in every}
    assert [seen[t["id"]] for t in trunks] == [alone(t) for t in trunks]


async def test_a_stream_goes_on_from_the_last_event_id(service: Service) -> None:
    async with service.watching() as stream:
        await stream.begun()
        trunk = await created(service.http)
        assert await of(stream, trunk["id"], "created")
        last = stream.last_id
    url = f"{TRUNKS}/{trunk['id']}"
    for number in range(5):  # while nobody watches
        await service.http.patch(url, json={"qualify_frequency": number})
    gone_on = [
        # As a browser does it, at the URL that it began with; the header goes before the query.
        ({"Last-Event-ID": last}, {"initial_state": "true"}),
        ({"Last-Event-ID": last}, {"resume_token": FOREIGN}),
        ({"Last-Event-ID": ""}, {"resume_token": last}),
        ({}, {"resume_token": last}),
    ]
    for headers, parameters in gone_on:
        async with service.watching(headers, **parameters) as stream:
            events = [await of(stream, trunk["id"], "updated") for _ in range(5)]
        assert [e["revision"] for e in events] == [2, 3, 4, 5, 6]
        assert [e["trunk"]["qualify_frequency"] for e in events] == list(range(5))


async def test_both_forms_tell_the_same_and_take_the_tokens_of_each_other(
    service: Service,
) -> None:
    async with connected(service.grpc_address, None) as stub:
        call = stub.WatchSipTrunks(
            pb.WatchSipTrunksRequest(), metadata=(("authorization", f"Bearer {service.token}"),)
        )
        token = (await call.read()).resume_token
        trunk = await created(service.http)
        async with service.watching(resume_token=token) as stream:
            told = await of(stream, trunk["id"], "created")
        response = await call.read()
        while not response.events:
            response = await call.read()
        call.cancel()
    (event,) = response.events
    assert (event.resume_token, event.revision) == (told["resume_token"], told["revision"])
    assert event.sip_trunk.etag == told["trunk"]["etag"] == trunk["etag"]


async def test_a_filter_chooses(service: Service) -> None:
    async with service.watching(filter="is_active=false") as stream:
        await stream.begun()
        active, inactive = [
            await created(service.http, userpass(is_active=value)) for value in (True, False)
        ]
        first = await stream.next()
        assert first.data["trunk"]["id"] == inactive["id"]
        # What goes out of the filter is told, so that it can be let go of.
        await service.http.patch(f"{TRUNKS}/{inactive['id']}", json={"is_active": True})
        assert (await stream.next()).data["trunk"]["is_active"] is True
        await service.http.patch(f"{TRUNKS}/{active['id']}", json={"is_active": False})
        assert (await stream.next()).data["trunk"]["id"] == active["id"]


async def test_a_heartbeat_moves_the_last_id_and_tells_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.trunks.watch.HEARTBEAT_SECONDS", 0.5)
    async with service.watching() as stream:
        await stream.begun()
        began = stream.last_id
        # Changes of another account move the place of every stream.
        token = (await minted(service.url, "elsewhere")).text
        async with client(service.address, token) as other:
            await created(other)
        while stream.last_id == began:
            assert await stream.block() is None
        assert len(stream.comments) >= 2


@pytest.mark.parametrize(
    ("query", "field", "reason"),
    [
        ("initial_state=1", "initial_state", "WRONG_TYPE"),
        ("all_accounts=yes", "all_accounts", "WRONG_TYPE"),
        ("filter=name", "filter", "SYNTAX"),
        ("filter=provider%3Dx", "filter", "UNKNOWN_FIELD"),
        ("resume_token=x", "resume_token", "BAD_RESUME_TOKEN"),
        (f"resume_token={FOREIGN}&initial_state=true", "initial_state", "NOT_WITH_TOKEN"),
        ("page_size=1", "page_size", "UNKNOWN_PARAMETER"),
        ("filter=&filter=", "filter", "TWICE"),
    ],
)
async def test_a_parameter_that_is_wrong_is_400_before_the_stream(
    service: Service, query: str, field: str, reason: str
) -> None:
    found = problem(await service.http.get(f"{WATCH}?{query}"))
    assert (found.status, found.violations) == (400, [(field, reason)])


@pytest.mark.parametrize("sent", ["x", "é", FOREIGN + "AA"])
async def test_a_last_event_id_that_is_none_is_400(service: Service, sent: str) -> None:
    response = await service.http.get(WATCH, headers=[(b"Last-Event-ID", sent.encode())])
    assert problem(response).violations == [("resume_token", "BAD_RESUME_TOKEN")]


async def test_a_token_of_another_history_is_410(service: Service) -> None:
    for headers, query in (({"Last-Event-ID": FOREIGN}, ""), ({}, f"?resume_token={FOREIGN}")):
        found = problem(await service.http.get(f"{WATCH}{query}", headers=headers))
        assert (found.status, found.reason) == (410, "RESUME_TOKEN_FOREIGN")
