"""A server as a child process: its start, how it is known to be ready, its end, and what its log says if it ends by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp

from elastic_kernels.errors import ConfigurationError, ElasticKernelsError

HOST: Final = "127.0.0.1"
_LOG_LINES: Final = 15
_PROBE_PAUSE: Final = 0.05
_PROBE_SECONDS: Final = 5.0


class ServerError(ElasticKernelsError):
    """A server did not start, or ended by itself. ``detail`` is the end of its log, several lines of it."""


class Server:
    """A running child process that serves HTTP on this machine."""

    def __init__(self, name: str, url: str, log: Path, process: asyncio.subprocess.Process) -> None:
        self.url = url
        self._name = name
        self._log = log
        self._process = process

    async def ready(self, path: str, headers: Mapping[str, str], seconds: float) -> Any:
        """Return the JSON that ``path`` answers as soon as it does. Raises ServerError if the server ends before, or is too slow."""
        asking = asyncio.ensure_future(_answer(self.url + path, headers))
        ending = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait({asking, ending}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if asking.done():
                return asking.result()
            if ending.done():
                raise self._ended()
            raise ServerError(f"{self._name} did not answer at {self.url} within {seconds:g} seconds.", detail=self._last_words())
        finally:
            for task in (asking, ending):
                task.cancel()

    async def lives(self) -> None:
        """Return never: raises ServerError once the server has ended by itself."""
        await self._process.wait()
        raise self._ended()

    async def end(self, seconds: float) -> None:
        """End it, and whatever it started, with SIGTERM and after ``seconds`` with SIGKILL."""
        try:
            if self._process.returncode is None:
                self._process.terminate()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._process.wait(), seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    def _ended(self) -> ServerError:
        return ServerError(f"{self._name} ended by itself (exit code {self._process.returncode}).", detail=self._last_words())

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])


@asynccontextmanager
async def serving(
    name: str, port: int, command: Sequence[str], environment: Mapping[str, str], log: Path, *, patience: float
) -> AsyncIterator[Server]:
    """Run ``command``, which serves on ``port``, for as long as the context lasts; then it has ``patience`` seconds to end."""
    with log.open("wb") as output:
        # a session of its own: Ctrl-C in the terminal is for the parent, which ends its children in order
        process = await asyncio.create_subprocess_exec(
            *command, env=dict(environment), stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    server = Server(name, f"http://{HOST}:{port}", log, process)
    try:
        yield server
    finally:
        await server.end(patience)


def choose_port(wanted: int) -> int:
    """Return ``wanted``, or a free port for 0. Raises ConfigurationError if it is taken or may not be used."""
    with socket.socket() as probe:
        # as servers do, so that a port which was left a moment ago counts as free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigurationError(
                f"The port {wanted} of {HOST} cannot be used ({reason}); name another with --port, or --port 0 for a free one."
            ) from error
        return int(probe.getsockname()[1])


async def _answer(url: str, headers: Mapping[str, str]) -> Any:
    timeout = aiohttp.ClientTimeout(total=_PROBE_SECONDS)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError, asyncio.TimeoutError, ValueError):
                async with session.get(url) as response:
                    if response.status == 200:
                        return await response.json()
            await asyncio.sleep(_PROBE_PAUSE)
