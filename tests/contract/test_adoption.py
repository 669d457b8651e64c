"""Kernels outlive their gateway, and the one that comes after it serves them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.conftest import Backend, shut_down_all
from tests.contract.deployment import ANA, BOB, COUNTING, gateway, listed, run, start
from tests.gateway import Gateway, until

pytestmark = pytest.mark.usefixtures("nothing_left")

LINGERS = "import atexit, time; _ = atexit.register(time.sleep, 50); print(1)"


@pytest.mark.parametrize("ending", ["SIGTERM", "kill -9"])
async def test_a_gateway_that_starts_serves_the_kernels_that_there_are(backend: Backend, tmp_path: Path, ending: str) -> None:
    limit = {"ELASTIC_KERNELS_MAX_KERNELS_PER_CLASS": "small=3"}
    async with gateway(backend, tmp_path / "first", **limit) as first:
        kernels = list(await asyncio.gather(*(start(first) for _ in range(3))))
        bobs = await start(first, user=BOB)
        await asyncio.gather(*(run(first, kernel, f"x = {number}") for number, kernel in enumerate(kernels)))
        pods = {item["metadata"]["uid"] for item in await backend.pods()}
        async with first.channels(kernels[0], headers=ANA) as channels:
            await channels.begin(COUNTING)
            session = channels.session
            if ending == "SIGTERM":
                await first.terminate()
            else:
                first.kill()
        assert {item["metadata"]["uid"] for item in await backend.pods()} == pods
    async with gateway(backend, tmp_path / "second", **limit) as second:
        assert await listed(second) == set(kernels)
        assert await listed(second, BOB) == {bobs}
        # whose cell still runs is busy, and the others are not
        await until(lambda: _states(second, kernels[:1], {"idle"}), "the kernels that do nothing to be idle")
        model = (await second.request("GET", f"/api/kernels/{kernels[0]}", headers=ANA))[1]
        assert model["execution_state"] == "busy", model
        assert (await second.request("GET", f"/api/kernels/{kernels[0]}", headers=BOB))[0] == 404
        async with second.channels(kernels[0], headers=ANA) as channels:
            message = await asyncio.wait_for(channels.receive(), 20)
            while message["msg_type"] != "stream":
                message = await asyncio.wait_for(channels.receive(), 20)
            assert message["parent_header"]["session"] == session
        assert [await run(second, kernel, "x") for kernel in kernels[1:]] == ["1", "2"]
        status, body = await second.request("POST", "/api/kernels", {"name": "small"}, headers=ANA)
        assert (status, body["message"][:30]) == (403, "You have 3 of 3 small kernels:"), body
        # nothing was restarted, and everything that can be done with a kernel can be done with these
        assert {item["metadata"]["uid"] for item in await backend.pods()} == pods
        assert (await second.request("POST", f"/api/kernels/{kernels[0]}/interrupt", headers=ANA))[0] == 204
        # what follows an interrupt at once is aborted
        await until(lambda: _states(second, kernels[1:], {"idle"}), "the cell to end")
        assert await run(second, kernels[0], "x") == "0"
        assert (await second.request("POST", f"/api/kernels/{kernels[1]}/restart", headers=ANA))[0] == 200
        assert await run(second, kernels[1], "print('x' in globals())") == "False\n"
        for kernel in kernels:
            assert (await second.request("DELETE", f"/api/kernels/{kernel}", headers=ANA))[0] == 204
        assert await listed(second) == set()


@pytest.mark.parametrize("ending", ["SIGTERM", "kill -9", "rolling update"])
async def test_ten_of_ten_kernels_go_on(backend: Backend, tmp_path: Path, ending: str) -> None:
    """While a cell runs in each of them: what they know stays, what they print arrives, and nothing is restarted."""
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(gateway(backend, tmp_path / "first"))
        kernels = list(await asyncio.gather(*(start(first) for _ in range(10))))
        pods = {item["metadata"]["uid"] for item in await backend.pods()}
        sessions = {}
        async with AsyncExitStack() as connections:
            for number, kernel in enumerate(kernels):
                channels = await connections.enter_async_context(first.channels(kernel, headers=ANA))
                await channels.execute(f"x = {number}")
                await channels.begin(COUNTING)
                sessions[kernel] = channels.session
            if ending == "rolling update":
                second = await stack.enter_async_context(gateway(backend, tmp_path / "second"))
            await (first.killed() if ending == "kill -9" else first.terminate())
        if ending != "rolling update":
            second = await stack.enter_async_context(gateway(backend, tmp_path / "second"))

        async def goes_on(kernel: str) -> bool:
            async with second.channels(kernel, headers=ANA) as channels:
                while (message := await asyncio.wait_for(channels.receive(), 30))["msg_type"] != "stream":
                    pass
                return bool(message["parent_header"]["session"] == sessions[kernel])

        assert await listed(second) == set(kernels)
        assert all(await asyncio.gather(*map(goes_on, kernels)))
        for kernel in kernels:
            assert (await second.request("POST", f"/api/kernels/{kernel}/interrupt", headers=ANA))[0] == 204
        # what follows an interrupt at once is aborted
        await until(lambda: _states(second, [], {"idle"}), "the cells to end")
        assert [await run(second, kernel, "x") for kernel in kernels] == [str(number) for number in range(10)]
        assert {item["metadata"]["uid"] for item in await backend.pods()} == pods


async def _states(running: Gateway, others: list[str], wanted: set[str]) -> bool:
    """Tell whether all of Ana's kernels but ``others`` are in one of the states."""
    _, models = await running.request("GET", "/api/kernels", headers=ANA)
    return {model["execution_state"] for model in models if model["id"] not in others} == wanted


async def test_the_command_that_shuts_down(backend: Backend, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path / "one") as running:
        anas, bobs = await start(running), await start(running, user=BOB)
        said = await shut_down_all(backend.environment, "--user", "ana")
        assert said.splitlines() == [f"{anas}  Small  ana", "1 kernels of the deployment 'default' are shut down"]
        await until(lambda: _gone(running, anas), "the gateway to notice")
        assert await listed(running, BOB) == {bobs}
        await shut_down_all(backend.environment)
        await until(lambda: _gone(running, bobs, BOB), "the gateway to notice")
        assert (await shut_down_all(backend.environment)).strip() == "there was none"


async def _gone(running: Gateway, kernel: str, user: dict[str, str] = ANA) -> bool:
    return (await running.request("GET", f"/api/kernels/{kernel}", headers=user))[0] == 404


async def test_a_launch_under_way_outlasts_the_sigterm(backend: Backend, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path / "first") as first:
        await start(first)
        launch = asyncio.ensure_future(start(first))

        async def begun() -> bool:
            return len(await backend.records()) == 2

        await until(begun, "the launch to begin")
        ending = asyncio.ensure_future(first.terminate())
        kernel = await launch
        await ending
    async with gateway(backend, tmp_path / "second") as second:
        assert kernel in await listed(second)
        assert await run(second, kernel, "6 * 7") == "42"


async def test_a_slot_that_is_taken_again_at_once_is_another_kernels(backend: Backend, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path, ELASTIC_KERNELS_MAX_KERNELS_PER_CLASS="small=1") as running:
        former = await start(running, "lingering")
        # its pod has its record for longer than the record has its name, however long the next start takes
        assert await run(running, former, LINGERS) == "1\n"
        assert (await running.request("DELETE", f"/api/kernels/{former}", headers=ANA))[0] == 204
        kernel = await start(running)
        (pod,) = await backend.pods(former)
        assert await run(running, kernel, "print(2)") == "2\n"
        await backend.api.delete("pods", backend.namespace, pod["metadata"]["name"], grace=0)
