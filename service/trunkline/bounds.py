"""How long blocks may take."""

import asyncio
import contextvars
import time

TICK_SECONDS = 0.02
"""How much later than told a block may be ended, unless it is to last less than that."""


class Bounds:
    """Ends blocks after some seconds by TimeoutError, as `asyncio.timeout` does.

    Those that are open share one timer, which looks at all of them. A timer for each costs more
    than much of what is done within, and hardly a block lasts until its end.
    """

    __slots__ = ("_open", "_timer")

    def __init__(self) -> None:
        self._open: set[Bound] = set()
        self._timer: asyncio.TimerHandle | None = None

    def within(self, seconds: float) -> "Bound":
        """The bound of a block of the current task, which begins now."""
        if self._timer is None:
            self._tick()
        return Bound(self._open, seconds)

    def _tick(self) -> None:
        now = time.monotonic()
        for bound in [b for b in self._open if b.until <= now]:
            bound.end()
        armed = self._timer is None or self._open
        self._timer = self._next() if armed else None

    def _next(self) -> asyncio.TimerHandle:
        # Not in the context of the call that comes first: its token would stay while there is load.
        loop, context = asyncio.get_running_loop(), contextvars.Context()
        return loop.call_later(TICK_SECONDS, self._tick, context=context)


class Bound:
    """One block's.

    Attributes:
        until: when it is over, by the monotonic clock.
    """

    __slots__ = ("_cancelling", "_open", "_passed", "_task", "_timer", "until")

    def __init__(self, among: "set[Bound]", seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._passed = False
        self._open = among
        self.until = time.monotonic() + seconds
        self._timer: asyncio.TimerHandle | None = None
        if seconds < TICK_SECONDS:
            self._timer = asyncio.get_running_loop().call_later(seconds, self.end)

    def __enter__(self) -> "Bound":
        self._open.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._open.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        passed, self._passed = self._passed, True  # who ends it from now on ends nothing
        if not passed:
            return
        others = self._task.uncancel() > self._cancelling
        if kind is not None and issubclass(kind, asyncio.CancelledError) and not others:
            raise TimeoutError

    def end(self) -> None:
        """End the block now, if it is not over."""
        if not self._passed:
            self._passed = True
            self._task.cancel()
