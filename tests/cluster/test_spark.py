"""Spark on a real cluster: executors in pods of their own, what becomes of them, and what their driver may not do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio import client

from elastic_kernels.cluster import Object
from elastic_kernels.profiles import Profile
from tests.cluster.conftest import connected
from tests.conftest import Backend, gateway_on, profile
from tests.gateway import Gateway, until

IMAGE = "elastic-kernels/kernel-spark:dev"
RIGHTS = Path(__file__).parents[2] / "docker" / "kernel-spark" / "driver.yaml"
JOB_SECONDS = 150.0
GONE_SECONDS = 10.0
COMMAND = ["python", "{launchers}/spark.py", "{connection_file}"]
# on both executors, because each task takes a while and there are more of them than one can run
HOSTS = """
def host(_):
    import socket, time
    time.sleep(0.5)
    return socket.gethostname()
print(*sorted(set(sc.parallelize(range(16), 16).map(host).collect())))
"""


def spark_profile(name: str, *, executors: dict[str, Any] | None = None, spark: dict[str, Any] | None = None, **fields: Any) -> Profile:
    small = {"max": 2, "cpu": {"request": "50m", "limit": 1}, "memory": "800Mi", "spot": True, **(executors or {})}
    return profile(name, image=IMAGE, command=COMMAND, memory="1Gi", spark={"executors": small, **(spark or {})}, **fields)


async def grant(kubeconfig: Path, namespace: str) -> None:
    """Do what the README says: apply the drivers' rights."""
    async with connected(kubeconfig) as core:
        rbac = client.RbacAuthorizationV1Api(core.api_client)
        create = {
            "ServiceAccount": core.create_namespaced_service_account,
            "Role": rbac.create_namespaced_role,
            "RoleBinding": rbac.create_namespaced_role_binding,
        }
        for document in yaml.safe_load_all(RIGHTS.read_text()):
            await create[document["kind"]](namespace, document)


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    await grant(backend.kubeconfig, backend.namespace)
    profiles = {
        "spark": spark_profile("spark"),
        "eager": spark_profile("eager", spark={"session": "eager"}),
        "no-image": spark_profile("no-image", executors={"image": "localhost/elastic-kernels/missing:1"}),
        "small": profile("small"),
    }
    async with gateway_on(backend, tmp_path_factory.mktemp("gateway"), profiles) as running:
        yield running
    assert not await executors(backend)


async def executors(backend: Backend, **phase: str) -> list[Object]:
    return list((await backend.api.list("pods", backend.namespace, labelSelector="spark-role=executor"))["items"])


async def test_a_job_runs_on_two_executors_in_other_pods_on_the_spot_node(backend: Backend, gateway: Gateway) -> None:
    kernel = await gateway.start("spark")
    (driver,) = await backend.pods(kernel)
    assert driver["spec"]["nodeName"] == "general"
    async with gateway.channels(kernel) as channels:
        assert not await executors(backend)
        reply = await channels.execute(HOSTS, seconds=JOB_SECONDS)
        assert reply.status == "ok", reply
        hosts = reply.text.split()
    there = await executors(backend)
    assert len(hosts) == 2
    assert sorted(item["metadata"]["name"] for item in there) == hosts
    assert {item["spec"]["nodeName"] for item in there} == {"spot"}
    assert {item["spec"]["containers"][0]["resources"]["limits"]["memory"] for item in there} == {"800Mi"}
    assert {item["metadata"]["ownerReferences"][0]["name"] for item in there} == {driver["metadata"]["name"]}
    begin = time.monotonic()
    await gateway.stop(kernel)
    await until(lambda: gone(backend), "the executors to go", seconds=GONE_SECONDS)
    print(f"executors gone after {time.monotonic() - begin:.1f} s")


async def gone(backend: Backend) -> bool:
    return not await executors(backend)
