"""The README's examples are what they say: profiles that load, a kernel.json that is one, commands and files that exist."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from pathlib import Path

import elastic_claim
import pytest
import yaml
from enterprise_gateway.enterprisegatewayapp import EnterpriseGatewayApp
from traitlets.config import Config

from elastic_kernels import profilefile, record
from elastic_kernels.cli import _parser
from elastic_kernels.gateway import ElasticGatewayApp
from elastic_kernels.gateway.managers import ElasticMappingKernelManager
from elastic_kernels.gateway.report import Report
from elastic_kernels.identity.service import Services
from elastic_kernels.kernelspecs import variants
from elastic_kernels.profiles import PROXY_CLASS, from_kernelspec
from elastic_kernels.request import parse_request
from elastic_kernels.settings import ElasticKernels
from elastic_kernels.status import Phase, Status
from tests import conftest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, about: str) -> str:
    """Return the one example in this language that says ``about``."""
    (found,) = (text for text in re.findall(rf"```{language}\n(.*?)```", README, re.S) if about in text)
    return str(found)


def test_the_kernel_json() -> None:
    spec = json.loads(block("json", "process_proxy"))
    assert spec["metadata"]["process_proxy"]["class_name"] == PROXY_CLASS
    memory = from_kernelspec("python-2gb", spec).memory
    assert memory is not None
    assert memory.limit == "2Gi"


def test_the_profiles() -> None:
    profiles = profilefile.loads(block("yaml", "parts:"), "README.md")
    assert list(profiles) == ["python-small", "python-gpu", "python-spot"]
    assert profiles["python-gpu"].launch_timeout == 900


def test_the_homes() -> None:
    profile = profilefile.loads(block("yaml", "python-home"), "README.md")["python-home"]
    assert profile.home is not None
    assert [volume.mount_path for volume in profile.volumes] == ["/shared", "/data", "/teams/{group}", "/archive"]
    assert profile.package_folder == "/home/jovyan/.elastic-kernels/packages"


def test_what_is_kept_warm() -> None:
    profiles = profilefile.loads(block("yaml", "python-warm"), "README.md")
    warm, home = (profile.warm for profile in profiles.values())
    assert warm is not None
    assert home is not None
    assert (warm.kernels, home.capacity) == (5, 2)
    # Monday, 08:30 in Berlin
    assert warm.is_wanted(datetime(2026, 11, 23, 7, 30, tzinfo=timezone.utc))
    assert not home.is_wanted(datetime(2026, 11, 28, 10, 30, tzinfo=timezone.utc))
    (priority,) = yaml.safe_load_all((ROOT / "docker" / "gateway" / "capacity.yaml").read_text())
    assert priority["metadata"]["name"] == home.capacity_priority_class
    assert str(elastic_claim.PORT) in README


def test_the_images() -> None:
    profile = profilefile.loads(block("yaml", "python-any"), "README.md")["python-any"]
    assert [each.display_name or each.name for each in variants(profile)] == ["python-any", "python-any | PyTorch 2"]


def test_spark() -> None:
    profile = profilefile.loads(block("yaml", "spark-python-spot"), "README.md")["spark-python-spot"]
    assert profile.spark is not None
    assert (profile.spark.executors.spot, profile.spark.executors.cores, profile.spot) == (True, 2, False)
    request = {"KERNEL_SPARK_SETTINGS": "spark.sql.shuffle.partitions=8 spark.executor.memory=1g"}
    assert request["KERNEL_SPARK_SETTINGS"] in README
    assert parse_request(request, profile).spark.settings == {"spark.sql.shuffle.partitions": "8", "spark.executor.memory": "1g"}
    packed = re.findall(r"`(spark.archives=[^`]*)`", README)
    assert len(parse_request({"KERNEL_SPARK_SETTINGS": packed[0]}, profile).spark.settings) == 2


def test_scala() -> None:
    profile = profilefile.loads(block("yaml", "    language: scala"), "README.md")["scala"]
    assert profile.command[1] == "{launchers}/toree.py"
    assert (profile.language, profile.package_folder) == ("scala", "/home/jovyan/.elastic-kernels/packages")


def test_the_services(tmp_path: Path) -> None:
    file = tmp_path / "services.yaml"
    file.write_text(block("yaml", "services:"))
    assert Services(file).identify("none of theirs") is None


def test_the_status() -> None:
    shown = json.loads(block("json", "usually"))
    status = Status(Phase(shown["phase"]), shown["sentence"], shown["hopeless"], shown["cause"])
    assert Report(status, shown["since"], "a").model(shown["id"], shown["usually"]) == shown


def test_the_ports() -> None:
    found = re.search(r"on the ports (\d+) to (\d+)", README)
    assert found is not None
    connections = [record.connection(conftest.record("small"), ports, "0.0.0.0") for ports in range(len(record.PORT_SETS))]
    ports = {value for each in connections for name, value in each.items() if name.endswith("_port")} | {elastic_claim.PORT}
    assert ports == set(range(int(found[1]), int(found[2]) + 1))


def test_the_gateways_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config()
    monkeypatch.setattr(EnterpriseGatewayApp, "_instance", None)
    exec(compile(block("python", "configure"), "README.md", "exec"), {"get_config": lambda: config})
    assert isinstance(EnterpriseGatewayApp.instance(), ElasticGatewayApp)
    assert config.EnterpriseGatewayApp.kernel_manager_class is ElasticMappingKernelManager


def test_the_limits() -> None:
    found = dict(re.findall(r"`(max_\w+_per_\w+)`, such as `([^`]*)`", README))
    assert set(found) == {"max_kernels_per_class", "max_resources_per_user"}
    for name, text in found.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(f"ELASTIC_KERNELS_{name.upper()}", text)
            assert getattr(ElasticKernels(), name)


@pytest.mark.parametrize("command", re.findall(r"^    elastic-kernels (.*)$", README, re.M))
def test_the_commands(command: str) -> None:
    assert _parser().parse_args(command.split()).run


def test_the_make_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make ([a-z-]+)", README, re.M):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_the_settings() -> None:
    table = README[README.index("| setting | default |") :].split("\n\n")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.M)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == set(ElasticKernels.class_trait_names(config=True))


def test_the_files() -> None:
    for path in re.findall(r"(?:docs|docker|tests|elastic_kernels|examples|bench)/[\w./-]*\w", README):
        assert (ROOT / path).exists(), path
