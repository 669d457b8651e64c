"""Spark for several users, each in a namespace of their own: packages that reach executors, and what nobody reaches."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from http.client import responses
from typing import Any

import aiohttp
import pytest

from tests.cluster.spark import JOB_SECONDS, gone, grant, spark_profile
from tests.conftest import Backend, gateway_on
from tests.gateway import PLUGGED_IN, Gateway, until
from tests.volumes import IDENTITY, as_user, claim, kernel, release, wheel

TEAM = {"name": "team", "mount_path": "/team", "claim": "efs"}
# what each of two executors finds: tasks take a while, and where one has done all before the other was there, there are more
FOUND = """
def found(_):
    import socket, time
    time.sleep(0.5)
    try:
        import {module}
        what = {module}.word
    except ImportError as error:
        what = str(error)
    return socket.gethostname(), what
pairs = set()
while len({{host for host, _ in pairs}}) < 2:
    pairs.update(sc.parallelize(range(16), 16).map(found).collect())
print(len(pairs), *sorted({{what for _, what in pairs}}))
"""


@pytest.fixture(scope="module")
async def users(backend: Backend) -> AsyncIterator[dict[str, str]]:
    """Yield the namespaces of ana and bob, as a hub with user namespaces has made them."""
    own = {name: f"{backend.namespace}-{name}" for name in ("ana", "bob")}
    for user, namespace in own.items():
        await backend.api.create("namespaces", {"metadata": {"name": namespace, "namespace": ""}})
        await grant(backend.kubeconfig, namespace)
        await claim(backend, f"claim-{user}", "ReadWriteMany", user, namespace=namespace)
    await claim(backend, "efs", "ReadWriteMany", namespace=own["ana"])
    yield own
    await release(backend, "claim-ana", "claim-bob", "efs")
    for namespace in own.values():
        await backend.api.delete("namespaces", "", namespace)


@pytest.fixture(scope="module")
async def gateway(backend: Backend, users: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    home: dict[str, Any] = {"home": True, "packages": {"team": ["/team/packages"]}, "volumes": [TEAM]}
    profiles = {"spark": spark_profile("spark", environment={"H": "/home/jovyan"}), "home": spark_profile("home", **home)}
    # others watch their own deployment's kernels, this one those of all namespaces
    own = {"ELASTIC_KERNELS_USER_NAMESPACE": f"{backend.namespace}-{{username}}", "ELASTIC_KERNELS_DEPLOYMENT": backend.namespace}
    directory = tmp_path_factory.mktemp("gateway")
    async with gateway_on(backend, directory, profiles, environment={**IDENTITY, **own}, configuration=PLUGGED_IN) as running:
        yield running
        for namespace in users.values():
            await until(lambda namespace=namespace: gone(backend, namespace), "the last executors to go")


async def test_what_pip_installs_reaches_executors_at_once_and_in_the_next_kernel(gateway: Gateway) -> None:
    async with kernel(gateway, "ana", "home") as run:
        assert await run(FOUND.format(module="lasting"), JOB_SECONDS) == "2 No module named 'lasting'\n"
        await run("%env H=/home/jovyan")
        await run(wheel("lasting", "1.0", "word = 'installed'"))
        assert "Successfully installed lasting-1.0" in await run("%pip install --no-index --find-links $H lasting")
        assert await run(FOUND.format(module="lasting"), JOB_SECONDS) == "2 installed\n"
        await run("import os; os.makedirs('/team/packages', exist_ok=True)")
        await run("open('/team/packages/ours.py', 'w').write('word = \"the team\"')")
    async with kernel(gateway, "ana", "home") as run:
        assert await run(FOUND.format(module="lasting"), JOB_SECONDS) == "2 installed\n"
        assert await run(FOUND.format(module="ours"), JOB_SECONDS) == "2 the team\n"


async def test_a_packed_environment(gateway: Gateway) -> None:
    """A Python of one's own on the executors, unpacked there from an archive on a volume that the driver alone reads."""
    async with kernel(gateway, "ana", "home") as run:
        await run(PACK)
    settings = "spark.archives=/team/packed.tar.gz#environment spark.pyspark.python=./environment/bin/python"
    async with kernel(gateway, "ana", "home", KERNEL_SPARK_SETTINGS=settings) as run:
        assert await run(FOUND.format(module="packed"), JOB_SECONDS) == "2 in the archive\n"


PACK = """
import io, tarfile
python = '''#!/bin/sh
PYTHONPATH="$PYTHONPATH:$(dirname "$0")/../lib" exec /opt/kernel/bin/python "$@"
'''
with tarfile.open('/team/packed.tar.gz', 'w:gz') as archive:
    for name, text, mode in (('bin/python', python, 0o755), ('lib/packed.py', "word = 'in the archive'", 0o644)):
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(text), mode
        archive.addfile(entry, io.BytesIO(text.encode()))
"""


async def test_nobody_reaches_anything_of_another_user(backend: Backend, gateway: Gateway, users: dict[str, str]) -> None:
    """From inside a kernel, with the rights of its driver: bob's records, claims, pods are out of ana's reach, a pod among his included."""
    async with kernel(gateway, "bob", "spark") as his, kernel(gateway, "ana", "spark") as run:
        (pod,) = (await backend.api.list("pods", users["bob"], labelSelector=f"elastic-kernels/kernel-id={his.id}"))["items"]
        record = pod["metadata"]["ownerReferences"][0]["name"]
        theirs, own = f"/api/v1/namespaces/{users['bob']}", f"/api/v1/namespaces/{users['ana']}"
        mounting = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "thief"},
            "spec": {
                "containers": [{"name": "x", "image": "x", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}],
                "volumes": [{"name": "x", "secret": {"secretName": record}}],
            },
        }
        name = pod["metadata"]["name"]
        attempts = [
            ("POST", f"{theirs}/pods", mounting), ("GET", f"{theirs}/pods", None), ("GET", f"{theirs}/pods/{name}", None),
            ("DELETE", f"{theirs}/pods/{name}", None), ("GET", f"{theirs}/secrets/{record}", None), ("GET", f"{own}/secrets", None),
            ("POST", f"{own}/secrets", {}), ("POST", f"{own}/pods/x/exec", None), ("GET", f"{own}/persistentvolumeclaims", None),
        ]  # fmt: skip
        answers = json.loads(await run(TRY.format(attempts=attempts)))
        assert answers == [403] * len(attempts)
        assert await his("6 * 7") == "42"


TRY = """
import json, os, ssl, urllib.error, urllib.request
account = '/var/run/secrets/kubernetes.io/serviceaccount/'
context = ssl.create_default_context(cafile=account + 'ca.crt')
def attempt(method, path, body):
    headers = {{'Authorization': 'Bearer ' + open(account + 'token').read(), 'Content-Type': 'application/json'}}
    url = 'https://' + os.environ['KUBERNETES_SERVICE_HOST'] + path
    body = None if body is None else json.dumps(body).encode()
    try:
        return urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), context=context).status
    except urllib.error.HTTPError as error:
        return error.code
print(json.dumps([attempt(*each) for each in {attempts}]))
"""


async def test_a_namespace_without_the_rights(backend: Backend, gateway: Gateway) -> None:
    bare = f"{backend.namespace}-eve"
    await backend.api.create("namespaces", {"metadata": {"name": bare, "namespace": ""}})
    try:
        status, body = await gateway.request("POST", "/api/kernels", {"name": "spark", "env": {}}, headers=as_user("eve"))
        why = f"the namespace '{bare}' has no service account 'spark-driver', which the profile names; its administrator has to make it"
        assert (status, body["message"]) == (500, f"The cluster refused the kernel 'spark': {why}.")
    finally:
        await backend.api.delete("namespaces", "", bare)


async def test_sparks_pages_are_for_their_owner_alone(backend: Backend, gateway: Gateway, users: dict[str, str]) -> None:
    async with kernel(gateway, "ana", "spark") as run, aiohttp.ClientSession() as client:
        base = f"/api/kernels/{run.id}/spark-ui"

        async def get(path: str, user: str = "ana") -> tuple[int, str]:
            async with client.get(gateway.address + path, headers=as_user(user)) as response:
                return response.status, await response.text()

        assert await run("6 * 7") == "42"
        assert await get(f"{base}/") == (404, message(404, "The kernel has not started Spark, or its Spark shows no pages."))
        await run("sc.setJobDescription('the sum of four'); sc.parallelize(range(4), 2).sum()", JOB_SECONDS)
        status, page = await get(base)
        assert status == 200
        assert "the sum of four" in page
        links = re.findall(r"(?:href|src)=\"(/[^\"]*)\"", page)
        assert links
        assert all(link.startswith(f"{base}/") for link in links), links
        script = next(link for link in links if link.endswith(".js"))
        assert (await get(script))[0] == 200
        assert (await get(f"{base}/executors/"))[0] == 200
        assert (await get(f"{base}/api/v1/applications"))[0] == 200
        # nobody else, by whatever way
        assert (await get(f"{base}/jobs/", "bob"))[0] == 404
        (pod,) = (await backend.api.list("pods", users["ana"], labelSelector=f"elastic-kernels/kernel-id={run.id}"))["items"]
        async with client.get(f"http://{pod['status']['podIP']}:4040/jobs/") as response:
            assert response.status == 403
        with pytest.raises(aiohttp.ClientConnectorError):
            await client.get(f"http://{pod['status']['podIP']}:4041/jobs/")


def message(status: int, sentence: str) -> str:
    return json.dumps({"reason": responses[status], "message": sentence})
