"""Scala kernels with executors in pods of their own: a job on two of them, a jar that reaches them, a failure there that is told here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from elastic_kernels.profiles import Profile
from tests.cluster.spark import JOB_SECONDS, SMALL, executors, gone, grant, spark_profile, until_ended, until_gone
from tests.cluster.test_scala import scala_profile
from tests.conftest import KERNEL_IMAGE, Backend, gateway_on
from tests.gateway import PLUGGED_IN, Gateway, until
from tests.volumes import IDENTITY, as_user, claim, kernel, refused, release

# on both executors: each task takes a while, and where one has done all before the other was there, there are more
HOSTS = """
case class Seen(host: String, what: String)
var seen = Set.empty[Seen]
while (seen.size < 2) seen ++= sc.parallelize(1 to 16, 16).map { _ =>
  Thread.sleep(500)
  Seen(java.net.InetAddress.getLocalHost.getHostName, WORD)
}.collect()
println(seen.size + " " + seen.map(_.what).mkString(" "))
"""
# as when the pod's machine runs out of memory
KILL = 'new ProcessBuilder("sh", "-c", "kill -9 $PPID").start().waitFor()'
# a repository on the home volume, with one package in it, whose class is a function of SQL as well
PUBLISH = """
import java.nio.file.{Files, Paths}
val folder = Files.createDirectories(Paths.get("/home/jovyan/maven/org/fetched/fetched/1.0"))
val pom = "<groupId>org.fetched</groupId><artifactId>fetched</artifactId><version>1.0</version>"
Files.write(folder.resolve("fetched-1.0.pom"), s"<project><modelVersion>4.0.0</modelVersion>$pom</project>".getBytes)
val code = "package fetched\\nobject Word { def word = \\"in_the_package\\" }\\n" +
  "class Said extends org.apache.spark.sql.api.java.UDF1[java.lang.Long, String] { def call(n: java.lang.Long) = Word.word }"
val file = Files.write(Paths.get("/tmp/Fetched.scala"), code.getBytes)
require(scala.tools.nsc.Main.process(Array("-usejavacp", "-d", s"$folder/fetched-1.0.jar", file.toString)))
"""
REPOSITORY = "file:/home/jovyan/maven"
FETCHED = "/home/jovyan/maven/org/fetched/fetched/1.0/fetched-1.0.jar"
IN_PYTHON = """
spark.udf.registerJavaFunction("said", "fetched.Said", "string")
rows = spark.range(16).repartition(4).selectExpr("said(id) as said").collect()
print({row.said for row in rows}, sc._jsc.sc().isLocal())
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
        "in-python": spark_profile("in-python", home=True),
        "no-executor": scala("no-executor", executors={"image": KERNEL_IMAGE}),
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


async def test_packages_of_a_repository_reach_executors_and_last(gateway: Gateway) -> None:
    hosts = HOSTS.replace("WORD", "fetched.Word.word")
    async with kernel(gateway, "ana", "home") as run:
        await run(PUBLISH, JOB_SECONDS)
        await run(f"%AddDeps org.fetched fetched 1.0 --repository {REPOSITORY}", JOB_SECONDS)
        assert (await run(hosts, JOB_SECONDS)).startswith("2 in_the_package\n")
    async with kernel(gateway, "ana", "home") as run:
        assert (await run(hosts, JOB_SECONDS)).startswith("2 in_the_package\n")
    settings = f"spark.jars.repositories={REPOSITORY} spark.jars.packages=org.fetched:fetched:1.0"
    for chosen in (settings, f"spark.jars={FETCHED}"):
        async with kernel(gateway, "ana", "in-python", KERNEL_SPARK_SETTINGS=chosen) as run:
            assert await run(IN_PYTHON, JOB_SECONDS) == "{'in_the_package'} False\n"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            f"spark.jars.repositories={REPOSITORY} spark.jars.packages=no.such:thing:1.0",
            "unresolved dependency: no.such#thing;1.0: not found",
        ),
        ("spark.jars=/home/jovyan/no.jar", "spark.jars names what is not there: /home/jovyan/no.jar"),
    ],
)
async def test_packages_that_do_not_exist(gateway: Gateway, settings: str, sentence: str) -> None:
    status, said = await refused(gateway, "ana", "home", KERNEL_SPARK_SETTINGS=settings)
    assert (status, sentence in said) == (500, True), said
    async with kernel(gateway, "ana", "in-python", KERNEL_SPARK_SETTINGS=settings) as run:
        with pytest.raises(AssertionError) as failure:
            await run("spark.version", JOB_SECONDS)
        assert "Spark's driver could not be started: " in str(failure.value)
        assert sentence in str(failure.value)
        assert await run("1 + 1") == "2"


async def test_a_driver_that_is_killed_and_its_pages(backend: Backend, gateway: Gateway, home: str) -> None:
    async with kernel(gateway, "ana", "home") as run, aiohttp.ClientSession() as client:
        await run(HOSTS.replace("WORD", '"x"'), JOB_SECONDS)
        pages = f"{gateway.address}/api/kernels/{run.id}/spark-ui"
        for user, path, status in (("ana", "/jobs/", 200), ("ana", "/executors/", 200), ("bob", "/jobs/", 404)):
            async with client.get(pages + path, headers=as_user(user)) as response:
                assert (response.status, "Spark Jobs" in await response.text()) == (status, (user, path) == ("ana", "/jobs/"))
        there = await executors(backend, home)
        begun_with = {item["metadata"]["uid"] for item in there}
        assert len(begun_with) == 2
        killed = asyncio.create_task(run(KILL, JOB_SECONDS))
        await until_ended(backend, there[0])
        await until_gone(backend, home, of=begun_with)
        # what becomes of the cell is another test's concern
        await asyncio.wait([killed])
        assert killed.exception() is not None


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no-image", ("their image ", "localhost/elastic-kernels/missing:1", "cannot be pulled")),
        ("no-executor", ("they end as soon as they have started (exit code 128: ",)),
    ],
)
async def test_a_job_whose_executors_cannot_start_says_why(gateway: Gateway, name: str, sentence: tuple[str, ...]) -> None:
    async with kernel(gateway, "ana", name) as run:
        with pytest.raises(AssertionError) as failure:
            await run("sc.parallelize(1 to 2).count()", JOB_SECONDS)
        for part in ("its executors cannot start: ", *sentence):
            assert part in str(failure.value)
        assert await run("1 + 1") == "2"
