"""What an attempt waits for, and who does not wait any more."""

from __future__ import annotations

import asyncio

import pytest

from elastic_kernels.attempt import _wait


@pytest.mark.parametrize("steps", range(5))
async def test_a_cancellation_is_not_lost_to_news_that_come_with_it(steps: int) -> None:
    event = asyncio.Event()
    waiting = asyncio.ensure_future(_wait(event, 10))
    await asyncio.sleep(0.01)
    event.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    was_cancelled = waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled() == was_cancelled


async def test_it_is_over_in_time() -> None:
    await asyncio.wait_for(_wait(asyncio.Event(), 0.01), 10)
