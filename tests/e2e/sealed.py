"""Databases full of sealed secrets, what is in them, and `trunkline secrets` on them."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from tests.e2e.processes import PROGRAM, SECONDS_MAX, Done, command, environment
from tests.support import KEYS, KEYS_NEWER, SEEN, password
from trunkline import keys
from trunkline.sealing import KeyRing

FIELD = "auth_password"
BOTH = f"{KEYS_NEWER},{KEYS}"
OLDEST = KEYS_NEWER.replace("k2:", "k0:")

FILL = """
INSERT INTO trunks (account_id, id, name, provider, auth_type, auth_username, auth_password_sealed,
                    auth_password_key_id, auth_password_changed_at, gateways,
                    created_at, updated_at)
SELECT $1, t.id, t.id, 'plivo', 'USERPASS', 'acme', t.sealed, $2, now(),
       '[{"id": "g", "gateway_address": "sip.example.com", "priority": 1,
          "created_at": "2026-01-01T00:00:00Z"}]', now(), now()
  FROM unnest($3::text[], $4::bytea[]) AS t(id, sealed)"""


def ring(text: str) -> KeyRing:
    return KeyRing(keys.parsed(text))


@asynccontextmanager
async def sql(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def filled(
    url: str, count: int, text: str = KEYS, account: str = "default"
) -> dict[str, str]:
    """Trunks of an account with secrets under the newest key of a ring; passwords by trunk."""
    ours, base = ring(text), password()  # one to be searched for, with something after it
    made = {f"{ours.newest}-{n:06}": f"{base}-{n}" for n in range(count)}
    sealed = [ours.seal(secret, account, trunk, FIELD) for trunk, secret in made.items()]
    async with sql(url) as connection:
        await connection.execute("INSERT INTO accounts VALUES ($1) ON CONFLICT DO NOTHING", account)
        await connection.execute(FILL, account, ours.newest, list(made), sealed)
    return made


async def opened(url: str, text: str) -> dict[str, str]:
    """Every stored password, opened with a ring, by trunk."""
    ours = ring(text)
    async with sql(url) as connection:
        rows = await connection.fetch(
            "SELECT account_id, id, auth_password_sealed, auth_password_key_id FROM trunks"
            " WHERE auth_password_sealed IS NOT NULL"
        )
    return {
        trunk: ours.open(bytes(sealed), key_id, account, trunk, FIELD)
        for account, trunk, sealed, key_id in rows
    }


async def counts(url: str) -> Mapping[str, int]:
    """How many secrets are under which key."""
    async with sql(url) as connection:
        rows = await connection.fetch(
            "SELECT auth_password_key_id, count(*) FROM trunks"
            " WHERE auth_password_key_id IS NOT NULL GROUP BY 1"
        )
    return {row[0]: row[1] for row in rows}


async def rest(url: str) -> dict[str, str]:
    """Everything of each trunk but what seals its secret, by trunk."""
    async with sql(url) as connection:
        rows = await connection.fetch(
            "SELECT id, (to_jsonb(t) - '{auth_password_sealed,auth_password_key_id}'::text[])::text"
            " FROM trunks AS t"
        )
    return {row[0]: row[1] for row in rows}


async def told(url: str) -> int:
    """How many changes watchers are told of, and as many revisions there must be."""
    async with sql(url) as connection:
        changes = await connection.fetchval(
            "SELECT (SELECT count(*) FROM feed) + (SELECT count(*) FROM feed_pending)"
        )
        assert changes == await connection.fetchval("SELECT count(*) FROM trunk_revisions")
    return int(changes)


async def rotate(**variables: str) -> Done:
    return await command("secrets", "rotate", **variables)


async def states(**variables: str) -> dict[str, Any]:
    """What `secrets status --json` prints, by key."""
    done = await command("secrets", "status", "--json", **variables)
    assert (done.code, done.err) == (0, "")
    return {row.pop("key_id"): row for row in json.loads(done.out)}


@asynccontextmanager
async def rotating(**variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`secrets rotate` in the background, at work once it is entered."""
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        "secrets",
        "rotate",
        env=environment(**variables),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(SECONDS_MAX):
            line = await process.stdout.readline()
        assert b" secrets are to be sealed under " in line
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ended(process: asyncio.subprocess.Process) -> Done:
    async with asyncio.timeout(SECONDS_MAX):
        out, err = await process.communicate()
    SEEN.add(out + err)
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())
