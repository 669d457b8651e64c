"""The gateway's image, with the manifests as they ship: in-cluster configuration, least rights, a kernel from inside the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from elastic_kernels.cluster import Object
from tests.conftest import Backend
from tests.gateway import Gateway, until

MANIFESTS = Path(__file__).parents[2] / "docker" / "gateway"


async def kubectl(backend: Backend, *arguments: str, text: str = "") -> str:
    """Run kubectl with an administrator's rights and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        "kubectl", "--kubeconfig", str(backend.kubeconfig), "--namespace", backend.namespace, *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await process.communicate(text.encode())
    assert process.returncode == 0, errors.decode()
    return out.decode()


async def apply(backend: Backend, name: str) -> None:
    """Apply a manifest as it ships, with this test's namespace in place of its own."""
    shipped = await asyncio.to_thread((MANIFESTS / name).read_text)
    own = shipped.replace("namespace: elastic-kernels", f"namespace: {backend.namespace}")
    await kubectl(backend, "apply", "-f", "-", text=own.replace("  name: elastic-kernels", f"  name: {backend.namespace}"))


async def address(backend: Backend) -> str:
    """Return the address of the gateway's pod, once its rollout is complete."""
    await kubectl(backend, "rollout", "status", "deployment/gateway", "--timeout=180s")

    async def pods() -> list[Object]:
        listed = (await backend.api.list("pods", backend.namespace, labelSelector="app=gateway"))["items"]
        return [pod for pod in listed if not pod["metadata"].get("deletionTimestamp")]

    (pod,) = await pods()
    return f"http://{pod['status']['podIP']}:8888"


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    await apply(backend, "manifests.yaml")
    async with aiohttp.ClientSession() as client:
        yield Gateway(await address(backend), client, tmp_path_factory.mktemp("gateway") / "unused")
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
        ("list", "nodes", "yes"),
        ("update", "nodes", "no"),
        ("patch", "pods", "yes"),
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


async def test_kernels_in_their_users_namespaces(backend: Backend, gateway: Gateway) -> None:
    """The last test of its module: the gateway is another one afterwards."""
    own = f"{backend.namespace}-leo"
    await kubectl(backend, "create", "namespace", own)
    await apply(backend, "user-namespaces.yaml")
    # it sees all namespaces, and others' kernels are not its own
    settings = {"USER_NAMESPACE": f"{backend.namespace}-{{username}}", "DEPLOYMENT": backend.namespace}
    variables = [f"ELASTIC_KERNELS_{name}={value}" for name, value in settings.items()]
    await kubectl(backend, "set", "env", "deployment/gateway", *variables)
    gateway.address = await address(backend)
    kernel = await gateway.start("python-small", KERNEL_USERNAME="leo")
    assert await gateway.run(kernel, "6 * 7") == "42"
    selector = f"elastic-kernels/kernel-id={kernel}"
    (pod,) = (await backend.api.list("pods", own, labelSelector=selector))["items"]
    (record,) = (await backend.api.list("secrets", own, labelSelector=selector))["items"]
    assert pod["metadata"]["ownerReferences"][0]["uid"] == record["metadata"]["uid"]
    await gateway.stop(kernel)

    async def gone() -> bool:
        return not (await backend.api.list("pods", own))["items"]

    await until(gone, "the kernel to go")
    await kubectl(backend, "delete", "clusterrole,clusterrolebinding", f"{backend.namespace}-users")
    await kubectl(backend, "delete", "namespace", own, "--wait=false")
