"""The end of Spark's executors, which their drivers may create and not delete.

An executor whose driver is gone, is going or has ended is deleted: Kubernetes does that by itself only once the driver's pod is
gone, and a process that is killed leaves its pod behind. One that has ended by itself is deleted after a while, in which its
driver and a person can read why; one that is going on a machine that does not answer is taken from the API, because for Spark it runs
until then, and is not replaced. Every gateway looks at its own copies; deleting twice does no harm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from elastic_kernels import names, status
from elastic_kernels.cluster.client import Client, Object
from elastic_kernels.cluster.informer import Informer, Key
from elastic_kernels.errors import ClusterAwayError, ClusterError

log = logging.getLogger(__name__)

READABLE_FOR: Final = 60.0
"""Seconds for which one that has ended stays."""
LOST_AFTER: Final = 15.0
"""Seconds after which one that is going is not waited for."""
_INTERVAL: Final = 1.0


def selector(deployment: str) -> str:
    """Return the label selector of the executors of one deployment's kernels."""
    return f"spark-role=executor,{names.EXECUTOR_OF},{names.DEPLOYMENT}={deployment}"


class Executors:
    """Belongs to one event loop."""

    def __init__(self, client: Client, drivers: Informer, executors: Informer, is_ending: Callable[[Key], bool]) -> None:
        """``is_ending`` tells of a driver's pod whether this gateway is ending it: what it has to do by itself needs no executors."""
        self._client = client
        self._drivers = drivers
        self._executors = executors
        self._is_ending = is_ending
        self._alone: set[str] = set()
        self._ended_since: dict[str, float] = {}
        self._going_since: dict[str, float] = {}

    async def run(self) -> None:
        """Look, again and again, until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL)
            for executor, grace in self.superfluous(asyncio.get_running_loop().time()):
                await self._delete(executor, grace)

    def superfluous(self, now: float) -> list[tuple[Object, int]]:
        """Return the executors that are to be deleted at the time ``now`` of the loop, and with which grace period."""
        if not (self._drivers.is_fresh and self._executors.is_fresh):
            self._alone.clear()
            return []
        every = {item["metadata"]["uid"]: item for item in self._executors.objects()}
        going = {uid for uid, item in every.items() if "deletionTimestamp" in item["metadata"]}
        self._going_since = {uid: self._going_since.get(uid, now) for uid in going}
        alone = {uid for uid, item in every.items() if uid not in going and not self._has_driver(item)}
        ended = {uid for uid, item in every.items() if uid not in going and status.has_ended(item)}
        self._ended_since = {uid: self._ended_since.get(uid, now) for uid in ended}
        # a driver that is not seen may merely not have been seen yet
        due = (
            (alone & self._alone)
            | {uid for uid in alone if self._is_ending(_driver(every[uid]))}
            | {uid for uid, since in self._ended_since.items() if now - since >= READABLE_FOR}
        )
        self._alone = alone
        # a container that never ran needs no time to end, and its kubelet takes its own to say so
        pending = {uid for uid, item in every.items() if (item.get("status") or {}).get("phase") == "Pending"}
        lost = {uid for uid, since in self._going_since.items() if uid in pending or now - since >= LOST_AFTER}
        return [(every[uid], 0 if uid in lost | pending else 1) for uid in due | lost]

    def _has_driver(self, executor: Object) -> bool:
        driver = _driver(executor)
        pod = self._drivers.get(driver)
        return not self._is_ending(driver) and pod is not None and not status.is_over(pod)

    async def _delete(self, executor: Object, grace: int) -> None:
        metadata = executor["metadata"]
        name = f"{metadata['namespace']}/{metadata['name']}"
        try:
            await self._client.delete("pods", metadata["namespace"], metadata["name"], grace=grace, uid=metadata["uid"])
            log.info("The executor %s of %s is deleted", name, metadata["labels"][names.EXECUTOR_OF])
        except (ClusterError, ClusterAwayError) as error:
            log.warning("Deleting the executor %s: %s (%s); it is tried again", name, error, error.detail)


def _driver(executor: Object) -> Key:
    metadata = executor["metadata"]
    return metadata["namespace"], metadata["labels"][names.EXECUTOR_OF]
