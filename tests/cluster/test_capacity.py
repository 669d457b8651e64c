"""Room that is held for kernels, on a real scheduler: whatever needs it gets it, at once and by preemption."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from elastic_kernels import names, quantities
from elastic_kernels.cluster import Object
from tests.conftest import Backend, profile
from tests.gateway import PLUGGED_IN, running_gateway, until, write_kernelspecs

ROOT = Path(__file__).parents[2]


async def kubectl(backend: Backend, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        "kubectl", "--kubeconfig", str(backend.kubeconfig), *arguments, stdout=asyncio.subprocess.PIPE
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0
    return said.decode()


async def test_a_kernel_takes_the_room_that_is_held(backend: Backend, tmp_path: Path) -> None:
    nodes = json.loads(await kubectl(backend, "get", "nodes", "--output", "json"))["items"]
    free = [node for node in nodes if not node["spec"].get("taints")]
    largest = max(quantities.parse(node["status"]["allocatable"]["cpu"]) for node in free)
    # two of them are on no machine
    request: dict[str, Any] = {"memory": {"request": "50Mi"}, "cpu": {"request": f"{int(largest * 600)}m"}}
    held = profile("held", **request, warm={"capacity": len(free)})
    await kubectl(backend, "apply", "--filename", str(ROOT / "docker" / "gateway" / "capacity.yaml"))
    write_kernelspecs(tmp_path, {"held": held})
    async with running_gateway(tmp_path, backend.environment, configuration=PLUGGED_IN) as gateway:

        async def room() -> list[Object]:
            found = (await backend.api.list("pods", backend.namespace, labelSelector=names.WARM))["items"]
            return [item for item in found if item["status"].get("phase") == "Running" and not item["metadata"].get("deletionTimestamp")]

        before = {item["metadata"]["uid"]: item for item in await until(lambda: _so_many(room, len(free)), "room to be held")}
        kernel = await gateway.start("held")
        assert await gateway.run(kernel, "print(6 * 7)") == "42\n"
        (pod,) = await backend.pods(kernel)
        kept = {item["metadata"]["uid"] for item in await room()}
        (gone,) = before.keys() - kept
        assert before[gone]["spec"]["nodeName"] == pod["spec"]["nodeName"]
        # it is the scheduler that took it, and not the gateway
        assert "makes room for a kernel" not in gateway.log
        await gateway.stop(kernel)
        await until(lambda: _so_many(room, len(free)), "room to be held again")


async def _so_many(look: Any, count: int) -> list[Object]:
    found: list[Object] = await look()
    return found if len(found) == count else []
