"""Any gateway of a deployment serves any kernel, whoever started it, and whatever becomes of the others."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.conftest import Backend
from tests.contract.deployment import ANA, BOB, gateway, listed, run, start
from tests.gateway import Gateway, until

pytestmark = pytest.mark.usefixtures("nothing_left")


async def test_a_list_does_not_wait_for_what_somebody_else_starts_elsewhere(backend: Backend, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path / "one") as one, gateway(backend, tmp_path / "two") as two:
        slow = asyncio.create_task(start(one, "slow"))

        async def runs() -> bool:
            return any(pod["status"].get("phase") == "Running" for pod in await backend.pods())

        await until(runs, "the pod to run")
        assert await listed(two, BOB) == set()
        assert not slow.done()
        kernel = await slow
        assert await listed(two) == {kernel}
        assert (await two.request("DELETE", f"/api/kernels/{kernel}", headers=ANA))[0] == 204


async def test_gateways_beside_each_other_serve_the_same_kernels(backend: Backend, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path / "one") as one, gateway(backend, tmp_path / "two") as two:
        kernel = await start(one)
        await run(one, kernel, "x = 42")
        assert await run(two, kernel, "x") == "42"
        assert await listed(two) == {kernel}
        # restarted here, and connected to there
        async with two.channels(kernel, headers=ANA) as channels:
            await channels.execute("1")
            assert (await one.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA))[0] == 200
            assert await asyncio.wait_for(channels.closed(), 20) == 1012
        assert await run(two, kernel, "print('x' in globals()); x = 1") == "False\n"
        assert await run(one, kernel, "x") == "1"
        # and again, by both at once: that is one restart
        pods = {item["metadata"]["uid"] for item in await backend.pods(kernel)}
        answers = await asyncio.gather(*(g.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA) for g in (one, two, one)))
        assert [status for status, _ in answers] == [200, 200, 200]
        assert await run(one, kernel, "print('x' in globals()); y = 2") == "False\n"
        assert await run(two, kernel, "y") == "2"

        async def replaced() -> bool:
            left = {item["metadata"]["uid"] for item in await backend.pods(kernel)}
            return len(left) == 1 and not left & pods

        await until(replaced, "the old pods to go, and one new one to be there")
        # shut down here, and connected to there
        async with two.channels(kernel, headers=ANA) as channels:
            await channels.execute("1")
            assert (await one.request("DELETE", f"/api/kernels/{kernel}", headers=ANA))[0] == 204
            message = await asyncio.wait_for(channels.receive(), 20)
            while message["msg_type"] != "status" or message["content"]["execution_state"] != "dead":
                message = await asyncio.wait_for(channels.receive(), 20)
        assert (await two.request("GET", f"/api/kernels/{kernel}", headers=ANA))[0] == 404
        assert await listed(two) == await listed(one) == set()


async def test_a_kernel_that_one_gateway_has_answered_with_is_there_at_the_next(backend: Backend, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path / "one") as one, gateway(backend, tmp_path / "two") as two:
        for _ in range(5):
            kernel = await start(one)
            assert (await two.request("GET", f"/api/kernels/{kernel}", headers=ANA))[0] == 200
            assert (await two.request("DELETE", f"/api/kernels/{kernel}", headers=ANA))[0] == 204
        assert (await two.request("GET", f"/api/kernels/{uuid.uuid4()}", headers=ANA))[0] == 404


@asynccontextmanager
async def round_robin(gateways: list[Gateway]) -> AsyncIterator[str]:
    """A plain Service without sticky sessions: each request, and each websocket, to the next one. Yields its address."""
    turns = itertools.cycle(gateways)

    async def pass_on(request: web.Request) -> web.StreamResponse:
        target = next(turns).address + request.raw_path
        headers = {name: value for name, value in request.headers.items() if name.lower() in ("x-forwarded-user", "content-type")}
        if request.headers.get("Upgrade", "").lower() == "websocket":
            here = web.WebSocketResponse(max_msg_size=0)
            async with client.ws_connect(target, headers=headers, max_msg_size=0) as there:
                await here.prepare(request)
                await asyncio.wait({asyncio.ensure_future(_pump(here, there)), asyncio.ensure_future(_pump(there, here))})
            return here
        async with client.request(request.method, target, headers=headers, data=await request.read()) as answer:
            return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", pass_on)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with aiohttp.ClientSession() as client:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def _pump(source: Any, target: Any) -> None:
    async for message in source:
        if target.closed:
            break
        await (target.send_str(message.data) if message.type is aiohttp.WSMsgType.TEXT else target.send_bytes(message.data))
    await target.close()


async def test_a_notebook_runs_to_its_end_behind_a_plain_service(backend: Backend, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        gateways = list(await asyncio.gather(*(stack.enter_async_context(gateway(backend, tmp_path / str(n))) for n in range(3))))
        address = await stack.enter_async_context(round_robin(gateways))
        client = await stack.enter_async_context(aiohttp.ClientSession())
        service = Gateway(address, client, tmp_path / "none" / "gateway.log")
        kernel = await start(service)
        assert await run(service, kernel, "x = 0") == ""
        # each cell over a websocket of its own, and in between what JupyterLab asks
        for number in range(1, 10):
            assert await run(service, kernel, "x += 1; print(x)") == f"{number}\n"
            assert kernel in await listed(service)
            assert (await service.request("GET", f"/api/kernels/{kernel}", headers=ANA))[0] == 200
        assert (await service.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA))[0] == 200
        assert await run(service, kernel, "print('x' in globals())") == "False\n"
        assert (await service.request("DELETE", f"/api/kernels/{kernel}", headers=ANA))[0] == 204


async def test_a_rolling_update(backend: Backend, tmp_path: Path) -> None:
    """The new gateway is there before the old one goes; while cells run."""
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(gateway(backend, tmp_path / "old"))
        kernels = list(await asyncio.gather(*(start(old, name) for name in ("small", "other", "small"))))
        pods = {item["metadata"]["uid"] for item in await backend.pods()}
        for kernel in kernels:
            channels = await stack.enter_async_context(old.channels(kernel, headers=ANA))
            await channels.begin("import time; time.sleep(6); x = 42")
        new = await stack.enter_async_context(gateway(backend, tmp_path / "new"))
        assert await listed(new) == set(kernels)
        await old.terminate()
        # they run to their end, and then answer
        assert await asyncio.gather(*(run(new, kernel, "x") for kernel in kernels)) == ["42", "42", "42"]
        assert {item["metadata"]["uid"] for item in await backend.pods()} == pods
        assert await listed(new) == set(kernels)


async def test_a_restart_under_way_is_left_to_the_other_gateways(backend: Backend, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(gateway(backend, tmp_path / "first", ELASTIC_KERNELS_DRAIN_TIME="0.1"))
        second = await stack.enter_async_context(gateway(backend, tmp_path / "second"))
        kernel = await start(first, "slow")
        assert await run(second, kernel, "x = 1") == ""
        (old,) = await backend.pods(kernel)
        restart = asyncio.ensure_future(first.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA))

        async def begun() -> bool:
            states = [pod["status"].get("phase") for pod in await backend.pods(kernel) if pod["metadata"]["uid"] != old["metadata"]["uid"]]
            return states == ["Running"]

        await until(begun, "the new pod to run")
        await first.terminate()
        await asyncio.wait({restart})

        async def restarted() -> bool:
            return {pod["metadata"]["uid"] for pod in await backend.pods(kernel)}.isdisjoint({old["metadata"]["uid"]})

        await until(restarted, "the old pod to go")
        assert kernel in await listed(second)
        assert await run(second, kernel, "print('x' in globals())") == "False\n"


async def test_what_is_deleted_elsewhere_at_once_is_not_listed_for_long(backend: Backend, tmp_path: Path) -> None:
    """Before the gateway that started it has looked at it even once."""
    async with gateway(backend, tmp_path / "one") as one, gateway(backend, tmp_path / "two") as two:
        for _ in range(5):
            kernel = await start(one)
            assert (await two.request("DELETE", f"/api/kernels/{kernel}", headers=ANA))[0] == 204
            await until(lambda: _lists_none(one), "the kernel to be listed no more", seconds=10)


@asynccontextmanager
async def away(backend: Backend, running: Gateway) -> AsyncIterator[None]:
    """Take the API server away from a gateway that has noticed it, and back."""
    assert backend.embedded is not None
    backend.embedded.faults.away = True
    backend.embedded.faults.cut_watches()
    try:
        unknown = f"/api/kernels/{uuid.uuid4()}"
        await until(lambda: _answers(running, unknown, 503), "the gateway to see nothing")
        yield
    finally:
        backend.embedded.faults.away = False


async def _answers(running: Gateway, path: str, wanted: int) -> bool:
    return (await running.request("DELETE", path, headers=ANA))[0] == wanted


async def _killed(running: Gateway, kernel: str) -> None:
    """Kill a kernel's process, with its pod."""
    process = int(await run(running, kernel, "import os; print(os.getpid())"))
    os.kill(process, signal.SIGKILL)
    await until(lambda: not Path(f"/proc/{process}").exists(), "the kernel's process to go")


@pytest.mark.embedded
async def test_a_gateway_that_does_not_see_the_cluster_denies_no_kernel(backend: Backend, tmp_path: Path) -> None:
    """Another one may have started it, and sees the cluster again a little earlier."""
    async with gateway(backend, tmp_path / "one") as running:
        kernel, unknown = await start(running), f"/api/kernels/{uuid.uuid4()}"
        assert (await running.request("DELETE", unknown, headers=ANA))[0] == 404
        async with away(backend, running):
            # the pauses between its attempts are some seconds long by now
            status, body = await running.request("DELETE", unknown, headers=ANA)
            sentence = "The gateway cannot see the cluster and does not know this kernel; try again in a minute."
            assert (status, body["message"]) == (503, sentence)
            assert (await running.request("GET", f"/api/kernels/{kernel}", headers=ANA))[0] == 200
        begin = time.monotonic()
        assert await _answers(running, unknown, 404)
        assert time.monotonic() - begin < 5


@pytest.mark.embedded
async def test_an_interrupt_that_may_have_gone_astray_is_said_to(backend: Backend, tmp_path: Path) -> None:
    """As where another gateway has restarted the kernel, and this one does not see the cluster."""
    async with gateway(backend, tmp_path / "one") as running:
        kernel = await start(running)
        async with away(backend, running):
            assert (await running.request("POST", f"/api/kernels/{kernel}/interrupt", headers=ANA))[0] == 204
            await _killed(running, kernel)
            status, body = await running.request("POST", f"/api/kernels/{kernel}/interrupt", headers=ANA)
            sentence = "The gateway cannot see the cluster, and this kernel is not where it was; try again in a minute."
            assert (status, body["message"]) == (503, sentence)


@pytest.mark.embedded
async def test_a_kernel_that_died_unseen_is_deleted_all_the_same(backend: Backend, tmp_path: Path) -> None:
    """The gateway can neither interrupt it first nor see that it is dead; what it accepts is carried out once it sees the cluster."""
    async with gateway(backend, tmp_path / "one") as one, gateway(backend, tmp_path / "two") as two:
        kernel = await start(one)
        assert await listed(two) == {kernel}
        async with away(backend, one):
            await _killed(one, kernel)
            assert (await one.request("DELETE", f"/api/kernels/{kernel}", headers=ANA))[0] == 204
            assert await listed(one) == set()
        await until(backend.is_empty, "the pod and the record to go")
        await until(lambda: _lists_none(two), "the other gateway to let it go")


async def _lists_none(running: Gateway) -> bool:
    return await listed(running) == set()
