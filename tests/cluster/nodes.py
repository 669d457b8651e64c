"""Changing what a real node has to offer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kubernetes.aio import client, config

GPU = "nvidia.com~1gpu"


@asynccontextmanager
async def one_gpu(kubeconfig: Path, node: str) -> AsyncIterator[None]:
    """Have ``node`` offer one nvidia.com/gpu, as a device plugin would, for as long as the context lasts."""
    configuration = client.Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=configuration)
    async with client.ApiClient(configuration) as api:
        core = client.CoreV1Api(api)
        await core.patch_node_status(node, [{"op": "add", "path": f"/status/capacity/{GPU}", "value": "1"}])
        try:
            yield
        finally:
            await core.patch_node_status(node, [{"op": "remove", "path": f"/status/capacity/{GPU}"}])
