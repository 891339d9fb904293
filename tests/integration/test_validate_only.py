"""validate_only: permitted, checked and answered as without, and nothing is written."""

from typing import Any

import asyncpg
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.conftest import created, minted, read
from tests.integration.test_request_id import MUTATIONS, World, everything
from tests.integration.test_request_id import world as world
from tests.integration.watching import watching
from tests.support import PhoneNumber, SipTrunk, connected, ip_based, password, refused, update
from trunkline.trunks import common

# What only a write makes.
MADE = {"id", "etag", "created_at", "updated_at", "auth_password_changed_at"}


def without(message: Any, names: set[str]) -> Any:
    """A copy of an answer without what only a write makes, at any depth."""
    copied = type(message)()
    copied.CopyFrom(message)
    for field, value in copied.ListFields():
        if field.name in names:
            copied.ClearField(field.name)
        elif field.message_type is not None and field.file.package == "siptrunk.v1":
            for item in value if field.is_repeated else [value]:
                item.CopyFrom(without(item, names))
    return copied


async def changed_fields(call: Any) -> str:
    await call
    return str(dict(await call.trailing_metadata()).get(common.CHANGED_FIELDS_KEY))


@pytest.mark.parametrize("method", MUTATIONS)
async def test_trial_is_answered_as_the_call_is_and_writes_nothing(
    world: World, database: str, method: str
) -> None:
    kept = await everything(database)
    trial = await world.call(method, validate_only=True)
    assert await everything(database) == kept
    done = await world.call(method)
    assert without(trial, MADE) == without(done, MADE)
    assert await everything(database) != kept


@pytest.mark.parametrize("method", MUTATIONS)
async def test_trial_keeps_no_request_id(world: World, database: str, method: str) -> None:
    await world.call(method, "trial", validate_only=True)
    kept = await everything(database)
    assert kept["requests"] == []
    await world.call(method, "trial")
    assert len((await everything(database))["requests"]) == 1


@pytest.mark.parametrize("method", MUTATIONS)
async def test_trial_is_no_event_and_the_feed_has_no_gap_after_it(
    world: World, method: str
) -> None:
    async with watching(world.stub) as watcher:
        await world.call(method, validate_only=True)
        await world.stub.UpdateSipTrunk(update(world.two.id, "description", description="after"))
        event = (await watcher.has(1))[0]
        assert event.sip_trunk.description == "after"


@pytest.mark.parametrize("method", MUTATIONS)
async def test_trial_needs_the_scope_of_the_call(database: str, service: str, method: str) -> None:
    token = (await minted(database, "ours", ("trunks:read",))).text
    async with connected(service, token) as stub:
        request = getattr(pb, f"{method}Request")(validate_only=True)
        error = await refused(getattr(stub, method)(request))
        assert (error.code, error.reason) == ("PERMISSION_DENIED", "SCOPE_MISSING")


async def test_trial_of_an_update_names_what_would_change(stub: Any) -> None:
    trunk = await created(stub)
    request = update(
        trunk.id,
        "qualify_frequency",
        "auth_password",
        "is_active",
        qualify_frequency=5,
        auth_password=password(),
        is_active=True,
    )
    request.validate_only = True
    assert await changed_fields(stub.UpdateSipTrunk(request)) == "auth_password,qualify_frequency"
    answer = await stub.UpdateSipTrunk(request)
    assert answer.qualify_frequency == 5
    assert answer.id == trunk.id
    assert not answer.etag
    assert await read(stub, trunk.id) == trunk
    nothing = update(trunk.id, "is_active", is_active=True)
    nothing.validate_only = True
    assert await stub.UpdateSipTrunk(nothing) == trunk
    assert await changed_fields(stub.UpdateSipTrunk(nothing)) == ""


async def test_trial_meets_every_check_that_the_call_meets(stub: Any) -> None:
    trunk, other = await created(stub, None, "+15550400"), await created(stub)
    stale = update(trunk.id, "is_active", is_active=False, etag='"1-0"')
    taken = update(trunk.id, "name", name=other.name)
    ruled = update(trunk.id, "media_encryption", media_encryption=SipTrunk.SDES)
    number = PhoneNumber(phone_number="15550400")
    for method, request in (
        ("UpdateSipTrunk", stale),
        ("UpdateSipTrunk", taken),
        ("UpdateSipTrunk", ruled),
        ("UpdateSipTrunk", update("absent", "is_active", is_active=False)),
        ("DeleteSipTrunk", pb.DeleteSipTrunkRequest(id=trunk.id)),
        ("CreateSipTrunk", pb.CreateSipTrunkRequest(sip_trunk=ip_based(name=other.name))),
        ("CreatePhoneNumber", pb.CreatePhoneNumberRequest(trunk_id=other.id, phone_number=number)),
    ):
        found = []
        for trial in (True, False):
            request.validate_only = trial
            found.append(await refused(getattr(stub, method)(request)))
        assert found[0] == found[1]


async def test_trial_of_a_create_gives_no_id_and_takes_no_name(stub: Any, database: str) -> None:
    trunk = ip_based(name="Tried")
    request = pb.CreateSipTrunkRequest(sip_trunk=trunk, validate_only=True)
    trial = await stub.CreateSipTrunk(request)
    assert not trial.HasField("id")
    assert not trial.gateways[0].id
    assert trial.codecs == ["ulaw", "alaw"]
    request.validate_only = False
    assert (await stub.CreateSipTrunk(request)).id
    connection = await asyncpg.connect(database)
    assert await connection.fetchval("SELECT count(*) FROM trunks") == 1
    await connection.close()
