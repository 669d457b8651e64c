"""Two users, each with a home of their own, and a volume that both share: what a notebook finds, and what nobody gets at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from elastic_kernels import hubnames
from elastic_kernels.profiles import Profile
from tests.conftest import Backend, gateway_on, profile
from tests.gateway import PLUGGED_IN, Gateway, until
from tests.volumes import IDENTITY, as_user, claim, files, is_in_phase, kernel, pod, refused, release, unbound, write

HOME = "/home/jovyan"
SHARED = {"name": "shared", "mount_path": "/shared", "source": {"persistentVolumeClaim": {"claimName": "efs"}}}
OWN_PART = {"name": "own", "mount_path": "/part", "source": {"persistentVolumeClaim": {"claimName": "efs"}}, "sub_path": "users-{username}"}


# what a pod of the embedded cluster mounts is elsewhere on this machine: its variables say where, its cells cannot know
PLACES = {"H": HOME, "S": "/shared", "P": "/part"}
NEW_CLAIM = {"size": "1Gi", "access_modes": ["ReadWriteMany"], "storage_class": ""}
PROFILES: dict[str, Profile] = {
    "here": profile("here", home=True, volumes=[SHARED, OWN_PART], environment=PLACES),
    "spot": profile("spot", home=True, volumes=[SHARED], spot=True, environment=PLACES),
    "spot-without": profile("spot-without", home={"unreachable": "leave-out"}, spot=True, environment=PLACES),
    "scratch": profile("scratch", home={"missing": "scratch"}, environment=PLACES),
    "created": profile("created", home={"missing": "create", "create": NEW_CLAIM}),
}


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    await asyncio.gather(
        claim(backend, "efs", "ReadWriteMany"),
        claim(backend, "claim-of-ana", "ReadWriteMany", "ana"),
        claim(backend, "claim-bia-old", "ReadWriteMany", "bia"),
        claim(backend, "claim-leo", "ReadWriteOnce", "leo"),
    )
    directory = tmp_path_factory.mktemp("gateway")
    async with gateway_on(backend, directory, PROFILES, environment=IDENTITY, configuration=PLUGGED_IN) as running:
        yield running
    await release(backend, "efs", "claim-of-ana", "claim-bia-old", "claim-leo")


async def test_a_notebook_finds_what_is_beside_it(backend: Backend, gateway: Gateway) -> None:
    async with kernel(gateway, "ana", "here") as run:
        await run(write("H", "work/helper.py", "def help(): return 'of ana'"))
        await run(write("S", "team.py", "def team(): return 'of all'"))
    # in her next kernel, on the other node, in the notebook's own folder
    async with kernel(gateway, "ana", "spot", KERNEL_WORKING_DIR=f"{HOME}/work") as run:
        (found,) = await backend.pods(run.id)
        assert found["spec"]["nodeName"] == "spot"
        cell = "import helper, os, sys; sys.path.append(os.environ['S']); import team; helper.help(), team.team()"
        assert await run(cell) == "('of ana', 'of all')"
        assert await run("open('helper.py').read()[:3]") == "'def'"
    # somebody else sees what is shared, and nothing of hers, whatever they ask for
    wishes = {"KERNEL_WORKING_DIR": "/home/ana", "KERNEL_VOLUMES": "[{name: x, persistentVolumeClaim: {claimName: claim-of-ana}}]"}
    async with kernel(gateway, "bia", "here", KERNEL_USERNAME="ana", **wishes) as run:
        assert await run(f"import os; os.path.exists(os.environ['S'] + '/team.py'), {files('H')}, {files('P')}") == "(True, [], [])"
        (found,) = await backend.pods(run.id)
        claims = {volume["persistentVolumeClaim"]["claimName"] for volume in found["spec"]["volumes"] if "persistentVolumeClaim" in volume}
        assert claims == {"efs", "claim-bia-old"}


async def test_a_home_that_one_machine_has_decides_where_the_kernel_runs(backend: Backend, gateway: Gateway) -> None:
    async with kernel(gateway, "leo", "spot") as run:  # nobody uses it yet
        await run(write("H", "here.txt", "x"))
    # whose machine is the home's until it is gone
    await until(backend.is_empty, "the kernel to go")
    async with pod(backend, "claim-leo", "import time; time.sleep(600)") as lab:
        await until(lambda: is_in_phase(backend, lab, "Running"), "leo's server")
        async with kernel(gateway, "leo", "here") as run:
            (found,) = await backend.pods(run.id)
            assert found["spec"]["nodeName"] == "general"
            assert await run(f"import os; {files('H')}") == "['here.txt']"
        await until(backend.is_empty, "the kernel to go")
        status, sentence = await refused(gateway, "leo", "spot")
        assert (status, sentence) == (
            409,
            "Your home volume is in use on the machine 'general' by the pod 'user-of-claim-leo', and only one machine at a time can use "
            "it; 'spot' cannot run there, because it runs on machines of another kind. Choose another kernel, or stop what uses the "
            "volume.",
        )
        async with kernel(gateway, "leo", "spot-without") as run:
            assert await run(f"import os; {files('H')}") == "[]"
    await until(backend.is_empty, "what was refused to leave nothing")


async def test_who_has_no_home(backend: Backend, gateway: Gateway) -> None:
    status, sentence = await refused(gateway, "new", "here")
    assert (status, sentence.partition(";")[0]) == (
        409,
        f"You have no home volume in the namespace '{backend.namespace}', and 'here' needs one",
    )
    async with kernel(gateway, "new", "scratch") as run:
        assert await run("import os; open(os.environ['H'] + '/x', 'w').write('y')") == "1"


async def test_a_claim_is_created_where_the_profile_says_so(backend: Backend, gateway: Gateway) -> None:
    body = {"name": "created", "env": {"KERNEL_LAUNCH_TIMEOUT": "4"}}
    # where nothing provides volumes, the pod waits for one, and the answer says so
    await gateway.request("POST", "/api/kernels", body, headers=as_user("Carl C."))
    label = f"{hubnames.USERNAME}={hubnames.labels('Carl C.')[0]}"
    made = await backend.api.list("persistentvolumeclaims", backend.namespace, labelSelector=label)
    (found,) = made["items"]
    assert found["metadata"]["name"] == f"claim-{hubnames.safe('Carl C.')}"
    assert found["metadata"]["annotations"][hubnames.USERNAME] == "Carl C."
    assert found["spec"]["accessModes"] == ["ReadWriteMany"]
    for model in (await gateway.request("GET", "/api/kernels", headers=as_user("Carl C.")))[1]:
        await gateway.request("DELETE", f"/api/kernels/{model['id']}", headers=as_user("Carl C."))


async def test_a_claim_that_is_somebody_elses_is_nobodys_home(backend: Backend, gateway: Gateway) -> None:
    """It has the labels that eve's would have, and is annotated for ana."""
    await unbound(backend, "claim-eve", "ana", label="eve")
    status, sentence = await refused(gateway, "eve", "here")
    assert (status, sentence[:27]) == (409, "You have no home volume in ")
    await backend.api.delete("persistentvolumeclaims", backend.namespace, "claim-eve")


@pytest.mark.embedded  # Kubernetes before 1.22 has no such mode, and refuses the claim
async def test_a_claim_that_one_pod_alone_can_use(backend: Backend, gateway: Gateway) -> None:
    await unbound(backend, "claim-max", "max", "ReadWriteOncePod")
    status, sentence = await refused(gateway, "max", "here")
    assert (status, sentence) == (
        409,
        "Your home volume, the claim 'claim-max', cannot be used by a kernel beside your server, because one pod alone can use it.",
    )
