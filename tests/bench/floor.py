"""The floor: what a call costs in grpc.aio and asyncpg with nothing of ours in it.

Three bare methods in one server. No identity, no rules, no history, no etag, no log. The message
types, the rows, the pool's size, its no-op reset and uvloop are those of the service.

    Prepared  answers a SipTrunk that was made before
    Update    runs one UPDATE ... RETURNING and answers the trunk of the row
    Get       runs one SELECT and answers the trunk of the row

The table is a copy of `trunks`: the same rows, indexes, constraints and fill factor. Its ids are
numbers, as pgbench can make nothing else; they are as long as those of trunks.
"""

import asyncio
import contextlib
import json
import signal
import sys
from datetime import datetime
from typing import Any

import asyncpg
import grpc
import uvloop
from asyncpg.connect_utils import SessionAttribute

from siptrunk.v1 import sip_trunk_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb

SERVICE = "bench.Floor"
POOL_SIZE = 10
"""The service's default."""
ID_CHARACTERS = 26
COLUMNS = (
    "id", "account_id", "name", "provider", "description", "auth_type", "auth_username",
    "auth_password_sealed IS NOT NULL AS auth_password_set", "auth_password_changed_at",
    "gateways", "ip_identifiers", "phone_number_count", "allow", "disallow", "transport",
    "media_encryption", "media_encryption_optimistic", "direct_media", "rtp_symmetric",
    "force_rport", "ice_support", "qualify_frequency", "inbound_enabled",
    "outbound_leading_plus_enabled", "is_active", "created_at", "updated_at",
)  # fmt: skip
NAMES = [column.rpartition(" ")[2] for column in COLUMNS]
SELECT = ", ".join(COLUMNS)

TABLE = f"""
CREATE TABLE floor_trunks (LIKE trunks INCLUDING ALL) WITH (fillfactor = 70);
INSERT INTO floor_trunks
SELECT (jsonb_populate_record(t, jsonb_build_object('id',
        lpad((row_number() OVER (ORDER BY t.id) - 1)::text, {ID_CHARACTERS}, '0')))).*
  FROM trunks AS t WHERE t.account_id = 'bench'"""

UPDATE = f"""
UPDATE floor_trunks
   SET qualify_frequency = $3, revision = revision + 1, updated_at = now()
 WHERE account_id = $1 AND id = $2
RETURNING {SELECT}"""

GET = f"SELECT {SELECT} FROM floor_trunks WHERE account_id = $1 AND id = $2"

PGBENCH = rf"""
\set number random(0, :trunks - 1)
\set frequency random(1, 86400)
UPDATE floor_trunks
   SET qualify_frequency = :frequency, revision = revision + 1, updated_at = now()
 WHERE account_id = 'bench' AND id = lpad(:number::text, {ID_CHARACTERS}, '0')
RETURNING {SELECT};
"""


def trunk_of(row: Any) -> sip_trunk_pb2.SipTrunk:
    """The trunk of a row, as anybody would make it."""
    values = {name: value for name, value in zip(NAMES, row, strict=True) if value is not None}
    values["ip_identifiers"] = json.loads(values["ip_identifiers"])
    values["gateways"] = json.loads(values["gateways"])
    for gateway in values["gateways"]:
        gateway["created_at"] = datetime.fromisoformat(gateway["created_at"])
    return sip_trunk_pb2.SipTrunk(**values)


async def _keep_session(_: Any) -> None:
    pass


async def serve(url: str) -> None:
    """Serve on a free port until SIGTERM."""
    pool = await asyncpg.create_pool(
        url,
        min_size=0,
        max_size=POOL_SIZE,
        reset=_keep_session,
        target_session_attrs=SessionAttribute.read_write,
        server_settings={"jit": "off"},
    )
    first = await pool.fetchrow(f"SELECT {SELECT} FROM floor_trunks LIMIT 1")
    prepared = trunk_of(first)

    async def answer_prepared(_: Any, __: Any) -> sip_trunk_pb2.SipTrunk:
        return prepared

    async def answer_update(request: pb.UpdateSipTrunkRequest, _: Any) -> sip_trunk_pb2.SipTrunk:
        sent = request.sip_trunk
        return trunk_of(await pool.fetchrow(UPDATE, "bench", sent.id, sent.qualify_frequency))

    async def answer_get(request: pb.GetSipTrunkRequest, _: Any) -> sip_trunk_pb2.SipTrunk:
        return trunk_of(await pool.fetchrow(GET, "bench", request.id))

    def method(behaviour: Any, request: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            behaviour, request.FromString, sip_trunk_pb2.SipTrunk.SerializeToString
        )

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    methods = {
        "Prepared": method(answer_prepared, pb.UpdateSipTrunkRequest),
        "Update": method(answer_update, pb.UpdateSipTrunkRequest),
        "Get": method(answer_get, pb.GetSipTrunkRequest),
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"floor ready grpc=127.0.0.1:{port}", flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(1)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            await pool.close()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
