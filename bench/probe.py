"""Measures a process from within: how late its event loop is, its CPU time and its memory. In a gateway, or in a bare process.

A gateway gets it by two lines of its configuration file, ``from bench.probe import install`` and ``install(path)``. The bare process
(``python -m bench.probe path``) is the floor beside it: a loop that has nothing to do, on the same machine at the same time, which can
open the ZeroMQ sockets that a gateway opens for each kernel.

It answers lines on a Unix socket: ``late SECONDS`` watches the loop, ``rest SECONDS`` leaves it alone, and both say what the process
used meanwhile; ``used`` says what it used so far; ``connect ADDRESS SHELL IOPUB CONTROL …`` opens sockets to kernels.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tornado.ioloop import IOLoop
from zmq.constants import ContextOption, SocketType
from zmq.sugar.context import Context

_INTERVAL: Final = 0.005
_PAGE: Final = resource.getpagesize()
_sockets: list[Any] = []


def install(path: str) -> None:
    """Serve on the loop that this thread is about to run."""
    IOLoop.current().add_callback(serve, path)


async def serve(path: str) -> asyncio.AbstractServer:
    """Serve on the running loop."""
    return await asyncio.start_unix_server(_answer, path, limit=2**24)


async def ask(path: Path, *words: object) -> dict[str, Any]:
    """Ask the process that serves at ``path``."""
    reader, writer = await asyncio.open_unix_connection(str(path), limit=2**24)
    writer.write(" ".join(map(str, words)).encode() + b"\n")
    answer = await reader.readline()
    writer.close()
    return dict(json.loads(answer))


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    command, *words = (await reader.readline()).decode().split()
    if command == "connect":
        _connect(words)
    cpu, begin = time.process_time(), time.monotonic()
    late: list[float] = []
    own: list[float] = []
    if command == "late":
        late, own = await _lateness(float(words[0]))
    elif command == "rest":
        await asyncio.sleep(float(words[0]))
    seconds, used = time.monotonic() - begin, time.process_time()
    if command == "rest":
        gc.collect()
    facts = {"cpu": (used - cpu) / seconds, "used": used, "memory": memory(), **percentiles(late), "own": percentiles(own)}
    writer.write(json.dumps(facts).encode() + b"\n")
    await writer.drain()
    writer.close()


async def _lateness(seconds: float) -> tuple[list[float], list[float]]:
    """Return for each of many timers how late it came, in seconds, and how much of that the loop itself can have been at work.

    The rest is for the machine, which had other programs to run.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    late, own = [], []
    while (due := loop.time() + _INTERVAL) < end:
        busy = time.thread_time()
        await asyncio.sleep(_INTERVAL)
        late.append(max(0.0, loop.time() - due))
        own.append(min(late[-1], time.thread_time() - busy))
    return late, own


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile and maximum; nothing of nothing."""
    if not values:
        return {}
    # a loop that stood still has few; of two at least there are quantiles
    p99 = statistics.quantiles([*values, *values], n=100, method="inclusive")[98]
    return {"p50": statistics.median(values), "p99": p99, "max": max(values)}


def memory() -> int:
    """Return the resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _connect(words: list[str]) -> None:
    """Open what a gateway opens for each kernel: one socket that listens for its activity, and one to control it."""
    context = Context.instance()
    context.set(ContextOption.MAX_SOCKETS, 65535)
    for word in words:
        address, iopub, control = word.split(":")
        for kind, port in ((SocketType.SUB, iopub), (SocketType.DEALER, control)):
            socket = context.socket(kind)
            socket.linger = 0
            if kind == SocketType.SUB:
                socket.subscribe(b"")
            socket.connect(f"tcp://{address}:{port}")
            _sockets.append(socket)


async def _main(path: str) -> None:
    async with await serve(path) as server:
        # until whoever started it ends it
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
