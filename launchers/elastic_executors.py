"""Why a Spark job waits for executors, said in the cell that waits: Spark alone says for ever that it has no resources.

While a cell runs a job and no executor is up, the cluster is asked about the executors' pods. What may pass, such as a machine that
is still to come, is a line on the cell's stderr; what cannot, such as an image that cannot be pulled, ends the job with that sentence.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any

SECONDS = 2.0
"""How long it looks away at a time."""
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
# A pull is tried again, and may succeed then; this often is enough.
TRIES = 3
_HOPELESS = {"ErrImageNeverPull": "is not on the machine and may not be pulled", "InvalidImageName": "is no name of an image"}
_NOT_PULLED = ("ErrImagePull", "ImagePullBackOff")
_NO_START = ("StartError", "ContainerCannotRun")
_AT_ONCE = 20.0
_NOT_STARTED = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError")

Pod = Mapping[str, Any]


class Prospect(Enum):
    """What is to be expected of executors that have not come."""

    GOOD = "it may take its time"
    POOR = "it is tried again, and may succeed then"
    NONE = "it is over"


def watch(shell: Any, log: int) -> None:
    """Watch over the cells of IPython's shell; and have an interrupted cell's jobs cancelled, which run on in Java otherwise.

    ``log`` is the file descriptor of the pod's log.
    """
    watcher = Watcher(context, list_executors, log)
    shell.events.register("pre_run_cell", lambda _info: watcher.resume())
    shell.events.register("post_run_cell", lambda result: watcher.pause(isinstance(result.error_in_exec, KeyboardInterrupt)))


def explain(pods: Sequence[Pod]) -> tuple[Prospect, str] | None:
    """Return what is to be expected, and a clause, for executors' pods of which none has come up; None if all is well so far."""
    for pod in pods:
        for status in pod.get("status", {}).get("containerStatuses") or ():
            image, state = status.get("image"), status.get("state", {})
            waiting = state.get("waiting") or {}
            reason, message = waiting.get("reason", ""), " ".join(str(waiting.get("message", "")).split())
            if reason in _HOPELESS:
                return Prospect.NONE, f"their image {image!r} {_HOPELESS[reason]}"
            if reason in _NOT_PULLED:
                return Prospect.POOR, f"their image {image!r} cannot be pulled: {message}"
            if reason in _NOT_STARTED:
                return Prospect.POOR, f"their container cannot be started: {message}"
    ended = [pod for pod in pods if _ended_at_once(pod)]
    if len(ended) > TRIES and not any(pod.get("status", {}).get("phase") == "Running" for pod in pods):
        clause = f"they end as soon as they have started{_exit(ended[-1])}; the log of the pod {ended[-1]['metadata']['name']} has more"
        return Prospect.NONE, clause
    for pod in pods:
        for condition in pod.get("status", {}).get("conditions") or ():
            if condition.get("reason") == "Unschedulable":
                return Prospect.GOOD, f"no machine fits them so far: {condition.get('message', '')}"
    return None


def list_executors(application: str) -> list[Pod]:
    """Return the pods of a Spark application's executors, as the API server has them. Raises OSError."""
    with open(f"{_ACCOUNT}/token", encoding="utf-8") as file:
        token = file.read()
    selector = urllib.parse.quote(f"spark-app-selector={application},spark-role=executor")
    host = f"{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    request = urllib.request.Request(
        f"https://{host}/api/v1/namespaces/{os.environ['KERNEL_NAMESPACE']}/pods?labelSelector={selector}",
        headers={"Authorization": f"Bearer {token}"},
    )
    context = ssl.create_default_context(cafile=f"{_ACCOUNT}/ca.crt")
    with urllib.request.urlopen(request, timeout=10, context=context) as answer:
        return list(json.load(answer)["items"])


class Watcher:
    """Looks, in a thread of its own, for as long as a cell runs."""

    def __init__(self, context: Callable[[], Any], executors: Callable[[str], list[Pod]], log: int) -> None:
        self._context = context
        self._executors = executors
        self._log = log
        self._running = threading.Event()
        self._thread: threading.Thread | None = None

    def resume(self) -> None:
        """Called before each cell."""
        self._running.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="watch executors", daemon=True)
            self._thread.start()

    def pause(self, is_interrupted: bool) -> None:
        """Called after each cell."""
        self._running.clear()
        context = self._context() if is_interrupted else None
        if context is not None:
            context.cancelAllJobs()

    def _run(self) -> None:
        said, poor = "", ""
        tries = 0
        while True:
            if not self._running.is_set():
                said, poor, tries = "", "", 0
                self._running.wait()
            threading.Event().wait(SECONDS)
            try:
                context = self._context()
                found = explain(self._executors(context.applicationId)) if context is not None and _waits(context) else None
                if found is None:
                    tries = 0
                    continue
                prospect, clause = found
                tries += prospect is Prospect.POOR
                # a pull that is put off says less than the one that failed
                poor = max(poor, clause, key=len) if prospect is Prospect.POOR else clause
                if prospect is Prospect.NONE or tries >= TRIES:
                    _cancel(context, f"its executors cannot start: {poor}")
                elif poor != said:
                    said = poor
                    print(f"Spark waits for executors: {poor}", file=sys.stderr, flush=True)
            except Exception as error:  # nothing that goes wrong here is the cell's concern
                if str(error) != said:
                    said = str(error)
                    os.write(self._log, f"elastic-kernels: the executors cannot be looked at: {said}\n".encode())


def context() -> Any:
    """Return the Spark context that there is, or None."""
    module = sys.modules.get("pyspark.context")
    context = module.SparkContext._active_spark_context if module else None
    # one that is being made has none of Java's yet, one that is stopped no more
    return context if getattr(context, "_jsc", None) is not None else None


def _waits(context: Any) -> bool:
    """Tell whether there are jobs and no executors; the driver counts itself among these."""
    tracker = context._jsc.sc().statusTracker()
    return len(tracker.getActiveJobIds()) > 0 and len(tracker.getExecutorInfos()) <= 1


def _cancel(context: Any, reason: str) -> None:
    for job in context._jsc.sc().statusTracker().getActiveJobIds():
        context._jsc.sc().cancelJob(job, reason)


def _ended_at_once(pod: Pod) -> bool:
    """Tell whether an executor failed before it can have done anything; others are taken away, and come again."""
    if pod.get("status", {}).get("phase") != "Failed":
        return False
    for state in _terminated(pod):
        if state.get("reason") in _NO_START:
            return True
        try:
            began, ended = (datetime.strptime(state[name], "%Y-%m-%dT%H:%M:%SZ") for name in ("startedAt", "finishedAt"))
        except (KeyError, TypeError, ValueError):
            continue
        if (ended - began).total_seconds() < _AT_ONCE:
            return True
    return False


def _terminated(pod: Pod) -> list[Mapping[str, Any]]:
    return [status.get("state", {}).get("terminated") or {} for status in pod["status"].get("containerStatuses") or ()]


def _exit(pod: Pod) -> str:
    states = _terminated(pod)
    ends = [(state["exitCode"], " ".join(str(state.get("message", "")).split())) for state in states if "exitCode" in state]
    return f" (exit code {ends[0][0]}{': ' if ends[0][1] else ''}{ends[0][1]})" if ends else ""
