"""The keeper: what this process serves follows what the cluster has. It takes up kernels that others started, and after a restart
of this process those that it had; it follows those that others restart; it lets go of those that others end. How they are is looked at
in ``health``.

All of it comes from the informers' copies. Every gateway of a deployment does the same, and each can serve every kernel; nothing
is agreed upon between them but what the API server holds: records, and pods of which each name exists once.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from elastic_kernels import names, patience, reach, status
from elastic_kernels import record as records
from elastic_kernels.cluster import Cluster, Object, RecordRef, key_of, shared
from elastic_kernels.errors import ConfigurationError, ElasticKernelsError
from elastic_kernels.gateway import meeting, serving
from elastic_kernels.gateway.attention import Attention
from elastic_kernels.gateway.health import Health
from elastic_kernels.gateway.obituaries import mark, obituary
from elastic_kernels.gateway.works import Works
from elastic_kernels.launch import Started
from elastic_kernels.settings import ElasticKernels

if TYPE_CHECKING:
    from elastic_kernels.gateway.managers import ElasticMappingKernelManager

log = logging.getLogger(__name__)

# Changes come in bursts.
_BURST: Final = 0.1
_LOOK_AGAIN: Final = 1.0
# How long the first look waits for kernels to answer.
_PATIENCE: Final = 10.0
_ACCEPTED: Final = 5.0
# A record that was created here is in the copy by then, or has probably been deleted meanwhile.
_UNSEEN: Final = 2.0


class Keeper:
    """Belongs to one kernel manager and one event loop, on which all methods are called."""

    def __init__(self, kernels: ElasticMappingKernelManager) -> None:
        self._kernels = kernels
        self._cluster: Cluster | None = None
        self._is_running = False
        self._looked = asyncio.Event()
        self._wake = asyncio.Event()
        self._attention = Attention()
        self.works = Works(self._attention.due_again)
        self.health = Health(kernels, self.works.begin, self._wake.set)
        self._recorded: set[str] = set()
        """The kernels served here whose record has been in the copy: only then does its absence mean that it is gone."""
        self._unseen: dict[str, float] = {}
        """Those whose record has not been there yet, and since when (the loop's time) a copy that is kept up has not had it."""
        self._was_fresh = False
        self._waiting: set[asyncio.Event] = set()
        self._ended: dict[str, str | None] = {}
        """What was shut down here and may still be in the copy: kernels' ids, and their records' uids."""

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
            informer.follow(lambda item: self._attention.due_again(_kernel_id(item)))
            await informer.listed()
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            try:
                self.look(loop.time())
            except Exception:
                log.exception("Looking after the kernels failed; it is tried again")
            if not self._looked.is_set():
                await self.works.settled(lambda _: True, _PATIENCE)
                self._looked.set()
            for changed in self._waiting:
                changed.set()
            await patience.happens(self._wake, _LOOK_AGAIN)
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
            await patience.happens(changed, seconds)
        finally:
            self._waiting.discard(changed)

    async def has_looked(self, seconds: float) -> bool:
        """Return once the kernels have been looked at for the first time, and tell whether they have when ``seconds`` are over."""
        return not self._is_running or await patience.happens(self._looked, seconds)

    def meet_all(self) -> None:
        """Begin to serve what something has happened to since the last look."""
        for kernel_id in tuple(self._attention.due):
            self.meet(kernel_id)

    def is_settled(self, kernel_id: str) -> bool:
        """Tell whether nothing is to be waited for before a kernel is served here: it is, will be in a moment, has ended, or cannot be."""
        is_here = kernel_id in self._kernels or kernel_id in self._kernels._starting_kernels
        return is_here or self.works.is_open(kernel_id) or self.has_ended(kernel_id)

    def look(self, now: float) -> None:
        """Compare what is served with what there is, and begin whatever follows from it. ``now`` is the loop's time.

        It is called after each change, and looks at those that it concerns; what happens by time alone is seen a little later.
        """
        cluster = self._cluster
        if cluster is None:
            return
        is_fresh = cluster.pods.is_fresh and cluster.records.is_fresh
        if is_fresh and not self._was_fresh:
            # what a stale copy did not have may be gone
            self._attention.everybody()
        self._was_fresh = is_fresh
        for kernel_id in self._attention.take(now, lambda: self._all(cluster)):
            try:
                self._look_at(cluster, kernel_id)
            except Exception:
                # the others are looked at all the same
                log.exception("The kernel %s could not be looked after", kernel_id)
        self.health.summarise(cluster, now)
        self._recorded &= self._kernels._kernels.keys()
        self._unseen = {each: since for each, since in self._unseen.items() if each in self._kernels and each not in self._recorded}
        if cluster.records.is_fresh:
            self._ended = {kernel_id: uid for kernel_id, uid in self._ended.items() if cluster.record_of(kernel_id) is not None}
        if cluster.nodes is not None:
            cluster.nodes.observe(self._look_at_all)

    def _look_at_all(self) -> None:
        self._attention.everybody()
        self._wake.set()

    def _all(self, cluster: Cluster) -> set[str]:
        """Return the ids of all kernels that there are, here or there."""
        return {*map(_kernel_id, cluster.records.objects()), *self._kernels._kernels}

    def _look_at(self, cluster: Cluster, kernel_id: str) -> None:
        """Look at one kernel, and once more the next time if something about it is open."""
        kernel = self._kernels._kernels.get(kernel_id)
        if kernel is None:
            item = cluster.record_of(kernel_id)
            is_open = item is not None and self._ended.get(kernel_id) != item["metadata"]["uid"]
            self.meet(kernel_id)
        else:
            self.look_after(kernel_id)
            is_ours = getattr(kernel, "elastic_record", None) is not None
            is_new = kernel_id not in self._recorded
            is_open = is_ours and (is_new or self.works.is_open(kernel_id) or self.health.is_open(kernel_id, kernel))
        if is_open:
            self._attention.due_again(kernel_id)

    def meet(self, kernel_id: str) -> None:
        """Begin to serve a kernel if it is not served here, and can be."""
        cluster = self._cluster
        item = cluster.record_of(kernel_id) if cluster is not None else None
        if cluster is None or item is None:
            self.works.forgive(kernel_id)
            return
        if kernel_id in self._kernels or self._ended.get(kernel_id) == item["metadata"]["uid"]:
            return
        pod = reach.latest(cluster.pods_of(kernel_id))
        if not self._may_begin(kernel_id):
            return
        if pod is None:
            is_to_serve = bool(obituary(item))
        elif not meeting.is_under_way(pod):
            is_to_serve = meeting.is_worth(pod)
        else:
            # whose user has seen it
            is_to_serve = reach.start_of(pod) > 1
            if not is_to_serve and cluster.pods.is_fresh and meeting.is_lost(pod, datetime.now(timezone.utc)):
                log.warning("Nobody waits for the start of the kernel %s any more; it is ended", kernel_id)
                self.works.begin(kernel_id, self._discard(cluster, kernel_id, item))
        if is_to_serve:
            self.works.begin(kernel_id, self._meet(cluster, item, pod))

    def look_after(self, kernel_id: str) -> None:
        """Let a served kernel go, follow it to another pod, or see how it is."""
        cluster, now = self._cluster, asyncio.get_running_loop().time()
        assert cluster is not None
        item, pods = cluster.record_of(kernel_id), cluster.pods_of(kernel_id)
        kernel = self._kernels._kernels[kernel_id]
        is_ours = getattr(kernel, "elastic_record", None) is not None
        if not is_ours or kernel.restarting or kernel.shutting_down or not self._may_begin(kernel_id):
            return
        if item is None:
            if not cluster.records.is_fresh:
                self._unseen.pop(kernel_id, None)
            elif kernel_id in self._recorded:
                self._lose(kernel_id)
            elif now - self._unseen.setdefault(kernel_id, now) > _UNSEEN:
                self.works.begin(kernel_id, self._ask_for(cluster, kernel_id, kernel))
            return
        self._recorded.add(kernel_id)
        latest = reach.latest(pods)
        if latest is None or key_of(latest) == serving.pod_key(kernel) or self._is_over(cluster, kernel, latest):
            self.health.look(cluster, kernel_id, item, pods, now)
            return
        if not status.has_ended(latest):
            self.health.awaits(cluster, kernel_id, latest)
        if meeting.is_worth(latest):
            self.works.begin(kernel_id, self._follow(cluster, kernel, item, latest))

    @staticmethod
    def _is_over(cluster: Cluster, kernel: Any, pod: Object) -> bool:
        """Tell whether a pod is nothing that a kernel could be followed to: on its way out, or the end of a start that failed here."""
        return reach.is_leaving(cluster, pod) or (status.has_ended(pod) and kernel.execution_state == "dead")

    async def cancel(self, kernel_id: str) -> bool:
        """Cancel a kernel's start, here or elsewhere; return False if there is none."""
        starting = self._kernels._starting_kernels.get(kernel_id)
        if starting is not None and not starting.done():
            starting.cancel()
            return True
        item = self._cluster.record_of(kernel_id) if self._cluster is not None else None
        if self._cluster is None or item is None or kernel_id in self._ended:
            return False
        await self._discard(self._cluster, kernel_id, item)
        return True

    async def _discard(self, cluster: Cluster, kernel_id: str, item: Object) -> None:
        """End a kernel that is not served here; ``item`` is its record."""
        metadata = item["metadata"]
        self._ended[kernel_id] = metadata["uid"]
        await self._end(cluster, kernel_id, RecordRef(metadata["name"], "", metadata["uid"]), metadata["namespace"])

    async def _end(self, cluster: Cluster, kernel_id: str, record: RecordRef, namespace: str) -> None:
        """Have all that there is of a kernel deleted, and return when the cluster has accepted that, or after a while."""
        pods = [item["metadata"]["name"] for item in cluster.pods_of(kernel_id)]
        endings = [cluster.reaper.end(namespace, pod, grace=0, record=record) for pod in pods or [None]]
        await asyncio.wait([asyncio.ensure_future(ending.accepted.wait()) for ending in endings], timeout=_ACCEPTED)

    async def ended(self, kernel_id: str, kernel: Any, *, with_rest: bool) -> None:
        """Called when a kernel has been shut down here, so that it is not met again; ``with_rest`` ends pods that it was not in, too."""
        held = getattr(kernel, "elastic_record", None)
        if held is None or self._cluster is None:
            return
        namespace, record = held
        self._ended[kernel_id] = record.uid
        if with_rest:
            await self._end(self._cluster, kernel_id, record, namespace)

    def _may_begin(self, kernel_id: str) -> bool:
        return kernel_id not in self._kernels._starting_kernels and self.works.may_begin(kernel_id)

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
        # it may be gone again by the next look
        self._recorded.add(kernel_id)
        self.works.forgive(kernel_id)
        if pod is not None and not started.address and not status.has_ended(pod):
            log.info("Kernel %s of %r is served from now on, and is being started by another gateway", kernel_id, kept.user)
            self.health.met(kernel_id, None)
            self.health.awaits(cluster, kernel_id, pod)
            return
        self.health.met(kernel_id, pod)
        if started.address:
            log.info("Kernel %s of %r is served from now on, in the pod %s/%s", kernel_id, kept.user, *started.key)
        else:
            ended = status.classify(pod, (), datetime.now(timezone.utc))
            self.health.died(kernel_id, obituary(secret) or ended.sentence)

    async def _follow(self, cluster: Cluster, kernel: Any, item: Object, pod: Object) -> None:
        """Serve a kernel in the pod to which somebody else's restart has brought it."""
        secret = await cluster.client.get("secrets", item["metadata"]["namespace"], item["metadata"]["name"])
        if secret is None:
            return
        kept = records.from_secret(secret)
        started = await self._reached(cluster, kept, secret, pod)
        if started is None or kernel.restarting or self._kernels._kernels.get(kept.kernel_id) is not kernel:
            return
        log.info("Kernel %s was restarted elsewhere, and is in the pod %s/%s now", kept.kernel_id, *started.key)
        serving.move(self._kernels, cluster, kernel, started)
        self.health.met(kept.kernel_id, pod)
        if started.address and obituary(item):
            await mark(cluster, item, "")

    async def _ask_for(self, cluster: Cluster, kernel_id: str, kernel: Any) -> None:
        """Let a kernel go whose record the API server does not have, either: it came and went before anybody here looked."""
        namespace, record = kernel.elastic_record
        secret = await cluster.client.get("secrets", namespace, record.name)
        self._unseen.pop(kernel_id, None)
        is_there = secret is not None and secret["metadata"]["uid"] == record.uid
        is_busy = kernel.restarting or kernel.shutting_down
        if not (is_there or is_busy) and self._kernels._kernels.get(kernel_id) is kernel:
            self._lose(kernel_id)

    async def _reached(self, cluster: Cluster, kept: records.Record, secret: Object, pod: Object | None) -> Started | None:
        """Return how a kernel is reached, None if it does not answer and another gateway may still be the one to wait for that."""
        ref = RecordRef(kept.name, kept.token, secret["metadata"]["uid"])
        found = await meeting.reached(cluster, kept, ref, pod, self._kernels.calls_back(kept.kernel_name))
        is_served = kept.kernel_id in self._kernels
        if found is None and pod is not None and not is_served:
            is_seen = reach.start_of(pod) > 1 or reach.is_given_up(pod, datetime.now(timezone.utc))
            return meeting.before(kept, ref, pod) if is_seen else None
        return found

    def _lose(self, kernel_id: str) -> None:
        log.info("Kernel %s was ended elsewhere", kernel_id)
        for websocket in serving.websockets(kernel_id):
            websocket.died("it was shut down")
        serving.drop(self._kernels, kernel_id)


def _kernel_id(item: Object) -> str:
    return str(item["metadata"]["labels"].get(names.KERNEL_ID, ""))
