"""Kernels that wait for their users: whose they become, how often, and what is not theirs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from elastic_kernels import names
from elastic_kernels.cluster import Object
from elastic_kernels.profiles import Profile
from elastic_kernels.warm.waiting import is_ready
from tests.conftest import Backend, profile, shut_down_all
from tests.gateway import PLUGGED_IN, Gateway, running_gateway, until, write_kernelspecs


def warm(name: str = "small", count: int = 2, **fields: Any) -> Profile:
    return profile(name, memory="150Mi", cpu={"request": "10m"}, warm={"kernels": count}, **fields)


async def waiting(backend: Backend) -> list[Object]:
    """Return the pods that wait, in the order of their names."""
    found = (await backend.api.list("pods", backend.namespace, labelSelector=names.WARM))["items"]
    return sorted(found, key=lambda item: str(item["metadata"]["name"]))


async def ready(backend: Backend, count: int) -> list[Object]:
    """Return the pods that wait, once there are so many and all of them can be claimed."""

    async def look() -> list[Object]:
        found = await waiting(backend)
        return found if len(found) == count and all(map(is_ready, found)) else []

    found: list[Object] = await until(look, f"{count} pods to wait")
    return found


@asynccontextmanager
async def gateway(backend: Backend, directory: Path, *profiles: Profile, **settings: str) -> AsyncIterator[Gateway]:
    write_kernelspecs(directory, {each.name: each for each in profiles})
    async with running_gateway(directory, {**backend.environment, **settings}, configuration=PLUGGED_IN) as running:
        yield running


@pytest.fixture(autouse=True)
async def nothing_left(backend: Backend) -> AsyncIterator[None]:
    yield
    await shut_down_all(backend.environment)
    await until(backend.is_empty, "the last kernel's pod and record to go")
    for resource in ("pods", "secrets"):
        for item in (await backend.api.list(resource, backend.namespace, labelSelector=names.WARM))["items"]:
            await backend.api.delete(resource, backend.namespace, item["metadata"]["name"])


async def test_a_start_takes_a_pod_that_waits(backend: Backend, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path, warm()) as running:
        before = {item["metadata"]["uid"] for item in await ready(backend, 2)}
        begin = time.monotonic()
        kernel = await running.start("small")
        print(time.monotonic() - begin)
        assert await running.run(kernel, "print(6 * 7)") == "42\n"
        print(time.monotonic() - begin)
        (pod,) = await backend.pods(kernel)
        assert pod["metadata"]["uid"] in before
        (record,) = await backend.records()
        assert [owner["uid"] for owner in pod["metadata"]["ownerReferences"]] == [record["metadata"]["uid"]]
        assert names.WARM not in pod["metadata"]["labels"]
        await ready(backend, 2)
        await running.stop(kernel)
        await until(lambda: _gone(backend, kernel), "the kernel's pod to go")


async def _gone(backend: Backend, kernel: str) -> bool:
    return not await backend.pods(kernel)
