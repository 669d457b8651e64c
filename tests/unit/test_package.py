"""What is installed is what is here."""

from __future__ import annotations

import configparser
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_package_is_listed() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    here = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "elastic_kernels").rglob("__init__.py")}
    assert listed == here | {"elastic_kernels.launchers", "elastic_kernels.shipped"}
