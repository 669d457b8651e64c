"""The limit holds, and can always be used up: three gateway processes, starts by the dozen, and processes killed in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from elastic_kernels.cluster import Object
from elastic_kernels.cluster.sweeper import ORPHANED_AFTER
from elastic_kernels.slots import holder
from tests.conftest import Backend, profile
from tests.gateway import PLUGGED_IN, Gateway, running_gateway, until, write_kernelspecs

pytestmark = pytest.mark.usefixtures("nothing_left")

LIMIT = 2
PROFILES = {
    "small": profile("small", memory="150Mi", cpu={"request": "10m"}),
    "night": profile("night", memory="150Mi", cpu={"request": "10m"}, limit_class="scheduled"),
}


class Witness:
    """Watches the cluster for as long as a test lasts, and remembers each moment at which a user had more than the limit."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._objects: dict[str, dict[str, Object]] = {"pods": {}, "secrets": {}}
        self.excesses: list[str] = []
        self.most: Counter[str] = Counter()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._watch(resource)) for resource in self._objects]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, resource: str) -> None:
        managed = "app.kubernetes.io/managed-by=elastic-kernels"
        client, namespace = self._backend.api, self._backend.namespace
        async with client.watch(resource, namespace, labelSelector=managed, timeoutSeconds="600", resourceVersion="0") as events:
            async for event in events:
                item = event["object"]
                if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                    self._objects[resource].pop(item["metadata"]["name"], None)
                    if event["type"] != "DELETED" and not item["metadata"].get("deletionTimestamp"):
                        self._objects[resource][item["metadata"]["name"]] = item
                    self._count(resource)

    def _count(self, resource: str) -> None:
        """Pods that are being deleted have given their slot back; everything else counts, records without a pod as well."""
        users = Counter(item["metadata"]["annotations"]["elastic-kernels/user"] for item in self._objects[resource].values())
        self.most |= users
        self.excesses += [f"{user} has {count} {resource}" for user, count in users.items() if count > LIMIT]


@asynccontextmanager
async def gateways(backend: Backend, directory: Path, count: int, limits: dict[str, str]) -> AsyncIterator[list[Gateway]]:
    environment = {
        **backend.environment,
        "ELASTIC_KERNELS_IDENTITY": "header",
        "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.0/8",
        **limits,
    }
    async with AsyncExitStack() as stack:
        running = []
        for number in range(count):
            own = directory / str(number)
            own.mkdir(parents=True)
            write_kernelspecs(own, PROFILES)
            running.append(await stack.enter_async_context(running_gateway(own, environment, configuration=PLUGGED_IN)))
        yield running


async def start(gateway: Gateway, user: str, kernel: str = "small") -> tuple[int, Any]:
    """Return status (0: the gateway was gone) and body."""
    try:
        return await gateway.request("POST", "/api/kernels", {"name": kernel}, headers={"X-Forwarded-User": user})
    except (aiohttp.ClientError, asyncio.TimeoutError):
        return 0, None


async def listed(gateway: Gateway, user: str) -> list[str]:
    return [model["id"] for model in (await gateway.request("GET", "/api/kernels", headers={"X-Forwarded-User": user}))[1]]


async def stop_all(backend: Backend, running: Sequence[Gateway], users: Sequence[str]) -> None:
    for user in users:
        for gateway in running:
            with contextlib.suppress(aiohttp.ClientError):
                _, models = await gateway.request("GET", "/api/kernels", headers={"X-Forwarded-User": user})
                for model in models:
                    await gateway.request("DELETE", f"/api/kernels/{model['id']}", headers={"X-Forwarded-User": user})
    await until(backend.is_empty, "all kernels to go", seconds=90)


PER_CLASS = {"ELASTIC_KERNELS_MAX_KERNELS_PER_CLASS": f"interactive={LIMIT}"}
PER_USER = {"EG_MAX_KERNELS_PER_USER": str(LIMIT)}


@pytest.mark.parametrize("limits", [PER_CLASS, PER_USER], ids=["class", "user"])
async def test_many_starts_at_once_take_what_there_is_and_no_more(backend: Backend, tmp_path: Path, limits: dict[str, str]) -> None:
    witness = Witness(backend)
    async with gateways(backend, tmp_path, 3, limits) as running, witness.watching():
        # fifty by one user
        answers = await asyncio.gather(*(start(running[number % 3], "ana") for number in range(50)))
        assert Counter(status for status, _ in answers) == {201: LIMIT, 403: 50 - LIMIT}
        for status, body in answers:
            assert status == 201 or body["message"].startswith(f"You have {LIMIT} of {LIMIT} "), body
            assert status == 201 or body["message"].endswith("to start another."), body
        # whoever shuts one down can start another one, at once and anywhere
        gone = next(body["id"] for status, body in answers if status == 201)
        deleted = [(await gateway.request("DELETE", f"/api/kernels/{gone}", headers={"X-Forwarded-User": "ana"}))[0] for gateway in running]
        # the second and the third may have seen it go, or be told so by the cluster
        assert deleted[0] == 204
        assert set(deleted) <= {204, 404}
        assert (await start(running[2], "ana"))[0] == 201
        assert (await start(running[0], "ana"))[0] == 403
        # by ten users at once
        users = [f"user-{number}" for number in range(10)]
        answers = await asyncio.gather(*(start(running[number % 3], user) for user in users for number in range(3)))
        assert Counter(status for status, _ in answers) == {201: LIMIT * 10, 403: 10}, [
            body for status, body in answers if status not in (201, 403)
        ]
        assert witness.most == {user: LIMIT for user in ("ana", *users)}
        await stop_all(backend, running, ["ana", *users])
    assert witness.excesses == []


async def test_gateways_that_are_killed_leave_no_more_and_no_less_than_the_limit(backend: Backend, tmp_path: Path) -> None:
    """What a killed gateway had started runs on and counts; what it had merely begun gives its slot back."""
    seed = random.randrange(10**6)
    logging.getLogger(__name__).warning("seed %d", seed)
    chance = random.Random(seed)
    witness = Witness(backend)
    users = [f"user-{number}" for number in range(4)]
    async with gateways(backend, tmp_path / "survivor", 1, PER_CLASS) as survivors, witness.watching():
        for round_ in range(3):
            async with gateways(backend, tmp_path / f"round-{round_}", 2, PER_CLASS) as doomed:
                everybody = [*doomed, *survivors]
                starting = [asyncio.create_task(start(chance.choice(everybody), chance.choice(users))) for _ in range(16)]
                await asyncio.sleep(chance.uniform(0.0, 1.5))
                for gateway in doomed:
                    gateway.kill()
                statuses = Counter(status for status, _ in await asyncio.gather(*starting))
                assert set(statuses) <= {0, 201, 403}, statuses
        assert witness.excesses == []

        async def no_orphans() -> bool:
            pods = {pod["metadata"]["labels"]["elastic-kernels/kernel-id"] for pod in await backend.pods()}
            return all(holder(record).kernel_id in pods for record in await backend.records())

        await until(no_orphans, "records without a pod to go", seconds=ORPHANED_AFTER + 30)
        held = Counter(holder(record).user for record in await backend.records())
        for user in users:
            statuses = Counter([(await start(survivors[0], user))[0] for _ in range(LIMIT + 1)])
            assert statuses == Counter({201: LIMIT - held[user], 403: held[user] + 1}), (user, held)
        assert witness.most == {user: LIMIT for user in users}
        recorded = {holder(record).kernel_id for record in await backend.records()}

        async def all_served() -> bool:
            return recorded == {kernel for user in users for kernel in await listed(survivors[0], user)}

        # the survivor serves what the killed ones had started, as soon as it runs
        await until(all_served, "the survivor to serve what the killed ones had started", seconds=60)
    assert witness.excesses == []


async def test_classes_sums_and_totals(backend: Backend, tmp_path: Path) -> None:
    limits = {
        "ELASTIC_KERNELS_MAX_KERNELS_PER_CLASS": "interactive=2,scheduled=2",
        "ELASTIC_KERNELS_MAX_RESOURCES_PER_USER": "memory=450Mi",
        "EG_MAX_KERNELS": "4",
    }
    async with gateways(backend, tmp_path, 2, limits) as running:
        # of each class as many as it may have, and in all no more than the sum
        assert [(await start(running[0], "ana"))[0] for _ in range(2)] == [201, 201]
        assert (await start(running[1], "ana", "night"))[0] == 201
        status, body = await start(running[0], "ana", "night")
        assert status == 403
        assert body["message"].startswith(
            "'night' takes 150Mi of memory, and you may have 450Mi with all your kernels together: 'small' (150Mi"
        )
        # all users together
        assert (await start(running[1], "bia"))[0] == 201
        status, body = await start(running[0], "bia")
        assert (status, body["message"][:74]) == (403, "All 4 kernels that this gateway may run at a time are in use. You have 1 o")
        await stop_all(backend, running, ["ana", "bia"])


@pytest.mark.embedded
async def test_the_starts_of_a_burst_do_not_try_one_anothers_slots(backend: Backend, tmp_path: Path) -> None:
    assert backend.embedded is not None
    async with gateways(backend, tmp_path, 1, {"ELASTIC_KERNELS_MAX_KERNELS_PER_CLASS": "interactive=5"}) as (gateway,):
        assert (await start(gateway, "ana"))[0] == 201
        before = Counter(backend.embedded.faults.requests)
        assert [status for status, _ in await asyncio.gather(*(start(gateway, "ana") for _ in range(4)))] == [201] * 4
        asked = backend.embedded.faults.requests - before
        assert (asked["create", "secrets"], asked["create", "pods"]) == (4, 4), asked
        await stop_all(backend, [gateway], ["ana"])
