import asyncio
from typing import Any

import grpc
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.integration.conftest import created, read
from tests.support import SipTrunk, refused, update


async def test_update_with_a_stale_etag_is_aborted_and_told_the_current_one(stub: Any) -> None:
    before = await created(stub)
    current = await stub.UpdateSipTrunk(update(before.id, "name", name="first"))
    error = await refused(
        stub.UpdateSipTrunk(update(before.id, "name", name="second", etag=before.etag))
    )
    assert (error.code, error.reason) == ("ABORTED", "ETAG_MISMATCH")
    assert error.metadata == {"etag": current.etag}
    assert await read(stub, before.id) == current


async def test_update_with_the_current_etag_is_done(stub: Any) -> None:
    before = await created(stub)
    after = await stub.UpdateSipTrunk(update(before.id, "name", name="new", etag=before.etag))
    assert after.name == "new"


@pytest.mark.parametrize("paths", [(), ("etag",), ("qualify_frequency",), ("created_at",), ("*",)])
async def test_update_with_a_stale_etag_is_aborted_though_nothing_would_change(
    stub: Any, paths: tuple[str, ...]
) -> None:
    before = await created(stub)
    current = await stub.UpdateSipTrunk(update(before.id, "name", name="moved on"))
    sent = SipTrunk()
    sent.CopyFrom(current)
    sent.etag = before.etag
    request = pb.UpdateSipTrunkRequest(sip_trunk=sent)
    request.update_mask.paths.extend(paths)
    error = await refused(stub.UpdateSipTrunk(request))
    assert (error.code, error.metadata) == ("ABORTED", {"etag": current.etag})


@pytest.mark.parametrize(
    "etag", ["x", "*", '""', '"1"', '"-1-0"', '"ffffffffffffffffffff-0"', "é", "9" * 5000]
)
async def test_update_with_an_etag_that_is_none_is_aborted(stub: Any, etag: str) -> None:
    trunk = await created(stub)
    error = await refused(stub.UpdateSipTrunk(update(trunk.id, "name", name="new", etag=etag)))
    assert (error.code, error.metadata) == ("ABORTED", {"etag": trunk.etag})


async def test_update_with_an_empty_etag_is_unconditional(stub: Any) -> None:
    trunk = await created(stub)
    assert (await stub.UpdateSipTrunk(update(trunk.id, "name", name="new", etag=""))).name == "new"


async def test_concurrent_updates_with_one_etag_have_one_winner(stub: Any) -> None:
    trunk = await created(stub)
    answers = await asyncio.gather(
        *(
            stub.UpdateSipTrunk(
                update(trunk.id, "qualify_frequency", qualify_frequency=n, etag=trunk.etag)
            )
            for n in range(1, 17)
        ),
        return_exceptions=True,
    )
    won = [answer for answer in answers if isinstance(answer, SipTrunk)]
    lost = [e.code().name for e in answers if isinstance(e, grpc.aio.AioRpcError)]
    assert (len(won), lost) == (1, ["ABORTED"] * 15)
    assert await read(stub, trunk.id) == won[0]
