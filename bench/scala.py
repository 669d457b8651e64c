"""The Scala kernel to its first cell and to its first Spark job, beside stock Toree with its own launcher in the same image.

    KUBECONFIG=… python -m bench.scala [--rounds 3]

Both are started by the same gateway on the same cluster, in turn, so that what else the machine does befalls both. Prints seconds
and the ratio of medians, which is what a machine of another speed has in common with this one, and writes bench/results/scala.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from elastic_kernels.profiles import Profile
from tests.conftest import profile
from tests.gateway import Gateway, running_gateway, write_kernelspecs

IMAGE: Final = "elastic-kernels/kernel-scala:dev"
RESULTS: Final = Path(__file__).parent / "results" / "scala.json"
TOREE: Final = "/opt/kernel/lib/python3.11/site-packages/toree"
# without this, stock Toree 0.5.0 on Java 17 has no magics
OPENED: Final = "--conf spark.driver.extraJavaOptions=--add-opens=java.base/java.util.jar=ALL-UNNAMED"
JOB: Final = "spark.range(1000).map(_ + 1).count()"
SECONDS: Final = 240.0

Times = dict[str, list[float]]


def contestants() -> dict[str, Profile]:
    """Return both, with the same image and the same means."""
    common = {"image": IMAGE, "language": "scala", "cpu": {"request": "500m"}, "memory": "2Gi", "launch_timeout": int(SECONDS)}
    return {
        "ours": profile("ours", **common, command=["python3", "{launchers}/toree.py", "{connection_file}"]),
        "stock": profile(
            "stock",
            **common,
            command=["bash", f"{TOREE}/bin/run.sh", "--profile", "{connection_file}"],
            environment={"SPARK_OPTS": OPENED},
        ),
    }


async def measure(gateway: Gateway, name: str, times: Times) -> None:
    """Start one kernel and add the seconds to its first cell's end, and to its first Spark job's."""
    begin = time.monotonic()
    kernel = await gateway.start(name)
    async with gateway.channels(kernel) as channels:
        # not by their results: stock Toree's may come after it says that it is idle
        assert (await channels.execute("1 + 1", seconds=SECONDS)).status == "ok"
        times["first cell"].append(time.monotonic() - begin)
        assert (await channels.execute(JOB, seconds=SECONDS)).status == "ok"
        times["first Spark job"].append(time.monotonic() - begin)
    await gateway.stop(kernel)


async def run(rounds: int, namespace: str) -> dict[str, Times]:
    """Measure both in turn."""
    environment = {"KUBECONFIG": os.environ["KUBECONFIG"], "ELASTIC_KERNELS_NAMESPACE": namespace}
    results: dict[str, Times] = {name: {"first cell": [], "first Spark job": []} for name in contestants()}
    with tempfile.TemporaryDirectory() as directory:
        write_kernelspecs(Path(directory), contestants())
        async with running_gateway(Path(directory), environment) as gateway:
            for _ in range(rounds):
                for name, times in results.items():
                    await measure(gateway, name, times)
                    print(name, *(f"{what}: {seconds[-1]:.1f} s" for what, seconds in times.items()), sep="  ", flush=True)
    return results


def table(results: dict[str, Times]) -> str:
    """Return medians and their ratio, a line for each thing measured."""
    lines = []
    for what, seconds in results["ours"].items():
        ours, stock = statistics.median(seconds), statistics.median(results["stock"][what])
        lines.append(f"{what:16} ours {ours:5.1f} s   stock {stock:5.1f} s   ratio {ours / stock:.2f}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description="The Scala kernel's start beside stock Toree's, on the cluster of KUBECONFIG.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--namespace", default="default")
    given = parser.parse_args(arguments)
    results = asyncio.run(run(given.rounds, given.namespace))
    print(table(results))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
