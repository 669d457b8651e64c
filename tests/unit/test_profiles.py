"""Profiles: what is accepted, what is refused and in which words, and that a kernelspec holds the whole of one."""

from __future__ import annotations

from importlib import resources
from typing import Any

import jsonschema
import pytest
import yaml

from elastic_kernels import profilefile
from elastic_kernels.errors import ProfileError
from elastic_kernels.profiles import from_kernelspec, parse_profile, to_kernelspec

LEAST = {"name": "gpu", "image": "example/kernel:1"}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"memory": "16GG"}, "profiles.gpu.memory: '16GG' is not a quantity (write 500m or 2 for CPUs, 512Mi or 4Gi for bytes)"),
        ({"memory": "-1Gi"}, "profiles.gpu.memory: '-1Gi' is not a quantity above zero"),
        ({"memory": {"limit": "lots"}}, "profiles.gpu.memory.limit: 'lots' is not a quantity (write 500m or 2 for CPUs, 512Mi or 4Gi for bytes)"),
        ({"cpu": {"request": 2, "limit": 1}}, "profiles.gpu.cpu: the request '2' is above the limit '1'"),
        ({"cpu": True}, "profiles.gpu.cpu: 'True' is not a quantity (write 500m or 2 for CPUs, 512Mi or 4Gi for bytes)"),
        ({"memroy": "1Gi"}, "profiles.gpu.memroy: is not a field; did you mean 'memory'?"),
        ({"gpu": -1}, "profiles.gpu.gpu.count: -1 must be greater than or equal to 0"),
        ({"gpu": {"count": 1, "resource": "gpu"}}, "profiles.gpu.gpu.resource: 'gpu' is not an extended resource such as nvidia.com/gpu"),
        ({"tolerations": ["a=b:Never"]}, "profiles.gpu.tolerations.0: 'a=b:Never' is not a taint: write key=value:effect, with the effect one of NoSchedule, PreferNoSchedule, NoExecute"),
        ({"tolerations": [{"kye": "a"}]}, "profiles.gpu.tolerations.0: 'kye' is not a field of a toleration"),
        ({"name": "python"}, "profiles.gpu: Jupyter takes the name 'python' for its own kernel on the gateway's machine; choose another"),
        ({"image": ""}, "profiles.gpu.image: '' string should have at least 1 character"),
        ({"security": {"uid": 0}}, "profiles.gpu.security.uid: 0 must be greater than or equal to 1"),
        ({"environment": {"A B": "x"}}, "profiles.gpu.environment.A B: 'A B' is not the name of an environment variable"),
        ({"labels": {"elastic-kernels/user": "bob"}}, "profiles.gpu.labels.elastic-kernels/user: 'elastic-kernels/user' is set by the gateway itself"),
        ({"command": ["python"]}, "profiles.gpu: the command names neither {connection_file} nor {response_address}, so that nobody could reach the kernel"),
        ({"volumes": [{"name": "x", "mount_path": "a/b", "source": {"emptyDir": {}}}]}, "profiles.gpu.volumes.0.mount_path: 'a/b' is not an absolute path"),
        ({"affinity": {"nodeAfinity": {}}}, "profiles.gpu.affinity.nodeAfinity: 'nodeAfinity' is not one of nodeAffinity, podAffinity, podAntiAffinity"),
        ({"memory": "x", "cpu": "y"}, "profiles.gpu.cpu: 'y' is not a quantity (write 500m or 2 for CPUs, 512Mi or 4Gi for bytes); profiles.gpu.memory: 'x' is not a quantity (write 500m or 2 for CPUs, 512Mi or 4Gi for bytes)"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_path_and_value(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ProfileError) as caught:
        parse_profile({**LEAST, **fields}, "profiles.gpu")
    assert str(caught.value) == sentence


def shipped() -> str:
    return resources.files("elastic_kernels.shipped").joinpath("profiles.yaml").read_text(encoding="utf-8")


def test_the_shipped_profiles() -> None:
    profiles = profilefile.loads(shipped(), "profiles.yaml")
    assert list(profiles) == [
        "python-small",
        "python-large",
        "python-gpu",
        "python-spot",
        "spark-python",
        "spark-python-spot",
        "scala",
        "spark-scala",
        "spark-scala-spot",
    ]
    gpu = profiles["python-gpu"].gpu
    assert gpu is not None
    assert (gpu.count, gpu.resource) == (1, "nvidia.com/gpu")
    assert profiles["python-spot"].spot
    spark = profiles["spark-python-spot"].spark
    assert spark is not None
    assert (spark.executors.spot, spark.executors.max, profiles["spark-python-spot"].spot) == (True, 8, False)
    for name, profile in profiles.items():
        assert from_kernelspec(name, to_kernelspec(profile)) == profile


def test_the_schema_accepts_what_validation_accepts() -> None:
    jsonschema.validate(yaml.safe_load(shipped()), profilefile.json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"profiles": {"x": {"memroy": "1Gi"}}}, profilefile.json_schema())


def test_common_parts_are_written_once() -> None:
    text = """
common: {image: "a:1", environment: {A: "1", B: "2"}, tolerations: ["x:NoSchedule"]}
parts:
  big: {memory: 4Gi, environment: {B: "3"}}
  spotty: {spot: true, tolerations: []}
profiles:
  one: {extends: [big, spotty], environment: {A: null, C: "4"}}
  two: {memory: {request: 1Gi, limit: 2Gi}}
"""
    profiles = profilefile.loads(text, "f.yaml")
    one, two = profiles["one"], profiles["two"]
    assert one.environment == {"B": "3", "C": "4"}
    assert (one.spot, one.tolerations, one.image) == (True, (), "a:1")
    assert two.memory is not None
    assert (two.memory.request, two.memory.limit) == ("1Gi", "2Gi")
    assert two.environment == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("profiles: {a: {image: x, extends: [nope]}}", "profiles.a.extends: 'nope' is not one of the parts (there are none)"),
        ("profiles: {a: {image: x, extends: nope}}", "profiles.a.extends: 'nope' is not a list of parts"),
        ("profiles: {a: 3}", "profiles.a: 3 is not a mapping"),
        ("profiles: {}", "f.yaml: profiles: names no profile"),
        ("profile: {}", "f.yaml: profile: is not a section; there are common, parts, profiles"),
        ("- a", 'f.yaml: ["a"] is not a mapping'),
        ("profiles: {a: {image: x, memory: 1Gx}, b: {gpu: 1}}", "profiles.a.memory: '1Gx' is not a quantity (write 500m or 2 for CPUs, 512Mi or 4Gi for bytes); profiles.b.image: is missing"),
    ],
)  # fmt: skip
def test_files_that_are_wrong(text: str, sentence: str) -> None:
    with pytest.raises(ProfileError) as caught:
        profilefile.loads(text, "f.yaml")
    assert str(caught.value) == sentence


def test_what_belongs_to_the_kernelspec_is_not_in_its_config() -> None:
    spec = {"argv": ["x", "{connection_file}"], "metadata": {"process_proxy": {"config": {"image": "a", "command": ["x"]}}}}
    with pytest.raises(ProfileError, match="command: belongs to the kernelspec itself"):
        from_kernelspec("k", spec)


def test_the_image_name_of_enterprise_gateways_own_kernelspecs() -> None:
    spec = {"argv": ["x", "{response_address}"], "metadata": {"process_proxy": {"config": {"image_name": "elyra/kernel-py:3"}}}}
    profile = from_kernelspec("k", spec)
    assert profile.image == "elyra/kernel-py:3"
    assert profile.calls_back
