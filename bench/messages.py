"""What a gateway adds to a kernel's messages: this project, stock Enterprise Gateway, and a direct ZeroMQ connection.

The kernels are processes of this machine, with one and the same ipykernel. The direct connection goes to the very kernel that our
gateway serves, from a thread that does nothing else; the gateways' clients speak the protocol that JupyterLab's server speaks with
a gateway. Each measurement is made by all in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from jupyter_client.session import Session
from zmq.constants import PollEvent, SocketType
from zmq.sugar.context import Context
from zmq.sugar.poll import Poller

from bench import figures, stock
from elastic_kernels.embedded import EmbeddedCluster
from elastic_kernels.record import connection_key
from tests.conftest import profile
from tests.gateway import PLUGGED_IN, Channels, Gateway, running_gateway, write_kernelspecs

SECONDS: Final = 600
NAME: Final = "elastic"

Run = Callable[[str], Awaitable[None]]
"""Runs a cell and returns when its reply, and all that it published, has arrived."""


class Direct:
    """A client with nothing in between. Its methods block."""

    def __init__(self, connection: dict[str, Any]) -> None:
        self._context = Context()
        self._session = Session(key=connection["key"].encode(), signature_scheme=connection["signature_scheme"])
        self._shell, self._iopub = self._context.socket(SocketType.DEALER), self._context.socket(SocketType.SUB)
        self._iopub.subscribe(b"")
        # no message is to be lost because this side is slow
        self._iopub.rcvhwm = 0
        for socket, channel in ((self._shell, "shell"), (self._iopub, "iopub")):
            socket.linger = 0
            socket.connect(f"tcp://{connection['ip']}:{connection[f'{channel}_port']}")
        self._poller = Poller()
        for socket in (self._shell, self._iopub):
            self._poller.register(socket, PollEvent.POLLIN)
        # what is published before the subscription has arrived is lost
        while not self._iopub.poll(100):
            self._session.send(self._shell, "kernel_info_request")

    def run(self, code: str) -> None:
        """Run a cell to its end."""
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        asked = self._session.send(self._shell, "execute_request", content)["header"]["msg_id"]
        replied = idle = False
        while not (replied and idle):
            for socket, _ in self._poller.poll():
                _, (signature, *parts) = self._session.feed_identities(socket.recv_multipart())
                if self._session.sign(parts[:4]) != signature:
                    raise RuntimeError("a message is not the kernel's")
                # as much work as a websocket's client has, and no more
                header, parent, _, content = map(json.loads, parts[:4])
                if parent.get("msg_id") != asked:
                    continue
                replied = replied or header["msg_type"] == "execute_reply"
                idle = idle or (header["msg_type"] == "status" and content["execution_state"] == "idle")

    def close(self) -> None:
        """Close the connection."""
        self._context.destroy(linger=0)


async def _direct(stack: AsyncExitStack, cluster: EmbeddedCluster, kernel_id: str) -> Run:
    (pod,) = (pod for pod in cluster.store.list("pods", "default") if pod["metadata"]["labels"]["elastic-kernels/kernel-id"] == kernel_id)
    owner = pod["metadata"]["ownerReferences"][0]["name"]
    file = cluster.store.get("secrets", "default", owner)["data"][connection_key(0)]
    connection = {**json.loads(base64.b64decode(file)), "ip": pod["status"]["podIP"]}
    client = await asyncio.to_thread(Direct, connection)
    stack.callback(client.close)
    return lambda code: asyncio.to_thread(client.run, code)


async def _through(stack: AsyncExitStack, gateway: Gateway, kernel_id: str) -> Run:
    channels: Channels = await stack.enter_async_context(gateway.channels(kernel_id))

    async def run(code: str) -> None:
        reply = await channels.execute(code, seconds=SECONDS)
        if reply.status != "ok":
            raise RuntimeError(f"a cell failed: {reply.content}")

    return run


@asynccontextmanager
async def contestants(kernels: int, with_stock: bool) -> AsyncIterator[dict[str, list[Run]]]:
    """Yield, by name, what runs cells in each of so many kernels."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        cluster = await stack.enter_async_context(EmbeddedCluster(directory / "cluster", environment=environment))
        (directory / "ours").mkdir()
        write_kernelspecs(directory / "ours", {NAME: profile(NAME, launch_timeout=120)})
        own = {"KUBECONFIG": str(cluster.kubeconfig), "ELASTIC_KERNELS_NAMESPACE": "default"}
        ours = await stack.enter_async_context(running_gateway(directory / "ours", own, configuration=PLUGGED_IN))
        ids = await _start(ours, NAME, kernels)
        result = {
            "direct": [await _direct(stack, cluster, kernel) for kernel in ids],
            "ours": [await _through(stack, ours, kernel) for kernel in ids],
        }
        if with_stock:
            (directory / "stock").mkdir()
            theirs = await stack.enter_async_context(stock.on_this_machine(directory / "stock"))
            result["stock"] = [await _through(stack, theirs, kernel) for kernel in await _start(theirs, stock.NAME, kernels)]
        yield result


async def _start(gateway: Gateway, name: str, count: int) -> list[str]:
    """Start kernels, a few at a time: how fast that goes is another bench's question."""
    gate = asyncio.Semaphore(2)

    async def one() -> str:
        async with gate:
            return await gateway.start(name, KERNEL_LAUNCH_TIMEOUT="120")

    return await asyncio.gather(*(one() for _ in range(count)))


async def timed(work: Awaitable[Any]) -> float:
    """Return how long it takes."""
    begin = time.monotonic()
    await work
    return time.monotonic() - begin


def _display(megabytes: int) -> str:
    return f"from IPython.display import display; display({{'text/plain': 'x' * {megabytes} * 10**6}}, raw=True)"


def _print(count: int) -> str:
    return f"for i in range({count}): print(i, flush=True)"


async def run(kernels: int, rounds: int, sizes: list[int], prints: int, with_stock: bool) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each measurement, by what it is and by who made it."""
    results: dict[str, dict[str, list[float]]] = {}

    async def each(what: str, measure: Callable[[list[Run]], Awaitable[list[float]]], times: int = rounds) -> None:
        results[what] = {name: [] for name in runs}
        for _ in range(times):
            for name in runs:
                results[what][name] += await measure(runs[name])
        said = ", ".join(f"{name} {figures.spread(seconds, 1e3, 1)}" for name, seconds in results[what].items())
        print(f"{what}, ms: {said}", flush=True)

    async def empty(kernels: list[Run]) -> list[float]:
        return [await timed(kernels[0]("pass")) for _ in range(50)]

    async with contestants(kernels, with_stock) as runs:
        for name in runs:
            await runs[name][0]("pass")
        await each("an empty cell", empty)
        await each(f"{prints} prints", lambda kernels: _one(kernels[0](_print(prints))))
        for size in sizes:
            await each(f"an output of {size} MB", lambda kernels, size=size: _one(kernels[0](_display(size))))  # type: ignore[misc]
        few = prints // 10
        await each(f"{few} prints of each of {kernels} kernels", lambda all_: _one(asyncio.gather(*(run(_print(few)) for run in all_))))
    return results


async def _one(work: Awaitable[Any]) -> list[float]:
    return [await timed(work)]


def table(results: dict[str, dict[str, list[float]]]) -> str:
    """Return milliseconds, and the ratios of medians to the direct connection's, a line for each measurement."""
    names = list(next(iter(results.values())))
    rows = [["milliseconds", *names, *(f"{name} : direct" for name in names if name != "direct")]]
    for what, by_name in results.items():
        seconds = [figures.spread(by_name[name], 1e3, 1) for name in names]
        rows.append([what, *seconds, *(figures.ratio(by_name[name], by_name["direct"]) for name in names if name != "direct")])
    return figures.aligned(rows)


def main(arguments: list[str]) -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Messages through a gateway, as ratios to a direct connection, on this machine.")
    parser.add_argument("--kernels", type=int, default=50, help="that print at once (default: %(default)s)")
    # what takes a tenth of a second is easily disturbed: of three, the middle one may be
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 20, 200], help="of outputs, in MB (default: 1 20 200)")
    parser.add_argument("--prints", type=int, default=3000)
    parser.add_argument("--no-stock", action="store_true")
    given = parser.parse_args(arguments)
    results = asyncio.run(run(given.kernels, given.rounds, given.sizes, given.prints, not given.no_stock))
    print(table(results))
    figures.save("messages", results)


if __name__ == "__main__":
    main(sys.argv[1:])
