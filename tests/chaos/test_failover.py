"""A primary that dies and a standby that takes over, under servers that are not started again."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
import pytest

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.chaos.clusters import FAST, Pair, pair
from tests.chaos.counting import LOST, Load, check_anew, until_health, watching
from tests.chaos.fleet import Fleet, reaching
from tests.chaos.size import sized
from tests.e2e.processes import SECONDS_MAX, status
from tests.integration.conftest import minted
from tests.support import update, userpass

ROUNDS = sized(1, 10)
SERVERS = 2
AWAY_SECONDS = 1.5
TRUNKS = 2
ANSWERS = sized(5, 50)
"""How many each caller gets before and after each fault, at least."""
ANEW = ("OUT_OF_RANGE", "RESUME_TOKEN_FOREIGN")


@pytest.fixture(scope="module")
async def turns(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """A primary and its standby."""
    async with pair(tmp_path_factory.mktemp("pair")) as made:
        yield made


class Served:
    """Servers on both nodes, and callers of all of them."""

    def __init__(self, nodes: Pair, fleet: Fleet, load: Load, token: str) -> None:
        self.nodes = nodes
        self.fleet = fleet
        self.load = load
        self.token = token

    async def check(self) -> None:
        """See that nothing acknowledged is lost, and that the servers are the ones from before."""
        for address in self.fleet.addresses:
            await until_health(address, "SERVING")
        async with self.nodes.primary.session() as connection:
            await self.load.check(connection)
            await self.load.check_retries(connection)
            positions = await connection.fetch("SELECT position FROM feed ORDER BY position")
            found = [row["position"] for row in positions]
            assert found == list(range(1, len(found) + 1))
        assert self.load.refusals.keys() == {LOST}
        assert "Traceback" not in self.fleet.log


@asynccontextmanager
async def served(nodes: Pair, directory: Path) -> AsyncIterator[Served]:
    """Servers that know both nodes."""
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(Fleet(directory, [nodes.url] * SERVERS))
        token = (await minted(nodes.url, "ours")).text
        stubs = [await stack.enter_async_context(reaching(a, token)) for a in fleet.addresses]
        load = Load(stubs)
        await load.make(TRUNKS)
        yield Served(nodes, fleet, load, token)


@pytest.mark.timeout(900)
async def test_no_acknowledged_update_is_lost_when_the_primary_dies(
    turns: Pair, tmp_path: Path
) -> None:
    """SIGKILL for the primary, which commits to its standby; the standby is promoted.

    A standby that was promoted is another history, since it may lack what was delivered.
    """
    async with served(turns, tmp_path) as all_of_it:
        load = all_of_it.load
        for _ in range(ROUNDS):
            async with watching(all_of_it.fleet.addresses, all_of_it.token) as watchers:
                async with load.running():
                    await load.more(ANSWERS)
                    await turns.primary.kill()
                    await load.refused_all()
                    await turns.fail_over()
                    await load.more(ANSWERS)
                for watcher, end in watchers:
                    assert await end == ANEW
                    watcher.check()
                    assert {code for code, _ in watcher.interruptions} <= {"UNAVAILABLE"}
                    for address in all_of_it.fleet.addresses:
                        await check_anew(address, all_of_it.token, watcher.token, load)
            await turns.rebuild()
            await all_of_it.check()


async def test_servers_go_over_to_the_other_node_and_back(turns: Pair, tmp_path: Path) -> None:
    """A switchover: the primary is shut down, and comes back as the standby of the other one."""
    async with served(turns, tmp_path) as all_of_it:
        load = all_of_it.load
        async with load.running():
            for _ in range(2):
                await load.more(ANSWERS)
                await turns.primary.stop(FAST)
                await turns.fail_over()
                await load.more(ANSWERS)
                await turns.standby.follow_again(turns.primary)
            await load.more(ANSWERS)
        await all_of_it.check()


async def test_a_primary_that_is_demoted_under_its_sessions_is_left(
    turns: Pair, tmp_path: Path
) -> None:
    """Sessions stay and take no more writes (25006), and nobody is left who does.

    What they would still read may be of the past, so servers notice also where nobody writes.
    """
    async with served(turns, tmp_path) as all_of_it:
        load = all_of_it.load
        await turns.primary.set("default_transaction_read_only", "on")
        for address in all_of_it.fleet.addresses:
            await until_health(address, "NOT_SERVING")
            assert await status(address, "liveness") == "SERVING"
        await turns.primary.set("default_transaction_read_only", "off")
        async with load.running():
            await load.more(ANSWERS)
            await turns.primary.set("default_transaction_read_only", "on")
            await load.refused_all()
            await turns.primary.set("default_transaction_read_only", "off")
            await load.more(ANSWERS)
        await all_of_it.check()


async def test_a_retry_is_acknowledged_only_once_the_standby_has_the_change(
    turns: Pair, tmp_path: Path
) -> None:
    """A call that is cut short while the standby is away is committed on the primary alone."""
    async with served(turns, tmp_path) as all_of_it:
        address = all_of_it.fleet.addresses[0]
        async with reaching(address, all_of_it.token) as stub:
            made = await stub.CreateSipTrunk(pb.CreateSipTrunkRequest(sip_trunk=userpass()))
            change = update(made.id, "qualify_frequency", qualify_frequency=5)
            change.request_id = "once"
            await turns.standby.kill()
            for _ in range(2):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await stub.UpdateSipTrunk(change, timeout=AWAY_SECONDS)
                assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            await turns.standby.start()
            await turns.primary.wait_for_standby()
            again = await stub.UpdateSipTrunk(change, timeout=SECONDS_MAX)
            assert again.qualify_frequency == 5
            request = pb.ListSipTrunkRevisionsRequest(trunk_id=made.id)
            revisions = (await stub.ListSipTrunkRevisions(request)).sip_trunk_revisions
            assert [r.revision for r in revisions] == [2, 1]
