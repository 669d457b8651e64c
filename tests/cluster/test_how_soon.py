"""How soon a user knows what Kubernetes knows: each way in which a kernel fails, provoked on a real cluster, and timed."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from elastic_kernels.cluster import Object
from tests.cluster.conftest import connected
from tests.cluster.faults import SPOT_KUBELET, control, quota, tainted, whole, without_spot_kubelet
from tests.cluster.witness import MARGIN, SECONDS, Witness, told, witness
from tests.conftest import Backend, gateway_on, profile
from tests.gateway import PLUGGED_IN, Channels, Gateway, until

IDENTITY = {"ELASTIC_KERNELS_IDENTITY": "header", "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.0/8"}
ANA = {"X-Forwarded-User": "ana"}
UNREACHABLE = "node.kubernetes.io/unreachable"
Figure = Callable[[str], None]


def of_the_kernel(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "kernel", **fields}]}}


def command(code: str) -> list[str]:
    return ["python", "-c", code, "{connection_file}"]


ABSENT_CLAIM = {"name": "x", "mount_path": "/x", "source": {"persistentVolumeClaim": {"claimName": "absent"}}}
PROFILES = {
    "small": profile("small", grace_period=2),
    "tight": profile("tight", memory="200Mi"),
    "spot": profile("spot", spot=True, grace_period=2),
    "again": profile("again", spot=True, restart_after_loss=True, on_demand_after_loss=True, grace_period=2),
    "huge": profile("huge", memory="4Ti"),
    "no-claim": profile("no-claim", volumes=[ABSENT_CLAIM]),
    "no-secret": profile("no-secret", pod=of_the_kernel(envFrom=[{"secretRef": {"name": "absent"}}])),
    "never-pulled": profile("never-pulled", image="elastic-kernels/missing:1", image_pull_policy="Never"),
    "no-image": profile("no-image", image="Not An Image"),
    "no-registry": profile("no-registry", image="localhost/missing:1"),
    "exits": profile("exits", command=command("raise SystemExit('no licence')")),
    "no-command": profile("no-command", command=["no-such-program", "{connection_file}"]),
}


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    directory = tmp_path_factory.mktemp("gateway")
    async with gateway_on(backend, directory, PROFILES, environment=IDENTITY, configuration=PLUGGED_IN) as running:
        yield running


@pytest.fixture(scope="module")
async def kubernetes(backend: Backend) -> AsyncIterator[Witness]:
    async with witness(backend.api, backend.namespace) as watching:
        yield watching


async def start(gateway: Gateway, name: str) -> str:
    status, body = await gateway.request("POST", "/api/kernels", {"name": name}, headers=ANA)
    assert status == 201, body
    return str(body["id"])


async def stop(gateway: Gateway, *kernels: str) -> None:
    for kernel in kernels:
        assert (await gateway.request("DELETE", f"/api/kernels/{kernel}", headers=ANA))[0] == 204


def begin(gateway: Gateway, name: str) -> tuple[str, asyncio.Future[tuple[int, Any]]]:
    """Begin a start, and return its kernel's id and its answer to come."""
    kernel_id = str(uuid.uuid4())
    body = {"name": name, "env": {"KERNEL_ID": kernel_id, "KERNEL_LAUNCH_TIMEOUT": "90"}}
    return kernel_id, asyncio.ensure_future(gateway.request("POST", "/api/kernels", body, headers=ANA))


async def hears(channels: Channels, text: str, seconds: float = 60.0) -> float:
    """Return when the client was told something on the kernel's websocket."""
    end = time.monotonic() + seconds
    while text not in str((await asyncio.wait_for(channels.receive(), end - time.monotonic()))["content"]):
        pass
    return time.monotonic()


def on_time(figure: Figure, what: str, knew: float, was_told: float, means: str = "the status") -> None:
    figure(f"{what}: {means} says it {was_told - knew:.2f} s after Kubernetes knows")
    assert was_told - knew <= SECONDS + MARGIN


def state(item: Object) -> str:
    """Return what a pod's status says of its containers."""
    return str(item["status"].get("containerStatuses"))


def missing_claim(item: Object) -> bool:
    return '"absent" not found' in item["message"]


def second_pull(item: Object) -> bool:
    return bool(item["message"].startswith("Failed to pull image") and item["count"] >= 2)


@pytest.mark.parametrize(
    ("name", "kind", "fact", "sentence"),
    [
        ("no-claim", "events", missing_claim, "the volume claim 'absent' does not exist."),
        ("no-secret", "pods", lambda item: "CreateContainerConfigError" in state(item), "its container cannot be configured: "),
        ("never-pulled", "pods", lambda item: "ErrImageNeverPull" in state(item), "its image 'elastic-kernels/missing:1' is not on "),
        ("no-image", "pods", lambda item: "InvalidImageName" in state(item), "its image's name 'Not An Image' is not valid."),
        # one failure may pass
        ("no-registry", "events", second_pull, "its image 'localhost/missing:1' cannot be pulled: "),
        ("exits", "pods", lambda item: "exitCode" in state(item), "it ended with exit code 1. The end of its log: no licence"),
        ("no-command", "pods", lambda item: "exitCode" in state(item), "its image 'elastic-kernels/kernel-python:dev' has no "),
    ],
)  # fmt: skip
async def test_a_start_that_cannot_succeed(
    gateway: Gateway, kubernetes: Witness, figure: Figure, name: str, kind: str, fact: Callable[[Object], bool], sentence: str
) -> None:
    since = time.monotonic()
    kernel, launch = begin(gateway, name)
    status, body = await launch
    answered = time.monotonic()
    assert (status, body["message"].startswith(f"The kernel '{name}' cannot start: {sentence}")) == (500, True), body
    on_time(figure, f"start of {name!r}", await kubernetes.first(kind, fact, since, kernel), answered, "the launch's answer")


async def test_a_start_that_waits_for_a_machine(gateway: Gateway, kubernetes: Witness, figure: Figure) -> None:
    since = time.monotonic()
    kernel, launch = begin(gateway, "huge")
    said, body = await told(gateway, kernel, ANA, "no machine fits it so far: not enough memory is free")
    knew = await kubernetes.first("pods", lambda item: "Unschedulable" in str(item["status"]), since, kernel)
    assert (body["phase"], body["hopeless"]) == ("scheduling", False)
    on_time(figure, "unschedulable", knew, said)
    launch.cancel()


async def test_a_start_that_waits_for_a_quota(backend: Backend, gateway: Gateway, figure: Figure) -> None:
    async with quota(backend, "400Mi"):
        first = await start(gateway, "small")
        # Kubernetes says it in its answer to the pod's creation, so that it knows it later than this
        asked = time.monotonic()
        kernel, launch = begin(gateway, "small")
        said, body = await told(gateway, kernel, ANA, "the quota 'kernels' of its namespace has no room for it")
        assert (body["phase"], body["hopeless"]) == ("queued", False)
        on_time(figure, "quota", asked, said)
        launch.cancel()
        await stop(gateway, first)


@pytest.mark.parametrize(
    ("name", "code", "fact", "sentence"),
    [
        ("tight", "y = b'x' * 400_000_000", "OOMKilled", "it used more memory than its limit of 200Mi and was ended"),
        ("small", "import os; os._exit(3)", "exitCode", "it ended with exit code 3"),
    ],
)
async def test_a_kernel_that_ends(
    gateway: Gateway, kubernetes: Witness, figure: Figure, name: str, code: str, fact: str, sentence: str
) -> None:
    kernel = await start(gateway, name)
    since = time.monotonic()
    async with gateway.channels(kernel, headers=ANA) as channels:
        telling = asyncio.ensure_future(told(gateway, kernel, ANA, sentence))
        await channels.send("shell", "execute_request", {"code": code, "silent": False, "allow_stdin": False})
        heard = await hears(channels, sentence)
    knew = await kubernetes.first("pods", lambda item: fact in state(item), since, kernel)
    on_time(figure, fact, knew, (await telling)[0])
    on_time(figure, fact, knew, heard, "the cell")
    await stop(gateway, kernel)


async def test_a_taint_that_drives_kernels_away(backend: Backend, gateway: Gateway, kubernetes: Witness, figure: Figure) -> None:
    kernel = await start(gateway, "spot")
    since = time.monotonic()
    async with gateway.channels(kernel, headers=ANA) as channels:
        await channels.begin("import time; time.sleep(60)")
        hearing = asyncio.ensure_future(hears(channels, "its machine is closed to it by a taint"))
        async with connected(backend.kubeconfig) as core, tainted(core, "example.com/repair", "NoExecute"):
            said, _ = await told(gateway, kernel, ANA, "it is being ended: its machine is closed to it by a taint")
            knew = await kubernetes.first("pods", lambda item: "deletionTimestamp" in item["metadata"], since, kernel)
            # the notice comes first
            on_time(figure, "eviction by a taint", knew, await hearing, "the cell")
            on_time(figure, "eviction by a taint", knew, said)
            # the cell has ended with the SIGTERM by then
            heard = await hears(channels, "{'execution_state': 'dead'}")
            gone = await kubernetes.first("pods", lambda item: not item["status"] or "terminated" in state(item), since, kernel)
            on_time(figure, "the end of an evicted pod", gone, heard, "the kernel's websocket")
    _, model = await gateway.request("GET", f"/api/kernels/{kernel}", headers=ANA)
    assert (model["execution_state"], model["reason"]) == ("dead", "its machine is closed to it by a taint")
    await stop(gateway, kernel)


def is_unheard(node: Object) -> bool:
    return any(taint["key"] == UNREACHABLE for taint in node["spec"].get("taints") or ())


async def test_a_machine_that_comes_back(backend: Backend, gateway: Gateway, kubernetes: Witness, figure: Figure) -> None:
    kernel = await start(gateway, "spot")
    async with gateway.channels(kernel, headers=ANA) as channels:
        await channels.execute("x = 42")
        async with without_spot_kubelet(backend.kubeconfig):
            since = time.monotonic()
            said, body = await told(gateway, kernel, ANA, "its machine does not answer any more; it may come back")
            assert (body["phase"], body["hopeless"]) == ("unreachable", False)
            on_time(figure, "a silent kubelet", await kubernetes.first("nodes", is_unheard, since), said)
            # whom Kubernetes does not hear still works
            assert (await channels.execute("x")).result == "42"
        await told(gateway, kernel, ANA, "it is ready")
        assert (await channels.execute("x")).result == "42"
    await stop(gateway, kernel)


async def test_a_machine_that_is_lost(backend: Backend, gateway: Gateway, kubernetes: Witness, figure: Figure) -> None:
    """As a spot machine's end is seen where nobody announces it: its kubelet is silent, and then its node is deleted."""
    kept, moves = await asyncio.gather(start(gateway, "spot"), start(gateway, "again"))
    pods = {kernel: (await backend.pods(kernel))[0] for kernel in (kept, moves)}
    assert {pod["spec"]["nodeName"] for pod in pods.values()} == {"spot"}
    async with gateway.channels(kept, headers=ANA) as channels, gateway.channels(moves, headers=ANA) as others:
        await channels.begin("import time; time.sleep(300)")
        await others.execute("x = 1")
        # who has just been started may be better known than the machine
        await asyncio.sleep(5)
        await control("kill", SPOT_KUBELET)
        try:
            async with connected(backend.kubeconfig) as core:
                since = time.monotonic()
                await core.delete_node("spot")
            said, body = await told(gateway, kept, ANA, "its machine no longer exists")
            assert (body["phase"], body["hopeless"]) == ("unreachable", False)
            deleted = await kubernetes.first("nodes", lambda item: item["metadata"]["name"] == "spot" and not item["status"], since)
            on_time(figure, "a node that was deleted", deleted, said)
            on_time(
                figure, "a node that was deleted", deleted, await hears(channels, "The kernel: its machine no longer exists."), "the cell"
            )
            # the cluster takes the pods of such a node away in its own time
            heard = await hears(channels, "The kernel is dead: its machine no longer exists.", 120)
            ended = await kubernetes.first("pods", lambda item: not item["status"], since, kept)
            figure(f"the pods of a node that was deleted: Kubernetes takes them away after {ended - since:.0f} s")
            on_time(figure, "the end of its pods", ended, heard, "the cell")
        finally:
            await control("revive", SPOT_KUBELET)
            await whole(backend.kubeconfig)
    assert (await gateway.request("GET", f"/api/kernels/{kept}", headers=ANA))[1]["reason"] == "its machine no longer exists"

    async def runs_elsewhere() -> bool:
        _, model = await gateway.request("GET", f"/api/kernels/{moves}", headers=ANA)
        return model["execution_state"] == "idle" and {pod["spec"]["nodeName"] for pod in await backend.pods(moves)} == {"general"}

    await until(runs_elsewhere, "the kernel to be started on demand capacity")
    async with gateway.channels(moves, headers=ANA) as others:
        assert (await others.execute("print('x' in globals())")).text == "False\n"
    assert (await gateway.request("POST", f"/api/kernels/{kept}/restart", headers=ANA))[0] == 200
    await stop(gateway, kept, moves)
