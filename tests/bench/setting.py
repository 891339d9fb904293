"""What the sections share: the database with its rows, tokens, the server, a load generator."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import grpc

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from siptrunk.v1 import sip_trunk_service_pb2_grpc
from tests.bench import calls, floor, parts
from trunkline import migrate, tokens
from trunkline.store.database import Database
from trunkline.store.identities import IdentityStore

TRUNKS = 2000
WARM_SECONDS = 1.0
CREATES_TOGETHER = 16


@dataclass
class Setting:
    """The parts of a run.

    Attributes:
        directory: for logs and scripts.
        postgres: the database.
        token: of the account `bench`, which has the trunks.
        made_token: of the account `made`, in which trunks are created.
        server: `trunkline serve`.
        load: makes calls.
        ids: those of the trunks of `bench`.
        updates: how many were sent to them in cells.
    """

    directory: Path
    postgres: parts.Postgres
    token: str
    made_token: str
    server: parts.Part
    load: parts.Part
    ids: list[str] = field(default_factory=list)
    updates: int = 0

    async def sql(self, statement: str, *arguments: Any) -> Any:
        """Run SQL; the first value of its first row."""
        connection = await asyncpg.connect(self.postgres.url)
        try:
            if arguments:
                return await connection.fetchval(statement, *arguments)
            rows = await connection.fetch(statement)
            return rows[0][0] if rows else None
        finally:
            await connection.close()


async def minted(url: str, accounts: Sequence[str]) -> list[str]:
    """A token for each of some accounts, which are made."""
    database = await Database.open(url, 1, 0)
    store, texts = IdentityStore(database), list[str]()
    for account_id in accounts:
        made = tokens.mint()
        await store.create_account(account_id)
        digest = tokens.digest(made.text)
        await store.create_token(made.token_id, account_id, "bench", digest, tokens.SCOPES, None)
        texts.append(made.text)
    await database.close()
    return texts


@contextlib.asynccontextmanager
async def prepared(*, http: bool = True) -> AsyncIterator[Setting]:
    """PostgreSQL with TRUNKS trunks in the account `bench`, a server on it and a load generator."""
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="trunkline-bench-logs-")))
        postgres = await stack.enter_async_context(parts.postgres())
        database = await Database.open(postgres.url, 1, 0)
        await migrate.apply(database)
        await database.close()
        token, made_token = await minted(postgres.url, ("bench", "made"))
        server = await stack.enter_async_context(
            parts.service(postgres.url, directory / "server.log", http=http)
        )
        load = await stack.enter_async_context(parts.load(directory / "load.log"))
        setting = Setting(directory, postgres, token, made_token, server, load)
        setting.ids = await _created(server.address, token)
        await setting.load.ask({"know": "bench", "ids": setting.ids})
        yield setting


async def _created(address: str, token: str) -> list[str]:
    found = [""] * TRUNKS
    places = iter(range(TRUNKS))
    metadata = (("authorization", f"Bearer {token}"),)
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = sip_trunk_service_pb2_grpc.SipTrunkServiceStub(channel)

        async def work() -> None:
            for place in places:
                request = pb.CreateSipTrunkRequest(sip_trunk=calls.first(place))
                found[place] = (await stub.CreateSipTrunk(request, metadata=metadata)).id

        await asyncio.gather(*(work() for _ in range(CREATES_TOGETHER)))
    return found


@contextlib.asynccontextmanager
async def floored(setting: Setting) -> AsyncIterator[parts.Part]:
    """The floor's server on its copy of the trunks."""
    for statement in floor.TABLE.split(";"):
        await setting.sql(statement)
    for table in ("trunks", "floor_trunks"):
        await setting.sql(f"VACUUM ANALYZE {table}")
    await setting.load.ask({"know": "floor", "ids": calls.floor_ids(TRUNKS)})
    async with parts.floor(setting.postgres.url, setting.directory / "floor.log") as part:
        yield part
    await setting.sql("DROP TABLE floor_trunks")  # the next section has a copy of its own
