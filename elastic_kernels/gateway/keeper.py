"""The keeper: what this process serves follows what the cluster has. It takes up kernels that others started, and after a restart
of this process those that it had; it follows those that others restart; it lets go of those that others end; and it decides
about those that ended by themselves.

All of it comes from the informers' copies. Every gateway of a deployment does the same, and each can serve every kernel; nothing
is agreed upon between them but what the API server holds: records, and pods of which each name exists once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final

from elastic_kernels import names, reach, restarts, status
from elastic_kernels import record as records
from elastic_kernels.cluster import Cluster, Key, Object, RecordRef, shared
from elastic_kernels.disruption import Cause
from elastic_kernels.errors import ClusterAwayError, ClusterError, ConfigurationError, ElasticKernelsError, one_line
from elastic_kernels.gateway import culling, serving
from elastic_kernels.launch import Started
from elastic_kernels.metrics import metrics
from elastic_kernels.restarts import Action
from elastic_kernels.settings import ElasticKernels
from elastic_kernels.starts import timestamp, transition
from elastic_kernels.status import Phase, Status

if TYPE_CHECKING:
    from elastic_kernels.gateway.managers import ElasticMappingKernelManager

log = logging.getLogger(__name__)

# Changes come in bursts.
_BURST: Final = 0.02
_LOOK_AGAIN: Final = 1.0
# How long a request for a kernel waits for the kernel to answer, or for the first look at the cluster.
_PATIENCE: Final = 10.0
# A kernel that somebody shuts down ends before its record goes, and one that is restarted elsewhere before its next pod comes.
_SETTLED: Final = 1.5
# By then whoever has a connection to it would have restarted it.
_NOBODYS: Final = 10.0
# Who has run for so long did not crash in a row.
_STABLE: Final = timedelta(minutes=1)
_ACCEPTED: Final = 5.0
_TRIED_AGAIN: Final = 15.0


@dataclass
class _Death:
    """A kernel's pod that has ended, or was never there, and since when this is known."""

    since: float
    status: Status


@dataclass
class _Known:
    """What the keeper remembers of a kernel that this process serves."""

    was_recorded: bool = False
    """Whether its record has been in the copy: only then does its absence mean that it is gone."""
    last: Object | None = None
    """Its pod as last seen."""
    death: _Death | None = None
    cause: Cause | None = None
    status: Status | None = None
    crashes: int = 0


class Keeper:
    """Belongs to one kernel manager and one event loop, on which all methods are called."""

    def __init__(self, kernels: ElasticMappingKernelManager) -> None:
        self._kernels = kernels
        self._cluster: Cluster | None = None
        self._is_running = False
        self._looked = asyncio.Event()
        self._known: dict[str, _Known] = {}
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._wake = asyncio.Event()
        self._waiting: set[asyncio.Event] = set()
        self._fresh_since: float | None = None
        """Since when the copies have been kept up without a break."""
        self._ended: dict[str, str | None] = {}
        """What was shut down here and may still be in the copy: kernels' ids, and their records' uids."""
        self._failed: dict[str, tuple[str, float]] = {}
        """What could not be served: why, and when that is tried again."""

    async def run(self) -> None:
        """Look at every change, until cancelled. Started with the gateway."""
        self._is_running = True
        try:
            cluster = self._cluster = await shared(ElasticKernels(parent=self._kernels.parent))
        except (ConfigurationError, ElasticKernelsError) as error:
            log.warning("No kernel can be taken up: %s", error)
            self._looked.set()
            return
        for informer in (cluster.pods, cluster.records):
            informer.observe(self._wake.set)
            await informer.listed()
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            try:
                self.look(loop.time())
            except Exception:
                log.exception("Looking after the kernels failed; it is tried again")
            if not self._looked.is_set():
                if self._tasks:
                    await asyncio.wait(list(self._tasks.values()), timeout=_PATIENCE)
                self._looked.set()
            for changed in self._waiting:
                changed.set()
            await _wait(self._wake, _LOOK_AGAIN)
            await asyncio.sleep(_BURST)

    @property
    def cluster(self) -> Cluster | None:
        """The cluster that is watched, None while there is none."""
        return self._cluster

    def has_ended(self, kernel_id: str) -> bool:
        """Tell whether a kernel was shut down here, and what is left of it is on its way out."""
        return kernel_id in self._ended

    async def change(self, seconds: float) -> None:
        """Return after the next change of any kernel, or when ``seconds`` are over."""
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            await _wait(changed, seconds)
        finally:
            self._waiting.discard(changed)

    async def complete(self) -> None:
        """Return once all kernels that run are known here. Raises ClusterAwayError if that takes too long."""
        if not self._is_running:
            return
        try:
            await asyncio.wait_for(self._looked.wait(), _PATIENCE)
        except asyncio.TimeoutError:
            raise ClusterAwayError("The gateway cannot see the cluster and does not know your kernels; try again in a minute.") from None
        if self._cluster is not None:
            self.look(asyncio.get_running_loop().time())
            under_way = list(self._tasks.values())
            if under_way:
                await asyncio.wait(under_way, timeout=_PATIENCE)

    async def find(self, kernel_id: str, *, is_to_answer: bool = False) -> None:
        """Return once a kernel that the cluster has is served here, and if it ``is_to_answer``, in the pod that it is in now."""
        if not self._looked.is_set():
            await self.complete()
        if self._cluster is None:
            return
        self.look(asyncio.get_running_loop().time())
        task = self._tasks.get(kernel_id)
        if task is not None and (is_to_answer or kernel_id not in self._kernels):
            await asyncio.wait({task}, timeout=_PATIENCE)

    def look(self, now: float) -> None:
        """Compare what is served with what there is, and begin whatever follows from it. ``now`` is the loop's time."""
        cluster, served = self._cluster, self._kernels._kernels
        if cluster is None:
            return
        is_fresh = cluster.pods.is_fresh and cluster.records.is_fresh
        self._fresh_since = (self._fresh_since or now) if is_fresh else None
        recorded = {_kernel_id(item): item for item in cluster.records.objects()}
        pods: dict[str, list[Object]] = {}
        for item in cluster.pods.objects():
            pods.setdefault(_kernel_id(item), []).append(item)
        for kernel_id, item in recorded.items():
            if kernel_id not in served and self._ended.get(kernel_id) != item["metadata"]["uid"] and self._may_begin(kernel_id, now):
                pod = reach.latest(pods.get(kernel_id, ()))
                if (pod is not None and _is_worth_meeting(pod)) or (pod is None and _obituary(item)):
                    self._begin(kernel_id, self._meet(cluster, item, pod))
        for kernel_id, kernel in list(served.items()):
            if getattr(kernel, "elastic_record", None) is not None and self._may_begin(kernel_id, now):
                self._look_after(cluster, kernel_id, kernel, recorded.get(kernel_id), pods.get(kernel_id, []), now)
        if cluster.nodes is not None:
            cluster.nodes.observe(self._wake.set)
        self._count(cluster, recorded)
        for kernel_id in self._known.keys() - served.keys():
            del self._known[kernel_id]
        if cluster.records.is_fresh:
            self._ended = {kernel_id: uid for kernel_id, uid in self._ended.items() if kernel_id in recorded}

    def _count(self, cluster: Cluster, recorded: Mapping[str, Object]) -> None:
        """Tell Prometheus how many kernels there are, and how old what is known of them is."""
        counts: Counter[tuple[str, str]] = Counter()
        for kernel_id, item in recorded.items():
            known = self._known.get(kernel_id)
            phase = known.status.phase.value if known is not None and known.status is not None else "starting"
            counts[item["metadata"]["labels"].get(names.LIMIT_CLASS, ""), phase] += 1
        metrics().count_kernels(counts)
        for resource, informer in (("pods", cluster.pods), ("secrets", cluster.records)):
            since = informer.stale_since
            metrics().staleness.labels(resource).set(0 if since is None else asyncio.get_running_loop().time() - since)

    def _note(self, kernel_id: str, kernel: Any, known: _Known, now: Status) -> None:
        """Log a change of a kernel's status, and tell those who are connected what is about to happen to it."""
        if now == known.status:
            return
        user = self._kernels.user_of(kernel_id)
        pod = "/".join(kernel.process_proxy.key or ()) if kernel.process_proxy is not None else ""
        transition(kernel_id, user.name if user is not None else "", kernel.kernel_name, pod, known.status, now)
        known.status = now
        if now.phase in (Phase.ENDING_SOON, Phase.UNREACHABLE):
            for websocket in serving.websockets(kernel_id):
                websocket.notice(f"The kernel: {now.sentence}.")

    def died(self, kernel_id: str, sentence: str) -> None:
        """Have a kernel be dead, and say why, here and to those who are connected."""
        kernel = self._kernels._kernels[kernel_id]
        if kernel.execution_state == "dead" and kernel.reason == sentence:
            return
        log.warning("Kernel %s is dead: %s", kernel_id, sentence)
        kernel.execution_state, kernel.reason, kernel.died_at = "dead", sentence, timestamp()
        kernel.kernel = None
        kernel.shutting_down = False
        for websocket in serving.websockets(kernel_id):
            websocket.died(sentence)

    def revived(self, kernel_id: str) -> None:
        """Called when a kernel has been started again: what its record says of its end does not hold any more."""
        item = self._cluster.record_of(kernel_id) if self._cluster is not None else None
        if self._cluster is not None and item is not None and _obituary(item):
            self._begin(kernel_id, _mark(self._cluster, item, ""))

    async def cancel(self, kernel_id: str) -> bool:
        """Cancel a kernel's start, here or elsewhere; return False if there is none."""
        starting = self._kernels._starting_kernels.get(kernel_id)
        if starting is not None and not starting.done():
            starting.cancel()
            return True
        item = self._cluster.record_of(kernel_id) if self._cluster is not None else None
        if self._cluster is None or item is None or kernel_id in self._ended:
            return False
        metadata = item["metadata"]
        self._ended[kernel_id] = metadata["uid"]
        await self._end(self._cluster, kernel_id, RecordRef(metadata["name"], "", metadata["uid"]), metadata["namespace"])
        return True

    async def _end(self, cluster: Cluster, kernel_id: str, record: RecordRef, namespace: str) -> None:
        """Have all that there is of a kernel deleted, and return when the cluster has accepted that, or after a while."""
        pods = [item["metadata"]["name"] for item in cluster.pods_of(kernel_id)]
        endings = [cluster.reaper.end(namespace, pod, grace=0, record=record) for pod in pods or [None]]
        await asyncio.wait([asyncio.ensure_future(ending.accepted.wait()) for ending in endings], timeout=_ACCEPTED)

    async def ended(self, kernel_id: str, kernel: Any, *, was_dead: bool) -> None:
        """Called when a kernel has been shut down here, so that it is not met again; of one that was dead, the rest is ended, too."""
        held = getattr(kernel, "elastic_record", None)
        if held is None or self._cluster is None:
            return
        namespace, record = held
        self._ended[kernel_id] = record.uid
        if was_dead:
            await self._end(self._cluster, kernel_id, record, namespace)

    def _may_begin(self, kernel_id: str, now: float) -> bool:
        is_starting = kernel_id in self._kernels._starting_kernels
        return kernel_id not in self._tasks and not is_starting and self._failed.get(kernel_id, ("", 0.0))[1] <= now

    def _begin(self, kernel_id: str, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work, name=f"kernel {kernel_id}")
        self._tasks[kernel_id] = task

        def done(finished: asyncio.Task[Any]) -> None:
            self._tasks.pop(kernel_id, None)
            if not finished.cancelled() and (error := finished.exception()) is not None:
                self._complain(kernel_id, error)

        task.add_done_callback(done)

    def _complain(self, kernel_id: str, error: BaseException) -> None:
        """Say once why a kernel cannot be served: it is tried again and again."""
        said = f"{type(error).__name__}: {getattr(error, 'log_message', None) or error}"
        if self._failed.get(kernel_id, ("", 0.0))[0] != said:
            log.warning("Kernel %s cannot be served so far: %s", kernel_id, said)
        self._failed[kernel_id] = (said, asyncio.get_running_loop().time() + _TRIED_AGAIN)

    async def _meet(self, cluster: Cluster, item: Object, pod: Object | None) -> None:
        """Serve a kernel that another process started."""
        secret = await cluster.client.get("secrets", item["metadata"]["namespace"], item["metadata"]["name"])
        if secret is None or secret["metadata"]["uid"] != item["metadata"]["uid"]:
            return
        kept = records.from_secret(secret)
        started = await self._reached(cluster, kept, secret, pod)
        kernel_id = kept.kernel_id
        if started is None or kernel_id in self._kernels._kernels or kernel_id in self._kernels._starting_kernels:
            return
        serving.take_up(self._kernels, cluster, kept, started, pod)
        self._known[kernel_id] = _Known(was_recorded=True, last=pod)
        self._failed.pop(kernel_id, None)
        if started.address:
            log.info("Kernel %s of %r is served from now on, in the pod %s/%s", kernel_id, kept.user, *started.key)
        else:
            ended = status.classify(pod, (), datetime.now(timezone.utc))
            self.died(kernel_id, _obituary(secret) or ended.sentence)

    async def _follow(self, cluster: Cluster, kernel: Any, item: Object, pod: Object) -> None:
        """Serve a kernel in the pod to which somebody else's restart has brought it."""
        secret = await cluster.client.get("secrets", item["metadata"]["namespace"], item["metadata"]["name"])
        if secret is None:
            return
        kept = records.from_secret(secret)
        started = await self._reached(cluster, kept, secret, pod)
        if started is None or self._kernels._kernels.get(kept.kernel_id) is not kernel or kernel.restarting:
            return
        log.info("Kernel %s was restarted elsewhere, and is in the pod %s/%s now", kept.kernel_id, *started.key)
        serving.move(self._kernels, cluster, kernel, started)
        self._known[kept.kernel_id] = _Known(was_recorded=True, last=pod)

    async def _reached(self, cluster: Cluster, kept: records.Record, secret: Object, pod: Object | None) -> Started | None:
        """Return how a kernel is reached, without an address if it is dead; None if it does not answer yet."""
        ref = RecordRef(kept.name, kept.token, secret["metadata"]["uid"])
        if pod is None or status.has_ended(pod):
            key = _key(pod) if pod is not None else (kept.namespace, "")
            return Started(key, "", {}, ref, reach.start_of(pod) if pod is not None else 0)
        calls_back = self._kernels.calls_back(kept.kernel_name)
        try:
            connection = await asyncio.wait_for(reach.again(cluster, kept, pod, calls_back), _PATIENCE)
        except asyncio.TimeoutError:
            return None
        return Started(_key(pod), pod["status"]["podIP"], connection, ref, reach.start_of(pod)) if connection is not None else None

    def _look_after(self, cluster: Cluster, kernel_id: str, kernel: Any, item: Object | None, pods: list[Object], now: float) -> None:
        """Begin what a served kernel needs, if anything."""
        known = self._known.setdefault(kernel_id, _Known())
        if kernel.restarting or kernel.shutting_down:
            return
        if item is None:
            if known.was_recorded and cluster.records.is_fresh:
                self._lose(kernel_id)
            return
        known.was_recorded = True
        latest = reach.latest(pods)
        key = kernel.process_proxy.key if kernel.process_proxy is not None else None
        self._end_former(cluster, kernel, pods, latest)
        if latest is not None and _key(latest) != key and not latest["metadata"].get("deletionTimestamp"):
            if _is_worth_meeting(latest) and not status.has_ended(latest):
                self._begin(kernel_id, self._follow(cluster, kernel, item, latest))
            return
        current = cluster.pods.get(key) if key is not None else None
        known.last = current or known.last
        if kernel.execution_state == "dead":
            self._note(kernel_id, kernel, known, Status(Phase.FAILED, kernel.reason, hopeless=True, cause=known.cause))
            if current is None and not _obituary(item) and cluster.pods.is_fresh:
                # its pod, which would say so, is gone
                self._begin(kernel_id, _mark(cluster, item, kernel.reason))
                return
            self._cull(cluster, kernel_id, kernel, None, now)
            return
        if current is None and not (cluster.pods.is_fresh and known.last is not None):
            return
        if current is not None and not status.has_ended(current):
            known.death = None
            alive = status.classify(current, (), datetime.now(timezone.utc), node=cluster.node_of(current), answers=True)
            self._note(kernel_id, kernel, known, replace(alive, sentence="; ".join(filter(None, (alive.sentence, kernel.warning)))))
            self._cull(cluster, kernel_id, kernel, current, now)
            if (begun := serving.started_at(current)) is not None and datetime.now(timezone.utc) - begun > _STABLE:
                known.crashes = 0
            return
        now_ = datetime.now(timezone.utc)
        found = status.classify(known.last, (), now_, node=cluster.node_of(known.last), is_gone=current is None)
        if found.cause in (Cause.DELETED, Cause.COMPLETED, Cause.CRASHED) and known.status is not None and known.status.cause is not None:
            # it was announced, and who carries it out deletes
            found = replace(found, cause=known.status.cause, sentence=known.status.sentence.removeprefix(status.SOON))
        known.cause = found.cause
        known.death = known.death or _Death(now, found)
        self._decide(cluster, kernel_id, kernel, item, known, now)

    def _end_former(self, cluster: Cluster, kernel: Any, pods: list[Object], latest: Object | None) -> None:
        """End pods of earlier starts: whoever began a later one has done so, unless it was killed in between."""
        if latest is None or len(pods) < 2 or kernel.process_proxy is None:
            return
        begun = serving.started_at(latest)
        if begun is None or datetime.now(timezone.utc) - begun < _STABLE:
            return
        for pod in pods:
            if reach.start_of(pod) < reach.start_of(latest) and not pod["metadata"].get("deletionTimestamp"):
                cluster.reaper.end(*_key(pod), grace=kernel.process_proxy.profile.grace_period)

    def _cull(self, cluster: Cluster, kernel_id: str, kernel: Any, pod: Object | None, now: float) -> None:
        """Begin to shut a kernel down that has been idle for long enough, or to let others know that it is not."""
        kernel.warning = ""
        limit = culling.limit_of(self._kernels, kernel)
        if not limit:
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

    def _decide(self, cluster: Cluster, kernel_id: str, kernel: Any, item: Object, known: _Known, now: float) -> None:
        """Do with a kernel that has ended what is to be done, once it is sure that nobody else is doing it."""
        assert known.death is not None
        is_connected = self._kernels._kernel_connections.get(kernel_id, 0) > 0
        if now - known.death.since < (_SETTLED if is_connected else _NOBODYS):
            return
        found = known.death.status
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
        await self._kernels.restart_kernel(kernel_id)
        for websocket in serving.websockets(kernel_id):
            websocket.moved()

    def _lose(self, kernel_id: str) -> None:
        log.info("Kernel %s was ended elsewhere", kernel_id)
        for websocket in serving.websockets(kernel_id):
            websocket.died("it was shut down")
        serving.drop(self._kernels, kernel_id)


async def _mark(cluster: Cluster, item: Object, sentence: str) -> None:
    """Write on a kernel's record why it is dead, for every gateway to see; empty takes it back."""
    metadata = item["metadata"]
    try:
        # a change makes the record look newer than it is, and its place among the others is what limits go by
        order = (metadata.get("annotations") or {}).get(names.ORDER) or metadata["resourceVersion"]
        await cluster.client.annotate("secrets", item, {names.ENDED: one_line(sentence), names.ORDER: order})
    except (ClusterError, ClusterAwayError) as error:
        log.warning("The record %s cannot be marked as that of a dead kernel: %s", metadata["name"], error)


def _obituary(item: Object) -> str:
    return str((item["metadata"].get("annotations") or {}).get(names.ENDED, ""))


def _is_worth_meeting(pod: Object) -> bool:
    """Tell whether a pod's kernel can be served: it runs, or has run and is not being taken away."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    state: Mapping[str, Any] = pod.get("status") or {}
    return (state.get("phase") == Phase.RUNNING.value.capitalize() and bool(state.get("podIP"))) or status.has_ended(pod)


def _kernel_id(item: Object) -> str:
    return str(item["metadata"]["labels"].get(names.KERNEL_ID, ""))


def _key(item: Object) -> Key:
    return item["metadata"]["namespace"], item["metadata"]["name"]


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except asyncio.TimeoutError:
        return
