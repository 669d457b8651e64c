"""What is being done about kernels: one thing at a time for each. What failed is said once, and tried again a while later."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

log = logging.getLogger(__name__)

_TRIED_AGAIN: Final = 15.0


class Works:
    """Belongs to one event loop, on which all methods are called."""

    def __init__(self, done: Callable[[str], None]) -> None:
        """``done`` is called with the id of a kernel about which something has been done, or has failed."""
        self._done = done
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._failed: dict[str, tuple[str, float]] = {}
        """Why, and when it is tried again (the loop's time)."""

    def may_begin(self, kernel_id: str) -> bool:
        """Tell whether nothing is being done about a kernel, nor has failed a moment ago."""
        return kernel_id not in self._tasks and self._failed.get(kernel_id, ("", 0.0))[1] <= asyncio.get_running_loop().time()

    def begin(self, kernel_id: str, work: Coroutine[Any, Any, Any]) -> None:
        """Do something about a kernel that may begin."""
        task = asyncio.get_running_loop().create_task(work, name=f"kernel {kernel_id}")
        self._tasks[kernel_id] = task

        def done(finished: asyncio.Task[Any]) -> None:
            if self._tasks.get(kernel_id) is finished:
                del self._tasks[kernel_id]
            if not finished.cancelled() and (error := finished.exception()) is not None:
                self._complain(kernel_id, error)
            self._done(kernel_id)

        task.add_done_callback(done)

    def is_open(self, kernel_id: str) -> bool:
        """Tell whether something is being done about a kernel, or will be tried again."""
        return kernel_id in self._tasks or kernel_id in self._failed

    def forgive(self, kernel_id: str) -> None:
        """Forget that something failed: it has succeeded, or there is no such kernel any more."""
        self._failed.pop(kernel_id, None)

    async def settled(self, concerns: Callable[[str], bool], seconds: float) -> None:
        """Return once what is being done about the kernels that this ``concerns`` has been done, or when ``seconds`` are over."""
        tasks = [task for kernel_id, task in self._tasks.items() if concerns(kernel_id)]
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def _complain(self, kernel_id: str, error: BaseException) -> None:
        said = f"{type(error).__name__}: {getattr(error, 'log_message', None) or error}"
        if self._failed.get(kernel_id, ("", 0.0))[0] != said:
            log.warning("Kernel %s cannot be served so far: %s", kernel_id, said)
        self._failed[kernel_id] = (said, asyncio.get_running_loop().time() + _TRIED_AGAIN)
