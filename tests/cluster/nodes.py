"""Changing what a real node has to offer, and having it, or what is on it, fall silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from elastic_kernels.cluster import Object
from tests.cluster.conftest import connected
from tests.conftest import KERNEL_IMAGE, Backend
from tests.gateway import until

GPU = "nvidia.com~1gpu"
PORT = 10999
READY_SECONDS = 60.0
# As root of a node, in a pod of its own: stops processes of executors, and the kubelet of the node that is named, when somebody
# connects, and has them go on when that connection ends, whatever ended it. Where several nodes are one machine, a kubelet says which
# is its own.
STOPS = """
import os, pathlib, signal, socket, sys
node, port, *pods = sys.argv[1:]
marks = [f"SPARK_EXECUTOR_POD_NAME={pod}".encode() for pod in pods]

def processes():
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words, environment = ((path / name).read_bytes().split(b"\\0") for name in ("cmdline", "environ"))
        except OSError:
            continue
        names = [word.partition(b"=")[2].decode() for word in words if word.startswith(b"--hostname-override=")]
        is_kubelet = node and os.path.basename(words[0]) == b"kubelet" and names in ([], [node])
        if is_kubelet or any(mark in environment for mark in marks):
            yield int(path.name), os.path.basename(words[0]).decode()

with socket.create_server(("", int(port))) as server:
    connection, _ = server.accept()
    stopped = list(processes())
    for process, _ in stopped:
        os.kill(process, signal.SIGSTOP)
    connection.sendall(" ".join(name for _, name in stopped).encode() + b"\\n")
    connection.recv(1)
    for process, _ in stopped:
        os.kill(process, signal.SIGCONT)
"""


@asynccontextmanager
async def one_gpu(kubeconfig: Path, node: str) -> AsyncIterator[None]:
    """Have ``node`` offer one nvidia.com/gpu, as a device plugin would, for as long as the context lasts."""
    async with connected(kubeconfig) as core:
        await core.patch_node_status(node, [{"op": "add", "path": f"/status/capacity/{GPU}", "value": "1"}])
        try:
            yield
        finally:
            await core.patch_node_status(node, [{"op": "remove", "path": f"/status/capacity/{GPU}"}])


@asynccontextmanager
async def closed(kubeconfig: Path, node: str) -> AsyncIterator[None]:
    """Have no new pod come to ``node`` for as long as the context lasts."""
    async with connected(kubeconfig) as core:
        await core.patch_node(node, {"spec": {"unschedulable": True}})
        try:
            yield
        finally:
            await core.patch_node(node, {"spec": {"unschedulable": None}})


@asynccontextmanager
async def silent(backend: Backend, executors: list[Object], *, is_node_lost: bool = False) -> AsyncIterator[None]:
    """Have executors, all on one node, do nothing more as long as the context lasts: nothing is said, and no connection ends.

    With ``is_node_lost`` the node is silent, too, as a machine that is lost; after a while the cluster takes note of it.
    """
    (node,) = {str(item["spec"]["nodeName"]) for item in executors}
    names = [item["metadata"]["name"] for item in executors]
    container = {
        "name": "main",
        "image": KERNEL_IMAGE,
        "command": ["python", "-c", STOPS, node if is_node_lost else "", str(PORT), *names],
        "securityContext": {"privileged": True, "runAsUser": 0},
    }
    spec = {
        "restartPolicy": "Never",
        "nodeName": node,
        "hostPID": True,
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
    }
    metadata: Object = {"name": "silences", "namespace": backend.namespace, "labels": {}}
    await backend.api.create("pods", {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    try:
        reader, writer = await until(lambda: _connected(backend, metadata["name"]), "the pod that silences others")
        try:
            stopped = (await reader.readline()).decode().split()
            assert (stopped.count("java"), stopped.count("kubelet")) == (len(executors), is_node_lost), stopped
            yield
        finally:
            writer.close()
    finally:
        await backend.api.delete("pods", backend.namespace, metadata["name"], grace=0)
        await until(lambda: _is_well(backend.kubeconfig, node), f"the node {node} to be back", seconds=READY_SECONDS)


async def _connected(backend: Backend, pod: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    found = await backend.api.get("pods", backend.namespace, pod) or {}
    address = found.get("status", {}).get("podIP")
    try:
        return await asyncio.open_connection(address, PORT) if address else None
    except OSError:
        return None


async def _is_well(kubeconfig: Path, node: str) -> bool:
    async with connected(kubeconfig) as core:
        found = await core.read_node(node)
    is_ready = any(condition.type == "Ready" and condition.status == "True" for condition in found.status.conditions)
    return is_ready and not any(taint.key.startswith("node.kubernetes.io/") for taint in found.spec.taints or ())
