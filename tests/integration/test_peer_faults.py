"""Faults that other control planes for trunks have, each tried here."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import grpc
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.integration.conftest import created, minted, read, violations
from tests.integration.link import linked
from tests.support import (
    Gateway,
    IpIdentifier,
    PhoneNumber,
    SipTrunk,
    connected,
    ip_based,
    leaks,
    password,
    refusal,
    refused,
    update,
    userpass,
)

SET_BY_EVERY_CHANGE = {"revision", "updated_at"}


@pytest.fixture
async def sql(database: str) -> AsyncIterator[Any]:
    """A connection to the test's database."""
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


async def row(sql: Any, trunk_id: str) -> dict[str, bytes]:
    """Every column of a trunk, as bytes."""
    columns = await sql.fetchval(
        "SELECT array_agg(column_name::text) FROM information_schema.columns"
        " WHERE table_name = 'trunks'"
    )
    texts = ", ".join(f"coalesce({c}::text, '<null>') AS {c}" for c in columns)
    found = await sql.fetchrow(f"SELECT {texts} FROM trunks WHERE id = $1", trunk_id)
    return {name: value.encode() for name, value in found.items()}


def gateways(*addresses: str) -> list[Gateway]:
    return [Gateway(gateway_address=address) for address in addresses]


def full() -> SipTrunk:
    """A trunk with a value of its own in every field."""
    return userpass(
        description="primary",
        gateways=[
            *gateways("a.example.com", "b.example.com"),
            Gateway(gateway_address="c", port=9),
        ],
        ip_identifiers=[IpIdentifier(ip_address=f"192.0.2.{n}") for n in range(3)],
        allow="opus,ulaw:20",
        transport=SipTrunk.TLS,
        media_encryption=SipTrunk.SDES,
        qualify_frequency=0,
        is_active=False,
    )


async def test_fault_1_a_rename_touches_another_column_or_a_list(stub: Any, sql: Any) -> None:
    trunk = await created(stub, full(), "+15550100")
    before = await row(sql, trunk.id)
    await stub.UpdateSipTrunk(update(trunk.id, "name", name="renamed"))
    after = await row(sql, trunk.id)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"name"} | SET_BY_EVERY_CHANGE


@pytest.mark.parametrize(
    "fields",
    [
        {"gateways": gateways("new.example.com", "not a host")},
        {"gateways": gateways("new.example.com"), "qualify_frequency": -1},
        {"gateways": gateways("new.example.com"), "transport": SipTrunk.UDP},
        {"gateways": gateways("new.example.com"), "name": "taken"},
        {"gateways": gateways("new.example.com"), "etag": '"1"'},
    ],
)
async def test_fault_2_an_update_that_fails_changes_a_part(
    stub: Any, sql: Any, fields: dict[str, Any]
) -> None:
    await created(stub, userpass(name="taken"))
    trunk = await created(stub, full(), "+15550100")
    before = await row(sql, trunk.id)
    await refused(stub.UpdateSipTrunk(update(trunk.id, description="lost", **fields)))
    assert await row(sql, trunk.id) == before
    assert await read(stub, trunk.id) == trunk


async def test_fault_3_lists_replaced_at_once_end_as_a_mixture(stub: Any) -> None:
    trunk = await created(stub)
    wanted = [[f"{n}-{i}.example.com" for i in range(1 + n % 5)] for n in range(20)]
    await asyncio.gather(
        *(
            stub.UpdateSipTrunk(update(trunk.id, "gateways", gateways=gateways(*addresses)))
            for addresses in wanted
        )
    )
    after = await read(stub, trunk.id)
    assert [g.gateway_address for g in after.gateways] in wanted


async def test_fault_4_false_and_zero_and_empty_are_taken_for_not_sent(stub: Any) -> None:
    trunk = await created(
        stub,
        userpass(
            description="text",
            qualify_frequency=30,
            inbound_enabled=True,
            ip_identifiers=[IpIdentifier(ip_address="192.0.2.1")],
        ),
    )
    paths = ["description", "qualify_frequency", "inbound_enabled", "rtp_symmetric"]
    after = await stub.UpdateSipTrunk(
        update(
            trunk.id,
            *paths,
            "ip_identifiers",
            description="",
            qualify_frequency=0,
            inbound_enabled=False,
            rtp_symmetric=False,
        )
    )
    assert [getattr(after, path) for path in paths] == ["", 0, False, False]
    assert all(after.HasField(path) for path in paths)
    assert not after.ip_identifiers
    assert await read(stub, trunk.id) == after


async def test_fault_5_rules_are_not_judged_on_the_merged_trunk(stub: Any) -> None:
    secure = await created(stub, full())
    error = await refused(
        stub.UpdateSipTrunk(update(secure.id, "transport", transport=SipTrunk.UDP))
    )
    assert error.violations == {"transport": "SDES_NEEDS_TLS"}
    tls = await created(stub, userpass(transport=SipTrunk.TLS))
    sdes = update(tls.id, "media_encryption", media_encryption=SipTrunk.SDES)
    assert (await stub.UpdateSipTrunk(sdes)).media_encryption == SipTrunk.SDES


async def test_fault_6_a_required_secret_is_cleared_and_later_updates_fail(stub: Any) -> None:
    trunk = await created(stub)
    for request in (
        update(trunk.id, "auth_password"),
        update(trunk.id, "auth_password", auth_password=""),
        update(trunk.id, auth_password=""),
        update(trunk.id, "auth_username"),
        update(trunk.id, "auth_username", auth_username=""),
    ):
        error = await refused(stub.UpdateSipTrunk(request))
        assert error.code == "INVALID_ARGUMENT"
        assert error.fields[0].startswith("auth_")
    after = await stub.UpdateSipTrunk(update(trunk.id, "qualify_frequency", qualify_frequency=5))
    assert (after.auth_password_set, after.auth_username) == (True, "acme")


@pytest.mark.parametrize(
    ("paths", "code"),
    [
        ([], "OK"),
        ([""], "INVALID_ARGUMENT"),
        (["nope"], "INVALID_ARGUMENT"),
        (["created_at"], "OK"),
        (["created_at.seconds"], "OK"),
        (["created_at", "created_at.seconds"], "OK"),
        (["name", "name"], "OK"),
        (["gateways", "gateways.port"], "INVALID_ARGUMENT"),
        (["name", "name.x"], "INVALID_ARGUMENT"),
        (["*"], "OK"),
        (["*", "*"], "OK"),
        (["*", "name"], "INVALID_ARGUMENT"),
        (["*.*"], "INVALID_ARGUMENT"),
        (["."], "INVALID_ARGUMENT"),
        (["é"], "INVALID_ARGUMENT"),
    ],
)
async def test_fault_7_a_mask_gets_an_undefined_answer(
    stub: Any, paths: list[str], code: str
) -> None:
    trunk = await created(stub, full())
    request = pb.UpdateSipTrunkRequest(sip_trunk=trunk)
    request.update_mask.SetInParent()
    request.update_mask.paths.extend(paths)
    if code == "OK":
        assert await stub.UpdateSipTrunk(request) == trunk
    else:
        error = await refused(stub.UpdateSipTrunk(request))
        assert (error.code, error.fields) == (code, ["update_mask"])


async def test_fault_8_one_violation_hides_another(stub: Any) -> None:
    trunk = await created(stub)
    bad = {"name": " x", "qualify_frequency": -1, "gateways": gateways("a b", "1.2.3")}
    wanted = [
        "name",
        "gateways[0].gateway_address",
        "gateways[1].gateway_address",
        "qualify_frequency",
    ]
    for call in (
        stub.UpdateSipTrunk(update(trunk.id, **bad)),
        stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass(**bad))),
    ):
        assert [field for field, _, _ in violations(await refused(call))] == wanted


async def test_fault_9_a_password_comes_out_again(
    stub: Any, sql: Any, caplog: pytest.LogCaptureFixture
) -> None:
    secret, other = password(), password()
    shown: list[bytes] = []
    trunk = await created(stub, userpass(auth_password=secret))
    shown.append(trunk.SerializeToString())
    for request in (
        update(trunk.id, "auth_password", auth_password=other),
        update(trunk.id, "auth_password", "name", auth_password=other, name=""),
        update(trunk.id, auth_password=f" {other}\n"),
        update(trunk.id, auth_password=other * 10),
        update(trunk.id, "auth_password", "nope", auth_password=secret),
        update((await created(stub, ip_based())).id, auth_password=secret),
    ):
        try:
            shown.append((await stub.UpdateSipTrunk(request)).SerializeToString())
        except grpc.aio.AioRpcError as error:
            shown.append(str(refusal(error)).encode() + repr(error).encode())
    page = await stub.ListSipTrunks(pb.ListSipTrunksRequest())
    shown.append(page.SerializeToString())
    shown.extend((await row(sql, trunk.id)).values())
    shown.extend(repr(record.__dict__).encode() for record in caplog.records)
    assert leaks(b"\n".join(shown), {secret, other}) == []


async def test_fault_10_a_number_is_moved_onto_a_trunk_while_another_holds_it(stub: Any) -> None:
    holder = await created(stub, userpass(), "+15550100")
    trunk = await created(stub, userpass(), "+15550101")
    page = await stub.ListPhoneNumbers(pb.ListPhoneNumbersRequest(trunk_id=trunk.id))
    number = PhoneNumber(id=page.phone_numbers[0].id, phone_number="15550100")
    moving = pb.UpdatePhoneNumberRequest(trunk_id=trunk.id, phone_number=number)
    adding = pb.CreatePhoneNumberRequest(
        trunk_id=trunk.id, phone_number=PhoneNumber(phone_number="15550100")
    )
    creating = pb.CreateSipTrunkRequest(
        sip_trunk=userpass(), phone_numbers=[PhoneNumber(phone_number="15550100")]
    )
    codes = await asyncio.gather(
        *(refused(stub.UpdatePhoneNumber(moving)) for _ in range(5)),
        *(refused(stub.CreatePhoneNumber(adding)) for _ in range(5)),
        *(refused(stub.CreateSipTrunk(creating)) for _ in range(5)),
    )
    assert [error.code for error in codes] == ["INVALID_ARGUMENT"] * 5 + ["ALREADY_EXISTS"] * 10
    assert await read(stub, holder.id) == holder
    assert (await read(stub, trunk.id)).phone_number_count == 1


async def test_fault_13_a_database_that_is_down_looks_like_a_trunk_that_is_gone(
    database: str,
) -> None:
    made = await minted(database, "ours")
    async with (
        linked(database) as link,
        running(link.url) as service,
        connected(service.grpc_address, made.text) as stub,
    ):
        trunk = await created(stub, userpass(), "+15550100")
        await link.cut()
        for call in (
            stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk.id)),
            stub.UpdateSipTrunk(update(trunk.id, "name", name="x")),
            stub.UpdateSipTrunk(update(trunk.id, "name", name="x", qualify_frequency=-1)),
            stub.DeleteSipTrunk(pb.DeleteSipTrunkRequest(id=trunk.id, force=True)),
            stub.ListSipTrunks(pb.ListSipTrunksRequest()),
            stub.ListPhoneNumbers(pb.ListPhoneNumbersRequest(trunk_id=trunk.id)),
        ):
            error = await refused(call)
            assert (error.code, error.reason) == ("UNAVAILABLE", "DATABASE_UNAVAILABLE")
        await link.mend()
        assert await read(stub, trunk.id) == trunk


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (["0.0.0.0/0"], None),
        (["::/0"], None),
        (["192.0.2.1/24"], None),
        (["2001:db8::1/64"], None),
        (["192.0.2.0/24", "192.0.2.0/24"], None),
        (["2001:db8::/32", "2001:DB8:0::/32"], None),
        (["192.0.2.0/24", "192.0.2.128/25"], ["192.0.2.0/24", "192.0.2.128/25"]),
        (["2001:db8::/32", "2001:db8::1"], ["2001:db8::/32", "2001:db8::1"]),
    ],
)
async def test_fault_14_a_range_that_is_wrong_is_taken(
    stub: Any, sent: list[str], stored: list[str] | None
) -> None:
    ranges = [IpIdentifier(ip_address=text) for text in sent]
    trunk = await created(stub, ip_based())
    call = stub.UpdateSipTrunk(update(trunk.id, "ip_identifiers", ip_identifiers=ranges))
    if stored is None:
        error = await refused(call)
        assert error.code == "INVALID_ARGUMENT"
        assert all(field.startswith("ip_identifiers[") for field in error.fields)
        assert await read(stub, trunk.id) == trunk
    else:
        assert [i.ip_address for i in (await call).ip_identifiers] == stored


async def test_fault_15_of_two_updates_at_once_one_is_lost(stub: Any) -> None:
    for turn in range(10):
        trunk = await created(stub)
        await asyncio.gather(
            stub.UpdateSipTrunk(update(trunk.id, "description", description=f"{turn}")),
            stub.UpdateSipTrunk(update(trunk.id, "is_active", is_active=False)),
            stub.UpdateSipTrunk(update(trunk.id, gateways=gateways("new.example.com"))),
        )
        after = await read(stub, trunk.id)
        assert (after.description, after.is_active) == (f"{turn}", False)
        assert after.gateways[0].gateway_address == "new.example.com"


async def test_fault_15_of_two_updates_of_one_field_both_win(stub: Any) -> None:
    trunk = await created(stub)
    answers = await asyncio.gather(
        *(
            stub.UpdateSipTrunk(update(trunk.id, "name", name=name, etag=trunk.etag))
            for name in ("one", "two")
        ),
        return_exceptions=True,
    )
    won = [answer for answer in answers if isinstance(answer, SipTrunk)]
    lost = [error.code().name for error in answers if isinstance(error, grpc.aio.AioRpcError)]
    assert (len(won), lost) == (1, ["ABORTED"])
    assert await read(stub, trunk.id) == won[0]
