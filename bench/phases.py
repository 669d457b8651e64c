"""Where the time of one start goes, on the cluster of KUBECONFIG: this project, and the floor.

    KUBECONFIG=… python -m bench.phases [--rounds 10]

One kernel after the other. What the API server knows is seen by watches of this process, when it arrives; what only the pod knows,
the kernel says: when the container's first process began, and when IPython's shell was made, by which time all was imported. The clocks of
the nodes and of this machine must agree for that. Prints the medians of each phase, and writes bench/results/phases.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from bench import figures, floor, launch
from elastic_kernels.cluster import Client, Informer, Object, key_of
from tests.gateway import Gateway, until

RECORD, POD, SCHEDULED, PROCESS, SHELL = "record created", "pod created", "pod scheduled", "first process began", "IPython imported"
ANSWERED, CONNECTED, OUTPUT = "start answered", "websocket open", "first output"
MOMENTS: Final = (RECORD, POD, SCHEDULED, PROCESS, SHELL, ANSWERED, CONNECTED, OUTPUT)
"""In their order; the floor has neither the last but one nor the one before."""
RUNNING: Final = "(the API server says Running)"

# the first process of the container, and the session that IPython's history has from the making of the shell
_CELL: Final = """
import json, os, time
with open("/proc/uptime") as uptime, open("/proc/1/stat") as first:
    boot = time.time() - float(uptime.read().split()[0])
    began = boot + int(first.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
print(json.dumps([began, get_ipython().history_manager.get_session_info()[1].timestamp()]))
"""

Moments = dict[str, float]
"""What happened when, in seconds since the epoch."""
Start = Callable[[], Awaitable[Moments]]
"""Starts one kernel, and ends it; returns what its client sees."""


def durations(begin: float, moments: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds from one moment to the next one that there is."""
    result = {}
    for moment in MOMENTS:
        if moment in moments:
            result[moment] = moments[moment] - begin
            begin = moments[moment]
    return result


class Seen:
    """What two watches on a namespace see first of one start."""

    def __init__(self) -> None:
        self.moments: Moments = {}
        self.pods: set[str] = set()

    def note(self, kind: str, item: Object, *, is_gone: bool) -> None:
        """Take a change of an object, of ``kind`` secrets or pods."""
        now = time.time()
        if kind == "secrets":
            self._first(RECORD, now, not is_gone)
            return
        status, name = item.get("status") or {}, item["metadata"]["name"]
        (self.pods.discard if is_gone else self.pods.add)(name)
        self._first(POD, now, not is_gone)
        self._first(SCHEDULED, now, bool(item["spec"].get("nodeName")))
        self._first(RUNNING, now, status.get("phase") == "Running")

    def _first(self, moment: str, now: float, happened: bool) -> None:
        if happened:
            self.moments.setdefault(moment, now)


@asynccontextmanager
async def watching(api: Client, namespace: str) -> AsyncIterator[Seen]:
    """Yield what is seen of a namespace for as long as the context lasts."""
    seen = Seen()
    informers = {kind: Informer(api, kind, namespace, selectors={}) for kind in ("secrets", "pods")}
    for kind, informer in informers.items():

        def changed(item: Object, kind: str = kind, informer: Informer = informer) -> None:
            seen.note(kind, item, is_gone=informer.get(key_of(item)) is None)

        informer.follow(changed)
    tasks = [asyncio.ensure_future(informer.run()) for informer in informers.values()]
    try:
        await asyncio.gather(*(informer.listed() for informer in informers.values()))
        yield seen
    finally:
        for task in tasks:
            task.cancel()


async def by_gateway(gateway: Gateway) -> Moments:
    """Start a kernel of this project's."""
    identity = str(uuid.uuid4())
    status, body = await gateway.request(
        "POST", "/api/kernels", {"name": "elastic", "env": {"KERNEL_USERNAME": "ana", "KERNEL_ID": identity}}
    )
    answered = time.time()
    if status != 201:
        raise RuntimeError(f"a kernel did not start: {body}")
    async with gateway.channels(identity) as channels:
        connected = time.time()
        cell = await channels.begin(_CELL)
        came = time.time()
        text = (await channels.finish(cell)).text
    await gateway.request("DELETE", f"/api/kernels/{identity}")
    return {ANSWERED: answered, CONNECTED: connected, OUTPUT: came, **_inside(text)}


async def bare(namespace: str) -> Moments:
    """Start a kernel without a gateway."""
    begin = time.time()
    ((seconds, text),) = await floor.outputs(1, namespace, floor.IMAGE, _CELL)
    return {OUTPUT: begin + seconds, **_inside(text)}


def _inside(text: str) -> Moments:
    began, imported = json.loads(text.splitlines()[-1])
    return {PROCESS: began, SHELL: imported}


async def run(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each phase, by who started the kernels."""
    async with AsyncExitStack() as stack:
        api, namespace = await stack.enter_async_context(launch.own_namespace(os.environ["KUBECONFIG"]))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        gateway = await stack.enter_async_context(launch.our_gateway(directory, os.environ["KUBECONFIG"], namespace))
        seen = await stack.enter_async_context(watching(api, namespace))
        starts: dict[str, Start] = {"floor": lambda: bare(namespace), "ours": lambda: by_gateway(gateway)}
        results: dict[str, dict[str, list[float]]] = {name: {} for name in starts}
        for number in range(rounds + 1):
            for name, start in starts.items():
                await until(lambda: not seen.pods, "the pod of the start before to go", seconds=60)
                seen.moments.clear()
                begin = time.time()
                moments = {**await start(), **seen.moments}
                if not number:
                    continue  # the first start of a process pays for connections and imports
                for phase, seconds in durations(begin, moments).items():
                    results[name].setdefault(phase, []).append(seconds)
                for phase, moment in (("in all", OUTPUT), (RUNNING, RUNNING)):
                    # a start may be over before
                    results[name].setdefault(phase, []).append(moments.get(moment, float("inf")) - begin)
        return results


def table(results: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Return the milliseconds of each phase, a column for each who started kernels."""
    rows = [["milliseconds until", *results]]
    for phase in (*MOMENTS, "in all", RUNNING):
        rows.append([phase, *(figures.spread(results[name][phase], 1e3, 0) if phase in results[name] else "-" for name in results)])
    return figures.aligned(rows)


def main(arguments: list[str]) -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Where the time of one start goes, on the cluster of KUBECONFIG.")
    parser.add_argument("--rounds", type=int, default=10)
    results = asyncio.run(run(parser.parse_args(arguments).rounds))
    print(table(results))
    ours, base = (statistics.median(results[name]["in all"]) for name in ("ours", "floor"))
    print(f"ours : floor {ours / base:.2f}")
    figures.save("phases", results)


if __name__ == "__main__":
    main(sys.argv[1:])
