"""One launch, 5 and 20 at once, to the first output: this project, stock Enterprise Gateway, and the floor, in one run.

    KUBECONFIG=… python -m bench.launch [--counts 1 5 20] [--rounds 3] [--no-stock] [--no-warm]

All on the same cluster, with the same image for this project and the floor; stock Enterprise Gateway needs its own launcher in
the image. A second gateway of this project has as many kernels waiting as are started at once. Prints ratios of medians to the
floor, which is what a machine of another speed has in common with this one, and writes bench/results/launch.json; and, where a
kernel came long after the others of its round, its gateway's log beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench import figures, floor, stock
from elastic_kernels import names
from elastic_kernels.cluster import Client
from elastic_kernels.warm.waiting import is_ready
from tests.conftest import profile
from tests.gateway import PLUGGED_IN, Gateway, running_gateway, until, write_kernelspecs

Measure = Callable[[int], Awaitable[list[float]]]
# Seconds by which a kernel comes after the middle one of its round, if something went wrong with it.
_LATE: Final = 10.0
# Seconds after which nothing comes of one that runs.
_SILENT: Final = 120.0


@dataclass(frozen=True)
class Start:
    """What came of one start, in seconds since it was asked for; infinity for what never came."""

    kernel_id: str = ""
    answered: float = math.inf
    """When the gateway said that it runs."""
    output: float = math.inf
    """When its first output came."""


async def first_outputs(gateway: Gateway, kernel: str, count: int) -> list[float]:
    """Start ``count`` kernels at once; return the seconds to the first output of each, infinity for those that never came."""

    async def one() -> Start:
        begin = time.monotonic()
        status, body = await gateway.request("POST", "/api/kernels", {"name": kernel, "env": {"KERNEL_USERNAME": "ana"}})
        if status != 201:
            return Start()
        answered = time.monotonic() - begin
        # a gateway, too, closes the connection to one that says nothing
        with suppress(asyncio.TimeoutError, ConnectionError):
            async with gateway.channels(body["id"]) as channels:
                await asyncio.wait_for(channels.begin("pass"), _SILENT)
                return Start(body["id"], answered, time.monotonic() - begin)
        return Start(body["id"], answered)

    starts = await asyncio.gather(*(one() for _ in range(count)))
    for start in late(starts):
        kept = figures.keep(f"late-{start.kernel_id}.log", gateway.log)
        print(f"late: {start.kernel_id} ran after {start.answered:.2f} s, first output after {start.output:.2f} s; {kept}", flush=True)
    await asyncio.gather(*(gateway.request("DELETE", f"/api/kernels/{start.kernel_id}") for start in starts if start.kernel_id))
    return [start.output for start in starts]


def late(starts: Sequence[Start]) -> list[Start]:
    """Return the starts that ran, and whose output came long after that of most, or never."""
    bound = statistics.median(start.output for start in starts) + _LATE if starts else 0.0
    return [start for start in starts if start.kernel_id and (math.isinf(start.output) or start.output > bound)]


@asynccontextmanager
async def own_namespace(kubeconfig: str) -> AsyncIterator[tuple[Client, str]]:
    """Yield a client of the cluster and the name of a new namespace, which is deleted afterwards."""
    api = await Client.connect(kubeconfig=kubeconfig)
    namespace = f"bench-{secrets.token_hex(3)}"
    try:
        await api.create("namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "namespace": ""}})
        try:
            yield api, namespace
        finally:
            await api.delete("namespaces", "", namespace)
    finally:
        await api.close()


@asynccontextmanager
async def our_gateway(directory: Path, kubeconfig: str, namespace: str) -> AsyncIterator[Gateway]:
    """Run this project, with the profile ``elastic``."""
    write_kernelspecs(directory, {"elastic": profile("elastic", cpu={"request": "10m"}, memory={"request": "64Mi"})})
    # as where one gateway is all there is
    environment = {"KUBECONFIG": kubeconfig, "ELASTIC_KERNELS_NAMESPACE": namespace, "ELASTIC_KERNELS_ANNOUNCE_ADDRESS": "auto"}
    async with running_gateway(directory, environment, configuration=PLUGGED_IN) as gateway:
        yield gateway


@asynccontextmanager
async def ours(directory: Path, kubeconfig: str, namespace: str) -> AsyncIterator[Measure]:
    """Yield what measures this project."""
    async with our_gateway(directory, kubeconfig, namespace) as gateway:
        yield lambda count: first_outputs(gateway, "elastic", count)


@asynccontextmanager
async def warm(most: int, directory: Path, kubeconfig: str, namespace: str) -> AsyncIterator[Measure]:
    """Yield what measures this project where ``most`` kernels wait, in a deployment of its own."""
    own = profile("elastic", cpu={"request": "10m"}, memory={"request": "64Mi"}, warm={"kernels": most})
    write_kernelspecs(directory, {"elastic": own})
    environment = {"KUBECONFIG": kubeconfig, "ELASTIC_KERNELS_NAMESPACE": namespace, "ELASTIC_KERNELS_DEPLOYMENT": "warm"}
    async with running_gateway(directory, environment, configuration=PLUGGED_IN) as gateway:
        yield lambda count: first_outputs(gateway, "elastic", count)


@asynccontextmanager
async def theirs(directory: Path, kubeconfig: str, namespace: str) -> AsyncIterator[Measure]:
    """Yield what measures stock Enterprise Gateway."""
    async with stock.on_kubernetes(directory, kubeconfig, namespace) as gateway:
        yield lambda count: first_outputs(gateway, stock.NAME, count)


async def run(counts: list[int], rounds: int, with_stock: bool, with_warm: bool) -> dict[str, dict[int, list[float]]]:
    """Measure all contestants in turn, so that what else the machine does befalls each of them; in a namespace of their own."""
    kubeconfig = os.environ["KUBECONFIG"]
    async with AsyncExitStack() as stack:
        api, namespace = await stack.enter_async_context(own_namespace(kubeconfig))
        contestants: dict[str, Measure] = {"floor": lambda count: floor.measure(count, namespace, floor.IMAGE)}
        waiting = max(counts) if with_warm else 0

        def ours_warm(*arguments: Any) -> AbstractAsyncContextManager[Measure]:
            return warm(waiting, *arguments)

        others = {**({"warm": ours_warm} if with_warm else {}), **({"stock": theirs} if with_stock else {})}
        for name, contestant in {"ours": ours, **others}.items():
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            contestants[name] = await stack.enter_async_context(contestant(directory, kubeconfig, namespace))
            await contestants[name](1)  # the first launch of a process pays for connections and imports
        results: dict[str, dict[int, list[float]]] = {name: {count: [] for count in counts} for name in contestants}
        for count in counts:
            for _ in range(rounds):
                for name, measure in contestants.items():
                    await until(lambda: _quiet(api, namespace, waiting), "the pods of the round before to go", seconds=300)
                    results[name][count] += await measure(count)
                    print(f"{count:3} at once, {name}: {figures.spread(results[name][count])} s", flush=True)
        return results


async def _quiet(api: Client, namespace: str, waiting: int) -> bool:
    """Tell whether no kernel is left, and as many wait as are to."""
    pods = (await api.list("pods", namespace))["items"]
    return len(pods) == waiting and all(names.WARM in (pod["metadata"].get("labels") or {}) and is_ready(pod) for pod in pods)


def table(results: dict[str, dict[int, list[float]]]) -> str:
    """Return seconds, and the ratios of medians to the floor's, a line for each count."""
    rows = [["seconds to the first output", *results, *(f"{name} : floor" for name in results if name != "floor")]]
    for count, base in results["floor"].items():
        seconds = [figures.spread(results[name][count]) for name in results]
        ratios = [figures.ratio(results[name][count], base) for name in results if name != "floor"]
        rows.append([f"{count} at once", *seconds, *ratios])
    return figures.aligned(rows)


def main(arguments: list[str]) -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Launches to the first output, as ratios to the floor, on the cluster of KUBECONFIG.")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-stock", action="store_true")
    parser.add_argument("--no-warm", action="store_true")
    given = parser.parse_args(arguments)
    results: dict[str, Any] = asyncio.run(run(given.counts, given.rounds, not given.no_stock, not given.no_warm))
    print(table(results))
    figures.save("launch", results)


if __name__ == "__main__":
    main(sys.argv[1:])
