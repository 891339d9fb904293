"""The stream of changes; what it promises is in the proto."""

import asyncio
import contextlib
import time
from bisect import bisect_left
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from siptrunk.v1 import sip_trunk_event_pb2
from siptrunk.v1 import sip_trunk_service_pb2 as pb
from trunkline import events, pages, tokens
from trunkline.auth import caller, require_scope, still_allowed
from trunkline.errors import ExhaustedError, InvalidError, TrunklineError, Violation
from trunkline.events import Event, Place
from trunkline.feed import Feed, Track, past, together
from trunkline.trunks import common
from trunkline.trunks.common import refuse

SipTrunkEvent = sip_trunk_event_pb2.SipTrunkEvent
Response = pb.WatchSipTrunksResponse

HEARTBEAT_SECONDS = 15.0
RECHECK_SECONDS = 2.0
INITIAL_PAGE_MAX = 100


class WatchMethods(common.Methods):
    """Watch."""

    async def WatchSipTrunks(
        self, request: pb.WatchSipTrunksRequest, context: Any
    ) -> AsyncIterator[Any]:
        account_id: str | None = caller().account_id
        if request.all_accounts:
            require_scope(caller(), tokens.OPERATOR_READ)
            account_id = None
        is_active, given = _wanted(request)
        with self._feed.watching(account_id) as track:
            await self._feed.synced()
            watch = _Watch(self._feed, track, account_id, is_active=is_active)
            await watch.begin(given)
            if request.initial_state:
                yield Response()
                async for part in self._initial(watch):
                    yield part
            else:
                yield events.response((), watch.token)
            async for part in watch.changes():
                yield part

    async def _initial(self, watch: "_Watch") -> AsyncIterator[Any]:
        """Every trunk as it is, what changed meanwhile, and the mark that this is all.

        A page shows the trunks at its own time, so a change of a trunk that its page has seen
        already must not be told of again: revisions rise within a stream.
        """
        seen, after = _Seen(), ("", "")
        while True:
            page = await self._trunks.state_page(
                watch.account_id, after, INITIAL_PAGE_MAX, is_active=watch.is_active
            )
            seen.add(page)
            if page.trunks:
                last = page.trunks[-1]
                after = (last.account_id, last.id)
                yield Response(
                    events=[
                        SipTrunkEvent(
                            kind=SipTrunkEvent.INITIAL,
                            revision=revision,
                            sip_trunk=trunk,
                            changed_at=trunk.updated_at,
                        )
                        for trunk, revision in zip(page.trunks, page.revisions, strict=True)
                    ]
                )
            watch.check()
            await watch.still_allowed()
            if len(page.trunks) < INITIAL_PAGE_MAX:
                break
        # From here on nothing that a page saw is unnumbered any more.
        await self._feed.synced()
        until = self._feed.head.position
        while watch.place.position < until:
            watch.check()
            new = [event for event in await watch.next() if not seen.has(event)]
            if new:
                wanted = [e for e in new if e.matches(is_active=watch.is_active)]
                yield Response(events=[_without_token(e) for e in wanted])
        yield Response(resume_token=watch.token, initial_state_complete=True)


class _Watch:
    """One stream: what it is of, and how far it has come.

    Attributes:
        place: all up to here is delivered.
    """

    def __init__(
        self, feed: Feed, track: Track, account_id: str | None, *, is_active: bool | None
    ) -> None:
        self.account_id = account_id
        self.is_active = is_active
        self.place = feed.head
        self._feed = feed
        self._track = track
        self._epoch = feed.epoch
        self._checked = time.monotonic()

    @property
    def token(self) -> str:
        """Where the stream can be gone on from."""
        return events.token(self._epoch, self.place)

    async def begin(self, given: tuple[bytes, Place] | None) -> None:
        """Go on from a token.

        Raises:
            PastError: it is of another history, or older than what is kept.
        """
        self.check()
        if given is None:
            return
        epoch, place = given
        if epoch != self._epoch or place.position > self._feed.head.position:
            raise past("RESUME_TOKEN_FOREIGN")
        await self._feed.check(place)
        self.place = place

    def check(self) -> None:
        """See that the stream may go on; what it ends with says where to go on from."""
        if self._track.ended is not None:
            raise self._ended(self._track.ended)

    async def still_allowed(self) -> None:
        """See, every few seconds, that the caller may still watch."""
        now = time.monotonic()
        if now - self._checked > RECHECK_SECONDS:
            self._checked = now
            try:
                await still_allowed()
            except TrunklineError as error:
                raise self._ended(error) from None

    async def next(self) -> list[Event]:
        """The next changes, from memory or from the database; none where there are none yet.

        Raises:
            PastError: they are forgotten.
        """
        head = self._feed.head
        if self._has_all:
            found = self._track.after(self.place.position)
        else:
            found, whole = await self._feed.catch_up(self.account_id, self.place.position)
            if not whole:
                raise past("RESUME_TOKEN_EXPIRED")
            found = together(found)
        if found:
            self.place = found[-1].place
        elif head.position > self.place.position:
            self.place = head
        return found

    @property
    def _has_all(self) -> bool:
        """Whether all that comes next is in memory."""
        return self.place.position >= self._track.floor

    async def changes(self) -> AsyncIterator[bytes]:
        """What changes, and heartbeats; ends with an error alone."""
        live, told = False, time.monotonic()
        while True:
            change = self._track.next_change()
            self.check()
            await self.still_allowed()
            if live and not self._has_all:
                slow = ExhaustedError(
                    "WATCHER_TOO_SLOW", "the stream was not read fast enough: go on from the token"
                )
                raise self._ended(slow)
            found = await self.next()
            chosen = [event for event in found if event.matches(is_active=self.is_active)]
            if chosen or time.monotonic() - told >= HEARTBEAT_SECONDS:
                yield events.response(chosen, self.token)
                told = time.monotonic()
            if found:
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_SECONDS):
                    await change.wait()
            # One who was waiting is not slow: what went by at once is read from the database.
            live = self._has_all

    def _ended(self, error: TrunklineError) -> TrunklineError:
        return type(error)(
            error.reason,
            error.message,
            retry_seconds=error.retry_seconds,
            resumeToken=self.token,
        )


@dataclass(slots=True)
class _Page:
    """What one page of the initial state covers: up to which trunk, as of which position."""

    last: tuple[str, str]
    position: int
    unnumbered: dict[tuple[str, str], int]


class _Seen:
    """What the pages of an initial state have shown already. A few bytes for each page."""

    def __init__(self) -> None:
        self._pages: list[_Page] = []

    def add(self, page: Any) -> None:
        """Note a page; the one that is short covers all that comes after it."""
        full = len(page.trunks) >= INITIAL_PAGE_MAX
        last = (page.trunks[-1].account_id, page.trunks[-1].id) if full else ("\U0010ffff", "")
        self._pages.append(_Page(last, page.position, page.unnumbered))

    def has(self, event: Event) -> bool:
        """Whether the page with the trunk shows it as after the change, or later."""
        place = bisect_left(self._pages, event.key, key=lambda page: page.last)
        page = self._pages[place]
        if event.position <= page.position:
            return True
        return event.revision <= page.unnumbered.get(event.key, 0)


def _wanted(
    request: pb.WatchSipTrunksRequest,
) -> tuple[bool | None, tuple[bytes, Place] | None]:
    """The filter and the token of a request."""
    violations = list[Violation]()
    given, is_active = None, None
    if request.resume_token and request.initial_state:
        what = "a stream begins with it or with a token"
        violations.append(Violation("initial_state", "NOT_WITH_TOKEN", what))
    if request.resume_token:
        try:
            given = events.parse_token(request.resume_token)
        except ValueError:
            what = "is not a token of a watch"
            violations.append(Violation("resume_token", "BAD_RESUME_TOKEN", what))
    try:
        for condition in pages.conditions(request.filter):
            if condition.name == "is_active":
                is_active = bool(condition.value)
            else:
                what = f"{condition.name} can't be watched; is_active can"
                violations.append(Violation("filter", "UNKNOWN_FIELD", what))
    except InvalidError as error:
        violations += error.violations
    refuse(violations)
    return is_active, given


def _without_token(event: Event) -> sip_trunk_event_pb2.SipTrunkEvent:
    message = event.message()
    message.ClearField("resume_token")
    return message
