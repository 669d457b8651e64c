"""The real API server is away for a while: what runs goes on, what begins waits or says why it cannot, and nothing is declared dead.

``ELASTIC_KERNELS_AWAY_SECONDS`` says for how long.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.cluster.faults import without_api_server
from tests.conftest import Backend, gateway_on, profile
from tests.gateway import PLUGGED_IN, Channels, Gateway, running_gateway, until, write_kernelspecs

AWAY_SECONDS = float(os.environ.get("ELASTIC_KERNELS_AWAY_SECONDS") or 20)
IDENTITY = {"ELASTIC_KERNELS_IDENTITY": "header", "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.0/8"}
# what waits for the API server is not to give up before it is back
PATIENT = {"ELASTIC_KERNELS_RETRY_TIME": "300"}
ANA = {"X-Forwarded-User": "ana"}
PROFILES = {"small": profile("small", display_name="Small", grace_period=2, launch_timeout=300)}
# "unreachable" is what a node controller says once it is back and has not heard of its nodes yet
WELL = {"ready", "unreachable"}


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    directory = tmp_path_factory.mktemp("gateway")
    async with gateway_on(backend, directory, PROFILES, environment={**IDENTITY, **PATIENT}, configuration=PLUGGED_IN) as running:
        yield running


async def ask(gateway: Gateway, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    return await gateway.request(method, path, body, headers=ANA)


async def start(gateway: Gateway, **environment: str) -> tuple[int, Any]:
    return await ask(gateway, "POST", "/api/kernels", {"name": "small", "env": environment})


async def execute(gateway: Gateway, kernel: str, code: str) -> str:
    async with gateway.channels(kernel, headers=ANA) as channels:
        reply = await channels.execute(code, seconds=20)
        assert reply.status == "ok", reply
        return reply.result


async def printed(channels: Channels) -> int:
    """Return the next number that a counting cell prints."""
    while (message := await asyncio.wait_for(channels.receive(), 20))["content"].get("name") != "stdout":
        pass
    return int(message["content"]["text"].split()[0])


async def test_the_api_server_is_away(
    backend: Backend, gateway: Gateway, tmp_path_factory: pytest.TempPathFactory, figure: Callable[[str], None]
) -> None:
    kernels = [body["id"] for _, body in await asyncio.gather(*(start(gateway) for _ in range(4)))]
    await asyncio.gather(*(execute(gateway, kernel, f"x = {number}") for number, kernel in enumerate(kernels)))
    counting, used, to_be_restarted, to_be_shut_down = kernels
    pods = {item["metadata"]["uid"] for kernel in (counting, used) for item in await backend.pods(kernel)}
    seen: set[str] = set()

    async def watch() -> None:
        while True:
            for kernel in (counting, used):
                status, body = await ask(gateway, "GET", f"/api/kernels/{kernel}/status")
                seen.add(body["phase"] if status == 200 else f"{status} {body}")
            _, models = await ask(gateway, "GET", "/api/kernels")
            assert {counting, used} <= {model["id"] for model in models}
            assert "dead" not in {model["execution_state"] for model in models if model["id"] in (counting, used)}
            await asyncio.sleep(0.5)

    over = asyncio.Event()

    async def go_on() -> int:
        """Run cells that use what another cell prints meanwhile, and return how many."""
        count = 0
        while not over.is_set():
            number = await printed(channels)
            assert await execute(gateway, used, f"x += {number}; x - {number}") == "1"
            await execute(gateway, used, f"x -= {number}")
            count += 2
            await asyncio.sleep(0.5)
        return count

    watching = asyncio.ensure_future(watch())
    beside = tmp_path_factory.mktemp("beside")
    write_kernelspecs(beside, PROFILES)
    async with gateway.channels(counting, headers=ANA) as channels:
        await channels.begin("import time\nfor number in range(100000):\n    print(number, flush=True); time.sleep(0.25)")
        async with without_api_server(backend.kubeconfig):
            begin = time.monotonic()
            going_on = asyncio.ensure_future(go_on())
            # what begins now waits; who does not want to wait is told so
            waits = asyncio.ensure_future(start(gateway))
            restarts = asyncio.ensure_future(ask(gateway, "POST", f"/api/kernels/{to_be_restarted}/restart"))
            status, body = await start(gateway, KERNEL_LAUNCH_TIMEOUT="3")
            assert (status, body["message"]) == (
                504,
                "The kernel 'Small' was not ready within 3 seconds: the cluster has not taken it yet.",
            )
            assert (await ask(gateway, "DELETE", f"/api/kernels/{to_be_shut_down}"))[0] == 204
            # a gateway that has seen nothing yet does not say that there is nothing
            async with running_gateway(beside, {**backend.environment, **IDENTITY}, configuration=PLUGGED_IN) as blind:
                status, body = await ask(blind, "GET", "/api/kernels")
                assert (status, body["message"]) == (
                    503,
                    "The gateway cannot see the cluster and does not know your kernels; try again in a minute.",
                )
            await asyncio.sleep(begin + AWAY_SECONDS - time.monotonic())
            over.set()
            count = await going_on
            assert count > 0
            figure(f"the API server was away for {time.monotonic() - begin:.0f} s, in which {count} cells were run")
            assert not waits.done()
            assert not restarts.done()
        status, body = await waits
        assert status == 201, body
        assert await execute(gateway, body["id"], "6 * 7") == "42"
        assert (await restarts)[0] == 200
        assert await execute(gateway, to_be_restarted, "'x' in globals()") == "False"
        await until(lambda: gone(backend, to_be_shut_down), "what was shut down meanwhile to go")
        # later than two of the gateway's looks, each of which could take an absent pod for a dead one
        await asyncio.sleep(5)
        await printed(channels)
    assert (await ask(gateway, "POST", f"/api/kernels/{counting}/interrupt"))[0] == 204
    await until(lambda: idle(gateway, counting), "the cell to end")
    assert [await execute(gateway, kernel, "x") for kernel in (counting, used)] == ["0", "1"]
    assert {item["metadata"]["uid"] for kernel in (counting, used) for item in await backend.pods(kernel)} == pods
    watching.cancel()
    assert watching in (await asyncio.wait({watching}))[0]
    assert watching.cancelled(), watching.exception()
    assert seen <= WELL, seen
    figure(f"what the status said of the kernels that ran: {sorted(seen)}")
    await until(lambda: are_left(backend, 4), "what was given up while the server was away to leave nothing")
    for kernel in (counting, used, to_be_restarted, body["id"]):
        assert (await ask(gateway, "DELETE", f"/api/kernels/{kernel}"))[0] == 204


async def gone(backend: Backend, kernel: str) -> bool:
    return not await backend.pods(kernel) and kernel not in str([item["metadata"] for item in await backend.records()])


async def are_left(backend: Backend, count: int) -> bool:
    return len(await backend.records()) == count


async def idle(gateway: Gateway, kernel: str) -> bool:
    return bool((await ask(gateway, "GET", f"/api/kernels/{kernel}"))[1]["execution_state"] == "idle")
