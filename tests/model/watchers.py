"""Watchers that are cut at any point and go on from their last token, and what they were to see."""

import asyncio
import contextlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import grpc

from siptrunk.v1 import sip_trunk_event_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from tests.chaos.fleet import bearer, responses
from tests.support import refusal
from trunkline import events

SipTrunkEvent = sip_trunk_event_pb2.SipTrunkEvent
PAUSE_SECONDS = 0.05
CUT_SECONDS_MAX = 3.0
ALLOWED = {"UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED"}
Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """A row of the feed, with what of its revision a filter looks at."""

    position: int
    account_id: str
    trunk_id: str
    revision: int
    is_active: bool
    toggled: bool
    deleted: bool

    @property
    def key(self) -> Key:
        return self.account_id, self.trunk_id


async def feed_of(connection: "asyncpg.Connection[asyncpg.Record]") -> list[Change]:
    """The feed as the database has it."""
    rows = await connection.fetch(
        "SELECT f.position, f.account_id, f.trunk_id, f.revision,"
        " (r.trunk->>'is_active')::boolean, 'is_active' = ANY (r.changed), r.deleted"
        " FROM feed AS f JOIN trunk_revisions AS r USING (account_id, trunk_id, revision)"
        " ORDER BY f.position"
    )
    return [Change(*row) for row in rows]


@dataclass
class Stream:
    """One stream of a watcher: what it delivered, as far as the watcher took it.

    Attributes:
        begin: the position after which it began; None where it began with the initial state.
        initial: the revisions of the initial state, None until it is complete.
        early: the changes delivered before that.
        mark: the position at which it was complete.
        events: the changes delivered after that, by position.
        end: the position up to which it was taken.
    """

    begin: int | None
    initial: dict[Key, int] | None = None
    early: list[Any] = field(default_factory=list)
    mark: int = 0
    events: list[tuple[int, Any]] = field(default_factory=list)
    end: int = 0


class Watcher:
    """A watcher that keeps all that it takes.

    Args:
        name: what it is called in a failure.
        stubs: one for each server.
        token: who watches.
        rng: where it is cut.
        account_id: whose changes are to come; None for all.
        begins: `now`, `initial`, or a token.
        is_active: its filter.
        anew: whether a cut makes it begin with the initial state again.
    """

    def __init__(
        self,
        name: str,
        stubs: Sequence[Any],
        token: str,
        rng: random.Random,
        account_id: str | None,
        begins: str = "now",
        *,
        is_active: bool | None = None,
        anew: bool = False,
    ) -> None:
        self.name, self.account_id, self.is_active = name, account_id, is_active
        self.streams: list[Stream] = []
        self.first_token = ""
        self.cuts = 0
        self.codes: dict[str, int] = {}
        self._stubs, self._bearer, self._rng = stubs, bearer(token), rng
        self._begins, self._anew = begins, anew
        self._resume = "" if begins in ("now", "initial") else begins
        self._target: int | None = None
        self._until = asyncio.Event()

    def finish(self, position: int) -> None:
        """Go on without further cuts once there was one, and end when this position has come."""
        self._target = position
        self._until.set()

    def told(self) -> str:
        """How far it is, for a failure."""
        end = self.streams[-1].end if self.streams else None
        return f"{self.name}: at {end} of {self._target}, {self.cuts} cuts, {self.codes}"

    async def watch(self) -> None:
        """Watch until finished."""
        while not self._arrived():
            call = self._call()
            cut = asyncio.create_task(self._cut(call))
            try:
                await self._take(call)
            except grpc.aio.AioRpcError as error:
                self._ended(error)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
            finally:
                cut.cancel()
                call.cancel()
            if self._anew and self._target is None:
                self._resume = ""
            await asyncio.sleep(PAUSE_SECONDS)

    def _arrived(self) -> bool:
        return (
            self._target is not None
            and self.cuts > 0
            and bool(self.streams)
            and bool(self._resume)
            and self.streams[-1].end >= self._target
        )

    def _call(self) -> Any:
        request = pb.WatchSipTrunksRequest(resume_token=self._resume)
        request.initial_state = not self._resume and self._begins == "initial"
        request.all_accounts = self.account_id is None
        if self.is_active is not None:
            request.filter = f"is_active={str(self.is_active).lower()}"
        stub = self._rng.choice(self._stubs)
        return stub.WatchSipTrunks(request, metadata=self._bearer)

    async def _cut(self, call: Any) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._rng.random() ** 2 * CUT_SECONDS_MAX):
                await self._until.wait()
                if self.cuts:
                    return
        self.cuts += 1
        call.cancel()

    def _ended(self, error: grpc.aio.AioRpcError) -> None:
        code = error.code().name
        self.codes[code] = self.codes.get(code, 0) + 1
        assert code in ALLOWED, f"{self.name}: {code} {error.details()}"
        if code == "RESOURCE_EXHAUSTED":
            assert refusal(error).reason == "WATCHER_TOO_SLOW"

    async def _take(self, call: Any) -> None:
        begin = events.parse_token(self._resume)[1].position if self._resume else None
        stream = Stream(begin, end=begin or 0)
        first, initial = True, dict[Key, int]()
        async for response in responses(call):
            if first:
                first = False
                self.streams.append(stream)
                assert not response.events
                if begin is None and self._begins == "now":
                    stream.begin = stream.end = events.parse_token(response.resume_token)[
                        1
                    ].position
                assert bool(response.resume_token) == (stream.begin is not None)
            # A watcher that ends in the middle of a response goes on from an event's own token.
            taken = len(response.events)
            if stream.begin is not None and taken and self._rng.random() < 0.02:
                taken = self._rng.randint(1, taken)
            for event in response.events[:taken]:
                self._one(stream, initial, event)
            if taken < len(response.events):
                self._resume = response.events[taken - 1].resume_token
                stream.end = events.parse_token(self._resume)[1].position
                return
            if response.resume_token:
                self._resume = response.resume_token
                self.first_token = self.first_token or self._resume
                stream.end = events.parse_token(self._resume)[1].position
            if response.initial_state_complete:
                assert stream.initial is None
                stream.initial, stream.mark = initial, stream.end
            if self._arrived():
                return

    def _one(self, stream: Stream, initial: dict[Key, int], event: Any) -> None:
        key = event.sip_trunk.account_id, event.sip_trunk.id
        if event.kind == SipTrunkEvent.INITIAL:
            assert key not in initial
            assert not event.resume_token
            initial[key] = event.revision
        elif event.resume_token:
            stream.events.append((events.parse_token(event.resume_token)[1].position, event))
        else:
            stream.early.append(event)


def wanted(feed: Iterable[Change], watcher: Watcher) -> list[Change]:
    """What of a feed a watcher is to see."""
    return [
        c
        for c in feed
        if watcher.account_id in (None, c.account_id)
        and (watcher.is_active is None or c.toggled or c.is_active == watcher.is_active)
    ]


def check_watcher(watcher: Watcher, feed: Sequence[Change]) -> int:
    """See that each stream of a watcher is what the database says; how many changes it took.

    A token is exact: over all resumptions nothing is missing, nothing is there twice, and nothing
    is in another order than the feed's.
    """
    mine, count = wanted(feed, watcher), 0
    place: int | None = None
    for stream in watcher.streams:
        begin = stream.begin
        if begin is None:
            if stream.initial is None:
                continue  # cut before the initial state was complete: it starts anew
            begin = _check_initial(watcher, stream, mine)
        elif place is not None:
            # It went on where it was.
            assert begin == place, f"{watcher.name}: {begin} after {place}"
        place = stream.end
        expected = [c for c in mine if begin < c.position <= stream.end]
        found = [(p, _key(e), e.revision) for p, e in stream.events]
        _assert_same(watcher, found, [(c.position, c.key, c.revision) for c in expected])
        for (_, event), change in zip(stream.events, expected, strict=True):
            assert (event.kind == SipTrunkEvent.DELETED) == change.deleted
            assert (event.kind == SipTrunkEvent.CREATED) == (change.revision == 1)
        _check_rising(watcher, stream)
        count += len(found)
    return count


def _assert_same(watcher: Watcher, found: Sequence[Any], expected: Sequence[Any]) -> None:
    for told, change in zip(found, expected, strict=False):
        assert told == change, f"{watcher.name} was told {told} where {change} was next"
    assert len(found) == len(expected), f"{watcher.name}: {len(found)} of {len(expected)}"


def _key(event: Any) -> Key:
    return event.sip_trunk.account_id, event.sip_trunk.id


def _check_rising(watcher: Watcher, stream: Stream) -> None:
    """Within a stream the revisions of a trunk rise; without a filter, by one each time."""
    last = dict(stream.initial or {})
    for event in [*stream.early, *(e for _, e in stream.events)]:
        key = _key(event)
        if key in last:
            assert event.revision > last[key], watcher.name
            if watcher.is_active is None:
                assert event.revision == last[key] + 1, f"{watcher.name}: {key}"
        last[key] = event.revision


def _check_initial(watcher: Watcher, stream: Stream, mine: Sequence[Change]) -> int:
    """See that an initial state was whole when it was said to be; the position of that.

    At that position the watcher knows each trunk that there is, at its revision, and no others.
    """
    assert stream.initial is not None
    told = dict(stream.initial)
    for event in stream.early:
        told[_key(event)] = event.revision
        if event.kind == SipTrunkEvent.DELETED:
            del told[_key(event)]
    there = dict[Key, int]()
    for change in mine:
        if change.position > stream.mark:
            break
        there[change.key] = change.revision
        shown = watcher.is_active is None or change.is_active == watcher.is_active
        if change.deleted or not shown:
            there.pop(change.key)
    if watcher.is_active is not None:
        # What has left the filter may have been told of, or never have been shown.
        told = {k: r for k, r in told.items() if k in there}
    assert told == there, f"{watcher.name}: the initial state at position {stream.mark}"
    return stream.mark
