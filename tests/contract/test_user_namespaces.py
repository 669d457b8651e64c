"""Each user's kernels in a namespace of their own, where their claims are: one gateway, one informer, one limit."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from elastic_kernels.cluster import Object
from tests.conftest import Backend, gateway_on, profile
from tests.gateway import PLUGGED_IN, Gateway, until
from tests.volumes import IDENTITY, as_user, claim, files, kernel, refused, release, write


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    own = [f"{backend.namespace}-{user}" for user in ("ana", "leo")]
    for name in own:
        await backend.api.create("namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "namespace": ""}})
    environment = {
        **IDENTITY,
        "ELASTIC_KERNELS_USER_NAMESPACE": f"{backend.namespace}-{{username}}",
        # the gateway sees all namespaces, and others' kernels are not its own
        "ELASTIC_KERNELS_DEPLOYMENT": backend.namespace,
        "EG_MAX_KERNELS_PER_USER": "2",
    }
    profiles = {"home": profile("home", home=True, environment={"H": "/home/jovyan"})}
    if backend.embedded is None:
        # pods are refused until a controller has made it
        await until(lambda: _has_account(backend, own[0]), "a service account")
    await claim(backend, "claim-ana", "ReadWriteMany", "ana", namespace=own[0])
    directory = tmp_path_factory.mktemp("gateway")
    async with gateway_on(backend, directory, profiles, environment=environment, configuration=PLUGGED_IN) as running:
        yield running
    await release(backend, "claim-ana")
    for name in own:
        await until(lambda name=name: _is_empty(backend, name), f"{name} to be empty")
        await backend.api.delete("namespaces", "", name)


async def _has_account(backend: Backend, namespace: str) -> bool:
    return await backend.api.get("serviceaccounts", namespace, "default") is not None


async def _is_empty(backend: Backend, namespace: str) -> bool:
    return not await _pods(backend, namespace) and not await _records(backend, namespace)


async def _pods(backend: Backend, namespace: str) -> list[Object]:
    selector = "app.kubernetes.io/managed-by=elastic-kernels"
    return list((await backend.api.list("pods", namespace, labelSelector=selector))["items"])


async def _records(backend: Backend, namespace: str) -> list[Object]:
    selector = "app.kubernetes.io/managed-by=elastic-kernels"
    return list((await backend.api.list("secrets", namespace, labelSelector=selector))["items"])


async def test_a_kernel_runs_where_its_users_home_is(backend: Backend, gateway: Gateway) -> None:
    namespace = f"{backend.namespace}-ana"
    async with kernel(gateway, "ana", "home") as run:
        await run(write("H", "here.txt", "x"))
        (pod,) = await _pods(backend, namespace)
        assert pod["metadata"]["labels"]["elastic-kernels/kernel-id"] == run.id
        assert (await gateway.request("POST", f"/api/kernels/{run.id}/restart", headers=as_user("ana")))[0] == 200
        async with kernel(gateway, "ana", "home") as another:
            assert await another(f"import os; {files('H')}") == "['here.txt']"
            status, sentence = await refused(gateway, "ana", "home")
            assert (status, sentence.partition(":")[0]) == (403, "You have 2 of 2 kernels")
    await until(lambda: _is_empty(backend, namespace), "the kernels to go")
    assert await backend.is_empty(), "something was in the gateway's own namespace"


async def test_who_has_no_home_or_no_namespace_is_told_so(backend: Backend, gateway: Gateway) -> None:
    # a claim in another namespace is not theirs, whatever its name
    assert await refused(gateway, "leo", "home") == (
        409,
        f"You have no home volume in the namespace '{backend.namespace}-leo', and 'home' needs one; start your JupyterLab server once, "
        "which makes it, or ask your administrator.",
    )
    status, sentence = await refused(gateway, "bia", "home")
    assert status == 409
    assert f"'{backend.namespace}-bia'" in sentence
