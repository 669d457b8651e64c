"""A Scala kernel that a gateway meets while a cell runs in it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.cluster.test_scala import SLOW, scala_profile
from tests.conftest import Backend, gateway_on
from tests.gateway import PLUGGED_IN, Gateway, running_gateway, until, write_kernelspecs

CODE = """
println("begun")
Thread.sleep(15000)
val outcome = 3
"""


async def test_it_is_busy_until_its_cell_is_over(backend: Backend, tmp_path: Path) -> None:
    profiles = {"scala": scala_profile("scala")}
    async with gateway_on(backend, tmp_path / "first", profiles, configuration=PLUGGED_IN) as first:
        kernel = await first.start("scala")
        async with first.channels(kernel) as channels:
            await channels.send("shell", "execute_request", {"code": CODE, "silent": False, "allow_stdin": False})
            while (await asyncio.wait_for(channels.receive(), SLOW))["msg_type"] != "stream":
                pass
            await first.killed()
        write_kernelspecs(tmp_path / "second", profiles)
        async with running_gateway(tmp_path / "second", backend.environment, configuration=PLUGGED_IN) as second:
            # it is asked as soon as it is met
            for _ in range(10):
                assert (await model(second, kernel))["execution_state"] == "busy"
                await asyncio.sleep(0.2)

            async def is_idle() -> bool:
                return bool((await model(second, kernel))["execution_state"] == "idle")

            await until(is_idle, "the cell to end")
            assert await second.run(kernel, "outcome") == "3"


async def model(gateway: Gateway, kernel: str) -> dict[str, Any]:
    status, body = await gateway.request("GET", f"/api/kernels/{kernel}")
    assert status == 200, body
    return dict(body)
