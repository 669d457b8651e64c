"""Volumes as only a real node has them: full, root's own, never bound, in the way; and images that cannot be a kernel's."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from elastic_kernels import names
from elastic_kernels.cluster import Object
from tests.conftest import KERNEL_IMAGE, Backend, gateway_on, profile
from tests.gateway import PLUGGED_IN, Gateway, until
from tests.volumes import IDENTITY, claim, is_in_phase, kernel, path_of, refused, release, unbound

ROOT = Path(__file__).parents[2]
HOME = {"home": {"mount_path": "/home/jovyan"}, "packages": True}
UNMADE = {"name": "unmade", "mount_path": "/unmade", "claim": "roots", "sub_path": "nobody/{username}"}
MADE = {"name": "made", "mount_path": "/made", "claim": "roots", "sub_path": "users/{username}", "make_sub_path": True}
COVERING = {"name": "covering", "mount_path": "/opt/kernel", "source": {"emptyDir": {}}}
# where a kubelet mounts: not everywhere may a container look at process 1
AS_THE_KUBELET = """
kubelet=$(grep -lx kubelet /proc/[0-9]*/comm | head -n 1 | cut -d/ -f3)
exec nsenter --target "$kubelet" --mount -- sh -c "$1"
"""
NOT_A_KERNEL = "elastic-kernels/gateway:dev"
PROFILES = {
    "home": profile("home", **HOME),
    "unmade": profile("unmade", volumes=[UNMADE, MADE]),
    "covering": profile("covering", volumes=[COVERING]),
    "images": profile("images", named_images={"No kernel": NOT_A_KERNEL}, images=["localhost/*:*"]),
}


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    await asyncio.gather(claim(backend, "roots", "ReadWriteMany", permissions=0o755), claim(backend, "claim-ana", "ReadWriteMany", "ana"))
    directory = tmp_path_factory.mktemp("gateway")
    async with gateway_on(backend, directory, PROFILES, environment=IDENTITY, configuration=PLUGGED_IN) as running:
        yield running
    await release(backend, "roots", "claim-ana")


@asynccontextmanager
async def full(backend: Backend, name: str) -> AsyncIterator[None]:
    """Have a claim be full: what is mounted over its folder on the node has no room."""
    path = path_of(backend, name)
    async with _on_the_node(backend, f"mount -t tmpfs -o size=64k,mode=777 tmpfs {path} && dd if=/dev/zero of={path}/all bs=1k || true"):
        pass
    try:
        yield
    finally:
        async with _on_the_node(backend, f"umount -l {path}"):
            pass


@asynccontextmanager
async def _on_the_node(backend: Backend, command: str) -> AsyncIterator[None]:
    """Run a shell command as the root of the node ``general``."""
    container = {
        "name": "main",
        "image": KERNEL_IMAGE,
        "command": ["sh", "-c", AS_THE_KUBELET, "sh", command],
        "securityContext": {"privileged": True, "runAsUser": 0},
    }
    spec = {"restartPolicy": "Never", "nodeName": "general", "hostPID": True, "containers": [container]}
    metadata: Object = {"name": "root-of-the-node", "namespace": backend.namespace, "labels": {}}
    await backend.api.create("pods", {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    try:
        await until(lambda: is_in_phase(backend, metadata["name"], "Succeeded"), f"{command!r} on the node")
        yield
    finally:
        await backend.api.delete("pods", backend.namespace, metadata["name"], grace=0)

        async def is_gone() -> bool:
            return await backend.api.get("pods", backend.namespace, metadata["name"]) is None

        await until(is_gone, "the pod to go")


async def test_a_home_that_is_full(backend: Backend, gateway: Gateway) -> None:
    """The kernel starts, so that its user can make room, and says what there is no room for."""
    async with full(backend, "claim-ana"):
        log = await log_of_a_start(backend, gateway, "home")
        assert "elastic-kernels: nothing can be written to the home /home/jovyan (No space left on device)" in log
        assert "elastic-kernels: packages cannot be kept in /home/jovyan/.elastic-kernels/packages/" in log
        async with kernel(gateway, "ana", "home") as run:
            assert await run("import os; os.getcwd(), os.path.exists('all')") == "('/home/jovyan', True)"
            assert await run("try:\n    open('x', 'w').write('y' * 100_000)\nexcept OSError as error:\n    print(error.strerror)") == (
                "No space left on device\n"
            )
            assert await run("os.remove('all'); open('x', 'w').write('y')") == "1"


async def log_of_a_start(backend: Backend, gateway: Gateway, profile: str) -> str:
    """Return what a kernel says at its start; where two kubelets share a machine, each clears away the other's logs once a minute."""
    for _ in range(3):
        async with kernel(gateway, "ana", profile) as run:
            (pod,) = await backend.pods(run.id)
            log = await backend.api.pod_log(backend.namespace, pod["metadata"]["name"], names.CONTAINER, lines=20)
        if not log.startswith("failed to try resolving symlinks"):
            return log
    raise AssertionError(f"there is no log of three starts: {log}")


async def test_a_folder_is_roots_unless_it_is_made_for_its_user(backend: Backend, gateway: Gateway) -> None:
    async with kernel(gateway, "ana", "unmade") as run:
        look = "import os; [(os.stat(path).st_uid, os.access(path, os.W_OK)) for path in ('/unmade', '/made')]"
        assert await run(look) == "[(0, False), (1000, True)]"
        await run("open('/made/x', 'w').write('y')")
    async with kernel(gateway, "ana", "unmade") as run:
        assert await run("open('/made/x').read()") == "'y'"


async def test_a_volume_that_covers_the_images_python(backend: Backend, gateway: Gateway) -> None:
    assert await refused(gateway, "ana", "covering") == (
        500,
        f"The kernel 'covering' cannot start: its image '{KERNEL_IMAGE}' has no 'python', or a volume covers it (there is one at "
        "/opt/kernel).",
    )
    await until(backend.is_empty, "the pod and its record to go")


async def test_an_image_that_is_no_kernels(backend: Backend, gateway: Gateway) -> None:
    status, sentence = await refused(gateway, "ana", "images", KERNEL_IMAGE="No kernel")
    assert status == 500
    assert sentence.startswith("The kernel 'images' cannot start: it ended with exit code 69. The end of its log: ")
    assert "this image's /opt/gateway/bin/python cannot import ipykernel" in sentence
    # an image without any Python at all
    status, sentence = await refused(gateway, "ana", "images", KERNEL_IMAGE="localhost/pause:1")
    assert (status, sentence) == (500, "The kernel 'images' cannot start: its image 'localhost/pause:1' has no 'python'.")
    status, sentence = await refused(gateway, "ana", "images", KERNEL_IMAGE="localhost/absent:1", KERNEL_LAUNCH_TIMEOUT="90")
    assert (status, sentence[:82]) == (500, "The kernel 'images' cannot start: its image 'localhost/absent:1' cannot be pulled:")
    assert await refused(gateway, "ana", "images", KERNEL_IMAGE="registry.example.com/mine:1") == (
        403,
        "The image 'registry.example.com/mine:1' is not one that 'images' allows; ask for 'No kernel' or one that matches localhost/*:*.",
    )
    await until(backend.is_empty, "the pod and its record to go")


async def test_a_claim_that_never_binds(backend: Backend, gateway: Gateway) -> None:
    await unbound(backend, "claim-leo", "leo")
    status, sentence = await refused(gateway, "leo", "home", KERNEL_LAUNCH_TIMEOUT="5")
    assert status == 504
    assert sentence.startswith(
        "The kernel 'home' was not ready within 5 seconds: no machine fits it so far: a volume claim has no volume yet"
    )
    assert sentence.endswith("""; of the volume claim 'claim-leo' it is said: storageclass.storage.k8s.io "absent" not found.""")
    await until(backend.is_empty, "the pod and its record to go")


def test_the_manifests_for_efs(backend: Backend) -> None:
    """Kubernetes takes them; there is no EFS here to mount."""
    for file in ("static", "dynamic"):
        text = (ROOT / "docs" / "efs" / f"{file}.yaml").read_text().replace("namespace: elastic-kernels", "namespace: default")
        command = ["kubectl", "--kubeconfig", str(backend.kubeconfig), "create", "--dry-run=server", "-f", "-"]
        run = subprocess.run(command, input=text, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
