"""A load generator whose calls are spread over the accounts and the methods of a population.

It knows a population by its size and its tokens, and takes any trunk of it at random.
"""

import itertools
import random
import sys
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import grpc
import uvloop

from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.bench import calls, population
from tests.bench.calls import SERVICE
from tests.bench.load import CALL_SECONDS_MAX, CALLERS_PER_CHANNEL, measured, serve_jobs
from tests.bench.population import Population
from tests.support import SipTrunk
from trunkline import pages

ANY, PEER, LARGEST = "any account", "peer account", "largest account"
PAGE_SIZE, FILTERED_PAGE_SIZE = 50, 10
"""As many as both databases have of what is asked for, so that their pages are alike."""
REQUESTS_PER_SECOND_MAX = 6000
FIRST_FREQUENCY, FREQUENCIES = 61, 86_400  # trunks are filled in with 60
METHODS = {
    "update": "UpdateSipTrunk",
    "update_wide": "UpdateSipTrunk",
    "bad_update": "UpdateSipTrunk",
    "bad_mask": "UpdateSipTrunk",
    "get": "GetSipTrunk",
    "bad_get": "GetSipTrunk",
    "list": "ListSipTrunks",
    "list_later": "ListSipTrunks",
    "create": "CreateSipTrunk",
    "history": "ListSipTrunkRevisions",
    "history_often": "ListSipTrunkRevisions",
    "watch": "WatchSipTrunks",
}


@dataclass(frozen=True)
class Kind:
    """A kind of call.

    Attributes:
        call: one of METHODS.
        where: in the account of any trunk, in the peer account or in the largest.
        filter: of a list; may name the trunk, as `{name}` and the like.
    """

    call: str
    where: str = ANY
    filter: str = ""

    def as_json(self) -> dict[str, str]:
        """For a job."""
        return asdict(self)


Made = tuple[str, bytes, int]
"""The method, the request and the account."""


class World:
    """A population as somebody who calls it sees it."""

    def __init__(self, trunks: int, tokens: Sequence[str]) -> None:
        self.people = Population(trunks)
        self.metadata = [(("authorization", f"Bearer {token}"),) for token in tokens]
        self._rng = random.Random(1)
        self._turns = itertools.count(FIRST_FREQUENCY)
        self._accounts = {PEER: self.people.peer, LARGEST: 0}
        self._middles = {
            account: self.people.middle(account) for account in self._accounts.values()
        }

    def make(self, kind: Kind) -> Made:
        """A request of a kind, on any trunk."""
        # Not the first tenth, whose names are prefixes of others.
        n = self._rng.randrange(self.people.trunks // 10, self.people.trunks)
        account = self._accounts.get(kind.where, self.people.account(n))
        if kind.call == "update_wide":
            n, account = self.people.trunks, self.people.peer
        if kind.call == "history_often":
            n, account = self._middles[0], 0
        message = getattr(self, f"_{kind.call}")(n, account, kind.filter)
        return SERVICE + METHODS[kind.call], message.SerializeToString(), account

    def _update(self, n: int, *_: Any) -> Any:
        return _updated(n, qualify_frequency=next(self._turns) % FREQUENCIES)

    def _update_wide(self, n: int, *_: Any) -> Any:
        return _updated(n, is_active=next(self._turns) % 2 == 0)

    def _bad_update(self, n: int, *_: Any) -> Any:
        return _updated(n, qualify_frequency=FREQUENCIES + 1, transport=SipTrunk.TLS)

    def _bad_mask(self, n: int, *_: Any) -> Any:
        request = _updated(n, description="never")
        request.update_mask.paths.append("no_such_field")
        return request

    def _get(self, n: int, *_: Any) -> Any:
        return pb.GetSipTrunkRequest(id=population.trunk_id(n))

    def _bad_get(self, n: int, *_: Any) -> Any:
        return pb.GetSipTrunkRequest(id=f"none-{n}")

    def _list(self, n: int, account: int, text: str) -> Any:
        found = text.format(
            name=population.name(n),
            number=population.number(n),
            gateway=population.own_gateway(n),
            address=population.own_address(n),
        )
        size = FILTERED_PAGE_SIZE if text else PAGE_SIZE
        return pb.ListSipTrunksRequest(filter=found, page_size=size)

    def _list_later(self, n: int, account: int, text: str) -> Any:
        last = population.trunk_id(self._middles[account])
        binding = (population.account_id(account), "trunks", repr(pages.BY_ID), repr(()))
        token = pages.token(binding, (last, last))
        return pb.ListSipTrunksRequest(page_size=PAGE_SIZE, page_token=token)

    def _create(self, n: int, *_: Any) -> Any:
        return pb.CreateSipTrunkRequest(sip_trunk=calls.first(n, f"Made {uuid.uuid4()}"))

    def _history(self, n: int, *_: Any) -> Any:
        return pb.ListSipTrunkRevisionsRequest(trunk_id=population.trunk_id(n))

    _history_often = _history

    def _watch(self, *_: Any) -> Any:
        return pb.WatchSipTrunksRequest()


def _updated(n: int, **values: Any) -> pb.UpdateSipTrunkRequest:
    request = pb.UpdateSipTrunkRequest(sip_trunk=SipTrunk(id=population.trunk_id(n), **values))
    request.update_mask.paths.extend(values)
    return request


class Spread:
    """What the jobs share: the populations, the channels."""

    def __init__(self) -> None:
        self._worlds: dict[str, World] = {}
        self._channels: dict[tuple[str, int], grpc.aio.Channel] = {}

    async def run(self, job: dict[str, Any]) -> dict[str, Any]:
        """Do a job: `know` a population, or make calls of some kinds in turn for some seconds."""
        if "know" in job:
            self._worlds[job["know"]] = World(job["trunks"], job["tokens"])
            return {}
        world = self._worlds[job["world"]]
        most = job["seconds"] * REQUESTS_PER_SECOND_MAX * min(1.0, job["callers"] / 4)
        kinds = itertools.cycle(Kind(**kind) for kind in job["kinds"])
        count = job.get("count", round(most))
        requests = [world.make(kind) for kind in itertools.islice(kinds, count)]
        callers = [self._caller(job["address"], world, i) for i in range(job["callers"])]
        return await measured(job, callers, iter(requests))

    def _caller(self, address: str, world: World, number: int) -> Callable[[Made], Awaitable[bool]]:
        key = (address, number // CALLERS_PER_CHANNEL)
        if key not in self._channels:
            options = [("grpc.use_local_subchannel_pool", 1)]
            self._channels[key] = grpc.aio.insecure_channel(address, options=options)
        channel = self._channels[key]
        bound: dict[str, Any] = {m: channel.unary_unary(SERVICE + m) for m in METHODS.values()}
        watched: Any = channel.unary_stream(SERVICE + METHODS["watch"])

        async def call(made: Made) -> bool:
            method, content, account = made
            metadata = world.metadata[account]
            try:
                if method.endswith(METHODS["watch"]):
                    stream = watched(content, metadata=metadata, timeout=CALL_SECONDS_MAX)
                    first = await stream.read()
                    stream.cancel()
                    return first is not grpc.aio.EOF
                name = method.removeprefix(SERVICE)
                await bound[name](content, metadata=metadata, timeout=CALL_SECONDS_MAX)
            except grpc.aio.AioRpcError as error:
                print(error.code(), error.details(), file=sys.stderr)
                return False
            return True

        return call


if __name__ == "__main__":
    uvloop.run(serve_jobs(Spread().run))
