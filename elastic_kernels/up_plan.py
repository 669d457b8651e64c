"""What ``elastic-kernels up`` will do, settled before anything is started: whatever can be wrong is found, and said, here."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elastic_kernels import kernelspecs, profilefile
from elastic_kernels.errors import ConfigurationError
from elastic_kernels.profiles import Profile
from elastic_kernels.storage import Volume
from elastic_kernels.up_servers import choose_port


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    cluster: Literal["embedded", "current"] = "embedded"
    port: int = 8888
    profiles: Path | None = None
    """Default: the profiles that ship with the library."""
    with_lab: bool = True
    lab: Path | None = None
    """The ``jupyter-lab`` to run. Default: the first that ``find_lab`` finds."""
    notebooks: Path = Path()
    """The folder that JupyterLab shows."""


@dataclass(frozen=True)
class Plan:
    """What has been settled before anything is started."""

    profiles: Mapping[str, Profile]
    lab: Path | None
    python: Path | None
    """What runs the kernels of an embedded cluster."""
    notebooks: Path
    gateway_port: int
    response_port: int
    lab_port: int | None
    token: str


def settle(options: Options) -> Plan:
    """Return what to do. Raises ConfigurationError and ProfileError."""
    profiles = profilefile.load(options.profiles or kernelspecs.shipped_profiles())
    notebooks = options.notebooks.absolute()
    if not notebooks.is_dir():
        raise ConfigurationError(f"{notebooks} is not a folder; name the one with your notebooks with --notebooks.")
    lab = find_lab(options.lab, os.environ, Path(sys.prefix))
    if options.with_lab and lab is None:
        raise ConfigurationError(
            "There is no JupyterLab: install one in an environment of its own (python -m venv .venv-lab && "
            ".venv-lab/bin/pip install jupyterlab ipykernel) and name its jupyter-lab with --lab, or use --no-lab."
        )
    python = None
    if options.cluster == "embedded":
        python = _kernel_python(lab)
        # what this machine has for kernels is a Python; Spark and Scala need images, and executors room
        runs = {name: profile for name, profile in profiles.items() if profile.language == "python" and profile.spark is None}
        profiles = {name: _with_notebooks(profile, notebooks) for name, profile in runs.items()}
    if importlib.util.find_spec("enterprise_gateway") is None:
        raise ConfigurationError("There is no Jupyter Enterprise Gateway beside this library: pip install 'elastic-kernels[gateway]'.")
    port = choose_port(options.port)
    return Plan(
        profiles=profiles,
        lab=lab if options.with_lab else None,
        python=python,
        notebooks=notebooks,
        gateway_port=choose_port(0) if options.with_lab else port,
        response_port=choose_port(0),
        lab_port=port if options.with_lab else None,
        token=secrets.token_hex(24),
    )


def find_lab(named: Path | None, environment: Mapping[str, str], prefix: Path) -> Path | None:
    """Return the ``jupyter-lab`` to run: the one that is named, else ELASTIC_KERNELS_LAB, else the one of ``.venv-lab`` beside this
    environment (``prefix``), else one on PATH that is not of this environment, which cannot hold one; None if there is none.

    Raises ConfigurationError if one is named that is not there.
    """
    given = named or (Path(environment["ELASTIC_KERNELS_LAB"]) if environment.get("ELASTIC_KERNELS_LAB") else None)
    if given is not None:
        if not os.access(given, os.X_OK) or given.is_dir():
            raise ConfigurationError(f"{given} is not a program; name the jupyter-lab of an environment that holds JupyterLab 4.")
        return given.absolute()
    beside = prefix.parent / ".venv-lab" / "bin" / "jupyter-lab"
    if os.access(beside, os.X_OK):
        return beside
    others = [path for path in environment.get("PATH", "").split(os.pathsep) if path and Path(path) != prefix / "bin"]
    found = shutil.which("jupyter-lab", path=os.pathsep.join(others))
    return Path(found) if found else None


def _kernel_python(lab: Path | None) -> Path:
    """Return a Python that has ipykernel: JupyterLab's, or else this one."""
    candidates = [lab.resolve().parent / "python"] if lab else []
    for python in [*candidates, Path(sys.executable)]:
        if os.access(python, os.X_OK):
            probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('ipykernel') is None)"
            if subprocess.run([str(python), "-c", probe], check=False).returncode == 0:
                return python
    raise ConfigurationError("The embedded cluster has no Python with ipykernel to run kernels with: install ipykernel beside JupyterLab.")


def _with_notebooks(profile: Profile, notebooks: Path) -> Profile:
    """Let kernels see the notebooks' folder at its own path, so that they start in it."""
    if any(volume.name == "notebooks" or Path(volume.mount_path) == notebooks for volume in profile.volumes):
        return profile
    volume = Volume.model_construct(name="notebooks", mount_path=str(notebooks), source={"hostPath": {"path": str(notebooks)}})
    return profile.model_copy(update={"volumes": (*profile.volumes, volume)})
