"""Tokens that look right and are not known: what any number of them costs, and who waits for it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import grpc
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.integration.conftest import identities, minted
from tests.integration.link import Link, linked
from tests.support import SEEN, Refusal, Stub, connected, refused
from trunkline import auth, tokens
from trunkline.auth import Identity, Verifier
from trunkline.errors import TrunklineError
from trunkline.store.database import Database
from trunkline.store.identities import IdentityStore

UNKNOWN = 3000
CALLERS = 100
CONNECTIONS = 4
LOOK_UP = "FROM tokens WHERE id"
ANSWER_SECONDS_MAX = 60.0
"""The bound on what is waited for, not what is promised."""


@asynccontextmanager
async def verifying(url: str) -> AsyncIterator[Verifier]:
    """A verifier as a server has it."""
    database = await Database.open(url, CONNECTIONS, 100)
    verifier = Verifier(IdentityStore(database), "")
    try:
        async with verifier.refreshing():
            yield verifier
    finally:
        await database.close()


@asynccontextmanager
async def withheld(url: str) -> AsyncIterator[None]:
    """Nobody gets at the tokens while the block runs."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE tokens IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


class Meter:
    """The look-ups that go over a link, and how many there may be by the time that has gone."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._before = link.asked(LOOK_UP)
        self._since = time.monotonic()

    @property
    def asked(self) -> int:
        """The look-ups so far."""
        return self._link.asked(LOOK_UP) - self._before

    @property
    def allowed(self) -> float:
        """A round each 20 ms and the first one at once; the look after those in use."""
        gone = time.monotonic() - self._since
        return 1 + gone * auth.LOOKUPS_PER_SECOND_MAX + 1 + gone / auth.REFRESH_SECONDS


async def asked(verifier: Verifier, text: str) -> Identity | str:
    """Whose a token is, or the reason that it is refused for."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            return await verifier.identify(f"Bearer {text}")
    except TrunklineError as error:
        return error.reason


async def test_unknown_tokens_cost_a_bounded_number_of_look_ups(database: str) -> None:
    """Over gRPC, from many callers that never pause; a caller who is new among them is answered."""
    good = await minted(database, "ours")
    metadata = [(("authorization", f"Bearer {tokens.mint().text}"),) for _ in range(UNKNOWN)]
    codes: dict[str, int] = {}
    request = pb.ListSipTrunksRequest()
    async with (
        linked(database) as link,
        running(link.url, log_level="error") as service,
        grpc.aio.insecure_channel(service.grpc_address) as channel,
        connected(service.grpc_address, good.text) as ours,
    ):
        stub: Any = Stub(channel)
        left = iter(metadata)
        meter = Meter(link)

        async def intrude() -> None:
            for one in left:
                try:
                    await stub.ListSipTrunks(request, metadata=one)
                except grpc.aio.AioRpcError as error:
                    code = error.code().name
                    codes[code] = codes.get(code, 0) + 1
                    SEEN.add(repr((error.details(), error.trailing_metadata())).encode())

        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(intrude())
            while meter.asked < 2:  # noqa: ASYNC110 - until they are at it
                await asyncio.sleep(0.005)
            answer = await ours.ListSipTrunks(request, timeout=ANSWER_SECONDS_MAX)
            assert sum(codes.values()) < UNKNOWN
        assert meter.asked <= meter.allowed
    assert list(answer.sip_trunks) == []
    assert codes == {"UNAUTHENTICATED": UNKNOWN}


async def test_tokens_that_come_at_once_are_looked_up_together(database: str) -> None:
    good = await minted(database, "ours")
    others = [tokens.mint().text for _ in range(UNKNOWN)]
    async with linked(database) as link, verifying(link.url) as verifier:
        meter = Meter(link)
        found = await asyncio.gather(
            *(asked(verifier, text) for text in [*others, good.text, *others])
        )
        identity = found.pop(UNKNOWN)
        assert isinstance(identity, Identity)
        assert (identity.account_id, identity.token_id) == ("ours", good.token_id)
        assert set(found) == {"TOKEN_UNKNOWN"}
        rounds = -(-(UNKNOWN + 1) // auth.LOOKED_UP_TOGETHER_MAX)
        assert rounds <= meter.asked <= meter.allowed
        # What is known to be unknown is not asked for again.
        before = meter.asked
        assert {await asked(verifier, text) for text in others[-100:]} == {"TOKEN_UNKNOWN"}
        assert meter.asked - before <= 1


async def test_a_new_caller_is_answered_while_unknown_tokens_never_end(database: str) -> None:
    """More at a time than a round takes, so that there is a queue to wait in, again and again."""
    good = [await minted(database, "ours") for _ in range(10)]
    going = True
    refused_so_far = 0

    async def intrude(verifier: Verifier) -> None:
        nonlocal refused_so_far
        while going:
            assert await asked(verifier, tokens.mint().text) == "TOKEN_UNKNOWN"
            refused_so_far += 1

    async with linked(database) as link, verifying(link.url) as verifier:
        meter = Meter(link)
        async with asyncio.TaskGroup() as group:
            for _ in range(2 * auth.LOOKED_UP_TOGETHER_MAX):
                group.create_task(intrude(verifier))
            for made in good:
                found = await asked(verifier, made.text)
                assert isinstance(found, Identity)
                assert found.token_id == made.token_id
            going = False
        assert meter.asked <= meter.allowed
    assert refused_so_far > auth.LOOKED_UP_TOGETHER_MAX


async def test_one_who_finds_too_many_waiting_is_told_to_try_again(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "WAITING_MAX", 20)
    request = pb.ListSipTrunksRequest()
    async with running(database) as service, connected(service.grpc_address, None) as stub:

        async def call() -> Refusal:
            metadata = (("authorization", f"Bearer {tokens.mint().text}"),)
            return await refused(stub.ListSipTrunks(request, metadata=metadata))

        async with withheld(database):
            calls = [asyncio.create_task(call()) for _ in range(200)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        errors = await asyncio.gather(*calls)
        found = {(e.code, e.reason, e.retry_seconds) for e in errors}
        assert found == {
            ("UNAVAILABLE", "TOKENS_WAITING", auth.WAITING_RETRY_SECONDS),
            ("UNAUTHENTICATED", "TOKEN_UNKNOWN", None),
        }
        good = await minted(database, "ours")
        await stub.ListSipTrunks(request, metadata=(("authorization", f"Bearer {good.text}"),))


async def test_a_caller_who_leaves_takes_no_answer_from_the_others(database: str) -> None:
    good, other = await minted(database, "ours"), tokens.mint()
    async with linked(database) as link, verifying(link.url) as verifier:
        await asked(verifier, other.text)
        # The next round is 20 ms away, so that all of these share it.
        calls = [asyncio.create_task(asked(verifier, good.text)) for _ in range(10)]
        await asyncio.sleep(0)
        for call in calls[:5]:
            call.cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in found[:5])
        assert {one.token_id for one in found[5:] if isinstance(one, Identity)} == {good.token_id}
        assert len([one for one in found[5:] if isinstance(one, Identity)]) == 5
        assert link.asked(LOOK_UP) == 2


async def test_all_who_wait_are_told_when_the_database_cannot_be_asked(database: str) -> None:
    good = await minted(database, "ours")
    texts = [good.text, *(tokens.mint().text for _ in range(2 * auth.LOOKED_UP_TOGETHER_MAX))]
    async with linked(database) as link, verifying(link.url) as verifier:
        await link.cut()
        found = await asyncio.gather(*(asked(verifier, text) for text in texts))
        assert set(found) == {"DATABASE_UNAVAILABLE"}
        await link.mend()
        assert isinstance(await asked(verifier, good.text), Identity)
        assert await asked(verifier, texts[-1]) == "TOKEN_UNKNOWN"


async def test_a_look_up_that_hangs_is_given_up(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "LOOKUP_SECONDS_MAX", 0.2)
    first, second = await minted(database, "ours"), await minted(database, "ours")
    async with verifying(database) as verifier:
        assert isinstance(await asked(verifier, first.text), Identity)
        async with withheld(database):
            for _ in range(2 * CONNECTIONS):
                assert await asked(verifier, second.text) == "DATABASE_UNAVAILABLE"
        assert isinstance(await asked(verifier, second.text), Identity)


async def test_a_revoked_token_stops_in_time_among_unknown_ones(database: str) -> None:
    made = await minted(database, "ours")
    going = True

    async def intrude(verifier: Verifier) -> None:
        while going:
            await asked(verifier, tokens.mint().text)

    async with verifying(database) as verifier, asyncio.TaskGroup() as group:
        assert isinstance(await asked(verifier, made.text), Identity)
        for _ in range(CALLERS):
            group.create_task(intrude(verifier))
        async with identities(database) as store:
            await store.revoke_token(made.token_id)
        revoked = time.monotonic()
        while isinstance(await asked(verifier, made.text), Identity):
            assert time.monotonic() - revoked < auth.REVOCATION_SECONDS_MAX
            await asyncio.sleep(0.02)
        assert await asked(verifier, made.text) == "TOKEN_UNKNOWN"
        going = False
