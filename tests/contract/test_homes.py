"""Two users, each with a home of their own, and a volume that both share: what a notebook finds, and what nobody gets at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from elastic_kernels import hubnames
from elastic_kernels.cluster import Object
from elastic_kernels.profiles import Profile
from tests.conftest import KERNEL_IMAGE, Backend, gateway_on, profile
from tests.gateway import PLUGGED_IN, Gateway, until

HOME = "/home/jovyan"
SHARED = {"name": "shared", "mount_path": "/shared", "source": {"persistentVolumeClaim": {"claimName": "efs"}}}
OWN_PART = {"name": "own", "mount_path": "/part", "source": {"persistentVolumeClaim": {"claimName": "efs"}}, "sub_path": "users-{username}"}
IDENTITY = {"ELASTIC_KERNELS_IDENTITY": "header", "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.1"}


async def claim(backend: Backend, name: str, mode: str, user: str | None = None) -> None:
    """Make a claim that is bound to a folder of the nodes' machine, and let kernels write to it."""
    labels = {hubnames.USERNAME: hubnames.labels(user)[0], "component": "singleuser-storage"} if user else {}
    annotations = {hubnames.USERNAME: user} if user else {}
    metadata = {"name": name, "namespace": backend.namespace, "labels": labels, "annotations": annotations}
    spec: Object = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": ""}
    if backend.embedded is None:
        volume = f"{backend.namespace}-{name}"
        await backend.api.create(
            "persistentvolumes",
            {
                "metadata": {"name": volume, "namespace": "", "labels": {}},
                "spec": {
                    "capacity": {"storage": "1Gi"},
                    "accessModes": [mode],
                    "hostPath": {"path": f"/var/tmp/elastic-kernels-test/{volume}", "type": "DirectoryOrCreate"},
                    "claimRef": {"namespace": backend.namespace, "name": name},
                    "persistentVolumeReclaimPolicy": "Retain",
                    "storageClassName": "",
                },
            },
        )
        spec["volumeName"] = volume
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
    await backend.api.create(
        "persistentvolumeclaims", body | ({"status": {"accessModes": [mode], "phase": "Bound"}} if backend.embedded else {})
    )

    async def is_bound() -> bool:
        found = await backend.api.get("persistentvolumeclaims", backend.namespace, name)
        return found is not None and found["status"].get("phase") == "Bound"

    await until(is_bound, f"the claim {name} to be bound", seconds=90)
    async with pod(backend, name, "import os; os.chmod('/v', 0o777)", security={"runAsUser": 0}) as prepared:
        await until(lambda: _phase(backend, prepared, "Succeeded"), f"the claim {name} to be prepared")


@asynccontextmanager
async def pod(backend: Backend, claim_name: str, code: str, *, security: Object | None = None) -> AsyncIterator[str]:
    """Have a pod on the node ``general`` that mounts a claim and runs some Python."""
    name = f"user-of-{claim_name}"
    container = {
        "name": "main",
        "image": KERNEL_IMAGE,
        "command": ["python", "-c", code],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
        "securityContext": security or {},
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "nodeName": "general",
        "containers": [container],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim_name}}],
    }
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": backend.namespace, "labels": {}}, "spec": spec}
    await backend.api.create("pods", body)
    try:
        yield name
    finally:
        await backend.api.delete("pods", backend.namespace, name, grace=1)
        await until(lambda: _is_gone(backend, name), "the pod to go")


async def _phase(backend: Backend, name: str, phase: str) -> bool:
    found = await backend.api.get("pods", backend.namespace, name)
    return found is not None and found["status"].get("phase") == phase


async def _is_gone(backend: Backend, name: str) -> bool:
    return await backend.api.get("pods", backend.namespace, name) is None


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
    if backend.embedded is None:
        for name in ("efs", "claim-of-ana", "claim-bia-old", "claim-leo"):
            await backend.api.delete("persistentvolumes", "", f"{backend.namespace}-{name}")


def as_user(name: str) -> dict[str, str]:
    return {"X-Forwarded-User": name}


@asynccontextmanager
async def kernel(gateway: Gateway, user: str, name: str, **environment: str) -> AsyncIterator[Any]:
    """Run a kernel, and yield what runs a cell in it and returns its text."""
    status, body = await gateway.request("POST", "/api/kernels", {"name": name, "env": environment}, headers=as_user(user))
    assert status == 201, body
    try:
        async with gateway.channels(body["id"], headers=as_user(user)) as channels:

            async def run(code: str) -> str:
                reply = await channels.execute(code)
                assert reply.status == "ok", reply
                return str(reply.text)

            run.id = body["id"]  # type: ignore[attr-defined]
            yield run
    finally:
        await gateway.request("DELETE", f"/api/kernels/{body['id']}", headers=as_user(user))


async def refused(gateway: Gateway, user: str, name: str) -> tuple[int, str]:
    status, body = await gateway.request("POST", "/api/kernels", {"name": name}, headers=as_user(user))
    assert status >= 400, body
    return status, body["message"]


def write(place: str, path: str, text: str) -> str:
    """Return a cell that writes a file below one of the places."""
    found = f"import os; p = os.path.join(os.environ[{place!r}], {path!r})"
    return f"{found}; os.makedirs(os.path.dirname(p), exist_ok=True); open(p, 'w').write({text!r})"


def files(place: str) -> str:
    """Return an expression for the names in one of the places, without those that IPython itself makes."""
    return f"[name for name in os.listdir(os.environ[{place!r}]) if not name.startswith('.')]"


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
    async with pod(backend, "claim-leo", "import time; time.sleep(600)") as lab:
        await until(lambda: _phase(backend, lab, "Running"), "leo's server")
        async with kernel(gateway, "leo", "here") as run:
            (found,) = await backend.pods(run.id)
            assert found["spec"]["nodeName"] == "general"
            assert await run(f"import os; {files('H')}") == "['here.txt']"
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
