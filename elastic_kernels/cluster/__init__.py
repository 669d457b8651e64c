"""The Kubernetes API, as the rest of the gateway sees it. Nothing outside this package talks to it.

``client`` makes requests, ``informer`` keeps a copy of what is watched, ``reaper`` ends pods, ``sweeper`` finds what nobody will
end, ``leftovers`` what waited for users and will not be used, ``executors`` ends those of Spark; a ``Cluster`` holds what one
gateway process has of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from elastic_kernels import disruption, hubnames, names
from elastic_kernels.cluster import executors
from elastic_kernels.cluster.announcements import Announcements
from elastic_kernels.cluster.client import Client, Object
from elastic_kernels.cluster.executors import Executors
from elastic_kernels.cluster.informer import Informer, Key, key_of
from elastic_kernels.cluster.leftovers import Leftovers
from elastic_kernels.cluster.reaper import Ending, Reaper, RecordRef
from elastic_kernels.cluster.sweeper import Sweeper
from elastic_kernels.errors import ClusterAwayError, ClusterError
from elastic_kernels.settings import ElasticKernels, default_namespace
from elastic_kernels.starts import Starts

__all__ = ["Client", "Cluster", "Ending", "Informer", "Key", "Object", "Reaper", "RecordRef", "key_of", "shared"]

log = logging.getLogger(__name__)

BY_KERNEL: Final = "kernel"
"""Pods and records are found by their kernel's id."""
BY_USER: Final = "user"
"""Records are found by their user's name."""
_CLOSE_SECONDS: Final = 5.0
_LOOK_PAUSE: Final = 0.1


class Cluster:
    """One gateway process's connection to its cluster. Belongs to the event loop on which it was opened."""

    def __init__(self, client: Client, namespace: str, deployment: str, user_namespace: str = "") -> None:
        """``user_namespace`` is the template of each user's own namespace, or empty where all kernels are in ``namespace``."""
        self.client = client
        self.deployment = deployment
        self._namespace = namespace
        self._user_namespace = user_namespace
        self.watched = None if user_namespace else namespace
        """The one namespace that holds all kernels' pods and records, or None if any may."""
        selectors = {"labelSelector": names.selector(deployment)}
        self.pods = Informer(client, "pods", self.watched, selectors=selectors, index={BY_KERNEL: _kernel_of})
        indexes = {BY_KERNEL: _kernel_of, BY_USER: user_of}
        self.records = Informer(client, "secrets", self.watched, selectors=selectors, metadata_only=True, index=indexes)
        """The kernels' records, without what is in them."""
        self.executors = Informer(client, "pods", self.watched, selectors={"labelSelector": executors.selector(deployment)})
        """The pods of Spark's executors, which are no kernels."""
        warm = {"labelSelector": names.warm_selector(deployment)}
        self.waiting = Informer(client, "pods", self.watched, selectors=warm)
        """The pods that are kept for starts to come, which are no kernels."""
        self.warm_secrets = Informer(client, "secrets", self.watched, selectors=warm, metadata_only=True)
        """Their Secrets, which outlast the waiting."""
        self.reserved: set[Key] = set()
        """Waiting pods that starts of this process are trying to get."""
        self.reaper = Reaper(client, self.pods)
        self.nodes: Informer | None = None
        """The nodes, where the gateway may watch them."""
        self.announcements = Announcements()
        """What kernels say themselves when they listen."""
        self.starts = Starts()
        """The launches that are under way here."""
        self.claimed: set[Key] = set()
        """Names of records that starts of this process are trying to create."""
        self.unfinished: set[Callable[[], None]] = set()
        """What undoes each launch that is under way."""
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def open(cls, settings: ElasticKernels) -> Cluster:
        """Connect as the settings say and begin to watch. Raises ConfigurationError if no cluster is configured."""
        client = await Client.connect(
            kubeconfig=settings.kubeconfig,
            context=settings.context,
            request_timeout=settings.request_timeout,
            retry_time=settings.retry_time,
        )
        namespace = settings.namespace or default_namespace(client.context_namespace)
        cluster = cls(client, namespace, settings.deployment, settings.user_namespace)
        await cluster.announcements.open(settings.announce_address, client.server)
        loop = asyncio.get_running_loop()
        sweeper = Sweeper(cluster.pods, cluster.records, cluster.reaper, cluster.starts.is_under_way)
        superfluous = Executors(client, cluster.pods, cluster.executors, cluster.reaper.is_certain)
        left = Leftovers(
            client, cluster.pods, cluster.records, cluster.waiting, cluster.warm_secrets, cluster.reaper, cluster.starts.is_under_way
        )
        cluster._tasks = [
            loop.create_task(cluster.pods.run(), name="watch pods"),
            loop.create_task(cluster.records.run(), name="watch records"),
            loop.create_task(sweeper.run(), name="sweep"),
            loop.create_task(cluster.executors.run(), name="watch executors"),
            loop.create_task(superfluous.run(), name="end executors"),
            loop.create_task(left.run(), name="sweep waiting pods"),
            loop.create_task(cluster.waiting.run(), name="watch waiting pods"),
            loop.create_task(cluster.warm_secrets.run(), name="watch waiting pods' secrets"),
            loop.create_task(cluster._watch_nodes(), name="watch nodes"),
        ]
        log.info("Kernels run in the namespace %r, as the deployment %r", settings.user_namespace or namespace, cluster.deployment)
        return cluster

    async def _watch_nodes(self) -> None:
        """Watch the nodes, if that is allowed: what is about to happen to one is its kernels' users' business."""
        while True:
            try:
                await self.client.list("nodes", None, limit="1")
                break
            except ClusterError as error:
                log.warning("Nodes cannot be watched, so that nobody is told when a machine is about to go: %s", error)
                return
            except ClusterAwayError:
                await asyncio.sleep(_CLOSE_SECONDS)
        self.nodes = Informer(self.client, "nodes", None, selectors={}, trim=disruption.of_node)
        await self.nodes.run()

    def namespace_of(self, user: str) -> str:
        """Return the namespace of a user's pods and records: that of all, or one of their own, where their claims are."""
        return hubnames.expand(self._user_namespace, user) if self._user_namespace else self._namespace

    def record_of(self, kernel_id: str) -> Object | None:
        """Return the metadata of a kernel's record, as last seen, or None if it is not in the copy."""
        return next(iter(self.records.find(BY_KERNEL, kernel_id)), None)

    def pods_of(self, kernel_id: str) -> list[Object]:
        """Return a kernel's pods, as last seen."""
        return self.pods.find(BY_KERNEL, kernel_id)

    def node_of(self, pod: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Return the node that a pod is on, as far as it is watched; ``disruption.ABSENT`` if there is none of its name."""
        name = pod["spec"].get("nodeName") if pod is not None else None
        if self.nodes is None or not name:
            return None
        found = self.nodes.get(("", name))
        # a copy that is not kept up may merely not have it
        return disruption.ABSENT if found is None and self.nodes.is_fresh else found

    async def catches_up(self, seconds: float) -> bool:
        """Have copies of kernels that are not kept up be made anew soon, and return whether they are kept up within ``seconds``."""
        copies, loop = (self.pods, self.records), asyncio.get_running_loop()
        end = loop.time() + seconds
        while not all(copy.is_fresh for copy in copies) and loop.time() < end:
            for copy in copies:
                copy.hurry()
            await asyncio.sleep(_LOOK_PAUSE)
        return all(copy.is_fresh for copy in copies)

    async def close(self, seconds: float = 0.0) -> None:
        """Stop watching and close all connections; running kernels stay as they are.

        Launches under way are given up, and ``seconds`` are spent at most on getting deletions accepted.
        """
        for give_up in tuple(self.unfinished):
            give_up()
        self.announcements.close()
        await self.reaper.close(seconds)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.close()

    @asynccontextmanager
    async def events_of(self, namespace: str, uid: str, on_change: Callable[[], None]) -> AsyncIterator[Informer]:
        """Watch the events of one pod for as long as the context lasts: for pods that are slow to start, not for all."""
        events = Informer(self.client, "events", namespace, selectors={"fieldSelector": f"involvedObject.uid={uid}"}, on_change=on_change)
        task = asyncio.get_running_loop().create_task(events.run(), name=f"watch events of {uid}")
        try:
            yield events
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def user_of(item: Object) -> str:
    """Return the name of the user whose record or pod this is, empty if it does not say."""
    return str((item["metadata"].get("annotations") or {}).get(names.USER, ""))


def _kernel_of(item: Object) -> str:
    return str(item["metadata"]["labels"].get(names.KERNEL_ID, ""))


_clusters: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Future[Cluster]] = weakref.WeakKeyDictionary()


async def shared(settings: ElasticKernels) -> Cluster:
    """Return the process's one cluster (one for each event loop, to be exact), opened by whoever comes first.

    Raises ConfigurationError as ``Cluster.open`` does; the next caller tries again.
    """
    loop = asyncio.get_running_loop()
    opening = _clusters.get(loop)
    if opening is None or (opening.done() and (opening.cancelled() or opening.exception())):
        opening = _clusters[loop] = loop.create_task(_open(loop, settings))
    return await asyncio.shield(opening)


async def _open(loop: asyncio.AbstractEventLoop, settings: ElasticKernels) -> Cluster:
    """Open a cluster that is closed before its loop is.

    Enterprise Gateway stops its loop, ends its kernels and closes the loop, and tells nobody: deletions that are on their way at
    that moment would be lost, and with them a pod.
    """
    cluster = await Cluster.open(settings)
    close = loop.close

    def close_both() -> None:
        if not loop.is_closed():
            loop.run_until_complete(cluster.close(_CLOSE_SECONDS))
        close()

    loop.close = close_both  # type: ignore[method-assign]
    return cluster
