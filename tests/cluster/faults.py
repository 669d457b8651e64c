"""Taking parts of a real cluster away for a while: its API server, a kubelet, room.

How processes are taken away is each cluster's own affair, so that ``ELASTIC_KERNELS_CLUSTER`` names a program, which is called with
``kill NAME`` and ``revive NAME``. The names are those of the processes: ``kube-apiserver``, ``kubelet-spot``. ``kind-faults`` is the
program for kind.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio import client

from tests.cluster.conftest import connected
from tests.conftest import Backend
from tests.gateway import until

VARIABLE = "ELASTIC_KERNELS_CLUSTER"
API_SERVER = "kube-apiserver"
SPOT_KUBELET = "kubelet-spot"
_BACK_SECONDS = 120.0


async def control(verb: str, name: str) -> None:
    """Have one process of the cluster killed or revived. Fails the test if that cannot be done."""
    program = os.environ.get(VARIABLE) or pytest.fail(
        f"{VARIABLE} is not set: it names what kills and revives; see tests/cluster/faults.py."
    )
    process = await asyncio.create_subprocess_exec(
        program, verb, name, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, stdin=asyncio.subprocess.DEVNULL
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, f"{program} {verb} {name}: {said.decode()}"


@asynccontextmanager
async def without_api_server(kubeconfig: Path) -> AsyncIterator[None]:
    """Take the API server away; afterwards it is there again, and has heard of all nodes."""
    await control("kill", API_SERVER)
    try:
        yield
    finally:
        await control("revive", API_SERVER)
        await whole(kubeconfig)


@asynccontextmanager
async def without_spot_kubelet(kubeconfig: Path) -> AsyncIterator[None]:
    """Have the kubelet of the node ``spot`` be silent; afterwards the node is there and ready."""
    await control("kill", SPOT_KUBELET)
    try:
        yield
    finally:
        await control("revive", SPOT_KUBELET)
        await whole(kubeconfig)


@asynccontextmanager
async def tainted(core: Any, key: str, effect: str) -> AsyncIterator[None]:
    """Taint the node for spot kernels for a while, as termination handlers and administrators do."""
    node = await core.read_node("spot")
    taints = [taint.to_dict() for taint in node.spec.taints or ()]
    kept = [{name: value for name, value in taint.items() if value is not None and name != "time_added"} for taint in taints]
    await core.patch_node("spot", {"spec": {"taints": [*kept, {"key": key, "value": "x", "effect": effect}]}})
    try:
        yield
    finally:
        await core.patch_node("spot", {"spec": {"taints": kept}})


async def whole(kubeconfig: Path) -> None:
    """Return once the API server answers, and both nodes are there, ready and open."""

    async def is_whole() -> bool:
        # in a task of its own: a request's timer that fires as the request fails would cancel whoever waits here
        looking = asyncio.ensure_future(_is_whole(kubeconfig))
        await asyncio.wait({looking})
        return not looking.cancelled() and looking.result()

    await until(is_whole, "the cluster to be whole again", seconds=_BACK_SECONDS)


async def _is_whole(kubeconfig: Path) -> bool:
    """Tell whether the API server answers, and both nodes are ready and may be used."""
    with suppress(client.ApiException, OSError, asyncio.TimeoutError):
        async with connected(kubeconfig) as core:
            nodes = (await core.list_node(_request_timeout=5)).items
        return {node.metadata.name for node in nodes} >= {"spot"} and len(nodes) >= 2 and all(map(_is_usable, nodes))
    return False


def _is_usable(node: Any) -> bool:
    ready = next((each.status for each in node.status.conditions or () if each.type == "Ready"), "")
    return ready == "True" and not any(taint.key.startswith("node.kubernetes.io/") for taint in node.spec.taints or ())


@asynccontextmanager
async def quota(backend: Backend, memory: str) -> AsyncIterator[None]:
    """Let all pods of the namespace have so much memory together, by a quota that is called 'kernels', as soon as that is counted.

    It begins when no kernel is on its way out, as Kubernetes may leave out of its count what it lets in when something else ends.
    """

    async def nothing_ends() -> bool:
        return not any("deletionTimestamp" in item["metadata"] for item in await backend.pods())

    await until(nothing_ends, "the kernels that end to be gone")
    async with connected(backend.kubeconfig) as core:
        await core.create_namespaced_resource_quota(
            backend.namespace, {"metadata": {"name": "kernels"}, "spec": {"hard": {"limits.memory": memory}}}
        )
        try:

            async def counted() -> bool:
                return bool((await core.read_namespaced_resource_quota("kernels", backend.namespace)).status.used)

            await until(counted, "the quota to be counted")
            yield
        finally:
            await core.delete_namespaced_resource_quota("kernels", backend.namespace)
