import asyncio
import random
from collections import Counter
from collections.abc import Awaitable
from typing import Any

import asyncpg
import grpc

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.integration.conftest import created, read
from tests.support import (
    Gateway,
    IpIdentifier,
    PhoneNumber,
    Refusal,
    SipTrunk,
    connected,
    password,
    refusal,
    update,
    userpass,
)

OK = "OK"


async def outcome(call: Awaitable[Any]) -> tuple[str, Any]:
    """OK and the reply, or the code and what else the error says."""
    try:
        return OK, await call
    except grpc.aio.AioRpcError as error:
        found = refusal(error)
        return found.code, found


async def together(*calls: Awaitable[Any]) -> list[Any]:
    """What concurrent calls return; the first that fails ends them all."""

    async def answer(call: Awaitable[Any]) -> Any:
        return await call

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(call)) for call in calls]
    return [task.result() for task in tasks]


async def fetch(database: str, query: str, *arguments: Any) -> Any:
    """The first column of a query's first row."""
    connection = await asyncpg.connect(database)
    try:
        return await connection.fetchval(query, *arguments)
    finally:
        await connection.close()


async def revision(database: str, trunk_id: str) -> int:
    found = await fetch(database, "SELECT revision FROM trunks WHERE id = $1", trunk_id)
    assert isinstance(found, int)
    return found


async def test_writers_of_two_fields_that_depend_on_each_other_are_refused_by_name(
    stub: Any,
) -> None:
    trunk = await created(stub, userpass(transport=SipTrunk.TLS))
    answers: list[tuple[str, Any]] = []

    async def flip(field: str, values: list[Any], times: int) -> None:
        for turn in range(times):
            sent = {field: values[turn % 2]}
            answers.append(await outcome(stub.UpdateSipTrunk(update(trunk.id, field, **sent))))
            if answers[-1][0] == OK:
                found = answers[-1][1]
                assert found.media_encryption == SipTrunk.NO or found.transport == SipTrunk.TLS

    transports, encryptions = [SipTrunk.UDP, SipTrunk.TLS], [SipTrunk.SDES, SipTrunk.NO]
    await together(
        *(flip("transport", transports, 400) for _ in range(2)),
        *(flip("media_encryption", encryptions, 300) for _ in range(8)),
    )
    codes = Counter(code for code, _ in answers)
    assert codes.keys() == {OK, "INVALID_ARGUMENT"}, codes
    for _, error in answers:
        if isinstance(error, Refusal):
            assert {*error.fields} & {"transport", "media_encryption"}, error
            assert {*error.violations.values()} == {"SDES_NEEDS_TLS"}, error


def values_of(turn: int, secret: str) -> dict[str, Any]:
    """A value for each updatable field, other than that of the turn before.

    Transport and media encryption take turns, so that any order of the two is a valid one.
    """
    odd = turn % 2 == 1
    transport, media_encryption = [
        (SipTrunk.TLS, SipTrunk.NO),
        (SipTrunk.TLS, SipTrunk.SDES),
        (SipTrunk.TLS, SipTrunk.NO),
        (SipTrunk.TCP, SipTrunk.NO),
    ][turn % 4]
    return {
        "name": f"Turn {turn}",
        "description": f"turn {turn}",
        "auth_username": f"user{turn}",
        "auth_password": secret,
        "gateways": [Gateway(gateway_address=f"h{turn}.example.com", priority=turn)],
        "ip_identifiers": [IpIdentifier(ip_address=f"198.51.100.{turn}")],
        "allow": "ulaw" if odd else "alaw,ulaw",
        "disallow": "g722" if odd else "all",
        "transport": transport,
        "media_encryption": media_encryption,
        "media_encryption_optimistic": odd,
        "direct_media": odd,
        "rtp_symmetric": not odd,
        "force_rport": not odd,
        "ice_support": odd,
        "qualify_frequency": 100 + turn,
        "inbound_enabled": odd,
        "outbound_leading_plus_enabled": not odd,
        "is_active": not odd,
    }


async def test_twenty_writers_of_a_field_each_over_two_servers_lose_no_change(
    database: str,
) -> None:
    secret = password()
    async with (
        running(database) as one,
        running(database) as two,
        connected(one.grpc_address) as first,
        connected(two.grpc_address) as second,
    ):
        stubs = (first, second)
        before = await created(first)
        for turn in range(10):
            values = values_of(turn, secret)
            number = pb.CreatePhoneNumberRequest(
                trunk_id=before.id, phone_number=PhoneNumber(phone_number=f"+1555010{turn}")
            )
            await together(
                stubs[turn % 2].CreatePhoneNumber(number),
                *(
                    stubs[(turn + place) % 2].UpdateSipTrunk(
                        update(before.id, field, **{field: value})
                    )
                    for place, (field, value) in enumerate(values.items())
                ),
            )
            after = await read(first, before.id)
            assert await read(second, before.id) == after
            assert after.phone_number_count == turn + 1
            stamps = [t.auth_password_changed_at.ToDatetime() for t in (before, after)]
            assert stamps[0] < stamps[1]
            for gateway in after.gateways:
                gateway.ClearField("id")
                gateway.ClearField("created_at")
            del values["auth_password"]
            assert {f: getattr(after, f) for f in values} == values
            before = after


async def test_of_64_updates_with_the_same_etag_exactly_one_wins(stub: Any) -> None:
    trunk = await created(stub)
    answers = await together(
        *(
            outcome(
                stub.UpdateSipTrunk(
                    update(
                        trunk.id, "qualify_frequency", qualify_frequency=1000 + i, etag=trunk.etag
                    )
                )
            )
            for i in range(64)
        )
    )
    assert Counter(code for code, _ in answers) == {OK: 1, "ABORTED": 63}
    winner = next(found for code, found in answers if code == OK)
    assert await read(stub, trunk.id) == winner
    for code, found in answers:
        if code != OK:
            assert (found.reason, found.metadata["etag"]) == ("ETAG_MISMATCH", winner.etag)


async def test_parallel_replacements_of_a_list_end_in_one_of_the_lists(stub: Any) -> None:
    trunk = await created(stub)

    def addresses(found: Any) -> list[tuple[str, int]]:
        return [(gateway.gateway_address, gateway.port) for gateway in found.gateways]

    # Each has one address of its own and some that others have too.
    lists = [
        [(f"own{turn}.example.com", 5060)]
        + [(f"shared{entry}.example.com", 5061) for entry in range(turn % 7)]
        for turn in range(20)
    ]
    replies = await together(
        *(
            stub.UpdateSipTrunk(
                update(
                    trunk.id,
                    "gateways",
                    gateways=[Gateway(gateway_address=a, port=p) for a, p in entries],
                )
            )
            for entries in lists
        )
    )
    assert [addresses(reply) for reply in replies] == lists
    last = await read(stub, trunk.id)
    assert last in replies
    assert addresses(last) in lists


async def test_of_20_creates_of_one_phone_number_exactly_one_wins(stub: Any, database: str) -> None:
    trunks = [await created(stub) for _ in range(20)]
    answers = await together(
        *(
            outcome(
                stub.CreatePhoneNumber(
                    pb.CreatePhoneNumberRequest(
                        trunk_id=trunk.id,
                        phone_number=PhoneNumber(phone_number=("+" * (i % 2)) + "15550100"),
                    )
                )
            )
            for i, trunk in enumerate(trunks)
        )
    )
    assert Counter(code for code, _ in answers) == {OK: 1, "ALREADY_EXISTS": 19}
    assert {found.reason for code, found in answers if code != OK} == {"PHONE_NUMBER_TAKEN"}
    winner = next(found for code, found in answers if code == OK)
    now = [await read(stub, trunk.id) for trunk in trunks]
    counts = {trunk.id: trunk.phone_number_count for trunk in now}
    assert counts == {trunk.id: int(trunk.id == winner.byot_trunk_id) for trunk in trunks}
    losers = [trunk for trunk in trunks if trunk.id != winner.byot_trunk_id]
    assert all(trunk in now for trunk in losers)
    assert await fetch(database, "SELECT count(*) FROM phone_numbers") == 1


class Numbers:
    """Writers that add and remove phone numbers of one trunk, and what they were told."""

    def __init__(self, stub: Any, trunk_id: str) -> None:
        self.codes: Counter[str] = Counter()
        self.present: set[str] = set()
        self.busy = asyncio.Event()
        self._stub = stub
        self._trunk_id = trunk_id

    async def churn(self, writer: int, times: int) -> None:
        """Add and, at random, remove numbers until the trunk is gone."""
        rng = random.Random(writer)
        mine: list[str] = []
        for turn in range(times):
            if mine and rng.random() < 0.4:
                request = pb.DeletePhoneNumberRequest(trunk_id=self._trunk_id, id=mine.pop())
                code, _ = await outcome(self._stub.DeletePhoneNumber(request))
                if code == OK:
                    self.present.remove(request.id)
            else:
                number = PhoneNumber(phone_number=f"+1{writer:03}{turn:05}")
                add = pb.CreatePhoneNumberRequest(trunk_id=self._trunk_id, phone_number=number)
                code, found = await outcome(self._stub.CreatePhoneNumber(add))
                if code == OK:
                    mine.append(found.id)
                    self.present.add(found.id)
            self.codes[code] += 1
            if self.codes[OK] > 60:
                self.busy.set()
            if code == "NOT_FOUND":
                return

    async def update(self, times: int) -> None:
        """Change the trunk itself until it is gone."""
        for turn in range(times):
            request = update(self._trunk_id, "qualify_frequency", qualify_frequency=turn)
            code, _ = await outcome(self._stub.UpdateSipTrunk(request))
            self.codes[code] += 1
            if code == "NOT_FOUND":
                return


async def test_the_count_of_phone_numbers_stays_true_under_concurrent_changes(
    stub: Any, database: str
) -> None:
    trunk = await created(stub)
    numbers = Numbers(stub, trunk.id)
    await together(
        *(numbers.churn(writer, 40) for writer in range(8)), *(numbers.update(40) for _ in range(3))
    )
    assert numbers.codes.keys() == {OK}
    rows = await fetch(database, "SELECT array_agg(id) FROM phone_numbers")
    assert {*rows} == numbers.present
    assert (await read(stub, trunk.id)).phone_number_count == len(rows)


async def test_a_forced_delete_under_concurrent_changes_leaves_nothing_behind(
    stub: Any, database: str
) -> None:
    trunk = await created(stub)
    numbers = Numbers(stub, trunk.id)

    async def delete() -> Any:
        await numbers.busy.wait()
        return await stub.DeleteSipTrunk(pb.DeleteSipTrunkRequest(id=trunk.id, force=True))

    *_, deleted = await together(
        *(numbers.churn(writer, 1000) for writer in range(8)),
        *(numbers.update(1000) for _ in range(3)),
        delete(),
    )
    assert numbers.codes.keys() == {OK, "NOT_FOUND"}
    assert numbers.codes["NOT_FOUND"] == 11
    assert deleted.phone_numbers_removed == len(numbers.present)
    assert await fetch(database, "SELECT count(*) FROM phone_numbers") == 0
    assert await fetch(database, "SELECT count(*) FROM trunks") == 0


async def test_64_writers_of_one_row_lose_no_update(stub: Any, database: str) -> None:
    trunk = await created(stub)
    before = await revision(database, trunk.id)
    replies: list[Any] = []

    async def write(writer: int) -> None:
        for turn in range(60):
            value = 1000 + writer * 60 + turn  # no two alike, so that each is a change
            request = update(trunk.id, "qualify_frequency", qualify_frequency=value)
            reply = await stub.UpdateSipTrunk(request)
            assert reply.qualify_frequency == value
            replies.append(reply)

    await together(*(write(writer) for writer in range(64)))
    assert await revision(database, trunk.id) - before == len(replies) == 64 * 60
    assert len({reply.etag for reply in replies}) == len(replies)
    last = max(replies, key=lambda reply: reply.updated_at.ToDatetime())
    assert await read(stub, trunk.id) == last
