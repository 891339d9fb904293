"""Concurrent callers with a random mind, and a record of all that they asked and were told."""

import asyncio
import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import grpc

from siptrunk.v1 import sip_trunk_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.model import trunk as model
from tests.model.checker import Operation
from tests.model.trunk import Answer, Asked, Place, Refused, Shown, Values, Wanted
from tests.support import Gateway as SentGateway
from tests.support import IpIdentifier, password, refusal, update, userpass

CALL_SECONDS = 8.0
ATTEMPTS_MAX = 12
EXTRA_MAX = 4
TRUNKS = 5
RETRY_SECONDS = 0.05
CANCEL_SECONDS_MAX = 0.02
CHANGED_FIELDS = "x-changed-fields"
UNKNOWN = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}
TOLD = {"ETAG_MISMATCH", "TRUNK_NOT_FOUND", "TOO_FEW", "TOO_MANY"}
BASE = SentGateway(gateway_address="sip.example.com")


@dataclass
class Known:
    """What the callers have last seen of a trunk: not always the newest."""

    id: str
    trunk: sip_trunk_pb2.SipTrunk
    revisions: int = 1


@dataclass
class Call:
    """A call to be made: the method, the request, and what it asks of the model."""

    method: str
    request: Any
    asked: model.Change | model.Get
    unknown: bool = False
    """Whether an attempt ended without telling whether it was done."""

    @property
    def changes(self) -> bool:
        return not isinstance(self.asked, model.Get)

    @property
    def request_id(self) -> str:
        return str(self.request.request_id) if self.changes else ""

    @property
    def trunk_id(self) -> str:
        return _trunk_id(self.request)


class Done(NamedTuple):
    """A call was answered: with what, and what the trailers say that changed."""

    message: Any
    changed: str | None


@dataclass
class Record:
    """All calls on trunks.

    Attributes:
        history: the operations on each trunk.
        without_answer: those calls whose outcome is not known, by their request_id.
        etags: each etag that was seen, by trunk and revision.
        codes: how attempts ended.
        repeated: calls that were answered a second time, as a retry.
        complaints: what is wrong as it stands.
        complaints: what is wrong already.
    """

    history: dict[str, list[Operation]] = field(default_factory=lambda: defaultdict(list))
    without_answer: dict[str, tuple[str, int]] = field(default_factory=dict)
    etags: dict[tuple[str, int], str] = field(default_factory=dict)
    codes: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    complaints: list[str] = field(default_factory=list)
    operations: int = 0


class Traffic:
    """Callers.

    Args:
        rng: all that they do is drawn from it.
        stubs: one for each server.
        wanted: how many operations there are to be.
    """

    def __init__(self, rng: random.Random, stubs: Sequence[Any], wanted: int) -> None:
        self.record = Record()
        self.known: dict[str, Known] = {}
        self._rng, self._stubs, self._wanted = rng, stubs, wanted
        self._clock = itertools.count(1)
        self._numbers = itertools.count(1)

    async def run(self, callers: int, enough: Callable[[], bool]) -> None:
        """Make all of the calls, and on a fast machine more, until enough has gone wrong."""
        for _ in range(TRUNKS):
            await self.create()
        async with asyncio.TaskGroup() as group:
            for _ in range(callers):
                group.create_task(self._call_on(enough))

    async def _call_on(self, enough: Callable[[], bool]) -> None:
        made, most = self.record, self._wanted * EXTRA_MAX
        while made.operations < self._wanted or (made.operations < most and not enough()):
            made.operations += 1
            if len(self.known) < TRUNKS:
                await self.create()
                continue
            await self.make(self._drawn(self._rng.choice(list(self.known.values()))))

    async def create(self) -> str:
        """Make a trunk, by as many attempts as it takes; its id."""
        number = next(self._numbers)
        request = pb.CreateSipTrunkRequest(
            sip_trunk=userpass(name=f"Trunk {number}", auth_password=password(), gateways=[BASE]),
            request_id=f"create-{number}",
        )
        invoked = next(self._clock)
        for _ in range(ATTEMPTS_MAX * 5):
            ended = await self._attempt("CreateSipTrunk", request)
            if isinstance(ended, Done):
                created = ended.message
                shown = Shown(Values.of(created), model.revision_of(created.etag))
                first = Values(gateways=(model.Gateway("", Place(BASE.gateway_address, None), 1),))
                ids = {g.place: g.id for g in shown.values.gateways}
                asked = Asked(model.Create(first), ids)
                done = Operation(invoked, next(self._clock), asked, shown)
                self.record.history[created.id].append(done)
                self.known[created.id] = Known(created.id, created)
                return cast("str", created.id)
            assert ended in UNKNOWN | {"REQUEST_IN_FLIGHT"}, ended
            await asyncio.sleep(RETRY_SECONDS)
        raise AssertionError("a create has no outcome after so many attempts")

    async def make(self, call: Call) -> None:
        """One call: by one attempt, or by several with one request_id; what came of it is kept."""
        rng = self._rng
        if call.changes and (rng.random() < 0.8 or _brings_gateways(call.asked)):
            call.request.request_id = f"op-{next(self._numbers)}"
        invoked = next(self._clock)
        twins = 2 if call.request_id and rng.random() < 0.15 else 1
        ends = await asyncio.gather(*(self._outcome(call) for _ in range(twins)))
        if call.request_id and isinstance(ends[0], Done) and rng.random() < 0.1:
            ends.append(await self._outcome(call))
        now, trunk_id = next(self._clock), call.trunk_id
        history, done = self.record.history[trunk_id], [e for e in ends if isinstance(e, Done)]
        refused = [e for e in ends if isinstance(e, Refused)]
        for one in refused:
            history.append(Operation(invoked, now, Asked(call.asked), one))
        if done:
            answer, ids = self._shown(trunk_id, done[0])
            history.append(Operation(invoked, now, Asked(call.asked, ids), answer))
            self._compare(call, done, refused)
        elif call.changes and call.unknown:
            # It may be done yet, also where a retry was refused.
            if call.request_id:
                self.record.without_answer[call.request_id] = trunk_id, len(history)
            history.append(Operation(invoked, math.inf, Asked(call.asked)))
        gone = [one for one in done if isinstance(one.message, pb.DeleteSipTrunkResponse)]
        if gone or model.NO_TRUNK in refused:
            self.known.pop(trunk_id, None)

    def _compare(self, call: Call, done: "Sequence[Done]", refused: Sequence[Refused]) -> None:
        """A retry is answered as the first call was."""
        self.record.repeated += len(done) - 1
        if any(one != done[0] for one in done):
            self.record.complaints.append(f"answered in two ways: {call} {done}")
        # What is refused keeps no request_id, so it may be done later; but neither an etag nor a
        # trunk that is gone comes back, so these were refused after the first was done.
        late = [r for r in refused if r.reason in ("ETAG_MISMATCH", "TRUNK_NOT_FOUND")]
        if late:
            self.record.complaints.append(f"done, and refused to its twin: {call} {late}")

    def _shown(self, trunk_id: str, done: "Done") -> tuple[Answer, dict[Place, str]]:
        message, changed = done.message, done.changed
        if isinstance(message, pb.DeleteSipTrunkResponse):
            return model.Gone(), {}
        values, revision = Values.of(message), model.revision_of(message.etag)
        self._note_etag(trunk_id, revision, message.etag)
        known = self.known.get(trunk_id)
        if known is not None and revision >= known.revisions:
            known.trunk, known.revisions = message, revision
        names = None if changed is None else frozenset(filter(None, changed.split(",")))
        return Shown(values, revision, names), {g.place: g.id for g in values.gateways}

    def _note_etag(self, trunk_id: str, revision: int, etag: str) -> None:
        assert self.record.etags.setdefault((trunk_id, revision), etag) == etag

    async def _outcome(self, call: Call) -> "Done | Refused | None":
        """What one caller gets, who tries again where it may; None where it is never told."""
        gives_up = not call.request_id or self._rng.random() < 0.2
        for _ in range(1 if gives_up else ATTEMPTS_MAX):
            ended = await self._attempt(call.method, call.request)
            if not isinstance(ended, str):
                return ended
            assert ended in UNKNOWN | {"REQUEST_IN_FLIGHT"}, (ended, call)
            call.unknown = True
            await asyncio.sleep(self._rng.random() * RETRY_SECONDS)
        return None

    async def _attempt(self, method: str, request: Any) -> "Done | Refused | str":
        """One call of a method: the answer, a refusal, or how it ended otherwise."""
        rng = self._rng
        seconds = rng.random() * 0.1 if rng.random() < 0.02 else CALL_SECONDS
        call = getattr(rng.choice(self._stubs), method)(request, timeout=seconds)
        if rng.random() < 0.06:
            asyncio.get_running_loop().call_later(rng.random() * CANCEL_SECONDS_MAX, call.cancel)
        try:
            message = await call
            trailers = dict(iter(await call.trailing_metadata() or ()))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self.record.codes["CANCELLED"] += 1
            return "CANCELLED"
        except grpc.aio.AioRpcError as error:
            return self._refused(error, request)
        self.record.codes["OK"] += 1
        return Done(message, cast("str | None", trailers.get(CHANGED_FIELDS)))

    def _refused(self, error: grpc.aio.AioRpcError, request: Any) -> "Refused | str":
        code = error.code().name
        if code in UNKNOWN:
            self.record.codes[code] += 1
            return code
        told = refusal(error)
        self.record.codes[told.reason] += 1
        reason = told.reason
        if reason == "ETAG_MISMATCH":
            etag = told.metadata["etag"]
            self._note_etag(_trunk_id(request), model.revision_of(etag), etag)
            return Refused(reason, model.revision_of(etag))
        return Refused(reason) if reason in TOLD else reason

    def _drawn(self, known: Known) -> Call:
        rng, trunk = self._rng, known.trunk
        etag = trunk.etag if rng.random() < 0.3 else ""
        condition = model.revision_of(etag) if etag else None
        choice = rng.random()
        if choice < 0.22:
            return Call("GetSipTrunk", pb.GetSipTrunkRequest(id=known.id), model.Get())
        if choice < 0.58:
            return self._update(known.id, etag, condition)
        if choice < 0.68:
            wanted = self._gateways(rng.randint(1, 3))
            if rng.random() < 0.4:
                sent = rng.choice(trunk.gateways)
                place = Place(sent.gateway_address, sent.port if sent.HasField("port") else None)
                wanted = (*wanted, Wanted(place, rng.choice((None, rng.randint(0, 3)))))
            request: Any = pb.AddGatewaysRequest(
                trunk_id=known.id, etag=etag, gateways=[_sent(w) for w in wanted]
            )
            return Call("AddGateways", request, model.AddGateways(wanted, condition))
        if choice < 0.78:
            most = len(trunk.gateways)
            ids = [g.id for g in rng.sample(list(trunk.gateways), rng.randint(1, most))]
            request = pb.RemoveGatewaysRequest(trunk_id=known.id, etag=etag, gateway_ids=ids)
            return Call("RemoveGateways", request, model.RemoveGateways(frozenset(ids), condition))
        if choice < 0.92:
            return self._addresses(known.id, etag, condition)
        if choice < 0.985:
            revision = rng.randint(max(1, known.revisions - 4), known.revisions)
            request = pb.RevertSipTrunkRequest(trunk_id=known.id, revision=revision, etag=etag)
            return Call("RevertSipTrunk", request, model.Revert(revision, condition))
        request = pb.DeleteSipTrunkRequest(id=known.id, etag=etag)
        return Call("DeleteSipTrunk", request, model.Delete(condition))

    def _update(self, trunk_id: str, etag: str, condition: int | None) -> Call:
        rng, number = self._rng, next(self._numbers)
        values: dict[str, Any] = {}
        if rng.random() < 0.7:
            values["description"] = None if rng.random() < 0.1 else f"n={number}"
        if rng.random() < 0.3:
            values["qualify_frequency"] = rng.choice((30, 60, 90))
        if rng.random() < 0.2:
            values["is_active"] = rng.random() < 0.5
        if rng.random() < 0.15:
            values["ip_identifiers"] = self._ips(rng.randrange(4))
        gateways = self._gateways(rng.randint(1, 3)) if rng.random() < 0.15 or not values else None
        sent = {k: v for k, v in values.items() if v is not None and k != "ip_identifiers"}
        if "ip_identifiers" in values:
            found = values["ip_identifiers"]
            sent["ip_identifiers"] = [IpIdentifier(ip_address=a) for a in found]
        if gateways is not None:
            sent["gateways"] = [_sent(w) for w in gateways]
        paths = [*values, *(["gateways"] if gateways is not None else [])]
        request = update(trunk_id, *paths, **sent)
        if etag:
            request.sip_trunk.etag = etag
        asked = model.Update(tuple(values.items()), gateways, condition)
        return Call("UpdateSipTrunk", request, asked)

    def _addresses(self, trunk_id: str, etag: str, condition: int | None) -> Call:
        addresses = self._ips(self._rng.randint(1, 3))
        if self._rng.random() < 0.6:
            request: Any = pb.AddIpIdentifiersRequest(
                trunk_id=trunk_id,
                etag=etag,
                ip_identifiers=[IpIdentifier(ip_address=a) for a in addresses],
            )
            return Call("AddIpIdentifiers", request, model.AddIps(addresses, condition))
        request = pb.RemoveIpIdentifiersRequest(
            trunk_id=trunk_id, etag=etag, ip_addresses=addresses
        )
        return Call(
            "RemoveIpIdentifiers", request, model.RemoveIps(frozenset(addresses), condition)
        )

    def _gateways(self, count: int) -> tuple[Wanted, ...]:
        rng = self._rng
        return tuple(
            Wanted(
                Place(f"gw-{next(self._numbers)}.example.com", rng.choice((None, 5060))),
                rng.choice((None, 0, 1, 2)),
            )
            for _ in range(count)
        )

    def _ips(self, count: int) -> tuple[str, ...]:
        return tuple(f"192.0.2.{n}" for n in self._rng.sample(range(12), count))


def _sent(wanted: Wanted) -> SentGateway:
    gateway = SentGateway(gateway_address=wanted.place.address)
    if wanted.place.port is not None:
        gateway.port = wanted.place.port
    if wanted.priority is not None:
        gateway.priority = wanted.priority
    return gateway


def _brings_gateways(call: model.Change | model.Get) -> bool:
    """Whether a call makes ids that no model can foresee: then its request_id tells of them."""
    return isinstance(call, model.AddGateways) or (
        isinstance(call, model.Update) and call.gateways is not None
    )


def _trunk_id(request: Any) -> str:
    if isinstance(request, pb.UpdateSipTrunkRequest):
        return request.sip_trunk.id
    return str(getattr(request, "trunk_id", "") or getattr(request, "id", ""))
