"""The start of Spark's driver, a Java process beside a Python kernel: one Java in place of two, and with an archive of its classes.

Spark's own script starts a Java that works out the command of another one, which then reads some ten thousand classes out of three
hundred files. Here the command is put together in Python; and an image may bring an archive of the classes (class-data sharing; see
docker/kernel-spark/archive), which fits if the class path begins as it did when the archive was made: the jars, in order.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from typing import IO, Any

ARCHIVE = "elastic-spark.jsa"
"""The archive's name in Spark's folder."""

# What Spark's own start script opens to it (org.apache.spark.launcher.JavaModuleOptions).
OPENED = (
    *("java.lang", "java.lang.invoke", "java.lang.reflect", "java.io", "java.net", "java.nio", "java.util", "java.util.concurrent"),
    *("java.util.concurrent.atomic", "jdk.internal.ref", "sun.nio.ch", "sun.nio.cs", "sun.security.action", "sun.util.calendar"),
)
_PAUSE = 0.05
_UNCAUGHT = b'Exception in thread "main" '
# What Java writes waits here while Python is busy with something that lets no thread run; Java would wait beyond that.
_PIPE = 1 << 20
# Settings that Spark's own start script makes something of: then it is used.
_NOT_OURS = tuple(f"spark.driver.{name}" for name in ("extraJavaOptions", "defaultJavaOptions", "extraClassPath", "extraLibraryPath"))


def start(settings: Mapping[str, str], log: int) -> Any:
    """Start the driver's Java and return PySpark's gateway to it.

    ``log`` is the file descriptor that it writes to. Raises RuntimeError with one sentence if it does not come up.
    """
    if missing := missing_jars(settings):
        raise RuntimeError(f"Spark's driver could not be started: {missing}.")
    from pyspark.find_spark_home import _find_spark_home
    from pyspark.java_gateway import launch_gateway

    if "PYSPARK_GATEWAY_PORT" in os.environ or any(name in settings for name in _NOT_OURS):
        return launch_gateway(popen_kwargs={"stdout": log, "stderr": log})
    port, secret = run(command(_find_spark_home(), settings, os.environ), log)
    os.environ.update({"PYSPARK_GATEWAY_PORT": str(port), "PYSPARK_GATEWAY_SECRET": secret})
    try:
        return launch_gateway()
    finally:
        # programs that the kernel starts have drivers of their own
        del os.environ["PYSPARK_GATEWAY_PORT"], os.environ["PYSPARK_GATEWAY_SECRET"]


def command(spark: str, settings: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
    """Return the command of the driver's Java, given Spark's folder."""
    home = environment.get("JAVA_HOME")
    archive = os.path.join(spark, ARCHIVE)
    conf = environment.get("SPARK_CONF_DIR") or os.path.join(spark, "conf")
    jars = sorted(glob.glob(os.path.join(spark, "jars", "*.jar")))
    hadoop = [environment[name] for name in ("HADOOP_CONF_DIR", "YARN_CONF_DIR") if environment.get(name)]
    return [
        os.path.join(home, "bin", "java") if home else "java",
        *([f"-XX:SharedArchiveFile={archive}", "-Xlog:disable", "-Xlog:all=error:stderr"] if os.path.exists(archive) else []),
        "-XX:+IgnoreUnrecognizedVMOptions",
        *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED),
        "--add-opens=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
        "-Djdk.reflect.useDirectMethodHandle=false",
        f"-Xmx{settings.get('spark.driver.memory', '1g')}",
        "-cp", os.pathsep.join([*jars, conf, *hadoop]),
        "org.apache.spark.deploy.SparkSubmit",
        *shlex.split(environment.get("PYSPARK_SUBMIT_ARGS", "pyspark-shell")),
    ]  # fmt: skip


def missing_jars(settings: Mapping[str, str]) -> str:
    """Return a clause that names the files in ``spark.jars`` that are not there, or empty. Spark itself goes on without them."""
    entries = [entry.strip().removeprefix("file://").removeprefix("file:") for entry in settings.get("spark.jars", "").split(",")]
    missing = [entry for entry in entries if entry and ":" not in entry and not glob.glob(entry)]
    return f"spark.jars names what is not there: {', '.join(missing)}" if missing else ""


class Errors:
    """Passes on what a Java writes to its stderr, and remembers what ended it."""

    def __init__(self, source: IO[bytes], log: int) -> None:
        """``log`` is the file descriptor that it is passed on to."""
        self._why = ""
        with contextlib.suppress(AttributeError, OSError):
            fcntl.fcntl(source.fileno(), fcntl.F_SETPIPE_SZ, _PIPE)
        self._thread = threading.Thread(target=self._run, args=(source, log), name="Java's errors", daemon=True)
        self._thread.start()

    def why(self) -> str:
        """Return the exception that ended it, or empty, once all has been passed on; to be called when it has ended."""
        self._thread.join(timeout=1)
        return self._why

    def _run(self, source: IO[bytes], log: int) -> None:
        for line in source:
            os.write(log, line)
            if line.startswith(_UNCAUGHT):
                self._why = line.removeprefix(_UNCAUGHT).decode(errors="replace").strip()


def run(words: list[str], log: int) -> tuple[int, str]:
    """Run the command and return its gateway's port and secret, which it writes to a file."""
    with tempfile.TemporaryDirectory(prefix="spark-driver-") as folder:
        path = os.path.join(folder, "connection")
        environment = {**os.environ, "_PYSPARK_DRIVER_CONN_INFO_PATH": path}
        # it ends when its input does, which is when the kernel is gone; a session of its own keeps interrupts away from it
        process = subprocess.Popen(
            words, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.PIPE, start_new_session=True
        )
        assert process.stderr is not None
        errors = Errors(process.stderr, log)
        while not os.path.exists(path):
            if process.poll() is not None:
                why = errors.why() or f"Java ended with exit code {process.returncode}"
                raise RuntimeError(f"Spark's driver could not be started: {why}; the pod's log has more.")
            time.sleep(_PAUSE)
        from pyspark.serializers import UTF8Deserializer, read_int

        with open(path, "rb") as file:
            return read_int(file), UTF8Deserializer().loads(file)
