"""Kernels that end by themselves: what their users are told, what is started again, and what can be done with what is left."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from elastic_kernels.embedded import EmbeddedCluster
from tests.conftest import Backend, gateway_on, profile
from tests.gateway import PLUGGED_IN, Channels, Gateway, running_gateway, until, write_kernelspecs

IDENTITY = {"ELASTIC_KERNELS_IDENTITY": "header", "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.0/8"}
ANA = {"X-Forwarded-User": "ana"}
DIE = "import os, time; print('dying', flush=True); time.sleep(0.5); os._exit(3)"
CRASHED = "it ended with exit code 3"


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    profiles = {
        "small": profile("small", display_name="Small", grace_period=2),
        "again": profile("again", restart_after_loss=True, grace_period=2),
        "spot": profile("spot", spot=True, restart_after_loss=True, on_demand_after_loss=True, grace_period=2),
    }
    directory = tmp_path_factory.mktemp("gateway")
    async with gateway_on(backend, directory, profiles, environment=IDENTITY, configuration=PLUGGED_IN) as running:
        yield running


@pytest.fixture
def cluster(backend: Backend) -> Iterator[EmbeddedCluster]:
    assert backend.embedded is not None
    backend.embedded.faults.requests.clear()
    yield backend.embedded
    backend.embedded.faults.clear()


@pytest.fixture
async def kernel(gateway: Gateway) -> AsyncIterator[str]:
    kernel_id = await start(gateway)
    yield kernel_id
    assert (await gateway.request("DELETE", f"/api/kernels/{kernel_id}", headers=ANA))[0] in (204, 404)


async def start(gateway: Gateway, name: str = "small") -> str:
    status, body = await gateway.request("POST", "/api/kernels", {"name": name}, headers=ANA)
    assert status == 201, body
    return str(body["id"])


async def model(gateway: Gateway, kernel: str) -> dict[str, Any]:
    status, body = await gateway.request("GET", f"/api/kernels/{kernel}", headers=ANA)
    return dict(body) if status == 200 else {"execution_state": status}


async def run(gateway: Gateway, kernel: str, code: str) -> str:
    async with gateway.channels(kernel, headers=ANA) as channels:
        return (await channels.execute(code)).text


async def reaches(gateway: Gateway, kernel: str, state: str) -> dict[str, Any]:
    async def there() -> bool:
        return bool((await model(gateway, kernel))["execution_state"] == state)

    await until(there, f"the kernel to be {state}", seconds=40)
    return await model(gateway, kernel)


async def told(channels: Channels, state: str) -> None:
    """Wait until the client is told that the kernel is in a state."""
    while (message := await asyncio.wait_for(channels.receive(), 20))["msg_type"] != "status" or message["content"][
        "execution_state"
    ] != state:
        pass


async def test_a_crash_is_said_in_the_cell_and_a_new_kernel_is_started(backend: Backend, gateway: Gateway, kernel: str) -> None:
    async with gateway.channels(kernel, headers=ANA) as channels:
        await channels.execute("x = 1")
        reply = await channels.execute(DIE)
        sentence = f"The kernel has ended and is started again, without what was in it: {CRASHED}."
        assert (reply.status, reply.content["ename"], reply.content["evalue"]) == ("error", "DeadKernel", sentence)
        assert reply.text == f"dying\n{sentence}\n"
        await told(channels, "restarting")
        # what this connection leads to is gone
        assert await asyncio.wait_for(channels.closed(), 30) == 1012
    assert await run(gateway, kernel, "print('x' in globals())") == "False\n"
    await reaches(gateway, kernel, "idle")

    async def alone() -> bool:
        return len(await backend.pods(kernel)) == 1

    await until(alone, "the old pod to go")


async def test_a_crash_that_nobody_saw_leaves_a_dead_kernel_that_says_why(gateway: Gateway, kernel: str) -> None:
    async with gateway.channels(kernel, headers=ANA) as channels:
        await channels.send("shell", "execute_request", {"code": f"import time; time.sleep(1); {DIE}", "silent": False})
    dead = await reaches(gateway, kernel, "dead")
    assert dead["reason"] == CRASHED
    status, body = await gateway.request("POST", f"/api/kernels/{kernel}/interrupt", headers=ANA)
    assert (status, body["message"]) == (409, f"The kernel is not running: {CRASHED}. Restart it, or shut it down.")
    assert kernel in {item["id"] for item in (await gateway.request("GET", "/api/kernels", headers=ANA))[1]}
    # twice at the same time is once
    answers = await asyncio.gather(*(gateway.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA) for _ in range(2)))
    assert [status for status, _ in answers] == [200, 200]
    assert await run(gateway, kernel, "6 * 7") == "42"
    assert "reason" not in await reaches(gateway, kernel, "idle")


async def test_whoever_connects_to_a_dead_kernel_is_told(gateway: Gateway, kernel: str) -> None:
    async with gateway.channels(kernel, headers=ANA) as channels:
        await channels.send("shell", "execute_request", {"code": f"import time; time.sleep(1); {DIE}", "silent": False})
    await reaches(gateway, kernel, "dead")
    async with gateway.channels(kernel, headers=ANA) as channels:
        await told(channels, "dead")
        await channels.send("shell", "kernel_info_request", {})
        reply = await asyncio.wait_for(channels.execute("1"), 5)
        assert (reply.status, reply.content["ename"]) == ("error", "DeadKernel")
        assert reply.text == f"The kernel is dead: {CRASHED}.\n"
        assert (await gateway.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA))[0] == 200
        # by the same connection
        assert (await channels.execute("6 * 7")).text == "42"


async def test_whoever_is_connected_when_a_kernel_is_restarted_connects_again(gateway: Gateway, kernel: str) -> None:
    """Before it died, or beside the one who restarts it."""
    async with gateway.channels(kernel, headers=ANA) as channels:
        await channels.execute("1")
        assert (await gateway.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA))[0] == 200
        # what this connection leads to is gone, and nothing is sent there
        reply = await channels.execute("1")
        assert (reply.status, reply.content["evalue"]) == (
            "error",
            "The kernel was restarted, and this cell was not executed; run it again.",
        )
        assert await asyncio.wait_for(channels.closed(), 10) == 1012
    assert await run(gateway, kernel, "6 * 7") == "42"


async def test_who_connects_anew_after_a_restart_is_left_alone(gateway: Gateway, kernel: str) -> None:
    """As JupyterLab does, with the same session and the former connection still there."""
    session = uuid.uuid4().hex
    async with gateway.channels(kernel, headers=ANA, session=session) as former:
        await former.execute("1")
        assert (await gateway.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA))[0] == 200
        async with gateway.channels(kernel, headers=ANA, session=session) as channels:
            for number in range(10):
                assert (await channels.execute(str(number))).text == str(number)
                await asyncio.sleep(0.5)


async def test_what_is_no_websocket_is_in_no_deaths_way(gateway: Gateway, kernel: str) -> None:
    async with aiohttp.ClientSession() as client, client.get(f"{gateway.address}/api/kernels/{kernel}/channels", headers=ANA) as answer:
        assert answer.status == 400
    async with gateway.channels(kernel, headers=ANA) as channels:
        await channels.begin(DIE)
        await told(channels, "restarting")
        assert await asyncio.wait_for(channels.closed(), 30) == 1012
    assert await run(gateway, kernel, "6 * 7") == "42"


async def test_a_dead_kernel_is_shut_down(backend: Backend, gateway: Gateway) -> None:
    kernel = await start(gateway)
    async with gateway.channels(kernel, headers=ANA) as channels:
        await channels.send("shell", "execute_request", {"code": f"import time; time.sleep(1); {DIE}", "silent": False})
    await reaches(gateway, kernel, "dead")
    answers = await asyncio.gather(*(gateway.request("DELETE", f"/api/kernels/{kernel}", headers=ANA) for _ in range(2)))
    assert {status for status, _ in answers} <= {204, 404}
    assert (await model(gateway, kernel))["execution_state"] == 404
    await until(lambda: gone(backend, kernel), "its pod and its record to go")


async def gone(backend: Backend, kernel: str) -> bool:
    return not await backend.pods(kernel) and kernel not in str(await backend.records())


async def test_a_dead_kernel_outlives_its_pod_and_its_gateway(backend: Backend, tmp_path: Path) -> None:
    directories = [tmp_path / name for name in ("first", "second")]
    async with gateway_beside(backend, directories[0]) as first:
        kernel = await start(first)
        async with first.channels(kernel, headers=ANA) as channels:
            await channels.send("shell", "execute_request", {"code": f"import time; time.sleep(1); {DIE}", "silent": False})
        await reaches(first, kernel, "dead")
        (pod,) = await backend.pods(kernel)
        await backend.api.delete("pods", backend.namespace, pod["metadata"]["name"], grace=0)

        async def buried() -> bool:
            return CRASHED in str(await backend.records())

        await until(buried, "the record to say why the kernel is dead")
    async with gateway_beside(backend, directories[1]) as second:
        dead = await reaches(second, kernel, "dead")
        assert dead["reason"] == CRASHED
        async with second.channels(kernel, headers=ANA) as channels:
            await told(channels, "dead")
            assert (await second.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA))[0] == 200
            assert (await channels.execute("6 * 7")).text == "42"
        await until(lambda: taken_back(backend), "the record to be that of a kernel that lives")
        assert (await second.request("DELETE", f"/api/kernels/{kernel}", headers=ANA))[0] == 204


async def taken_back(backend: Backend) -> bool:
    return CRASHED not in str([item["metadata"] for item in await backend.records()])


def gateway_beside(backend: Backend, directory: Path) -> Any:
    """Run a gateway that leaves what it has where it is."""
    write_kernelspecs(directory, {"small": profile("small", grace_period=2)})
    return running_gateway(directory, {**backend.environment, **IDENTITY}, configuration=PLUGGED_IN)


@pytest.mark.embedded
async def test_a_restart_that_fails_leaves_a_kernel_that_can_be_restarted(
    cluster: EmbeddedCluster, backend: Backend, gateway: Gateway, kernel: str
) -> None:
    cluster.faults.add(verb="create", resource="pods", times=1, status=403)
    status, body = await gateway.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA)
    assert (status, body["message"]) == (500, "The cluster refused the kernel 'Small': an injected fault: 403.")
    dead = await model(gateway, kernel)
    assert (dead["execution_state"], dead["reason"]) == ("dead", f"it could not be started again: {body['message']}")
    assert (await gateway.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA))[0] == 200
    assert await run(gateway, kernel, "6 * 7") == "42"


@pytest.mark.embedded
async def test_a_restart_that_fails_at_one_gateway_is_not_taken_for_an_end_at_another(
    cluster: EmbeddedCluster, backend: Backend, gateway: Gateway, tmp_path: Path
) -> None:
    async with gateway_beside(backend, tmp_path) as beside:
        kernel = await start(gateway)
        await reaches(beside, kernel, "idle")
        cluster.faults.add(verb="create", resource="pods", times=1, status=403)
        assert (await gateway.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA))[0] == 500
        dead = await reaches(beside, kernel, "dead")
        assert dead["reason"].startswith("it could not be started again: The cluster refused the kernel")
        # later than a kernel is removed that has ended and whom nobody has a connection to
        await asyncio.sleep(27)
        assert (await beside.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA))[0] == 200
        assert await run(gateway, kernel, "6 * 7") == "42"
    assert (await gateway.request("DELETE", f"/api/kernels/{kernel}", headers=ANA))[0] == 204


@pytest.mark.embedded
async def test_a_shutdown_ends_a_restart(cluster: EmbeddedCluster, backend: Backend, gateway: Gateway) -> None:
    kernel = await start(gateway)
    cluster.faults.add(verb="create", resource="pods", times=1, delay=20.0)
    restart = asyncio.ensure_future(gateway.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA))
    await until(lambda: cluster.faults.requests["create", "pods"] == 2, "the new pod to be on its way")
    assert (await asyncio.wait_for(gateway.request("DELETE", f"/api/kernels/{kernel}", headers=ANA), 15))[0] == 204
    assert (await restart)[0] == 404
    # also what the API server creates after that
    await until(lambda: gone(backend, kernel), "its pods and its record to go")


@pytest.mark.embedded
@pytest.mark.parametrize(("name", "state"), [("small", "dead"), ("again", "restarting")])
async def test_a_machine_that_is_lost(cluster: EmbeddedCluster, backend: Backend, gateway: Gateway, name: str, state: str) -> None:
    """What a profile says about kernels that end through no fault of theirs. A kubelet writes such a status at an eviction."""
    kernel = await start(gateway, name)
    (pod,) = await backend.pods(kernel)
    async with gateway.channels(kernel, headers=ANA) as channels:
        await channels.begin("import time; time.sleep(60)")
        evicted = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory. "}
        cluster.store.patch("pods", backend.namespace, pod["metadata"]["name"], {"status": evicted})
        await told(channels, state)
    if state == "dead":
        assert "ran short of memory" in (await model(gateway, kernel))["reason"]
    else:
        await reaches(gateway, kernel, "idle")
    assert (await gateway.request("DELETE", f"/api/kernels/{kernel}", headers=ANA))[0] == 204


@pytest.mark.embedded
async def test_a_spot_machine_that_is_taken_back_is_announced_and_done_without(
    cluster: EmbeddedCluster, backend: Backend, gateway: Gateway
) -> None:
    kernel = await start(gateway, "spot")
    (pod,) = await backend.pods(kernel)
    assert pod["spec"]["nodeName"] == "spot"
    taints = cluster.store.get("nodes", "", "spot")["spec"]["taints"]
    notice = {"key": "aws-node-termination-handler/spot-itn", "value": "id", "effect": "NoSchedule"}
    async with gateway.channels(kernel, headers=ANA) as channels:
        cell = await channels.begin("import time; time.sleep(60)")
        cluster.store.patch("nodes", "", "spot", {"spec": {"taints": [*taints, notice]}})
        try:
            told_of = "The kernel: it will be ended soon: AWS takes the spot machine back."
            while told_of not in str((message := await asyncio.wait_for(channels.receive(), 10))["content"]):
                pass
            assert message["parent_header"]["msg_id"] == cell
            _, now = await gateway.request("GET", f"/api/kernels/{kernel}/status", headers=ANA)
            assert (now["phase"], now["cause"], now["hopeless"]) == ("ending-soon", "reclaimed", False)
            # what a termination handler does next
            await backend.api.delete("pods", backend.namespace, pod["metadata"]["name"])
            await told(channels, "restarting")
            await reaches(gateway, kernel, "idle")
            running = [item for item in await backend.pods(kernel) if not item["metadata"].get("deletionTimestamp")]
            assert [item["spec"]["nodeName"] for item in running] != ["spot"]
        finally:
            cluster.store.patch("nodes", "", "spot", {"spec": {"taints": taints}})
    assert (await gateway.request("DELETE", f"/api/kernels/{kernel}", headers=ANA))[0] == 204
