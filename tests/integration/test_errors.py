import asyncio
import logging
from typing import Any

import asyncpg
import grpc
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.conftest import created, minted, read
from tests.support import PhoneNumber, SipTrunk, connected, refused, update, userpass


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def get(trunk_id: str = "x") -> pb.GetSipTrunkRequest:
    return pb.GetSipTrunkRequest(id=trunk_id)


def create(trunk: SipTrunk) -> pb.CreateSipTrunkRequest:
    return pb.CreateSipTrunkRequest(sip_trunk=trunk)


FAULTS = {
    "a unique constraint of another name": (
        "ALTER TABLE trunks RENAME CONSTRAINT trunks_name_unique TO another"
    ),
    "a type that does not fit": (
        "ALTER TABLE trunks DROP COLUMN description, ADD COLUMN description xml"
    ),
    "a trigger that objects": """
        CREATE FUNCTION objects() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'no % in trunks', NEW.name USING ERRCODE = 'P0001'; END $$;
        CREATE TRIGGER objects BEFORE INSERT ON trunks FOR EACH ROW EXECUTE FUNCTION objects()""",
    "a constraint unknown to the service": (
        "ALTER TABLE trunks ADD CONSTRAINT another CHECK (provider <> 'plivo') NOT VALID"
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
async def test_a_fault_of_the_service_tells_a_request_id_and_nothing_else(
    database: str, stub: Any, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    trunk = await created(stub, userpass(name="Secretive Ltd"))
    await execute(database, fault)
    sent = userpass(name="Secretive Ltd", description="d", auth_username="hidden-user")
    with caplog.at_level(logging.DEBUG):
        error = await refused(stub.CreateSipTrunk(create(sent)))
    assert (error.code, error.reason) == ("INTERNAL", "INTERNAL")
    request_id = error.metadata["requestId"]
    assert set(error.metadata) == {"requestId"}
    shown = str(error.details).replace("google.rpc.ErrorInfo", "") + error.message
    for word in (
        "asyncpg",
        "Error",
        "Exception",
        "Traceback",
        "SQL",
        "INSERT",
        "constraint",
        "trunks",
        "another",
        "Secretive",
        "hidden-user",
        trunk.id,
        database.partition("//")[2],
    ):
        assert word not in shown
    failed = [r for r in caplog.records if getattr(r, "request_id", "") == request_id]
    assert [r.exc_info is not None for r in failed if r.levelno == logging.ERROR] == [True]


async def test_the_service_answers_after_a_fault(database: str, stub: Any) -> None:
    trunk = await created(stub)
    await execute(database, FAULTS["a trigger that objects"])
    for _ in range(30):
        assert (await refused(stub.CreateSipTrunk(create(userpass())))).code == "INTERNAL"
    await execute(database, "DROP TRIGGER objects ON trunks")
    assert await read(stub, trunk.id) == trunk
    await created(stub)


async def test_a_column_that_is_missing_is_a_schema_that_does_not_fit(
    database: str, stub: Any
) -> None:
    trunk = await created(stub)
    await execute(database, "ALTER TABLE trunks RENAME COLUMN description TO another")
    error = await refused(stub.GetSipTrunk(get(trunk.id)))
    assert (error.code, error.reason) == ("UNAVAILABLE", "SCHEMA_MISMATCH")
    assert "description" not in error.message
    await execute(database, "ALTER TABLE trunks RENAME COLUMN another TO description")
    assert await read(stub, trunk.id) == trunk


async def test_a_column_of_a_newer_version_disturbs_no_call(database: str, stub: Any) -> None:
    """A rolling upgrade migrates first: the older servers go on with statements prepared before."""
    trunk = await created(stub, userpass(), "+15550100")
    number = pb.UpdatePhoneNumberRequest(trunk_id=trunk.id)
    page = await stub.ListPhoneNumbers(pb.ListPhoneNumbersRequest(trunk_id=trunk.id))
    number.phone_number.id = page.phone_numbers[0].id

    async def all_calls(name: str) -> None:
        await stub.UpdateSipTrunk(update(trunk.id, "name", name=name))
        await read(stub, trunk.id)
        await stub.ListSipTrunks(pb.ListSipTrunksRequest())
        number.phone_number.name = name
        await stub.UpdatePhoneNumber(number)
        await stub.DeleteSipTrunk(pb.DeleteSipTrunkRequest(id=(await created(stub)).id))

    await asyncio.gather(*(all_calls(f"{n}") for n in range(20)))
    await execute(database, "ALTER TABLE trunks ADD COLUMN newer text NOT NULL DEFAULT 'x'")
    await execute(database, "ALTER TABLE phone_numbers ADD COLUMN newer text DEFAULT 'x'")
    await asyncio.gather(*(all_calls(f"{n}") for n in range(20, 40)))


@pytest.mark.parametrize("sent", ["a", "Request-1!~", "x" * 128])
async def test_the_request_id_of_a_caller_comes_back(stub: Any, sent: str) -> None:
    call = stub.GetSipTrunk(get(), metadata=(("x-request-id", sent),))
    assert (await refused(call)).code == "NOT_FOUND"
    assert dict(await call.trailing_metadata())["x-request-id"] == sent


@pytest.mark.parametrize("sent", ["", " ", "a b", "x" * 129])
async def test_a_request_id_that_is_none_is_replaced(stub: Any, sent: str) -> None:
    call = stub.GetSipTrunk(get(), metadata=(("x-request-id", sent),))
    await refused(call)
    given = dict(await call.trailing_metadata())["x-request-id"]
    assert given != sent
    assert 1 <= len(given) <= 128


async def test_each_call_without_a_request_id_gets_one_of_its_own(stub: Any) -> None:
    given = set()
    for _ in range(5):
        call = stub.GetSipTrunk(get())
        await refused(call)
        given.add(dict(await call.trailing_metadata())["x-request-id"])
    assert len(given) == 5


async def test_a_fault_has_the_request_id_of_the_caller(database: str, stub: Any) -> None:
    await execute(database, FAULTS["a trigger that objects"])
    call = stub.CreateSipTrunk(create(userpass()), metadata=(("x-request-id", "mine-1"),))
    assert (await refused(call)).metadata == {"requestId": "mine-1"}


async def test_identity_is_judged_before_the_request(service: str) -> None:
    async with grpc.aio.insecure_channel(service) as channel:
        for name in pb.DESCRIPTOR.services_by_name["SipTrunkService"].methods_by_name:
            call: Any = channel.unary_unary(f"/siptrunk.v1.SipTrunkService/{name}")
            for data in (b"", b"\xff", b"\xc0\x3e\x01"):
                assert (await refused(call(data))).code == "UNAUTHENTICATED"


async def test_the_scope_is_judged_before_the_request(database: str, service: str) -> None:
    made = await minted(database, "ours", ["trunks:read"])
    async with connected(service, made.text) as stub:
        for call in (
            stub.CreateSipTrunk(pb.CreateSipTrunkRequest()),
            stub.UpdateSipTrunk(update("", "nope")),
            stub.DeleteSipTrunk(pb.DeleteSipTrunkRequest()),
            stub.CreatePhoneNumber(pb.CreatePhoneNumberRequest()),
            stub.UpdatePhoneNumber(pb.UpdatePhoneNumberRequest()),
            stub.DeletePhoneNumber(pb.DeletePhoneNumberRequest()),
        ):
            error = await refused(call)
            assert (error.code, error.reason) == ("PERMISSION_DENIED", "SCOPE_MISSING")


async def test_the_request_is_judged_before_the_trunk_is_looked_for(stub: Any) -> None:
    number = PhoneNumber(phone_number="x")
    for call in (
        stub.UpdateSipTrunk(update("absent", "name", name="")),
        stub.CreatePhoneNumber(pb.CreatePhoneNumberRequest(trunk_id="absent", phone_number=number)),
        stub.ListPhoneNumbers(pb.ListPhoneNumbersRequest(trunk_id="absent", page_size=-1)),
        stub.UpdatePhoneNumber(
            pb.UpdatePhoneNumberRequest(
                trunk_id="absent", phone_number=PhoneNumber(id="absent", name="a\0")
            )
        ),
    ):
        assert (await refused(call)).code == "INVALID_ARGUMENT"


async def test_values_in_messages_are_on_one_line_and_bounded(stub: Any) -> None:
    trunk = await created(stub)
    hostile = "a\r\nx-injected: 1\x1b[31m\u202e" + "é" * 5000
    gateways = update(trunk.id)
    gateways.sip_trunk.gateways.add(gateway_address=hostile)
    for call in (
        stub.UpdateSipTrunk(update(trunk.id, hostile[:200])),
        stub.UpdateSipTrunk(gateways),
        stub.ListSipTrunks(pb.ListSipTrunksRequest(order_by=hostile)),
        stub.ListSipTrunks(pb.ListSipTrunksRequest(filter=hostile[:900])),
    ):
        error = await refused(call)
        assert error.code == "INVALID_ARGUMENT"
        assert error.message.isprintable()
        assert len(error.message) < 1000
