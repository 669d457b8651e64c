"""Scala kernels on a real cluster: each cell of the table is answered as it says, in the protocol's order, as often as it is run."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from elastic_kernels.profiles import Profile
from elastic_kernels.record import connection_key
from tests.cluster.scala_cells import CELLS, Cell
from tests.conftest import Backend, gateway_on, profile
from tests.gateway import Channels, Gateway, Reply

IMAGE = "elastic-kernels/kernel-scala:dev"
COMMAND = ["python3", "{launchers}/toree.py", "{connection_file}"]
TURNS = int(os.environ.get("ELASTIC_KERNELS_SCALA_TURNS", "1"))
"""How often the whole table is run, each time in a kernel of its own."""
INTERRUPT_SECONDS = 3.0
SLOW = 120.0


def scala_profile(name: str, **fields: Any) -> Profile:
    return profile(name, **{"image": IMAGE, "language": "scala", "command": COMMAND, "memory": "1500Mi", **fields})


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    profiles = {
        "scala": scala_profile("scala"),
        "read-only": scala_profile("read-only", security={"uid": 4321, "gid": 4321, "read_only_root": True}),
        "no-spark": scala_profile("no-spark", environment={"ELASTIC_KERNELS_SPARK_SESSION": "none"}),
        "no-java": scala_profile("no-java", image="elastic-kernels/kernel-python:dev"),
        "no-time": scala_profile("no-time", environment={"ELASTIC_KERNELS_START_TIMEOUT": "0.1"}),
        "bad-settings": scala_profile("bad-settings", environment={"ELASTIC_KERNELS_SPARK_CONF": '{"spark.ui.enabled": false}'}),
    }
    async with gateway_on(backend, tmp_path_factory.mktemp("gateway"), profiles) as running:
        yield running


@pytest.fixture(scope="module")
async def kernel(gateway: Gateway) -> AsyncIterator[str]:
    """One kernel for the tests that leave it as they found it."""
    started = await gateway.start("scala")
    yield started
    await gateway.stop(started)


@pytest.fixture
async def channels(gateway: Gateway, kernel: str) -> AsyncIterator[Channels]:
    async with gateway.channels(kernel) as connected:
        yield connected


async def test_every_cell_is_answered_as_it_is_meant(gateway: Gateway) -> None:
    assert len(CELLS) >= 40
    for turn in range(TURNS):
        kernel = await gateway.start("scala")
        async with gateway.channels(kernel) as channels:
            for number, cell in enumerate(CELLS, 1):
                reply, order = await watched(channels, cell)
                assert not wrong(cell, reply, order), f"turn {turn}, cell {number}, {cell.title!r}: {reply}"
                assert reply.content["execution_count"] == number
        await gateway.stop(kernel)


async def watched(channels: Channels, cell: Cell) -> tuple[Reply, list[str]]:
    """Run a cell, and return besides what came of it the order in which it came."""
    order: list[str] = []
    content = {"code": cell.code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": cell.types is not None}
    identity = await channels.send("shell", "execute_request", content)
    reply: dict[str, Any] | None = None
    published = []
    end = time.monotonic() + SLOW
    while reply is None or order[-1:] != ["idle"]:
        message = await asyncio.wait_for(channels.receive(), end - time.monotonic())
        if message["parent_header"].get("msg_id") != identity:
            continue
        if message["channel"] == "shell":
            reply = message["content"]
        elif message["msg_type"] == "input_request":
            await channels.send("stdin", "input_reply", {"value": cell.types})
        elif message["msg_type"] == "status":
            order.append(message["content"]["execution_state"])
        else:
            order.append(message["msg_type"])
            published.append(message)
    return Reply(reply, published), order


def wrong(cell: Cell, reply: Reply, order: list[str]) -> str:
    """Return what is not as the cell says, or empty."""
    expected = "error" if cell.error else "ok"
    if reply.status != expected:
        return f"status {reply.status}"
    if cell.shows is not None and reply.text != cell.shows:
        return f"shows {reply.text!r}"
    if order[:2] != ["busy", "execute_input"] or order[-1] != "idle" or order.count("idle") != 1:
        return f"order {order}"
    errors = [message["content"] for message in reply.published if message["msg_type"] == "error"]
    if not cell.error:
        return "an error beside ok" if errors else ""
    if len(errors) != 1 or order[-2] != "error":
        return f"order {order}"
    for said in (errors[0], reply.content):
        if (
            said["ename"] != cell.error
            or cell.says not in said["evalue"]
            or not said["traceback"]
            or cell.trace not in "\n".join(said["traceback"])
        ):
            return f"error {said}"
    return ""


@pytest.mark.parametrize(
    "code",
    [
        "Thread.sleep(60000)",
        "while (true) {}",
        "def fibonacci(n: Int): Long = if (n < 2) n else fibonacci(n - 1) + fibonacci(n - 2)\nfibonacci(60)",
        "spark.range(1000).map(i => { Thread.sleep(1000); i }).count()",
        "spark.range(1000000000000L).selectExpr('sum(id * id)').show()".replace("'", '"'),
        "while (true) try Thread.sleep(1000) catch { case _: InterruptedException => }",
    ],
)
async def test_an_interrupt_ends_whatever_a_cell_does(gateway: Gateway, kernel: str, channels: Channels, code: str) -> None:
    assert (await channels.execute("sc.version", seconds=SLOW)).status == "ok"
    assert await interrupted(gateway, kernel, channels, f'println("begun")\n{code}') == "The cell was interrupted."
    assert (await channels.execute("spark.range(3).count()")).text == "3"


async def test_an_interrupt_of_what_nothing_can_interrupt_says_so(gateway: Gateway, kernel: str, channels: Channels) -> None:
    assert (await channels.execute("val server = new java.net.ServerSocket(0)", seconds=SLOW)).status == "ok"
    said = await interrupted(gateway, kernel, channels, 'println("begun")\nserver.accept()')
    assert said.startswith("The cell was interrupted, but waits in sun.nio.ch.Net.")
    assert said.endswith(", which nothing can interrupt, and ends when that returns: or restart the kernel.")
    assert (await channels.execute("server.close()")).status == "ok"


async def test_an_interrupt_ends_jobs_of_the_cell_that_starts_spark(gateway: Gateway) -> None:
    kernel = await gateway.start("scala")
    async with gateway.channels(kernel) as channels:
        code = 'Seq(1).toDF("n").as[Int].map { n => println("begun"); Thread.sleep(60000); n }.count()'
        assert await interrupted(gateway, kernel, channels, code) == "The cell was interrupted."
        left = "while (sc.statusTracker.getActiveJobIds.nonEmpty) Thread.sleep(50)\nspark.range(3).count()"
        assert (await channels.execute(left, seconds=30)).text == "3"
    await gateway.stop(kernel)


async def interrupted(gateway: Gateway, kernel: str, channels: Channels, code: str) -> str:
    """Interrupt a cell as soon as it prints something, and return what it says of that, in time."""
    cell = await channels.send("shell", "execute_request", {"code": code, "silent": False, "allow_stdin": False})
    while (message := await channels.receive())["msg_type"] != "stream" or message["parent_header"].get("msg_id") != cell:
        pass
    begin = time.monotonic()
    assert (await gateway.request("POST", f"/api/kernels/{kernel}/interrupt"))[0] == 204
    reply = await asyncio.wait_for(channels.finish(cell), 30)
    assert time.monotonic() - begin < INTERRUPT_SECONDS
    assert reply.content["ename"] == "Interrupted"
    return str(reply.content["evalue"])


async def test_a_session_that_cannot_start_is_an_error_each_time_and_can_be_had_later(gateway: Gateway) -> None:
    kernel = await gateway.start("scala")
    async with gateway.channels(kernel) as channels:
        # a class that is loaded already, by another name, is a LinkageError, with which a Future of Scala 2.12 does not end
        await channels.execute('class Listener\nnew Listener\nsys.props("spark.extraListeners") = "Listener"', seconds=SLOW)
        for _ in range(2):
            reply = await channels.execute("spark.version", seconds=SLOW)
            assert reply.content["ename"] in ("java.lang.LinkageError", "java.lang.NoClassDefFoundError"), reply.content
        assert (await channels.execute('sys.props -= "spark.extraListeners"\nspark.range(3).count()', seconds=SLOW)).result == "3"
    await gateway.stop(kernel)


async def test_what_is_asked_meanwhile_is_answered_when_the_cell_is_over(channels: Channels) -> None:
    """Whoever connects to a kernel asks it, to know whether it is busy."""
    asked = [
        await channels.send("shell", "execute_request", {"code": "Thread.sleep(2000)", "silent": False, "allow_stdin": False}),
        await channels.send("shell", "kernel_info_request", {}),
        await channels.send("shell", "comm_info_request", {}),
    ]
    answered: list[str] = []
    idle: list[str] = []
    while len(answered) < len(asked) or len(idle) < len(asked):
        message = await channels.receive()
        parent = message["parent_header"].get("msg_id")
        if parent in asked and message["channel"] == "shell":
            answered.append(parent)
        elif parent in asked and message["content"].get("execution_state") == "idle":
            idle.append(parent)
    assert answered == asked
    assert idle == asked


async def test_what_looks_for_classes_does_not_disturb_the_compiler(channels: Channels) -> None:
    """As Spark does on threads of its own, for a job that goes on or was just interrupted."""
    look = """
val loader = Thread.currentThread.getContextClassLoader
val looking = new Thread(() => while (!Thread.interrupted()) try loader.loadClass("Nobody") catch { case _: ClassNotFoundException => })
looking.setDaemon(true)
looking.start()
"""
    assert (await channels.execute(look, seconds=SLOW)).status == "ok"
    try:
        for number in range(40):
            code = f"case class Point{number}(x: Int) {{ def plus = {number} + x }}\nSeq(Point{number}(1)).map(_.plus).sum"
            reply = await channels.execute(code)
            assert reply.result == str(number + 1), reply.content
        found = await channels.execute('Seq("Point7.class", "Point7$.class", "Nobody.class").map(loader.getResourceAsStream(_) != null)')
        assert found.result == "List(true, true, false)", found.content
    finally:
        await channels.execute("looking.interrupt()")


async def test_what_was_sent_after_a_failing_cell_is_not_run(channels: Channels) -> None:
    content = {"silent": False, "stop_on_error": True, "allow_stdin": False}
    sent = [
        await channels.send("shell", "execute_request", {"code": code, **content})
        for code in ('Thread.sleep(2000); sys.error("first")', "val second = 2", "val third = 3")
    ]
    statuses: dict[str, str] = {}
    while len(statuses) < len(sent):
        message = await channels.receive()
        if message["msg_type"] == "execute_reply":
            statuses[message["parent_header"]["msg_id"]] = message["content"]["status"]
    assert [statuses[identity] for identity in sent] == ["error", "aborted", "aborted"]


async def test_completion_inspection_and_completeness(channels: Channels) -> None:
    async def ask(kind: str, **content: Any) -> dict[str, Any]:
        identity = await channels.send("shell", f"{kind}_request", content)
        while True:
            message = await channels.receive()
            if message["channel"] == "shell" and message["parent_header"].get("msg_id") == identity:
                return dict(message["content"])

    await channels.execute('val greeting = "hello"')
    found = await ask("complete", code="greet", cursor_pos=5)
    assert (found["matches"], found["cursor_start"], found["cursor_end"]) == (["greeting"], 0, 5)
    assert "toUpperCase" in (await ask("complete", code="greeting.toU", cursor_pos=12))["matches"]
    seen = await ask("inspect", code="greeting.length + 1", cursor_pos=12, detail_level=0)
    assert seen["data"] == {"text/plain": "greeting.length: Int"}
    assert not (await ask("inspect", code="nothing", cursor_pos=3, detail_level=0))["found"]
    states = {code: (await ask("is_complete", code=code))["status"] for code in ("1 + 1", "if (true) {", "val x = )", "// so")}
    assert states == {"1 + 1": "complete", "if (true) {": "incomplete", "val x = )": "invalid", "// so": "complete"}


async def test_jupyters_own_tests_of_a_kernel(backend: Backend, gateway: Gateway, kernel: str, tmp_path: Path) -> None:
    (pod,) = await backend.pods(kernel)
    (secret,) = [item for item in await backend.records() if item["metadata"]["uid"] == pod["metadata"]["ownerReferences"][0]["uid"]]
    connection = json.loads(base64.b64decode(secret["data"][connection_key(0)]))
    file = tmp_path / "kernel.json"
    file.write_text(json.dumps({**connection, "ip": pod["status"]["podIP"]}))
    python = Path(os.environ["ELASTIC_KERNELS_LAB"]).with_name("python")
    program = [str(python), str(Path(__file__).with_name("scala_protocol.py")), str(file)]
    process = await asyncio.create_subprocess_exec(*program, stderr=asyncio.subprocess.PIPE)
    _, said = await asyncio.wait_for(process.communicate(), SLOW)
    assert process.returncode == 0, said.decode()
    # three ways to ask for a history, and a pager
    assert "OK (skipped=4)" in said.decode()


async def test_any_uid_without_a_writable_root(gateway: Gateway) -> None:
    kernel = await gateway.start("read-only")
    code = """
val root = scala.util.Try(java.nio.file.Files.createFile(java.nio.file.Paths.get("/opt/x")))
print(root.failed.get.getClass.getSimpleName, spark.range(4).map(_ + 1).reduce(_ + _))
java.nio.file.Files.createFile(java.nio.file.Paths.get(sys.props("user.home"), "x")).toFile.length
"""
    async with gateway.channels(kernel) as channels:
        assert (await channels.execute(code, seconds=SLOW)).text.startswith("(FileSystemException,10)")
    await gateway.stop(kernel)


async def test_no_session_where_none_is_wanted(gateway: Gateway) -> None:
    kernel = await gateway.start("no-spark")
    async with gateway.channels(kernel) as channels:
        assert (await channels.execute("spark")).content["evalue"] == "not found: value spark (cell 1:1)"
        assert (await channels.execute("%%sql\nselect 1")).content["ename"] == "SparkNotAvailable"
        assert (await channels.execute("1 + 1")).text == "2"
    await gateway.stop(kernel)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no-java", "this image has no Java; Scala needs a Java 17 (on Debian: apt-get install openjdk-17-jre-headless)"),
        ("no-time", "Toree was not ready within 0.1 seconds, and was ended"),
        ("bad-settings", "ELASTIC_KERNELS_SPARK_CONF is not a JSON object of spark.* settings with texts"),
    ],
)
async def test_a_kernel_that_cannot_start_says_why(gateway: Gateway, name: str, sentence: str) -> None:
    status, said = await gateway.refused(name, KERNEL_LAUNCH_TIMEOUT="120")
    assert status == 500
    assert said.startswith(f"The kernel '{name}' cannot start: it ended with exit code ")
    assert f"elastic-kernels: {sentence}" in said
