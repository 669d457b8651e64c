"""The launcher of Scala: the command that it makes of settings and limits, and what it says when the JVM does not do well."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import elastic_executors
import pytest
import toree

MEBIBYTE = 1 << 20
LAUNCHER = Path(toree.__file__)


@pytest.fixture
def image(tmp_path: Path) -> toree.Image:
    for name in ("spark/jars/spark-core_2.12-3.5.9.jar", "spark/jars/a.jar", "toree/lib/toree-assembly.jar", "toree/lib/elastic-toree.jar"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return toree.Image("/usr/bin/java", str(tmp_path / "spark"), str(tmp_path / "toree"))


def after(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


@pytest.mark.parametrize(
    ("limit", "driver_memory", "expected"),
    [
        (None, None, []),
        (1024 * MEBIBYTE, None, ["-Xmx624m"]),
        (8192 * MEBIBYTE, None, ["-Xmx6553m"]),
        (300 * MEBIBYTE, None, ["-Xmx480m"]),
        (1024 * MEBIBYTE, "2g", ["-Xmx2g"]),
        (None, "716800kb", ["-Xmx716800k"]),
    ],
)
def test_the_heap_is_what_the_limit_leaves(limit: int | None, driver_memory: str | None, expected: list[str]) -> None:
    assert toree.heap_options(limit, driver_memory) == expected


@pytest.mark.parametrize(("text", "expected"), [("max\n", None), ("1073741824\n", 1 << 30), ("9223372036854771712\n", None), (None, None)])
def test_the_limit_is_the_cgroups(text: str | None, expected: int | None, tmp_path: Path) -> None:
    path = tmp_path / "memory.max"
    if text:
        path.write_text(text)
    assert toree.memory_limit([str(path)]) == expected


@pytest.mark.parametrize(
    ("release", "expected"), [('JAVA_VERSION="17.0.15"', 17), ('JAVA_VERSION="1.8.0_4"', 8), ("X=1", None), (None, None)]
)
def test_the_version_of_a_java(release: str | None, expected: int | None, tmp_path: Path) -> None:
    if release:
        (tmp_path / "release").write_text(f'IMPLEMENTOR="Debian"\n{release}\n')
    assert toree.java_version(str(tmp_path / "bin" / "java")) == expected


def test_without_settings_spark_runs_in_the_kernel(image: toree.Image) -> None:
    command = toree.java_command(image, {}, "lazy", None, None, "/run/kernel.json")
    assert command[0] == "/usr/bin/java"
    jars = after(command, "-cp").split(":")
    assert [Path(jar).name for jar in jars] == ["a.jar", "spark-core_2.12-3.5.9.jar", "elastic-toree.jar", "toree-assembly.jar"]
    assert not {"--jars", "--conf"} & set(command)
    rest = ["spark-internal", "--profile", "/run/kernel.json", "--alternate-sigint", "URG", "--spark-context-initialization-mode", "lazy"]
    assert command[-7:] == rest


def test_settings_become_options(image: toree.Image, tmp_path: Path) -> None:
    jars = tmp_path / "jars"
    jars.mkdir()
    (jars / "mine.jar").touch()
    settings = {
        "spark.master": "k8s://https://10.0.0.1:443",
        "spark.driver.memory": "700m",
        "spark.driver.extraJavaOptions": "-Da='b c'",
        "spark.driver.extraClassPath": "/x.jar",
        "spark.jars": "/y.jar",
        "spark.task.reaper.killTimeout": "5s",
        "spark.app.name": "Ana's",
    }
    command = toree.java_command(image, settings, "eager", 1 << 30, str(jars), "/run/kernel.json")
    assert {"-Xmx700m", "-Da=b c", "-XX:TieredStopAtLevel=1"} <= set(command)
    assert after(command, "-cp").startswith("/x.jar:")
    lib = f"local://{image.toree}/lib"
    assert after(command, "--jars") == f"/y.jar,file://{jars}/mine.jar,{lib}/elastic-toree.jar,{lib}/toree-assembly.jar"
    conf = [command[index + 1] for index, word in enumerate(command) if word == "--conf"]
    assert conf == [
        "spark.app.name=Ana's",
        "spark.master=k8s://https://10.0.0.1:443",
        "spark.task.reaper.enabled=true",
        "spark.task.reaper.killTimeout=5s",
    ]
    assert after(command, "--name") == "Ana's"
    assert after(command, "--jar-dir") == str(jars)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (toree.SPARK_CONF, "{", "ELASTIC_KERNELS_SPARK_CONF is not JSON (Expecting property name"),
        (toree.SPARK_CONF, '{"a": "b"}', "ELASTIC_KERNELS_SPARK_CONF is not a JSON object of spark.* settings with texts"),
        (toree.SPARK_SESSION, "soon", "ELASTIC_KERNELS_SPARK_SESSION is 'soon'; it is one of lazy, eager, none"),
        (toree.START_TIMEOUT, "soon", "ELASTIC_KERNELS_START_TIMEOUT is 'soon', which is no number of seconds"),
    ],
)
def test_bad_variables_are_named(
    name: str, value: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    read = {toree.SPARK_CONF: toree.spark_settings, toree.SPARK_SESSION: toree.session_mode, toree.START_TIMEOUT: toree.start_timeout}[name]
    with pytest.raises(SystemExit) as end:
        read()
    assert end.value.code == 64
    assert capsys.readouterr().err.startswith(f"elastic-kernels: {sentence}")


def test_a_wait_for_executors_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def pods(application: str) -> list[dict[str, Any]]:
        asked.append(application)
        waiting = {"reason": "ErrImagePull", "message": "not found"}
        return [{"status": {"containerStatuses": [{"image": "a/b:1", "state": {"waiting": waiting}}]}}]

    monkeypatch.setattr(elastic_executors, "list_executors", pods)
    answers = io.BytesIO()
    toree.explain_waits(["spark-1\n", "\n", "spark-1\n", "spark-1\n"], answers)
    assert asked == ["spark-1"] * 3
    said = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [answer["hopeless"] for answer in said] == [False, False, True]
    assert {answer["why"] for answer in said} == {"their image 'a/b:1' cannot be pulled: not found"}


def supervised(script: str, timeout: float = 30) -> subprocess.Popen[str]:
    """Run a shell script in the place of the JVM, as the container's first process would."""
    program = f"import toree; toree.supervise(['sh', '-c', {script!r}], {timeout})"
    environment = {**os.environ, "PYTHONPATH": str(LAUNCHER.parent)}
    return subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("script", "code", "sentence"),
    [
        ("echo > $ELASTIC_KERNELS_READY_FILE; exit 0", 0, ""),
        ("echo > $ELASTIC_KERNELS_READY_FILE; exit 3", 3, "Toree ended with exit code 3; the lines above say why"),
        ("echo 'Exception in thread \"main\" x.Y: z' >&2; exit 1", 1, "Toree did not start: x.Y: z; the lines above say more"),
        ("exit 1", 1, "Toree did not start and ended with exit code 1; the lines above say why"),
        ("echo > $ELASTIC_KERNELS_READY_FILE; kill -9 $$", 137, "Toree was ended by SIGKILL"),
        ("exec sleep 60", 69, "Toree was not ready within 0.5 seconds, and was ended"),
    ],
)
def test_how_the_jvm_ended_is_the_last_line(script: str, code: int, sentence: str) -> None:
    process = supervised(script, 0.5 if "sleep" in script else 30)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert errors.strip().splitlines()[-1:] == ([f"elastic-kernels: {sentence}"] if sentence else [])


@pytest.mark.parametrize(("number", "trap", "code"), [(signal.SIGTERM, "TERM", 143), (signal.SIGINT, "URG", 5)])
def test_signals_reach_the_jvm(number: signal.Signals, trap: str, code: int) -> None:
    script = f"trap 'exit {code}' {trap}; echo > $ELASTIC_KERNELS_READY_FILE; echo ready; while :; do sleep 0.1; done"
    process = supervised(script)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == code
