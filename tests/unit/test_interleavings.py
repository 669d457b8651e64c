"""A search for an order of events that breaks a limit: several gateways start kernels against one store, and hypothesis chooses.

The code under test is all that a gateway has for it: ``launch``, ``slots``, the reaper, the sweeper and the informers. The store is
the embedded cluster's. Each request waits, before it reaches the store and again before its answer arrives, until it is chosen;
so does each event of each gateway's watches; a gateway may be killed at any moment, and users shut kernels down.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elastic_kernels import names, quantities, slots
from elastic_kernels.cluster import Client, Cluster, Object, RecordRef
from elastic_kernels.cluster.sweeper import ORPHANED_AFTER, Sweeper
from elastic_kernels.embedded.selectors import label_predicate
from elastic_kernels.embedded.store import ApiError, Change, Store
from elastic_kernels.errors import ClusterAwayError, ClusterError, ElasticKernelsError, LimitReachedError
from elastic_kernels.launch import Started, launch
from elastic_kernels.pod import Spot
from elastic_kernels.profiles import Profile, parse_profile
from elastic_kernels.record import Record
from elastic_kernels.request import KernelRequest
from elastic_kernels.slots import Limits
from tests.unit import virtual_time

NAMESPACE = "kernels"
SPOT = Spot("capacity=spot", "capacity=spot:NoSchedule")
PROFILES = {
    "interactive": parse_profile({"name": "a", "image": "i", "memory": "2Gi"}, "a"),
    "gpu": parse_profile({"name": "b", "image": "i", "memory": "4Gi", "gpu": 1, "limit_class": "gpu"}, "b"),
}
LIMITS = [
    Limits(per_class={"interactive": 2, "gpu": 1}),
    Limits(per_user=2),
    Limits(per_class={"interactive": 2, "gpu": 1}, per_user=2, total=3),
    Limits(resources={"gpu": "1", "memory": "6Gi"}),
    Limits(total=2),
]


class World:
    """The store, the requests that are under way, and the gateways."""

    def __init__(self, gateways: int, limits: Limits) -> None:
        self.store = Store()
        self.store.create("namespaces", "", {"metadata": {"name": NAMESPACE}})
        self.store.delete_dependant = self._delete_dependant
        self.limits = limits
        self.waiting: list[tuple[asyncio.Future[None], bool]] = []
        self.gateways = [Gateway(self, number) for number in range(gateways)]
        self.ids = (f"{number:08x}-0000-4000-8000-000000000000" for number in itertools.count())
        self.refused: list[str] = []
        self.free = False
        """Whether requests go through at once."""

    def _delete_dependant(self, resource: str, namespace: str, name: str) -> None:
        if self.store.find(resource, namespace, name) is not None:
            self.store.remove(resource, namespace, name)

    async def gate(self, *, is_answer: bool = False) -> None:
        """Wait to be chosen. Raises ClusterAwayError for an answer that is chosen to be lost."""
        if not self.free:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.append((future, is_answer))
            await future

    def steps(self) -> list[Callable[[], None]]:
        """Return what may happen next."""
        self.waiting = [(future, is_answer) for future, is_answer in self.waiting if not future.done()]
        gates = [partial(future.set_result, None) for future, _ in self.waiting]
        queues = [(gateway, resource) for gateway in self.gateways if gateway.lives for resource, queue in gateway.queues.items() if queue]
        return [*gates, *(partial(gateway.deliver, resource) for gateway, resource in queues)]

    def losses(self) -> list[Callable[[], None]]:
        """Return the answers that may be lost."""
        lost = ClusterAwayError("The answer was lost.")
        return [partial(future.set_exception, lost) for future, is_answer in self.waiting if is_answer and not future.done()]

    def check(self) -> None:
        """The limits hold, at this moment: for kernels that have a pod, and per class for everything that is there."""
        records = self.store.list("secrets", NAMESPACE)
        known = {item["metadata"]["labels"][names.KERNEL_ID]: slots.holder(item) for item in records}
        if not self.limits.per_class and self.limits.per_user is not None:
            for user, count in Counter(item.user for item in known.values()).items():
                assert count <= self.limits.per_user, f"{user} has {count} records"
        running = [known[pod["metadata"]["labels"][names.KERNEL_ID]] for pod in self.store.list("pods", NAMESPACE)]
        per_class = Counter((item.user, item.limit_class) for item in known.values())
        for (user, limit_class), count in per_class.items():
            assert count <= self.limits.per_class.get(limit_class, count), f"{user} has {count} records of {limit_class}"
        for user in {item.user for item in running}:
            own = [item for item in running if item.user == user]
            assert self.limits.per_user is None or len(own) <= self.limits.per_user, f"{user} has {len(own)} kernels"
            for resource, most in self.limits.resources.items():
                taken = sum(slots._amount(item, resource) for item in own)
                assert taken <= quantities.parse(most), f"{user} takes {taken} of {resource}"
        assert self.limits.total is None or len(running) <= self.limits.total, f"{len(running)} kernels in all"


class Gateway:
    """One gateway process: the project's own cluster code, with a client that waits to be chosen."""

    def __init__(self, world: World, number: int) -> None:
        self.world, self.number, self.lives = world, number, True
        self.cluster = Cluster(StoreClient(world, number), NAMESPACE, "default")
        self.tasks: list[asyncio.Task[None]] = []
        self.queues: dict[str, list[tuple[str, Object]]] = {"pods": [], "secrets": []}
        for resource in self.queues:
            world.store.listeners[resource].append(partial(self._hear, resource))
        for informer in (self.cluster.pods, self.cluster.records):
            informer._listed.set()
        self.sweeper = Sweeper(self.cluster.pods, self.cluster.records, self.cluster.reaper)

    def _hear(self, resource: str, change: Change) -> None:
        self.queues[resource].append((change[0], change[1]))

    def deliver(self, resource: str) -> None:
        """Bring the next event of a watch."""
        kind, item = self.queues[resource].pop(0)
        (self.cluster.pods if resource == "pods" else self.cluster.records)._apply(kind, item)

    def begin(self, user: str, limit_class: str) -> None:
        self.tasks.append(asyncio.get_running_loop().create_task(self._start(user, limit_class)))

    async def _start(self, user: str, limit_class: str) -> None:
        try:
            await self.start(user, limit_class)
        except LimitReachedError as error:
            self.world.refused.append(str(error))
        except ElasticKernelsError:
            pass

    async def start(self, user: str, limit_class: str) -> Started:
        profile: Profile = PROFILES[limit_class]
        kernel_id = next(self.world.ids)
        asked = Record(
            kernel_id,
            profile.name,
            user,
            NAMESPACE,
            "default",
            key="k",
            token=kernel_id[:8],
            slot="",
            limit_class=limit_class,
            usage=slots.usage(profile),
        )

        async def connect(*_: Any) -> dict[str, Any]:
            return {}

        request = KernelRequest(image="i", timeout=600)
        return await launch(
            self.cluster, profile, asked, request, SPOT, connect=connect, arguments={}, limits=self.world.limits, id_is_chosen=False
        )

    def kill(self) -> None:
        """End as a process does that is killed: nothing more happens, and requests that are on their way may or may not arrive."""
        self.lives = False
        self.cluster.unfinished.clear()
        for task in [*self.tasks, *self.cluster.reaper._tasks]:
            task.cancel()


class StoreClient(Client):
    """The project's client, whose requests go to the store: what it repeats after an answer that was lost is under test as well."""

    def __init__(self, world: World, number: int) -> None:
        self._world, self._number = world, number
        self._retry_time = 60.0

    async def _request(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Object | None = None, accept: str = ""
    ) -> Object:
        await self._world.gate()
        try:
            answer = self._act(method, path, query or {}, body)
        except ApiError as error:
            await self._world.gate(is_answer=True)
            raise ClusterError(str(error), code=error.code, reason=error.reason) from None
        finally:
            self._world.check()
        await self._world.gate(is_answer=True)
        if not self._world.gateways[self._number].lives:
            raise asyncio.CancelledError
        return answer

    def _act(self, method: str, path: str, query: Mapping[str, str], body: Object | None) -> Object:
        store = self._world.store
        resource, _, name = path.removeprefix(f"/api/v1/namespaces/{NAMESPACE}/").partition("/")
        if method == "POST":
            assert body is not None
            return store.create(resource, NAMESPACE, {**body, "status": {"phase": "Running", "podIP": "127.0.0.1"}})
        if method == "GET" and not name:
            return {"items": store.list(resource, NAMESPACE, label_predicate(query.get("labelSelector", "")))}
        found = store.get(resource, NAMESPACE, name)
        if method == "DELETE":
            uid = ((body or {}).get("preconditions") or {}).get("uid")
            if uid not in (None, found["metadata"]["uid"]):
                raise ApiError(409, "Conflict", "precondition failed")
            store.remove(resource, NAMESPACE, name)
        return found


async def search(data: st.DataObject) -> None:
    world = World(data.draw(st.integers(1, 3), "gateways"), data.draw(st.sampled_from(LIMITS), "limits"))
    users, classes = ("ana", "bia"), tuple(PROFILES)
    for _ in range(data.draw(st.integers(1, 80), "events")):
        await _settled()
        living = [gateway for gateway in world.gateways if gateway.lives]
        steps = world.steps()
        choice = data.draw(st.integers(0, len(steps) + 6), "step")
        if choice < len(steps):
            steps[choice]()
        elif choice <= len(steps) + 2 and living:
            data.draw(st.sampled_from(living)).begin(data.draw(st.sampled_from(users)), data.draw(st.sampled_from(classes)))
        elif choice == len(steps) + 3 and len(living) > 1:
            data.draw(st.sampled_from(living)).kill()
        elif choice == len(steps) + 4:
            pods = world.store.list("pods", NAMESPACE)
            if pods and living:
                _shut_down(world, data.draw(st.sampled_from(living)), data.draw(st.sampled_from(pods)))
        elif choice == len(steps) + 5:
            if losses := world.losses():
                data.draw(st.sampled_from(losses))()
        else:
            await asyncio.sleep(data.draw(st.sampled_from((0.5, 3.0)), "seconds"))
        world.check()
    await _until_quiet(world)
    await _every_slot_can_be_had(world, users, classes)


def _shut_down(world: World, gateway: Gateway, pod: Object) -> None:
    """What a user's DELETE makes of a kernel."""
    owner = pod["metadata"]["ownerReferences"][0]
    record = RecordRef(owner["name"], owner["uid"], owner["uid"])
    gateway.cluster.reaper.end(NAMESPACE, pod["metadata"]["name"], grace=1, record=record)


async def _settled() -> None:
    """Let everybody come to where they wait."""
    for _ in range(20):
        await asyncio.sleep(0)


async def _until_quiet(world: World) -> None:
    """Let everything arrive, and as much time pass as records are given that nobody starts a kernel for."""
    world.free = True
    for future, _ in world.waiting:
        if not future.done():
            future.set_result(None)
    for _ in range(60):
        while steps := world.steps():
            steps[0]()
            await _settled()
        await asyncio.sleep(ORPHANED_AFTER / 10)
        for gateway in world.gateways:
            if gateway.lives:
                gateway.sweeper.sweep(asyncio.get_running_loop().time())
    world.check()
    # nobody's records have gone, and so has what was without one
    kernels = [{item["metadata"]["labels"][names.KERNEL_ID] for item in world.store.list(kind, NAMESPACE)} for kind in ("secrets", "pods")]
    assert kernels[0] == kernels[1]


async def _every_slot_can_be_had(world: World, users: tuple[str, ...], classes: tuple[str, ...]) -> None:
    """Once things have settled, whoever has a free slot gets it, and whoever has none is refused."""
    gateway = next(gateway for gateway in world.gateways if gateway.lives)
    for user, limit_class in itertools.product(users, classes):
        held = [slots.holder(item) for item in world.store.list("secrets", NAMESPACE)]
        mine = slots.Holder("", "", "", 10**9, user, limit_class, "", "", "", "", "", slots.usage(PROFILES[limit_class]))
        is_full = slots.exceeded(world.limits, mine, held) is not None
        task = asyncio.get_running_loop().create_task(gateway.start(user, limit_class))
        while not task.done():
            for step in world.steps():
                step()
            await asyncio.sleep(0.1)
        assert isinstance(task.exception(), LimitReachedError) == is_full, (task.exception(), user, limit_class, held)
        while steps := world.steps():
            steps[0]()
            await _settled()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_no_order_of_events_breaks_a_limit_or_loses_a_slot(data: st.DataObject) -> None:
    virtual_time.run(search(data))
