"""Waiting for so long and no longer, and not after a cancellation."""

from __future__ import annotations

import asyncio

import pytest

from elastic_kernels.patience import happens, within


@pytest.mark.parametrize("steps", range(5))
@pytest.mark.parametrize("waits_for", ["an event", "work"])
async def test_a_cancellation_is_not_lost_to_news_that_come_with_it(waits_for: str, steps: int) -> None:
    event = asyncio.Event()
    waiting = asyncio.ensure_future(happens(event, 10) if waits_for == "an event" else within(event.wait(), 10))
    await asyncio.sleep(0.01)
    event.set()
    for _ in range(steps):
        await asyncio.sleep(0)
    was_cancelled = waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled() == was_cancelled


async def test_an_event_that_happens_and_one_that_does_not() -> None:
    event = asyncio.Event()
    assert not await happens(event, 0.01)
    asyncio.get_running_loop().call_later(0.01, event.set)
    assert await happens(event, None)
    assert await happens(event, 0)


async def test_work_that_is_done_fails_or_takes_too_long() -> None:
    ended: list[str] = []

    async def long() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("long")

    async def fails() -> None:
        raise LookupError("it fails")

    assert await within(asyncio.sleep(0, "done"), 10) == "done"
    with pytest.raises(LookupError, match="it fails"):
        await within(fails(), 10)
    with pytest.raises(asyncio.TimeoutError):
        await within(long(), 0.01)
    assert ended == ["long"]
