"""What a launch, a running kernel and an ending make of an API server that is late, wrong, forgetful or away.

Faults can be injected into the embedded cluster only; the real one is killed and revived in tests/cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from elastic_kernels.embedded import EmbeddedCluster, Fault
from tests.conftest import Backend, gateway_on, profile
from tests.gateway import Gateway, until

pytestmark = [pytest.mark.embedded, pytest.mark.usefixtures("no_faults")]

# what a kubelet answers with, and a status of success, where the log is gone
NO_LOG = 'failed to try resolving symlinks in path "/var/log/pods/…/kernel/0.log": lstat /var/log/pods/…: no such file or directory'


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    profiles = {
        "small": profile("small", display_name="Small"),
        "missing-image": profile("missing-image", display_name="Missing", image="registry.example.com/missing:1"),
        "bad-image": profile("bad-image", image="Not An Image"),
        "exits": profile("exits", command=["python", "-c", "print('first', flush=True); exit('no licence')", "{connection_file}"]),
        "forgotten": profile("forgotten", command=["python", "-c", f"exit({NO_LOG!r})", "{connection_file}"]),
        "ends": profile("ends", command=["python", "-c", "print('done')", "{connection_file}"]),
        "no-command": profile("no-command", command=["no-such-program", "{connection_file}"]),
        "silent": profile("silent", command=["python", "-c", "import time; time.sleep(100)", "{connection_file}"], grace_period=1),
        "gpu": profile("gpu", display_name="GPU", gpu=1),
        "no-claim": profile(
            "no-claim", volumes=[{"name": "x", "mount_path": "/x", "source": {"persistentVolumeClaim": {"claimName": "absent"}}}]
        ),
    }
    async with gateway_on(backend, tmp_path_factory.mktemp("gateway"), profiles) as running:
        yield running


@pytest.fixture
def cluster(backend: Backend) -> EmbeddedCluster:
    assert backend.embedded is not None
    return backend.embedded


@pytest.fixture
async def no_faults(backend: Backend, cluster: EmbeddedCluster) -> AsyncIterator[None]:
    """Begin without faults and with fresh counts; end with nothing left of the test."""
    cluster.faults.clear()
    cluster.faults.requests.clear()
    yield
    cluster.faults.clear()
    await until(backend.is_empty, "everything that the test started to go")


@pytest.mark.parametrize(
    "fault",
    [
        Fault(verb="create", resource="pods", times=1, status=500),
        Fault(verb="create", resource="pods", times=2, status=429, retry_after=1),
        Fault(verb="create", resource="pods", times=1, lost=True),
        Fault(verb="create", resource="pods", times=1, truncated=True),
        Fault(verb="create", resource="secrets", times=1, lost=True),
        Fault(verb="create", resource="secrets", times=1, truncated=True),
        Fault(verb="create", resource="secrets", times=3, status=503),
        Fault(verb="create", delay=2.0),
        Fault(verb="list", times=2, status=410),
        Fault(verb="list", resource="pods", times=3, status=500),
    ],
    ids=lambda fault: (
        f"{fault.verb}-{fault.resource}-{fault.status or ''}{'lost' * fault.lost}{'cut' * fault.truncated}{fault.delay or ''}"
    ),
)
async def test_a_launch_outlasts_passing_faults_and_creates_one_pod(
    backend: Backend, gateway: Gateway, cluster: EmbeddedCluster, fault: Fault
) -> None:
    cluster.faults.active.append(fault)
    cluster.faults.cut_watches()
    kernel = await gateway.start("small")
    # what the gateway did not meet is not for the test to meet
    cluster.faults.clear()
    assert await gateway.run(kernel, "6 * 7") == "42"
    assert len(await backend.pods(kernel)) == 1
    assert len(await backend.records()) == 1
    await gateway.stop(kernel)


async def test_a_launch_outlasts_watches_that_are_cut_again_and_again(gateway: Gateway, cluster: EmbeddedCluster) -> None:
    launch = asyncio.ensure_future(gateway.start("small"))
    while not launch.done():
        cluster.faults.cut_watches()
        await asyncio.wait({launch}, timeout=0.05)
    assert await gateway.run(await launch, "6 * 7") == "42"
    await gateway.stop(await launch)


async def test_a_launch_begun_while_the_server_is_away_ends_well_or_says_so(
    backend: Backend, gateway: Gateway, cluster: EmbeddedCluster
) -> None:
    cluster.faults.away = True
    cluster.faults.cut_watches()
    status, sentence = await gateway.refused("small", KERNEL_LAUNCH_TIMEOUT="3")
    assert status == 504
    assert sentence == "The kernel 'Small' was not ready within 3 seconds: the cluster has not taken it yet."
    launch = asyncio.ensure_future(gateway.start("small", KERNEL_LAUNCH_TIMEOUT="60"))
    await asyncio.wait({launch}, timeout=2)
    cluster.faults.away = False
    kernel = await launch
    assert await gateway.run(kernel, "6 * 7") == "42"
    assert len(await backend.pods()) == 1
    await gateway.stop(kernel)


async def test_a_kernel_outlasts_a_server_that_is_away(gateway: Gateway, cluster: EmbeddedCluster) -> None:
    kernel = await gateway.start("small")
    await gateway.run(kernel, "x = 42")
    cluster.faults.away = True
    cluster.faults.cut_watches()
    # longer than two of the gateway's polls, each of which could take an absent pod for a dead one
    await asyncio.sleep(7)
    cluster.faults.away = False
    assert await gateway.run(kernel, "x") == "42"
    await gateway.stop(kernel)


async def test_an_ending_is_tried_until_it_succeeds(backend: Backend, gateway: Gateway, cluster: EmbeddedCluster) -> None:
    kernel = await gateway.start("small")
    cluster.faults.away = True
    cluster.faults.cut_watches()
    await gateway.stop(kernel)
    cluster.faults.away = False
    cluster.faults.add(verb="delete", times=3, status=500)
    await until(backend.is_empty, "the pod and the record to go", seconds=40)


async def test_a_client_that_hangs_up_leaves_nothing_behind_once_its_time_is_over(
    backend: Backend, gateway: Gateway, cluster: EmbeddedCluster
) -> None:
    launch = asyncio.ensure_future(gateway.start("gpu", KERNEL_LAUNCH_TIMEOUT="3"))
    await until(backend.pods, "the pod to be there")
    launch.cancel()
    await until(backend.is_empty, "the pod and the record to go", seconds=15)


@pytest.mark.parametrize(
    ("kernel", "status", "sentence"),
    [
        ("missing-image", 500, "The kernel 'Missing' cannot start: its image 'registry.example.com/missing:1' cannot be pulled: "),
        ("bad-image", 500, "The kernel 'bad-image' cannot start: its image's name 'Not An Image' is not valid."),
        ("exits", 500, "The kernel 'exits' cannot start: it ended with exit code 1. The end of its log: first no licence"),
        ("forgotten", 500, "The kernel 'forgotten' cannot start: it ended with exit code 1."),
        ("ends", 500, "The kernel 'ends' cannot start: it ended by itself with exit code 0. The end of its log: done"),
        ("no-command", 500, "The kernel 'no-command' cannot start: its image 'elastic-kernels/kernel-python:dev' has no 'no-such-program'"),
        ("no-claim", 500, "The kernel 'no-claim' cannot start: the volume claim 'absent' does not exist."),
    ],
)
async def test_a_launch_ends_as_soon_as_it_is_hopeless(gateway: Gateway, kernel: str, status: int, sentence: str) -> None:
    said = await asyncio.wait_for(gateway.refused(kernel, KERNEL_LAUNCH_TIMEOUT="50"), 20)
    assert said[0] == status
    assert said[1].startswith(sentence)
    assert ("The end of its log" in said[1]) == ("The end of its log" in sentence)
    assert "\n" not in said[1]


@pytest.mark.parametrize(
    ("kernel", "sentence"),
    [
        ("gpu", "The kernel 'GPU' was not ready within 3 seconds: no machine fits it so far: not enough nvidia.com/gpu is free"),
        ("silent", "The kernel 'silent' was not ready within 3 seconds: its container runs, and the kernel does not answer yet."),
    ],
)
async def test_a_launch_that_may_still_succeed_is_given_its_time(gateway: Gateway, kernel: str, sentence: str) -> None:
    status, said = await gateway.refused(kernel, KERNEL_LAUNCH_TIMEOUT="3")
    assert status == 504
    assert said.startswith(sentence)


async def test_a_refusal_by_the_cluster_is_passed_on(gateway: Gateway, cluster: EmbeddedCluster) -> None:
    cluster.faults.add(verb="create", resource="pods", status=403)
    status, sentence = await gateway.refused("small")
    assert (status, sentence) == (500, "The cluster refused the kernel 'Small': an injected fault: 403.")


async def test_a_pending_gpu_kernel_starts_when_a_node_offers_one(gateway: Gateway, cluster: EmbeddedCluster) -> None:
    launch = asyncio.ensure_future(gateway.start("gpu", KERNEL_LAUNCH_TIMEOUT="40"))
    await until(lambda: "not enough nvidia.com/gpu is free" in gateway.log.rpartition("queued")[2], "the gateway to say what it waits for")
    cluster.store.patch("nodes", "", "general", {"status": {"allocatable": {"nvidia.com/gpu": "1"}, "capacity": {"nvidia.com/gpu": "1"}}})
    try:
        await gateway.stop(await launch)
    finally:
        gone = {"status": {"allocatable": {"nvidia.com/gpu": None}, "capacity": {"nvidia.com/gpu": None}}}
        cluster.store.patch("nodes", "", "general", gone)


async def test_an_idle_kernel_costs_the_api_server_nothing(gateway: Gateway, cluster: EmbeddedCluster) -> None:
    kernel = await gateway.start("small")
    cluster.faults.requests.clear()
    await asyncio.sleep(7)
    assert not cluster.faults.requests
    await gateway.stop(kernel)


async def test_a_launch_costs_two_requests(gateway: Gateway, cluster: EmbeddedCluster) -> None:
    kernel = await gateway.start("small")
    # one that takes longer than usual has its pod's events looked at
    requests = {key: count for key, count in cluster.faults.requests.items() if key[0] != "watch" and key[1] != "events"}
    assert requests == {("create", "secrets"): 1, ("create", "pods"): 1}
    await gateway.stop(kernel)


def test_the_directory_of_the_cluster_has_no_pod_left(backend: Backend) -> None:
    pods = Path(backend.kubeconfig).parent / "pods"
    assert list(pods.iterdir()) == []
