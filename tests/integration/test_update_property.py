import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.conftest import running
from tests.integration import random_trunks
from tests.integration.random_trunks import plain
from tests.integration.reference_merge import CODECS, IGNORED, NOW, merge, named
from tests.support import SipTrunk, connected, password, refusal

SEEDS = 3
TRUNKS = 25
UPDATES = 8
MOVING = ("etag", "updated_at")


def request(
    trunk_id: str, mask: list[str] | None, patch: dict[str, Any]
) -> pb.UpdateSipTrunkRequest:
    made = pb.UpdateSipTrunkRequest(sip_trunk=SipTrunk(id=trunk_id, **patch))
    if mask is not None:
        made.update_mask.SetInParent()
        made.update_mask.paths.extend(mask)
    return made


async def answer(call: Any) -> dict[str, Any] | set[str]:
    """The trunk that a call returns, or the paths that it refuses."""
    try:
        return plain(await call)
    except grpc.aio.AioRpcError as error:
        read = refusal(error)
        assert read.code == "INVALID_ARGUMENT", read
        return set(read.fields)


def comparable(
    trunk: dict[str, Any] | set[str], before: dict[str, Any]
) -> dict[str, Any] | set[str]:
    """A trunk in which what only the server can choose is replaced by whether it is new."""
    if isinstance(trunk, set):
        return trunk
    old = {gateway["id"] for gateway in before["gateways"]}
    found = {field: value for field, value in trunk.items() if field not in MOVING}
    found["gateways"] = [
        gateway if gateway.get("id") in old else gateway | {"id": "new", "created_at": "new"}
        for gateway in trunk["gateways"]
    ]
    stamp = found.get("auth_password_changed_at")
    if stamp == NOW or stamp != before.get("auth_password_changed_at"):
        found["auth_password_changed_at"] = NOW
    return found


@pytest.fixture
async def stub(database: str) -> AsyncIterator[Any]:
    """A stub of a service that knows the codecs of the reference and no others."""
    async with (
        running(database, codecs=",".join(CODECS)) as service,
        connected(service.grpc_address) as stub,
    ):
        yield stub


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_update_does_what_the_reference_does(stub: Any, seed: int) -> None:
    rng, secret = random.Random(seed), password()
    changed = refused = idle = 0
    for trunk in range(TRUNKS):
        sent = random_trunks.trunk(rng, secret)
        before = plain(
            await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=SipTrunk(**sent)))
        )
        for update in range(UPDATES):
            mask, patch = random_trunks.change(rng, before, secret)
            case = f"seed {seed}, trunk {trunk}, update {update}\n{mask=}\n{patch=}\n{before=}"
            expected = merge(before, mask, patch)
            found = await answer(stub.UpdateSipTrunk(request(before["id"], mask, patch)))
            assert comparable(found, before) == comparable(expected, before), case
            after = plain(await stub.GetSipTrunk(pb.GetSipTrunkRequest(id=before["id"])))
            if isinstance(found, set):
                refused += 1
                assert after == before, case
                continue
            assert after == found, case
            touched = named(mask, patch)
            for field in {*before, *found} - touched - {*IGNORED}:
                assert found.get(field) == before.get(field), f"{field} was not named\n{case}"
            same = comparable(expected, before) == comparable(before, before)
            changed, idle = changed + (not same), idle + same
            assert (found["etag"] == before["etag"]) == same, case
            assert (found["updated_at"] > before["updated_at"]) != same, case
            before = found
    # Else the generator has gone one-sided and proves little.
    assert min(changed, refused) > TRUNKS * UPDATES / 6
    assert idle > TRUNKS * UPDATES / 30
