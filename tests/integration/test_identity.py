import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.integration.conftest import created, identities, minted, read
from tests.integration.link import linked
from tests.support import TOKEN, PhoneNumber, connected, refused, update, userpass
from trunkline import auth, tokens

REVOCATION_SECONDS_MAX = 5
LOOK_UP = "FROM tokens WHERE"


async def revoke(url: str, token_id: str) -> None:
    async with identities(url) as store:
        assert await store.revoke_token(token_id)


def listing(stub: Any) -> Any:
    return stub.ListSipTrunks(pb.ListSipTrunksRequest())


async def stopped(call: Callable[[], Awaitable[Any]], since: float, within: float) -> str:
    """The reason that a token is refused for, which it must be in a call begun in time."""
    while True:
        begun = time.monotonic()
        try:
            await call()
        except grpc.aio.AioRpcError:
            error = await refused(call())
            assert error.code == "UNAUTHENTICATED"
            return error.reason
        assert begun - since < within
        await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "TOKEN_MISSING"),
        ((("authorization", ""),), "TOKEN_MISSING"),
        ((("authorization", "Bearer"),), "TOKEN_MISSING"),
        ((("authorization", "Bearer   "),), "TOKEN_MISSING"),
        ((("authorization", TOKEN),), "TOKEN_MISSING"),
        ((("authorization", f"Basic {TOKEN}"),), "TOKEN_MISSING"),
        ((("x-authorization", f"Bearer {TOKEN}"),), "TOKEN_MISSING"),
        ((("authorization", f"Bearer {TOKEN}x"),), "TOKEN_UNKNOWN"),
        ((("authorization", f"Bearer {TOKEN} {TOKEN}"),), "TOKEN_UNKNOWN"),
        ((("authorization", "Bearer x"),), "TOKEN_UNKNOWN"),
        ((("authorization", "Bearer tl_"),), "TOKEN_UNKNOWN"),
        ((("authorization", "Bearer tl___"),), "TOKEN_UNKNOWN"),
        ((("authorization", "Bearer " + "x" * 257),), "TOKEN_UNKNOWN"),
        ((("authorization", "Bearer " + "x" * 7000),), "TOKEN_UNKNOWN"),
        ((("authorization", f"Bearer {tokens.mint().text}"),), "TOKEN_UNKNOWN"),
    ],
)
async def test_a_call_without_a_known_token_is_unauthenticated(
    service: str, metadata: tuple[tuple[str, str], ...], reason: str
) -> None:
    async with connected(service, None) as stub:
        error = await refused(stub.GetSipTrunk(pb.GetSipTrunkRequest(id="x"), metadata=metadata))
    assert (error.code, error.reason) == ("UNAUTHENTICATED", reason)
    assert "x" * 257 not in error.message


async def test_the_scheme_of_a_token_is_of_any_case(service: str) -> None:
    async with connected(service, None) as stub:
        for scheme in ("Bearer", "bearer", "BEARER"):
            await stub.ListSipTrunks(
                pb.ListSipTrunksRequest(), metadata=(("authorization", f"{scheme} {TOKEN}"),)
            )


async def test_a_token_acts_in_its_account(database: str, service: str) -> None:
    made = await minted(database, "ours")
    async with connected(service, made.text) as stub:
        trunk = await created(stub)
        assert trunk.account_id == "ours"
        assert list((await listing(stub)).sip_trunks) == [trunk]


async def test_two_tokens_of_an_account_see_the_same(database: str, service: str) -> None:
    first, second = await minted(database, "ours"), await minted(database, "ours")
    async with connected(service, first.text) as one, connected(service, second.text) as other:
        trunk = await created(one)
        assert await read(other, trunk.id) == trunk


@pytest.mark.parametrize("where", ["secret", "checksum", "id"])
async def test_a_token_with_a_part_of_another_is_unknown(
    database: str, service: str, where: str
) -> None:
    first, second = await minted(database, "ours"), await minted(database, "theirs")
    one, other = first.text.split("_"), second.text.split("_")
    at = {"id": 1, "secret": 2, "checksum": 3}[where]
    mixed = "_".join([*one[:at], other[at], *one[at + 1 :]])
    async with connected(service, mixed) as stub:
        assert (await refused(listing(stub))).reason == "TOKEN_UNKNOWN"


READS = {
    "GetSipTrunk": pb.GetSipTrunkRequest(id="x"),
    "ListSipTrunks": pb.ListSipTrunksRequest(),
    "ListPhoneNumbers": pb.ListPhoneNumbersRequest(trunk_id="x"),
}
WRITES = {
    "CreateSipTrunk": pb.CreateSipTrunkRequest(sip_trunk=userpass()),
    "UpdateSipTrunk": update("x", "name", name="x"),
    "DeleteSipTrunk": pb.DeleteSipTrunkRequest(id="x"),
    "CreatePhoneNumber": pb.CreatePhoneNumberRequest(
        trunk_id="x", phone_number=PhoneNumber(phone_number="1555")
    ),
    "UpdatePhoneNumber": pb.UpdatePhoneNumberRequest(
        trunk_id="x", phone_number=PhoneNumber(id="x", name="x")
    ),
    "DeletePhoneNumber": pb.DeletePhoneNumberRequest(trunk_id="x", id="x"),
}


@pytest.mark.parametrize(
    ("scopes", "open_", "closed"),
    [
        (["trunks:read"], READS, WRITES),
        (["trunks:write"], WRITES, READS),
        (["account:admin"], {}, READS | WRITES),
        (["trunks:read", "trunks:write"], READS | WRITES, {}),
        ([], {}, READS | WRITES),
    ],
)
async def test_a_token_does_what_its_scopes_say(
    database: str,
    service: str,
    scopes: list[str],
    open_: dict[str, Any],
    closed: dict[str, Any],
) -> None:
    made = await minted(database, "ours", scopes)
    async with connected(service, made.text) as stub:
        for method, request in closed.items():
            error = await refused(getattr(stub, method)(request))
            assert (error.code, error.reason) == ("PERMISSION_DENIED", "SCOPE_MISSING")
            assert error.metadata["scope"] == ("trunks:read" if method in READS else "trunks:write")
        for method, request in open_.items():
            with contextlib.suppress(grpc.aio.AioRpcError):
                await getattr(stub, method)(request)
                continue
            assert (await refused(getattr(stub, method)(request))).code == "NOT_FOUND"


async def test_an_expired_token_is_unauthenticated(database: str, service: str) -> None:
    made = await minted(database, "ours", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    async with connected(service, made.text) as stub:
        for _ in range(3):
            error = await refused(listing(stub))
            assert (error.code, error.reason) == ("UNAUTHENTICATED", "TOKEN_EXPIRED")


async def test_a_token_that_is_looked_up_for_each_call_still_expires(
    database: str, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where more tokens are in use than are kept."""
    monkeypatch.setattr(auth, "KNOWN_MAX", 0)
    past = await minted(database, "ours", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    good = await minted(database, "ours", expires_at=datetime.now(UTC) + timedelta(hours=1))
    async with connected(service, past.text) as expired, connected(service, good.text) as stub:
        for _ in range(3):
            assert (await refused(listing(expired))).reason == "TOKEN_EXPIRED"
            await listing(stub)


async def test_a_token_expires_while_it_is_in_use(database: str, service: str) -> None:
    expiry = datetime.now(UTC) + timedelta(seconds=2)
    made = await minted(database, "ours", expires_at=expiry)
    async with connected(service, made.text) as stub:
        await listing(stub)
        left = (expiry - datetime.now(UTC)).total_seconds()
        reason = await stopped(lambda: listing(stub), time.monotonic(), left + 0.01)
        assert datetime.now(UTC) >= expiry
    assert reason == "TOKEN_EXPIRED"


async def test_a_revoked_token_stops_on_every_server(database: str) -> None:
    made, kept = await minted(database, "ours"), await minted(database, "ours")
    async with running(database) as one, running(database) as two:
        addresses = (one.grpc_address, two.grpc_address)
        async with (
            connected(addresses[0], made.text) as first,
            connected(addresses[1], made.text) as second,
        ):
            for stub in (first, second):
                await listing(stub)
            await revoke(database, made.token_id)
            since = time.monotonic()
            reasons = await asyncio.gather(
                stopped(lambda: listing(first), since, REVOCATION_SECONDS_MAX),
                stopped(lambda: listing(second), since, REVOCATION_SECONDS_MAX),
            )
        assert set(reasons) == {"TOKEN_UNKNOWN"}
        for address in addresses:
            async with connected(address, kept.text) as stub:
                await listing(stub)


async def test_a_revoked_token_that_was_not_used_before_is_refused_at_once(
    database: str, service: str
) -> None:
    made = await minted(database, "ours")
    await revoke(database, made.token_id)
    async with connected(service, made.text) as stub:
        assert (await refused(listing(stub))).reason == "TOKEN_UNKNOWN"


async def test_the_bootstrap_token_has_every_scope_in_the_default_account(stub: Any) -> None:
    trunk = await created(stub)
    assert trunk.account_id == "default"
    assert await read(stub, trunk.id) == trunk


async def test_the_bootstrap_token_stops_when_there_is_a_token(database: str, stub: Any) -> None:
    await listing(stub)
    made = await minted(database, "ours")
    since = time.monotonic()
    reason = await stopped(lambda: listing(stub), since, REVOCATION_SECONDS_MAX)
    assert reason == "TOKEN_UNKNOWN"
    await revoke(database, made.token_id)
    for _ in range(3):
        assert (await refused(listing(stub))).reason == "TOKEN_UNKNOWN"


async def test_the_bootstrap_token_does_nothing_where_a_token_was_made_before(
    database: str, service: str
) -> None:
    await minted(database, "ours")
    async with connected(service) as stub:
        assert (await refused(listing(stub))).reason == "TOKEN_UNKNOWN"


async def test_a_service_without_a_bootstrap_token_knows_none(database: str) -> None:
    async with running(database, bootstrap_token="") as service:
        for token in (TOKEN, "x"):
            async with connected(service.grpc_address, token) as stub:
                assert (await refused(listing(stub))).code == "UNAUTHENTICATED"


async def test_no_answer_from_the_database_is_unavailable_and_not_unauthenticated(
    database: str,
) -> None:
    made, used = await minted(database, "ours"), await minted(database, "ours")
    async with (
        linked(database) as link,
        running(link.url) as service,
        connected(service.grpc_address, made.text) as stub,
        connected(service.grpc_address, used.text) as other,
        connected(service.grpc_address, tokens.mint().text) as unknown,
        connected(service.grpc_address, "x") as malformed,
    ):
        await listing(other)
        await link.cut()
        for one in (stub, other, unknown):
            error = await refused(listing(one))
            assert (error.code, error.reason) == ("UNAVAILABLE", "DATABASE_UNAVAILABLE")
            assert error.retry_seconds
            assert link.url.partition("=")[2] not in error.message
        assert (await refused(listing(malformed))).code == "UNAUTHENTICATED"
        await link.mend()
        await listing(stub)
        await listing(other)
        assert (await refused(listing(unknown))).code == "UNAUTHENTICATED"


async def test_calls_with_a_token_in_use_look_nothing_up(database: str) -> None:
    made = await minted(database, "ours")
    async with (
        linked(database) as link,
        running(link.url) as service,
        connected(service.grpc_address, made.text) as stub,
    ):
        await asyncio.gather(*(listing(stub) for _ in range(50)))
        assert 1 <= link.asked(LOOK_UP) <= 3
        begun = time.monotonic()
        before = link.asked(LOOK_UP)
        for _ in range(300):
            await listing(stub)
        # What is left is the look after all tokens in use, about every 1.5 s.
        assert link.asked(LOOK_UP) - before <= 2 + (time.monotonic() - begun)


async def test_many_tokens_at_once_are_looked_up_in_few_rounds(database: str) -> None:
    """As after a restart, when everybody comes back."""
    made = [await minted(database, f"account-{n}") for n in range(60)]
    async with linked(database) as link, running(link.url) as service:
        before = link.asked(LOOK_UP)
        async with contextlib.AsyncExitStack() as stack:
            stubs = [
                await stack.enter_async_context(connected(service.grpc_address, one.text))
                for one in made
            ]
            begun = time.monotonic()
            await asyncio.gather(*(listing(stub) for stub in stubs))
            rounds = (time.monotonic() - begun) * auth.LOOKUPS_PER_SECOND_MAX
            assert link.asked(LOOK_UP) - before <= 3 + rounds
            asked = [s for s in link.statements if LOOK_UP in s]
            assert len(asked) < len(made)


async def test_a_token_that_can_t_be_ours_never_reaches_the_database(database: str) -> None:
    made = await minted(database, "ours")
    mistyped = made.text[:-1] + ("0" if made.text[-1] != "0" else "1")
    async with linked(database) as link, running(link.url) as service:
        before = link.asked(LOOK_UP)
        for token in (mistyped, "tl_x_y_z", "x" * 40, "x" * 5000):
            async with connected(service.grpc_address, token) as stub:
                assert (await refused(listing(stub))).code == "UNAUTHENTICATED"
        assert link.asked(LOOK_UP) == before


async def test_an_unknown_token_is_looked_up_once_for_all_its_calls(database: str) -> None:
    await minted(database, "ours")
    async with (
        linked(database) as link,
        running(link.url) as service,
        connected(service.grpc_address, tokens.mint().text) as stub,
    ):
        before = link.asked(LOOK_UP)
        for _ in range(3):
            await asyncio.gather(*(refused(listing(stub)) for _ in range(30)))
        assert 1 <= link.asked(LOOK_UP) - before <= 3
