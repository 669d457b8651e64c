"""What all launchers share: where a kernel starts, where it keeps things, the user's packages, and how a failure is said.

It lies beside the launchers in the pod, so that they import it by its plain name. Standard library only: any image will do.
"""

from __future__ import annotations

import os
import site
import sys
import tempfile
from typing import NoReturn

USAGE_ERROR = 64
NO_KERNEL = 69

PACKAGES = "KERNEL_PACKAGES"
"""The variable with the user's package folder for this image, which holds one folder for each Python version."""
TEAM_PACKAGES = "KERNEL_TEAM_PACKAGES"
"""The variable with folders of packages that come after the user's own and before the image's."""

ANNOUNCE = "ELASTIC_KERNELS_ANNOUNCE"
"""The variable with the address, host:port, at which the gateway waits to hear that the kernel listens."""

# Kubernetes, "Determine the Reason for Pod Failure"
_LAST_WORDS = "/dev/termination-log"
# a line of a .pth file runs where a comprehension would not see what it imports
_TEAM_LINE = f"import os, site; list(map(site.addsitedir, filter(None, os.environ.get({TEAM_PACKAGES!r}, '').split(os.pathsep))))"


def connection_file(arguments: list[str], usage: str) -> str:
    """Return the one argument of a launcher, a file that can be read; or end."""
    if len(arguments) != 1:
        fail(f"write: {usage}", USAGE_ERROR)
    if not os.access(arguments[0], os.R_OK):
        fail(f"the connection file {arguments[0]} cannot be read by uid {os.getuid()} and groups {os.getgroups()}", USAGE_ERROR)
    leave_own_folder()
    return arguments[0]


def leave_own_folder() -> None:
    """Take this file's folder from the path, where it has no business once a user's code, or somebody else's, is imported."""
    sys.path[:] = [path for path in sys.path if path != os.path.dirname(os.path.abspath(__file__))]


def enter_working_directory() -> None:
    """Change to the folder that the client asked for; one that is not there is said in the log and no reason not to start."""
    directory = os.environ.get("KERNEL_WORKING_DIR")
    if not directory:
        return
    try:
        os.chdir(directory)
    except OSError as error:
        say(f"the working directory {directory} cannot be entered ({error.strerror}); this is {os.getcwd()}")


def ensure_home() -> None:
    """Give a user without a home that can be written to (any uid may run any image) an empty one.

    A home volume stays the home even if it is full or not the user's to write to; then only what Jupyter itself writes goes elsewhere.
    """
    home = os.environ.get("HOME", "")
    why = _obstacle(home) if home and home != "/" else "none is set"
    if why is None:
        return
    spare = tempfile.mkdtemp(prefix="home-")
    if os.path.ismount(home) and home != "/":
        say(f"nothing can be written to the home {home} ({why})")
        own = ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR")
        os.environ.update({name: os.path.join(spare, name.lower()) for name in own})
    else:
        os.environ["HOME"] = spare


def enter_packages() -> str | None:
    """Put the user's packages before the image's, and have pip install there; return the folder that is imported from.

    The folder is a virtual environment over the image's Python, so that pip does what it does in any other: it takes what the image
    has for installed, leaves it alone, and puts newer versions before it. None where there is none, or none can be made.
    """
    before = list(sys.path)
    found = _environment(os.environ[PACKAGES]) if os.environ.get(PACKAGES) else None
    if found is not None:
        folder, packages = found
        sys.executable = os.path.join(folder, "bin", "python")
        os.environ["VIRTUAL_ENV"] = folder
        os.environ["PATH"] = os.path.join(folder, "bin") + os.pathsep + os.environ.get("PATH", os.defpath)
        site.addsitedir(packages)
    else:
        for path in filter(None, os.environ.get(TEAM_PACKAGES, "").split(os.pathsep)):
            site.addsitedir(path)
    added = [path for path in sys.path if path not in before]
    place = next((index for index, path in enumerate(before) if path.endswith(("site-packages", "dist-packages"))), len(before))
    sys.path[:] = [*before[:place], *added, *before[place:]]
    return found[1] if found is not None else None


def announce(connection_file: str) -> None:
    """Tell the gateway that starts this kernel that it listens: one datagram, signed with the connection's key.

    It is not missed if it does not arrive: the gateway sees the kernel a little later, when the node has said that the pod runs.
    """
    host, _, port = os.environ.pop(ANNOUNCE, "").rpartition(":")
    if not host:
        return
    # the kernel has imported all of this
    import contextlib
    import hashlib
    import hmac
    import json
    import socket

    pod = f"{os.environ.get('KERNEL_NAMESPACE')}/{os.environ.get('KERNEL_POD_NAME')}"
    address = os.environ.get("KERNEL_POD_IP", "")
    with open(connection_file, encoding="utf-8") as file:
        key = json.load(file)["key"]
    mac = hmac.new(key.encode(), f"{pod} {address}".encode(), hashlib.sha256).hexdigest()
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((address, 0))
        sender.sendto(json.dumps({"pod": pod, "address": address, "mac": mac}).encode(), (host.strip("[]"), int(port)))


def say(sentence: str) -> None:
    """Write one line to the pod's log."""
    sys.stdout.flush()
    print(f"elastic-kernels: {sentence}", file=sys.stderr, flush=True)


def fail(sentence: str, status: int, *, is_all: bool = True) -> NoReturn:
    """End with one line of log, which the gateway shows to the user; if it ``is_all``, without the lines above it."""
    say(sentence)
    if is_all:
        _leave(f"elastic-kernels: {sentence}\n")
    sys.exit(status)


def _leave(text: str) -> None:
    """Have the pod's status keep a text, which needs no log then."""
    try:
        # made by the kubelet; elsewhere there is none
        with open(_LAST_WORDS, "r+", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        pass


def _obstacle(folder: str) -> str | None:
    """Return why nothing can be written to a folder, or None."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as probe:
            # a full volume takes files, and nothing in them
            probe.write(b"\0" * 4096)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _environment(folder: str) -> tuple[str, str] | None:
    """Return the virtual environment of this Python in the user's package folder, made if need be, and its site-packages."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    target = os.path.join(folder, version)
    packages = os.path.join(target, "lib", version, "site-packages")
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    try:
        if os.path.realpath(os.path.join(target, "bin", "python")) != python or not os.path.isdir(packages):
            os.makedirs(folder, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as made:
                _make(made, python, version)
                _put_in_place(made, target)
    except OSError as error:
        say(f"packages cannot be kept in {folder} ({error.strerror}); what is installed is gone with this kernel")
        return None
    return target, packages


def _make(folder: str, python: str, version: str) -> None:
    """Write a virtual environment as the module venv would, whose import alone takes longer."""
    is_layered = sys.prefix != sys.base_prefix
    packages = os.path.join(folder, "lib", version, "site-packages")
    os.makedirs(packages)
    os.mkdir(os.path.join(folder, "bin"))
    for name in ("python", "python3", version):
        os.symlink(python, os.path.join(folder, "bin", name))
    _write(os.path.join(folder, "bin", "pip"), '#!/bin/sh\nexec "$(dirname "$0")/python" -m pip "$@"\n')
    os.chmod(os.path.join(folder, "bin", "pip"), 0o700)
    shared = "false" if is_layered else "true"
    release = ".".join(map(str, sys.version_info[:3]))
    _write(
        os.path.join(folder, "pyvenv.cfg"),
        f"home = {os.path.dirname(python)}\ninclude-system-site-packages = {shared}\nversion = {release}\n",
    )
    # an image's own virtual environment is not below another one's Python: it is named
    image = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()] if is_layered else []
    _write(os.path.join(packages, "elastic_kernels.pth"), "\n".join([_TEAM_LINE, *image]) + "\n")


def _put_in_place(made: str, target: str) -> None:
    """Move what was made to its place; another kernel may do the same, and packages that are there stay."""
    try:
        os.rename(made, target)
        os.mkdir(made)  # for its owner to remove
    except OSError:
        if not os.path.isdir(target):
            raise
        for name in os.listdir(os.path.join(made, "bin")):
            os.replace(os.path.join(made, "bin", name), os.path.join(target, "bin", name))
        os.replace(os.path.join(made, "pyvenv.cfg"), os.path.join(target, "pyvenv.cfg"))


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
