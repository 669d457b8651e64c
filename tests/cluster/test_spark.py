"""Spark on a real cluster: executors in pods of their own, what becomes of them, and what their driver may not do."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.cluster.nodes import closed, silent
from tests.cluster.spark import HOSTS, JOB_SECONDS, executors, gone, grant, spark_profile, until_ended, until_gone
from tests.conftest import KERNEL_IMAGE, Backend, gateway_on, profile
from tests.gateway import Gateway, until

LOG = logging.getLogger(__name__)
# a machine is missed after a while only
LOST_SECONDS = 240.0
KILL = """
import os, pathlib, signal
# all of the container's processes, Java first
for path in sorted(pathlib.Path('/proc').glob('[0-9]*/cmdline'), key=lambda path: b'java' not in path.read_bytes()):
    pid = int(path.parent.name)
    if pid != os.getpid() and path.read_bytes():
        try: os.kill(pid, signal.SIGKILL)
        except OSError: pass
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    await grant(backend.kubeconfig, backend.namespace)
    profiles = {
        "spark": spark_profile("spark"),
        "eager": spark_profile("eager", spark={"session": "eager"}),
        "anywhere": spark_profile("anywhere", executors={"spot": False, "tolerations": ["elastic-kernels/capacity=spot:NoSchedule"]}),
        "no-image": spark_profile("no-image", executors={"image": "localhost/elastic-kernels/missing:1"}),
        "no-executor": spark_profile("no-executor", executors={"image": KERNEL_IMAGE}),
        "small": profile("small"),
    }
    async with gateway_on(backend, tmp_path_factory.mktemp("gateway"), profiles) as running:
        yield running
        # where nobody is left to end them, they end with their drivers all the same, in the cluster's own time
        await until(lambda: gone(backend), "the last executors to go")


async def test_a_job_runs_on_two_executors_in_other_pods_on_the_spot_node(backend: Backend, gateway: Gateway) -> None:
    kernel = await gateway.start("spark")
    (driver,) = await backend.pods(kernel)
    assert driver["spec"]["nodeName"] == "general"
    async with gateway.channels(kernel) as channels:
        assert not await executors(backend)
        reply = await channels.execute(HOSTS, seconds=JOB_SECONDS)
        assert reply.status == "ok", reply
        hosts = reply.text.split()
    there = await executors(backend)
    assert len(hosts) == 2
    assert sorted(item["metadata"]["name"] for item in there) == hosts
    assert {item["spec"]["nodeName"] for item in there} == {"spot"}
    assert {item["spec"]["containers"][0]["resources"]["limits"]["memory"] for item in there} == {"800Mi"}
    assert {item["metadata"]["ownerReferences"][0]["name"] for item in there} == {driver["metadata"]["name"]}
    begin = time.monotonic()
    await gateway.stop(kernel)
    await until_gone(backend)
    LOG.info("executors gone after %.1f s", time.monotonic() - begin)


async def test_a_driver_that_is_killed_takes_its_executors_with_it(backend: Backend, gateway: Gateway) -> None:
    kernel = await gateway.start("spark")
    async with gateway.channels(kernel) as channels:
        assert (await channels.execute(HOSTS, seconds=JOB_SECONDS)).status == "ok"
        there = await executors(backend)
        begun_with = {item["metadata"]["uid"] for item in there}
        assert len(begun_with) == 2
        # as when the kernel's machine runs out of memory: neither the kernel nor Java gets to say anything
        await channels.send("shell", "execute_request", {"code": KILL, "silent": False})
        await until_ended(backend, there[0])
        begin = time.monotonic()
        await until_gone(backend, of=begun_with)
        LOG.info("executors of a killed driver gone after %.1f s", time.monotonic() - begin)
    await gateway.stop(kernel)


@pytest.mark.parametrize("session", ["lazy", "eager", "none"])
async def test_when_there_is_a_session(backend: Backend, gateway: Gateway, session: str) -> None:
    kernel = await gateway.start("spark", KERNEL_SPARK_SESSION=session)
    java = "import pathlib; print(any(b'SparkSubmit' in p.read_bytes() for p in pathlib.Path('/proc').glob('[0-9]*/cmdline')))"
    async with gateway.channels(kernel) as channels:
        # completing is no use of it
        await channels.send("shell", "complete_request", {"code": "spark.", "cursor_pos": 6})
        await until(lambda: running(channels, java, session == "eager"), f"a session that is {session}")
        if session == "none":
            assert (await channels.execute("spark")).content["ename"] == "NameError"
            await channels.execute("from pyspark.sql import SparkSession; spark = SparkSession.builder.getOrCreate()", seconds=JOB_SECONDS)
        reply = await channels.execute(
            "from pyspark.sql import SparkSession\n"
            "print(spark.conf.get('spark.kubernetes.namespace'))\n"
            "print(isinstance(spark, SparkSession), SparkSession.getActiveSession() is not None)",
            seconds=JOB_SECONDS,
        )
        assert reply.text == f"{backend.namespace}\nTrue True\n", reply
    await gateway.stop(kernel)


async def running(channels: Any, code: str, expected: bool) -> bool:
    return bool((await channels.execute(code)).text == f"{expected}\n")


async def test_a_driver_may_create_pods_and_nothing_else(backend: Backend, gateway: Gateway) -> None:
    """What someone tries from inside a kernel, with the token that lies there."""
    kernel, other = await asyncio.gather(gateway.start("spark"), gateway.start("small"))
    (others,) = await backend.pods(other)
    record = others["metadata"]["ownerReferences"][0]["name"]
    pods, secrets = f"/api/v1/namespaces/{backend.namespace}/pods", f"/api/v1/namespaces/{backend.namespace}/secrets"
    name = others["metadata"]["name"]
    attempts = [
        ("GET", secrets), ("GET", f"{secrets}/{record}"), ("DELETE", f"{secrets}/{record}"), ("POST", secrets),
        ("DELETE", f"{pods}/{name}"), ("DELETE", pods), ("PATCH", f"{pods}/{name}"), ("PUT", f"{pods}/{name}"),
        ("GET", f"{pods}/{name}/log"), ("POST", f"{pods}/{name}/exec?command=id&stdout=1"), ("POST", f"{pods}/{name}/eviction"),
        ("GET", f"/api/v1/namespaces/{backend.namespace}/configmaps"), ("GET", f"/api/v1/namespaces/{backend.namespace}/services"),
        ("GET", "/api/v1/namespaces/default/pods"), ("POST", "/api/v1/namespaces/default/pods"), ("GET", "/api/v1/secrets"),
        ("POST", f"/api/v1/namespaces/{backend.namespace}/serviceaccounts/default/token"), ("GET", "/api/v1/nodes"),
    ]  # fmt: skip
    answers = json.loads(await gateway.run(kernel, TRY.format(attempts=[*attempts, ("GET", pods)])))
    assert dict(zip([" ".join(attempt) for attempt in attempts], answers, strict=False)) == {" ".join(attempt): 403 for attempt in attempts}
    assert answers[-1] == 200
    assert (await backend.api.get("pods", backend.namespace, name) or {})["status"]["phase"] == "Running"
    await asyncio.gather(gateway.stop(kernel), gateway.stop(other))


TRY = """
import json, os, ssl, urllib.error, urllib.request
account = '/var/run/secrets/kubernetes.io/serviceaccount/'
context = ssl.create_default_context(cafile=account + 'ca.crt')
def attempt(method, path):
    headers = {{'Authorization': 'Bearer ' + open(account + 'token').read(), 'Content-Type': 'application/json'}}
    if method == 'PATCH':
        headers['Content-Type'] = 'application/merge-patch+json'
    url = 'https://' + os.environ['KUBERNETES_SERVICE_HOST'] + path
    body = b'{{}}' if method in ('POST', 'PUT', 'PATCH') else None
    try:
        return urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), context=context).status
    except urllib.error.HTTPError as error:
        return error.code
print(json.dumps([attempt(*each) for each in {attempts}]))
"""


@pytest.mark.parametrize(
    ("settings", "status", "sentence"),
    [
        ("spark.sql.shuffle.partitions=3", 201, ""),
        ("spark.kubernetes.executor.podTemplateFile=/tmp/x", 403, "The Spark setting 'spark.kubernetes.executor.podTemplateFile' is not"),
        ("spark.dynamicAllocation.maxExecutors=3", 403, "asks for 3, and 'spark' has 2 executors at most."),
        ("spark.executor.memory=2g", 403, "asks for 2g, and an executor of 'spark' has 544m: its 800m, less 256m for what is no heap."),
        ("spark.executor.cores=2", 403, "asks for 2, and 'spark' has 1 cores for each executor."),
        ("nonsense", 400, "KERNEL_SPARK_SETTINGS is not a list of settings: write spark.a=b spark.c=d, or a JSON mapping of texts."),
    ],
)
async def test_what_a_client_may_set(gateway: Gateway, settings: str, status: int, sentence: str) -> None:
    if status == 201:
        kernel = await gateway.start("spark", KERNEL_SPARK_SETTINGS=settings)
        async with gateway.channels(kernel) as channels:
            reply = await channels.execute("print(spark.conf.get('spark.sql.shuffle.partitions'))", seconds=JOB_SECONDS)
        assert reply.text == "3\n"
        await gateway.stop(kernel)
    else:
        said = await gateway.refused("spark", KERNEL_SPARK_SETTINGS=settings)
        assert said[0] == status
        assert sentence in said[1]


async def test_an_image_that_is_no_executors_is_said_in_the_cell(backend: Backend, gateway: Gateway) -> None:
    kernel = await gateway.start("no-executor")
    async with gateway.channels(kernel) as channels:
        reply = await channels.execute("sc.parallelize(range(4), 2).sum()", seconds=JOB_SECONDS)
        assert "its executors cannot start: they end as soon as they have started (exit code 128: " in reply.content["evalue"], reply
        assert (await channels.execute("sc.defaultParallelism > 0")).text == "True", "the driver lives"
    await gateway.stop(kernel)
    await until(lambda: gone(backend), "the executors to go")


async def test_an_image_that_executors_cannot_have_is_said_in_the_cell(backend: Backend, gateway: Gateway) -> None:
    kernel = await gateway.start("no-image")
    async with gateway.channels(kernel) as channels:
        reply = await channels.execute("sc.parallelize(range(4), 2).sum()", seconds=JOB_SECONDS)
        assert reply.status == "error"
        assert "its executors cannot start: their image 'localhost/elastic-kernels/missing:1' cannot be pulled" in reply.content["evalue"]
        assert "Spark waits for executors: their image 'localhost/elastic-kernels/missing:1' cannot be pulled" in reply.text
    await gateway.stop(kernel)
    await until_gone(backend)


async def test_an_interrupt_ends_the_job_and_not_the_session(gateway: Gateway) -> None:
    kernel = await gateway.start("spark")
    async with gateway.channels(kernel) as channels:
        await channels.execute("sc.parallelize(range(2), 2).sum()", seconds=JOB_SECONDS)
        cell = await channels.begin("import time\nsc.parallelize(range(2), 2).map(lambda _: time.sleep(600)).count()")
        await asyncio.sleep(2)  # so that tasks are under way
        await gateway.request("POST", f"/api/kernels/{kernel}/interrupt")
        assert (await asyncio.wait_for(channels.finish(cell), 3)).content["ename"] == "KeyboardInterrupt"
        # Spark notes in its own time that a job is over
        none_runs = "while sc.statusTracker().getActiveJobsIds(): time.sleep(0.1)"
        reply = await channels.execute(f"total = sc.parallelize(range(4), 2).sum()\n{none_runs}\nprint(total)", seconds=30)
        assert reply.text == "6\n", reply
    await gateway.stop(kernel)


async def test_a_job_outlives_an_executor_that_is_taken_away(backend: Backend, gateway: Gateway) -> None:
    """What becomes of a spot machine's executors when it is reclaimed: their pods are gone from one moment to the next."""
    kernel = await gateway.start("spark")
    async with gateway.channels(kernel) as channels:
        await channels.execute(HOSTS, seconds=JOB_SECONDS)
        cell = await channels.begin("import time\nprint(sc.parallelize(range(40), 40).map(lambda n: time.sleep(1) or n).sum())")
        await asyncio.sleep(3)  # so that tasks are under way
        lost = (await executors(backend))[0]["metadata"]
        await backend.api.delete("pods", backend.namespace, lost["name"], grace=0)
        reply = await asyncio.wait_for(channels.finish(cell), JOB_SECONDS)
        assert reply.status == "ok", reply
        assert "780\n" in reply.text
        assert lost["name"] not in [item["metadata"]["name"] for item in await executors(backend)]
        assert len(await executors(backend)) == 2, "the lost one was replaced"
    await gateway.stop(kernel)


async def test_a_job_outlives_an_executor_that_does_not_answer(backend: Backend, gateway: Gateway) -> None:
    """What a driver sees of a machine that is lost: nothing is said, no connection ends, and the cluster believes that the pod runs."""
    kernel = await gateway.start("spark")
    async with gateway.channels(kernel) as channels:
        await channels.execute(HOSTS, seconds=JOB_SECONDS)
        cell = await channels.begin("import time\nprint(sc.parallelize(range(40), 40).map(lambda n: time.sleep(1) or n).sum())")
        await asyncio.sleep(3)  # so that tasks are under way
        lost = (await executors(backend))[0]
        begin = time.monotonic()
        async with silent(backend, [lost]):
            reply = await asyncio.wait_for(channels.finish(cell), JOB_SECONDS)
            assert reply.status == "ok", reply
            assert "780\n" in reply.text
            LOG.info("the job of a silent executor finished after %.0f s", time.monotonic() - begin)
            await gateway.stop(kernel)
            # its kubelet waits for it in vain first
            begin = time.monotonic()
            await until(lambda: gone(backend), "the executors to go")
            LOG.info("executors gone after %.1f s", time.monotonic() - begin)


async def test_a_job_outlives_the_machine_of_its_executors(backend: Backend, gateway: Gateway) -> None:
    """Both are on it, with what they have computed so far, and others come on another machine."""
    kernel = await gateway.start("anywhere")
    async with gateway.channels(kernel) as channels:
        async with closed(backend.kubeconfig, "general"):
            assert (await channels.execute(HOSTS, seconds=JOB_SECONDS)).status == "ok"
        on_it = await executors(backend)
        assert [item["spec"]["nodeName"] for item in on_it] == ["spot"] * 2
        cell = await channels.begin(
            "import time\n"
            "pairs = sc.parallelize(range(40), 20).map(lambda n: (n % 4, time.sleep(0.5) or n))\n"
            "print(pairs.reduceByKey(lambda a, b: a + b).map(lambda pair: time.sleep(2) or pair[1]).sum())"
        )
        await asyncio.sleep(7)  # so that some of it has been computed
        begin = time.monotonic()
        async with silent(backend, on_it, is_node_lost=True):
            reply = await asyncio.wait_for(channels.finish(cell), LOST_SECONDS)
            LOG.info("the job of a lost machine finished after %.0f s", time.monotonic() - begin)
            assert reply.status == "ok", reply
            assert "780\n" in reply.text
            assert "general" in {item["spec"]["nodeName"] for item in await executors(backend)}
            await gateway.stop(kernel)
    await until(lambda: gone(backend), "the executors to go")
