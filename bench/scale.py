"""The gateway itself, as the number of its kernels grows: its loop, its CPU, its memory, its requests to the API server.

The kernels are stand-ins on the embedded cluster, so that what is measured is the gateway's process and nothing else. Beside it runs
the floor: a process whose loop has nothing to do, with the ZeroMQ sockets that a gateway has open to as many kernels. What its loop
is late by is the machine's doing, and what it takes of memory is ZeroMQ's.

Half of what is measured is measured at rest, and half at work: cells run on websockets, and kernels start and end. Each is repeated
with an API server that takes 200 ms for each answer, with watches that are cut every five seconds, and with an API server that
hangs for ten seconds.

    KUBECONFIG=… python -m bench.scale --on-cluster

does the same with a real API server, whose requests can neither be counted nor made to fail from here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench import figures, probe, stock, unserved
from bench.crowd import Crowd, crowd, files_allowed
from elastic_kernels.record import PORT_SETS
from tests.conftest import profile
from tests.gateway import PLUGGED_IN, Gateway, running_gateway, until, write_kernelspecs

KERNELS_A_USER: Final = 10
# files that a gateway has open for each kernel: two ZeroMQ sockets of two files
FILES_A_KERNEL: Final = 4
AT_ONCE: Final = 10
# each start of stock's is a process of its own for a second or two, and it has a timer for each kernel that asks the API server
STOCK: Final = 100
STOCK_BURST: Final = 10
# the reaper looks after the pods of a burst for a while
SETTLING_SECONDS: Final = 5.0
API_LATENCY: Final = 0.2
CUT_SECONDS: Final = 5.0
HANG_SECONDS: Final = 10.0
CONDITIONS: Final = ("as it is", "API takes 200 ms", "watches cut every 5 s", "API hangs for 10 s")
# each JupyterLab server asks for its user's kernels once in so many seconds
LIST_SECONDS: Final = 10.0
_SETTINGS: Final = {
    "ELASTIC_KERNELS_IDENTITY": "header",
    "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.0/8",
    "EG_MAX_KERNELS": "100000",
    "ELASTIC_KERNELS_MAX_KERNELS_PER_CLASS": "interactive=100",
}


@dataclass(frozen=True)
class Kernel:
    """One of those that the gateway has."""

    identity: str
    headers: Mapping[str, str]
    """What its user's requests have."""


@dataclass
class Bench:
    """What is running."""

    crowd: Crowd
    gateway: Gateway
    inside: Path
    """Where the gateway's probe listens."""
    beside: Path
    """Where the floor's does."""
    kernels: list[Kernel]
    numbers: Iterator[int]
    name: str
    """What is started."""

    async def start(self) -> tuple[Kernel, float]:
        """Start a kernel for the next user, and return it and the seconds that it took."""
        begin = time.monotonic()
        user = f"user-{next(self.numbers) // KERNELS_A_USER}"
        headers, wish = {"X-Forwarded-User": user}, {"name": self.name, "env": {"KERNEL_USERNAME": user}}
        status, body = await self.gateway.request("POST", "/api/kernels", wish, headers=headers)
        if status != 201:
            raise RuntimeError(f"a kernel did not start: {body}")
        return Kernel(str(body["id"]), headers), time.monotonic() - begin

    async def grow(self, count: int) -> None:
        """Have ``count`` kernels in all."""
        before = set(self.crowd.addresses)
        gate = asyncio.Semaphore(AT_ONCE)

        async def one() -> Kernel:
            async with gate:
                return (await self.start())[0]

        self.kernels += await asyncio.gather(*(one() for _ in range(count - len(self.kernels))))
        shell, control = PORT_SETS[0], PORT_SETS[0] + 3
        new = [f"{address}:{shell + 1}:{control}" for address in self.crowd.addresses if address not in before]
        await probe.ask(self.beside, "connect", *new)

    async def burst(self, count: int) -> list[float]:
        """Return what each of ``count`` starts at once takes; they are gone again afterwards."""
        started = await asyncio.gather(*(self.start() for _ in range(count)))
        await self.end([kernel for kernel, _ in started])
        return [seconds for _, seconds in started]

    async def delete(self, kernel: Kernel) -> None:
        """End one, as its user does."""
        await self.gateway.request("DELETE", f"/api/kernels/{kernel.identity}", headers=kernel.headers)

    async def end(self, kernels: list[Kernel]) -> None:
        """End some."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(kernel: Kernel) -> None:
            async with gate:
                await self.delete(kernel)

        await asyncio.gather(*map(one, kernels))
        await until(lambda: len(self.crowd.addresses) == len(self.kernels), "the kernels of a burst to go")

    @asynccontextmanager
    async def work(self, cells: float, starts: float) -> AsyncIterator[None]:
        """Have so many cells a second run, and so many kernels a second come and go, and all users' servers ask for their kernels."""

        enough = asyncio.Event()

        async def execute() -> None:
            kernel = random.choice(self.kernels)
            async with self.gateway.channels(kernel.identity, headers=kernel.headers) as channels:
                while not enough.is_set():
                    await channels.execute("pass")
                    await _pause(enough, 10 / cells)

        async def come_and_go() -> None:
            while not enough.is_set():
                kernel, _ = await self.start()
                await self.delete(kernel)
                await _pause(enough, 4 / starts)

        async def look() -> None:
            users = len(self.kernels) / KERNELS_A_USER
            while not enough.is_set():
                await self.gateway.request("GET", "/api/kernels", headers=random.choice(self.kernels).headers)
                await _pause(enough, 4 * LIST_SECONDS / users)

        tasks = [*(asyncio.ensure_future(execute()) for _ in range(10)), *(asyncio.ensure_future(come_and_go()) for _ in range(4))]
        tasks += [asyncio.ensure_future(look()) for _ in range(4)]
        try:
            yield
        finally:
            enough.set()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, BaseException):
                    print(f"    some of the work failed: {result!r}", flush=True)


async def _pause(enough: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(enough.wait(), seconds)


@asynccontextmanager
async def running(most: int, kubeconfig: str, *, is_stock: bool = False) -> AsyncIterator[Bench]:
    """Run the cluster (that of ``kubeconfig``, or an embedded one if it is empty), a gateway and the floor."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        its_crowd = unserved.crowd(kubeconfig, most) if kubeconfig else crowd(directory / "cluster", most)
        standing = await stack.enter_async_context(its_crowd)
        place = directory / "gateway"
        place.mkdir()
        inside, beside = directory / "inside", directory / "beside"
        probing = f"from bench.probe import install\ninstall({str(inside)!r})\n"
        probe_command = (sys.executable, "-m", "bench.probe", str(beside))
        stack.push_async_callback(_end, await asyncio.create_subprocess_exec(*probe_command, cwd=stock.ROOT))
        theirs = stock.on_stand_ins(place, str(standing.kubeconfig), standing.namespace, probing)
        gateway = await stack.enter_async_context(theirs if is_stock else _ours(place, standing, probing))
        await until(lambda: inside.exists() and beside.exists(), "the probes to listen")
        yield Bench(standing, gateway, inside, beside, [], itertools.count(), stock.NAME if is_stock else "stand-in")
        # a gateway that is told to end takes a tenth of a second for each kernel
        gateway.kill()


@asynccontextmanager
async def _ours(place: Path, standing: Crowd, configuration: str) -> AsyncIterator[Gateway]:
    write_kernelspecs(place, {"stand-in": profile("stand-in", cpu={"request": "1m"}, memory={"request": "1Mi"}, **standing.profile)})
    cluster = {"KUBECONFIG": str(standing.kubeconfig), "ELASTIC_KERNELS_NAMESPACE": standing.namespace}
    async with running_gateway(
        place, {**cluster, "PYTHONPATH": str(stock.ROOT), **_SETTINGS}, configuration=PLUGGED_IN + configuration
    ) as gateway:
        yield gateway


async def _end(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


@asynccontextmanager
async def _condition(bench: Bench, name: str) -> AsyncIterator[None]:
    faults = bench.crowd.faults
    if faults is None:
        yield
        return

    async def cut() -> None:
        while True:
            await asyncio.sleep(CUT_SECONDS)
            faults.cut_watches()

    cutting = None
    if name == CONDITIONS[1]:
        faults.add(delay=API_LATENCY)
    elif name == CONDITIONS[2]:
        cutting = asyncio.ensure_future(cut())
    elif name == CONDITIONS[3]:
        faults.add(delay=HANG_SECONDS, times=20)
    try:
        yield
    finally:
        faults.clear()
        if cutting is not None:
            cutting.cancel()


async def measure(bench: Bench, count: int, burst: int, seconds: float, empty: tuple[int, int]) -> dict[str, Any]:
    """Return what there is to say about a gateway with ``count`` kernels."""
    requests = bench.crowd.faults.requests if bench.crowd.faults is not None else Counter[tuple[str, str]]()
    result: dict[str, Any] = {"kernels": count}
    memory = [(await probe.ask(path, "rest", 0.1))["memory"] for path in (bench.inside, bench.beside)]
    result["memory"] = {"gateway": (memory[0] - empty[0]) / count, "floor": (memory[1] - empty[1]) / count}
    before, used = Counter(requests), (await probe.ask(bench.inside, "used"))["used"]
    took = await bench.burst(burst)
    asked = requests - before
    used = (await probe.ask(bench.inside, "used"))["used"] - used
    result["burst"] = {"at once": burst, "seconds": took, "cpu": used / burst}
    result["requests a start"] = {f"{verb} {resource}": number / burst for (verb, resource), number in sorted(asked.items())}
    await asyncio.sleep(SETTLING_SECONDS)
    before = Counter(requests)
    resting, floor = await asyncio.gather(*(probe.ask(path, "rest", seconds) for path in (bench.inside, bench.beside)))
    result["idle"] = {"cpu": resting["cpu"], "floor cpu": floor["cpu"], "late": {}}
    result["idle"]["requests"] = {f"{verb} {resource}": number for (verb, resource), number in (requests - before).items()}
    result["work"] = {"late": {}}
    for condition in CONDITIONS if bench.crowd.faults is not None else CONDITIONS[:1]:
        for state in ("idle", "work"):
            async with _condition(bench, condition), AsyncExitStack() as stack:
                if state == "work":
                    await stack.enter_async_context(bench.work(cells=10, starts=2))
                    await asyncio.sleep(1.0)
                both = await asyncio.gather(*(probe.ask(path, "late", seconds) for path in (bench.inside, bench.beside)))
            late = [{name: facts[name] for name in ("p50", "p99", "max", "own", "cpu")} for facts in both]
            result[state]["late"][condition] = {"gateway": late[0], "floor": late[1]}
            said = ", ".join(f"{name} {1000 * late[0][name]:.1f} ms" for name in ("p50", "p99", "max"))
            print(
                f"{count:6} kernels, {condition}, {state}: {said} (floor p99 {1000 * late[1]['p99']:.1f} ms), "
                f"its own part p99 {1000 * late[0]['own']['p99']:.1f} ms, max {1000 * late[0]['own']['max']:.1f} ms",
                flush=True,
            )
            result[state]["late"][condition]["left"] = await _left(bench)
    return result


async def _left(bench: Bench) -> int:
    """Return how many kernels there are too many, or too few, when what came has had the time to go; 0 is as it should be."""
    try:
        await until(lambda: len(bench.crowd.addresses) == len(bench.kernels), "what came to go")
    except AssertionError:
        left = len(bench.crowd.addresses) - len(bench.kernels)
        print(f"    {left:+} kernels are left of what came and should have gone", flush=True)
        return left
    return 0


async def run(counts: list[int], burst: int, seconds: float, kubeconfig: str = "", *, is_stock: bool = False) -> list[dict[str, Any]]:
    """Measure one gateway with more and more kernels, on the cluster of ``kubeconfig`` or an embedded one."""
    allowed = files_allowed()
    possible = [count for count in sorted(counts) if (count + burst) * FILES_A_KERNEL + 500 < allowed]
    for count in sorted(set(counts) - set(possible)):
        print(f"{count} kernels are left out: a process may have {allowed} files open here (ulimit -Hn).", flush=True)
    results = []
    async with running(max(possible) + burst, kubeconfig, is_stock=is_stock) as bench:
        await bench.grow(1)  # pays for connections and imports
        empty = [(await probe.ask(path, "rest", 0.1))["memory"] for path in (bench.inside, bench.beside)]
        for count in possible:
            begin = time.monotonic()
            await bench.grow(count)
            print(f"{count:6} kernels started, in {time.monotonic() - begin:.0f} s", flush=True)
            measured = await measure(bench, count, min(burst, count), seconds, (empty[0], empty[1]))
            results.append({"gateway": "stock" if is_stock else "ours", **measured})
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Return what was measured, a column for each gateway and number of kernels."""
    rows: list[list[str]] = [["", *(f"{result['kernels']} {result['gateway']}" for result in results)]]

    def add(name: str, value: Any) -> None:
        rows.append([name, *(value(result) for result in results)])

    add("memory a kernel, KB (ZeroMQ's part)", lambda r: f"{r['memory']['gateway'] / 1e3:.0f} ({r['memory']['floor'] / 1e3:.0f})")
    add("CPU at rest, % of a core (floor)", lambda r: f"{100 * r['idle']['cpu']:.1f} ({100 * r['idle']['floor cpu']:.1f})")
    add("starts at once", lambda r: str(r["burst"]["at once"]))
    add("  median s", lambda r: f"{statistics.median(r['burst']['seconds']):.2f}")
    add("  the last, s", lambda r: f"{max(r['burst']['seconds']):.2f}")
    add("  CPU of a start and an end, ms", lambda r: f"{1000 * r['burst']['cpu']:.0f}")
    if any(result["requests a start"] for result in results):
        add("API requests a start and an end", lambda r: f"{sum(r['requests a start'].values()):.2f}")
        add("API requests at rest", lambda r: str(sum(r["idle"]["requests"].values())))
    for state in ("idle", "work"):
        for condition in results[0][state]["late"]:
            rows.append([f"loop late, ms, {'at rest' if state == 'idle' else 'at work'}, {condition}", *("" for _ in results)])
            for name in ("p50", "p99", "max"):

                def late(r: dict[str, Any], name: str = name, state: str = state, condition: str = condition) -> str:
                    both = r[state]["late"][condition]
                    return f"{1000 * both['gateway'][name]:.1f} ({1000 * both['floor'][name]:.1f})"

                add(f"  {name} (floor)", late)
            add("  p99 of its own work", lambda r, s=state, c=condition: f"{1000 * r[s]['late'][c]['gateway']['own']['p99']:.1f}")
    return figures.aligned(rows)


def main(arguments: list[str]) -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="The gateway's own cost, with stand-in kernels on the embedded cluster.")
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 3000])
    parser.add_argument("--burst", type=int, default=200, help="starts at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--on-cluster", action="store_true", help="with the API server of KUBECONFIG's cluster")
    parser.add_argument("--stock", type=int, default=STOCK, help="kernels of stock Enterprise Gateway, 0 for none (default: %(default)s)")
    given = parser.parse_args(arguments)
    kubeconfig = os.environ["KUBECONFIG"] if given.on_cluster else ""
    results = asyncio.run(run(given.counts, given.burst, given.seconds, kubeconfig))
    if given.stock and not given.on_cluster:  # where its pods would find a kubelet
        results += asyncio.run(run([given.stock], min(given.burst, STOCK_BURST), given.seconds, kubeconfig, is_stock=True))
    print(table(results))
    figures.save("scale-on-cluster" if given.on_cluster else "scale", results)


if __name__ == "__main__":
    main(sys.argv[1:])
