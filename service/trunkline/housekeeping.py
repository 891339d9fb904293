"""Forgets what is old, a little at a time: answers kept for retries, and history."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from trunkline.errors import TrunklineError
from trunkline.store.history import HistoryStore
from trunkline.store.mutations import Mutations

log = logging.getLogger(__name__)

ROWS_MAX = 500
PAUSE_SECONDS = 0.1
IDLE_SECONDS = 60.0


class Housekeeping:
    """What every server does beside its calls; several servers get out of each other's way.

    Args:
        mutations: keeps answers for retries.
        history: keeps revisions.
        hours: how long answers are kept.
        days: how long revisions are kept after they were replaced.
    """

    def __init__(self, mutations: Mutations, history: HistoryStore, hours: int, days: int) -> None:
        self._mutations = mutations
        self._history = history
        self._hours = hours
        self._days = days

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Forget while the block runs."""
        task = asyncio.create_task(self._forget_forever())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def once(self) -> int:
        """One small batch of each; the larger one's rows."""
        answers = await self._mutations.forget(self._hours, ROWS_MAX)
        return max(answers, await self._history.forget(self._days, ROWS_MAX))

    async def _forget_forever(self) -> None:
        while True:
            forgotten = 0
            try:
                forgotten = await self.once()
            except TrunklineError as error:
                log.debug("not_forgotten", extra={"reason": error.reason})
            except Exception:
                log.exception("housekeeping_failed")
            await asyncio.sleep(PAUSE_SECONDS if forgotten >= ROWS_MAX else IDLE_SECONDS)
