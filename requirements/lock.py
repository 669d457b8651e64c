"""Renews the lock files beside it: what pip would install today, for Python 3.10 and 3.11 in one file each.

``make lock`` runs it, with the paths of both interpreters. Where the two versions differ, each line says which Python it is for.
"""

from __future__ import annotations

import configparser
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# editable installs without a download of their own, and `setup.py develop` of nobody
BUILD = ["setuptools>=70.1"]
# later ones need Python 3.11.5, and Debian's, in the images, is 3.11.2
HELD = ["soupsieve<3"]
LAB = ["jupyterlab>=4,<5", "papermill", "ipykernel", *BUILD]
# kubespawner: says how it names claims; a proxy in Python, so that no Node is needed; Jupyter's own tests of a kernel
HUB = ["jupyterhub>=5,<6", "jupyterhub-kubespawner>=7,<8", "configurable-http-proxy", "jupyter_kernel_test"]
# no provider besides those that it brings itself
AIRFLOW = ["apache-airflow>=2.10,<3"]
# ipykernel: what kernels of the embedded cluster run in the tests that need no JupyterLab
TEST = ["selenium", "ipykernel"]

HEADERS = {
    "gateway.txt": """\
# The gateway's environment: Jupyter Enterprise Gateway and this library, exact versions.
# Renew with: make lock
# Held back by Jupyter Enterprise Gateway 3.3: jupyter_client<7, jupyter_server<2, pyzmq<25; through jupyter_server 1: anyio<4.
# Held back by Debian's Python 3.11.2, which the images have: soupsieve<3.
""",
    "test.txt": """\
# What the tests need beside gateway.txt, exact versions.
# Renew with: make lock
# Held back by jupyter_client<7 in the same environment: ipykernel<7.
""",
    "lab.txt": """\
# The environment of JupyterLab, papermill and the kernels that `elastic-kernels up` starts on this machine, exact versions.
# Renew with: make lock
# It is an environment of its own because JupyterLab 4 needs jupyter_client>=8 and jupyter_server>=2. Nothing is held back.
""",
    "airflow.txt": """\
# A real Airflow, exact versions: for the tests of examples/airflow. It is an environment of its own, as it is in use.
# Renew with: make lock
""",
    "hub.txt": """\
# What a JupyterHub needs beside lab.txt, exact versions: for the tests with a real hub, with kubespawner's names, and of kernels.
# Renew with: make lock
""",
}


def wanted() -> dict[str, list[str]]:
    """Return what is asked of pip for each file, from setup.cfg and the lists above."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")

    def lines(section: str, option: str) -> list[str]:
        return [line for line in setup[section][option].splitlines() if line.strip() and not line.lstrip().startswith("#")]

    gateway = lines("options", "install_requires") + lines("options.extras_require", "gateway") + BUILD + HELD
    return {
        "gateway.txt": gateway,
        "test.txt": gateway + lines("options.extras_require", "test") + TEST,
        "lab.txt": LAB,
        "hub.txt": LAB + HUB,
        "airflow.txt": AIRFLOW,
    }


def resolve(python: str, requirements: Sequence[str]) -> dict[str, str]:
    """Return the versions, by normalised name, that pip chooses for one Python; nothing is installed."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.json"
        subprocess.run([python, "-m", "venv", f"{directory}/venv"], check=True)
        command = [
            f"{directory}/venv/bin/python",
            "-m",
            "pip",
            "install",
            "-qq",
            "--dry-run",
            "--ignore-installed",
            "--report",
            str(report),
        ]
        subprocess.run([*command, *requirements], check=True)
        found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    return {re.sub(r"[-_.]+", "-", item["name"]).lower(): item["version"] for item in found}


def merged(older: dict[str, str], newer: dict[str, str]) -> list[str]:
    """Return one requirement a line for both versions of Python."""
    lines = []
    for name in sorted(older.keys() | newer.keys()):
        if older.get(name) == newer.get(name):
            lines.append(f"{name}=={newer[name]}")
            continue
        lines += [f'{name}=={older[name]} ; python_version < "3.11"'] if name in older else []
        lines += [f'{name}=={newer[name]} ; python_version >= "3.11"'] if name in newer else []
    return lines


def main(older: str, newer: str) -> None:
    """Write the files; the arguments are the interpreters of Python 3.10 and 3.11."""
    locked = {file: merged(resolve(older, asked), resolve(newer, asked)) for file, asked in wanted().items()}
    for file, beside in (("test.txt", "gateway.txt"), ("hub.txt", "lab.txt")):
        locked[file] = [line for line in locked[file] if line not in set(locked[beside])]
    for file, lines in locked.items():
        (ROOT / "requirements" / file).write_text(HEADERS[file] + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:3])
