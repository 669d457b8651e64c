"""One local process in place of a container: its start, its end, its log. Without a thread for each."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


class Process:
    """A running command, leader of a process group of its own."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], directory: Path, log: Path) -> None:
        """Start it. Raises OSError if the command cannot be run."""
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_the_owner(),
            )

    async def wait(self) -> int:
        """Return its exit code, 128 plus the number for a signal, as a container runtime does."""
        if sys.platform == "linux" and self._process.poll() is None:
            loop = asyncio.get_running_loop()
            ended = loop.create_future()
            descriptor = os.pidfd_open(self._process.pid)
            loop.add_reader(descriptor, lambda: None if ended.done() else ended.set_result(None))
            try:
                await ended
            finally:
                loop.remove_reader(descriptor)
                os.close(descriptor)
        if self._process.poll() is None:
            await asyncio.get_running_loop().run_in_executor(None, self._process.wait)
        code = self._process.wait()
        return 128 - code if code < 0 else code

    def signal(self, number: int) -> None:
        """Send a signal to the process; one that has ended gets none."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """Kill the process and all that it started in its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _die_with_the_owner() -> Callable[[], None] | None:
    """Return what makes a child die with this process however that ends, where the operating system can do it."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    return ask
