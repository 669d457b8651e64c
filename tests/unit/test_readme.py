"""The README's examples are what they say: profiles that load, a kernel.json that is one, commands and files that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from elastic_kernels import profilefile
from elastic_kernels.cli import _parser
from elastic_kernels.profiles import PROXY_CLASS, from_kernelspec
from elastic_kernels.settings import ElasticKernels

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, re.S)
    return str(found)


def test_the_kernel_json() -> None:
    spec = json.loads(block("json"))
    assert spec["metadata"]["process_proxy"]["class_name"] == PROXY_CLASS
    memory = from_kernelspec("python-2gb", spec).memory
    assert memory is not None
    assert memory.limit == "2Gi"


def test_the_profiles() -> None:
    profiles = profilefile.loads(block("yaml"), "README.md")
    assert list(profiles) == ["python-small", "python-gpu", "python-spot"]
    assert profiles["python-gpu"].launch_timeout == 900


@pytest.mark.parametrize("command", re.findall(r"^    elastic-kernels (.*)$", README, re.M))
def test_the_commands(command: str) -> None:
    assert _parser().parse_args(command.split()).run


def test_the_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make ([a-z-]+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_settings() -> None:
    rows = re.findall(r"^\| (`.*?) \|", README, re.M)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == set(ElasticKernels.class_trait_names(config=True))


def test_the_files() -> None:
    for path in re.findall(r"(?:docs|docker|tests|elastic_kernels|bench)/[\w./-]*\w", README):
        assert (ROOT / path).exists(), path
