"""A notebook as a task of a scheduler: ``elastic-kernels run`` in a Python environment of its own, so that nothing of the scheduler's
own environment has to fit.

Copy this file beside the one that imports it; it needs only Python.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

# made by: python3 -m venv /opt/elastic-kernels && /opt/elastic-kernels/bin/pip install 'elastic-kernels[papermill]'
PROGRAM = "/opt/elastic-kernels/bin/elastic-kernels"
SECONDS_TO_END = 90

# elastic-kernels run --help
FAILED = (1, 2)


class NotebookFailedError(Exception):
    """A cell failed, or the run cannot begin as it is: running it again changes nothing."""


class NotebookLaterError(Exception):
    """No kernel could be had, or it was lost: another run may succeed."""


def run_notebook(
    notebook: str,
    output: str,
    *,
    user: str,
    gateway: str,
    token: str,
    parameters: Mapping[str, object] | None = None,
    profile: str | None = None,
    folder: str | None = None,
    program: str = PROGRAM,
) -> None:
    """Run a notebook for a user, with the token of a service that may act for them.

    ``folder`` is where the kernel starts, if the user's pods have the notebook's folder at another path than this machine. What
    the program says goes to this one's output. Raises NotebookFailedError and NotebookLaterError.
    """
    command = [program, "run", notebook, "--output", output, "--user", user, "--gateway", gateway]
    command += ["--profile", profile] if profile else []
    command += ["--folder", folder] if folder else []
    for name, value in (parameters or {}).items():
        command += ["-p" if not isinstance(value, str) else "-r", name, str(value)]
    # the token is no argument, which everybody on the machine could read
    process = subprocess.Popen(
        command,
        env={**os.environ, "JUPYTER_GATEWAY_AUTH_TOKEN": token},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    last = ""
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
        code = process.wait()
    finally:
        if process.poll() is None:
            # whoever stops the task lets it shut its kernel down
            process.terminate()
            process.wait(SECONDS_TO_END)
    if code in FAILED:
        raise NotebookFailedError(last)
    if code != 0:
        raise NotebookLaterError(last)
