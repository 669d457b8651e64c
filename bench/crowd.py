"""An embedded cluster whose pods are stand-in kernels (see ``standins``): what a gateway sees of thousands of kernels, for little."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import resource
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from elastic_kernels import names
from elastic_kernels.cluster import Object
from elastic_kernels.embedded import EmbeddedCluster
from elastic_kernels.embedded.cluster import NODES
from elastic_kernels.embedded.store import Change, now
from elastic_kernels.record import PORT_SETS, connection_key

# what a kubelet takes to bring a container up
START_SECONDS: Final = 0.3
_CONDITIONS: Final = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
# five ports that listen and a gateway's connections, of some 20,000 files
_KERNELS_A_PROCESS: Final = 1500


def files_allowed() -> int:
    """Return how many files a process may have open, after asking for as many as may be asked for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


class Crowd:
    """The kubelet of the stand-ins. Belongs to the loop of its cluster."""

    def __init__(self, cluster: EmbeddedCluster, processes: list[Process]) -> None:
        self.cluster = cluster
        self._store = cluster.store
        self._processes = processes
        self._pods: dict[str, tuple[str, str]] = {}
        self._addresses: dict[str, str] = {}
        self._listening: dict[str, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._store.listeners["pods"].append(self._changed)
        for process in processes:
            self._keep(self._listen(process))

    @property
    def addresses(self) -> list[str]:
        """Those of all kernels that run."""
        return list(self._pods)

    def close(self) -> None:
        """End all that is under way."""
        for task in self._tasks:
            task.cancel()

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            print(f"a stand-in failed: {error!r}", file=sys.stderr)

    def _changed(self, change: Change) -> None:
        kind, pod, _ = change
        uid = pod["metadata"]["uid"]
        if kind == "DELETED":
            self._end(uid)
        elif pod["metadata"].get("deletionTimestamp"):
            self._store.remove("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
        elif pod["spec"].get("nodeName") and uid not in self._addresses:
            # the last three numbers of 127.0.0.0/8 are this crowd's, as the embedded cluster's pods have them
            self._addresses[uid] = self.cluster._address()
            self._keep(self._run(pod, self._addresses[uid]))

    async def _run(self, pod: Object, address: str) -> None:
        metadata = pod["metadata"]
        await asyncio.sleep(START_SECONDS)
        ports = int(metadata["annotations"][names.PORTS])
        secret = next(volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume)
        file = self._store.get("secrets", metadata["namespace"], secret)["data"][connection_key(ports)]
        key = json.loads(base64.b64decode(file))["key"]
        self._listening[address] = asyncio.get_running_loop().create_future()
        self._tell(address, key=key, ports=[PORT_SETS[ports] + index for index in range(5)])
        await self._listening[address]
        del self._listening[address]
        if self._store.find("pods", metadata["namespace"], metadata["name"]) is not None:
            self._pods[address] = (metadata["namespace"], metadata["name"])
            self._report(address, "Running", {"running": {"startedAt": now()}})

    def _end(self, uid: str) -> None:
        address = self._addresses.pop(uid, None)
        if address is not None:
            self._pods.pop(address, None)
            self._tell(address)

    def _tell(self, address: str, **facts: Any) -> None:
        *_, third, fourth = map(int, address.split("."))
        process = self._processes[(third * 256 + fourth) % len(self._processes)]
        assert process.stdin is not None
        process.stdin.write(json.dumps({"address": address, **facts}).encode() + b"\n")

    async def _listen(self, process: Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            said = json.loads(line)
            if "ended" in said and said["ended"] in self._pods:
                ended = {"exitCode": 0, "reason": "Completed", "startedAt": now(), "finishedAt": now()}
                self._report(said["ended"], "Succeeded", {"terminated": ended})
            elif said.get("listens") in self._listening:
                self._listening[said["listens"]].set_result(None)

    def _report(self, address: str, phase: str, state: Mapping[str, Any]) -> None:
        running = phase == "Running"
        pod = self._store.find("pods", *self._pods[address])
        if pod is None:
            return
        container = {"name": "kernel", "image": pod["spec"]["containers"][0]["image"], "ready": running, "started": running}
        status = {
            **pod["status"],
            "phase": phase,
            "podIP": address,
            "podIPs": [{"ip": address}],
            "hostIP": "127.0.0.1",
            "startTime": now(),
            "conditions": [{"type": kind, "status": "True" if running else "False"} for kind in _CONDITIONS],
            "containerStatuses": [{**container, "restartCount": 0, "state": dict(state), "lastState": {}}],
        }
        self._store.replace("pods", {**pod, "status": status})


@asynccontextmanager
async def crowd(directory: Path, most: int) -> AsyncIterator[Crowd]:
    """Run a cluster for at most so many kernels."""
    files_allowed()
    # a machine that nobody's pods fill
    amounts = {"cpu": "100000", "memory": "1000Ti", "pods": "100000"}
    nodes = tuple({**node, "status": {**node["status"], "capacity": amounts, "allocatable": amounts}} for node in NODES)
    command = (sys.executable, "-m", "bench.standins")
    count = -(-most // _KERNELS_A_PROCESS)
    processes = [await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE) for _ in range(count)]
    try:
        async with EmbeddedCluster(directory, nodes=nodes, serves=lambda _: False, window=50000) as cluster:
            running = Crowd(cluster, processes)
            try:
                yield running
            finally:
                running.close()
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
