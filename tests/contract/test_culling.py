"""Idle kernels are shut down, and nobody's that is in use, also through another gateway."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from tests.conftest import Backend, profile, shut_down_all
from tests.gateway import PLUGGED_IN, Gateway, running_gateway, until, write_kernelspecs

IDENTITY = {"ELASTIC_KERNELS_IDENTITY": "header", "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.0/8"}
ANA = {"X-Forwarded-User": "ana"}
IDLE = 9.0
PROFILES = {"idle": profile("idle", idle_time=int(IDLE), grace_period=2), "for-ever": profile("for-ever")}


def gateway(backend: Backend, directory: Path) -> Any:
    write_kernelspecs(directory, PROFILES)
    return running_gateway(directory, {**backend.environment, **IDENTITY}, configuration=PLUGGED_IN)


async def start(running: Gateway, name: str = "idle") -> str:
    status, body = await running.request("POST", "/api/kernels", {"name": name}, headers=ANA)
    assert status == 201, body
    return str(body["id"])


async def lives(running: Gateway, kernel: str) -> bool:
    return (await running.request("GET", f"/api/kernels/{kernel}", headers=ANA))[0] == 200


async def ends(running: Gateway, kernel: str) -> float:
    """Wait until a kernel is gone, and return when that was."""

    async def gone() -> bool:
        return not await lives(running, kernel)

    await until(gone, "the kernel to be culled", seconds=40)
    return time.monotonic()


async def test_what_is_idle_is_shut_down_and_what_is_in_use_is_not(backend: Backend, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path / "one") as one, gateway(backend, tmp_path / "two") as two:
        begun = time.monotonic()
        idle, busy, connected, kept = await asyncio.gather(start(one), start(one), start(one), start(one, "for-ever"))
        begin = time.monotonic()
        async with one.channels(busy, headers=ANA) as channels:
            await channels.begin("import time; time.sleep(22); x = 1")
        async with one.channels(connected, headers=ANA) as channels:
            await channels.execute("x = 1")

            async def warned() -> bool:
                # the one that looks first shuts it down, and the other may be a second behind
                answers = [await each.request("GET", f"/api/kernels/{idle}/status", headers=ANA) for each in (one, two)]
                sentences = [body.get("sentence", "") for _, body in answers]
                return any("it is shut down at" in each and "if nothing uses it until then" in each for each in sentences)

            await until(warned, "its user to be warned", seconds=IDLE + 5)
            ended = await ends(two, idle)
            # the others may have taken longer to start
            assert ended - begun > IDLE - 2
            assert ended - begin < IDLE + 10
            while time.monotonic() < begin + 2.2 * IDLE:
                for asked in (one, two):
                    assert await lives(asked, busy)
                    assert await lives(asked, connected)
                await asyncio.sleep(0.5)
            assert (await channels.execute("x")).text == "1"
        left = time.monotonic()
        assert await ends(two, connected) - left > IDLE - 3
        assert await ends(one, busy) - begin > 22 + IDLE - 3
        assert await lives(two, kept)
        await shut_down_all(backend.environment)
    await until(backend.is_empty, "the last kernel to go")


async def test_a_restarted_gateway_knows_since_when_a_kernel_is_idle(backend: Backend, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path / "first") as first:
        kernel = await start(first)
        async with first.channels(kernel, headers=ANA) as channels:
            await channels.execute("1")
        await asyncio.sleep(4)
    async with gateway(backend, tmp_path / "second") as second:
        met = time.monotonic()
        assert await lives(second, kernel)
        # not as if it had been used when this gateway met it; how long it takes to end then is another matter
        await until(lambda: f"Kernel {kernel} has been idle for" in second.log, "the kernel to be culled")
        assert time.monotonic() - met < IDLE - 2
        await ends(second, kernel)
    await until(backend.is_empty, "its pod and its record to go")
