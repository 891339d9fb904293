"""WatchSipTrunks: where a stream begins, what it says, where it ends."""

import asyncio
from typing import Any

import asyncpg
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.integration.conftest import created, minted, read
from tests.integration.watching import (
    CREATED,
    DELETED,
    INITIAL,
    SECONDS_MAX,
    UPDATED,
    Watcher,
    watching,
)
from tests.support import (
    PhoneNumber,
    SipTrunk,
    connected,
    ip_based,
    password,
    refused,
    update,
    userpass,
)
from trunkline import events, feed
from trunkline.events import Place
from trunkline.trunks import watch


async def refused_watch(stub: Any, **fields: Any) -> Any:
    watcher = Watcher()
    async with asyncio.timeout(SECONDS_MAX):
        await watcher.read(stub.WatchSipTrunks(pb.WatchSipTrunksRequest(**fields)))
    return await watcher.ended()


async def set_frequency(stub: Any, trunk_id: str, seconds: int) -> SipTrunk:
    request = update(trunk_id, "qualify_frequency", qualify_frequency=seconds)
    trunk = await stub.UpdateSipTrunk(request)
    assert isinstance(trunk, SipTrunk)
    return trunk


async def test_watch_from_now_says_that_it_has_begun_and_then_what_changes(stub: Any) -> None:
    before = await created(stub)
    async with watching(stub) as watcher:
        assert watcher.responses[0].resume_token
        assert not watcher.responses[0].events
        trunk = await created(stub, ip_based(), "+15550100")
        after = await set_frequency(stub, before.id, 5)
        await stub.DeleteSipTrunk(pb.DeleteSipTrunkRequest(id=trunk.id, force=True))
        events = await watcher.has(3)
        assert [event.kind for event in events] == [CREATED, UPDATED, DELETED]
        assert [event.revision for event in events] == [1, 2, 2]
        assert events[0].sip_trunk == trunk
        assert [n.phone_number for n in events[0].phone_numbers.added] == ["+15550100"]
        assert events[1].sip_trunk == after
        assert list(events[1].changed_fields) == ["qualify_frequency"]
        assert events[1].changed_at == after.updated_at
        assert events[2].sip_trunk == trunk
        assert len({event.resume_token for event in events}) == 3


async def test_update_that_changes_nothing_is_no_event(stub: Any) -> None:
    trunk = await created(stub)
    async with watching(stub) as watcher:
        await set_frequency(stub, trunk.id, trunk.qualify_frequency)
        await set_frequency(stub, trunk.id, 7)
        assert (await watcher.has(1))[0].revision == 2


async def test_password_is_named_and_never_shown(stub: Any) -> None:
    trunk = await created(stub)
    async with watching(stub) as watcher:
        await stub.UpdateSipTrunk(update(trunk.id, "auth_password", auth_password=password()))
        event = (await watcher.has(1))[0]
        assert list(event.changed_fields) == ["auth_password"]
        assert event.sip_trunk.auth_password_set
        assert not event.sip_trunk.HasField("auth_password")


async def test_change_of_numbers_is_told_as_what_changed(stub: Any) -> None:
    trunk = await created(stub)
    async with watching(stub) as watcher:
        add = pb.CreatePhoneNumberRequest(
            trunk_id=trunk.id, phone_number=PhoneNumber(phone_number="+15550101")
        )
        number = await stub.CreatePhoneNumber(add)
        rename = pb.UpdatePhoneNumberRequest(
            trunk_id=trunk.id, phone_number=PhoneNumber(id=number.id, name="Desk")
        )
        renamed = await stub.UpdatePhoneNumber(rename)
        await stub.DeletePhoneNumber(pb.DeletePhoneNumberRequest(trunk_id=trunk.id, id=number.id))
        events = await watcher.has(3)
        assert list(events[0].phone_numbers.added) == [number]
        assert list(events[1].phone_numbers.renamed) == [renamed]
        assert list(events[2].phone_numbers.removed) == [renamed]
        assert [list(e.changed_fields) for e in events] == [["phone_numbers"]] * 3
        assert [e.sip_trunk.phone_number_count for e in events] == [1, 1, 0]


async def test_watch_goes_on_from_the_token_of_any_event(stub: Any) -> None:
    trunk = await created(stub)
    async with watching(stub) as watcher:
        for seconds in range(1, 8):
            await set_frequency(stub, trunk.id, seconds)
        events = list(await watcher.has(7))
    for place, event in enumerate(events):
        async with watching(stub, resume_token=event.resume_token) as again:
            assert list(await again.has(6 - place)) == events[place + 1 :]


@pytest.mark.parametrize("kept", [2, 4096])
async def test_watch_goes_on_from_what_is_not_in_memory_any_more(
    database: str, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(feed, "EVENTS_KEPT_MAX", kept)
    monkeypatch.setattr(feed, "CATCH_UP_PAGE_MAX", 3)
    async with running(database) as service, connected(service.grpc_address) as stub:
        trunk = await created(stub)
        async with watching(stub) as watcher:
            token = watcher.token
            for seconds in range(1, 20):
                await set_frequency(stub, trunk.id, seconds)
            async with watching(stub, resume_token=token) as again:
                assert [e.revision for e in await again.has(19)] == list(range(2, 21))
                await set_frequency(stub, trunk.id, 99)
                await again.has(20)


async def test_initial_state_comes_first_and_its_end_is_marked(stub: Any) -> None:
    trunks = [await created(stub, userpass(), f"+1555020{i}") for i in range(3)]
    await set_frequency(stub, trunks[1].id, 5)
    async with watching(stub, initial_state=True) as watcher:
        await watcher.until(lambda w: w.responses[-1].initial_state_complete)
        events = watcher.events
        assert [event.kind for event in events] == [INITIAL] * 3
        assert [event.revision for event in events] == [1, 2, 1]
        assert [event.sip_trunk for event in events] == [await read(stub, t.id) for t in trunks]
        assert not any(event.resume_token for event in events)
        token = watcher.token
        await set_frequency(stub, trunks[0].id, 6)
        assert (await watcher.has(4))[3].revision == 2
    async with watching(stub, resume_token=token) as again:
        assert (await again.has(1))[0].sip_trunk.id == trunks[0].id


async def test_initial_state_under_changes_ends_as_the_trunks_are(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "INITIAL_PAGE_MAX", 2)
    trunks = [await created(stub) for _ in range(12)]
    stop = asyncio.Event()

    async def keep_changing(trunk_id: str) -> None:
        seconds = 0
        while not stop.is_set():
            seconds += 1
            await set_frequency(stub, trunk_id, seconds)

    writers = [asyncio.create_task(keep_changing(t.id)) for t in trunks[::3]]
    streams = []
    for _ in range(8):
        async with watching(stub, initial_state=True) as watcher:
            await watcher.until(lambda w: any(r.initial_state_complete for r in w.responses))
            count = len(watcher.events)
            await watcher.until(lambda w: len(w.events) > count + 5)  # noqa: B023
            streams.append(watcher.events)
    stop.set()
    await asyncio.gather(*writers)
    for stream in streams:
        last: dict[str, int] = {}
        for event in stream:
            known = last.get(event.sip_trunk.id)
            # The first is the state, and each later one the very next revision.
            assert event.kind == (INITIAL if known is None else UPDATED)
            assert known is None or event.revision == known + 1
            last[event.sip_trunk.id] = event.revision
        assert len(last) == 12


async def test_filter_tells_also_of_the_change_that_takes_a_trunk_out(stub: Any) -> None:
    active = await created(stub)
    await created(stub, userpass(is_active=False))
    request = {"filter": "is_active=true", "initial_state": True}
    async with watching(stub, **request) as watcher:
        await watcher.until(lambda w: w.responses[-1].initial_state_complete)
        assert [e.sip_trunk.id for e in watcher.events] == [active.id]
        await stub.UpdateSipTrunk(update(active.id, "is_active", is_active=False))
        await set_frequency(stub, active.id, 9)
        await stub.UpdateSipTrunk(update(active.id, "is_active", is_active=True))
        await set_frequency(stub, active.id, 10)
        events = (await watcher.has(4))[1:]
        assert [e.revision for e in events] == [2, 4, 5]
        assert [e.sip_trunk.is_active for e in events] == [False, True, True]


async def test_accounts_never_see_each_other(ours: Any, theirs: Any) -> None:
    mine = await created(ours)
    async with (
        watching(ours, initial_state=True) as watcher,
        watching(theirs, initial_state=True) as other,
    ):
        for one in (watcher, other):
            await one.until(lambda w: w.responses[-1].initial_state_complete)
        await set_frequency(ours, mine.id, 3)
        await watcher.has(2)
        alien = await created(theirs)
        assert [e.sip_trunk.id for e in await other.has(1)] == [alien.id]
        assert len(watcher.events) == 2


async def test_operator_sees_every_account_and_nobody_else_does(
    database: str, service: str, ours: Any, theirs: Any
) -> None:
    plain = (await minted(database, "ours", ("trunks:read", "trunks:write"))).text
    async with connected(service, plain) as stub:
        error = await refused_watch(stub, all_accounts=True)
        assert (error.code, error.reason) == ("PERMISSION_DENIED", "SCOPE_MISSING")
        assert error.metadata["scope"] == "operator:read"
    operator = (await minted(database, "ours", ("trunks:read", "operator:read"))).text
    async with connected(service, operator) as stub:
        before = [await created(ours), await created(theirs)]
        async with watching(stub, all_accounts=True, initial_state=True) as watcher:
            await watcher.until(lambda w: w.responses[-1].initial_state_complete)
            await set_frequency(theirs, before[1].id, 3)
            accounts = [e.sip_trunk.account_id for e in await watcher.has(3)]
            assert accounts == ["ours", "theirs", "theirs"]
            assert watcher.events[0].sip_trunk == before[0]


async def test_token_that_is_none_and_a_filter_that_can_not_be_are_refused(stub: Any) -> None:
    error = await refused_watch(stub, resume_token="nope", filter='name="x"')
    assert error.violations == {"resume_token": "BAD_RESUME_TOKEN", "filter": "UNKNOWN_FIELD"}
    async with watching(stub) as watcher:
        token = watcher.token
    error = await refused_watch(stub, resume_token=token, initial_state=True)
    assert error.violations == {"initial_state": "NOT_WITH_TOKEN"}
    error = await refused_watch(stub, filter="is_active=perhaps")
    assert error.violations == {"filter": "BAD_VALUE"}


async def test_token_of_another_database_means_to_list_again(stub: Any, postgres: str) -> None:
    await created(stub)
    async with watching(stub) as watcher:
        foreign = bytearray(watcher.token.encode())
    foreign[0] = ord("A") if foreign[0] != ord("A") else ord("B")
    error = await refused_watch(stub, resume_token=foreign.decode())
    assert (error.code, error.reason) == ("OUT_OF_RANGE", "RESUME_TOKEN_FOREIGN")
    epoch, place = events.parse_token(watcher.token)
    for other in (Place(place.position + 1, 0), Place(place.position, place.check ^ 1)):
        error = await refused_watch(stub, resume_token=events.token(epoch, other))
        assert (error.code, error.reason) == ("OUT_OF_RANGE", "RESUME_TOKEN_FOREIGN")


async def test_watchers_end_with_their_token_when_the_server_drains(database: str) -> None:
    server = running(database)
    service = await server.__aenter__()
    async with connected(service.grpc_address) as stub, watching(stub) as watcher:
        await created(stub)
        last = (await watcher.has(1))[0]
        await server.__aexit__(None, None, None)
        error = await watcher.ended()
        assert (error.code, error.reason) == ("UNAVAILABLE", "DRAINING")
        assert error.metadata["resumeToken"] == last.resume_token


async def test_revoked_token_ends_an_open_stream(database: str, service: str) -> None:
    mine = await minted(database, "ours")
    async with connected(service, mine.text) as stub, watching(stub) as watcher:
        connection = await asyncpg.connect(database)
        await connection.execute(
            "UPDATE tokens SET revoked_at = now() WHERE id = $1", mine.token_id
        )
        await connection.close()
        error = await watcher.ended()
        assert (error.code, error.reason) == ("UNAUTHENTICATED", "TOKEN_UNKNOWN")


async def test_there_are_no_more_watchers_than_there_may_be(
    stub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "WATCHERS_OF_ACCOUNT_MAX", 2)
    async with watching(stub), watching(stub):
        error = await refused_watch(stub)
        assert (error.code, error.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_WATCHERS")
        assert error.retry_seconds is not None
    async with watching(stub) as watcher:
        assert watcher.token


async def test_heartbeats_carry_a_token_that_moves_on(
    ours: Any, theirs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "HEARTBEAT_SECONDS", 0.2)
    monkeypatch.setattr(watch, "RECHECK_SECONDS", 0.1)
    async with watching(ours) as watcher:
        first = watcher.token
        await created(theirs)
        await watcher.until(lambda w: w.token != first)
        assert watcher.events == []
        mine = await created(ours)
        await watcher.until(lambda w: bool(w.events))
    async with watching(ours, resume_token=watcher.responses[1].resume_token) as again:
        assert [e.sip_trunk.id for e in await again.has(1)] == [mine.id]


async def test_server_writes_and_another_tells(database: str) -> None:
    async with (
        running(database) as one,
        running(database) as other,
        connected(one.grpc_address) as writer,
        connected(other.grpc_address) as stub,
        watching(stub) as watcher,
    ):
        trunks = [await created(writer) for _ in range(5)]
        assert [e.sip_trunk.id for e in await watcher.has(5)] == [t.id for t in trunks]


async def test_change_committed_late_is_told_after_those_committed_before(
    database: str, stub: Any
) -> None:
    """A number given at insert would have been passed by then."""
    late, early = await created(stub), await created(stub)
    connection = await asyncpg.connect(database)
    async with watching(stub) as watcher:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(
            "INSERT INTO feed_pending (account_id, trunk_id, revision)"
            " SELECT account_id, id, 2 FROM trunks WHERE id = $1",
            late.id,
        )
        await connection.execute(
            "INSERT INTO trunk_revisions (account_id, trunk_id, revision, changed_at, trunk)"
            " SELECT account_id, trunk_id, 2, now(), trunk FROM trunk_revisions"
            " WHERE trunk_id = $1",
            late.id,
        )
        await set_frequency(stub, early.id, 1)
        await watcher.has(1)
        await transaction.commit()
        assert watcher.revisions == [(early.id, 2)]
        await watcher.until(lambda w: len(w.events) == 2)
        assert watcher.revisions[1] == (late.id, 2)
    await connection.close()


async def test_history_that_is_forgotten_can_not_be_gone_on_from(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(database) as service, connected(service.grpc_address) as stub:
        trunk = await created(stub)
        async with watching(stub) as watcher:
            token = watcher.token
            await set_frequency(stub, trunk.id, 1)
            await set_frequency(stub, trunk.id, 2)
            last = (await watcher.has(2))[-1].resume_token
    connection = await asyncpg.connect(database)
    await connection.execute("UPDATE feed SET numbered_at = now() - interval '91 days'")
    await connection.close()
    monkeypatch.setattr("trunkline.housekeeping.IDLE_SECONDS", 0.05)
    async with running(database) as service, connected(service.grpc_address) as stub:
        async with asyncio.timeout(SECONDS_MAX):
            while len(await revisions(stub, trunk.id)) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        error = await refused_watch(stub, resume_token=token)
        assert (error.code, error.reason) == ("OUT_OF_RANGE", "RESUME_TOKEN_EXPIRED")
        async with watching(stub, resume_token=last) as again:
            await set_frequency(stub, trunk.id, 3)
            assert [e.revision for e in await again.has(1)] == [4]
        assert (await refused(revision(stub, trunk.id, 1))).reason == "REVISION_NOT_FOUND"


async def revisions(stub: Any, trunk_id: str) -> list[int]:
    answer = await stub.ListSipTrunkRevisions(pb.ListSipTrunkRevisionsRequest(trunk_id=trunk_id))
    return [r.revision for r in answer.sip_trunk_revisions]


async def revision(stub: Any, trunk_id: str, number: int) -> Any:
    request = pb.GetSipTrunkRevisionRequest(trunk_id=trunk_id, revision=number)
    return await stub.GetSipTrunkRevision(request)
