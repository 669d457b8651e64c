"""What only a real cluster can show: limits that hold, nodes that are chosen, images that are not ours, SIGTERM to a container."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.cluster.nodes import one_gpu
from tests.conftest import Backend, gateway_on, profile
from tests.gateway import Gateway, until

JEG_COMMAND = [
    "python", "/usr/local/bin/kernel-launchers/python/scripts/launch_ipykernel.py",
    "--kernel-id", "{kernel_id}", "--port-range", "{port_range}", "--response-address", "{response_address}",
    "--public-key", "{public_key}", "--spark-context-initialization-mode", "none",
]  # fmt: skip


def of_the_kernel(**fields: Any) -> dict[str, Any]:
    """Return a profile's pod patch for the kernel's container."""
    return {"spec": {"containers": [{"name": "kernel", **fields}]}}


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    profiles = {
        "small": profile("small"),
        "tight": profile("tight", memory="200Mi"),
        "gpu": profile("gpu", display_name="GPU", gpu={"count": 1, "tolerations": ["nvidia.com/gpu:NoSchedule"]}),
        "spot": profile("spot", spot=True),
        "read-only": profile("read-only", security={"uid": 4321, "gid": 4321, "read_only_root": True}),
        "jeg": profile("jeg", image="elastic-kernels/test-jeg-python:dev", command=JEG_COMMAND),
        "brought": profile("brought", image="elastic-kernels/test-plain-ipykernel:dev", security={"uid": 1234, "gid": 1234}),
        "brought-bare": profile(
            "brought-bare",
            image="elastic-kernels/test-plain-ipykernel:dev",
            command=["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            grace_period=3,
        ),
        "missing-image": profile("missing-image", image="elastic-kernels/missing:1", image_pull_policy="Never"),
        "no-registry": profile("no-registry", image="localhost/missing:1"),
        "exits": profile("exits", command=["python", "-c", "raise SystemExit('no licence')", "{connection_file}"]),
        "no-command": profile("no-command", command=["no-such-program", "{connection_file}"]),
        "no-secret": profile("no-secret", pod=of_the_kernel(envFrom=[{"secretRef": {"name": "absent"}}])),
        "huge": profile("huge", display_name="Huge", memory="4Ti"),
        "refused": profile("refused", pod=of_the_kernel(volumeMounts=[{"name": "x", "mountPath": "/x"}])),
    }
    async with gateway_on(backend, tmp_path_factory.mktemp("gateway"), profiles) as running:
        yield running


async def test_the_memory_limit_is_the_cgroups_and_kills_that_kernel_alone(backend: Backend, gateway: Gateway) -> None:
    tight, other = await asyncio.gather(gateway.start("tight"), gateway.start("small"))
    read = "import glob; print(open((glob.glob('/sys/fs/cgroup/memory/memory.limit_in_bytes') + ['/sys/fs/cgroup/memory.max'])[0]).read())"
    assert int(await gateway.run(tight, read)) == 200 * 2**20
    await gateway.run(other, "x = 1")
    (pod,) = await backend.pods(tight)
    async with gateway.channels(tight) as channels:
        await channels.send("shell", "execute_request", {"code": "y = b'x' * 400_000_000", "silent": False, "allow_stdin": False})

        async def killed() -> bool:
            now = await backend.api.get("pods", backend.namespace, pod["metadata"]["name"])
            return now is None or "OOMKilled" in str(now["status"])

        await until(killed, "the kernel to be killed")
    assert await gateway.run(other, "x") == "1"
    await gateway.stop(other)
    status, _ = await gateway.request("DELETE", f"/api/kernels/{tight}")
    assert status in (204, 404)  # Enterprise Gateway removes a dead kernel by itself when nobody is connected


async def test_a_gpu_kernel_waits_for_a_node_that_has_one(backend: Backend, gateway: Gateway) -> None:
    status, sentence = await gateway.refused("gpu", KERNEL_LAUNCH_TIMEOUT="4")
    assert status == 504
    reason = "no machine fits it so far: not enough nvidia.com/gpu is free"
    assert sentence.startswith(f"The kernel 'GPU' was not ready within 4 seconds: {reason}")
    launch = asyncio.ensure_future(gateway.start("gpu", KERNEL_LAUNCH_TIMEOUT="60"))
    await until(backend.pods, "the pod to be there")
    async with one_gpu(backend.kubeconfig, "general"):
        kernel = await launch
        (pod,) = await backend.pods(kernel)
        assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        await gateway.stop(kernel)


async def test_spot_profiles_run_on_spot_nodes_and_others_never_do(backend: Backend, gateway: Gateway) -> None:
    spot, *others = await asyncio.gather(*(gateway.start(name) for name in ("spot", "small", "small", "small")))
    assert (await backend.pods(spot))[0]["spec"]["nodeName"] == "spot"
    assert {(await backend.pods(kernel))[0]["spec"]["nodeName"] for kernel in others} == {"general"}
    await asyncio.gather(*(gateway.stop(kernel) for kernel in (spot, *others)))


async def test_any_uid_without_a_writable_root(gateway: Gateway) -> None:
    kernel = await gateway.start("read-only")
    code = """
import os, pathlib
try:
    pathlib.Path('/opt/x').write_text('')
except OSError as error:
    print(os.getuid(), os.getgid(), error.strerror)
pathlib.Path.home().joinpath('x').write_text('')
pathlib.Path('/tmp/x').write_text('')
print(open('/proc/self/status').read().split('NoNewPrivs:')[1].split()[0], os.path.exists('/var/run/secrets/kubernetes.io'))
"""
    assert await gateway.run(kernel, code) == "4321 4321 Read-only file system\n1 False\n"
    await gateway.stop(kernel)


@pytest.mark.parametrize("name", ["brought", "brought-bare"])
async def test_an_image_that_a_user_brings(gateway: Gateway, name: str) -> None:
    kernel = await gateway.start(name)
    async with gateway.channels(kernel) as channels:
        assert (await channels.execute("6 * 7")).text == "42"
        cell = await channels.begin("import time; time.sleep(60)")
        await gateway.request("POST", f"/api/kernels/{kernel}/interrupt")
        assert (await asyncio.wait_for(channels.finish(cell), 10)).content["ename"] == "KeyboardInterrupt"
    await gateway.stop(kernel)


async def test_an_image_of_enterprise_gateway_calls_back(backend: Backend, gateway: Gateway) -> None:
    kernel = await gateway.start("jeg")
    async with gateway.channels(kernel) as channels:
        assert (await channels.execute("6 * 7")).text == "42"
        cell = await channels.begin("import time; time.sleep(60)")
        assert (await gateway.request("POST", f"/api/kernels/{kernel}/interrupt"))[0] == 204
        assert (await asyncio.wait_for(channels.finish(cell), 10)).content["ename"] == "KeyboardInterrupt"
        await channels.execute("x = 1")
    assert (await gateway.request("POST", f"/api/kernels/{kernel}/restart"))[0] == 200
    assert await gateway.run(kernel, "print('x' in globals())") == "False\n"
    await gateway.stop(kernel)


async def test_a_deleted_pods_kernel_runs_its_exit_handlers(backend: Backend, gateway: Gateway) -> None:
    """What a drained node or a reclaimed spot machine does to a kernel, while a cell is running."""
    kernel = await gateway.start("small")
    async with gateway.channels(kernel) as channels:
        farewell = "open('/dev/termination-log', 'w').write('farewell')"
        await channels.execute(f"import atexit, time; atexit.register(lambda: {farewell})")
        await channels.begin("time.sleep(60)")
        (pod,) = await backend.pods(kernel)
        name = pod["metadata"]["name"]
        last_words = asyncio.ensure_future(backend.last_words(name))
        begin = time.monotonic()
        await backend.api.delete("pods", backend.namespace, name, grace=60)
        assert await last_words == "farewell"
        assert time.monotonic() - begin < 50, "it ended by its grace period alone"
    await gateway.request("DELETE", f"/api/kernels/{kernel}")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing-image", "its image 'elastic-kernels/missing:1' is not on the node and may not be pulled."),
        ("no-registry", "its image 'localhost/missing:1' cannot be pulled: "),
        ("exits", "it ended with exit code 1. The end of its log: no licence"),
        ("no-command", "its image 'elastic-kernels/kernel-python:dev' has no 'no-such-program'."),
        ("no-secret", 'its container cannot be configured: secret "absent" not found.'),
    ],
)
async def test_a_launch_ends_as_soon_as_it_is_hopeless(backend: Backend, gateway: Gateway, name: str, sentence: str) -> None:
    # a pull that fails in passing is given two attempts, and the kubelet takes its time between them
    status, said = await asyncio.wait_for(gateway.refused(name, KERNEL_LAUNCH_TIMEOUT="120"), 90)
    assert status == 500
    assert said.startswith(f"The kernel '{name}' cannot start: {sentence}")
    await until(backend.is_empty, "the pod and its record to go")


async def test_an_unschedulable_kernel_is_told_why(gateway: Gateway) -> None:
    status, sentence = await gateway.refused("huge", KERNEL_LAUNCH_TIMEOUT="3")
    assert status == 504
    assert sentence.startswith("The kernel 'Huge' was not ready within 3 seconds: no machine fits it so far: not enough memory is free")


async def test_a_pod_that_the_cluster_refuses_is_told_why(backend: Backend, gateway: Gateway) -> None:
    status, sentence = await gateway.refused("refused")
    assert status == 500
    assert sentence.startswith("The cluster refused the kernel 'refused': Pod ")
    assert 'volumeMounts[1].name: Not found: "x"' in sentence or 'volumeMounts[0].name: Not found: "x"' in sentence
    await until(backend.is_empty, "the record to go")
