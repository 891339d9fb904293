"""New seals under new keys: while servers run, interrupted, with keys that are missing."""

import asyncio
import json
import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.chaos.size import sized
from tests.conftest import running
from tests.e2e.processes import SECONDS_MAX, Server
from tests.e2e.sealed import (
    BOTH,
    FIELD,
    OLDEST,
    counts,
    ended,
    filled,
    opened,
    rest,
    ring,
    rotate,
    rotating,
    sql,
    told,
)
from tests.integration.conftest import created
from tests.support import KEYS_NEWER, connected, password, update
from trunkline.store.database import Database
from trunkline.store.secrets import START, SecretStore

UPDATES_PER_SECOND = 50
UPDATED = 20
UPDATES_AFTER = 50
SECRETS = sized(ci=10_000, full=60_000)
INTERRUPTIONS = sized(ci=4, full=20)
SECRETS_PER_INTERRUPTION = 600


@dataclass
class Load:
    """Callers that change passwords and other fields of some trunks, at a steady rate.

    Attributes:
        passwords: the last one that was acknowledged, by trunk.
        updates: how often each trunk was changed.
    """

    passwords: dict[str, str]
    updates: dict[str, int]
    going: bool = True

    @property
    def count(self) -> int:
        return sum(self.updates.values())

    async def call(self, stub: Any, trunk: str) -> None:
        """One trunk's caller. Any error ends the test."""
        while self.going:
            self.updates[trunk] += 1
            n = self.updates[trunk]
            if n % 2:
                secret = password()
                request = update(trunk, FIELD, auth_password=secret)
            else:
                request = update(trunk, "qualify_frequency", qualify_frequency=n)
            await stub.UpdateSipTrunk(request)
            if n % 2:
                self.passwords[trunk] = secret
            await asyncio.sleep(UPDATED / UPDATES_PER_SECOND)

    async def more(self, count: int) -> None:
        """Wait for so many further updates."""
        wanted = self.count + count
        async with asyncio.timeout(SECONDS_MAX):
            while self.count < wanted:  # noqa: ASYNC110 - callers count
                await asyncio.sleep(0.02)


async def test_secrets_are_sealed_anew_while_servers_change_them(
    tmp_path: Path, database: str
) -> None:
    passwords = await filled(database, SECRETS)
    before = await rest(database)
    variables = {"database_url": database, "secret_keys": BOTH}
    load = Load(passwords, dict.fromkeys(list(passwords)[:: len(passwords) // UPDATED], 0))
    async with (
        Server(tmp_path, **variables) as one,
        Server(tmp_path, **variables) as two,
        connected(await one.ready()) as first,
        connected(await two.ready()) as second,
        asyncio.TaskGroup() as group,
    ):
        for place, trunk in enumerate(load.updates):
            group.create_task(load.call((first, second)[place % 2], trunk))
        await load.more(UPDATED)
        done = await rotate(**variables)
        during = load.count
        await load.more(UPDATES_AFTER)
        load.going = False
    assert (done.code, done.err) == (0, "")
    assert during > UPDATED
    assert await counts(database) == {"k2": len(passwords)}
    assert await opened(database, KEYS_NEWER) == load.passwords
    # What nobody has changed is as it was, and nobody was told of it.
    after = await rest(database)
    assert {t for t in after if after[t] != before[t]} == {t for t, n in load.updates.items() if n}
    for trunk, n in load.updates.items():
        assert json.loads(after[trunk])["revision"] == 1 + n
    assert await told(database) == load.count


async def test_an_interrupted_rotation_goes_on_where_it_was(database: str) -> None:
    """Signals of each kind at any time: every password opens, and nothing is done twice."""
    passwords = await filled(database, (INTERRUPTIONS + 2) * SECRETS_PER_INTERRUPTION)
    before = await rest(database)
    variables = {"database_url": database, "secret_keys": BOTH}
    resealed = 0
    for turn in range(INTERRUPTIONS):
        kind = (signal.SIGINT, signal.SIGKILL, signal.SIGTERM)[turn % 3]
        async with rotating(**variables) as process:
            wanted = resealed + random.randrange(SECRETS_PER_INTERRUPTION // 2)
            async with asyncio.timeout(SECONDS_MAX):
                while (await counts(database)).get("k2", 0) < wanted:
                    assert process.returncode is None
            os.kill(process.pid, kind)
            done = await ended(process)
        now = await counts(database)
        assert sum(now.values()) == len(passwords)
        if kind == signal.SIGKILL:
            assert done.code == -signal.SIGKILL
        else:
            assert done.code == 130
            assert "run it again" in done.err
            assert f"re-sealed {now.get('k2', 0) - resealed} secrets" in done.out
        assert now.get("k2", 0) >= max(resealed, wanted)
        resealed = now.get("k2", 0)
        assert now["k1"] > 0
    assert await opened(database, BOTH) == passwords
    done = await rotate(**variables)
    assert (done.code, done.err) == (0, "")
    assert f"re-sealed {len(passwords) - resealed} secrets\n" in done.out
    assert await opened(database, KEYS_NEWER) == passwords
    assert await rest(database) == before
    assert await told(database) == 0


async def test_two_rotations_at_once_share_the_work(database: str) -> None:
    passwords = await filled(database, SECRETS)
    variables = {"database_url": database, "secret_keys": BOTH}
    async with running(database, secret_keys=BOTH):
        pass  # the database knows k2 from here on
    both = await asyncio.gather(rotate(**variables), rotate(**variables))
    assert [(done.code, done.err) for done in both] == [(0, "")] * 2
    shares = [int(done.out.rpartition("\nre-sealed ")[2].split()[0]) for done in both]
    assert sum(shares) == len(passwords)
    assert await counts(database) == {"k2": len(passwords)}
    assert await opened(database, KEYS_NEWER) == passwords


async def test_a_password_that_changes_meanwhile_is_not_lost(database: str) -> None:
    """Between the look at a secret and the writing of its new seal."""
    async with running(database) as service, connected(service.grpc_address) as stub:
        trunk, other = await created(stub), await created(stub)
        pool = await Database.open(database, 1, 0)
        try:
            store, newer = SecretStore(pool), ring(BOTH)
            found, end = await store.others(FIELD, "k2", START)
            assert [s.trunk_id for s in found] == [trunk.id, other.id]
            assert end is None
            secret = password()
            await stub.UpdateSipTrunk(update(trunk.id, FIELD, auth_password=secret))
            stale = [
                newer.seal(newer.open(s.sealed, s.key_id, *s.context), *s.context) for s in found
            ]
            assert await store.reseal(FIELD, "k2", found, stale) == 1
        finally:
            await pool.close()
        assert (await opened(database, BOTH))[trunk.id] == secret
        assert await counts(database) == {"k1": 1, "k2": 1}


async def test_a_rotation_changes_nothing_that_a_caller_sees(database: str) -> None:
    async with running(database) as service, connected(service.grpc_address) as stub:
        trunk = await created(stub)
        before = await told(database)
        done = await rotate(database_url=database, secret_keys=BOTH)
        assert done.code == 0
        assert await stub.GetSipTrunk(pb.GetSipTrunkRequest(id=trunk.id)) == trunk
        changed = update(trunk.id, "qualify_frequency", qualify_frequency=7)
        changed.sip_trunk.etag = trunk.etag
        await stub.UpdateSipTrunk(changed)
        assert await told(database) == before + 1
    assert await counts(database) == {"k2": 1}


async def test_what_cannot_be_opened_is_named_and_left(database: str) -> None:
    passwords = await filled(database, 300)
    missing = await filled(database, 2, OLDEST, account="acme")
    damaged = ["k1-000007", "k1-000150"]
    async with sql(database) as connection:
        await connection.execute(
            "UPDATE trunks SET auth_password_sealed = set_byte(auth_password_sealed, 20,"
            " get_byte(auth_password_sealed, 20) # 1) WHERE id = $1",
            damaged[0],
        )
        # Sealed for another trunk.
        await connection.execute(
            "UPDATE trunks SET auth_password_sealed ="
            " (SELECT auth_password_sealed FROM trunks WHERE id = 'k1-000001') WHERE id = $1",
            damaged[1],
        )
    before = await rest(database)
    variables = {"database_url": database, "secret_keys": BOTH}
    for resealed in (len(passwords) - len(damaged), 0):
        done = await rotate(**variables)
        assert done.code == 1
        assert f"re-sealed {resealed} secrets\n" in done.out
        said = "trunkline: can't be opened with the keys given: auth_password of trunk"
        assert [line for line in done.err.splitlines() if "can't be opened" in line] == [
            *(f"{said} {trunk} in account acme, sealed under k0" for trunk in missing),
            *(f"{said} {trunk} in account default, sealed under k1" for trunk in damaged),
        ]
        assert "4 secrets are not under k2" in done.err.splitlines()[-1]
        assert "k1  older  secrets=2  answers=0\nk0  missing  secrets=2  answers=0\n" in done.out
        assert await counts(database) == {"k0": 2, "k1": 2, "k2": len(passwords) - 2}
    assert await rest(database) == before
    # With all keys, and the damaged ones set anew, nothing is left.
    async with sql(database) as connection:
        await connection.execute("DELETE FROM trunks WHERE id = ANY ($1)", damaged)
    given = f"{BOTH},{OLDEST}"
    assert (await rotate(database_url=database, secret_keys=given)).code == 0
    kept = {t: p for t, p in passwords.items() if t not in damaged}
    assert await opened(database, KEYS_NEWER) == kept | missing


async def test_a_row_that_is_locked_is_waited_for_without_any_lock(database: str) -> None:
    passwords = await filled(database, 250)
    variables = {"database_url": database, "secret_keys": BOTH}
    async with sql(database) as holder:
        async with holder.transaction():
            await holder.execute("SELECT FROM trunks WHERE id = 'k1-000003' FOR UPDATE")
            async with rotating(**variables) as process:
                async with asyncio.timeout(SECONDS_MAX):
                    while await counts(database) != {"k1": 1, "k2": 249}:
                        assert process.returncode is None
                async with sql(database) as other:
                    await other.execute("SET lock_timeout = 1000")
                    await other.execute(
                        "UPDATE trunks SET description = 'x' WHERE id <> 'k1-000003'"
                    )
                await holder.execute("COMMIT; BEGIN")
                done = await ended(process)
        assert done.code == 0
        assert "re-sealed 250 secrets\n" in done.out
    assert await opened(database, KEYS_NEWER) == passwords


async def test_a_row_that_stays_locked_is_left_and_told_of(database: str) -> None:
    await filled(database, 5)
    async with sql(database) as holder, holder.transaction():
        await holder.execute("SELECT FROM trunks WHERE id = 'k1-000003' FOR UPDATE")
        done = await rotate(database_url=database, secret_keys=BOTH)
    assert done.code == 1
    assert "re-sealed 4 secrets\n" in done.out
    assert "1 secrets are not under k2" in done.err
    assert "run this again" in done.err
