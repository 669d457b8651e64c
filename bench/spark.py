"""From the request for a Python kernel to its Spark session and to the first job's result: this project, and Spark as it comes.

    KUBECONFIG=… python -m bench.spark [--rounds 5]

Both in the same image, on the same cluster, with the same two executors. Spark as it comes is what its documentation on Kubernetes
says of client mode: its own start script, a fixed number of executors, for most of which a session waits. Prints medians and their
ratio, and writes bench/results/spark.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from kubernetes.aio import client

from elastic_kernels.cluster import Client
from tests.cluster.conftest import connected
from tests.cluster.spark import IMAGE, grant, spark_profile
from tests.conftest import profile
from tests.gateway import Gateway, running_gateway, until, write_kernelspecs

RESULTS: Final = Path(__file__).parent / "results" / "spark.json"
SECONDS: Final = 300.0
# rights that Spark asks for if nothing keeps it from it
RIGHTS: Final = [{"apiGroups": [""], "resources": ["pods", "configmaps", "services", "persistentvolumeclaims"], "verbs": ["*"]}]
STOCK: Final = f"""
import os
from pyspark.sql import SparkSession
spark = (
    SparkSession.builder.master("k8s://https://" + os.environ["KUBERNETES_SERVICE_HOST"])
    .config("spark.kubernetes.namespace", os.environ["KERNEL_NAMESPACE"])
    .config("spark.kubernetes.driver.pod.name", os.environ["KERNEL_POD_NAME"])
    .config("spark.kubernetes.container.image", "{IMAGE}")
    .config("spark.driver.host", os.environ["KERNEL_POD_IP"])
    .config("spark.executor.instances", 2)
    .config("spark.kubernetes.executor.request.cores", "50m")
    .config("spark.executor.memory", "544m")
    .config("spark.executor.memoryOverhead", "256m")
    .config("spark.driver.memory", "512m")
    .getOrCreate()
)
"""
SESSION: Final = {"ours": "print(spark.version)", "stock": f"{STOCK}\nprint(spark.version)"}
JOB: Final = "print(spark.sparkContext.parallelize(range(100), 2).map(lambda n: n + 1).sum())"


async def measure(gateway: Gateway, kernel: str) -> tuple[float, float]:
    """Return the seconds to the session, and to the first job's result."""
    begin = time.monotonic()
    kernel_id = await gateway.start(kernel)
    try:
        async with gateway.channels(kernel_id) as channels:
            reply = await channels.execute(SESSION[kernel], seconds=SECONDS)
            assert reply.status == "ok", reply
            session = time.monotonic() - begin
            reply = await channels.execute(JOB, seconds=SECONDS)
            assert "5050" in reply.text, reply
            return session, time.monotonic() - begin
    finally:
        await gateway.stop(kernel_id)


async def run(rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Measure both in turn, so that what else the machine does befalls each of them."""
    kubeconfig, namespace = Path(os.environ["KUBECONFIG"]), f"bench-{secrets.token_hex(3)}"
    api = await Client.connect(kubeconfig=str(kubeconfig))
    results: dict[str, list[tuple[float, float]]] = {"ours": [], "stock": []}

    async def is_quiet() -> bool:
        return not (await api.list("pods", namespace))["items"]

    try:
        await api.create("namespaces", {"metadata": {"name": namespace, "namespace": ""}})
        await grant(kubeconfig, namespace)
        async with connected(kubeconfig) as core:
            rbac = client.RbacAuthorizationV1Api(core.api_client)
            await core.create_namespaced_service_account(namespace, {"metadata": {"name": "stock"}})
            await rbac.create_namespaced_role(namespace, {"metadata": {"name": "stock"}, "rules": RIGHTS})
            role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "stock"}
            subjects = [{"kind": "ServiceAccount", "name": "stock"}]
            await rbac.create_namespaced_role_binding(namespace, {"metadata": {"name": "stock"}, "roleRef": role, "subjects": subjects})
        with tempfile.TemporaryDirectory() as directory:
            profiles = {
                "ours": spark_profile("ours", executors={"spot": False}),
                "stock": profile("stock", image=IMAGE, memory="1Gi", service_account="stock"),
            }
            write_kernelspecs(Path(directory), profiles)
            environment = {"KUBECONFIG": str(kubeconfig), "ELASTIC_KERNELS_NAMESPACE": namespace}
            async with running_gateway(Path(directory), environment) as gateway:
                for _ in range(rounds):
                    for name, taken in results.items():
                        await until(is_quiet, "the pods of the round before to go", seconds=120)
                        taken.append(await measure(gateway, name))
                        print(f"{name}: session {taken[-1][0]:.1f} s, first job {taken[-1][1]:.1f} s", flush=True)
    finally:
        await api.delete("namespaces", "", namespace)
        await api.close()
    return results


def table(results: dict[str, list[tuple[float, float]]]) -> str:
    """Return the medians, and their ratios."""
    lines = ["                 ours     stock     ratio"]
    for index, what in enumerate(("session", "first job")):
        ours, stock = (statistics.median(pair[index] for pair in results[name]) for name in ("ours", "stock"))
        lines.append(f"{what:<10} {ours:>8.1f} s {stock:>7.1f} s {ours / stock:>9.2f}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="PySpark's session and first job, beside Spark as it comes, on the cluster of KUBECONFIG.")
    parser.add_argument("--rounds", type=int, default=5)
    results = asyncio.run(run(parser.parse_args(arguments).rounds))
    print(table(results))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
