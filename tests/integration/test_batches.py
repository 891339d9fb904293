"""Batches of updates and of numbers: all or nothing, in an order that can't deadlock."""

import asyncio
import random
from typing import Any

import asyncpg
import grpc
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.conftest import created, read
from tests.integration.watching import watching
from tests.support import PhoneNumber, SipTrunk, ip_based, password, refused, update, userpass

ROUNDS = 25


async def batch(stub: Any, *requests: Any, **fields: Any) -> list[SipTrunk]:
    request = pb.BatchUpdateSipTrunksRequest(requests=requests, **fields)
    return list((await stub.BatchUpdateSipTrunks(request)).sip_trunks)


async def numbers_of(stub: Any, trunk_id: str) -> list[PhoneNumber]:
    page = await stub.ListPhoneNumbers(
        pb.ListPhoneNumbersRequest(trunk_id=trunk_id, page_size=1000)
    )
    return list(page.phone_numbers)


async def add(stub: Any, trunk_id: str, *numbers: str) -> list[PhoneNumber]:
    request = pb.BatchCreatePhoneNumbersRequest(
        trunk_id=trunk_id, phone_numbers=[PhoneNumber(phone_number=n) for n in numbers]
    )
    return list((await stub.BatchCreatePhoneNumbers(request)).phone_numbers)


async def remove(stub: Any, trunk_id: str, *ids: str) -> Any:
    request = pb.BatchDeletePhoneNumbersRequest(trunk_id=trunk_id, ids=ids)
    return await stub.BatchDeletePhoneNumbers(request)


async def move(stub: Any, trunk_id: str, target_id: str, *ids: str) -> list[PhoneNumber]:
    request = pb.MovePhoneNumbersRequest(trunk_id=trunk_id, target_trunk_id=target_id, ids=ids)
    return list((await stub.MovePhoneNumbers(request)).phone_numbers)


async def test_each_update_of_a_batch_has_its_own_mask_and_etag(stub: Any) -> None:
    trunks = [await created(stub) for _ in range(3)]
    answer = await batch(
        stub,
        update(trunks[2].id, "description", description="c", qualify_frequency=1),
        update(trunks[0].id, is_active=False, etag=trunks[0].etag),
        update(trunks[1].id, "qualify_frequency", qualify_frequency=60),
    )
    assert [t.id for t in answer] == [trunks[2].id, trunks[0].id, trunks[1].id]
    assert answer[0].description == "c"
    assert answer[0].qualify_frequency == 60
    assert not answer[1].is_active
    assert answer[2] == trunks[1]
    assert answer == [await read(stub, t.id) for t in answer]


async def test_batch_with_one_fault_does_nothing_and_names_all_of_them(stub: Any) -> None:
    trunks = [await created(stub) for _ in range(3)]
    error = await refused(
        batch(
            stub,
            update(trunks[0].id, "description", description="new"),
            update(trunks[1].id, "media_encryption", "codec", media_encryption=SipTrunk.SDES),
            update(trunks[2].id, "provider", "name", provider="other", name=" x"),
        )
    )
    assert error.violations == {
        "requests[1].update_mask": "UNKNOWN_PATH",
        "requests[1].sip_trunk.media_encryption": "SDES_NEEDS_TLS",
        "requests[2].sip_trunk.name": "BLANK_AT_END",
        "requests[2].sip_trunk.provider": "IMMUTABLE",
    }
    assert [await read(stub, t.id) for t in trunks] == trunks


async def test_batch_with_a_stale_etag_or_a_trunk_that_is_not_there_does_nothing(
    stub: Any,
) -> None:
    trunks = [await created(stub) for _ in range(2)]
    good = update(trunks[0].id, "description", description="new")
    stale = update(trunks[1].id, "description", description="new", etag='"9-9"')
    error = await refused(batch(stub, good, stale))
    assert (error.code, error.reason) == ("ABORTED", "ETAG_MISMATCH")
    assert error.metadata == {"etag": trunks[1].etag, "field": "requests[1].sip_trunk.etag"}
    error = await refused(batch(stub, good, update("absent", "description", description="new")))
    assert (error.code, error.reason) == ("NOT_FOUND", "TRUNK_NOT_FOUND")
    assert error.metadata["field"] == "requests[1].sip_trunk.id"
    error = await refused(batch(stub, update("absent", "description", description="new")))
    assert error.code == "NOT_FOUND"
    assert [await read(stub, t.id) for t in trunks] == trunks


async def test_name_that_is_taken_is_found_in_the_batch(stub: Any) -> None:
    trunks = [await created(stub) for _ in range(3)]
    error = await refused(
        batch(
            stub,
            update(trunks[0].id, "name", name="Fine"),
            update(trunks[1].id, "name", name=trunks[2].name),
        )
    )
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "NAME_TAKEN")
    assert error.metadata["field"] == "requests[1].sip_trunk.name"
    twice = [update(t.id, "name", name="Twice") for t in trunks[:2]]
    error = await refused(batch(stub, *twice))
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "NAME_TAKEN")
    assert [await read(stub, t.id) for t in trunks] == trunks


async def test_form_of_a_batch_is_refused_by_name(stub: Any) -> None:
    trunk = await created(stub)
    assert (await refused(batch(stub))).violations == {"requests": "REQUIRED"}
    many = [update(f"t{i}", is_active=True) for i in range(101)]
    assert (await refused(batch(stub, *many))).violations == {"requests": "TOO_MANY"}
    own = update(trunk.id, is_active=True)
    own.request_id, own.validate_only = "x", True
    error = await refused(batch(stub, own, update(trunk.id, is_active=True), update("")))
    assert error.violations == {
        "requests[0].request_id": "NOT_IN_BATCH",
        "requests[0].validate_only": "NOT_IN_BATCH",
        "requests[1].sip_trunk.id": "DUPLICATE",
        "requests[2].sip_trunk.id": "REQUIRED",
    }


async def test_hundred_trunks_change_at_once_and_each_has_a_revision(stub: Any) -> None:
    trunks = [await created(stub, ip_based()) for _ in range(100)]
    async with watching(stub) as watcher:
        requests = [update(t.id, "description", description=t.id) for t in trunks]
        answer = await batch(stub, *requests, request_id="hundred")
        assert [t.description for t in answer] == [t.id for t in trunks]
        assert await batch(stub, *requests, request_id="hundred") == answer
        events = await watcher.has(100)
        assert {e.revision for e in events} == {2}


@pytest.mark.parametrize("renames", [False, True])
async def test_batches_that_cross_never_deadlock(stub: Any, renames: bool) -> None:  # noqa: FBT001
    trunks = [await created(stub) for _ in range(12)]
    names = [t.name for t in trunks]

    async def caller(seed: int) -> None:
        rng = random.Random(seed)
        for turn in range(ROUNDS):
            chosen = rng.sample(trunks, rng.randint(2, 12))
            requests = []
            for trunk in chosen:
                fields: dict[str, Any] = {"qualify_frequency": rng.randint(1, 999)}
                if renames:
                    fields["name"] = rng.choice([*names, f"{seed}-{turn}-{trunk.id}"])
                requests.append(update(trunk.id, *fields, **fields))
            try:
                await batch(stub, *requests)
            except grpc.aio.AioRpcError as error:
                # A name may be taken; nothing else may go wrong, CONTENTION above all.
                if not renames or error.code() != grpc.StatusCode.ALREADY_EXISTS:
                    raise

    await asyncio.gather(*(caller(seed) for seed in range(6)))


async def test_secrets_in_a_batch_are_sealed(stub: Any, database: str) -> None:
    trunks = [await created(stub) for _ in range(2)]
    secrets = [password() for _ in trunks]
    answer = await batch(
        stub,
        *(
            update(t.id, "auth_password", auth_password=s)
            for t, s in zip(trunks, secrets, strict=True)
        ),
    )
    assert all(t.auth_password_set for t in answer)


async def test_numbers_are_added_in_order_all_or_none(stub: Any) -> None:
    trunk, other = await created(stub), await created(stub, None, "+15550601")
    sent = [f"+1555061{i:03}" for i in range(1000)]
    made = await add(stub, trunk.id, *sent)
    assert [n.phone_number for n in made] == sent
    assert (await read(stub, trunk.id)).phone_number_count == 1000
    assert await numbers_of(stub, trunk.id) == made
    error = await refused(add(stub, trunk.id, "+15550600", "15550601", "+15550602"))
    assert (error.code, error.reason) == ("ALREADY_EXISTS", "PHONE_NUMBER_TAKEN")
    assert error.metadata["field"] == "phone_numbers[1].phone_number"
    assert (await read(stub, trunk.id)).phone_number_count == 1000
    assert (await read(stub, other.id)).phone_number_count == 1


async def test_form_of_a_batch_of_numbers_is_refused_by_name(stub: Any) -> None:
    trunk = await created(stub)
    error = await refused(add(stub, trunk.id, "nope", "+15550600", "15550600"))
    assert error.violations == {
        "phone_numbers[0].phone_number": "INVALID_FORM",
        "phone_numbers[2]": "DUPLICATE",
    }
    assert (await refused(add(stub, trunk.id))).violations == {"phone_numbers": "REQUIRED"}
    many = [f"+1555{i:06}" for i in range(1001)]
    assert (await refused(add(stub, trunk.id, *many))).violations == {"phone_numbers": "TOO_MANY"}
    assert (await refused(add(stub, "absent", "+15550600"))).reason == "TRUNK_NOT_FOUND"
    error = await refused(remove(stub, trunk.id, "a", "a", ""))
    assert error.violations == {"ids[1]": "DUPLICATE", "ids[2]": "INVALID_FORM"}
    error = await refused(move(stub, trunk.id, trunk.id, "a"))
    assert error.violations == {"target_trunk_id": "SAME_TRUNK"}


async def test_numbers_are_removed_all_or_none(stub: Any) -> None:
    trunk, other = await created(stub), await created(stub)
    made = await add(stub, trunk.id, *(f"+1555062{i}" for i in range(5)))
    (alien,) = await add(stub, other.id, "+15550630")
    error = await refused(remove(stub, trunk.id, made[0].id, alien.id, "unknown"))
    assert (error.code, error.reason) == ("NOT_FOUND", "PHONE_NUMBER_NOT_FOUND")
    assert error.metadata["field"] == "ids[1]"
    assert await numbers_of(stub, trunk.id) == made
    await remove(stub, trunk.id, *(n.id for n in made[1:]))
    assert await numbers_of(stub, trunk.id) == made[:1]
    assert (await read(stub, trunk.id)).phone_number_count == 1
    assert (await refused(remove(stub, "absent", "x"))).reason == "TRUNK_NOT_FOUND"


async def test_numbers_move_and_both_trunks_say_so(stub: Any) -> None:
    trunk, target = await created(stub), await created(stub, None, "+15550649")
    made = await add(stub, trunk.id, *(f"+1555064{i}" for i in range(4)))
    async with watching(stub) as watcher:
        moved = await move(stub, trunk.id, target.id, *(n.id for n in made[:3]))
        assert [n.id for n in moved] == [n.id for n in made[:3]]
        assert {n.byot_trunk_id for n in moved} == {target.id}
        left, joined = sorted(await watcher.has(2), key=lambda e: len(e.phone_numbers.added))
        assert [n.id for n in left.phone_numbers.removed] == [n.id for n in made[:3]]
        assert list(joined.phone_numbers.added) == moved
        assert left.sip_trunk == await read(stub, trunk.id)
        assert joined.sip_trunk == await read(stub, target.id)
    assert (left.sip_trunk.phone_number_count, joined.sip_trunk.phone_number_count) == (1, 4)
    again = await move(stub, trunk.id, target.id, *(n.id for n in made))
    assert {n.byot_trunk_id for n in again} == {target.id}
    assert (await read(stub, trunk.id)).phone_number_count == 0


async def test_move_of_what_is_not_there_does_nothing(stub: Any) -> None:
    trunk, target, third = [await created(stub) for _ in range(3)]
    made = await add(stub, trunk.id, "+15550650", "+15550651")
    (alien,) = await add(stub, third.id, "+15550652")
    error = await refused(move(stub, trunk.id, target.id, made[0].id, alien.id))
    assert (error.code, error.reason) == ("NOT_FOUND", "PHONE_NUMBER_NOT_FOUND")
    assert error.metadata["field"] == "ids[1]"
    for trunk_id, target_id, field in (
        ("absent", target.id, "trunk_id"),
        (trunk.id, "absent", "target_trunk_id"),
    ):
        error = await refused(move(stub, trunk_id, target_id, made[0].id))
        assert (error.reason, error.metadata["field"]) == ("TRUNK_NOT_FOUND", field)
    assert await numbers_of(stub, trunk.id) == made


async def test_number_that_moves_to_and_fro_is_at_no_instant_on_no_trunk_or_on_two(
    stub: Any, database: str
) -> None:
    trunks = [await created(stub) for _ in range(2)]
    made = await add(stub, trunks[0].id, *(f"+1555066{i}" for i in range(10)))
    ids, done = [n.id for n in made], asyncio.Event()

    async def look() -> int:
        connection, looks = await asyncpg.connect(database), 0
        while not done.is_set():
            row = await connection.fetchrow(
                "SELECT count(*) AS rows, count(DISTINCT trunk_id) AS trunks,"
                " (SELECT sum(phone_number_count) FROM trunks) AS counted FROM phone_numbers"
            )
            assert row is not None
            assert tuple(row) == (10, 1, 10)
            looks += 1
        await connection.close()
        return looks

    async def mover(first: int) -> None:
        for turn in range(ROUNDS):
            a, b = trunks[(first + turn) % 2], trunks[(first + turn + 1) % 2]
            await move(stub, a.id, b.id, *ids)

    looking = asyncio.create_task(look())
    await asyncio.gather(mover(0), mover(1), mover(0))
    done.set()
    assert await looking > ROUNDS


async def test_trunk_takes_no_more_numbers_than_one_may_have(stub: Any, database: str) -> None:
    trunk, target = await created(stub), await created(stub)
    made = await add(stub, trunk.id, "+15550670", "+15550671")
    connection = await asyncpg.connect(database)
    await connection.execute(
        "UPDATE trunks SET phone_number_count = 99999 WHERE id = $1", target.id
    )
    await connection.close()
    error = await refused(move(stub, trunk.id, target.id, *(n.id for n in made)))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "TOO_MANY_PHONE_NUMBERS")
    error = await refused(add(stub, target.id, "+15550672", "+15550673"))
    assert error.reason == "TOO_MANY_PHONE_NUMBERS"
    assert await numbers_of(stub, trunk.id) == made


async def test_batches_are_the_accounts_own(ours: Any, theirs: Any) -> None:
    mine, alien = await created(ours, userpass()), await created(theirs, userpass())
    (number,) = await add(ours, mine.id, "+15550680")
    assert (await refused(batch(theirs, update(mine.id, is_active=False)))).code == "NOT_FOUND"
    assert (await refused(move(theirs, mine.id, alien.id, number.id))).code == "NOT_FOUND"
    assert (await refused(move(theirs, alien.id, mine.id, number.id))).code == "NOT_FOUND"
    assert (await refused(remove(theirs, mine.id, number.id))).code == "NOT_FOUND"
    assert (await refused(add(theirs, mine.id, "+15550681"))).code == "NOT_FOUND"
