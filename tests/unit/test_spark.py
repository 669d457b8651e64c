"""Spark in a profile: the pod, the executors' template and the settings whole; what is refused, and in which words."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_kernels.errors import ElasticKernelsError, NotAllowedError, ProfileError, RequestError
from elastic_kernels.homes import Home
from elastic_kernels.pod import Launch, Spot, build_pod
from elastic_kernels.profiles import Profile, parse_profile
from elastic_kernels.record import Record
from elastic_kernels.request import parse_request

SPOT = Spot(label="elastic-kernels/capacity=spot", taint="elastic-kernels/capacity=spot:NoSchedule")
LEAST = {
    "name": "spark-python",
    "image": "example/kernel-spark:1",
    "command": ["python", "{launchers}/spark.py", "{connection_file}"],
    "spark": {"executors": {"max": 4}},
}


def profile(**fields: Any) -> Profile:
    return parse_profile({**LEAST, **fields}, "profiles.spark-python")


def build(given_profile: Profile, home: Home | None = None, **environment: str) -> dict[str, Any]:
    record = Record(
        kernel_id="9c4f2b1e-7d0a-4c56-8f3e-2a1b0c9d8e7f", kernel_name="spark-python", user="ana", namespace="kernels",
        deployment="blue", key="secret", token="d4e5f6", slot="1",
    )  # fmt: skip
    launch = Launch(token="a1b2c3", ports=0, record_uid="uid-of-the-record", home=home)
    return build_pod(given_profile, record, parse_request(environment, given_profile), launch, SPOT)


def settings(pod: dict[str, Any]) -> dict[str, str]:
    return dict(json.loads(variables(pod)["ELASTIC_KERNELS_SPARK_CONF"]))


def variables(pod: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in pod["spec"]["containers"][0]["env"] if "value" in entry}


def template(pod: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(pod["metadata"]["annotations"]["elastic-kernels/executor"]))


def test_the_settings_of_the_least_profile() -> None:
    assert settings(build(profile())) == {
        "spark.master": "k8s://https://$(KUBERNETES_SERVICE_HOST):$(KUBERNETES_SERVICE_PORT)",
        "spark.submit.deployMode": "client",
        "spark.app.name": "spark-python",
        "spark.kubernetes.namespace": "kernels",
        "spark.kubernetes.driver.pod.name": "ana-9c4f2b1e-a1b2c3",
        "spark.driver.host": "$(KERNEL_POD_IP)",
        "spark.driver.port": "7078",
        "spark.driver.blockManager.port": "7079",
        "spark.ui.port": "4041",
        "spark.ui.killEnabled": "false",
        "spark.authenticate": "true",
        "spark.kubernetes.executor.container.image": "example/kernel-spark:1",
        "spark.kubernetes.container.image.pullPolicy": "IfNotPresent",
        "spark.kubernetes.executor.podTemplateFile": "/var/run/elastic-kernels-spark/executor.json",
        "spark.kubernetes.executor.podTemplateContainerName": "executor",
        "spark.kubernetes.executor.disableConfigMap": "true",
        "spark.kubernetes.executor.deleteOnTermination": "false",
        "spark.kubernetes.driver.service.deleteOnTermination": "false",
        "spark.kubernetes.driver.ownPersistentVolumeClaim": "false",
        "spark.kubernetes.driver.reusePersistentVolumeClaim": "false",
        "spark.kubernetes.executor.request.cores": "1",
        "spark.kubernetes.executor.limit.cores": "1",
        "spark.executor.cores": "1",
        "spark.executor.memory": "1536m",
        "spark.executor.memoryOverhead": "512m",
        "spark.dynamicAllocation.enabled": "true",
        "spark.dynamicAllocation.shuffleTracking.enabled": "true",
        "spark.dynamicAllocation.minExecutors": "0",
        "spark.dynamicAllocation.initialExecutors": "0",
        "spark.dynamicAllocation.maxExecutors": "4",
        "spark.scheduler.minRegisteredResourcesRatio": "0",
        "spark.executor.failuresValidityInterval": "10m",
        "spark.executor.maxNumFailures": "20",
        "spark.storage.blockManagerHeartbeatTimeoutMs": "60s",
        "spark.network.timeoutInterval": "10s",
        "spark.ui.showConsoleProgress": "false",
    }


def test_the_template_of_the_executors() -> None:
    volumes = [{"name": "shared", "mount_path": "/shared", "source": {"persistentVolumeClaim": {"claimName": "efs"}}, "read_only": True}]
    executors = {"max": 4, "spot": True, "node_selector": {"zone": "a"}, "tolerations": ["team=x:NoSchedule"]}
    pod = build(profile(volumes=volumes, environment={"TZ": "UTC"}, priority_class="low", spark={"executors": executors}))
    assert template(pod) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "labels": {
                "elastic-kernels/deployment": "blue",
                "elastic-kernels/user": "ana",
                "elastic-kernels/profile": "spark-python",
                "elastic-kernels/executor-of": "ana-9c4f2b1e-a1b2c3",
            },
            "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "elastic-kernels/user": "ana"},
        },
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 3,
            "priorityClassName": "low",
            "securityContext": {
                "runAsUser": 1000,
                "runAsGroup": 100,
                "runAsNonRoot": True,
                "fsGroup": 100,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "nodeSelector": {"zone": "a", "elastic-kernels/capacity": "spot"},
            "tolerations": [
                {"key": "team", "operator": "Equal", "value": "x", "effect": "NoSchedule"},
                {"key": "elastic-kernels/capacity", "operator": "Equal", "value": "spot", "effect": "NoSchedule"},
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30},
            ],
            "containers": [
                {
                    "name": "executor",
                    "workingDir": "/tmp",
                    "env": [{"name": "TZ", "value": "UTC"}],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "shared", "mountPath": "/shared", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": "efs"}}],
        },
    }


def test_the_kernels_pod() -> None:
    with_spark, without = build(profile()), build(profile(spark=None))
    assert with_spark["spec"]["serviceAccountName"] == "spark-driver"
    assert with_spark["spec"]["automountServiceAccountToken"]
    assert not without["spec"]["automountServiceAccountToken"]
    assert variables(with_spark)["ELASTIC_KERNELS_SPARK_SESSION"] == "lazy"
    assert with_spark["spec"]["volumes"][-1] == {
        "name": "spark",
        "downwardAPI": {
            "items": [{"path": "executor.json", "fieldRef": {"fieldPath": "metadata.annotations['elastic-kernels/executor']"}}]
        },
    }
    assert with_spark["spec"]["containers"][0]["volumeMounts"][-1] == {
        "name": "spark",
        "mountPath": "/var/run/elastic-kernels-spark",
        "readOnly": True,
    }
    assert with_spark["spec"]["volumes"][:-1] == without["spec"]["volumes"]
    # only the driver is where the profile's own spot says; executors have theirs
    assert "tolerations" not in with_spark["spec"]


@pytest.mark.parametrize(
    ("home", "is_mounted"),
    [
        (Home("efs"), True),
        (Home("ebs", one_machine=True), False),
        (Home("ebs", node="general", holder="jupyter-ana", one_machine=True), False),
    ],
)
def test_executors_have_a_home_that_other_machines_can_mount(home: Home, is_mounted: bool) -> None:
    pod = template(build(profile(home=True), home))
    assert ("home" in [volume["name"] for volume in pod["spec"]["volumes"]]) is is_mounted
    assert ("/home/jovyan" in [mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]]) is is_mounted


@pytest.mark.parametrize(
    ("executors", "expected"),
    [
        ({"cpu": 4, "memory": "8Gi"}, {"cores": "4", "memory": "6144m", "memoryOverhead": "2048m"}),
        ({"cpu": {"request": "100m"}, "memory": "736Mi"}, {"cores": "1", "memory": "480m", "memoryOverhead": "256m"}),
        ({"cpu": {"request": "500m", "limit": "2500m"}, "memory": "1G"}, {"cores": "2", "memory": "697m", "memoryOverhead": "256m"}),
    ],
)
def test_sizes_of_executors(executors: dict[str, Any], expected: dict[str, str]) -> None:
    said = settings(build(profile(spark={"executors": {"max": 1, **executors}})))
    assert {name: said[f"spark.executor.{name}"] for name in expected} == expected


@pytest.mark.parametrize(
    ("language", "memory", "expected"),
    [("python", "4Gi", "2048m"), ("scala", "4Gi", "2867m"), ("python", "1Gi", "512m"), ("python", {"request": "1Gi"}, None)],
)
def test_memory_of_the_driver(language: str, memory: Any, expected: str | None) -> None:
    assert settings(build(profile(language=language, memory=memory))).get("spark.driver.memory") == expected


def test_whose_settings_win() -> None:
    own = {"executors": {"max": 4}, "settings": {"spark.ui.enabled": False, "spark.sql.shuffle.partitions": 8, "spark.local.dir": "/$(X)"}}
    pod = build(profile(spark=own), KERNEL_SPARK_SETTINGS="spark.sql.shuffle.partitions=2 spark.app.name='a $(KERNEL_ID)'")
    said = settings(pod)
    assert said["spark.ui.enabled"] == "false"
    assert said["spark.sql.shuffle.partitions"] == "2"
    # an administrator's variables are expanded, a client's text is not
    assert said["spark.local.dir"] == "/$(X)"
    assert said["spark.app.name"] == "a $$(KERNEL_ID)"


def test_a_client_may_choose_when_there_is_a_session() -> None:
    assert variables(build(profile(), KERNEL_SPARK_SESSION="eager"))["ELASTIC_KERNELS_SPARK_SESSION"] == "eager"
    with pytest.raises(RequestError, match=r"KERNEL_SPARK_SESSION is not one of lazy, eager, none\."):
        build(profile(), KERNEL_SPARK_SESSION="later")


def test_what_is_asked_of_spark_means_nothing_without_it() -> None:
    request = parse_request({"KERNEL_SPARK_SETTINGS": "nonsense"}, profile(spark=None))
    assert request.dropped == ("KERNEL_SPARK_SETTINGS",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("spark.a=b spark.c=d=e", {"spark.a": "b", "spark.c": "d=e"}),
        ("spark.a='x y'\nspark.b=", {"spark.a": "x y", "spark.b": ""}),
        ('{"spark.a": "x, y"}', {"spark.a": "x, y"}),
    ],
)
def test_how_settings_are_written(text: str, expected: dict[str, str]) -> None:
    open_to_all = profile(spark={"executors": {"max": 4}, "allowed_settings": ["spark.*"]})
    assert parse_request({"KERNEL_SPARK_SETTINGS": text}, open_to_all).spark.settings == expected


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        ("spark.a", RequestError, "KERNEL_SPARK_SETTINGS is not a list of settings: write spark.a=b spark.c=d, or a JSON mapping of texts."),
        ("'spark.a=b", RequestError, "KERNEL_SPARK_SETTINGS is not a list of settings"),
        ('{"spark.a": 1}', RequestError, "KERNEL_SPARK_SETTINGS is not a list of settings"),
        ('{"spark.a": "x\\ny"}', RequestError, "KERNEL_SPARK_SETTINGS is not a list of settings"),
        ("[1]", RequestError, "KERNEL_SPARK_SETTINGS is not a list of settings"),
        ("java.a=b", RequestError, "KERNEL_SPARK_SETTINGS is not a list of settings"),
        ("spark.master=local", NotAllowedError, "The Spark setting 'spark.master' is not one that 'spark-python' lets you make; those are: spark.app.name, "),
        ("spark.kubernetes.namespace=other", NotAllowedError, "The Spark setting 'spark.kubernetes.namespace' is not one"),
        ("spark.driver.extraJavaOptions=-x", NotAllowedError, "The Spark setting 'spark.driver.extraJavaOptions' is not one"),
        ("spark.dynamicAllocation.maxExecutors=5", NotAllowedError, "The Spark setting 'spark.dynamicAllocation.maxExecutors' asks for 5, and 'spark-python' has 4 executors at most."),
        ("spark.dynamicAllocation.maxExecutors=0", RequestError, "The Spark setting 'spark.dynamicAllocation.maxExecutors' is not a number of at least 1: '0'."),
        ("spark.executor.cores=two", RequestError, "The Spark setting 'spark.executor.cores' is not a number of at least 1: 'two'."),
        ("spark.executor.cores=2", NotAllowedError, "The Spark setting 'spark.executor.cores' asks for 2, and 'spark-python' has 1 cores for each executor."),
        ("spark.executor.memory=2g", NotAllowedError, "The Spark setting 'spark.executor.memory' asks for 2g, and an executor of 'spark-python' has 1536m: its 2048m, less 512m for what is no heap."),
        ("spark.executor.memory=1", RequestError, "The Spark setting 'spark.executor.memory' is not a size of at least 480m: '1'."),
        ("spark.executor.memory=much", RequestError, "The Spark setting 'spark.executor.memory' is not a size of at least 480m: 'much'."),
    ],
)  # fmt: skip
def test_settings_that_are_refused(text: str, kind: type[ElasticKernelsError], sentence: str) -> None:
    with pytest.raises(kind) as caught:
        parse_request({"KERNEL_SPARK_SETTINGS": text}, profile())
    assert str(caught.value).startswith(sentence)


@given(st.text())
def test_any_settings_are_taken_or_refused(text: str) -> None:
    with contextlib.suppress(NotAllowedError, RequestError):
        assert all(name.startswith("spark.") for name in parse_request({"KERNEL_SPARK_SETTINGS": text}, profile()).spark.settings)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"spark": {}}, "profiles.spark-python.spark.executors: is missing"),
        ({"spark": {"executors": {}}}, "profiles.spark-python.spark.executors.max: is missing"),
        ({"spark": {"executors": {"max": 0}}}, "profiles.spark-python.spark.executors.max: 0 must be greater than or equal to 1"),
        ({"spark": {"executors": {"max": 1, "memory": "512Mi"}}}, "profiles.spark-python.spark.executors: memory: '512Mi' is too little for an executor, which needs 736Mi"),
        ({"spark": {"executors": {"max": 1}, "session": "now"}}, "profiles.spark-python.spark.session: 'now' must be 'lazy', 'eager' or 'none'"),
        ({"spark": {"executors": {"max": 1}, "settings": {"sql": "x"}}}, "profiles.spark-python.spark.settings.sql: 'sql' is not the name of a Spark setting (spark.…)"),
        ({"spark": {"executors": {"max": 1}, "allowed_settings": ["*"]}}, "profiles.spark-python.spark.allowed_settings.0: '*' is not a Spark setting, or the start of one and *"),
        ({"command": ["python", "{launcher}", "{connection_file}"]}, "profiles.spark-python: Spark is started by our launchers: the command needs one of them, such as {launchers}/spark.py"),
        ({"service_account": "x"}, "profiles.spark-python: a pod has one service account: name it in spark.service_account alone"),
        ({"memory": "512Mi"}, "profiles.spark-python: memory: '512Mi' is too little for a driver of Spark, which needs 1Gi"),
    ],
)  # fmt: skip
def test_mistakes_are_named(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ProfileError) as caught:
        profile(**fields)
    assert str(caught.value) == sentence
