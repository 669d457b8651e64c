"""Scala kernels with executors in pods of their own: a job on two of them, a jar that reaches them, a failure there that is told here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from elastic_kernels.profiles import Profile
from tests.cluster.spark import JOB_SECONDS, SMALL, executors, gone, grant, until_gone
from tests.cluster.test_scala import scala_profile
from tests.conftest import Backend, gateway_on
from tests.gateway import PLUGGED_IN, Gateway, until
from tests.volumes import IDENTITY, claim, kernel, release

# on both executors, because each task takes a while and there are more of them than one can run
HOSTS = """
case class Seen(host: String, what: String)
val seen = sc.parallelize(1 to 16, 16).map { _ =>
  Thread.sleep(500)
  Seen(java.net.InetAddress.getLocalHost.getHostName, WORD)
}.collect().toSet
println(seen.size + " " + seen.map(_.what).mkString(" "))
"""
MAKE_A_JAR = """
val source = java.nio.file.Paths.get("/tmp/Lasting.scala")
java.nio.file.Files.write(source, "package lasting; object Word { def word = \\"in_the_jar\\" }".getBytes)
scala.tools.nsc.Main.process(Array("-usejavacp", "-d", "/tmp/lasting.jar", source.toString))
"""


def scala(name: str, executors: dict[str, Any] | None = None, **fields: Any) -> Profile:
    return scala_profile(name, spark={"executors": {**SMALL, **(executors or {})}}, **fields)


@pytest.fixture(scope="module")
async def home(backend: Backend) -> AsyncIterator[str]:
    """Yield ana's namespace, in which she has a home that many machines can mount."""
    namespace = f"{backend.namespace}-ana"
    await backend.api.create("namespaces", {"metadata": {"name": namespace, "namespace": ""}})
    await grant(backend.kubeconfig, namespace)
    await claim(backend, "claim-ana", "ReadWriteMany", "ana", namespace=namespace)
    yield namespace
    await release(backend, "claim-ana")
    await backend.api.delete("namespaces", "", namespace)


@pytest.fixture(scope="module")
async def gateway(backend: Backend, home: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    profiles = {
        "home": scala("home", home=True, packages=True),
        "no-image": scala("no-image", executors={"image": "localhost/elastic-kernels/missing:1"}),
    }
    own = {"ELASTIC_KERNELS_USER_NAMESPACE": f"{backend.namespace}-{{username}}", "ELASTIC_KERNELS_DEPLOYMENT": backend.namespace}
    directory = tmp_path_factory.mktemp("gateway")
    async with gateway_on(backend, directory, profiles, environment={**IDENTITY, **own}, configuration=PLUGGED_IN) as running:
        yield running
        # those that never started go with their owner, in the cluster's own time
        await until(lambda: gone(backend, home), "the last executors to go", seconds=60)


async def test_a_job_on_two_executors_and_a_jar_that_reaches_them_and_lasts(backend: Backend, gateway: Gateway, home: str) -> None:
    async with kernel(gateway, "ana", "home") as run:
        assert (await run(HOSTS.replace("WORD", '"from_the_cell"'), JOB_SECONDS)).startswith("2 from_the_cell\n")
        there = await executors(backend, home)
        assert len(there) == 2
        assert {item["spec"]["nodeName"] for item in there} == {"spot"}
        await run(MAKE_A_JAR, JOB_SECONDS)
        await run("%AddJar file:/tmp/lasting.jar", JOB_SECONDS)
        assert (await run(HOSTS.replace("WORD", "lasting.Word.word"), JOB_SECONDS)).startswith("2 in_the_jar\n")
        with pytest.raises(AssertionError) as failure:
            await run("sc.parallelize(Seq(1, 0)).map { n =>\n  1 / n\n}.collect()", JOB_SECONDS)
        for part in ("org.apache.spark.SparkException", "java.lang.ArithmeticException: / by zero", "(cell 5:2)"):
            assert part in str(failure.value)
    await until_gone(backend, home)
    async with kernel(gateway, "ana", "home") as run:
        assert (await run(HOSTS.replace("WORD", "lasting.Word.word"), JOB_SECONDS)).startswith("2 in_the_jar\n")


async def test_a_job_whose_executors_cannot_start_says_why(gateway: Gateway) -> None:
    async with kernel(gateway, "ana", "no-image") as run:
        with pytest.raises(AssertionError) as failure:
            await run("sc.parallelize(1 to 2).count()", JOB_SECONDS)
        for part in ("its executors cannot start: their image ", "localhost/elastic-kernels/missing:1", "cannot be pulled"):
            assert part in str(failure.value)
        assert await run("1 + 1") == "2"
