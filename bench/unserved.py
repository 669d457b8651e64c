"""A node of a real cluster that no kubelet serves, for pods that are stand-in kernels: thousands of them, with a real API server.

Whoever runs this keeps the node alive, as a kubelet would, and writes the status of its pods. All that it makes is deleted again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from kubernetes.aio.client import ApiException, CoordinationV1Api

from bench import floor, launch
from bench.crowd import AMOUNTS, Crowd, processes_of
from elastic_kernels.cluster import Client, Informer, Key, Object, key_of

NODE: Final = "bench-unserved"
_LABEL: Final = "elastic-kernels/bench"
_LEASES: Final = "kube-node-lease"
# the cluster gives a node up that has not renewed its lease for this long, and kubelets renew it four times as often
_LEASE_SECONDS: Final = 40
_GONE: Final = 404
# addresses of 127.64.0.0/10: embedded clusters have those of 127.0.0.0/8 that go with their ports (see EmbeddedCluster)
_FIRST_ADDRESS: Final = (127 << 24) + (64 << 16) + 1


def _addresses() -> Iterator[str]:
    return (".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0)) for number in itertools.count(_FIRST_ADDRESS))


class UnservedCrowd(Crowd):
    """On a node of a real cluster."""

    profile: Mapping[str, Any] = {"node_selector": {_LABEL: NODE}, "tolerations": [f"{_LABEL}={NODE}:NoSchedule"]}

    def __init__(self, core: Any, api: Client, kubeconfig: Path, namespace: str, processes: list[Process]) -> None:
        super().__init__(processes)
        self.kubeconfig = kubeconfig
        self.namespace = namespace
        self._core = core
        self._api = api
        self._free = _addresses()
        pods = Informer(api, "pods", namespace, selectors={})
        pods.follow(lambda pod: self.changed(pod, is_gone=pods.get(key_of(pod)) is None))
        self.keep(pods.run())

    def new_address(self) -> str:
        """One after the other."""
        return next(self._free)

    async def get(self, resource: str, key: Key) -> Object | None:
        """Return an object."""
        return await self._api.get(resource, *key)

    async def remove(self, key: Key) -> None:
        """Have a pod be gone."""
        await self._api.delete("pods", *key, grace=0)

    async def write(self, key: Key, status: Mapping[str, Any]) -> None:
        """Change a pod's status, if the pod is still there."""
        try:
            await self._core.patch_namespaced_pod_status(key[1], key[0], {"status": dict(status)})
        except ApiException as error:
            if error.status != _GONE:
                raise


@asynccontextmanager
async def crowd(kubeconfig: str, most: int) -> AsyncIterator[Crowd]:
    """Have a node for at most so many kernels, and a namespace for them."""
    async with AsyncExitStack() as stack:
        core = await stack.enter_async_context(floor.core())
        processes = await stack.enter_async_context(processes_of(most))
        api, namespace = await stack.enter_async_context(launch.own_namespace(kubeconfig))
        await stack.enter_async_context(_node(core))
        running = UnservedCrowd(core, api, Path(kubeconfig), namespace, processes)
        stack.callback(running.close)
        try:
            yield running
        finally:
            await core.delete_collection_namespaced_pod(namespace, grace_period_seconds=0)


@asynccontextmanager
async def _node(core: Any) -> AsyncIterator[None]:
    leases = CoordinationV1Api(core.api_client)
    status = {"capacity": AMOUNTS, "allocatable": AMOUNTS, "conditions": [_ready()]}
    taint = {"key": _LABEL, "value": NODE, "effect": "NoSchedule"}
    lease = {"holderIdentity": NODE, "leaseDurationSeconds": _LEASE_SECONDS, "renewTime": _moment(micro=True)}
    # what an earlier run that was killed may have left
    await _gone(core.delete_node(NODE))
    await _gone(leases.delete_namespaced_lease(NODE, _LEASES))
    await core.create_node({"metadata": {"name": NODE, "labels": {_LABEL: NODE}}, "spec": {"taints": [taint]}, "status": status})
    await leases.create_namespaced_lease(_LEASES, {"metadata": {"name": NODE}, "spec": lease})

    async def renew() -> None:
        while True:
            await asyncio.sleep(_LEASE_SECONDS / 4)
            with contextlib.suppress(ApiException):
                await leases.patch_namespaced_lease(NODE, _LEASES, {"spec": {"renewTime": _moment(micro=True)}})

    renewing = asyncio.ensure_future(renew())
    try:
        yield
    finally:
        renewing.cancel()
        await _gone(core.delete_node(NODE))
        await _gone(leases.delete_namespaced_lease(NODE, _LEASES))


def _ready() -> dict[str, Any]:
    moment = _moment()
    return {"type": "Ready", "status": "True", "reason": "Bench", "lastHeartbeatTime": moment, "lastTransitionTime": moment}


def _moment(*, micro: bool = False) -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


async def _gone(deletion: Any) -> None:
    try:
        await deletion
    except ApiException as error:
        if error.status != _GONE:
            raise
