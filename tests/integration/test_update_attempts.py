"""What an update does when a constraint objects and the row read back has nothing wrong."""

from typing import Any

import asyncpg
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.support import refused, update, userpass
from trunkline.trunks.trunks import UPDATE_ATTEMPTS_MAX

# A sequence counts through roll-backs, so the trigger objects a set number of times, then no more.
OBJECTING = """
CREATE SEQUENCE objections;
CREATE FUNCTION object() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF nextval('objections') <= {times} THEN
    RAISE check_violation USING CONSTRAINT = 'trunks_sdes_needs_tls';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER object BEFORE UPDATE ON trunks FOR EACH ROW EXECUTE FUNCTION object();
"""


async def object_to_updates(database: str, times: int) -> None:
    connection = await asyncpg.connect(database)
    try:
        await connection.execute(OBJECTING.format(times=times))
    finally:
        await connection.close()


@pytest.mark.parametrize("times", range(1, UPDATE_ATTEMPTS_MAX + 1))
async def test_update_is_tried_again_where_nothing_is_wrong_any_more(
    database: str, stub: Any, times: int
) -> None:
    trunk = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
    await object_to_updates(database, times)
    updated = await stub.UpdateSipTrunk(update(trunk.id, "qualify_frequency", qualify_frequency=30))
    assert updated.qualify_frequency == 30


async def test_update_that_is_always_objected_to_is_a_fault_of_the_server(
    database: str, stub: Any
) -> None:
    trunk = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
    await object_to_updates(database, 1000)
    error = await refused(
        stub.UpdateSipTrunk(update(trunk.id, "qualify_frequency", qualify_frequency=30))
    )
    assert (error.code, error.reason) == ("INTERNAL", "INTERNAL")
    assert await stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk.id)) == trunk
