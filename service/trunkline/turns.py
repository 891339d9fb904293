"""Long work in turns, so that what else a server is asked for goes in between."""

import asyncio
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")

TURN_ITEMS = 10
"""How many items are worked on before others have their turn: less than a millisecond's worth."""


async def turn(place: int) -> None:
    """Let others go first, before each item whose place begins another TURN_ITEMS of them.

    A batch of a hundred holds the event loop for some milliseconds at each step, and whoever calls
    beside several such batches would wait for all of them, at each step of theirs.
    """
    if place and place % TURN_ITEMS == 0:
        await asyncio.sleep(0)


async def in_turns(items: Iterable[T]) -> list[T]:
    """What is made one by one, in turns."""
    made = []
    for place, item in enumerate(items):
        made.append(item)
        await turn(place + 1)
    return made
