"""Stock Enterprise Gateway to compare with: its own proxies, with its own launchers, which only its source archive has."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from Cryptodome.Cipher import AES, PKCS1_v1_5
from Cryptodome.PublicKey import RSA
from Cryptodome.Util.Padding import pad

from tests.gateway import Gateway, running_gateway, write_kernelspecs

ROOT: Final = Path(__file__).parents[1]
JEG: Final = "jupyter_enterprise_gateway==3.3.0"
IMAGE: Final = "elastic-kernels/test-jeg-python:dev"
NAME: Final = "stock"
# stock's module k8s insists on running in a pod; this is the same cluster, reached with the kubeconfig
_OUTSIDE: Final = "import kubernetes.config as config; config.load_incluster_config = config.load_kube_config\n"
_PROXIES: Final = "enterprise_gateway.services.processproxies"


@asynccontextmanager
async def on_kubernetes(directory: Path, kubeconfig: str, namespace: str) -> AsyncIterator[Gateway]:
    """Run one whose kernel ``stock`` is a pod of ``IMAGE``."""
    script = await asyncio.to_thread(_launchers, directory) / "kubernetes" / "scripts" / "launch_kubernetes.py"
    config = {"image_name": IMAGE}
    environment = {"KUBECONFIG": kubeconfig, "EG_NAMESPACE": namespace, "EG_SHARED_NAMESPACE": "True", "EG_KERNEL_LAUNCH_TIMEOUT": "30"}
    async with _running(directory, _spec("python", script, "k8s.KubernetesProcessProxy", config), environment) as gateway:
        yield gateway


@asynccontextmanager
async def on_stand_ins(directory: Path, kubeconfig: str, namespace: str, configuration: str) -> AsyncIterator[Gateway]:
    """Run one as on Kubernetes, whose kernels are stand-ins that call back as its own launcher does; with lines of ``configuration``."""
    script = await asyncio.to_thread(_launchers, directory) / "kubernetes" / "scripts" / "launch_kubernetes.py"
    spec = _spec(sys.executable, script, "k8s.KubernetesProcessProxy", {"image_name": IMAGE})
    cluster = {"KUBECONFIG": kubeconfig, "EG_NAMESPACE": namespace, "EG_SHARED_NAMESPACE": "True"}
    environment = {**cluster, "EG_RESPONSE_IP": "127.0.0.1", "EG_KERNEL_LAUNCH_TIMEOUT": "300", "EG_MAX_KERNELS_PER_USER": "-1"}
    async with _running(directory, spec, environment, configuration) as gateway:
        yield gateway


async def call_back(environment: Mapping[str, str], connection: Mapping[str, Any]) -> None:
    """Send a connection file to who waits for it, as a launcher does: ``environment`` is that of its pod."""
    key = secrets.token_bytes(16)
    content = json.dumps({**connection, "kernel_id": environment["KERNEL_ID"]}).encode()
    sealed = AES.new(key, AES.MODE_ECB).encrypt(pad(content, AES.block_size))
    locked = PKCS1_v1_5.new(RSA.import_key(base64.b64decode(environment["PUBLIC_KEY"]))).encrypt(key)
    payload = {"version": 1, "key": base64.b64encode(locked).decode(), "conn_info": base64.b64encode(sealed).decode()}
    host, _, port = environment["RESPONSE_ADDRESS"].rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(base64.b64encode(json.dumps(payload).encode()))
    await writer.drain()
    writer.close()


@asynccontextmanager
async def on_this_machine(directory: Path) -> AsyncIterator[Gateway]:
    """Run one whose kernel ``stock`` is a process of this machine: for what does not depend on where a kernel runs.

    It is started as a remote one is, by a launcher that calls the gateway back.
    """
    script = await asyncio.to_thread(_launchers, directory) / "python" / "scripts" / "launch_ipykernel.py"
    spec = _spec(sys.executable, script, "distributed.DistributedProcessProxy", {"remote_hosts": "127.0.0.1"})
    async with _running(directory, spec, {"EG_RESPONSE_IP": "127.0.0.1", "EG_KERNEL_LAUNCH_TIMEOUT": "60"}) as gateway:
        yield gateway


@asynccontextmanager
async def _running(
    directory: Path, spec: Mapping[str, Any], environment: Mapping[str, str], configuration: str = ""
) -> AsyncIterator[Gateway]:
    write_kernelspecs(directory, {}, {NAME: spec})
    await asyncio.to_thread((directory / "sitecustomize.py").write_text, _OUTSIDE)
    path = os.pathsep.join([str(directory), str(ROOT)])
    async with running_gateway(directory, {**environment, "PYTHONPATH": path}, configuration=configuration) as gateway:
        yield gateway


def _spec(python: str, script: Path, proxy: str, config: Mapping[str, Any]) -> dict[str, Any]:
    placeholders = ("kernel-id", "port-range", "response-address", "public-key")
    arguments = [part for name in placeholders for part in (f"--RemoteProcessProxy.{name}", "{" + name.replace("-", "_") + "}")]
    return {
        "argv": [python, str(script), *arguments],
        "display_name": NAME,
        "language": "python",
        "metadata": {"process_proxy": {"class_name": f"{_PROXIES}.{proxy}", "config": dict(config)}},
    }


def _launchers(directory: Path) -> Path:
    """Fetch the source archive into ``directory`` and return the folder of its launchers."""
    download = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--no-binary", "jupyter_enterprise_gateway", JEG]
    subprocess.run([*download, "--dest", str(directory)], check=True)
    with tarfile.open(next(directory.glob("*.tar.gz"))) as archive:
        archive.extractall(directory, filter="data")
    return next(directory.glob("*/etc/kernel-launchers"))
