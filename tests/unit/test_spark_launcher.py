"""What the launcher of Spark does before and beside Spark: its files, the names that stand for a session, why executors do not come."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import elastic_driver
import elastic_executors
import elastic_session
import elastic_ui
import pytest
import spark
from elastic_executors import Prospect

from elastic_kernels.gateway import spark_ui


def test_settings_are_written_for_java() -> None:
    settings = {"spark.b": "a\\b", "spark.a": "x y\n\tz", "spark.c": "ü=#!:"}
    assert spark.properties(settings) == "spark.a=x y\\n\\tz\nspark.b=a\\\\b\nspark.c=ü=#!:\n"


def test_settings_come_over_those_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spark-defaults.conf").write_text("spark.a 1\nspark.b 2\n")
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", "--verbose pyspark-shell")
    monkeypatch.delenv("PYSPARK_PYTHON", raising=False)
    spark.configure({"spark.b": "3"}, "/opt/python")
    option, path, *rest = os.environ["PYSPARK_SUBMIT_ARGS"].split()
    assert (option, rest) == ("--properties-file", ["--verbose", "pyspark-shell"])
    assert Path(path).read_text() == "spark.a 1\nspark.b 2\n\nspark.b=3\n"
    assert os.environ["PYSPARK_PYTHON"] == "/opt/python"
    Path(path).unlink()


@pytest.mark.parametrize(
    ("packages", "team", "settings", "expected"),
    [
        (None, None, {}, {}),
        ("/own", None, {}, {"spark.executorEnv.PYTHONPATH": "/own"}),
        ("/own", "/a:/b", {"spark.executorEnv.PYTHONPATH": "/c"}, {"spark.executorEnv.PYTHONPATH": "/own:/a:/b:/c"}),
    ],
)
def test_packages_on_executors(
    packages: str | None, team: str | None, settings: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KERNEL_TEAM_PACKAGES", raising=False)
    if team:
        monkeypatch.setenv("KERNEL_TEAM_PACKAGES", team)
    assert spark.on_executors(packages, settings) == expected


def test_an_image_without_spark_or_java(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        spark.ensure_spark()
    assert ended.value.code == 69
    assert "has no pyspark; install it with: pip install pyspark" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    with pytest.raises(SystemExit):
        spark.ensure_spark()
    assert capsys.readouterr().err == "elastic-kernels: this image has no Java, which Spark runs on (JAVA_HOME is /nowhere)\n"


class Thing:
    """Stands for a session."""

    answer = 42

    def double(self, n: int) -> int:
        return 2 * n

    def __repr__(self) -> str:
        return "<a thing>"


def test_a_name_is_made_by_its_use_and_by_nothing_else() -> None:
    made: list[Thing] = []
    using = threading.Event()

    def make() -> Thing:
        made[:] = made or [Thing()]
        return made[0]

    lazy: Any = elastic_session.Lazy(make, lambda: Thing, using.is_set)
    assert isinstance(lazy, Thing)
    assert "double" in dir(lazy)
    assert lazy.answer == 42
    assert callable(lazy.double)
    assert repr(lazy).startswith("<elastic_session.Lazy")
    assert made == []
    using.set()
    assert lazy.double(4) == 8
    assert len(made) == 1
    lazy.answer = 43
    assert (made[0].answer, repr(lazy)) == (43, "<a thing>")
    with pytest.raises(AttributeError, match="'Thing' object has no attribute 'absent'"):
        _ = lazy.absent  # type: ignore[attr-defined]


def session(log: int = 2) -> Any:
    active: list[str] = []
    jvm = SimpleNamespace(SparkSession=SimpleNamespace(setActiveSession=active.append))
    return SimpleNamespace(_jvm=jvm, _jsparkSession="java's", active=active)


def test_a_start_that_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes: list[Any] = [ValueError("no room"), session()]

    def make(settings: dict[str, str], log: int) -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(elastic_session, "_make", make)
    starting = elastic_session.Starting({}, 2)
    with pytest.raises(ValueError, match="no room"):
        starting.session()
    made = starting.session()
    assert made is starting.session()
    assert made.active == ["java's", "java's"]


def pod(*, phase: str = "Pending", state: dict[str, Any] | None = None, conditions: list[dict[str, str]] | None = None) -> dict[str, Any]:
    statuses = [{"image": "a/b:1", "state": state}] if state else []
    return {"metadata": {"name": "exec-1"}, "status": {"phase": phase, "containerStatuses": statuses, "conditions": conditions or []}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return pod(state={"waiting": {"reason": reason, "message": message}})


def test_the_command_of_the_driver(tmp_path: Path) -> None:
    (tmp_path / "jars").mkdir()
    for name in ("b.jar", "a.jar", "B.jar"):
        (tmp_path / "jars" / name).touch()
    environment = {
        "JAVA_HOME": "/java",
        "PYSPARK_SUBMIT_ARGS": "--properties-file '/tmp/a b' pyspark-shell",
        "HADOOP_CONF_DIR": "/etc/hadoop",
    }
    words = elastic_driver.command(str(tmp_path), {"spark.driver.memory": "512m"}, environment)
    assert words[0] == "/java/bin/java"
    assert "-Xmx512m" in words
    # the order of the archive, which is that of bytes
    jars = [f"{tmp_path}/jars/{name}" for name in ("B.jar", "a.jar", "b.jar")]
    assert words[words.index("-cp") + 1] == ":".join([*jars, f"{tmp_path}/conf", "/etc/hadoop"])
    assert words[-4:] == ["org.apache.spark.deploy.SparkSubmit", "--properties-file", "/tmp/a b", "pyspark-shell"]
    assert not any(word.startswith("-XX:SharedArchiveFile") for word in words)
    (tmp_path / elastic_driver.ARCHIVE).touch()
    assert f"-XX:SharedArchiveFile={tmp_path}/elastic-spark.jsa" in elastic_driver.command(str(tmp_path), {}, {})


def test_a_driver_that_does_not_come_up() -> None:
    with pytest.raises(RuntimeError, match=r"Java ended with exit code 3; the pod's log has more\."):
        elastic_driver.run([sys.executable, "-c", "raise SystemExit(3)"], 2)


def test_what_ended_a_driver_is_said_and_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    said = 'print("x"); raise SystemExit("Exception in thread \\"main\\" java.lang.X: no such package\\n\\tat y")'
    with pytest.raises(RuntimeError, match=r"could not be started: java\.lang\.X: no such package; the pod's log has more\."):
        elastic_driver.run([sys.executable, "-c", said], 2)
    assert capfd.readouterr().err == 'x\nException in thread "main" java.lang.X: no such package\n\tat y\n'


def test_jars_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.jar").touch()
    there = [f"{tmp_path}/a.jar", f"file://{tmp_path}/a.jar", f"{tmp_path}/*.jar", "local:///b.jar", "https://example.com/c.jar"]
    assert elastic_driver.missing_jars({}) == ""
    assert elastic_driver.missing_jars({"spark.jars": ",".join(there)}) == ""
    missing = f"{tmp_path}/d.jar, file:{tmp_path}/e.jar"
    clause = f"spark.jars names what is not there: {tmp_path}/d.jar, {tmp_path}/e.jar"
    assert elastic_driver.missing_jars({"spark.jars": f"{missing}, {there[0]}"}) == clause
    with pytest.raises(RuntimeError, match=r"spark\.jars names what is not there: /no\.jar\."):
        elastic_driver.start({"spark.jars": "/no.jar"}, 2)


class Context:
    """Stands for a Spark context with one job and no executors but the driver."""

    applicationId = "spark-1"

    def __init__(self) -> None:
        self.cancelled: list[tuple[int, str]] = []
        self.all_cancelled = 0

    def cancelAllJobs(self) -> None:
        self.all_cancelled += 1

    @property
    def _jsc(self) -> Any:
        tracker = SimpleNamespace(getActiveJobIds=lambda: [] if self.cancelled else [7], getExecutorInfos=lambda: ["driver"])
        return SimpleNamespace(sc=lambda: SimpleNamespace(statusTracker=lambda: tracker, cancelJob=lambda *job: self.cancelled.append(job)))


PULLED, PUT_OFF = ("ErrImagePull", "there is no such image"), ("ImagePullBackOff", "back-off")


def test_a_job_whose_executors_cannot_start_is_ended(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(elastic_executors, "SECONDS", 0.01)
    context, asked = Context(), []

    def executors(application: str) -> list[Any]:
        asked.append(application)
        if len(asked) == 1:
            raise OSError("the API server is away")
        return [waiting("ContainerCreating") if len(asked) < 10 else waiting(*(PULLED if len(asked) % 2 else PUT_OFF))]

    watcher = elastic_executors.Watcher(lambda: context, executors, 2)
    watcher.resume()
    deadline = time.monotonic() + 10
    while not context.cancelled:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    watcher.pause(is_interrupted=False)
    assert context.cancelled == [(7, "its executors cannot start: their image 'a/b:1' cannot be pulled: there is no such image")]
    assert set(asked) == {"spark-1"}
    said = capfd.readouterr().err.splitlines()
    assert said == [
        "elastic-kernels: the executors cannot be looked at: the API server is away",
        "Spark waits for executors: their image 'a/b:1' cannot be pulled: back-off",
        "Spark waits for executors: their image 'a/b:1' cannot be pulled: there is no such image",
    ]
    assert context.all_cancelled == 0
    watcher.pause(is_interrupted=True)
    assert context.all_cancelled == 1


@pytest.fixture
def relayed() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a relay's address, and where it finds Spark: a server that says what it was asked."""

    class Spark(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404 if self.path == "/absent" else 200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Set-Cookie", "a=b")
            self.end_headers()
            self.wfile.write(f"{self.path} {self.headers.get('X-Forwarded-Context')} {self.headers.get('Cookie')}".encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Spark)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found: dict[str, Any] = {"port": server.server_port}
    relay = elastic_ui.serve(b"key", lambda: found["port"], 0)
    yield f"http://127.0.0.1:{relay.server_port}", found
    for each in (relay, server):
        each.shutdown()
        each.server_close()


def fetch(url: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), dict(error.headers)


def test_pages_are_relayed_to_who_has_the_key(relayed: tuple[str, dict[str, Any]]) -> None:
    address, found = relayed
    key = spark_ui.derived_key(b"key")
    for wrong in ({}, {"X_Elastic_Kernels_Key": "guess"}, {"X_Elastic_Kernels_Key": spark_ui.derived_key(b"another kernel's")}):
        assert fetch(f"{address}/jobs/", **wrong)[0] == 403
    status, text, headers = fetch(f"{address}/jobs/?id=1", X_Elastic_Kernels_Key=key, X_Forwarded_Context="/base", Cookie="secret")
    assert (status, text) == (200, "/jobs/?id=1 /base None")
    assert "Set-Cookie" not in headers
    # what Spark does not have is told from what the relay has to say
    status, _, headers = fetch(f"{address}/absent", X_Elastic_Kernels_Key=key)
    assert (status, "X-Elastic-Kernels-Message" in headers) == (404, False)
    found["port"] = None
    status, _, headers = fetch(f"{address}/jobs/", X_Elastic_Kernels_Key=key)
    assert (status, headers["X-Elastic-Kernels-Message"]) == (404, "The kernel has not started Spark, or its Spark shows no pages.")
    found["port"] = 1
    assert fetch(f"{address}/jobs/", X_Elastic_Kernels_Key=key)[0] == 502


BEGAN = "2026-11-25T09:00:00Z"
ENDED = pod(phase="Failed", state={"terminated": {"exitCode": 3, "startedAt": BEGAN, "finishedAt": "2026-11-25T09:00:05Z"}})
LATER = pod(phase="Failed", state={"terminated": {"exitCode": 137, "startedAt": BEGAN, "finishedAt": "2026-11-25T09:30:00Z"}})
NO_START = pod(phase="Failed", state={"terminated": {"exitCode": 128, "reason": "StartError", "message": "no\nsuch file"}})


@pytest.mark.parametrize(
    ("pods", "prospect", "clause"),
    [
        ([waiting("ErrImageNeverPull")], Prospect.NONE, "their image 'a/b:1' is not on the machine and may not be pulled"),
        ([waiting("InvalidImageName")], Prospect.NONE, "their image 'a/b:1' is no name of an image"),
        ([waiting("ErrImagePull", "rpc error:\n not found")], Prospect.POOR, "their image 'a/b:1' cannot be pulled: rpc error: not found"),
        ([waiting("ImagePullBackOff", "back-off")], Prospect.POOR, "their image 'a/b:1' cannot be pulled: back-off"),
        ([waiting("CreateContainerConfigError", 'secret "x" not found')], Prospect.POOR, 'their container cannot be started: secret "x" not found'),
        ([ENDED] * 4, Prospect.NONE, "they end as soon as they have started (exit code 3); the log of the pod exec-1 has more"),
        ([*[NO_START] * 4, waiting("ContainerCreating")], Prospect.NONE, "they end as soon as they have started (exit code 128: no such file); the log of the pod exec-1 has more"),
        ([pod(conditions=[{"reason": "Unschedulable", "message": "0/2 nodes"}])], Prospect.GOOD, "no machine fits them so far: 0/2 nodes"),
    ],
)  # fmt: skip
def test_why_executors_do_not_come(pods: list[dict[str, Any]], prospect: Prospect, clause: str) -> None:
    assert elastic_executors.explain(pods) == (prospect, clause)


@pytest.mark.parametrize("pods", [[], [waiting("ContainerCreating")], [ENDED] * 3, [LATER] * 9, [*[ENDED] * 4, pod(phase="Running")]])
def test_executors_that_are_on_their_way(pods: list[dict[str, Any]]) -> None:
    assert elastic_executors.explain(pods) is None
