"""Starts IPython's kernel in a pod: ``python launcher.py CONNECTION_FILE``.

It travels to the pod beside the connection file, so that any image with ipykernel will do. What it adds to ``python -m
ipykernel_launcher``: the working directory, a home that can be written to, an orderly end when Kubernetes says SIGTERM (which
the first process of a container otherwise ignores), and a last log line that says what went wrong. It imports the kernel
first and little else, because people wait for it.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from types import FrameType
from typing import NoReturn

USAGE_ERROR = 64
NO_KERNEL = 69


def main(arguments: list[str]) -> None:
    """Run the kernel until it is shut down; called as the container's first process."""
    if len(arguments) != 1:
        fail("write: python launcher.py CONNECTION_FILE", USAGE_ERROR)
    if not os.access(arguments[0], os.R_OK):
        fail(f"the connection file {arguments[0]} cannot be read by uid {os.getuid()} and groups {os.getgroups()}", USAGE_ERROR)
    enter_working_directory(os.environ.get("KERNEL_WORKING_DIR", ""))
    ensure_home()
    # the kernel puts the working directory there; this file's own folder has no business on the path
    del sys.path[0]
    try:
        from ipykernel.kernelapp import IPKernelApp
    except ImportError as error:
        fail(f"this image's {sys.executable} cannot import ipykernel ({error}); install it with: pip install ipykernel", NO_KERNEL)
    application = IPKernelApp.instance()
    application.initialize(["-f", arguments[0]])
    signal.signal(signal.SIGTERM, end_orderly)
    application.start()


def end_orderly(_number: int, _frame: FrameType | None) -> None:
    """End the kernel's loop, and the running cell if there is one, so that the interpreter exits and runs its atexit handlers."""
    from ipykernel.kernelapp import IPKernelApp

    loop = IPKernelApp.instance().io_loop
    loop.add_callback_from_signal(loop.stop)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # the kernel listens for interrupts only while a cell runs
        raise KeyboardInterrupt


def enter_working_directory(directory: str) -> None:
    """Change to ``directory``; one that is not there is said in the log and no reason not to start."""
    if not directory:
        return
    try:
        os.chdir(directory)
    except OSError as error:
        print(f"elastic-kernels: the working directory {directory} cannot be entered ({error.strerror}); this is {os.getcwd()}")


def ensure_home() -> None:
    """Give a user without a home that it can write to (any uid may run any image) an empty one."""
    home = os.environ.get("HOME", "")
    if not home or home == "/" or not os.access(home, os.W_OK):
        os.environ["HOME"] = tempfile.mkdtemp(prefix="home-")


def fail(sentence: str, status: int) -> NoReturn:
    """End with one line of log, which the gateway shows to the user."""
    sys.stdout.flush()
    print(f"elastic-kernels: {sentence}", file=sys.stderr, flush=True)
    sys.exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
