"""Pods that are stand-in kernels (see ``standins``): what a gateway sees of thousands of kernels, for little.

A crowd takes the kubelet's place: for the embedded cluster here, and for a node of a real one in ``unserved``.
"""

from __future__ import annotations

import abc
import asyncio
import base64
import contextlib
import json
import resource
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from bench import stock
from elastic_kernels import names
from elastic_kernels.cluster import Key, Object, key_of
from elastic_kernels.embedded import EmbeddedCluster
from elastic_kernels.embedded.cluster import NODES
from elastic_kernels.embedded.faults import Faults
from elastic_kernels.embedded.store import Change, now
from elastic_kernels.record import PORT_SETS, connection_key

# what a kubelet takes to bring a container up
START_SECONDS: Final = 0.3
# a machine that nobody's pods fill
AMOUNTS: Final = {"cpu": "100000", "memory": "1000Ti", "pods": "100000"}
_CHANNELS: Final = ("shell", "iopub", "stdin", "control", "hb")
_CONDITIONS: Final = ("PodScheduled", "Initialized", "ContainersReady", "Ready")
# five ports that listen and a gateway's connections, of some 20,000 files
_KERNELS_A_PROCESS: Final = 1500


def files_allowed() -> int:
    """Return how many files a process may have open, after asking for as many as may be asked for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


class Crowd(abc.ABC):
    """The kubelet of the stand-ins. Belongs to one event loop."""

    kubeconfig: Path
    namespace: str
    faults: Faults | None = None
    """What can be made to go wrong with the cluster, and how many requests it had; None where neither can be had."""
    profile: Mapping[str, Any] = {}
    """What a profile needs for its pods to come here."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes
        self._pods: dict[str, Key] = {}
        self._addresses: dict[str, str] = {}
        self._listening: dict[str, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        for process in processes:
            self.keep(self._listen(process))

    @property
    def addresses(self) -> list[str]:
        """Those of all kernels that run."""
        return list(self._pods)

    def close(self) -> None:
        """End all that is under way."""
        for task in self._tasks:
            task.cancel()

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something until it is done, or the crowd is closed."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def changed(self, pod: Object, *, is_gone: bool) -> None:
        """To be called with each change of a pod."""
        uid = pod["metadata"]["uid"]
        if is_gone:
            address = self._addresses.pop(uid, None)
            if address is not None:
                self._pods.pop(address, None)
                self._tell(address)
        elif pod["metadata"].get("deletionTimestamp"):
            self.keep(self.remove(key_of(pod)))
        elif pod["spec"].get("nodeName") and uid not in self._addresses:
            self._addresses[uid] = self.new_address()
            self.keep(self._run(pod, self._addresses[uid]))

    @abc.abstractmethod
    def new_address(self) -> str:
        """Return one of 127.0.0.0/8 that no other pod has."""

    @abc.abstractmethod
    async def get(self, resource: str, key: Key) -> Object | None:
        """Return an object."""

    @abc.abstractmethod
    async def remove(self, key: Key) -> None:
        """Have a pod be gone."""

    @abc.abstractmethod
    async def write(self, key: Key, status: Mapping[str, Any]) -> None:
        """Change a pod's status, if the pod is still there."""

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            print(f"a stand-in failed: {error!r}", file=sys.stderr)

    async def _run(self, pod: Object, address: str) -> None:
        key = key_of(pod)
        await asyncio.sleep(START_SECONDS)
        environment = {item["name"]: item.get("value", "") for item in pod["spec"]["containers"][0].get("env", ())}
        calls_back = "RESPONSE_ADDRESS" in environment
        ports = 0 if calls_back else int(pod["metadata"]["annotations"][names.PORTS])
        secret = secrets.token_hex(16) if calls_back else await self._key(pod, ports)
        if secret is None:
            return  # its kernel is gone
        numbers = [PORT_SETS[ports] + index for index in range(5)]
        self._listening[address] = asyncio.get_running_loop().create_future()
        self._tell(address, key=secret, ports=numbers)
        await self._listening[address]
        del self._listening[address]
        if pod["metadata"]["uid"] not in self._addresses:
            return
        self._pods[address] = key
        await self.write(key, _status(pod, address, "Running", {"running": {"startedAt": now()}}))
        if calls_back:
            connection = {f"{channel}_port": number for channel, number in zip(_CHANNELS, numbers, strict=True)}
            scheme = {"key": secret, "signature_scheme": "hmac-sha256", "transport": "tcp"}
            await stock.call_back(environment, {**connection, **scheme, "ip": address})

    async def _key(self, pod: Object, ports: int) -> str | None:
        """Return the connection key of a kernel of this project's, None if it is gone."""
        name = next(volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume)
        secret = await self.get("secrets", (pod["metadata"]["namespace"], name))
        return None if secret is None else str(json.loads(base64.b64decode(secret["data"][connection_key(ports)]))["key"])

    def _tell(self, address: str, **facts: Any) -> None:
        *_, third, fourth = map(int, address.split("."))
        process = self._processes[(third * 256 + fourth) % len(self._processes)]
        assert process.stdin is not None
        process.stdin.write(json.dumps({"address": address, **facts}).encode() + b"\n")

    async def _listen(self, process: Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            said = json.loads(line)
            if said.get("ended") in self._pods:
                self.keep(self._ended(said["ended"], self._pods[said["ended"]]))
            elif said.get("listens") in self._listening:
                self._listening[said["listens"]].set_result(None)

    async def _ended(self, address: str, key: Key) -> None:
        ended = {"exitCode": 0, "reason": "Completed", "startedAt": now(), "finishedAt": now()}
        pod = await self.get("pods", key)
        if pod is not None:
            await self.write(key, _status(pod, address, "Succeeded", {"terminated": ended}))


def _status(pod: Object, address: str, phase: str, state: Mapping[str, Any]) -> dict[str, Any]:
    running = phase == "Running"
    container = {"name": "kernel", "image": pod["spec"]["containers"][0]["image"], "imageID": "", "ready": running, "started": running}
    return {
        "phase": phase,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "hostIP": "127.0.0.1",
        "startTime": now(),
        "conditions": [{"type": kind, "status": "True" if running else "False"} for kind in _CONDITIONS],
        "containerStatuses": [{**container, "restartCount": 0, "state": dict(state), "lastState": {}}],
    }


class EmbeddedCrowd(Crowd):
    """On the embedded cluster, which is in this process."""

    namespace = "default"

    def __init__(self, cluster: EmbeddedCluster, processes: list[Process]) -> None:
        super().__init__(processes)
        self.kubeconfig = cluster.kubeconfig
        self.faults = cluster.faults
        self._cluster = cluster
        self._store = cluster.store
        self._store.listeners["pods"].append(self._happened)

    def _happened(self, change: Change) -> None:
        kind, pod, _ = change
        self.changed(pod, is_gone=kind == "DELETED")

    def new_address(self) -> str:
        """As the embedded cluster's pods have them."""
        return self._cluster._address()

    async def get(self, resource: str, key: Key) -> Object | None:
        """Return an object."""
        return self._store.find(resource, *key)

    async def remove(self, key: Key) -> None:
        """Have a pod be gone."""
        if self._store.find("pods", *key) is not None:
            self._store.remove("pods", *key)

    async def write(self, key: Key, status: Mapping[str, Any]) -> None:
        """Change a pod's status, if the pod is still there."""
        pod = self._store.find("pods", *key)
        if pod is not None:
            self._store.replace("pods", {**pod, "status": {**pod["status"], **status}})


@asynccontextmanager
async def processes_of(most: int) -> AsyncIterator[list[Process]]:
    """Run the processes of at most so many stand-ins."""
    files_allowed()
    command = (sys.executable, "-m", "bench.standins")
    count = -(-most // _KERNELS_A_PROCESS)
    processes = [await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@asynccontextmanager
async def crowd(directory: Path, most: int) -> AsyncIterator[Crowd]:
    """Run an embedded cluster for at most so many kernels."""
    nodes = tuple({**node, "status": {**node["status"], "capacity": AMOUNTS, "allocatable": AMOUNTS}} for node in NODES)
    async with processes_of(most) as processes, EmbeddedCluster(directory, nodes=nodes, serves=lambda _: False, window=50000) as cluster:
        running = EmbeddedCrowd(cluster, processes)
        try:
            yield running
        finally:
            running.close()
