"""One launch, 5 and 20 at once, to the first output: this project, stock Enterprise Gateway, and the floor, in one run.

    KUBECONFIG=… python -m bench.launch [--counts 1 5 20] [--rounds 3] [--no-stock]

All on the same cluster, with the same image for this project and the floor; stock Enterprise Gateway needs its own launcher in
the image. Prints ratios of medians to the floor, which is what a machine of another speed has in common with this one, and
writes bench/results/launch.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from bench import floor
from elastic_kernels.cluster import Client
from tests.conftest import profile
from tests.gateway import Gateway, running_gateway, until, write_kernelspecs

JEG: Final = "jupyter_enterprise_gateway==3.3.0"
STOCK_IMAGE: Final = "elastic-kernels/test-jeg-python:dev"
RESULTS: Final = Path(__file__).parent / "results" / "launch.json"
# stock's module k8s insists on running in a pod; this is the same cluster, reached with the kubeconfig
OUTSIDE: Final = "import kubernetes.config as config; config.load_incluster_config = config.load_kube_config\n"

Measure = Callable[[int], Awaitable[list[float]]]


async def first_outputs(gateway: Gateway, kernel: str, count: int) -> list[float]:
    """Start ``count`` kernels at once; return the seconds to the first output of each, infinity for those that never came."""

    async def one() -> tuple[float, str | None]:
        begin = time.monotonic()
        status, body = await gateway.request("POST", "/api/kernels", {"name": kernel, "env": {"KERNEL_USERNAME": "ana"}})
        if status != 201:
            return float("inf"), None
        async with gateway.channels(body["id"]) as channels:
            await channels.begin("pass")
            return time.monotonic() - begin, body["id"]

    results = await asyncio.gather(*(one() for _ in range(count)))
    await asyncio.gather(*(gateway.request("DELETE", f"/api/kernels/{kernel_id}") for _, kernel_id in results if kernel_id))
    return [seconds for seconds, _ in results]


@asynccontextmanager
async def ours(directory: Path, kubeconfig: str, namespace: str) -> AsyncIterator[Measure]:
    """Yield what measures this project."""
    write_kernelspecs(directory, {"elastic": profile("elastic", cpu={"request": "10m"}, memory={"request": "64Mi"})})
    environment = {"KUBECONFIG": kubeconfig, "ELASTIC_KERNELS_NAMESPACE": namespace}
    async with running_gateway(directory, environment) as gateway:
        yield lambda count: first_outputs(gateway, "elastic", count)


@asynccontextmanager
async def stock(directory: Path, kubeconfig: str, namespace: str) -> AsyncIterator[Measure]:
    """Yield what measures stock Enterprise Gateway, with its own kernelspec and launcher, which only its source archive has."""
    scripts = await asyncio.to_thread(_launchers, directory)
    placeholders = ("kernel-id", "port-range", "response-address", "public-key")
    arguments = [part for name in placeholders for part in (f"--RemoteProcessProxy.{name}", "{" + name.replace("-", "_") + "}")]
    spec = {
        "argv": ["python", str(scripts / "launch_kubernetes.py"), *arguments],
        "display_name": "stock",
        "language": "python",
        "metadata": {
            "process_proxy": {
                "class_name": "enterprise_gateway.services.processproxies.k8s.KubernetesProcessProxy",
                "config": {"image_name": STOCK_IMAGE},
            }
        },
    }
    write_kernelspecs(directory, {}, {"stock": spec})
    await asyncio.to_thread((directory / "sitecustomize.py").write_text, OUTSIDE)
    environment = {
        "KUBECONFIG": kubeconfig,
        "PYTHONPATH": str(directory),
        "EG_NAMESPACE": namespace,
        "EG_SHARED_NAMESPACE": "True",
        "EG_KERNEL_LAUNCH_TIMEOUT": "30",
    }
    async with running_gateway(directory, environment) as gateway:
        yield lambda count: first_outputs(gateway, "stock", count)


def _launchers(directory: Path) -> Path:
    """Fetch Enterprise Gateway's source archive into ``directory`` and return the folder of its Kubernetes launcher."""
    download = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--no-binary", "jupyter_enterprise_gateway", JEG]
    subprocess.run([*download, "--dest", str(directory)], check=True)
    with tarfile.open(next(directory.glob("*.tar.gz"))) as archive:
        archive.extractall(directory, filter="data")
    return next(directory.glob("*/etc/kernel-launchers/kubernetes/scripts"))


async def run(counts: list[int], rounds: int, with_stock: bool, namespace: str) -> dict[str, dict[int, list[float]]]:
    """Measure all contestants in turn, so that what else the machine does befalls each of them."""
    kubeconfig = os.environ["KUBECONFIG"]
    api = await Client.connect(kubeconfig=kubeconfig)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(api.close)
        contestants: dict[str, Measure] = {"floor": lambda count: floor.measure(count, namespace, floor.IMAGE)}
        for name, contestant in {"ours": ours, **({"stock": stock} if with_stock else {})}.items():
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            contestants[name] = await stack.enter_async_context(contestant(directory, kubeconfig, namespace))
            await contestants[name](1)  # the first launch of a process pays for connections and imports
        results: dict[str, dict[int, list[float]]] = {name: {count: [] for count in counts} for name in contestants}
        for count in counts:
            for _ in range(rounds):
                for name, measure in contestants.items():
                    await until(lambda: _quiet(api, namespace), "the pods of the round before to go", seconds=120)
                    results[name][count] += await measure(count)
                    print(f"{count:3} at once, {name}: {_figures(results[name][count])}", flush=True)
        return results


async def _quiet(api: Client, namespace: str) -> bool:
    return not (await api.list("pods", namespace))["items"]


def _figures(seconds: list[float]) -> str:
    came = [value for value in seconds if value != float("inf")]
    if not came:
        return f"0 of {len(seconds)}"
    return f"median {statistics.median(came):.2f} s, {min(came):.2f} to {max(came):.2f} s, {len(came)} of {len(seconds)}"


def table(results: dict[str, dict[int, list[float]]]) -> str:
    """Return the ratios of medians to the floor's, a line for each count."""
    lines = ["at once   " + "".join(f"{name:>14}" for name in results)]
    for count in results["floor"]:
        base = statistics.median(results["floor"][count])
        cells = []
        for name in results:
            came = [value for value in results[name][count] if value != float("inf")]
            missed = "" if len(came) == len(results[name][count]) else f" ({len(came)}/{len(results[name][count])})"
            cells.append(f"{statistics.median(came) / base:.2f}{missed}" if came else "none")
        lines.append(f"{count:>7}   " + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="Launches to the first output, as ratios to the floor, on the cluster of KUBECONFIG.")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 5, 20])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-stock", action="store_true")
    parser.add_argument("--namespace", default="default")
    given = parser.parse_args(arguments)
    results: dict[str, Any] = asyncio.run(run(given.counts, given.rounds, not given.no_stock, given.namespace))
    print(table(results))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
