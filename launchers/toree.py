"""Starts Toree, the Scala kernel with Spark, in a pod: ``python3 toree.py CONNECTION_FILE``.

The image (docker/kernel-scala) holds Java, Spark, Toree and an add-on to it. This says how much memory the JVM may take, which Spark
it is to start, and which of the user's jars; passes signals on; and if the JVM ends, or hangs at its start, says so in the last line
of the log.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from types import FrameType
from typing import IO, NoReturn

import elastic_driver
import elastic_launcher
from elastic_launcher import NO_KERNEL, fail

SPARK_CONF = "ELASTIC_KERNELS_SPARK_CONF"
"""The variable with Spark's settings, a JSON object of texts. Without it Spark runs in the kernel's own process."""
SPARK_SESSION = "ELASTIC_KERNELS_SPARK_SESSION"
"""The variable that says when the Spark session starts: lazy, eager or none."""
START_TIMEOUT = "ELASTIC_KERNELS_START_TIMEOUT"
"""The variable with the seconds that the JVM may take to become a kernel."""

_SESSIONS = ("lazy", "eager", "none")
_JAVA = 17
_MAIN = "org.apache.toree.elastic.Main"
_ARCHIVE = "elastic-toree.jsa"
# what a JVM takes beside its heap: classes, compiled code, threads, buffers
_BESIDE_HEAP = 400 << 20
# what Spark insists on, and some
_LEAST_HEAP = 480 << 20
# A start is much code that runs a few times: the optimizing compiler takes as long again, for nothing. It is left out where executors
# do the work, and comes later where the driver does.
_JIT_OF_A_DRIVER = ("-XX:TieredStopAtLevel=1",)
_JIT_OF_ALL = (
    "-XX:Tier3DelayOn=0", "-XX:Tier4InvocationThreshold=50000", "-XX:Tier4MinInvocationThreshold=20000",
    "-XX:Tier4CompileThreshold=60000", "-XX:Tier4BackEdgeThreshold=400000",
)  # fmt: skip
# seconds after which another wait has begun
_SAME_WAIT = 10.0
# beyond what Spark reaches into: for Toree's %AddJar --magic
_OPENED = (*elastic_driver.OPENED, "java.util.jar")


@dataclass(frozen=True)
class Image:
    """Where things are in the image."""

    java: str
    spark: str
    toree: str


def main(arguments: list[str]) -> NoReturn:
    """Run the kernel until it ends; called as the container's first process."""
    connection_file = elastic_launcher.connection_file(arguments, "python3 toree.py CONNECTION_FILE")
    elastic_launcher.enter_working_directory()
    elastic_launcher.ensure_home()
    image = find_image()
    # at the end, and only now: a package of Toree's has this file's name
    sys.path.append(os.path.dirname(os.path.abspath(__file__)))
    settings = spark_settings()
    if missing := elastic_driver.missing_jars(settings):
        fail(missing, elastic_launcher.USAGE_ERROR)
    command = java_command(image, settings, session_mode(), memory_limit(), jar_folder(), connection_file)
    os.environ["SPARK_HOME"] = image.spark
    supervise(command, start_timeout(), beside=lambda: show_pages(connection_file, settings.get("spark.ui.port")))


def find_image() -> Image:
    """Return where Java, Spark and Toree are, or end with what is missing."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=os.path.join(home, "bin") if home else None) or shutil.which("java")
    if java is None:
        fail(f"this image has no Java; Scala needs a Java {_JAVA} (on Debian: apt-get install openjdk-{_JAVA}-jre-headless)", NO_KERNEL)
    version = java_version(java)
    if version not in (None, _JAVA):
        fail(f"this image's {java} is Java {version}; Scala needs Java {_JAVA}", NO_KERNEL)
    spark = os.environ.get("SPARK_HOME") or package_folder("pyspark")
    toree = package_folder("toree")
    if not spark or not glob(os.path.join(spark, "jars", "spark-core_*.jar")):
        fail(f"this image has no Spark for {sys.executable}; install it with: pip install pyspark==3.5.*", NO_KERNEL)
    if not toree or not glob(os.path.join(toree, "lib", "elastic-toree*.jar")):
        fail("this image has no Toree with the add-on of elastic-kernels; start yours from docker/kernel-scala", NO_KERNEL)
    return Image(java, spark, toree)


def java_version(java: str) -> int | None:
    """Return the major version of a Java, or None where nothing says it."""
    release = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(java))), "release")
    try:
        with open(release, encoding="utf-8") as file:
            found = re.search(r'^JAVA_VERSION="(?:1\.)?(\d+)', file.read(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def package_folder(name: str) -> str | None:
    """Return the folder of an installed Python package, without importing it."""
    spec = importlib.util.find_spec(name)
    return spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else None


def jar_folder() -> str | None:
    """Return the folder of the user's jars, which %AddJar and %AddDeps fill and each kernel starts with; None where none can be kept."""
    packages = os.environ.get(elastic_launcher.PACKAGES)
    if not packages:
        return None
    folder = os.path.join(packages, "jars")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        elastic_launcher.say(f"jars cannot be kept in {folder} ({error.strerror}); what is added is gone with this kernel")
        return None
    return folder


def spark_settings() -> dict[str, str]:
    """Return Spark's settings from the environment, or end if they are no such thing."""
    text = os.environ.get(SPARK_CONF) or "{}"
    try:
        settings = json.loads(text)
    except ValueError as error:
        fail(f"{SPARK_CONF} is not JSON ({error})", elastic_launcher.USAGE_ERROR)
    if not isinstance(settings, dict) or not all(isinstance(value, str) and name.startswith("spark.") for name, value in settings.items()):
        fail(f"{SPARK_CONF} is not a JSON object of spark.* settings with texts", elastic_launcher.USAGE_ERROR)
    return settings


def session_mode() -> str:
    """Return when the Spark session starts."""
    mode = os.environ.get(SPARK_SESSION) or "lazy"
    if mode not in _SESSIONS:
        fail(f"{SPARK_SESSION} is {mode!r}; it is one of {', '.join(_SESSIONS)}", elastic_launcher.USAGE_ERROR)
    return mode


def start_timeout() -> float:
    """Return the seconds that the JVM may take to become a kernel."""
    text = os.environ.get(START_TIMEOUT) or "180"
    try:
        return float(text)
    except ValueError:
        fail(f"{START_TIMEOUT} is {text!r}, which is no number of seconds", elastic_launcher.USAGE_ERROR)


def memory_limit(files: Sequence[str] = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")) -> int | None:
    """Return the bytes that the container may take, or None if there is no limit."""
    for path in files:
        try:
            with open(path, encoding="ascii") as file:
                text = file.read().strip()
        except OSError:
            continue
        # cgroup v1 has no word for no limit, but a number that no machine has
        return int(text) if text.isdigit() and int(text) < 1 << 60 else None
    return None


def show_pages(connection_file: str, port: str | None) -> None:
    """Show Spark's pages to the gateway, if it has said where Spark is to put them."""
    if not port:
        return
    # the JVM does not wait for this
    import elastic_ui

    def port_of_spark() -> int | None:
        with socket.socket() as probe:
            return int(port) if probe.connect_ex(("127.0.0.1", int(port))) == 0 else None

    with open(connection_file, encoding="utf-8") as file:
        key = json.load(file)["key"].encode()
    elastic_ui.serve(key, port_of_spark)


def heap_options(limit: int | None, driver_memory: str | None) -> list[str]:
    """Return how large the heap may grow: as Spark's setting says, else what a limit leaves after what a JVM takes beside its heap."""
    if driver_memory:
        return [f"-Xmx{driver_memory.removesuffix('b').removesuffix('B')}"]
    if limit is None:
        return []
    heap = max(_LEAST_HEAP, limit - max(_BESIDE_HEAP, limit // 5))
    return [f"-Xmx{heap >> 20}m"]


def java_command(
    image: Image, settings: Mapping[str, str], mode: str, limit: int | None, jars: str | None, connection_file: str
) -> list[str]:
    """Return the command that becomes the kernel: SparkSubmit itself, without the shell scripts around it."""
    own = sorted(glob(os.path.join(image.toree, "lib", "*.jar")))
    # in a fixed order, or the class-data archive does not fit
    path = [*sorted(glob(os.path.join(image.spark, "jars", "*.jar"))), *own]
    rest = dict(settings)
    extra_path = rest.pop("spark.driver.extraClassPath", "")
    extra_options = shlex.split(rest.pop("spark.driver.extraJavaOptions", ""))
    heap = heap_options(limit, rest.pop("spark.driver.memory", None))
    archive = os.path.join(image.toree, "lib", _ARCHIVE)
    conf = os.environ.get("SPARK_CONF_DIR") or os.path.join(image.spark, "conf")
    log = os.path.join(conf, "log4j2.properties")
    # after what is archived: there may be no folder among it
    folders = [folder for folder in (os.environ.get("HADOOP_CONF_DIR"), conf) if folder and os.path.isdir(folder)]
    users = [entry for entry in rest.pop("spark.jars", "").split(",") if entry]
    if jars:
        users += [f"file://{entry}" for entry in sorted(glob(os.path.join(jars, "*.jar")))]
    is_local = rest.get("spark.master", "local").startswith("local")
    if not is_local:
        # classes of cells refer to Toree's, and executors have the same image
        users += [f"local://{entry}" for entry in own]
        # a task that a cancelled job leaves behind ends with its executor
        rest = {"spark.task.reaper.enabled": "true", "spark.task.reaper.killTimeout": "20s", **rest}
    return [
        image.java,
        *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED),
        "--add-opens=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
        # Toree keeps cells from ending the JVM with a security manager
        "-Djava.security.manager=allow",
        # Java goes by the passwd file, which knows nothing of a volume
        f"-Duser.home={os.path.expanduser('~')}",
        "-Dfile.encoding=UTF-8",
        *([f"-XX:SharedArchiveFile={archive}", "-Xlog:disable", "-Xlog:all=error:stderr"] if os.path.exists(archive) else []),
        *([f"-Dlog4j2.configurationFile=file:{log}"] if os.path.exists(log) else []),
        *heap,
        *(_JIT_OF_ALL if is_local else _JIT_OF_A_DRIVER),
        *extra_options,
        "-cp", os.pathsep.join([*filter(None, extra_path.split(os.pathsep)), *path, *folders]),
        "org.apache.toree.elastic.Start",
        "--class", _MAIN,
        "--name", rest.get("spark.app.name") or f"Scala of {os.environ.get('KERNEL_USERNAME') or 'a notebook'}",
        *(["--jars", ",".join(users)] if users else []),
        *(word for name, value in sorted(rest.items()) for word in ("--conf", f"{name}={value}")),
        "spark-internal",
        "--profile", connection_file,
        "--alternate-sigint", "URG",
        "--spark-context-initialization-mode", mode,
        *(["--jar-dir", jars] if jars else []),
    ]  # fmt: skip


def supervise(command: Sequence[str], timeout: float, beside: Callable[[], None] = lambda: None) -> NoReturn:
    """Run the JVM to its end, and end as it did; ``beside`` is called once it has been started."""
    ready, told = os.pipe()
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        # of SIGINT the JVM has a handler only once Toree is up
        number = signal.SIGURG if number == signal.SIGINT else number
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    environment = {**os.environ, "ELASTIC_KERNELS_READY_FILE": f"/dev/fd/{told}"}
    process = subprocess.Popen(command, env=environment, pass_fds=[told], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = elastic_driver.Errors(process.stderr, 2)
    os.close(told)
    for sent in early:
        process.send_signal(sent)
    beside()
    # readable with the kernel's word, or with the end of the JVM
    is_told, _, _ = select.select([ready], [], [], timeout)
    if not is_told:
        process.kill()
        process.wait()
        errors.why()
        fail(f"Toree was not ready within {timeout:g} seconds, and was ended", NO_KERNEL)
    is_ready = os.read(ready, 1) != b""
    if is_ready:
        threading.Thread(target=listen, args=(ready, process.stdin), daemon=True).start()
    code = process.wait()
    why = errors.why()
    if code < 0:
        fail(f"Toree was ended by {signal.Signals(-code).name}", 128 - code)
    if code not in (0, 128 + signal.SIGTERM):
        if why and not is_ready:
            fail(f"Toree did not start: {why}; the lines above say more", code, is_all=False)
        what = "ended" if is_ready else "did not start and ended"
        fail(f"Toree {what} with exit code {code}; the lines above say why", code, is_all=False)
    sys.exit(code)


def listen(ready: int, answers: IO[bytes]) -> None:
    """Answer what the JVM tells, to its end."""
    with open(ready, encoding="utf-8") as told:
        explain_waits(told, answers)


def explain_waits(told: Iterable[str], answers: IO[bytes]) -> None:
    """Say why executors do not come, whenever the JVM tells that a job waits for them: a line with Spark's application each time."""
    import elastic_executors
    from elastic_executors import Prospect

    poor, last = 0, 0.0
    for application in filter(None, map(str.strip, told)):
        now = time.monotonic()
        poor, last = poor if now - last < _SAME_WAIT else 0, now
        try:
            found = elastic_executors.explain(elastic_executors.list_executors(application))
        except Exception as error:  # nothing that goes wrong here is the kernel's concern
            elastic_launcher.say(f"the executors cannot be looked at: {error}")
            continue
        if found is not None:
            prospect, clause = found
            poor += prospect is Prospect.POOR
            is_over = prospect is Prospect.NONE or poor >= elastic_executors.TRIES
            answers.write(json.dumps({"hopeless": is_over, "why": clause}).encode() + b"\n")
            answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
