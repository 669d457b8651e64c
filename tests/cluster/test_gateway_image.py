"""The gateway's image, with the manifests as they ship: in-cluster configuration, least rights, a kernel from inside the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.conftest import Backend
from tests.gateway import Gateway, until

MANIFESTS = Path(__file__).parents[2] / "docker" / "gateway" / "manifests.yaml"


async def kubectl(backend: Backend, *arguments: str, text: str = "") -> str:
    """Run kubectl with an administrator's rights and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        "kubectl", "--kubeconfig", str(backend.kubeconfig), "--namespace", backend.namespace, *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await process.communicate(text.encode())
    assert process.returncode == 0, errors.decode()
    return out.decode()


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    shipped = await asyncio.to_thread(MANIFESTS.read_text)
    own = shipped.replace("namespace: elastic-kernels", f"namespace: {backend.namespace}")
    await kubectl(backend, "apply", "-f", "-", text=own.replace("  name: elastic-kernels", f"  name: {backend.namespace}"))
    await kubectl(backend, "rollout", "status", "deployment/gateway", "--timeout=180s")
    pods = (await backend.api.list("pods", backend.namespace, labelSelector="app=gateway"))["items"]
    async with aiohttp.ClientSession() as client:
        yield Gateway(f"http://{pods[0]['status']['podIP']}:8888", client, tmp_path_factory.mktemp("gateway") / "unused")
    await kubectl(backend, "delete", "deployment/gateway", "--wait=true")
    await kubectl(backend, "delete", "clusterrole,clusterrolebinding", f"{backend.namespace}-nodes")
    await until(backend.is_empty, "the last kernel to go")


async def test_a_kernel_from_a_gateway_in_the_cluster(backend: Backend, gateway: Gateway) -> None:
    _, listed = await gateway.request("GET", "/api/kernelspecs")
    assert {"python-small", "python-large", "python-gpu", "python-spot"} <= listed["kernelspecs"].keys()
    kernel = await gateway.start("python-small")
    assert await gateway.run(kernel, "6 * 7") == "42"
    (pod,) = await backend.pods(kernel)
    assert pod["metadata"]["namespace"] == backend.namespace
    assert (await gateway.request("POST", f"/api/kernels/{kernel}/restart"))[0] == 200
    assert await gateway.run(kernel, "6 * 7") == "42"
    await gateway.stop(kernel)
    await until(backend.is_empty, "the kernel to go")


@pytest.mark.parametrize(
    ("verb", "what", "allowed"),
    [
        ("create", "pods", "yes"),
        ("delete", "secrets", "yes"),
        ("get", "pods/log", "yes"),
        ("create", "pods/exec", "no"),
        ("create", "rolebindings", "no"),
        ("list", "persistentvolumeclaims", "yes"),
        ("delete", "persistentvolumeclaims", "no"),
        ("get", "nodes", "yes"),
        ("list", "nodes", "no"),
        ("update", "pods", "no"),
    ],
)
async def test_its_rights(backend: Backend, gateway: Gateway, verb: str, what: str, allowed: str) -> None:
    account = f"system:serviceaccount:{backend.namespace}:gateway"
    resource, _, sub = what.partition("/")
    arguments = ["auth", "can-i", verb, resource, *(["--subresource", sub] if sub else []), "--as", account]
    process = await asyncio.create_subprocess_exec(
        "kubectl", "--kubeconfig", str(backend.kubeconfig), "--namespace", backend.namespace, *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert out.decode().strip() == allowed
