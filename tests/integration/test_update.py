from typing import Any

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.support import SipTrunk, refused, update, userpass


async def test_update_changes_the_named_field_alone(stub: Any) -> None:
    before = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
    after = await stub.UpdateSipTrunk(
        update(before.id, "qualify_frequency", qualify_frequency=30, name="not named")
    )
    expected = SipTrunk()
    expected.CopyFrom(before)
    expected.qualify_frequency = 30
    expected.etag = after.etag
    expected.updated_at.CopyFrom(after.updated_at)
    assert after == expected
    assert after.etag != before.etag
    assert after.updated_at.ToDatetime() > before.updated_at.ToDatetime()


async def test_update_reports_every_violation_with_its_path(stub: Any) -> None:
    trunk = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
    error = await refused(
        stub.UpdateSipTrunk(
            update(
                trunk.id,
                "qualify_frequency",
                "media_encryption",
                "nope",
                qualify_frequency=86401,
                media_encryption=SipTrunk.SDES,
            )
        )
    )
    assert error.code == "INVALID_ARGUMENT"
    assert error.violations == {
        "update_mask": "UNKNOWN_PATH",
        "qualify_frequency": "OUT_OF_RANGE",
        "media_encryption": "SDES_NEEDS_TLS",
    }
