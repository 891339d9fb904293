"""Revisions: what changed, by whom, and the way back."""

import random
from typing import Any

import asyncpg
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.integration import random_trunks
from tests.integration.conftest import created, minted, read
from tests.integration.random_trunks import plain
from tests.support import (
    Gateway,
    PhoneNumber,
    SipTrunk,
    connected,
    ip_based,
    password,
    refused,
    update,
    userpass,
)
from trunkline import migrate
from trunkline.store.database import Database

REVISIONS = 60
# What a revert does not bring back: what tells of the change itself, of secrets and of numbers.
KEPT = {"etag", "updated_at", "auth_password_changed_at", "phone_number_count"}


async def history(stub: Any, trunk_id: str, **fields: Any) -> pb.ListSipTrunkRevisionsResponse:
    request = pb.ListSipTrunkRevisionsRequest(trunk_id=trunk_id, **fields)
    answer = await stub.ListSipTrunkRevisions(request)
    assert isinstance(answer, pb.ListSipTrunkRevisionsResponse)
    return answer


async def revision(stub: Any, trunk_id: str, number: int) -> Any:
    request = pb.GetSipTrunkRevisionRequest(trunk_id=trunk_id, revision=number)
    return await stub.GetSipTrunkRevision(request)


def bare(trunk: SipTrunk) -> SipTrunk:
    """A trunk without what a revert leaves as it is."""
    copied = SipTrunk()
    copied.CopyFrom(trunk)
    for name in KEPT:
        copied.ClearField(name)  # type: ignore[arg-type]
    return copied


async def test_revision_says_who_changed_what_when_and_how(database: str, service: str) -> None:
    token = await minted(database, "ours")
    async with connected(service, token.text) as stub:
        trunk = await created(stub)
        request = update(
            trunk.id,
            "description",
            "qualify_frequency",
            "is_active",
            description="new",
            qualify_frequency=5,
            is_active=True,
        )
        request.request_id = "change-1"
        after = await stub.UpdateSipTrunk(request)
        first, second = reversed((await history(stub, trunk.id)).sip_trunk_revisions)
        assert await revision(stub, trunk.id, 2) == second
        assert (second.trunk_id, second.revision) == (trunk.id, 2)
        assert second.token_id == token.token_id
        assert second.request_id == "change-1"
        assert second.method == "UpdateSipTrunk"
        assert second.changed_at == after.updated_at
        asked = ["description", "is_active", "qualify_frequency"]
        assert sorted(second.update_mask.paths) == asked
        assert list(second.changed_fields) == ["description", "qualify_frequency"]
        assert second.sip_trunk == after
        assert second.before == SipTrunk(qualify_frequency=60)
        assert not second.deleted
        assert first.method == "CreateSipTrunk"
        assert first.sip_trunk == trunk
        assert not first.HasField("before")
        assert not first.HasField("update_mask")
        assert not first.changed_fields


async def test_secret_is_named_as_changed_and_nothing_else(stub: Any, database: str) -> None:
    trunk = await created(stub)
    secret = password()
    await stub.UpdateSipTrunk(update(trunk.id, "auth_password", auth_password=secret))
    found = await revision(stub, trunk.id, 2)
    assert list(found.changed_fields) == ["auth_password"]
    assert found.before == SipTrunk()
    connection = await asyncpg.connect(database)
    kept = await connection.fetchval("SELECT string_agg(r::text, '') FROM trunk_revisions AS r")
    sealed = await connection.fetchval("SELECT auth_password_sealed FROM trunks")
    await connection.close()
    assert secret not in kept
    assert sealed.hex() not in kept


async def test_change_of_numbers_is_a_revision(stub: Any) -> None:
    trunk = await created(stub, None, "+15550500")
    add = pb.CreatePhoneNumberRequest(
        trunk_id=trunk.id, phone_number=PhoneNumber(phone_number="+15550501")
    )
    number = await stub.CreatePhoneNumber(add)
    found = await revision(stub, trunk.id, 2)
    assert list(found.changed_fields) == ["phone_numbers"]
    assert list(found.phone_numbers.added) == [number]
    assert found.sip_trunk == await read(stub, trunk.id)
    first = await revision(stub, trunk.id, 1)
    assert [n.phone_number for n in first.phone_numbers.added] == ["+15550500"]


async def test_deleted_trunk_can_be_read_of(stub: Any) -> None:
    trunk = await created(stub, None, "+15550502")
    await stub.DeleteSipTrunk(pb.DeleteSipTrunkRequest(id=trunk.id, force=True))
    gone, first = (await history(stub, trunk.id)).sip_trunk_revisions
    assert gone.deleted
    assert (gone.revision, gone.method) == (2, "DeleteSipTrunk")
    assert gone.sip_trunk == trunk == first.sip_trunk
    revert = pb.RevertSipTrunkRequest(trunk_id=trunk.id, revision=1)
    assert (await refused(stub.RevertSipTrunk(revert))).reason == "TRUNK_NOT_FOUND"


async def test_pages_go_back_to_the_first_revision(stub: Any) -> None:
    trunk = await created(stub)
    for seconds in range(1, 12):
        request = update(trunk.id, "qualify_frequency", qualify_frequency=seconds)
        await stub.UpdateSipTrunk(request)
    seen, token = list[int](), ""
    while True:
        page = await history(stub, trunk.id, page_size=5, page_token=token)
        assert len(page.sip_trunk_revisions) <= 5
        seen += [r.revision for r in page.sip_trunk_revisions]
        token = page.next_page_token
        if not token:
            break
    assert seen == list(range(12, 0, -1))
    error = await refused(history(stub, trunk.id, page_token="nope"))
    assert error.violations == {"page_token": "BAD_PAGE_TOKEN"}


async def test_long_history_of_long_trunks_ends_its_pages_early(stub: Any) -> None:
    gateways = [Gateway(gateway_address=f"{'x' * 60}.{i}.example.com") for i in range(32)]
    trunk = await created(stub, ip_based(gateways=gateways))
    for number in range(260):
        text = f"{number} " + "€" * 490
        await stub.UpdateSipTrunk(update(trunk.id, "description", description=text))
    page = await history(stub, trunk.id, page_size=500)
    assert page.ByteSize() < 1 << 21
    assert 0 < len(page.sip_trunk_revisions) < 261
    assert page.next_page_token


async def test_history_is_its_accounts_alone(ours: Any, theirs: Any) -> None:
    trunk = await created(ours)
    assert (await refused(history(theirs, trunk.id))).reason == "TRUNK_NOT_FOUND"
    assert (await refused(revision(theirs, trunk.id, 1))).reason == "REVISION_NOT_FOUND"
    revert = pb.RevertSipTrunkRequest(trunk_id=trunk.id, revision=1)
    assert (await refused(theirs.RevertSipTrunk(revert))).code == "NOT_FOUND"


@pytest.mark.parametrize("number", [-1, 0, 99])
async def test_revision_that_there_is_not(stub: Any, number: int) -> None:
    trunk = await created(stub)
    revert = pb.RevertSipTrunkRequest(trunk_id=trunk.id, revision=number)
    for call in (revision(stub, trunk.id, number), stub.RevertSipTrunk(revert)):
        error = await refused(call)
        if number == 99:
            assert (error.code, error.reason) == ("NOT_FOUND", "REVISION_NOT_FOUND")
        else:
            assert error.fields == ["revision"]


async def test_revert_brings_back_every_field_of_any_revision_exactly(stub: Any) -> None:
    rng, secret = random.Random(0), password()
    trunk = await created(stub, SipTrunk(**random_trunks.trunk(rng, secret)))
    states = {1: trunk}
    while len(states) < REVISIONS:
        mask, patch = random_trunks.change(rng, plain(trunk), secret)
        try:
            trunk = await stub.UpdateSipTrunk(update(trunk.id, *mask or (), **patch))
        except Exception:
            continue
        states.setdefault(int(trunk.etag.strip('"').partition("-")[0], 16), trunk)
    for number in rng.sample(sorted(states), 30):
        request = pb.RevertSipTrunkRequest(trunk_id=trunk.id, revision=number)
        reverted = await stub.RevertSipTrunk(request)
        assert bare(reverted) == bare(states[number])
        assert await read(stub, trunk.id) == reverted


async def test_revert_is_a_change_with_an_etag_and_a_revision_of_its_own(stub: Any) -> None:
    trunk = await created(stub, None, "+15550503")
    changed = await stub.UpdateSipTrunk(update(trunk.id, "name", name="Other name"))
    request = pb.RevertSipTrunkRequest(trunk_id=trunk.id, revision=1, etag=trunk.etag)
    error = await refused(stub.RevertSipTrunk(request))
    assert (error.code, error.reason) == ("ABORTED", "ETAG_MISMATCH")
    assert error.metadata["etag"] == changed.etag
    request.etag = changed.etag
    reverted = await stub.RevertSipTrunk(request)
    assert reverted.name == trunk.name
    assert reverted.etag not in (trunk.etag, changed.etag)
    assert reverted.phone_number_count == 1
    found = await revision(stub, trunk.id, 3)
    assert found.method == "RevertSipTrunk"
    assert list(found.changed_fields) == ["name"]
    request.etag = reverted.etag
    assert await stub.RevertSipTrunk(request) == reverted
    assert len((await history(stub, trunk.id)).sip_trunk_revisions) == 3


async def test_revert_meets_the_rules_of_today(stub: Any) -> None:
    trunk = await created(stub, userpass(name="Taken name"))
    await stub.UpdateSipTrunk(update(trunk.id, "name", name="Free name"))
    await created(stub, userpass(name="Taken name"))
    request = pb.RevertSipTrunkRequest(trunk_id=trunk.id, revision=1)
    assert (await refused(stub.RevertSipTrunk(request))).reason == "NAME_TAKEN"


async def test_revert_to_values_that_rules_forbid_by_now_is_refused_by_name(
    stub: Any, database: str
) -> None:
    trunk = await created(stub)
    await stub.UpdateSipTrunk(update(trunk.id, "allow", "transport", allow="alaw", transport="TLS"))
    connection = await asyncpg.connect(database)
    await connection.execute(
        'UPDATE trunk_revisions SET trunk = trunk || \'{"allow": "speex",'
        ' "media_encryption": "SDES", "qualify_frequency": 90000}\' WHERE revision = 1'
    )
    await connection.close()
    error = await refused(
        stub.RevertSipTrunk(pb.RevertSipTrunkRequest(trunk_id=trunk.id, revision=1))
    )
    assert error.code == "INVALID_ARGUMENT"
    assert {"qualify_frequency", "media_encryption"} <= set(error.violations)
    assert (await read(stub, trunk.id)).transport == SipTrunk.TLS


async def test_trunk_from_before_there_was_history_begins_with_how_it_is(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = await Database.open(empty_database, 1, 0)
    known = migrate.known()
    with monkeypatch.context() as patched:
        patched.setattr(migrate, "known", lambda: known[:2])
        await migrate.apply(database)
    await database.row("INSERT INTO accounts (id) VALUES ('default')")
    await database.row(
        "INSERT INTO trunks (account_id, id, name, provider, auth_type, gateways, ip_identifiers,"
        " revision, created_at, updated_at) VALUES ('default', 'old', 'Old', 'plivo', 'IP_BASED',"
        ' \'[{"id": "g", "gateway_address": "sip.example.com", "priority": 1,'
        ' "created_at": "2026-01-01T00:00:00+00:00"}]\', \'[{"ip_address": "192.0.2.1"}]\','
        " 7, now(), now())"
    )
    await database.close()
    async with running(empty_database) as service, connected(service.grpc_address) as stub:
        trunk = await read(stub, "old")
        (only,) = (await history(stub, "old")).sip_trunk_revisions
        assert (only.revision, only.method, only.token_id) == (7, "", "")
        assert only.sip_trunk == trunk
        await stub.UpdateSipTrunk(update("old", "qualify_frequency", qualify_frequency=1))
        assert (await revision(stub, "old", 8)).before == SipTrunk(qualify_frequency=60)
