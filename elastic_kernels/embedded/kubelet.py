"""The embedded cluster's kubelet: runs the first container of each pod as a local process, and reports as a kubelet does.

What a local process cannot have it does not have: no other user, no memory or CPU limit, no file system of its own. A process
that is told to end gets SIGTERM and, after the grace period, SIGKILL, like a container; but the first process of a container
ignores SIGTERM unless it handles it, and a local one ends. restartPolicy is taken for Never.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from elastic_kernels.embedded import volumes
from elastic_kernels.embedded.process import Process
from elastic_kernels.embedded.scheduler import is_over
from elastic_kernels.embedded.selectors import Object
from elastic_kernels.embedded.store import Change, Store, now, record_event

_IMAGE: Final = re.compile(r"[a-z0-9][a-z0-9._:/-]*?(:[\w.-]{1,128})?(@sha256:[0-9a-f]{64})?")
_REFERENCE: Final = re.compile(r"\$(\$|\(([A-Za-z_][A-Za-z0-9_.-]*)\))")
_RETRY_SECONDS: Final = 1.0
_PROBE_SECONDS: Final = 0.1
_BACK_OFF_SECONDS: Final = 10.0
# bytes that a status takes of a log
_MESSAGE: Final = 2048

Key = tuple[str, str]


class Kubelet:
    """Runs the pods of the nodes that it serves, on one event loop."""

    def __init__(
        self,
        store: Store,
        directory: Path,
        addresses: Callable[[], str],
        *,
        environment: Mapping[str, str],
        refuse_image: Callable[[str], str | None],
        serves: Callable[[str], bool],
    ) -> None:
        """``refuse_image`` returns what a pull of an image fails with, or None; ``serves`` tells whether a node has a kubelet."""
        self._store = store
        self._directory = directory
        self._addresses = addresses
        self._environment = environment
        self._refuse_image = refuse_image
        self._serves = serves
        self._pods: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}
        store.listeners["pods"].append(self._pod_changed)

    def log_of(self, pod: Object) -> Path:
        """Return the file that holds a pod's output."""
        return self._directory / "logs" / str(pod["metadata"]["uid"])

    async def close(self) -> None:
        """Kill all processes."""
        for task in self._pods.values():
            task.cancel()
        await asyncio.gather(*self._pods.values(), return_exceptions=True)

    def _pod_changed(self, change: Change) -> None:
        kind, pod, _ = change
        uid = pod["metadata"]["uid"]
        if kind == "DELETED" or pod["metadata"].get("deletionTimestamp"):
            if uid in self._ends:
                self._ends[uid].set()
            elif kind != "DELETED" and (not pod["spec"].get("nodeName") or is_over(pod)):
                self._forget(pod)
            return
        if uid in self._pods or is_over(pod) or not pod["spec"].get("nodeName") or not self._serves(pod["spec"]["nodeName"]):
            return
        self._ends[uid] = asyncio.Event()
        task = asyncio.get_running_loop().create_task(self._run(pod), name=f"pod {pod['metadata']['name']}")
        self._pods[uid] = task
        task.add_done_callback(lambda _: (self._pods.pop(uid, None), self._ends.pop(uid, None)))

    async def _run(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        root = self._directory / "pods" / uid
        ended = self._ends[uid]
        try:
            process = await self._start(pod, root, ended)
            if process is not None:
                await self._supervise(pod, process, ended)
            await self._until(ended, pod)
            self._forget(pod)
        finally:
            volumes.remove(root)

    async def _start(self, pod: Object, root: Path, ended: asyncio.Event) -> Process | None:
        """Go through the stations up to a running process; None if the pod ended before."""
        container = pod["spec"]["containers"][0]
        image, address = container["image"], self._addresses()
        self._report(pod, {"waiting": {"reason": "ContainerCreating"}}, "Pending")
        places = await self._places(pod, root, address, ended)
        if places is None or not await self._image(pod, image, ended):
            return None
        record_event(self._store, pod, "Normal", "Pulled", f'Container image "{image}" already present on machine', "kubelet")
        variables = _variables(pod, address, places)
        command = [_expand(part, variables) for part in (*(container.get("command") or ()), *(container.get("args") or ()))]
        command = [volumes.rewrite(part, places) for part in command]
        home = root / "home"
        directory = Path(volumes.rewrite(container.get("workingDir") or "", places) or home)
        for needed in (home, self._directory / "logs"):
            needed.mkdir(parents=True, exist_ok=True)
        begun = now()
        try:
            process = Process(command, {**self._environment, "HOME": str(home), **variables}, _existing(directory, home), self.log_of(pod))
        except (OSError, IndexError) as error:
            name = command[0] if command else ""
            message = f'failed to create containerd task: exec: "{name}": {getattr(error, "strerror", None) or error}'
            record_event(self._store, pod, "Warning", "Failed", f"Error: {message}", "kubelet")
            self._report(pod, {"terminated": _terminated(128, "StartError", begun, message)}, "Failed")
            return None
        record_event(self._store, pod, "Normal", "Started", f"Started container {container['name']}", "kubelet")
        probe = (container.get("startupProbe") or {}).get("tcpSocket")
        self._report(pod, {"running": {"startedAt": begun}}, "Running", address, started=probe is None)
        if probe is not None:
            await _probed(process, ended, address, int(probe["port"]))
            self._report(pod, {"running": {"startedAt": begun}}, "Running", address)
        return process

    async def _supervise(self, pod: Object, process: Process, ended: asyncio.Event) -> None:
        exits = asyncio.ensure_future(process.wait())
        deletion = asyncio.ensure_future(ended.wait())
        deadline = pod["spec"].get("activeDeadlineSeconds")
        try:
            await asyncio.wait({exits, deletion}, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
            overdue = not exits.done() and not deletion.done()
            if not exits.done():
                record_event(self._store, pod, "Normal", "Killing", "Stopping container kernel", "kubelet")
                process.signal(signal.SIGTERM)
                await asyncio.wait({exits}, timeout=self._grace(pod))
                process.kill()
            code = await exits
            reason = "Completed" if code == 0 else "Error"
            more = _OVERDUE if overdue else {}
            ok = code == 0 and not overdue
            message = "" if code == 0 else self._last_words(pod)
            self._report(pod, {"terminated": _terminated(code, reason, now(), message)}, "Succeeded" if ok else "Failed", more=more)
        finally:
            process.kill()
            deletion.cancel()

    def _last_words(self, pod: Object) -> str:
        """Return the end of a container's log if the pod asks for that."""
        if pod["spec"]["containers"][0].get("terminationMessagePolicy") != "FallbackToLogsOnError":
            return ""
        with self.log_of(pod).open("rb") as log:
            # of a log that may be long
            log.seek(max(0, os.fstat(log.fileno()).st_size - _MESSAGE))
            return log.read().decode("utf-8", "replace")

    def _grace(self, pod: Object) -> float:
        latest = self._store.find("pods", *_key(pod)) or pod
        return float(latest["metadata"].get("deletionGracePeriodSeconds", pod["spec"].get("terminationGracePeriodSeconds", 30)))

    async def _places(self, pod: Object, root: Path, address: str, ended: asyncio.Event) -> dict[str, str] | None:
        while not ended.is_set():
            try:
                return volumes.place(self._store, pod, root, self._directory / "claims", address)
            except volumes.MissingError as error:
                record_event(self._store, pod, "Warning", "FailedMount", str(error), "kubelet")
            await _sleep(ended, _RETRY_SECONDS)
        return None

    async def _image(self, pod: Object, image: str, ended: asyncio.Event) -> bool:
        """Make sure of the image; False if the pod ended meanwhile, which for an image that is not to be had it must."""
        if not _IMAGE.fullmatch(image):
            message = f'Failed to apply default image tag "{image}": couldn\'t parse image reference "{image}": invalid reference format'
            self._report(pod, {"waiting": {"reason": "InvalidImageName", "message": message}}, "Pending")
            await ended.wait()
            return False
        while (refusal := self._refuse_image(image)) is not None:
            message = f'Failed to pull image "{image}": {refusal}'
            record_event(self._store, pod, "Normal", "Pulling", f'Pulling image "{image}"', "kubelet")
            record_event(self._store, pod, "Warning", "Failed", message, "kubelet")
            record_event(self._store, pod, "Warning", "Failed", "Error: ErrImagePull", "kubelet")
            self._report(pod, {"waiting": {"reason": "ErrImagePull", "message": refusal}}, "Pending")
            await _sleep(ended, _RETRY_SECONDS)
            self._report(pod, {"waiting": {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{image}"'}}, "Pending")
            await _sleep(ended, _BACK_OFF_SECONDS)
            if ended.is_set():
                return False
        return not ended.is_set()

    async def _until(self, ended: asyncio.Event, pod: Object) -> None:
        if self._store.find("pods", *_key(pod)) is not None:
            await ended.wait()

    def _forget(self, pod: Object) -> None:
        current = self._store.find("pods", *_key(pod))
        if current is not None and current["metadata"]["uid"] == pod["metadata"]["uid"]:
            self._store.remove("pods", *_key(pod))

    def _report(
        self, pod: Object, state: Object, phase: str, address: str = "", *, started: bool = True, more: Mapping[str, str] | None = None
    ) -> None:
        current = self._store.find("pods", *_key(pod))
        if current is None or current["metadata"]["uid"] != pod["metadata"]["uid"]:
            return
        running = "running" in state and started
        known = current["status"]
        true = _CONDITIONS if running else ("Initialized", "PodScheduled")
        conditions = [{"type": kind, "status": "True" if kind in true else "False"} for kind in _CONDITIONS]
        container = current["spec"]["containers"][0]
        reported = {
            "name": container["name"],
            "image": container["image"],
            "ready": running,
            "started": running,
            "restartCount": 0,
            "state": state,
            "lastState": {},
        }
        own = {"podIP": address, "podIPs": [{"ip": address}]} if address else {}
        status = {**known, "phase": phase, "conditions": conditions, "hostIP": "127.0.0.1", **own, **(more or {})}
        status.setdefault("startTime", now())
        latest = {**current, "status": {**status, "containerStatuses": [reported]}}
        latest["metadata"] = {key: value for key, value in current["metadata"].items() if key != "resourceVersion"}
        self._store.replace("pods", latest)


_OVERDUE: Final = {"reason": "DeadlineExceeded", "message": "Pod was active on the node longer than the specified deadline"}
_CONDITIONS: Final = ("Initialized", "Ready", "ContainersReady", "PodScheduled")


def _key(pod: Object) -> Key:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]


def _terminated(code: int, reason: str, finished: str, message: str = "") -> Object:
    return {"exitCode": code, "reason": reason, "startedAt": finished, "finishedAt": finished, **({"message": message} if message else {})}


def _variables(pod: Object, address: str, places: Mapping[str, str]) -> dict[str, str]:
    """Return a container's environment: each value may refer to the ones before it as ``$(NAME)``."""
    result: dict[str, str] = {}
    for item in pod["spec"]["containers"][0].get("env") or ():
        if "valueFrom" in item:
            result[item["name"]] = _field(pod, item["valueFrom"]["fieldRef"]["fieldPath"], address)
        else:
            result[item["name"]] = volumes.rewrite(_expand(item.get("value") or "", result), places)
    return result


def _field(pod: Object, path: str, address: str) -> str:
    if path in ("status.podIP", "status.hostIP"):
        return address if path == "status.podIP" else "127.0.0.1"
    section, _, rest = path.partition(".")
    match = re.fullmatch(r"(\w+)\['(.+)'\]", rest)
    value: Any = pod[section].get(match[1], {}).get(match[2], "") if match else pod[section].get(rest, "")
    return str(value)


def _expand(text: str, variables: Mapping[str, str]) -> str:
    """Expand ``$(NAME)``; ``$$`` is a dollar sign, and a name that is not there stays as it is (Kubernetes, "Define Environment
    Variables")."""
    return _REFERENCE.sub(lambda match: "$" if match[1] == "$" else variables.get(match[2], match[0]), text)


def _existing(directory: Path, otherwise: Path) -> Path:
    return directory if os.path.isdir(directory) else otherwise


async def _probed(process: Process, ended: asyncio.Event, address: str, port: int) -> None:
    """Return when a container's startup probe has succeeded, or never will. A container that starts is asked ten times a second."""
    exits = asyncio.ensure_future(process.wait())
    try:
        while not exits.done() and not ended.is_set():
            try:
                _, writer = await asyncio.open_connection(address, port)
            except OSError:
                await asyncio.wait({exits}, timeout=_PROBE_SECONDS)
            else:
                writer.close()
                return
    finally:
        exits.cancel()


async def _sleep(ended: asyncio.Event, seconds: float) -> None:
    """Sleep, or wake up earlier because the pod is to end."""
    await asyncio.wait({wait := asyncio.ensure_future(ended.wait())}, timeout=seconds)
    wait.cancel()
