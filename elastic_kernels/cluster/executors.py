"""The end of Spark's executors, which their drivers may create and not delete.

An executor whose driver is gone, is going or has ended is deleted: Kubernetes does that by itself only once the driver's pod is
gone, and a process that is killed leaves its pod behind. One that has ended by itself is deleted after a while, in which its
driver and a person can read why. Every gateway looks at its own copies; deleting twice does no harm.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from elastic_kernels import names, status
from elastic_kernels.cluster.client import Client, Object
from elastic_kernels.cluster.informer import Informer, Key
from elastic_kernels.errors import ClusterAwayError, ClusterError

log = logging.getLogger(__name__)

READABLE_FOR: Final = 60.0
_INTERVAL: Final = 1.0


def selector(deployment: str) -> str:
    """Return the label selector of the executors of one deployment's kernels."""
    return f"spark-role=executor,{names.EXECUTOR_OF},{names.DEPLOYMENT}={deployment}"


class Executors:
    """Belongs to one event loop."""

    def __init__(self, client: Client, drivers: Informer, executors: Informer) -> None:
        self._client = client
        self._drivers = drivers
        self._executors = executors
        self._alone: set[str] = set()
        self._ended_since: dict[str, float] = {}

    async def run(self) -> None:
        """Look, again and again, until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL)
            for executor in self.superfluous(asyncio.get_running_loop().time()):
                await self._delete(executor)

    def superfluous(self, now: float) -> list[Object]:
        """Return the executors that are to be deleted at the time ``now`` of the loop."""
        if not (self._drivers.is_fresh and self._executors.is_fresh):
            self._alone.clear()
            return []
        present = [item for item in self._executors.objects() if "deletionTimestamp" not in item["metadata"]]
        alone = {item["metadata"]["uid"] for item in present if not self._has_driver(item)}
        ended = {item["metadata"]["uid"] for item in present if status.has_ended(item)}
        self._ended_since = {uid: self._ended_since.get(uid, now) for uid in ended}
        # a driver that is not seen may merely not have been seen yet
        due = (alone & self._alone) | {uid for uid, since in self._ended_since.items() if now - since >= READABLE_FOR}
        self._alone = alone
        return [item for item in present if item["metadata"]["uid"] in due]

    def _has_driver(self, executor: Object) -> bool:
        metadata = executor["metadata"]
        driver: Key = (metadata["namespace"], metadata["labels"][names.EXECUTOR_OF])
        pod = self._drivers.get(driver)
        return pod is not None and "deletionTimestamp" not in pod["metadata"] and not status.has_ended(pod)

    async def _delete(self, executor: Object) -> None:
        metadata = executor["metadata"]
        name = f"{metadata['namespace']}/{metadata['name']}"
        # a container that never ran needs no time to end, and its kubelet takes its own to say so
        grace = 0 if (executor.get("status") or {}).get("phase") == "Pending" else 1
        try:
            await self._client.delete("pods", metadata["namespace"], metadata["name"], grace=grace, uid=metadata["uid"])
            log.info("The executor %s of %s is deleted", name, metadata["labels"][names.EXECUTOR_OF])
        except (ClusterError, ClusterAwayError) as error:
            log.warning("Deleting the executor %s: %s (%s); it is tried again", name, error, error.detail)
