"""The keys that seal: which there are, which are needed, which may go, and in which order."""

from pathlib import Path

import pytest

from tests.conftest import running
from tests.e2e.processes import Server, command, database_url, not_started
from tests.e2e.sealed import BOTH, FIELD, OLDEST, counts, filled, opened, ring, rotate, sql, states
from tests.integration.conftest import created
from tests.support import KEYS, KEYS_NEWER, KEYS_OTHER, connected, password, refused, update
from trunkline import keys
from trunkline.store.database import Database
from trunkline.store.identities import IdentityStore


async def test_another_key_of_the_same_id_touches_nothing(database: str) -> None:
    passwords = await filled(database, 3)
    async with running(database):
        pass  # the database knows k1 from here on
    given = f"{KEYS_NEWER},{KEYS_OTHER}"
    done = await rotate(database_url=database, secret_keys=given)
    assert (done.code, done.out) == (78, "")
    assert " k1 " in done.err
    assert len(done.err.splitlines()) == 1
    assert (await states(database_url=database, secret_keys=given))["k1"]["state"] == "wrong"
    assert await opened(database, KEYS) == passwords
    async with sql(database) as connection:
        assert await connection.fetchval("SELECT count(*) FROM secret_checks") == 1


async def test_of_two_new_keys_of_one_id_the_first_one_stays(database: str) -> None:
    pool = await Database.open(database, 1, 0)
    try:
        identities = IdentityStore(pool)
        first, second = ring(KEYS), ring(KEYS_OTHER)
        sealed = [one.seal("trunkline", "", "", "secret_checks") for one in (first, second)]
        assert await identities.add_check_value("k1", sealed[0]) == sealed[0]
        assert await identities.add_check_value("k1", sealed[1]) == sealed[0]
        assert await keys.strangers(identities, second) == ["k1"]
        assert await keys.strangers(identities, first) == []
    finally:
        await pool.close()


async def test_a_server_with_the_old_key_alone_goes_on_until_it_is_restarted(
    tmp_path: Path, database: str
) -> None:
    """The order of the command's help, with the calls that are made meanwhile."""
    url = {"database_url": database}
    async with Server(tmp_path, secret_keys=KEYS, **url) as old:
        async with connected(await old.ready()) as stub:
            trunk = await created(stub)
            async with (
                Server(tmp_path, secret_keys=BOTH, **url) as new,
                connected(await new.ready()) as other,
            ):
                second = await created(other)
                assert await counts(database) == {"k1": 1, "k2": 1}
                assert (await rotate(secret_keys=BOTH, **url)).code == 0
                assert await counts(database) == {"k2": 2}
                # Both servers change what the other one has sealed.
                secrets = [password(), password()]
                change = update(second.id, FIELD, auth_password=secrets[0])
                await stub.UpdateSipTrunk(change)
                await stub.UpdateSipTrunk(update(trunk.id, "description", description="x"))
                await other.UpdateSipTrunk(update(second.id, "description", description="x"))
                await other.UpdateSipTrunk(update(trunk.id, FIELD, auth_password=secrets[1]))
                assert await counts(database) == {"k1": 1, "k2": 1}
        assert (await old.stop()).code == 0
    refused_start = await not_started(Server(tmp_path, secret_keys=KEYS, **url))
    assert refused_start.code == 78
    async with Server(tmp_path, secret_keys=BOTH, **url) as restarted:
        await restarted.ready()
        assert (await rotate(secret_keys=BOTH, **url)).code == 0
        assert await counts(database) == {"k2": 2}
        assert await opened(database, BOTH) == {second.id: secrets[0], trunk.id: secrets[1]}
    async with Server(tmp_path, secret_keys=KEYS_NEWER, **url) as server:
        await server.ready()


async def test_a_key_that_is_taken_out_too_early_is_missed_with_what_to_do(
    tmp_path: Path, database: str
) -> None:
    await filled(database, 7)
    await filled(database, 2, OLDEST)
    done = await not_started(Server(tmp_path, database_url=database, secret_keys=KEYS_NEWER))
    assert done.code == 78
    (line,) = done.complaints
    assert "k0 (2 secrets), k1 (7 secrets)" in line
    assert "give them too" in line
    assert "`trunkline secrets rotate`" in line


async def test_a_key_is_free_once_no_answers_are_kept_under_it(database: str) -> None:
    variables = {"database_url": database, "secret_keys": BOTH, "idempotency_hours": "5"}
    async with running(database) as service, connected(service.grpc_address) as stub:
        trunk = await created(stub)
        for n in range(3):
            request = update(trunk.id, "qualify_frequency", qualify_frequency=n)
            request.request_id = f"retry-{n}"
            await stub.UpdateSipTrunk(request)
    done = await rotate(**variables)
    assert done.code == 0
    assert "k1  older  secrets=0  answers=3\n" in done.out
    last = done.out.splitlines()[-1]
    assert last.startswith("k1 may be taken out of the keys once no answers are kept under it: 3")
    assert "each for 5 hours" in last
    async with (
        running(database, secret_keys=BOTH) as service,
        connected(service.grpc_address) as stub,
    ):
        await stub.UpdateSipTrunk(request)  # answered as before, by the older key
    async with (
        running(database, secret_keys=KEYS_NEWER) as service,
        connected(service.grpc_address) as stub,
    ):
        assert (await refused(stub.UpdateSipTrunk(request))).reason == "REQUEST_ID_UNVERIFIABLE"
    async with sql(database) as connection:
        await connection.execute("DELETE FROM requests")
    done = await rotate(**variables)
    assert done.code == 0
    assert done.out.splitlines()[-1].startswith("k1 may be taken out of the keys; backups")


@pytest.mark.parametrize("runs", [True, False], ids=["running", "stopped"])
async def test_the_commands_work_on_a_data_directory(tmp_path: Path, *, runs: bool) -> None:
    async with Server(tmp_path) as server:
        async with connected(await server.ready()) as stub:
            await created(stub)
            await created(stub)
        data = {"data_dir": str(server.data)}
        file = server.data / "secret-keys"
        file.write_text(f"{KEYS_NEWER}\n{file.read_text()}")
        if not runs:
            assert (await server.stop()).code == 0
        assert await states(**data) == {
            "k2": {
                "state": "newest",
                "in_ring": True,
                "newest": True,
                "secrets": 0,
                "answers": 0,
            },
            "k1": {
                "state": "older",
                "in_ring": True,
                "newest": False,
                "secrets": 2,
                "answers": 0,
            },
        }
        done = await rotate(**data)
        assert done.code == 0
        assert done.out.splitlines()[:4] == [
            "2 secrets are to be sealed under k2",
            "re-sealed 2 secrets",
            "k2  newest  secrets=2  answers=0",
            "k1  older  secrets=0  answers=0",
        ]
        assert "no server was started with k2 yet" in done.err
        done = await command("secrets", "status", **data)
        assert (done.code, done.err) == (0, "")
        assert done.out == ("k2  newest  secrets=2  answers=0\nk1  older  secrets=0  answers=0\n")
        if runs:
            await server.stop()
    file.write_text(KEYS_NEWER + "\n")
    async with Server(tmp_path) as server:
        await server.ready()
        assert len(await opened(database_url(server.data), KEYS_NEWER)) == 2


async def test_keys_must_be_given_for_the_database_of_an_url(database: str) -> None:
    for name in ("rotate", "status"):
        done = await command("secrets", name, database_url=database)
        assert (done.code, done.out) == (78, "")
        assert "TRUNKLINE_SECRET_KEYS" in done.err


async def test_no_command_prints_a_key_or_a_password(database: str) -> None:
    passwords = await filled(database, 3)
    out = ""
    for name in ("status", "rotate", "status"):
        done = await command("secrets", name, database_url=database, secret_keys=BOTH)
        out += done.out + done.err
    assert "k2  newest  secrets=3" in out
    for word in [*passwords.values(), *(k.partition(":")[2] for k in BOTH.split(","))]:
        assert word not in out


async def test_the_help_tells_the_order() -> None:
    done = await command("secrets", "rotate", "--help")
    assert done.code == 0
    places = [done.out.index(f"\n  {n}. ") for n in (1, 2, 3)]
    assert places == sorted(places)
    assert "restart the servers one by one" in " ".join(done.out.split())
    assert max(map(len, done.out.splitlines())) <= 100
