"""How the kernels are that this process serves, and what is done about it: deaths, idleness, and what is about to happen.

Each of them is looked at whenever something has changed, and once a second. What is found is logged, counted, and told to those who
are connected.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final

from tornado import web

from elastic_kernels import disruption, names, reach, restarts, status
from elastic_kernels.cluster import Cluster, Object, key_of
from elastic_kernels.disruption import Cause
from elastic_kernels.errors import ElasticKernelsError, one_line
from elastic_kernels.gateway import activity, culling, meeting, serving
from elastic_kernels.gateway.obituaries import mark, obituary
from elastic_kernels.metrics import metrics
from elastic_kernels.restarts import Action
from elastic_kernels.starts import timestamp, transition
from elastic_kernels.status import Phase, Status

if TYPE_CHECKING:
    from elastic_kernels.gateway.managers import ElasticMappingKernelManager

log = logging.getLogger(__name__)

# A kernel that somebody shuts down ends before its record goes, and one that is restarted elsewhere before its next pod comes.
_SETTLED: Final = 1.5
# By then whoever has a connection to it would have restarted it.
_NOBODYS: Final = 10.0
# And whoever restarts it, for which a quota may have no room at once, has created its next pod.
_GONE: Final = 25.0
# Whoever gives a start up knows by then whether its pod goes, if the API server answers.
_DECIDED: Final = 10.0
# Who has run for so long did not crash in a row.
_STABLE: Final = timedelta(minutes=1)
# Thousands of kernels are not counted at every change, but after so many seconds for each.
_COUNTED: Final = 0.002

Begin = Callable[[str, Coroutine[Any, Any, Any]], None]
"""Carries out one thing at a time for a kernel, given its id."""


@dataclass
class _Death:
    """A kernel's pod that has ended, and since when (the loop's time) this is known."""

    since: float
    status: Status


@dataclass
class _Known:
    """What is remembered of a kernel."""

    last: Object | None = None
    """Its pod as last seen."""
    status: Status | None = None
    """What it was doing when it was last looked at."""
    death: _Death | None = None
    cause: Cause | None = None
    """Of its last end."""
    crashes: int = 0
    """In a row."""


class Health:
    """Of all kernels of one process. Belongs to its event loop."""

    def __init__(self, kernels: ElasticMappingKernelManager, begin: Begin, wake: Callable[[], None]) -> None:
        """``wake`` has what is open be looked at again."""
        self._kernels = kernels
        self._begin = begin
        self._wake = wake
        self._known: dict[str, _Known] = {}
        self._next_count = 0.0
        self._fresh_since: float | None = None
        """Since when the copies have been kept up without a break."""

    def look(self, cluster: Cluster, kernel_id: str, item: Object, pods: list[Object], now: float) -> None:
        """Look at one kernel: ``item`` is its record, ``pods`` are its pods, ``now`` is the loop's time."""
        kernel = self._kernels._kernels[kernel_id]
        known = self._known.setdefault(kernel_id, _Known())
        self._end_former(cluster, kernel, pods)
        key = serving.pod_key(kernel)
        current = cluster.pods.get(key) if key is not None else None
        known.last = current or known.last
        if kernel.execution_state == "dead":
            self._note(kernel_id, kernel, known, Status(Phase.FAILED, kernel.reason, hopeless=True, cause=known.cause))
            latest = reach.latest(pods)
            is_gone = current is None and (latest is None or status.is_over(latest))
            if is_gone and kernel.reason and not obituary(item) and cluster.pods.is_fresh:
                # its pod, which would say so, is gone
                self._begin(kernel_id, mark(cluster, item, kernel.reason))
            else:
                self._cull(cluster, kernel_id, kernel, None, now)
        elif kernel.awaited:
            self._comes_to_nothing(cluster, kernel_id, known, item, now)
        elif current is not None and not status.has_ended(current):
            self._lives(cluster, kernel_id, kernel, known, current, now)
        elif (current is None or not kernel.has_kernel) and obituary(item) and cluster.pods.is_fresh:
            # whoever was starting it again has come to nothing, and says so
            self.died(kernel_id, obituary(item))
        elif current is not None or (cluster.pods.is_fresh and known.last is not None):
            self._ends(cluster, kernel_id, kernel, known, current, now)

    def met(self, kernel_id: str, pod: Object | None) -> None:
        """Forget what was remembered of a kernel, which is another pod's by now."""
        self._known[kernel_id] = _Known(last=pod)

    def is_open(self, kernel_id: str, kernel: Any) -> bool:
        """Tell whether something is to be done about a kernel before anything changes or a long time is over."""
        known = self._known.get(kernel_id)
        is_changing = kernel.restarting or kernel.shutting_down or kernel.awaited
        return known is None or known.death is not None or bool(is_changing or kernel.warning)

    def summarise(self, cluster: Cluster, now: float) -> None:
        """Called when all to be looked at have been: tells Prometheus how many kernels there are, and how old what is known of them is."""
        is_fresh = cluster.pods.is_fresh and cluster.records.is_fresh
        self._fresh_since = (self._fresh_since or now) if is_fresh else None
        for kernel_id in self._known.keys() - self._kernels._kernels.keys():
            del self._known[kernel_id]
        if now < self._next_count:
            return
        self._next_count = now + _COUNTED * len(cluster.records)
        recorded = {str(item["metadata"]["labels"].get(names.KERNEL_ID, "")): item for item in cluster.records.objects()}
        counts: Counter[tuple[str, str]] = Counter()
        for kernel_id, item in recorded.items():
            known = self._known.get(kernel_id)
            phase = known.status.phase.value if known is not None and known.status is not None else "starting"
            counts[item["metadata"]["labels"].get(names.LIMIT_CLASS, ""), phase] += 1
        metrics().count_kernels(counts)
        for resource, informer in (("pods", cluster.pods), ("secrets", cluster.records)):
            since = informer.stale_since
            metrics().staleness.labels(resource).set(0 if since is None else now - since)

    def died(self, kernel_id: str, sentence: str) -> None:
        """Have a kernel be dead, and say why, here and to those who are connected."""
        kernel = self._kernels._kernels[kernel_id]
        if kernel.execution_state == "dead" and kernel.reason == sentence:
            return
        log.warning("Kernel %s is dead: %s", kernel_id, sentence)
        # its answer, which may still come, would have it be idle
        activity.forget(kernel)
        kernel.execution_state, kernel.reason, kernel.died_at, kernel.awaited = "dead", sentence, timestamp(), ""
        kernel.kernel = None
        for websocket in serving.websockets(kernel_id):
            websocket.died(sentence)

    def awaits(self, cluster: Cluster, kernel_id: str, pod: Object) -> None:
        """Called for a kernel that another gateway has begun to start in ``pod``, and which is not in it yet.

        That other one may have been killed: it is dead once that gateway would have given it up.
        """
        kernel = self._kernels._kernels[kernel_id]
        known = self._known.setdefault(kernel_id, _Known())
        moment = datetime.now(timezone.utc)
        found = status.classify(pod, (), moment, node=cluster.node_of(pod))
        is_late = cluster.pods.is_fresh and meeting.is_lost(pod, moment)
        known.death = None
        if found.hopeless or is_late:
            self.died(kernel_id, f"it could not be started again: {'it was not ready in time: ' if is_late else ''}{found.sentence}")
            for item in cluster.pods_of(kernel_id):
                cluster.reaper.end(*key_of(item), grace=0 if item is pod else kernel.process_proxy.profile.grace_period)
            return
        self._note(kernel_id, kernel, known, found)
        activity.forget(kernel)
        kernel.is_known, kernel.awaited = False, found.sentence
        kernel.execution_state = "restarting" if reach.start_of(pod) > 1 else "starting"

    def clear(self, cluster: Cluster, kernel_id: str) -> None:
        """Called before a kernel is started again: end pods of it that nobody waits for any more, which would take the new one's room."""
        kernel = self._kernels._kernels[kernel_id]
        for pod in cluster.pods_of(kernel_id) if kernel.awaited else ():
            if reach.is_given_up(pod, datetime.now(timezone.utc)):
                cluster.reaper.end(*key_of(pod), grace=kernel.process_proxy.profile.grace_period)

    def failed(self, kernel_id: str, cluster: Cluster | None, sentence: str) -> None:
        """Called when a start has failed here: the kernel is dead, for this reason and no other that its record may have."""
        self.died(kernel_id, sentence)
        item = cluster.record_of(kernel_id) if cluster is not None else None
        if cluster is not None and item is not None and obituary(item) != one_line(sentence):
            self._begin(kernel_id, self._bury(cluster, kernel_id, item, sentence))

    async def _bury(self, cluster: Cluster, kernel_id: str, item: Object, sentence: str) -> None:
        """Say on a kernel's record why it is dead, unless it lives on in another gateway's pod, or in one that another has joined."""
        latest = reach.latest(cluster.pods_of(kernel_id))
        if latest is not None:
            await cluster.reaper.decided(key_of(latest), _DECIDED)
            latest = reach.latest(cluster.pods_of(kernel_id))
        if not cluster.pods.is_fresh:
            # it is said later: see ``look``
            return
        if latest is None or status.is_over(latest) or reach.is_leaving(cluster, latest):
            await mark(cluster, item, sentence)

    def revived(self, cluster: Cluster, kernel_id: str) -> None:
        """Called when a kernel has been started again: what its record says of its end does not hold any more."""
        item = cluster.record_of(kernel_id)
        if item is not None and obituary(item):
            self._begin(kernel_id, mark(cluster, item, ""))

    def _lives(self, cluster: Cluster, kernel_id: str, kernel: Any, known: _Known, pod: Object, now: float) -> None:
        known.death = None
        moment = datetime.now(timezone.utc)
        alive = status.classify(pod, (), moment, node=cluster.node_of(pod), answers=True)
        self._note(kernel_id, kernel, known, replace(alive, sentence="; ".join(filter(None, (alive.sentence, kernel.warning)))))
        written = pod["metadata"].get("annotations") or {}
        is_unsaid = meeting.is_under_way(pod) and _age(pod, moment) > _NOBODYS
        if names.USED not in written and (is_unsaid or names.AWAITED in written):
            # who sees no sign of life, from its kubelet or by itself, is not to take it for one that never lived
            self._begin(kernel_id, culling.write(cluster, pod, moment))
        else:
            self._cull(cluster, kernel_id, kernel, pod, now)
        if (begun := serving.started_at(pod)) is not None and moment - begun > _STABLE:
            known.crashes = 0

    def _comes_to_nothing(self, cluster: Cluster, kernel_id: str, known: _Known, item: Object, now: float) -> None:
        """A start that another gateway had begun has ended without a kernel. Whoever began it says why, if it is still there."""
        if obituary(item):
            self.died(kernel_id, obituary(item))
        elif cluster.pods.is_fresh:
            sentence = "it could not be started again: its pod was deleted"
            known.death = known.death or _Death(now, Status(Phase.FAILED, sentence, hopeless=True))
            self._decide(kernel_id, self._kernels._kernels[kernel_id], known, now)

    def _ends(self, cluster: Cluster, kernel_id: str, kernel: Any, known: _Known, pod: Object | None, now: float) -> None:
        moment = datetime.now(timezone.utc)
        found = status.classify(known.last, (), moment, node=cluster.node_of(known.last), is_gone=pod is None)
        was_announced = known.status is not None and known.status.cause is not None
        if known.status is not None and was_announced and found.cause in (Cause.DELETED, Cause.COMPLETED, Cause.CRASHED):
            # who carries out what was announced deletes the pod
            found = replace(found, cause=known.status.cause, sentence=known.status.sentence.removeprefix(status.SOON))
        known.cause = found.cause
        known.death = known.death or _Death(now, found)
        self._decide(kernel_id, kernel, known, now)

    def _decide(self, kernel_id: str, kernel: Any, known: _Known, now: float) -> None:
        """Do with a kernel that has ended what is to be done, once it is sure that nobody else is doing it."""
        assert known.death is not None
        is_connected = self._kernels._kernel_connections.get(kernel_id, 0) > 0
        found = known.death.status
        is_gone = found.cause in (Cause.DELETED, Cause.COMPLETED)
        left = known.death.since + (_SETTLED if is_connected else _GONE if is_gone else _NOBODYS) - now
        if left > 0:
            asyncio.get_running_loop().call_later(left, self._wake)
            return
        profile = kernel.process_proxy.profile
        action = restarts.after(found.cause, profile, is_connected=is_connected, crashes=known.crashes)
        log.warning("Kernel %s has ended: %s (%s)", kernel_id, found.sentence, action.value)
        known.death = None
        if action is Action.RESTART:
            known.crashes += 1
            kernel.on_demand = profile.on_demand_after_loss and found.cause in restarts.LOSSES
            self._begin(kernel_id, self._start_again(kernel_id, found.sentence))
        elif action is Action.REMOVE:
            self._begin(kernel_id, self._kernels.shutdown_kernel(kernel_id, now=True))
        else:
            self.died(kernel_id, found.sentence)

    async def _start_again(self, kernel_id: str, sentence: str) -> None:
        for websocket in serving.websockets(kernel_id):
            websocket.restarts(sentence)
        try:
            await self._kernels.restart_kernel(kernel_id)
        except (ElasticKernelsError, web.HTTPError):
            # the kernel is dead, and says why
            return
        for websocket in serving.websockets(kernel_id):
            # nobody asked for it, and nobody connects anew without being told
            websocket.moved(0)

    def _cull(self, cluster: Cluster, kernel_id: str, kernel: Any, pod: Object | None, now: float) -> None:
        """Begin to shut a kernel down that has been idle for long enough, or to let others know that it is not."""
        kernel.warning = ""
        limit = culling.limit_of(self._kernels, kernel)
        is_known = kernel.execution_state == "dead" or getattr(kernel, "is_known", False)
        if not limit or not is_known:
            # one that has been met a moment ago has not said yet whether it executes something
            return
        moment = datetime.now(timezone.utc)
        here, shared = culling.used_at(self._kernels, kernel, pod, moment)
        if pod is not None and culling.is_to_be_written(limit, here, shared):
            self._begin(kernel_id, culling.write(cluster, pod, here))
            return
        end = culling.ends_at(limit, here, shared)
        # who has not seen the others' writing for a while does not know whether it is in use
        knows = self._fresh_since is not None and now - self._fresh_since > 2 * culling.interval(limit)
        if moment < end or not knows:
            kernel.warning = culling.warning(limit, end, moment)
        else:
            self._begin(kernel_id, self._shut_idle_down(kernel_id, limit))

    async def _shut_idle_down(self, kernel_id: str, limit: float) -> None:
        log.warning("Kernel %s has been idle for %.0f seconds and is shut down", kernel_id, limit)
        for websocket in serving.websockets(kernel_id):
            websocket.died(f"it was idle for {limit:.0f} seconds and was shut down")
        await self._kernels.shutdown_kernel(kernel_id)

    def _note(self, kernel_id: str, kernel: Any, known: _Known, now: Status) -> None:
        """Log a change of a kernel's status, and tell those who are connected what is about to happen to it."""
        if now == known.status:
            return
        user = self._kernels.user_of(kernel_id)
        pod = "/".join(kernel.process_proxy.key or ()) if kernel.process_proxy is not None else ""
        transition(kernel_id, user.name if user is not None else "", kernel.kernel_name, pod, known.status, now)
        is_new = known.status is None or known.status.cause is not now.cause
        known.status = now
        # what drives a pod away at once is not announced before
        ends = now.phase is Phase.TERMINATING and now.cause is not Cause.DELETED and is_new
        if now.phase in (Phase.ENDING_SOON, Phase.UNREACHABLE) or ends:
            for websocket in serving.websockets(kernel_id):
                websocket.notice(f"The kernel: {now.sentence}.")

    def _end_former(self, cluster: Cluster, kernel: Any, pods: list[Object]) -> None:
        """End pods of earlier starts: whoever began a later one has done so, unless it was killed in between."""
        latest = reach.latest(pods) if len(pods) > 1 else None
        if latest is None or kernel.process_proxy is None:
            return
        begun = serving.started_at(latest)
        if begun is None or datetime.now(timezone.utc) - begun < _STABLE:
            return
        for pod in pods:
            if reach.start_of(pod) < reach.start_of(latest) and not pod["metadata"].get("deletionTimestamp"):
                cluster.reaper.end(
                    *(pod["metadata"]["namespace"], pod["metadata"]["name"]), grace=kernel.process_proxy.profile.grace_period
                )


def _age(pod: Object, now: datetime) -> float:
    created = disruption.time(pod["metadata"].get("creationTimestamp"))
    return (now - created).total_seconds() if created is not None else 0.0
