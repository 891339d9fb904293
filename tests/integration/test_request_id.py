"""request_id: a retry changes nothing and is answered as the first call was."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import asyncpg
import grpc
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.integration.conftest import created, read
from tests.support import (
    KEYS,
    KEYS_NEWER,
    Gateway,
    IpIdentifier,
    PhoneNumber,
    SipTrunk,
    connected,
    ip_based,
    password,
    refused,
    update,
    userpass,
)
from trunkline import housekeeping
from trunkline.trunks import common

MUTATIONS = [
    method.name
    for method in pb.DESCRIPTOR.services_by_name["SipTrunkService"].methods
    if "request_id" in method.input_type.fields_by_name
]
CALLERS = 12


class World:
    """Two trunks with numbers, and a request of each method on them."""

    def __init__(self, stub: Any) -> None:
        self.stub = stub

    async def make(self) -> None:
        self.trunk = await created(self.stub, ip_based(), "+15550300", "+15550301")
        self.other = await created(self.stub, userpass(), "+15550302")
        page = await self.stub.ListPhoneNumbers(pb.ListPhoneNumbersRequest(trunk_id=self.trunk.id))
        self.numbers = list(page.phone_numbers)
        request = update(self.trunk.id, "qualify_frequency", qualify_frequency=1)
        await self.stub.UpdateSipTrunk(request)

    def request(self, method: str, request_id: str = "") -> Any:
        """A request that changes something, the same each time but for what it is told of."""
        own, ids = {"trunk_id": self.trunk.id}, [n.id for n in self.numbers]
        fields: dict[str, Callable[[], dict[str, Any]]] = {
            "CreateSipTrunk": lambda: {
                "sip_trunk": userpass(name="New", auth_password=self.secret),
                "phone_numbers": [PhoneNumber(phone_number="+15550399")],
            },
            "UpdateSipTrunk": lambda: {"sip_trunk": SipTrunk(id=self.trunk.id, description="new")},
            "DeleteSipTrunk": lambda: {"id": self.trunk.id, "force": True},
            "CreatePhoneNumber": lambda: (
                own | {"phone_number": PhoneNumber(phone_number="+15550398")}
            ),
            "UpdatePhoneNumber": lambda: own | {"phone_number": PhoneNumber(id=ids[0], name="new")},
            "DeletePhoneNumber": lambda: own | {"id": ids[0]},
            "BatchUpdateSipTrunks": lambda: {
                "requests": [
                    update(self.trunk.id, "description", description="new"),
                    update(self.other.id, "is_active", is_active=False),
                ]
            },
            "AddGateways": lambda: own | {"gateways": [Gateway(gateway_address="new.example.com")]},
            "RemoveGateways": lambda: {
                "trunk_id": self.two.id,
                "gateway_ids": [self.two.gateways[0].id],
            },
            "AddIpIdentifiers": lambda: (
                own | {"ip_identifiers": [IpIdentifier(ip_address="198.51.100.7")]}
            ),
            "RemoveIpIdentifiers": lambda: {
                "trunk_id": self.two.id,
                "ip_addresses": [self.two.ip_identifiers[0].ip_address],
            },
            "BatchCreatePhoneNumbers": lambda: (
                own
                | {"phone_numbers": [PhoneNumber(phone_number=f"+1555039{i}") for i in range(3)]}
            ),
            "BatchDeletePhoneNumbers": lambda: own | {"ids": ids},
            "MovePhoneNumbers": lambda: own | {"target_trunk_id": self.other.id, "ids": ids},
            "RevertSipTrunk": lambda: own | {"revision": 1},
        }
        return getattr(pb, f"{method}Request")(request_id=request_id, **fields[method]())

    secret = password()
    two: SipTrunk

    async def call(self, method: str, request_id: str = "", **more: Any) -> Any:
        request = self.request(method, request_id)
        for name, value in more.items():
            setattr(request, name, value)
        return await getattr(self.stub, method)(request)


@pytest.fixture
async def world(stub: Any) -> World:
    world = World(stub)
    await world.make()
    gateways = [Gateway(gateway_address=f"{name}.example.com") for name in "ab"]
    addresses = [IpIdentifier(ip_address=f"192.0.2.{i}") for i in (1, 2)]
    world.two = await created(stub, ip_based(gateways=gateways, ip_identifiers=addresses))
    return world


async def everything(database: str) -> dict[str, list[str]]:
    """Every row of every table that a change may touch."""
    connection = await asyncpg.connect(database)
    tables = ("trunks", "phone_numbers", "trunk_revisions", "requests")
    try:
        return {
            table: [
                str(row[0])
                for row in await connection.fetch(
                    f"SELECT to_jsonb(t) FROM {table} AS t ORDER BY 1"
                )
            ]
            for table in tables
        }
    finally:
        await connection.close()


def test_every_method_that_writes_takes_a_request_id_and_validate_only() -> None:
    reads = re.compile(r"Get|List|Watch")
    methods = pb.DESCRIPTOR.services_by_name["SipTrunkService"].methods
    assert [m.name for m in methods if not reads.match(m.name)] == MUTATIONS
    for method in methods:
        if method.name in MUTATIONS:
            assert "validate_only" in method.input_type.fields_by_name


@pytest.mark.parametrize("method", MUTATIONS)
async def test_retry_is_answered_as_the_first_call_was(
    world: World, database: str, method: str
) -> None:
    first = await world.call(method, "once")
    kept = await everything(database)
    assert await world.call(method, "once") == first
    assert await everything(database) == kept


@pytest.mark.parametrize("method", MUTATIONS)
async def test_retry_is_answered_so_also_after_later_changes_and_by_another_server(
    world: World, database: str, method: str
) -> None:
    first = await world.call(method, "once")
    for trunk in (world.trunk, world.other, world.two):
        request = update(trunk.id, "name", "description", name=f"Later {trunk.id}", description="x")
        gone = method == "DeleteSipTrunk" and trunk is world.trunk
        if gone:
            continue
        await world.stub.UpdateSipTrunk(request)
        if trunk is not world.two:
            await world.stub.DeleteSipTrunk(pb.DeleteSipTrunkRequest(id=trunk.id, force=True))
    kept = await everything(database)
    async with running(database) as service, connected(service.grpc_address) as stub:
        world.stub = stub
        assert await world.call(method, "once") == first
    assert await everything(database) == kept


@pytest.mark.parametrize("method", MUTATIONS)
async def test_same_id_with_another_request_is_refused(
    world: World, database: str, method: str
) -> None:
    await world.call(method, "once")
    kept = await everything(database)
    request = world.request(method, "once")
    changed = request.DESCRIPTOR.fields[0]
    if changed.message_type is None:
        another = world.two if method == "MovePhoneNumbers" else world.other
        setattr(request, changed.name, another.id)
    elif changed.is_repeated:
        request.requests[0].sip_trunk.description = "another"
    else:
        request.sip_trunk.description = "another"
    error = await refused(getattr(world.stub, method)(request))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    assert error.fields == ["request_id"]
    assert await everything(database) == kept


async def test_update_that_changes_nothing_is_not_done_by_a_retry_either(
    world: World, database: str
) -> None:
    request = update(world.trunk.id, "qualify_frequency", qualify_frequency=1)
    request.request_id = "no-op"
    first = await world.stub.UpdateSipTrunk(request)
    later = update(world.trunk.id, "qualify_frequency", qualify_frequency=2)
    await world.stub.UpdateSipTrunk(later)
    assert await world.stub.UpdateSipTrunk(request) == first
    assert (await read(world.stub, world.trunk.id)).qualify_frequency == 2


async def test_call_that_was_refused_keeps_no_answer(world: World, database: str) -> None:
    request = update(world.trunk.id, "media_encryption", media_encryption=SipTrunk.SDES)
    request.request_id = "refused"
    assert (await refused(world.stub.UpdateSipTrunk(request))).reason == "SDES_NEEDS_TLS"
    transport = update(world.trunk.id, "transport", transport=SipTrunk.TLS)
    await world.stub.UpdateSipTrunk(transport)
    assert (await world.stub.UpdateSipTrunk(request)).media_encryption == SipTrunk.SDES


async def test_same_id_is_free_for_other_methods_and_accounts(
    database: str, service: str, ours: Any, theirs: Any
) -> None:
    for stub in (ours, theirs):
        request = pb.CreateSipTrunkRequest(sip_trunk=ip_based(name="Same"), request_id="same")
        trunk = await stub.CreateSipTrunk(request)
        change = update(trunk.id, "description", description="x")
        change.request_id = "same"
        assert (await stub.UpdateSipTrunk(change)).description == "x"


@pytest.mark.parametrize("request_id", ["a" * 129, "with blank", "ümlaut", "\n", "a\x7f"])
async def test_id_that_is_not_visible_ascii_is_refused(world: World, request_id: str) -> None:
    for method in MUTATIONS:
        error = await refused(world.call(method, request_id))
        assert error.violations == {"request_id": "INVALID_FORM"}


async def test_many_at_once_are_done_once(world: World, database: str) -> None:
    """Each is answered alike, or told that the request is at work; then a retry is answered."""

    async def persistent() -> Any:
        while True:
            try:
                return await world.call("CreateSipTrunk", "storm")
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.ABORTED:
                    raise
                await asyncio.sleep(0.01)

    answers = await asyncio.gather(*(persistent() for _ in range(CALLERS)))
    assert all(answer == answers[0] for answer in answers)
    connection = await asyncpg.connect(database)
    assert await connection.fetchval("SELECT count(*) FROM trunks WHERE name = 'New'") == 1
    await connection.close()


@pytest.mark.parametrize("method", MUTATIONS)
async def test_call_whose_twin_is_at_work_is_told_to_try_again(
    world: World, database: str, method: str
) -> None:
    connection = await asyncpg.connect(database)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended($1 || ' default busy', 0))", method
    )
    error = await refused(world.call(method, "busy"))
    assert (error.code, error.reason) == ("ABORTED", "REQUEST_IN_FLIGHT")
    assert error.retry_seconds is not None
    await transaction.rollback()
    await connection.close()
    await world.call(method, "busy")


async def test_fingerprint_is_keyed_and_nothing_kept_shows_a_secret(
    world: World, database: str
) -> None:
    secret = password()
    request = pb.CreateSipTrunkRequest(sip_trunk=userpass(auth_password=secret), request_id="pw")
    await world.stub.CreateSipTrunk(request)
    kept = "\n".join(row for rows in (await everything(database)).values() for row in rows)
    assert secret not in kept
    async with (
        running(database, secret_keys=f"{KEYS_NEWER},{KEYS}") as service,
        connected(service.grpc_address) as stub,
    ):
        assert (await stub.CreateSipTrunk(request)).auth_password_set


async def test_id_whose_key_is_gone_is_neither_taken_for_the_same_nor_for_another(
    database: str,
) -> None:
    request = pb.CreateSipTrunkRequest(sip_trunk=ip_based(), request_id="old-key")
    async with running(database) as service, connected(service.grpc_address) as stub:
        await stub.CreateSipTrunk(request)
    async with (
        running(database, secret_keys=KEYS_NEWER) as service,
        connected(service.grpc_address) as stub,
    ):
        error = await refused(stub.CreateSipTrunk(request))
        assert (error.code, error.reason) == ("ABORTED", "REQUEST_ID_UNVERIFIABLE")


async def test_answers_are_forgotten_after_their_time_in_small_batches(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "ROWS_MAX", 5)
    monkeypatch.setattr(housekeeping, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(housekeeping, "IDLE_SECONDS", 0.05)
    async with running(database) as service, connected(service.grpc_address) as stub:
        trunk = await created(stub)
        for number in range(13):
            request = update(trunk.id, "qualify_frequency", qualify_frequency=number)
            request.request_id = f"old-{number}"
            await stub.UpdateSipTrunk(request)
        connection = await asyncpg.connect(database)
        await connection.execute(
            "UPDATE requests SET created_at = now() - CASE WHEN request_id = 'old-12'"
            " THEN interval '23 hours' ELSE interval '25 hours' END"
        )
        async with asyncio.timeout(30):
            while await connection.fetchval("SELECT count(*) FROM requests") > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await connection.close()
        last = update(trunk.id, "qualify_frequency", qualify_frequency=12)
        last.request_id = "old-12"
        assert (await stub.UpdateSipTrunk(last)).qualify_frequency == 12
        first = update(trunk.id, "qualify_frequency", qualify_frequency=99)
        first.request_id = "old-0"
        assert (await stub.UpdateSipTrunk(first)).qualify_frequency == 99


async def test_update_with_an_id_names_what_changed_the_second_time_too(stub: Any) -> None:
    trunk = await created(stub)
    request = update(
        trunk.id, "qualify_frequency", "is_active", qualify_frequency=5, is_active=True
    )
    request.request_id = "named"
    for _ in range(2):
        call = stub.UpdateSipTrunk(request)
        await call
        trailers = dict(await call.trailing_metadata())
        assert trailers[common.CHANGED_FIELDS_KEY] == "qualify_frequency"
