"""Starts whose gateway is killed while their pods wait for a machine: nobody carries them on, and they are in nobody's way."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from elastic_kernels import names
from elastic_kernels.embedded.faults import Fault
from tests.conftest import Backend, profile
from tests.contract.deployment import ANA, SETTINGS, listed, run, start
from tests.gateway import PLUGGED_IN, Gateway, running_gateway, until, write_kernelspecs

pytestmark = pytest.mark.usefixtures("nothing_left")

ROOM = "example.com/room"
PROFILES = {
    "small": profile("small", node_selector={ROOM: "free"}, grace_period=2),
    "silent": profile("silent", command=["sh", "-c", "sleep 1000", "{connection_file}"], grace_period=1),
}
# what whoever waits for a start has beyond the time that it is given
LATER = 40


@pytest.fixture
async def room(backend: Backend) -> AsyncIterator[Any]:
    """Opens and closes the machines to these kernels."""

    async def set_room(is_there: bool) -> None:
        for item in (await backend.api.list("nodes", None))["items"]:
            # kubelets write to it, too
            while await backend.api.change("nodes", item, {"labels": {ROOM: "free" if is_there else None}}) is None:
                found = await backend.api.get("nodes", "", item["metadata"]["name"])
                assert found is not None
                item = found

    await set_room(True)
    yield set_room
    await set_room(False)


def gateway(backend: Backend, directory: Path) -> AbstractAsyncContextManager[Gateway]:
    write_kernelspecs(directory, PROFILES)
    return running_gateway(directory, {**backend.environment, **SETTINGS}, configuration=PLUGGED_IN)


async def cut_off(running: Gateway, *requests: asyncio.Future[Any]) -> None:
    """Kill a gateway while it carries requests out."""
    await running.killed()
    assert all(isinstance(answer, aiohttp.ClientError) for answer in await asyncio.gather(*requests, return_exceptions=True))


def begin(running: Gateway, path: str, body: Any = None) -> asyncio.Future[Any]:
    return asyncio.ensure_future(running.request("POST", path, body, headers=ANA))


async def begun(running: Gateway, seconds: int) -> str:
    """Start a kernel that has so much time for each of its starts, and return its id."""
    wanted = {"name": "small", "env": {"KERNEL_LAUNCH_TIMEOUT": str(seconds)}}
    status, body = await running.request("POST", "/api/kernels", wanted, headers=ANA)
    assert status == 201, body
    return str(body["id"])


def deletes_late(backend: Backend, **deletion: Any) -> Fault:
    """Have this happen to the second pod that is deleted, which is a restart's; the first is the old one."""
    assert backend.embedded is not None
    backend.embedded.faults.add(verb="delete", resource="pods", times=1)
    return backend.embedded.faults.add(verb="delete", resource="pods", times=1, **deletion)


async def without_machine(backend: Backend, *kernels: str) -> bool:
    """Tell whether the scheduler has found no machine for the latest pods of these kernels."""
    waiting = {
        item["metadata"]["labels"]["elastic-kernels/kernel-id"]
        for item in await backend.pods()
        for condition in item["status"].get("conditions", ())
        if condition.get("reason") == "Unschedulable"
    }
    return waiting >= set(kernels)


async def restart_without(room: Any, backend: Backend, running: Gateway, kernel: str) -> asyncio.Future[Any]:
    """Begin a restart for which there is no machine, and return the request once its pod waits for one."""
    await room(False)
    restart = begin(running, f"/api/kernels/{kernel}/restart")
    await until(lambda: without_machine(backend, kernel), "the new pod to wait for a machine")
    return restart


async def state(running: Gateway, kernel: str) -> tuple[str, str]:
    """Return what a gateway lists of a kernel: its state, and why it is dead."""
    _, models = await running.request("GET", "/api/kernels", headers=ANA)
    return next(((str(item["execution_state"]), str(item.get("reason", ""))) for item in models if item["id"] == kernel), ("", ""))


async def refused(running: Gateway, kernel: str) -> str:
    """Return why a gateway does not connect anybody to a kernel."""
    with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
        async with running.channels(kernel, headers=ANA):
            pass
    assert refusal.value.status == 409
    status, body = await running.request("POST", f"/api/kernels/{kernel}/interrupt", headers=ANA)
    assert status == 409
    return str(body["message"])


async def test_a_restart_goes_on(backend: Backend, room: Any, tmp_path: Path) -> None:
    """It is listed by the gateways that had it, and by those that come, and answers once its pod has a machine after all."""
    async with gateway(backend, tmp_path / "one") as one, gateway(backend, tmp_path / "two") as two:
        kernel = await start(one)
        await run(two, kernel, "x = 42")
        await cut_off(one, await restart_without(room, backend, one, kernel))
        async with gateway(backend, tmp_path / "three") as three:
            for running in (two, three):
                await is_in(running, kernel, "restarting", seconds=5)
                sentence = await refused(running, kernel)
                assert sentence.startswith("The kernel is being started, and cannot be used yet: no machine fits it so far: "), sentence
                _, now = await running.request("GET", f"/api/kernels/{kernel}/status", headers=ANA)
                assert (now["phase"], now["hopeless"]) == ("scheduling", False)
            await room(True)
            for running in (three, two):
                await is_in(running, kernel, "idle")
                assert await run(running, kernel, "print('x' in globals())") == "False\n"


async def is_in(running: Gateway, kernel: str, wanted: str, *, seconds: float = LATER) -> None:
    """Wait until a gateway lists a kernel in a state."""

    async def is_there() -> bool:
        return (await state(running, kernel))[0] == wanted

    await until(is_there, f"the kernel to be {wanted}", seconds=seconds)


async def test_a_restart_is_joined(backend: Backend, room: Any, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path / "one") as one, gateway(backend, tmp_path / "two") as two:
        kernel = await start(one)
        await cut_off(one, await restart_without(room, backend, one, kernel))
        (waiting,) = [item["metadata"]["uid"] for item in await backend.pods(kernel) if not item["spec"].get("nodeName")]
        again = begin(two, f"/api/kernels/{kernel}/restart")
        await until(lambda: is_logged(two, f"Kernel {kernel}: 'ana' starts 'small'"), "the restart to be under way")
        await room(True)
        assert (await again)[0] == 200
        assert await run(two, kernel, "6 * 7") == "42"
        assert waiting in {item["metadata"]["uid"] for item in await backend.pods(kernel)}


@pytest.mark.embedded
async def test_a_restart_that_is_refused_joins_the_one_that_was_not(backend: Backend, room: Any, tmp_path: Path) -> None:
    """A quota refuses the second one before its name is looked at. It ends nothing that is the first one's."""
    assert backend.embedded is not None
    async with gateway(backend, tmp_path / "one") as one, gateway(backend, tmp_path / "two") as two:
        kernel = await start(one)
        assert await listed(two) == {kernel}
        first = await restart_without(room, backend, one, kernel)
        fault = backend.embedded.faults.add(verb="create", resource="pods", times=1, status=403)
        second = begin(two, f"/api/kernels/{kernel}/restart")
        await until(lambda: fault.times == 0, "the second restart to be refused")
        await room(True)
        assert [(await answer)[0] for answer in (first, second)] == [200, 200]
        assert await run(one, kernel, "x = 1") == ""
        assert await run(two, kernel, "print(x)") == "1\n"


async def is_logged(running: Gateway, text: str) -> bool:
    return text in running.log


async def test_whoever_connects_during_a_restart_is_served_after_it(backend: Backend, room: Any, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path / "one") as one:
        kernel = await start(one)
        restart = await restart_without(room, backend, one, kernel)
        async with one.channels(kernel, headers=ANA) as channels:
            assert (await channels.receive())["content"] == {"execution_state": "restarting"}
            cell = await channels.send("shell", "execute_request", {"code": "6 * 7", "silent": False})
            await room(True)
            assert (await channels.finish(cell)).text == "42"
            assert (await restart)[0] == 200


async def test_a_restart_is_shut_down(backend: Backend, room: Any, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path / "one") as one, gateway(backend, tmp_path / "two") as two:
        kernel = await start(one)
        assert await listed(two) == {kernel}
        await cut_off(one, await restart_without(room, backend, one, kernel))
        assert (await two.request("DELETE", f"/api/kernels/{kernel}", headers=ANA))[0] == 204
        assert await listed(two) == set()
        await until(backend.is_empty, "its pods and its record to go")


async def test_what_nobody_waits_for_any_more(backend: Backend, room: Any, tmp_path: Path) -> None:
    """A restart leaves a dead kernel that says why; of a start, which nobody has seen, nothing is left, and its user has the slot back."""
    unseen = str(uuid.uuid4())
    async with gateway(backend, tmp_path / "one") as one, gateway(backend, tmp_path / "two") as two:
        kernel = await begun(one, 12)
        await room(False)
        restart = begin(one, f"/api/kernels/{kernel}/restart")
        first = begin(one, "/api/kernels", {"name": "small", "env": {"KERNEL_ID": unseen, "KERNEL_LAUNCH_TIMEOUT": "12"}})
        await until(lambda: without_machine(backend, kernel, unseen), "the pods to wait for a machine")
        await cut_off(one, restart, first)
        assert await listed(two) == {kernel}
        await is_in(two, kernel, "dead")
        _, reason = await state(two, kernel)
        assert reason.startswith("it could not be started again: it was not ready in time: no machine fits it so far: "), reason
        await until(lambda: only(backend, kernel), "the start to be given up", seconds=LATER)
        await room(True)
        assert (await two.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA))[0] == 200
        assert await run(two, kernel, "6 * 7") == "42"


async def test_a_dead_kernels_restart_is_no_first_start(backend: Backend, room: Any, tmp_path: Path) -> None:
    """Its user has seen it, although no pod is left to tell a gateway that has come since how often it was started."""
    async with gateway(backend, tmp_path / "one") as one:
        kernel = await begun(one, 12)
        await room(False)
        assert (await one.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA))[0] == 504
        await until(lambda: only(backend, kernel), "its pods to go")
    async with gateway(backend, tmp_path / "two") as two:
        await is_in(two, kernel, "dead")
        await cut_off(two, await restart_without(room, backend, two, kernel))
    async with gateway(backend, tmp_path / "three") as three:
        await is_in(three, kernel, "restarting", seconds=5)
        await is_in(three, kernel, "dead")
        await room(True)
        assert (await three.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA))[0] == 200
        assert await run(three, kernel, "6 * 7") == "42"


async def only(backend: Backend, kernel: str) -> bool:
    """Tell whether there is but one record, which is this kernel's, and no pod that waits."""
    (record, *others), pods = await backend.records(), await backend.pods()
    is_its = record["metadata"]["labels"]["elastic-kernels/kernel-id"] == kernel
    return is_its and not others and not pods


async def test_what_runs_and_never_answers(backend: Backend, tmp_path: Path) -> None:
    """It takes one of its user's slots, so that it is listed, and can be shut down, once nobody starts it any more."""
    kernel = str(uuid.uuid4())
    async with gateway(backend, tmp_path / "one") as one, gateway(backend, tmp_path / "two") as two:
        first = begin(one, "/api/kernels", {"name": "silent", "env": {"KERNEL_ID": kernel, "KERNEL_LAUNCH_TIMEOUT": "25"}})
        await until(lambda: runs(backend, kernel), "the pod to run")
        assert await listed(two) == set()
        await cut_off(one, first)
        await is_in(two, kernel, "starting", seconds=25 + LATER)
        sentence = "The kernel is being started, and cannot be used yet: its container runs, and the kernel does not answer yet."
        assert (await refused(two, kernel)).startswith(sentence)
        # a restart does not wait beside it, for the room that it takes
        again = begin(two, f"/api/kernels/{kernel}/restart")
        await until(lambda: has_starts(backend, kernel, ["2"]), "the first pod to give way to another")
        status, body = await again
        assert (status, body["message"].partition(" was ")[0]) == (504, "The kernel 'silent'")
        assert (await state(two, kernel))[0] == "dead"
        assert (await two.request("DELETE", f"/api/kernels/{kernel}", headers=ANA))[0] == 204
        await until(backend.is_empty, "its pod and its record to go")


async def has_starts(backend: Backend, kernel: str, starts: list[str]) -> bool:
    """Tell whether these are the starts of a kernel whose pods are there to stay: a kubelet may take ten seconds to let one go."""
    staying = [item["metadata"] for item in await backend.pods(kernel) if not item["metadata"].get("deletionTimestamp")]
    return [metadata["annotations"]["elastic-kernels/start"] for metadata in staying] == starts


@pytest.mark.embedded
async def test_a_restart_that_is_given_up_leaves_a_dead_kernel_everywhere(backend: Backend, room: Any, tmp_path: Path) -> None:
    """Also while the API server takes its time to delete the pod that came to nothing."""
    assert backend.embedded is not None
    async with gateway(backend, tmp_path / "one") as one, gateway(backend, tmp_path / "two") as two:
        kernel = await begun(one, 12)
        assert await listed(two) == {kernel}
        await room(False)
        deletes_late(backend, delay=4.0)
        status, body = await one.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA)
        assert status == 504, body
        reason = f"it could not be started again: {body['message']}"
        assert await state(one, kernel) == ("dead", reason)
        await is_in(two, kernel, "dead")
        assert await state(two, kernel) == ("dead", reason)
        await until(lambda: has_starts(backend, kernel, []), "its pods to go")
        # later than a kernel is removed that has ended and nobody wants, or whose record nobody explains
        await asyncio.sleep(40)
        assert [await state(running, kernel) for running in (one, two)] == [("dead", reason)] * 2


@pytest.mark.embedded
@pytest.mark.parametrize(
    "deletion",
    [{"delay": 5.0}, {"status": 403}],
    ids=["that is under way", "that is tried again"],
)
async def test_what_one_gateway_gives_up_is_not_ended_once_another_has_joined_it(
    backend: Backend, room: Any, tmp_path: Path, deletion: dict[str, Any]
) -> None:
    """It is everybody's kernel then, also where the start had been given up before, and could not be ended at once."""
    assert backend.embedded is not None
    async with gateway(backend, tmp_path / "one") as one, gateway(backend, tmp_path / "two") as two:
        kernel = await begun(one, 12)
        assert await listed(two) == {kernel}
        await room(False)
        late = deletes_late(backend, **deletion)
        assert (await one.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA))[0] == 504
        await until(lambda: has_happened(late), "the pod to be given up")
        again = begin(two, f"/api/kernels/{kernel}/restart")
        await until(lambda: is_logged(two, f"Kernel {kernel}: 'ana' starts 'small'"), "the restart to be under way")
        await room(True)
        assert (await again)[0] == 200
        assert await run(two, kernel, "x = 42") == ""
        # after what was late has come, and has been tried again
        await asyncio.sleep(8)
        await until(lambda: has_starts(backend, kernel, ["2"]), "the pod that was joined to be the only one")
        for running in (one, two):
            await is_in(running, kernel, "idle")
            assert await run(running, kernel, "print(x)") == "42\n"
        assert not await is_written(backend, "it could not be started again")


@pytest.mark.embedded
async def test_whoever_comes_too_late_to_join_ends_what_it_creates_instead(backend: Backend, room: Any, tmp_path: Path) -> None:
    """It has seen the pod of the other gateway's restart, and that is on its way out before it is joined."""
    assert backend.embedded is not None
    async with gateway(backend, tmp_path / "one") as one, gateway(backend, tmp_path / "two") as two:
        kernel = await begun(one, 12)
        assert await listed(two) == {kernel}
        first = await restart_without(room, backend, one, kernel)
        # the second one is to have time left once the first one has been given up ...
        await asyncio.sleep(8)
        faults = backend.embedded.faults
        refused = faults.add(verb="patch", resource="pods", times=1, status=409)
        faults.add(verb="get", resource="pods", times=1)
        # ... which is before it looks for the second time
        faults.add(verb="get", resource="pods", times=1, delay=6.0)
        second = begin(two, f"/api/kernels/{kernel}/restart")
        await until(lambda: has_happened(refused), "the pod not to be joined")
        assert (await first)[0] == 504
        await until(lambda: has_starts(backend, kernel, ["3"]), "the second restart to create a pod of its own")
        assert (await second)[0] == 504
        await until(lambda: has_starts(backend, kernel, []), "its pod to go", seconds=5)


async def has_happened(fault: Fault) -> bool:
    return fault.times == 0


@pytest.mark.embedded
async def test_a_restart_that_is_joined_and_fails_says_why(backend: Backend, room: Any, tmp_path: Path) -> None:
    assert backend.embedded is not None
    async with gateway(backend, tmp_path / "one") as one, gateway(backend, tmp_path / "two") as two:
        kernel = await start(one)
        await cut_off(one, await restart_without(room, backend, one, kernel))
        await is_in(two, kernel, "restarting")
        again = begin(two, f"/api/kernels/{kernel}/restart")

        async def joined() -> str | None:
            (found,) = [item["metadata"] for item in await backend.pods(kernel) if not item["spec"].get("nodeName")]
            return found["name"] if names.AWAITED in found["annotations"] else None

        waiting = await until(joined, "the restart to be joined")
        evicted = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory. "}
        backend.embedded.store.patch("pods", backend.namespace, waiting, {"status": evicted})
        status, body = await again
        reason = f"it could not be started again: {body['message']}"
        assert status == 500, body
        async with gateway(backend, tmp_path / "three") as three:
            for running in (two, three):
                await is_in(running, kernel, "dead")
            await until(lambda: is_written(backend, reason), "the record to say why the kernel is dead")
            assert await state(two, kernel) == ("dead", reason)


async def is_written(backend: Backend, reason: str) -> bool:
    return reason in str([item["metadata"] for item in await backend.records()])


@pytest.mark.embedded
async def test_a_restart_whose_pod_is_deleted_leaves_a_dead_kernel(backend: Backend, room: Any, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path / "one") as one:
        kernel = await start(one)
        await cut_off(one, await restart_without(room, backend, one, kernel))
        async with gateway(backend, tmp_path / "two") as two:
            await is_in(two, kernel, "restarting")
            for item in await backend.pods(kernel):
                await backend.api.delete("pods", backend.namespace, item["metadata"]["name"], grace=0)
            await is_in(two, kernel, "dead")
            assert (await state(two, kernel))[1] == "it could not be started again: its pod was deleted"
            await room(True)
            assert (await two.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA))[0] == 200
            assert await run(two, kernel, "6 * 7") == "42"


async def runs(backend: Backend, kernel: str) -> bool:
    return [item["status"].get("phase") for item in await backend.pods(kernel)] == ["Running"]
