"""Long work in turns: what else there is to do goes in between, and nothing is lost."""

import asyncio
from collections.abc import Iterator

from trunkline.turns import TURN_ITEMS, in_turns, turn

ITEMS = 10 * TURN_ITEMS


async def test_others_go_in_between() -> None:
    seen: list[int] = []
    made: list[int] = []

    async def other() -> None:
        while len(made) < ITEMS:
            seen.append(len(made))
            await asyncio.sleep(0)

    def items() -> Iterator[int]:
        for number in range(ITEMS):
            made.append(number)
            yield number

    beside = asyncio.create_task(other())
    assert await in_turns(items()) == list(range(ITEMS))
    await beside
    assert seen == [*range(TURN_ITEMS, ITEMS, TURN_ITEMS)]


async def test_few_items_are_one_turn() -> None:
    others: list[int] = []
    asyncio.get_running_loop().call_soon(others.append, 1)
    for place in range(TURN_ITEMS):
        await turn(place)
    assert others == []
    await turn(TURN_ITEMS)
    assert others == [1]
