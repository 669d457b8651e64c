"""Where a test's kernels run: the embedded cluster, or with ``--real`` the one that ``KUBECONFIG`` names."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from elastic_kernels import reach, status
from elastic_kernels.cluster import Client, Object
from elastic_kernels.embedded import EmbeddedCluster
from elastic_kernels.errors import ElasticKernelsError
from elastic_kernels.profiles import Profile, parse_profile
from elastic_kernels.record import Record
from tests.gateway import Gateway, running_gateway, until, write_kernelspecs

KERNEL_IMAGE = "elastic-kernels/kernel-python:dev"
_PLAIN_PORT = 8000

# how long an example takes is the machine's affair
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@dataclass
class Backend:
    """A cluster and a namespace of it that belongs to one test module."""

    kubeconfig: Path
    namespace: str
    api: Client
    """For looking at what the gateway did, with an administrator's rights."""
    embedded: EmbeddedCluster | None = None
    environment: dict[str, str] = field(default_factory=dict)
    """What a gateway needs to find this cluster."""

    async def pods(self, kernel_id: str | None = None) -> list[Object]:
        """Return the kernels' pods, terminating ones included."""
        selector = "app.kubernetes.io/managed-by=elastic-kernels" + (f",elastic-kernels/kernel-id={kernel_id}" if kernel_id else "")
        return list((await self.api.list("pods", self.namespace, labelSelector=selector))["items"])

    async def records(self) -> list[Object]:
        """Return the kernels' records."""
        return list((await self.api.list("secrets", self.namespace, labelSelector="app.kubernetes.io/managed-by=elastic-kernels"))["items"])

    async def last_words(self, pod: str) -> str:
        """Wait until a pod is gone, and return what its container had left in ``/dev/termination-log``, or a kubelet kept of its log.

        Logs themselves are no evidence: where two kubelets share a machine, each clears away those of the other's pods once a minute.
        """
        words = ""
        async with self.api.watch("pods", self.namespace, resourceVersion="0", timeoutSeconds="120") as events:
            async for event in events:
                if event["type"] != "BOOKMARK" and event["object"]["metadata"]["name"] == pod:
                    words = status.last_words(event["object"]) or words
                    if event["type"] == "DELETED":
                        return words
        raise AssertionError(f"the pod {pod} does not go")

    async def is_empty(self) -> bool:
        """Tell whether no kernel, and nothing of one, is left."""
        return not await self.pods() and not await self.records()


def profile(name: str, **fields: Any) -> Profile:
    """Return a small profile with the project's own Python image."""
    return parse_profile({"name": name, "image": KERNEL_IMAGE, "cpu": {"request": "50m"}, "memory": "300Mi", **fields}, f"profiles.{name}")


def record(kernel_name: str, **fields: Any) -> Record:
    """Return the record of a kernel of ana's."""
    own = {"kernel_id": "9c4f2b1e-7d0a-4c56-8f3e-2a1b0c9d8e7f", "user": "ana", "namespace": "kernels", "deployment": "blue"}
    return Record(**{**own, "kernel_name": kernel_name, "key": "secret", "token": "d4e5f6", "slot": "1", **fields})


@asynccontextmanager
async def gateway_on(
    backend: Backend,
    directory: Path,
    profiles: Mapping[str, Profile],
    raw: Mapping[str, Mapping[str, Any]] | None = None,
    environment: Mapping[str, str] | None = None,
    configuration: str = "",
) -> AsyncIterator[Gateway]:
    """Run a gateway with these kernelspecs on this cluster; afterwards nothing of its kernels may be left.

    A stock gateway's SIGTERM ends them; one with our plug-in leaves them alone, so that they are shut down by the command for it.
    """
    write_kernelspecs(directory, profiles, raw)
    async with running_gateway(directory, {**backend.environment, **(environment or {})}, configuration=configuration) as gateway:
        try:
            yield gateway
        finally:
            # after a test that failed as well, or those after it fail with it
            if configuration:
                await shut_down_all({**backend.environment, **(environment or {})})
    try:
        await until(backend.is_empty, "the last kernel's pod and record to go")
    except AssertionError as error:
        left = [item["metadata"] for item in (*await backend.pods(), *await backend.records())]
        raise AssertionError(f"{error}; left: {left}; the gateway's log:\n{gateway.log}") from None


async def shut_down_all(environment: Mapping[str, str], *arguments: str) -> str:
    """Run ``elastic-kernels shutdown`` with ``--all``, or with other arguments, and return what it says."""
    command = [sys.executable, "-m", "elastic_kernels.cli", "shutdown", *(arguments or ["--all"])]
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    return said.decode()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real", action="store_true", help="use the cluster of KUBECONFIG in place of the embedded one")


@pytest.fixture(scope="session")
async def real_cluster(request: pytest.FixtureRequest) -> Path | None:
    """Return the kubeconfig of ``--real``, None without it.

    A cluster whose pods cannot be reached from here ends the run at once: each start would be waited for until its timeout.
    """
    if not request.config.getoption("--real"):
        return None
    if not os.environ.get("KUBECONFIG"):
        pytest.fail("KUBECONFIG is not set: this lane needs a real cluster (kind, or any other with the test images loaded).")
    kubeconfig = Path(os.environ["KUBECONFIG"])
    async with _namespace(kubeconfig) as cluster:
        try:
            await _reach_a_pod(cluster)
        except AssertionError as error:
            pytest.exit(f"The cluster of {kubeconfig} does not do for these tests: {error}", returncode=2)
    return kubeconfig


async def _reach_a_pod(cluster: Backend) -> None:
    """Start a pod that is not the gateway's, and fail unless something here can talk to it."""
    container = {"name": "plain", "image": KERNEL_IMAGE, "command": ["python", "-m", "http.server", str(_PLAIN_PORT)]}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "plain", "namespace": cluster.namespace},
        "spec": {"containers": [container], "restartPolicy": "Never", "terminationGracePeriodSeconds": 0},
    }

    async def created() -> bool:
        # refused until a controller has made the namespace's service account
        with suppress(ElasticKernelsError):
            await cluster.api.create("pods", pod)
            return True
        return False

    async def running() -> str:
        found = await cluster.api.get("pods", cluster.namespace, "plain")
        assert found is not None, "the plain pod is gone"
        return str(found["status"].get("podIP", "")) if found["status"]["phase"] == "Running" else ""

    await until(created, "a plain pod to be created")
    address = await until(running, f"a plain pod of {KERNEL_IMAGE} to run")
    await until(
        lambda: reach.accepts(address, _PLAIN_PORT),
        f"the plain pod at {address} to answer; gateways run here, and need a route to the pods ('ip route')",
    )


@pytest.fixture(scope="module")
async def backend(real_cluster: Path | None, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Backend]:
    if real_cluster is not None:
        async with _namespace(real_cluster) as real:
            yield real
        return
    directory = tmp_path_factory.mktemp("embedded")
    # whose python has ipykernel; the gateway's own cannot have a current one
    lab = Path(os.environ.get("ELASTIC_KERNELS_LAB") or pytest.fail("ELASTIC_KERNELS_LAB is not set; 'make test' sets it."))
    cluster = EmbeddedCluster(directory, environment={"PATH": f"{lab.parent}:{os.environ['PATH']}"}, refuse_image=_refuse)
    async with cluster, _namespace(cluster.kubeconfig) as embedded:
        embedded.embedded = cluster
        yield embedded


def _refuse(image: str) -> str | None:
    """Stand for a registry that does not have some images."""
    return f"failed to resolve reference {image!r}: not found" if "/missing" in image else None


@asynccontextmanager
async def _namespace(kubeconfig: Path) -> AsyncIterator[Backend]:
    name = f"test-{secrets.token_hex(3)}"
    api = await Client.connect(kubeconfig=str(kubeconfig), retry_time=20)
    try:
        try:
            await api.create("namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "namespace": ""}})
        except ElasticKernelsError as error:
            pytest.fail(f"The cluster of {kubeconfig} cannot be used: {error} {error.detail}")
        try:
            yield Backend(kubeconfig, name, api, environment={"KUBECONFIG": str(kubeconfig), "ELASTIC_KERNELS_NAMESPACE": name})
        finally:
            await api.delete("namespaces", "", name)
    finally:
        await api.close()
