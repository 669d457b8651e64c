"""Waiting for so long and no longer, and not after a cancellation.

``asyncio.wait_for`` forgets a cancellation that comes together with what it waits for, before Python 3.12: a start that was cancelled
while news of its pod arrived would go on. ``asyncio.wait`` does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def happens(event: asyncio.Event, seconds: float | None) -> bool:
    """Return whether an event has been set when ``seconds`` are over (None for no end), or as soon as it is."""
    if not event.is_set():
        waiting = asyncio.ensure_future(event.wait())
        try:
            await asyncio.wait({waiting}, timeout=seconds)
        finally:
            waiting.cancel()
    return event.is_set()


async def within(work: Coroutine[Any, Any, T], seconds: float | None) -> T:
    """Carry ``work`` out and return its result. Raises what it raises, and asyncio.TimeoutError once it is ended after ``seconds``."""
    task = asyncio.ensure_future(work)
    try:
        if not (await asyncio.wait({task}, timeout=seconds))[0]:
            raise asyncio.TimeoutError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
