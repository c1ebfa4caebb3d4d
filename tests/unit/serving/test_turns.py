"""Turns of requests: in order, one at a time, and refused at once where the wait would be too long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from serving.turns import RefusedError, Turns


@asynccontextmanager
async def turn(turns: Turns, patience_s: float = 1.0) -> AsyncIterator[None]:
    await turns.take(patience_s)
    try:
        yield
    finally:
        turns.end()


def test_one_at_a_time_in_the_order_in_which_they_came() -> None:
    turns, seen = Turns(), list[tuple[int, int]]()

    async def request(number: int) -> None:
        async with turn(turns):
            seen.append((number, len(seen)))

    async def run() -> None:
        await asyncio.gather(*(request(number) for number in range(20)))
        await request(20)

    asyncio.run(run())
    assert seen == [(number, number) for number in range(21)]


def test_what_comes_while_one_is_computed_is_refused_before_the_next_one_begins() -> None:
    turns, events = Turns(), list[str]()
    turns.mean_s = 1.0

    async def request(name: str, patience_s: float) -> None:
        try:
            async with turn(turns, patience_s):
                events.append(name)
                time.sleep(0.01)
                if name == "first":  # which the loop reads when this one has ended
                    loop.call_soon(lambda: tasks.append(loop.create_task(request("late", 0.5))))
        except RefusedError as error:
            assert (error.status, error.retry_s) == (503, 1)
            events.append(f"{name} refused")

    async def run() -> None:
        await asyncio.gather(request("first", 0.5), request("second", 1.5), request("third", 2.5))
        await asyncio.gather(*tasks)

    loop, tasks = asyncio.new_event_loop(), list[asyncio.Task[None]]()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(run())
    assert events == ["first", "late refused", "second", "third"]


def test_a_request_that_is_cancelled_passes_its_turn_on() -> None:
    """Also where its turn has come, but it has not begun."""
    turns = Turns()

    async def request() -> str:
        async with turn(turns):
            return "answered"

    async def run(steps: int) -> None:
        first, second, third = (asyncio.create_task(request()) for _ in range(3))
        for _ in range(steps):
            await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        assert await asyncio.wait_for(third, 5) == "answered"
        assert await asyncio.wait_for(request(), 5) == "answered"

    for steps in range(8):
        asyncio.run(run(steps))


def test_a_request_that_fails_passes_its_turn_on() -> None:
    turns = Turns()

    async def run() -> None:
        with pytest.raises(ZeroDivisionError):
            async with turn(turns):
                raise ZeroDivisionError
        async with turn(turns):
            pass

    asyncio.run(asyncio.wait_for(run(), 5))
