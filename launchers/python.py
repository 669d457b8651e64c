"""Starts IPython's kernel in a pod: ``python python.py CONNECTION_FILE``.

It travels to the pod beside the connection file, so that any image with ipykernel will do. What it adds to ``python -m
ipykernel_launcher``: the working directory, a home that can be written to, the user's packages, an orderly end when Kubernetes says
SIGTERM (which the first process of a container otherwise ignores), and a last log line that says what went wrong. It imports the
kernel first and little else, because people wait for it. In a pod that waits for its user (see ``elastic_waiting``) it imports all that
a kernel needs, and waits, before it does the same.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import elastic_launcher

# what a kernel imports on its way to its first cell, besides ipykernel.kernelapp
_AHEAD = (
    "faulthandler",
    "sqlite3",
    "psutil",
    "pydoc",
    "tornado.platform.asyncio",
    "ipykernel.debugger",
    "ipykernel.ipkernel",
    "ipykernel.zmqshell",
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
)


def main(arguments: list[str]) -> None:
    """Run the kernel until it is shut down; called as the container's first process."""
    claim = os.path.join(os.path.dirname(arguments[0]), "claim.json") if arguments else ""
    if os.path.exists(claim):
        arguments = [wait(claim)]
    connection_file = elastic_launcher.connection_file(arguments, "python python.py CONNECTION_FILE")
    elastic_launcher.enter_working_directory()
    elastic_launcher.ensure_home()
    elastic_launcher.enter_packages()
    run_kernel(connection_file)


def wait(claim: str) -> str:
    """Wait for a user, with all imported, and return the connection file of their kernel."""
    import elastic_waiting

    elastic_launcher.leave_own_folder()
    _application()
    for name in _AHEAD:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    return elastic_waiting.wait(claim)


def run_kernel(connection_file: str, prepare: Callable[[Any], None] = lambda shell: None) -> None:
    """Run IPython's kernel, in what has been prepared for it, until it is shut down; ``prepare`` is called with its shell before that."""
    application = _application().instance()
    application.initialize(["-f", connection_file])
    elastic_launcher.announce(connection_file)
    prepare(application.shell)
    signal.signal(signal.SIGTERM, end_orderly)
    application.start()


def _application() -> Any:
    try:
        from ipykernel.kernelapp import IPKernelApp
    except ImportError as error:
        elastic_launcher.fail(
            f"this image's {sys.executable} cannot import ipykernel ({error}); install it with: pip install ipykernel",
            elastic_launcher.NO_KERNEL,
        )
    return IPKernelApp


def end_orderly(_number: int, _frame: FrameType | None) -> None:
    """End the kernel's loop, and the running cell if there is one, so that the interpreter exits and runs its atexit handlers."""
    from ipykernel.kernelapp import IPKernelApp

    loop = IPKernelApp.instance().io_loop
    loop.add_callback_from_signal(loop.stop)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # the kernel listens for interrupts only while a cell runs
        raise KeyboardInterrupt


if __name__ == "__main__":
    main(sys.argv[1:])
