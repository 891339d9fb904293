"""How long a block may take."""

import asyncio


class Bound:
    """Ends a block after some seconds by TimeoutError, as `asyncio.timeout` does.

    That one can be moved, and is entered and left in coroutines: it costs three times as much.
    """

    __slots__ = ("_cancelling", "_passed", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._passed = False
        self._timer = asyncio.get_running_loop().call_later(seconds, self.end)

    def __enter__(self) -> "Bound":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if not self._passed:
            return
        others = self._task.uncancel() > self._cancelling
        if kind is not None and issubclass(kind, asyncio.CancelledError) and not others:
            raise TimeoutError

    def end(self) -> None:
        """End the block now."""
        if not self._passed:
            self._passed = True
            self._task.cancel()
