"""The bound of a block's time: as `asyncio.timeout`, which it stands for."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest

from trunkline.bounds import TICK_SECONDS, Bounds

SOON, LATER, NEVER = 0.01, 1.5 * TICK_SECONDS, 60.0


@asynccontextmanager
async def ours(seconds: float) -> AsyncIterator[None]:
    with Bounds().within(seconds):
        yield


@pytest.fixture(params=[ours, asyncio.timeout], ids=["ours", "asyncio"])
def bound(request: pytest.FixtureRequest) -> Any:
    return request.param


async def test_block_in_time_is_left_alone(bound: Any) -> None:
    async with bound(NEVER):
        await asyncio.sleep(0)
    await asyncio.sleep(0)


@pytest.mark.parametrize("seconds", [SOON, LATER])
async def test_block_that_is_over_is_not_ended_later(bound: Any, seconds: float) -> None:
    async with bound(seconds):
        pass
    await asyncio.sleep(3 * LATER)


async def test_blocks_that_share_a_timer_end_each_when_it_is_to() -> None:
    bounds = Bounds()

    async def lasts(seconds: float) -> float:
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError), bounds.within(seconds):
            await asyncio.sleep(NEVER)
        return asyncio.get_running_loop().time() - began

    asked = [LATER, SOON, 3 * LATER, 2 * LATER, LATER]
    for told, took in zip(asked, await asyncio.gather(*map(lasts, asked)), strict=True):
        assert took >= 0.9 * told
    with bounds.within(NEVER):  # the timer is at rest by now, and begins again
        await asyncio.sleep(2 * TICK_SECONDS)
    assert await lasts(LATER) >= 0.9 * LATER


@pytest.mark.parametrize("seconds", [-1, 0, SOON, LATER])
async def test_block_is_ended_by_timeout_error(bound: Any, seconds: float) -> None:
    with pytest.raises(TimeoutError):
        async with bound(seconds):
            await asyncio.sleep(NEVER)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_what_the_block_raises_is_what_is_told(bound: Any) -> None:
    with pytest.raises(ValueError, match="theirs"):
        async with bound(NEVER):
            raise ValueError("theirs")


async def test_what_the_block_raises_on_its_way_out_is_what_is_told(bound: Any) -> None:
    async def work() -> None:
        async with bound(SOON):
            try:
                await asyncio.sleep(NEVER)
            except asyncio.CancelledError:
                raise ValueError("on the way out") from None

    with pytest.raises(ValueError, match="on the way out"):
        await work()


async def test_cancel_from_outside_stays_a_cancel(bound: Any) -> None:
    entered = asyncio.Event()

    async def work() -> None:
        async with bound(SOON):
            entered.set()
            await asyncio.sleep(NEVER)

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancel_beside_the_bound_stays_a_cancel(bound: Any) -> None:
    async def work() -> None:
        async with bound(0):
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_later(SOON, task.cancel)
            try:
                await asyncio.sleep(NEVER)
            except asyncio.CancelledError:
                await asyncio.sleep(NEVER)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(work())


async def test_block_that_is_over_is_not_ended_by_hand() -> None:
    with Bounds().within(NEVER) as bound:
        pass
    bound.end()
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_timer_keeps_nothing_of_whose_block_began_it() -> None:
    class Secret:
        pass

    bounds, held = Bounds(), ContextVar[Secret]("held")

    async def first() -> weakref.ref[Secret]:
        secret = Secret()
        held.set(secret)
        with bounds.within(NEVER):
            await asyncio.sleep(0)
        return weakref.ref(secret)

    with bounds.within(NEVER) as _:
        pass
    await asyncio.sleep(2 * TICK_SECONDS)  # the timer rests
    seen = await asyncio.create_task(first())
    with bounds.within(NEVER):
        await asyncio.sleep(0)
        gc.collect()
        assert seen() is None
