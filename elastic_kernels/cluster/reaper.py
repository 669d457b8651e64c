"""The end of pods: gracefully, then by force, and again until they are gone.

A pod handed over here is nobody else's business any more: its deletion survives whoever asked for it, outlasts an API server
that is away, and overtakes a node that does not answer. The kernel's record, if it is to go as well, goes once its pod's
deletion is accepted: it owns the pod, so that even a gateway that dies in between leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from elastic_kernels import names, patience, status
from elastic_kernels.cluster.client import Client, Object
from elastic_kernels.cluster.informer import Informer, Key
from elastic_kernels.errors import ClusterAwayError, ClusterError

log = logging.getLogger(__name__)

# What a kubelet needs, beyond the grace period, to take a container down and say so.
_MARGIN: Final = 15.0
_PAUSE: Final = 5.0


@dataclass(frozen=True)
class RecordRef:
    """Which record: names are slots, and another kernel's record may have this one's name by the time it is deleted."""

    name: str
    token: str
    """The record's own token."""
    uid: str | None = None
    """Its uid, or None where the answer to its creation never came."""


@dataclass
class Ending:
    """One kernel's way out; whoever began it may look at it and hurry it, and nobody has to."""

    namespace: str
    pod: str | None
    """The pod's name, or None where there is none."""
    grace: int
    """Seconds that the container has between SIGTERM and SIGKILL."""
    patience: float = 0.0
    """Seconds to wait for the pod to end by itself before it is deleted."""
    record: RecordRef | None = None
    """The record that goes with the pod, or None if it stays."""
    still: Callable[[Object], bool] | None = None
    """Whether the pod, as it is when it is deleted, is still to go; None if it is, whatever has become of it."""
    accepted: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the API server has taken the deletion of all that is to go (or has nothing of it), or the pod is to stay after all."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __str__(self) -> str:
        return "/".join((self.namespace, self.pod or (self.record.name if self.record else "")))


class Reaper:
    """Ends pods in the background of one event loop, on which all its methods are called."""

    def __init__(self, client: Client, pods: Informer) -> None:
        self._client = client
        self._pods = pods
        self._endings: dict[Key, Ending] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def end(
        self,
        namespace: str,
        pod: str | None,
        *,
        grace: int,
        patience: float = 0.0,
        record: RecordRef | None = None,
        still: Callable[[Object], bool] | None = None,
    ) -> Ending:
        """Have the pod deleted, with its record if one is named, or a record that has no pod; return at once.

        ``still`` says of the pod, as the API server has it in that moment, whether it is to go. Repeated calls only hurry it, and
        one without ``still`` has it go whatever an earlier one said.
        """
        key = (namespace, pod or f"record/{record.token if record else ''}")
        ending = self._endings.get(key)
        if ending is None:
            ending = self._endings[key] = Ending(namespace, pod, grace, patience, record, still)
            task = asyncio.get_running_loop().create_task(self._carry_out(key, ending), name=f"end {ending}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return ending
        ending.still = _either(ending.still, still)
        if record is not None and ending.record is None:
            ending.record = record
            ending.accepted.clear()
        if grace < ending.grace or patience < ending.patience:
            if grace < ending.grace:
                ending.accepted.clear()
            ending.grace, ending.patience = min(grace, ending.grace), min(patience, ending.patience)
        ending.changed.set()
        return ending

    def is_ending(self, key: Key) -> bool:
        """Tell whether the pod of this namespace and name is on its way out."""
        return key in self._endings

    def is_certain(self, key: Key) -> bool:
        """Tell whether nothing can keep the pod of this namespace and name from going."""
        ending = self._endings.get(key)
        return ending is not None and (ending.still is None or ending.accepted.is_set())

    async def decided(self, key: Key, seconds: float) -> None:
        """Return once it is certain whether the pod of this namespace and name goes, or when ``seconds`` are over."""
        ending = self._endings.get(key)
        if ending is not None and not self.is_certain(key):
            await patience.happens(ending.accepted, seconds)

    async def close(self, seconds: float) -> None:
        """Stop, once the API server has taken every deletion or ``seconds`` are over; who waits for what is hurried."""
        loop = asyncio.get_running_loop()
        for ending in self._endings.values():
            ending.patience = 0.0
            ending.changed.set()
        waiting = [loop.create_task(ending.accepted.wait()) for ending in self._endings.values()]
        if waiting:
            await asyncio.wait(waiting, timeout=seconds)
        tasks = (*waiting, *self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry_out(self, key: Key, ending: Ending) -> None:
        def wake(_: object) -> None:
            ending.changed.set()

        self._pods.listen(key, wake)
        try:
            await self._wait_for_its_end(key, ending)
            while not await self._is_gone(key, ending):
                pass
        finally:
            self._pods.forget(key, wake)
            del self._endings[key]
        log.debug("%s is gone", ending)

    async def _wait_for_its_end(self, key: Key, ending: Ending) -> None:
        """Give the kernel, which was asked to shut down, the time to do it."""
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while (left := begin + ending.patience - loop.time()) > 0:
            pod = self._pods.get(key)
            if pod is None or status.has_ended(pod):
                return
            await _change(ending, left)

    async def _is_gone(self, key: Key, ending: Ending) -> bool:
        """Ask for the deletion once, then wait until there is nothing left or it is time to ask again."""
        loop = asyncio.get_running_loop()
        grace = ending.grace
        seen = self._pods.get(key) is not None
        try:
            exists = ending.pod is not None and await self._delete_pod(ending, ending.pod, grace)
            if ending.record is not None:
                await self._delete_record(ending.namespace, ending.record)
        except (ClusterError, ClusterAwayError) as error:
            log.warning("Deleting %s: %s (%s); trying again", ending, error, error.detail)
            await _change(ending, _PAUSE)
            return False
        ending.accepted.set()
        if not exists:
            return True
        deadline = loop.time() + grace + _MARGIN
        while (left := deadline - loop.time()) > 0:
            if not ending.accepted.is_set():
                return False
            is_there = self._pods.get(key) is not None
            if seen and not is_there and self._pods.is_fresh:
                return True
            seen = seen or is_there
            await _change(ending, left)
        # its node does not answer: take it from the API, as 'kubectl delete --force' does
        ending.grace = 0
        return False

    async def _delete_pod(self, ending: Ending, name: str, grace: int) -> bool:
        """Ask for a pod's deletion; return False if there is none, or it is not to go any more."""
        while (still := ending.still) is not None:
            found = await self._client.get("pods", ending.namespace, name)
            if found is None:
                return False
            if ending.still is not still:
                # it is to go in any case by now
                continue
            if not still(found):
                return False
            metadata = found["metadata"]
            if await self._client.delete(
                "pods", ending.namespace, name, grace=grace, uid=metadata["uid"], version=metadata["resourceVersion"]
            ):
                # it goes in any case, and no later one of its name
                ending.still = partial(_is, metadata["uid"])
                return True
        return await self._client.delete("pods", ending.namespace, name, grace=grace)

    async def _delete_record(self, namespace: str, record: RecordRef) -> None:
        uid = record.uid
        if uid is None:
            found = await self._client.get("secrets", namespace, record.name)
            if found is None or (found["metadata"].get("annotations") or {}).get(names.LAUNCH) != record.token:
                return
            uid = found["metadata"]["uid"]
        await self._client.delete("secrets", namespace, record.name, uid=uid)


def _either(former: Callable[[Object], bool] | None, later: Callable[[Object], bool] | None) -> Callable[[Object], bool] | None:
    """Return what says that a pod is to go if one of these does; None, which stands for any pod, if one of them is."""
    if former is None or later is None:
        return None
    return lambda pod: former(pod) or later(pod)


def _is(uid: str, pod: Object) -> bool:
    return bool(pod["metadata"]["uid"] == uid)


async def _change(ending: Ending, seconds: float) -> None:
    try:
        await patience.happens(ending.changed, seconds)
    finally:
        ending.changed.clear()
