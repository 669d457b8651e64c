"""Starts IPython's kernel with Spark: ``python spark.py CONNECTION_FILE``. The driver is a Java process beside the kernel.

The gateway says how Spark is configured, and when there is a session: at the first use of ``spark`` or ``sc`` (lazy), at the
kernel's start (eager: begun at once, and awaited by the first use), or never (none). The settings are put where Spark itself looks
for them, so that a session that a program makes in its own way has them, too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import elastic_launcher
import elastic_session
import elastic_ui
import python

SETTINGS = "ELASTIC_KERNELS_SPARK_CONF"
"""The variable with Spark's settings, as a JSON mapping of texts."""
SESSION = "ELASTIC_KERNELS_SPARK_SESSION"
"""The variable that says when there is a session: lazy, eager or none."""

_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\f": "\\f"}


def main(arguments: list[str]) -> None:
    """Run the kernel until it is shut down; called as the container's first process."""
    connection_file = elastic_launcher.connection_file(arguments, "python spark.py CONNECTION_FILE")
    elastic_launcher.enter_working_directory()
    elastic_launcher.ensure_home()
    settings = json.loads(os.environ.pop(SETTINGS, "{}"))
    session = os.environ.pop(SESSION, "lazy")
    # the image's own, which is on the executors as well
    interpreter = sys.executable
    packages = elastic_launcher.enter_packages()
    ensure_spark()
    configure({**settings, **on_executors(packages, settings)}, settings.get("spark.pyspark.python", interpreter))
    # the kernel captures what is written to 2; a copy from before that still is the pod's log
    log = os.dup(2)
    with open(connection_file, encoding="utf-8") as file:
        key = json.load(file)["key"].encode()

    def prepare(shell: Any) -> None:
        elastic_session.begin(shell, session, settings, log)
        elastic_ui.serve(key, elastic_session.ui_port)

    python.run_kernel(connection_file, prepare)


def ensure_spark() -> None:
    """End if this image cannot run Spark's driver."""
    if importlib.util.find_spec("pyspark") is None:
        elastic_launcher.fail(
            f"this image's {sys.executable} has no pyspark; install it with: pip install pyspark", elastic_launcher.NO_KERNEL
        )
    home = os.environ.get("JAVA_HOME")
    if shutil.which(os.path.join(home, "bin", "java") if home else "java") is None:
        elastic_launcher.fail(
            f"this image has no Java, which Spark runs on ({'JAVA_HOME is ' + home if home else 'java is not on the PATH'})",
            elastic_launcher.NO_KERNEL,
        )


def on_executors(packages: str | None, settings: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that let Python on the executors import what the kernel imports: the user's packages and the team's."""
    folders = [packages, os.environ.get(elastic_launcher.TEAM_PACKAGES), settings.get("spark.executorEnv.PYTHONPATH")]
    path = os.pathsep.join(filter(None, folders))
    return {"spark.executorEnv.PYTHONPATH": path} if path else {}


def configure(settings: Mapping[str, str], interpreter: str) -> None:
    """Have every Spark that is started from here on use these settings, over those of the image."""
    folder = os.environ.get("SPARK_CONF_DIR") or os.path.join(os.environ.get("SPARK_HOME", ""), "conf")
    try:
        with open(os.path.join(folder, "spark-defaults.conf"), encoding="utf-8") as file:
            defaults = file.read()
    except OSError:
        defaults = ""
    descriptor, path = tempfile.mkstemp(prefix="spark-", suffix=".conf")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{defaults}\n{properties(settings)}")
    arguments = os.environ.get("PYSPARK_SUBMIT_ARGS", "pyspark-shell")
    os.environ["PYSPARK_SUBMIT_ARGS"] = f"--properties-file {shlex.quote(path)} {arguments}"
    os.environ.setdefault("PYSPARK_PYTHON", interpreter)


def properties(settings: Mapping[str, str]) -> str:
    """Return settings as the lines of a Java properties file; Spark takes the space around a value away."""
    return "".join(f"{name}={''.join(_ESCAPES.get(c, c) for c in value)}\n" for name, value in sorted(settings.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
