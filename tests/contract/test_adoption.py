"""Kernels outlive their gateway, and any gateway of a deployment serves any kernel."""

from __future__ import annotations

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.conftest import Backend, profile, shut_down_all
from tests.gateway import PLUGGED_IN, Gateway, free_port, running_gateway, until, write_kernelspecs

# answers after some seconds
SLOW = profile("slow", command=["sh", "-c", "sleep 4; exec python -m ipykernel_launcher -f {connection_file}"])
PROFILES = {
    "small": profile("small", display_name="Small", limit_class="small"),
    "other": profile("other", limit_class="other"),
    "slow": SLOW,
}
SETTINGS = {"ELASTIC_KERNELS_IDENTITY": "header", "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.0/8"}
ANA, BOB = {"X-Forwarded-User": "ana"}, {"X-Forwarded-User": "bob"}
COUNTING = "import time\nfor number in range(400):\n    print(number, flush=True); time.sleep(0.25)"


@asynccontextmanager
async def gateway(backend: Backend, directory: Path, configuration: str = "", **settings: str) -> AsyncIterator[Gateway]:
    write_kernelspecs(directory, PROFILES)
    environment = {**backend.environment, **SETTINGS, **settings}
    async with running_gateway(directory, environment, configuration=PLUGGED_IN + configuration) as running:
        yield running


@pytest.fixture(autouse=True)
async def nothing_left(backend: Backend) -> AsyncIterator[None]:
    yield
    await shut_down_all(backend.environment)
    await until(backend.is_empty, "the last kernel's pod and record to go")


async def start(running: Gateway, kernel: str = "small", user: dict[str, str] = ANA) -> str:
    status, body = await running.request("POST", "/api/kernels", {"name": kernel}, headers=user)
    assert status == 201, body
    return str(body["id"])


async def run(running: Gateway, kernel: str, code: str, user: dict[str, str] = ANA) -> str:
    async with running.channels(kernel, headers=user) as channels:
        reply = await channels.execute(code)
        assert reply.status == "ok", reply
        return reply.text


async def listed(running: Gateway, user: dict[str, str] = ANA) -> set[str]:
    status, models = await running.request("GET", "/api/kernels", headers=user)
    assert status == 200, models
    return {model["id"] for model in models}


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
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    async with aiohttp.ClientSession() as client:
        yield f"http://127.0.0.1:{port}"
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
        former = await start(running)
        # its pod has its record for longer than the record has its name
        assert await run(running, former, "import atexit, time; _ = atexit.register(time.sleep, 6); print(1)") == "1\n"
        assert (await running.request("DELETE", f"/api/kernels/{former}", headers=ANA))[0] == 204
        kernel = await start(running)
        assert await backend.pods(former)
        assert await run(running, kernel, "print(2)") == "2\n"


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


@pytest.mark.embedded
async def test_a_gateway_that_does_not_see_the_cluster_denies_no_kernel(backend: Backend, tmp_path: Path) -> None:
    """Another one may have started it, and sees the cluster again a little earlier."""
    assert backend.embedded is not None
    async with gateway(backend, tmp_path / "one") as running:
        kernel, unknown = await start(running), f"/api/kernels/{uuid.uuid4()}"
        assert (await running.request("DELETE", unknown, headers=ANA))[0] == 404
        backend.embedded.faults.away = True
        backend.embedded.faults.cut_watches()
        try:
            await until(lambda: _answers(running, unknown, 503), "the gateway to see nothing")
            # the pauses between its attempts are some seconds long by now
            status, body = await running.request("DELETE", unknown, headers=ANA)
            sentence = "The gateway cannot see the cluster and does not know this kernel; try again in a minute."
            assert (status, body["message"]) == (503, sentence)
            assert (await running.request("GET", f"/api/kernels/{kernel}", headers=ANA))[0] == 200
        finally:
            backend.embedded.faults.away = False
        begin = time.monotonic()
        assert await _answers(running, unknown, 404)
        assert time.monotonic() - begin < 5


async def _answers(running: Gateway, path: str, wanted: int) -> bool:
    return (await running.request("DELETE", path, headers=ANA))[0] == wanted
