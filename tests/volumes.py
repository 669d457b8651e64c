"""Claims, users and what they see: what the tests of homes and other volumes have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from elastic_kernels import hubnames
from elastic_kernels.cluster import Object
from tests.conftest import KERNEL_IMAGE, Backend
from tests.gateway import SECONDS, Gateway, until

IDENTITY = {"ELASTIC_KERNELS_IDENTITY": "header", "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.1"}


def path_of(backend: Backend, name: str) -> str:
    """Return the folder of the nodes' machine that a claim is."""
    return f"/var/tmp/elastic-kernels-test/{backend.namespace}-{name}"


async def claim(
    backend: Backend,
    name: str,
    mode: str,
    user: str | None = None,
    *,
    namespace: str = "",
    terms: list[Object] | None = None,
    permissions: int = 0o777,
) -> None:
    """Make a claim that is bound to a folder of the nodes' machine, and let kernels write to it.

    ``terms`` are where the volume can be, for one that is in one place.
    """
    namespace = namespace or backend.namespace
    labels = {hubnames.USERNAME: hubnames.labels(user)[0], "component": "singleuser-storage"} if user else {}
    annotations = {hubnames.USERNAME: user} if user else {}
    metadata = {"name": name, "namespace": namespace, "labels": labels, "annotations": annotations}
    spec: Object = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": ""}
    if backend.embedded is None or terms:
        volume = f"{backend.namespace}-{name}"
        await backend.api.create(
            "persistentvolumes",
            {
                "metadata": {"name": volume, "namespace": "", "labels": {}},
                "spec": {
                    "capacity": {"storage": "1Gi"},
                    "accessModes": [mode],
                    "hostPath": {"path": path_of(backend, name), "type": "DirectoryOrCreate"},
                    "claimRef": {"namespace": namespace, "name": name},
                    "persistentVolumeReclaimPolicy": "Retain",
                    "storageClassName": "",
                    **({"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}} if terms else {}),
                },
            },
        )
        spec["volumeName"] = volume
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
    await backend.api.create(
        "persistentvolumeclaims", body | ({"status": {"accessModes": [mode], "phase": "Bound"}} if backend.embedded else {})
    )

    async def is_bound() -> bool:
        found = await backend.api.get("persistentvolumeclaims", namespace, name)
        return found is not None and found["status"].get("phase") == "Bound"

    await until(is_bound, f"the claim {name} to be bound", seconds=90)
    if terms:
        return  # where it can be, no node of this cluster is
    code = f"import os; os.chmod('/v', {permissions})"
    async with pod(backend, name, code, security={"runAsUser": 0}, namespace=namespace) as prepared:
        await until(lambda: is_in_phase(backend, prepared, "Succeeded", namespace), f"the claim {name} to be prepared")


async def unbound(backend: Backend, name: str, user: str, mode: str = "ReadWriteMany", *, label: str = "") -> None:
    """Make a claim of a user's that no volume will ever be for; ``label`` is another name for its label."""
    metadata = {
        "name": name,
        "namespace": backend.namespace,
        "labels": {hubnames.USERNAME: label or user, "component": "singleuser-storage"},
        "annotations": {hubnames.USERNAME: user},
    }
    spec: Object = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "absent"}
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
    await backend.api.create("persistentvolumeclaims", body)


async def release(backend: Backend, *names: str) -> None:
    """Delete the volumes of claims that go with their namespace."""
    for name in names:
        if backend.embedded is None:
            await backend.api.delete("persistentvolumes", "", f"{backend.namespace}-{name}")


@asynccontextmanager
async def pod(backend: Backend, claim_name: str, code: str, *, security: Object | None = None, namespace: str = "") -> AsyncIterator[str]:
    """Have a pod on the node ``general`` that mounts a claim and runs some Python."""
    namespace = namespace or backend.namespace
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
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": {}}, "spec": spec}
    await backend.api.create("pods", body)
    try:
        yield name
    finally:
        await backend.api.delete("pods", namespace, name, grace=1)

        async def is_gone() -> bool:
            return await backend.api.get("pods", namespace, name) is None

        await until(is_gone, "the pod to go")


async def is_in_phase(backend: Backend, name: str, phase: str, namespace: str = "") -> bool:
    found = await backend.api.get("pods", namespace or backend.namespace, name)
    return found is not None and found["status"].get("phase") == phase


def as_user(name: str) -> dict[str, str]:
    """Return the headers of a user; groups of theirs stand after the name, with a colon between."""
    user, _, groups = name.partition(":")
    return {"X-Forwarded-User": user, "X-Forwarded-Groups": groups}


@asynccontextmanager
async def kernel(gateway: Gateway, user: str, name: str, **environment: str) -> AsyncIterator[Any]:
    """Run a kernel, and yield what runs a cell in it and returns its text."""
    status, body = await gateway.request("POST", "/api/kernels", {"name": name, "env": environment}, headers=as_user(user))
    assert status == 201, body
    try:
        async with gateway.channels(body["id"], headers=as_user(user)) as channels:

            async def run(code: str, seconds: float = SECONDS) -> str:
                reply = await channels.execute(code, seconds=seconds)
                assert reply.status == "ok", reply
                return str(reply.text)

            run.id = body["id"]  # type: ignore[attr-defined]
            yield run
    finally:
        await gateway.request("DELETE", f"/api/kernels/{body['id']}", headers=as_user(user))


async def refused(gateway: Gateway, user: str, name: str, **environment: str) -> tuple[int, str]:
    body = {"name": name, "env": environment}
    status, body = await gateway.request("POST", "/api/kernels", body, headers=as_user(user))
    assert status >= 400, body
    return status, body["message"]


def write(place: str, path: str, text: str) -> str:
    """Return a cell that writes a file below one of the places."""
    found = f"import os; p = os.path.join(os.environ[{place!r}], {path!r})"
    return f"{found}; os.makedirs(os.path.dirname(p), exist_ok=True); open(p, 'w').write({text!r})"


def wheel(name: str, version: str, text: str) -> str:
    """Return a cell that makes a wheel of one module in the folder of the variable H."""
    stem = f"{name}-{version}"
    parts = {
        f"{name}.py": text,
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{stem}.dist-info/RECORD": "",
    }
    return (
        "import os, zipfile\n"
        f"with zipfile.ZipFile(os.environ['H'] + '/{stem}-py3-none-any.whl', 'w') as made:\n"
        f"    for path, text in {parts!r}.items():\n"
        "        made.writestr(path, text)"
    )


def files(place: str) -> str:
    """Return an expression for the names in one of the places, without those that IPython itself makes."""
    return f"[name for name in os.listdir(os.environ[{place!r}]) if not name.startswith('.')]"
