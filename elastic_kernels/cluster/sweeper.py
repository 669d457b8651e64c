"""What nobody will end: records that a gateway left behind when it was killed between a record and its pod, and pods whose record was
deleted while another gateway was creating them. (The cluster's own garbage collector takes those, but may be minutes late.)

Every gateway looks, at its own copies and without a request, and deletes what has been without the other for a while. That is safe
in whatever the others do: a pod that is created after all has an owner that is gone, so that the cluster deletes it at once, and
a restart that finds no record takes a slot as a new kernel does. A start that is under way in this process is left alone however
long the API takes over its pod: others, to whom the API answers, see that pod.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from elastic_kernels import names
from elastic_kernels.cluster.informer import Informer
from elastic_kernels.cluster.reaper import Reaper, RecordRef

log = logging.getLogger(__name__)

# A gateway creates the pod right after the record; what takes this long is not being created.
ORPHANED_AFTER: Final = 30.0
_INTERVAL: Final = 2.0


class Sweeper:
    """Belongs to one event loop."""

    def __init__(
        self, pods: Informer, records: Informer, reaper: Reaper, is_starting: Callable[[str], bool] = lambda kernel_id: False
    ) -> None:
        """``is_starting`` tells whether a start of the kernel with this id is under way here."""
        self._is_starting = is_starting
        self._pods = pods
        self._records = records
        self._reaper = reaper
        self._alone_since: dict[str, float] = {}
        self._changed = True

    async def run(self) -> None:
        """Look, again and again, until cancelled; of thousands of kernels only if anything has changed."""
        for informer in (self._pods, self._records):
            informer.observe(self._note)
        while True:
            await asyncio.sleep(_INTERVAL)
            if not (self._pods.is_fresh and self._records.is_fresh):
                self._changed = True
            if self._changed or self._alone_since:
                self._changed = False
                self.sweep(asyncio.get_running_loop().time())

    def _note(self) -> None:
        self._changed = True

    def sweep(self, now: float) -> None:
        """Have deleted what, at the time ``now`` of the loop, has been without the other for long enough, be it a record or a pod."""
        if not (self._pods.is_fresh and self._records.is_fresh):
            # what is not there may merely not be seen
            self._alone_since.clear()
            return
        with_pod = {pod["metadata"]["labels"].get(names.KERNEL_ID) for pod in self._pods.objects()}
        alone = [
            metadata
            for metadata in (record["metadata"] for record in self._records.objects())
            # a dead kernel has none, says so, and is its user's to restart or to shut down
            if (kernel_id := metadata["labels"].get(names.KERNEL_ID, "")) not in with_pod
            and not (metadata.get("annotations") or {}).get(names.ENDED)
            and not self._is_starting(kernel_id)
        ]
        recorded = {record["metadata"]["uid"] for record in self._records.objects()}
        unowned = [
            metadata
            for metadata in (pod["metadata"] for pod in self._pods.objects())
            if not metadata.get("deletionTimestamp")
            and (owners := {owner["uid"] for owner in metadata.get("ownerReferences") or ()})
            and owners.isdisjoint(recorded)
        ]
        since = {item["uid"]: self._alone_since.get(item["uid"], now) for item in (*alone, *unowned)}
        for record in alone:
            if now - since[record["uid"]] >= ORPHANED_AFTER:
                log.warning("The record %s has no pod; nobody starts it any more, and it is deleted", record["name"])
                self._reaper.end(record["namespace"], None, grace=0, record=RecordRef(record["name"], record["uid"], record["uid"]))
        for pod in unowned:
            if now - since[pod["uid"]] >= ORPHANED_AFTER:
                log.warning("The pod %s has no record; its kernel was shut down, and it is deleted", pod["name"])
                self._reaper.end(pod["namespace"], pod["name"], grace=0)
        self._alone_since = since
