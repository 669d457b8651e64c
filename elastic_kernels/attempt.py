"""One attempt to start a kernel: the record, the pod, the wait, the connection, and what is undone if it comes to nothing.

The wait is on the watch, not on a timer, and ends the moment the launch can no longer succeed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Final

from elastic_kernels import homes, last_words, names, patience, pod, quotas, reach, record, slots, status, unbound
from elastic_kernels.cluster import Cluster, Key, Object, RecordRef
from elastic_kernels.errors import ClusterError, HomeError, LaunchError, NotFoundError
from elastic_kernels.profiles import Profile
from elastic_kernels.reach import Connect
from elastic_kernels.record import Record
from elastic_kernels.request import KernelRequest
from elastic_kernels.slots import Limits
from elastic_kernels.starts import Start
from elastic_kernels.status import Phase, Status
from elastic_kernels.warm import claim

log = logging.getLogger(__name__)

# A pod that runs by then, as most do, never has its events watched. What does not exist is certain by then (see ``status``), and
# users are to know that within two seconds.
_SLOW: Final = 1.5
_LOOK_AGAIN: Final = 1.0
# Between two looks for what only another gateway is told.
_TOLD: Final = 0.5


@dataclass(frozen=True)
class Again:
    """What is known of a kernel that is started again: its record is used, and kept if the launch fails."""

    after: int
    """The number of the start that this one is to follow: if another gateway has done just that, its pod is waited for."""
    renew: bool = True
    """Whether a kernel whose record is gone gets another one."""


@dataclass(frozen=True)
class Started:
    """A kernel that answers."""

    key: Key
    """Namespace and name of its pod; the name is empty where a dead kernel has none."""
    address: str
    """The pod's address, empty where a kernel is dead."""
    connection: dict[str, Any]
    """The content of a connection file for whoever connects to it."""
    record: RecordRef
    """Its record."""
    number: int = 1
    """The how-manieth start of the kernel it is."""


class Attempt:
    """One launch under way: what it has created so far, and the last that is known of its pod."""

    def __init__(
        self, cluster: Cluster, asked: Record, profile: Profile, request: KernelRequest, limits: Limits, id_is_chosen: bool
    ) -> None:
        self.title = repr(profile.display_name or profile.name)
        self.start = Start(asked.kernel_id, asked.user, asked.service, profile.name)
        self._cluster = cluster
        self._namespace = asked.namespace
        self._profile = profile
        self._request = request
        self._limits = limits
        self._id_is_chosen = id_is_chosen
        self._key: Key | None = None
        self._new_record: RecordRef | None = None
        self._creating: asyncio.Task[Object | None] | None = None
        self._is_ours = True
        self._token = secrets.token_hex(3)
        """What pods that this attempt has created say of it."""
        self._awaited = ""
        """Since when another gateway's pod is waited for here, as is written on it."""
        self._quotas = quotas.Wait(cluster.pods, self.start.note)

    async def run(
        self, asked: Record, spot: pod.Spot, connect: Connect, arguments: Mapping[str, str], home_claims: str, again: Again | None
    ) -> Started:
        """Carry it out, and return once the kernel answers. Raises what ``launch`` says."""
        client = self._cluster.client
        home = await homes.find(client, asked.namespace, self._profile, asked.user, home_claims)
        secret = await self._record(asked, again)
        # whose groups may be others by now
        kept = replace(record.from_secret(secret), groups=asked.groups)
        self._namespace = kept.namespace
        uid = secret["metadata"]["uid"]
        start = pod.Launch(self._token, 0, uid, 1, arguments, self._cluster.announcements.address, home, self._token)
        created = await self._waiting(kept, start, spot) if again is None else None
        if created is None:
            number = reach.next_start(self._cluster.pods_of(kept.kernel_id), again.after) if again else None
            created, start = await self._pod(kept, start, spot, number)
        answers = connect if self._is_ours or not self._profile.calls_back else self._told
        address, connection = await self._connected(created, kept.key, lambda address: answers(kept, start.ports, address))
        if self._profile.calls_back and self._is_ours:
            # the launcher has told nobody but this process
            await self._create("secrets", record.to_connection_secret(kept, created, connection))
        assert self._key is not None
        return Started(self._key, address, connection, RecordRef(kept.name, kept.token, uid), start.number)

    async def _told(self, kept: Record, _ports: int, _address: str) -> dict[str, Any]:
        """Wait for what the launcher tells the gateway that began this start: a ``Connect`` for whoever joined it."""
        assert self._key is not None
        while True:
            current = self._cluster.pods.get(self._key)
            connection = await reach.again(self._cluster, kept, current, True) if current is not None else None
            if connection is not None:
                return connection
            await asyncio.sleep(_TOLD)

    async def _waiting(self, kept: Record, start: pod.Launch, spot: pod.Spot) -> Object | None:
        """Return a pod that has waited for this start, None if it needs one of its own."""

        def claimed(item: Object) -> None:
            self._key = (item["metadata"]["namespace"], item["metadata"]["name"])

        if self._profile.warm is None or not self._profile.warm.kernels:
            return None
        manifest = pod.build_pod(self._profile, kept, self._request, start, spot)
        return await claim.take(self._cluster, self._profile, self._request, kept, manifest, self._carry_out, claimed)

    async def _pod(self, kept: Record, start: pod.Launch, spot: pod.Spot, number: int | None) -> tuple[Object, pod.Launch]:
        """Create the pod, of the start ``number`` if it is not the kernel's first, and return it with what it is.

        Two gateways that start a kernel again at the same time mean the same start, and so the same name: one of them creates it.
        """
        while True:
            if number is not None:
                start = replace(start, token=reach.token_of(start.record_uid, number), number=number, ports=reach.ports_of_start(number))
            manifest = await self._manifest(kept, start, spot)
            self._key, self._is_ours, self._awaited = (kept.namespace, manifest["metadata"]["name"]), True, ""
            try:
                return await self._create("pods", manifest), start
            except ClusterError as error:
                if number is not None:
                    # what has this name is another gateway's; a quota that it has used up refuses before the name is looked at
                    self._is_ours = error.code >= 500
                    joined = await self._join(self._key) if error.code in (403, 409) else None
                    if joined is not None:
                        return joined, start
                if await self._quotas.may_ask_again(error):
                    continue
                if error.code != 409 or number is None:
                    raise
            number += 1

    async def _join(self, key: Key) -> Object | None:
        """Wait for the pod of somebody else's start as well, and let all know that; None if it is over, or has been given up."""
        while True:
            found = await self._cluster.client.get("pods", *key)
            if found is None or reach.is_leaving(self._cluster, found) or status.has_ended(found):
                return None
            moment = datetime.now(timezone.utc)
            if reach.is_given_up(found, moment):
                self._cluster.reaper.end(*key, grace=self._profile.grace_period)
                return None
            self._awaited = moment.isoformat()
            try:
                if await self._cluster.client.annotate("pods", found, {names.AWAITED: self._awaited}) is not None:
                    return found
            except ClusterError as error:
                if error.code != 403:
                    raise
                # a gateway that may not patch pods does without
                return found

    async def _manifest(self, kept: Record, start: pod.Launch, spot: pod.Spot) -> Object:
        """Return the pod's manifest: without the home volume if the pod cannot run where that is, and the profile lets it go."""
        manifest = pod.build_pod(self._profile, kept, self._request, start, spot)
        home = start.home
        if home is None or not (home.node or home.terms):
            return manifest
        reached = await homes.reachable(self._cluster.client, self._profile, home, manifest)
        return manifest if reached == home else pod.build_pod(self._profile, kept, self._request, replace(start, home=reached), spot)

    def give_up(self, *, with_joined: bool = False) -> None:
        """Have everything deleted that this attempt created, also what the API server is still about to create.

        ``with_joined`` ends a pod that it has joined as well. What others have joined since is theirs.
        """
        if with_joined and self._awaited:
            self._is_ours = True
        if self._creating is not None and not self._creating.done():
            self._creating.add_done_callback(lambda _: self._end())
        else:
            self._end()

    async def why_late(self) -> str:
        """Return what its status does not say of a pod that is waited for in vain, as the end of a sentence; empty if nothing.

        That is what is said of the volumes of one that has no node, and whether one that runs can be reached at all.
        """
        waiting = self._cluster.pods.get(self._key) if self._key is not None else None
        if waiting is None:
            return ""
        if not status.is_scheduled(waiting):
            return await unbound.why(self._cluster.client, waiting)
        return "" if self._profile.calls_back else await reach.why_not(waiting)

    def abandon(self) -> None:
        """Called when this process ends: a kernel that is started again has its record, and is left to the other gateways."""
        if self._new_record is not None:
            self.give_up()

    def _end(self) -> None:
        pod_name = self._key[1] if self._key is not None and self._is_ours else None
        if pod_name is not None or self._new_record is not None:
            # a container that never ran needs no time to end, and its kubelet takes its own to say so
            grace = 1 if self.start.status.phase is Phase.RUNNING else 0
            # without its record it goes in any case
            still = self._is_still_ours if self._new_record is None else None
            self._cluster.reaper.end(self._namespace, pod_name, grace=grace, record=self._new_record, still=still)

    def _is_still_ours(self, found: Object) -> bool:
        """Tell whether a pod is this attempt's to end, by what is written on it.

        Created here: until another gateway joins it, which nobody could for long whose launcher tells this process alone.
        Joined here: until another one joins it later, or it is in use.
        """
        written: Mapping[str, str] = found["metadata"].get("annotations") or {}
        if self._awaited:
            return written.get(names.AWAITED) == self._awaited and names.USED not in written
        return written.get(names.LAUNCH) == self._token and (self._profile.calls_back or names.AWAITED not in written)

    async def _record(self, asked: Record, again: Again | None) -> Object:
        if again and (kept := await _kept_record(self._cluster, asked.kernel_id)) is not None:
            return kept
        if again and not again.renew:
            raise NotFoundError(f"Kernel does not exist: {asked.kernel_id}: it was shut down elsewhere.")
        slots.check(self._profile, self._limits)
        return await slots.take(self._cluster, asked, self._limits, self._create_record, id_is_chosen=self._id_is_chosen)

    async def _create_record(self, asked: Record) -> Object:
        self._new_record = RecordRef(asked.name, asked.token)
        try:
            secret = await self._create("secrets", record.to_secret(asked))
        except ClusterError as error:
            if error.code == 409:
                self._new_record = None  # it is somebody else's
            if error.code == 404:
                self._new_record = None
                raise HomeError(
                    f"The namespace {asked.namespace!r}, where your kernels run, does not exist; start your JupyterLab server once, which "
                    "makes it, or ask your administrator."
                ) from error
            raise
        self._new_record = RecordRef(asked.name, asked.token, secret["metadata"]["uid"])
        return secret

    async def _create(self, resource: str, body: Object) -> Object:
        created = await self._carry_out(self._cluster.client.create(resource, body))
        assert created is not None
        return created

    async def _carry_out(self, request: Coroutine[Any, Any, Object | None]) -> Object | None:
        """Make a request in a task of its own: one that is on its way cannot be taken back, so its outcome is waited for."""
        self._creating = asyncio.get_running_loop().create_task(request)
        return await asyncio.shield(self._creating)

    async def _connected(
        self, created: Object, key: str, connect: Callable[[str], Awaitable[dict[str, Any]]]
    ) -> tuple[str, dict[str, Any]]:
        """Wait until the kernel answers at the address that the API server or, usually before it, the kernel itself says."""
        assert self._key is not None
        wake = asyncio.Event()
        loop = asyncio.get_running_loop()
        connecting: asyncio.Future[dict[str, Any]] | None = None
        address = ""
        events = None
        last: Object | None = None

        def changed(_: object) -> None:
            wake.set()

        def connect_to(there: str) -> None:
            nonlocal address, connecting
            if connecting is not None:
                connecting.cancel()
            address, connecting = there, asyncio.ensure_future(connect(there))
            connecting.add_done_callback(changed)

        def listens(there: str) -> None:
            # at once, whatever pause the present attempt makes
            if not self._profile.calls_back and not (connecting is not None and connecting.done()):
                connect_to(there)

        self._cluster.pods.listen(self._key, changed)
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(self._cluster.announcements.expected(self._key, key, listens))
                stack.callback(lambda: connecting and connecting.cancel())
                slow = loop.time() + _SLOW
                while True:
                    wake.clear()
                    current = self._cluster.pods.get(self._key)
                    last = current or last
                    # a pod that the watch has not brought yet is as it was created
                    now = current if last is not None else created
                    happened = events.objects() if events else ()
                    await self._note(status.classify(last or created, happened, datetime.now(timezone.utc), is_gone=now is None))
                    # the address is there before the kubelet says Running, and so may the kernel be
                    seen = str(now["status"].get("podIP") or "") if now else ""
                    if seen and seen != address:
                        connect_to(seen)
                    if connecting is not None and connecting.done():
                        return address, connecting.result()
                    if events is None and loop.time() >= slow:
                        context = self._cluster.events_of(self._key[0], created["metadata"]["uid"], wake.set)
                        events = await stack.enter_async_context(context)
                    # something may become certain by standing for a while
                    await patience.happens(wake, _LOOK_AGAIN if events else slow - loop.time())
        finally:
            self._cluster.pods.forget(self._key, changed)

    async def _note(self, now: Status) -> None:
        """Log a change of the pod's status, and end the launch if it is the last one."""
        self.start.note(now, "/".join(self._key or ()))
        if now.hopeless:
            raise LaunchError(f"The kernel {self.title} cannot start: {now.sentence}.{await last_words.of(self._cluster, self._key)}")


async def _kept_record(cluster: Cluster, kernel_id: str) -> Object | None:
    """Return the record that a kernel which is started again has, or None if it is gone."""
    known = cluster.record_of(kernel_id)
    if known is not None:
        found = await cluster.client.get("secrets", known["metadata"]["namespace"], known["metadata"]["name"])
        # by now the name can be another kernel's
        return found if found is not None and found["metadata"]["uid"] == known["metadata"]["uid"] else None
    selector = f"{names.selector(cluster.deployment)},{names.KERNEL_ID}={kernel_id}"
    listed: list[Object] = (await cluster.client.list("secrets", cluster.watched, labelSelector=selector)).get("items") or []
    return listed[0] if listed else None
