"""Keeps as much ready as profiles wish: makes what is missing, and ends what is too much, of another time of day or out of date.

Every gateway does it, and nothing is agreed upon: what is made has a number in its name, and two gateways that make the same number are
told apart by the API server. What is deleted is deleted as it was seen: a pod that was claimed meanwhile stays. Users come first:
nothing is made while kernels start, and what waits goes where a kernel finds no room.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Final

from elastic_kernels import names, patience, pod, status
from elastic_kernels.cluster import Cluster, Object
from elastic_kernels.cluster.leftovers import secret_of
from elastic_kernels.errors import ClusterAwayError, ClusterError
from elastic_kernels.metrics import metrics
from elastic_kernels.profiles import Profile
from elastic_kernels.warm import capacity, plan, waiting
from elastic_kernels.warm.plan import Wish

log = logging.getLogger(__name__)

_INTERVAL: Final = 1.0
# Starts that never end are no reason to have nothing ready for ever.
_DEFERENCE: Final = 20.0
_FIRST_PAUSE: Final = 10.0
_LONGEST_PAUSE: Final = 300.0
_NODES_SECONDS: Final = 10.0
# Kernelspecs are read, and the clock is looked at, so often.
_WISHES_SECONDS: Final = 5.0
# A scheduler that makes room by itself has done so by then.
_STUCK_SECONDS: Final = 2.0
_SEEN_SECONDS: Final = 2.0


class Refill:
    """Belongs to one event loop."""

    def __init__(
        self,
        cluster: Cluster,
        namespace: str,
        profiles: Callable[[], Iterable[Profile]],
        spot: pod.Spot,
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        """``profiles`` returns the profiles that there are now; it is called in a thread of its own, and may read files."""
        self._cluster = cluster
        self._namespace = namespace
        self._profiles = profiles
        self._spot = spot
        self._clock = clock
        self._deferring_since: float | None = None
        self._failures: dict[str, int] = {}
        self._paused: dict[str, float] = {}
        self._ended: set[str] = set()
        """The uids of what has ended by itself and is still in the copy: it failed once, however often it is looked at."""
        self._nodes: tuple[float, list[Object] | None] = (0.0, None)
        self._wishes: tuple[float, list[Wish]] = (-_WISHES_SECONDS, [])
        self._stuck_since: dict[str, float] = {}

    async def run(self) -> None:
        """Look, again and again, until cancelled."""
        for informer in (self._cluster.waiting, self._cluster.warm_secrets, self._cluster.pods):
            await informer.listed()
        while True:
            try:
                await self.look()
            except (ClusterError, ClusterAwayError) as error:
                log.warning("What is kept warm cannot be looked after: %s (%s)", error, error.detail)
            except Exception:
                log.exception("Looking after what is kept warm failed; it is tried again")
            await asyncio.sleep(_INTERVAL)

    async def look(self) -> None:
        """Do what is to be done now. Raises ClusterError and ClusterAwayError."""
        cluster, now = self._cluster, asyncio.get_running_loop().time()
        wanted = await self._wanted(now)
        if not (cluster.waiting.is_fresh and cluster.warm_secrets.is_fresh and cluster.pods.is_fresh):
            return
        self._count(wanted)
        self._ended &= {item["metadata"]["uid"] for item in cluster.waiting.objects()}
        for item in plan.superfluous(wanted, cluster.waiting.objects(), self._clock()):
            self._note_failure(item)
            await self._delete(item)
        stuck = self._stuck(now) if wanted or len(cluster.waiting) else []
        known = await self._all_nodes() if stuck else None
        if stuck and (victim := self._victim(stuck, known)) is not None:
            log.info("The pod %s, which waits, makes room for a kernel", victim["metadata"]["name"])
            await self._delete(victim)
        for wish in wanted:
            count = plan.missing(wish, cluster.waiting.objects())
            if not count or self._paused.get(wish.profile.name, 0.0) > now:
                continue
            if stuck and plan.in_the_way(wish.manifest, stuck, known):
                continue
            if self._defers(now):
                return
            for _ in range(count):
                await self._make(wish)

    async def _wanted(self, now: float) -> list[Wish]:
        since, wanted = self._wishes
        if now - since >= _WISHES_SECONDS:
            profiles = list(await asyncio.to_thread(self._profiles))
            wanted = plan.wishes(profiles, self._cluster.deployment, self._namespace, self._spot, self._clock())
            self._wishes = (now, wanted)
        return wanted

    def _stuck(self, now: float) -> list[Object]:
        """Return the kernels' pods that have found no machine for a while."""
        found = {item["metadata"]["uid"]: item for item in plan.stuck(self._cluster.pods.objects())}
        self._stuck_since = {uid: self._stuck_since.get(uid, now) for uid in found}
        return [item for uid, item in found.items() if now - self._stuck_since[uid] >= _STUCK_SECONDS]

    def _defers(self, now: float) -> bool:
        """Tell whether kernels are being started, to which machines are left for a while."""
        if not any(map(_is_starting, self._cluster.pods.objects())) and not self._cluster.starts.are_under_way:
            self._deferring_since = None
            return False
        self._deferring_since = self._deferring_since or now
        if now - self._deferring_since < _DEFERENCE:
            return True
        self._deferring_since = None
        return False

    def _victim(self, stuck: list[Object], known: list[Object] | None) -> Object | None:
        there = sorted(self._cluster.waiting.objects(), key=lambda item: str(item["metadata"]["name"]))
        bound = [item for item in there if item["spec"].get("nodeName") and not status.has_ended(item)]
        if any(item["metadata"].get("deletionTimestamp") for item in bound):
            # one is on its way out, and may be enough
            return None
        return next((item for item in bound if plan.in_the_way(item, stuck, known)), None)

    async def _make(self, wish: Wish) -> None:
        cluster = self._cluster
        name, deployment, namespace = wish.profile.name, cluster.deployment, self._namespace
        try:
            if wish.kind == capacity.KIND:
                number = _free(lambda number: cluster.waiting.get((namespace, capacity.name(deployment, name, number))) is not None)
                own_name = {**wish.manifest["metadata"], "name": capacity.name(deployment, name, number)}
                created = await cluster.client.create("pods", {**wish.manifest, "metadata": own_name})
            else:
                # a kubelet that knows a Secret which does not change takes another of its name for it, for as long as a pod has it
                taken = {secret_of(item) for item in (*cluster.waiting.objects(), *cluster.pods.objects())}

                def is_taken(number: int) -> bool:
                    key = (namespace, waiting.secret_name(deployment, name, number))
                    return key in taken or cluster.warm_secrets.get(key) is not None

                number = _free(is_taken)
                body = waiting.to_secret(wish.profile, deployment, namespace, number, secrets.token_hex(32))
                secret = await cluster.client.create("secrets", body)
                created = await cluster.client.create("pods", waiting.build_waiting(wish.profile, deployment, secret, self._spot))
        except ClusterError as error:
            if error.code != 409:
                log.warning("Nothing can be kept warm for %r: %s (%s)", name, error, error.detail)
                self._pause(name)
            return
        await self._seen(created)

    async def _seen(self, created: Object) -> None:
        """Return when the copy has what was created, so that it is not made again."""
        key = (created["metadata"]["namespace"], created["metadata"]["name"])
        seen = asyncio.Event()

        def look(_: Object | None) -> None:
            seen.set()

        self._cluster.waiting.listen(key, look)
        try:
            if self._cluster.waiting.get(key) is None:
                await patience.happens(seen, _SEEN_SECONDS)
        finally:
            self._cluster.waiting.forget(key, look)

    async def _delete(self, item: Object) -> None:
        """Delete a pod if it is as it was seen, and its Secret with it."""
        metadata = item["metadata"]
        # one that does not run has nothing to end, and a kubelet may look long for the Secret of one that it is still to start
        grace = 1 if (item.get("status") or {}).get("phase") == "Running" else 0
        gone = await self._cluster.client.delete(
            "pods", metadata["namespace"], metadata["name"], grace=grace, uid=metadata["uid"], version=metadata["resourceVersion"]
        )
        for owner in metadata.get("ownerReferences") or () if gone else ():
            await self._cluster.client.delete("secrets", metadata["namespace"], owner["name"], uid=owner["uid"])

    def _note_failure(self, item: Object) -> None:
        """Make fewer of what does not last: one that ended by itself would do so again."""
        name = str((item["metadata"].get("annotations") or {}).get(names.KERNEL_NAME, ""))
        if not status.has_ended(item) or item["metadata"]["uid"] in self._ended:
            return
        self._ended.add(item["metadata"]["uid"])
        ended = status.classify(item, (), self._clock())
        log.warning("A pod that waited for starts of %r has ended: %s", name, ended.sentence)
        self._pause(name)

    def _pause(self, name: str) -> None:
        failures = self._failures[name] = self._failures.get(name, 0) + 1
        pause = min(_FIRST_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE)
        self._paused[name] = asyncio.get_running_loop().time() + pause

    async def _all_nodes(self) -> list[Object] | None:
        """Return the cluster's nodes as they were a moment ago, None if the gateway may not see them."""
        now = asyncio.get_running_loop().time()
        since, known = self._nodes
        if known is None or now - since > _NODES_SECONDS:
            try:
                known = (await self._cluster.client.list("nodes", None))["items"]
            except ClusterError:
                known = None
            self._nodes = (now, known)
        return known

    def _count(self, wanted: list[Wish]) -> None:
        """Say how many wait; where one does, what failed before is over."""
        for name in {wish.profile.name for wish in wanted} & self._failures.keys():
            there = (item for item in self._cluster.waiting.objects() if item["metadata"]["annotations"].get(names.KERNEL_NAME) == name)
            if any(map(waiting.is_ready, there)) and self._paused.get(name, 0.0) < asyncio.get_running_loop().time():
                del self._failures[name]
        gauge = metrics().waiting
        gauge.clear()
        for item in self._cluster.waiting.objects():
            metadata = item["metadata"]
            gauge.labels(metadata["annotations"].get(names.KERNEL_NAME, ""), metadata["labels"].get(names.WARM_KIND, "")).inc()


def _free(is_taken: Callable[[int], bool]) -> int:
    number = 1
    while is_taken(number):
        number += 1
    return number


def _is_starting(item: Object) -> bool:
    return (item.get("status") or {}).get("phase") == "Pending" and not item["metadata"].get("deletionTimestamp")
