"""What a kernel is doing, for its user: ``GET /api/kernels/<id>/status``, once or as a stream of changes.

It is there from the moment at which a start begins, so that a client that chose ``KERNEL_ID`` can ask while it waits; and a while
after a start that came to nothing. What other gateways start is seen in the cluster.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Final

from enterprise_gateway.mixins import CORSMixin, JSONErrorsMixin, TokenAuthorizationMixin
from jupyter_server.base.handlers import APIHandler
from tornado import iostream, web

from elastic_kernels import names, reach, status
from elastic_kernels.cluster import Cluster, Object, key_of
from elastic_kernels.errors import ElasticKernelsError, NotFoundError
from elastic_kernels.gateway import serving
from elastic_kernels.gateway.verified import Verified
from elastic_kernels.identity import User
from elastic_kernels.starts import NOT_TAKEN
from elastic_kernels.status import Phase, Status

PATH: Final = r"/api/kernels/(?P<kernel_id>\w+-\w+-\w+-\w+-\w+)/status"

_TICK: Final = 0.5
_KEEP_ALIVE: Final = 15.0
_EVENTS_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Report:
    """One moment of a kernel."""

    status: Status
    since: str
    profile: str

    def model(self, kernel_id: str, usually: float | None) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "id": kernel_id,
            "phase": self.status.phase.value,
            "sentence": self.status.sentence,
            "since": self.since,
            "hopeless": self.status.hopeless,
            "cause": self.status.cause.value if self.status.cause is not None else None,
            # seconds that a start of its profile takes
            "usually": usually,
        }


def report(cluster: Cluster, kernel: Any, kernel_id: str, events: Iterable[Object] = ()) -> Report | None:
    """Return what a kernel is doing, None if there is none of this id. ``kernel`` is its manager where it is served here."""
    start = cluster.starts.get(kernel_id)
    item = cluster.record_of(kernel_id)
    if start is not None and (start.ended is None or kernel is None):
        return Report(start.status, start.since, start.profile)
    if item is None and kernel is None:
        return None
    annotations = (item["metadata"].get("annotations") or {}) if item is not None else {}
    profile = str(annotations.get(names.KERNEL_NAME) or getattr(kernel, "kernel_name", ""))
    if kernel is not None and kernel.execution_state == "dead":
        return Report(Status(Phase.FAILED, kernel.reason, hopeless=True), kernel.died_at, profile)
    pod = reach.latest(cluster.pods_of(kernel_id))
    if pod is None and kernel is not None:
        return Report(Status(Phase.TERMINATING, "its pod is gone", hopeless=True), "", profile)
    if pod is None:
        return Report(Status(Phase.QUEUED, NOT_TAKEN), item["metadata"]["creationTimestamp"] if item else "", profile)
    answers = kernel is not None and serving.pod_key(kernel) == key_of(pod)
    found = status.classify(pod, events, datetime.now(timezone.utc), node=cluster.node_of(pod), answers=answers)
    if found.phase is Phase.READY and kernel.warning:
        found = replace(found, sentence=f"{found.sentence}; {kernel.warning}")
    return Report(found, found.since or pod["metadata"]["creationTimestamp"], profile)


def owner(cluster: Cluster, kernel_id: str) -> User | None:
    """Return whose a kernel is that may not be served here yet, or a start that came to nothing."""
    start = cluster.starts.get(kernel_id)
    if start is not None:
        return User(start.user, service=start.service)
    item = cluster.record_of(kernel_id)
    annotations = (item["metadata"].get("annotations") or {}) if item is not None else {}
    return User(annotations[names.USER], service=annotations.get(names.SERVICE, "")) if names.USER in annotations else None


class KernelStatus(Verified, TokenAuthorizationMixin, CORSMixin, JSONErrorsMixin, APIHandler):  # type: ignore[misc]
    """``/api/kernels/<id>/status``."""

    waits = False
    _is_gone = False

    def own(self, kernel_id: str) -> User:
        """Return whose the kernel is, also while it starts. Raises HTTPError 404."""
        cluster = self.kernels.keeper.cluster
        user = self.kernels.user_of(kernel_id) or (owner(cluster, kernel_id) if cluster is not None else None)
        if user is None or (self.caller is not None and not self.caller.may_use(user.name, user.service)):
            raise web.HTTPError(404, f"Kernel does not exist: {kernel_id}")
        return user

    async def get(self, kernel_id: str) -> None:
        """Answer once, or with ``Accept: text/event-stream`` again at each change, until the client has enough."""
        if "text/event-stream" in self.request.headers.get("Accept", ""):
            await self._stream(kernel_id)
            return
        model = await self._model(kernel_id, {})
        if model is None:
            raise NotFoundError(f"Kernel does not exist: {kernel_id}")
        self.finish(json.dumps(model))

    def options(self, **_: Any) -> None:
        """Answer a browser that asks before it asks."""
        self.finish()

    def on_connection_close(self) -> None:
        """Called when the client has hung up."""
        super().on_connection_close()
        self._is_gone = True

    async def _stream(self, kernel_id: str) -> None:
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("Cache-Control", "no-cache")
        loop = asyncio.get_running_loop()
        said: dict[str, Any] | None = None
        spoke = loop.time()
        seen: dict[str, Any] = {}
        try:
            while not self._is_gone:
                model = await self._model(kernel_id, seen)
                if model is None:
                    self.write("event: end\ndata: {}\n\n")
                    break
                if model != said or loop.time() - spoke > _KEEP_ALIVE:
                    self.write(f"data: {json.dumps(model)}\n\n" if model != said else ": nothing new\n\n")
                    said, spoke = model, loop.time()
                    await self.flush()
                await self.kernels.keeper.change(_TICK)
            self.finish()
        except iostream.StreamClosedError:
            return

    async def _model(self, kernel_id: str, seen: dict[str, Any]) -> dict[str, Any] | None:
        """Return the JSON to answer with; ``seen`` keeps the pod's events for a while."""
        cluster = self.kernels.keeper.cluster
        if cluster is None:
            raise NotFoundError(f"Kernel does not exist: {kernel_id}")
        kernel = self.kernels._kernels.get(kernel_id)
        if kernel is None and self.kernels.keeper.has_ended(kernel_id):
            return None
        events = await self._events(cluster, kernel_id, seen) if kernel is None or kernel.awaited else []
        found = report(cluster, kernel, kernel_id, events)
        return found.model(kernel_id, cluster.starts.usually(found.profile)) if found is not None else None

    async def _events(self, cluster: Cluster, kernel_id: str, seen: dict[str, Any]) -> list[Object]:
        """Return the events of a pod that another gateway starts; who starts it here watches them anyway."""
        pod = reach.latest(cluster.pods_of(kernel_id))
        if pod is None or cluster.starts.get(kernel_id) is not None:
            return []
        now = asyncio.get_running_loop().time()
        if now - seen.get("time", -_EVENTS_SECONDS) >= _EVENTS_SECONDS:
            metadata = pod["metadata"]
            selector = f"involvedObject.uid={metadata['uid']}"
            try:
                seen["events"] = (await cluster.client.list("events", metadata["namespace"], fieldSelector=selector))["items"]
            except ElasticKernelsError:
                seen["events"] = []
            seen["time"] = now
        events: list[Object] = seen["events"]
        return events
