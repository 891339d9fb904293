"""The feed of one server: one reader of the database, and what it read last, for any watchers.

A watcher keeps no queue, only the position that it has reached. What it is yet to get stands in one
ring that all of them share, so memory does not grow with them; one who falls behind the ring's end
is let go and comes back with its token.
"""

import asyncio
import contextlib
import logging
import time
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator

from trunkline.config import STREAMS_MAX
from trunkline.errors import ExhaustedError, PastError, TrunklineError, UnavailableError
from trunkline.events import Event, Place
from trunkline.rows import TrunkReader
from trunkline.store.feed import FeedSession, FeedStore

log = logging.getLogger(__name__)

EVENTS_KEPT_MAX = 4096
EVENTS_BYTES_MAX = 32 << 20
EVENTS_TOGETHER_MAX = 64
EVENTS_TOGETHER_BYTES_MAX = 256 << 10
WATCHERS_MAX = STREAMS_MAX
WATCHERS_OF_ACCOUNT_MAX = 200
SYNC_SECONDS_MAX = 10.0
RECONNECT_SECONDS = 0.5
# Rounds are this far apart at least and at most, in seconds: where somebody watches, and else.
SPACING_WATCHED, POLL_WATCHED = 0.02, 0.25
SPACING_IDLE, POLL_IDLE = 0.2, 1.0
SPACING_WANTED = 0.005
CATCH_UP_PAGE_MAX = 64


def together(events: Iterable[Event]) -> list[Event]:
    """The first of some changes that go in one response: at least one, if there is one."""
    found, size = list[Event](), 0
    for event in events:
        size += event.size
        if found and (size > EVENTS_TOGETHER_BYTES_MAX or len(found) == EVENTS_TOGETHER_MAX):
            break
        found.append(event)
    return found


class Track:
    """The changes of one account, or of all, that are still in memory.

    Attributes:
        floor: the position up to which they are not; one who has not reached it has missed some.
        ended: why no more will come; None while they do.
    """

    def __init__(self, floor: int) -> None:
        self.floor = floor
        self.ended: TrunklineError | None = None
        self.watchers = 0
        self._events: deque[Event] = deque()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._events)

    def next_change(self) -> asyncio.Event:
        """Set when there is more. Take it before looking at what there is."""
        return self._changed

    def after(self, position: int) -> list[Event]:
        """The next changes after a position that go in one response."""
        first = bisect_right(self._events, position, key=lambda event: event.position)
        end = min(first + EVENTS_TOGETHER_MAX, len(self._events))
        return together(self._events[index] for index in range(first, end))

    def add(self, event: Event) -> None:
        """Append a change; `wake` tells of it."""
        self._events.append(event)

    def drop_oldest(self) -> Event:
        """Let go of the oldest change."""
        event = self._events.popleft()
        self.floor = event.position
        return event

    def wake(self) -> None:
        """Let watchers look."""
        self._changed.set()
        self._changed = asyncio.Event()


class Feed:
    """The feed of one server.

    Args:
        store: numbers and reads changes over a connection of its own.
        reader: makes trunks of what revisions keep.

    Attributes:
        epoch: which history it is; empty before it is known.
        head: the place up to which changes have been read.
        watchers: how many watch.
    """

    def __init__(self, store: FeedStore, reader: TrunkReader) -> None:
        self.epoch = b""
        self.head = Place(0, 0)
        self._store = store
        self._reader = reader
        self._following = False
        self._ended: TrunklineError | None = None
        self._all = Track(0)
        self._of: dict[str, Track] = {}
        self._kept_bytes = 0
        self.watchers = 0
        self._hinted = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._catching_up = asyncio.Semaphore(1)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Number and read changes while the block runs."""
        task = asyncio.create_task(self._follow_forever())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def poke(self) -> None:
        """Say that there may be something new."""
        self._hinted.set()

    def end(self, error: TrunklineError) -> None:
        """Let every watcher go, and take no more: the server is about to stop."""
        self._ended = error
        self._let_go(error)

    @contextlib.contextmanager
    def watching(self, account_id: str | None) -> Iterator[Track]:
        """The changes of an account, None for all, while the block runs.

        Raises:
            ExhaustedError: there are as many watchers as there may be.
        """
        if self._ended is not None:
            raise self._ended
        track = self._all if account_id is None else self._of.get(account_id)
        mine = track.watchers if track is not None else 0
        if self.watchers >= WATCHERS_MAX or mine >= WATCHERS_OF_ACCOUNT_MAX:
            raise ExhaustedError(
                "TOO_MANY_WATCHERS", "there are as many watches as there may be", retry_seconds=5.0
            )
        if track is None:
            assert account_id is not None
            track = self._of[account_id] = Track(self._all.floor)
        track.watchers += 1
        self.watchers += 1
        try:
            yield track
        finally:
            track.watchers -= 1
            self.watchers -= 1
            unused = not track.watchers and not len(track)
            if account_id is not None and unused and self._of.get(account_id) is track:
                del self._of[account_id]

    async def synced(self) -> None:
        """Wait until all that was committed before is read: `head` is past it then.

        Raises:
            UnavailableError: the database did not answer in time.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self.poke()
        try:
            async with asyncio.timeout(SYNC_SECONDS_MAX):
                await waiter
        except TimeoutError:
            raise UnavailableError(
                "FEED_UNAVAILABLE", "the changes can't be read now: try again", retry_seconds=1.0
            ) from None

    async def catch_up(self, account_id: str | None, after: int) -> tuple[list[Event], bool]:
        """Changes after a position from the database, and whether none before them is forgotten.

        Watchers who lag behind read one after the other.
        """
        async with self._catching_up:
            until = self.head.position
            found = await self._store.page_of(account_id, after, until, CATCH_UP_PAGE_MAX)
            state = await self._store.place(after)
        return [self._event(row) for row in found], state.floor <= after

    async def check(self, place: Place) -> None:
        """See that a watch can go on from a place.

        Raises:
            PastError: it can't.
        """
        state = await self._store.place(place.position)
        if state.place.check and state.place.check != place.check:
            raise past("RESUME_TOKEN_FOREIGN")
        if place.position < state.floor:
            raise past("RESUME_TOKEN_EXPIRED")

    async def _follow_forever(self) -> None:
        while True:
            try:
                async with self._store.session(self.poke) as session:
                    self._begin(session.epoch)
                    while True:
                        started = time.monotonic()
                        self._hinted.clear()
                        await self._round(session)
                        await self._pause(started)
            except (TrunklineError, TimeoutError) as error:
                _end_if_cancelled()
                log.warning("feed_lost", extra={"reason": getattr(error, "reason", "TIMEOUT")})
            except Exception:
                _end_if_cancelled()
                log.exception("feed_failed")
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _pause(self, started: float) -> None:
        watched = self.watchers > 0
        poll = POLL_WATCHED if watched else POLL_IDLE
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(poll):
                await self._hinted.wait()
        spacing = SPACING_WATCHED if watched else SPACING_IDLE
        if self._waiting:
            spacing = SPACING_WANTED
        await asyncio.sleep(max(0.0, started + spacing - time.monotonic()))

    async def _round(self, session: FeedSession) -> None:
        waiting, self._waiting = self._waiting, []
        try:
            complete = await session.number()
            if self.watchers:
                await self._read(session)
            elif self._following:
                self._start_over()
        except BaseException:
            self._waiting = waiting + self._waiting
            raise
        if not complete:
            self._waiting = waiting + self._waiting
            self._hinted.set()
            return
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def _read(self, session: FeedSession) -> None:
        state = await session.state()
        last = state.place.position
        if not self._following:
            self._following, self.head = True, state.place
            for track in (self._all, *self._of.values()):
                track.floor = last
        while self.head.position < last:
            first = self.head.position + 1
            found = [self._event(row) for row in await session.page(first - 1, last)]
            places = [event.position for event in found]
            if not found or places != list(range(first, first + len(found))):
                # What should be there is not: nobody may think that it was told everything.
                log.error("feed_gap", extra={"position": first})
                self._let_go(past("RESUME_TOKEN_FOREIGN"))
                return
            self._publish(found)

    def _begin(self, epoch: bytes) -> None:
        if self.epoch and self.epoch != epoch:
            log.warning("feed_epoch_changed")
            self._let_go(past("RESUME_TOKEN_FOREIGN"))
        self.epoch = epoch

    def _let_go(self, error: TrunklineError) -> None:
        """End every watch. Those that begin from now on find new tracks."""
        for track in (self._all, *self._of.values()):
            track.ended = error
            track.wake()
        self._start_over()

    def _start_over(self) -> None:
        self._following, self._kept_bytes = False, 0
        self._all, self._of = Track(0), {}

    def _event(self, row: object) -> Event:
        return Event(row, self.epoch, self._reader.snapshot)

    def _publish(self, found: list[Event]) -> None:
        woken = {self._all}
        for event in found:
            track = self._of.get(event.account_id)
            if track is None:
                track = self._of[event.account_id] = Track(self._all.floor)
            for one in (self._all, track):
                one.add(event)
            woken.add(track)
            self._kept_bytes += event.size
        while len(self._all) > EVENTS_KEPT_MAX or self._kept_bytes > EVENTS_BYTES_MAX:
            self._drop_oldest()
        self.head = found[-1].place
        for track in woken:
            track.wake()

    def _drop_oldest(self) -> None:
        oldest = self._all.drop_oldest()
        self._kept_bytes -= oldest.size
        track = self._of[oldest.account_id]
        track.drop_oldest()
        if not len(track) and not track.watchers:
            del self._of[oldest.account_id]


def _end_if_cancelled() -> None:
    """Take up a cancellation whose place another error took, as the connection was being closed."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


_PAST = {
    "RESUME_TOKEN_EXPIRED": "the token is older than the history that is kept",
    "RESUME_TOKEN_FOREIGN": "the token is of another history: another database's, or a restored"
    " or failed-over one's",
}


def past(reason: str) -> PastError:
    """A token, or a stream, that can't be gone on from."""
    return PastError(reason, f"{_PAST[reason]}: start with the initial state")
