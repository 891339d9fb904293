"""Fixtures of two accounts, and what creates trunks and tokens in them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest
from google.rpc import error_details_pb2

from siptrunk.v1 import sip_trunk_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.support import PhoneNumber, Refusal, connected, userpass
from trunkline import tokens
from trunkline.store.database import Database
from trunkline.store.identities import IdentityStore


@pytest.fixture
async def ours(database: str, service: str) -> AsyncIterator[Any]:
    """A stub in the account `ours`, by a token of its own."""
    async with connected(service, (await minted(database, "ours")).text) as stub:
        yield stub


@pytest.fixture
async def theirs(database: str, service: str) -> AsyncIterator[Any]:
    """A stub in the account `theirs`, by a token of its own."""
    async with connected(service, (await minted(database, "theirs")).text) as stub:
        yield stub


@asynccontextmanager
async def identities(url: str) -> AsyncIterator[IdentityStore]:
    """The accounts and tokens of a database, as the command line reaches them."""
    database = await Database.open(url, 1, 0)
    try:
        yield IdentityStore(database)
    finally:
        await database.close()


async def minted(
    url: str,
    account_id: str,
    scopes: Sequence[str] = tokens.SCOPES,
    expires_at: datetime | None = None,
) -> tokens.Minted:
    """A token of an account, which is made where it is not there."""
    made = tokens.mint()
    async with identities(url) as store:
        await store.create_account(account_id)
        digest = tokens.digest(made.text)
        assert await store.create_token(
            made.token_id, account_id, "test", digest, scopes, expires_at
        )
    return made


async def created(
    stub: Any, trunk: sip_trunk_pb2.SipTrunk | None = None, *phone_numbers: str
) -> sip_trunk_pb2.SipTrunk:
    """A trunk that the service has created, with its first phone numbers."""
    request = pb.CreateSipTrunkRequest(
        sip_trunk=trunk or userpass(),
        phone_numbers=[PhoneNumber(phone_number=n) for n in phone_numbers],
    )
    answer = await stub.CreateSipTrunk(request)
    assert isinstance(answer, sip_trunk_pb2.SipTrunk)
    return answer


async def read(stub: Any, trunk_id: str) -> sip_trunk_pb2.SipTrunk:
    """A trunk as it is stored now."""
    answer = await stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk_id))
    assert isinstance(answer, sip_trunk_pb2.SipTrunk)
    return answer


def violations(error: Refusal) -> list[tuple[str, str, str]]:
    """The field, reason and description of each violation, in order."""
    bad = error_details_pb2.BadRequest()
    for detail in error.details.details:
        detail.Unpack(bad)
    return [(v.field, v.reason, v.description) for v in bad.field_violations]
