"""What the tests of Spark have in common: small executors on the spot node, the drivers' rights, jobs that need two executors."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml
from kubernetes.aio import client

from elastic_kernels.cluster import Object
from elastic_kernels.profiles import Profile
from elastic_kernels.status import has_ended
from tests.cluster.conftest import connected
from tests.conftest import Backend, profile
from tests.gateway import until

IMAGE = "elastic-kernels/kernel-spark:dev"
RIGHTS = Path(__file__).parents[2] / "docker" / "kernel-spark" / "driver.yaml"
JOB_SECONDS = 150.0
# What is promised; the first part of it is the gateway's, the rest a kubelet's.
GONE_SECONDS = 10.0
TOLD_SECONDS = 5.0
COMMAND = ["python", "{launchers}/spark.py", "{connection_file}"]
# of a profile's part for executors
SMALL: dict[str, Any] = {"max": 2, "cpu": {"request": "50m", "limit": 1}, "memory": "800Mi", "spot": True}
# on both executors: each task takes a while, and where one has done all before the other was there, there are more
HOSTS = """
def host(_):
    import socket, time
    time.sleep(0.5)
    return socket.gethostname()
hosts = set()
while len(hosts) < 2:
    hosts.update(sc.parallelize(range(16), 16).map(host).collect())
print(*sorted(hosts))
"""


def spark_profile(name: str, *, executors: dict[str, Any] | None = None, spark: dict[str, Any] | None = None, **fields: Any) -> Profile:
    small = {**SMALL, **(executors or {})}
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


async def executors(backend: Backend, namespace: str = "") -> list[Object]:
    """Return the executors' pods."""
    return list((await backend.api.list("pods", namespace or backend.namespace, labelSelector="spark-role=executor"))["items"])


async def until_gone(backend: Backend, namespace: str = "", *, of: set[str] | None = None) -> None:
    """Wait until the executors, or those with the uids ``of``, are told to end, then until none of them runs, and until they are forgotten.

    What has ended holds nothing of its node any more; its kubelet looks through it at leisure.
    """

    async def left() -> list[Object]:
        return [item for item in await executors(backend, namespace) if of is None or item["metadata"]["uid"] in of]

    async def are_told() -> bool:
        return all("deletionTimestamp" in item["metadata"] for item in await left())

    async def are_gone() -> bool:
        return all(has_ended(item) for item in await left())

    async def are_forgotten() -> bool:
        return not await left()

    begin = time.monotonic()
    await until(are_told, "the executors to be told to end", seconds=TOLD_SECONDS)
    await until(are_gone, "the executors to go", seconds=GONE_SECONDS - (time.monotonic() - begin))
    await until(are_forgotten, "the executors' pods to be deleted", seconds=60)


async def until_ended(backend: Backend, executor: Object) -> None:
    """Wait until an executor's driver has ended, as the cluster knows."""
    (owner,) = executor["metadata"]["ownerReferences"]

    async def has_no_driver() -> bool:
        pod = await backend.api.get("pods", executor["metadata"]["namespace"], owner["name"])
        return pod is None or pod["metadata"]["uid"] != owner["uid"] or "deletionTimestamp" in pod["metadata"] or has_ended(pod)

    await until(has_no_driver, "the driver to end")


async def gone(backend: Backend, namespace: str = "") -> bool:
    return not await executors(backend, namespace)
