"""The whole manifest, field by field: what a profile says, what is safe by default, and nothing of what a client injects."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_kernels.errors import ElasticKernelsError
from elastic_kernels.pod import Launch, Spot, build_pod
from elastic_kernels.profiles import Profile, parse_profile
from elastic_kernels.record import Record, launcher_sources
from elastic_kernels.request import KernelRequest, parse_request
from tests import conftest

KERNEL_ID = "9c4f2b1e-7d0a-4c56-8f3e-2a1b0c9d8e7f"
RECORD_NAME = "kernel.blue.ana-example-com--8e43ca37.interactive.1"
SPOT = Spot(label="elastic-kernels/capacity=spot", taint="elastic-kernels/capacity=spot:NoSchedule")
LAUNCH = Launch(token="a1b2c3", ports=1, record_uid="uid-of-the-record", attempt="d4e5f6")


def profile(**fields: Any) -> Profile:
    return parse_profile({"name": "python-small", "image": "example/kernel:1", **fields}, "profiles.python-small")


def record(user: str = "ana@example.com") -> Record:
    return conftest.record("python-small", kernel_id=KERNEL_ID, user=user)


def build(request: KernelRequest | None = None, launch: Launch = LAUNCH, **fields: Any) -> dict[str, Any]:
    given_profile = profile(**fields)
    return build_pod(given_profile, record(), request or KernelRequest(image=given_profile.image, timeout=30), launch, SPOT)


def test_the_least_profile() -> None:
    assert build() == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "ana-example-com--8e43ca37-9c4f2b1e-a1b2c3",
            "namespace": "kernels",
            "labels": {
                "app.kubernetes.io/managed-by": "elastic-kernels",
                "elastic-kernels/deployment": "blue",
                "elastic-kernels/kernel-id": KERNEL_ID,
                "elastic-kernels/kernel-name": "python-small",
                "elastic-kernels/limit-class": "interactive",
                "elastic-kernels/profile": "python-small",
                "elastic-kernels/user": "ana-example-com--8e43ca37",
                "app": "enterprise-gateway",
                "component": "kernel",
                "kernel_id": KERNEL_ID,
            },
            "annotations": {
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                "elastic-kernels/user": "ana@example.com",
                "elastic-kernels/kernel-name": "python-small",
                "elastic-kernels/launch": "d4e5f6",
                "elastic-kernels/launch-timeout": "30",
                "elastic-kernels/ports": "1",
                "elastic-kernels/start": "1",
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "Secret", "name": RECORD_NAME, "uid": "uid-of-the-record"}],
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 10,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "shareProcessNamespace": True,
            "securityContext": {
                "runAsUser": 1000,
                "runAsGroup": 100,
                "runAsNonRoot": True,
                "fsGroup": 100,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "kernel",
                    "image": "example/kernel:1",
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "command": ["python", "/var/run/elastic-kernels/python.py", "/var/run/elastic-kernels/kernel.json"],
                    "env": [
                        {"name": "KERNEL_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "KERNEL_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                        {"name": "KERNEL_ID", "value": KERNEL_ID},
                        {"name": "KERNEL_LANGUAGE", "value": "python"},
                        {"name": "KERNEL_NAME", "value": "python-small"},
                        {"name": "KERNEL_NAMESPACE", "value": "kernels"},
                        {"name": "KERNEL_USERNAME", "value": "ana@example.com"},
                    ],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "record", "mountPath": "/var/run/elastic-kernels", "readOnly": True}],
                }
            ],
            "volumes": [
                {
                    "name": "record",
                    "secret": {
                        "secretName": RECORD_NAME,
                        "items": [
                            {"key": "kernel-1.json", "path": "kernel.json"},
                            *({"key": name, "path": name} for name in launcher_sources()),
                        ],
                        "defaultMode": 0o440,
                    },
                }
            ],
        },
    }


def test_everything_that_a_profile_says() -> None:
    pod = build(
        cpu={"request": "500m", "limit": 2},
        memory="4Gi",
        gpu={"count": 2, "node_selector": {"gpu": "t4"}, "tolerations": ["nvidia.com/gpu:NoSchedule"]},
        spot=True,
        node_selector={"zone": "b"},
        tolerations=["team=ml:NoExecute", {"operator": "Exists", "key": "x", "tolerationSeconds": 5}],
        priority_class="kernels",
        environment={"REGION": "eu", "WHERE": "$(KERNEL_POD_IP)"},
        volumes=[
            {"name": "shared", "mount_path": "/shared", "source": {"persistentVolumeClaim": {"claimName": "efs"}}, "read_only": True},
            {"name": "data", "mount_path": "/data/", "source": {"emptyDir": {}}, "sub_path": "a"},
        ],
        working_directory="/data",
        security={"uid": 2000, "gid": 2001, "supplemental_groups": [7], "read_only_root": True},
        service_account="spark",
        grace_period=60,
        labels={"team": "ml"},
        annotations={"note": "two words"},
        image_pull_policy="Always",
        image_pull_secrets=["registry"],
    )
    spec, container = pod["spec"], pod["spec"]["containers"][0]
    assert pod["metadata"]["labels"]["team"] == "ml"
    assert pod["metadata"]["annotations"]["note"] == "two words"
    assert container["imagePullPolicy"] == "Always"
    assert container["workingDir"] == "/data"
    assert container["resources"] == {
        "requests": {"cpu": "500m", "memory": "4Gi", "nvidia.com/gpu": "2"},
        "limits": {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "2"},
    }
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"name": "REGION", "value": "eu"} in container["env"]
    assert {"name": "WHERE", "value": "$(KERNEL_POD_IP)"} in container["env"]
    assert container["volumeMounts"][1:] == [
        {"name": "scratch-tmp", "mountPath": "/tmp"},
        {"name": "scratch-home", "mountPath": "/home/jovyan"},
        {"name": "shared", "mountPath": "/shared", "readOnly": True},
        {"name": "data", "mountPath": "/data", "subPath": "a"},
    ]
    assert spec["volumes"][1:] == [
        {"name": "scratch-tmp", "emptyDir": {}},
        {"name": "scratch-home", "emptyDir": {}},
        {"name": "shared", "persistentVolumeClaim": {"claimName": "efs"}},
        {"name": "data", "emptyDir": {}},
    ]
    assert spec["nodeSelector"] == {"zone": "b", "gpu": "t4"}
    assert spec["tolerations"] == [
        {"key": "team", "operator": "Equal", "value": "ml", "effect": "NoExecute"},
        {"operator": "Exists", "key": "x", "tolerationSeconds": 5},
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "elastic-kernels/capacity", "operator": "Equal", "value": "spot", "effect": "NoSchedule"},
    ]
    spot_label = {"key": "elastic-kernels/capacity", "operator": "In", "values": ["spot"]}
    assert spec["affinity"] == {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [spot_label]}]}}
    }
    assert (spec["serviceAccountName"], spec["automountServiceAccountToken"]) == ("spark", True)
    assert spec["priorityClassName"] == "kernels"
    assert spec["terminationGracePeriodSeconds"] == 60
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["securityContext"]["runAsUser"] == 2000
    assert spec["securityContext"]["fsGroup"] == 2001
    assert spec["securityContext"]["supplementalGroups"] == [7]


def test_spot_is_required_in_each_of_the_terms_that_a_profile_offers() -> None:
    terms = [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"matchFields": []}]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}, "podAffinity": {"x": 1}}
    result = build(spot=True, affinity=affinity)["spec"]["affinity"]
    required = result["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [term["matchExpressions"][-1]["values"] for term in required] == [["spot"], ["spot"]]
    assert required[0]["matchExpressions"][0] == {"key": "a", "operator": "Exists"}
    assert result["podAffinity"] == {"x": 1}


def test_the_pod_patch_comes_last() -> None:
    patch = {
        "metadata": {"labels": {"team": "ops"}},
        "spec": {
            "hostNetwork": True,
            "enableServiceLinks": None,
            "containers": [{"name": "kernel", "tty": True}, {"name": "sidecar", "image": "s"}],
        },
    }
    pod = build(labels={"team": "ml"}, pod=patch)
    assert pod["metadata"]["labels"]["team"] == "ops"
    assert pod["spec"]["hostNetwork"] is True
    assert "enableServiceLinks" not in pod["spec"]
    kernel, sidecar = pod["spec"]["containers"]
    assert kernel["tty"] is True
    assert kernel["image"] == "example/kernel:1"
    assert sidecar == {"name": "sidecar", "image": "s"}


def test_a_launcher_of_enterprise_gateway_gets_its_arguments_both_ways() -> None:
    arguments = {"response_address": "10.0.0.1:8877", "public_key": "KEY", "port_range": "0..0"}
    pod = build(
        launch=Launch(token="a1b2c3", ports=0, record_uid="u", arguments=arguments),
        command=["launch", "--id", "{kernel_id}", "--response-address", "{response_address}", "--public-key={public_key}", "{unknown}"],
    )
    container = pod["spec"]["containers"][0]
    assert container["command"] == [
        "launch", "--id", KERNEL_ID, "--response-address", "10.0.0.1:8877", "--public-key=KEY", "{unknown}",
    ]  # fmt: skip
    assert {"name": "RESPONSE_ADDRESS", "value": "10.0.0.1:8877"} in container["env"]
    assert {"name": "PUBLIC_KEY", "value": "KEY"} in container["env"]


HOSTILE = st.one_of(
    st.text(max_size=50),
    st.sampled_from(
        [
            "$(KERNEL_ID)", "$$(A)", "{{ kernel_id }}", "\n  hostNetwork: true\n", "- {name: x, hostPath: {path: /}}", "0", "root", "../..",
            "kube-system", "evil/image:1", '"}, "spec": {"hostPID": true}, "x": {"', "`id`", "$(id)", "a\tb", "---\n", "%s%n", "\u202e",
        ]
    ),
)  # fmt: skip
NAMES = st.sampled_from(
    [
        "KERNEL_IMAGE", "KERNEL_NAMESPACE", "KERNEL_UID", "KERNEL_GID", "KERNEL_VOLUMES", "KERNEL_VOLUME_MOUNTS", "KERNEL_POD_NAME",
        "KERNEL_SERVICE_ACCOUNT_NAME", "KERNEL_CPUS", "KERNEL_MEMORY_LIMIT", "KERNEL_GPUS", "KERNEL_EXECUTOR_IMAGE", "KERNEL_ID",
        "KERNEL_WORKING_DIR", "KERNEL_LANGUAGE", "KERNEL_EXTRA_SPARK_OPTS", "KERNEL_LABELS", "PATH", "LD_PRELOAD", "PYTHONPATH",
        "KERNEL_POD_IP", "KERNEL_NAME", "EG_AUTH_TOKEN",
    ]
)  # fmt: skip


@given(st.dictionaries(NAMES | st.text(max_size=20), HOSTILE))
def test_hostile_environment_has_no_effect_on_the_pod(environment: dict[str, str]) -> None:
    closed = profile()
    request = parse_request(environment, closed)
    assert build_pod(closed, record(), request, LAUNCH, SPOT) == build(request=parse_request({}, closed))


@given(st.dictionaries(NAMES, HOSTILE), HOSTILE)
def test_hostile_values_of_an_open_variable_stay_values(environment: dict[str, str], value: str) -> None:
    opened = profile(
        client_environment=["MY_*", "KERNEL_LANGUAGE"], volumes=[{"name": "home", "mount_path": "/home/ana", "source": {"emptyDir": {}}}]
    )
    try:
        request = parse_request({**environment, "MY_TOKEN": value}, opened)
    except ElasticKernelsError:
        assert "\0" in value + environment.get("KERNEL_LANGUAGE", "")
        return
    pod = build_pod(opened, record(), request, LAUNCH, SPOT)
    variables = {item["name"]: item for item in pod["spec"]["containers"][0]["env"]}
    assert variables.pop("MY_TOKEN") == {"name": "MY_TOKEN", "value": value.replace("$", "$$")}
    variables.pop("KERNEL_WORKING_DIR", None)
    without = build_pod(opened, record(), parse_request({}, opened), LAUNCH, SPOT)
    assert variables == {item["name"]: item for item in without["spec"]["containers"][0]["env"]}
    assert len(variables) == len({item["name"] for item in without["spec"]["containers"][0]["env"]})
    pod["spec"]["containers"][0]["env"] = without["spec"]["containers"][0]["env"] = []
    assert pod == without


@given(HOSTILE.filter(lambda name: bool(name.strip()) and name.isprintable()))
def test_hostile_user_names_are_data(name: str) -> None:
    pod = build_pod(profile(), record(name), KernelRequest(image="example/kernel:1", timeout=1), LAUNCH, SPOT)
    ordinary = build()
    assert pod["metadata"]["annotations"]["elastic-kernels/user"] == name
    assert re.fullmatch(r"kernel\.blue\.[a-z0-9-]{1,40}\.interactive\.1", record(name).name)
    text, expected = json.dumps(pod["spec"]["volumes"]), json.dumps(ordinary["spec"]["volumes"])
    assert text == expected.replace(RECORD_NAME, record(name).name)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"KERNEL_WORKING_DIR": "/home/ana/project"}, "/home/ana/project"),
        ({"KERNEL_WORKING_DIR": "/home/anabel"}, None),
        ({"KERNEL_WORKING_DIR": "/home/ana/../bob"}, None),
        ({"KERNEL_WORKING_DIR": "project"}, None),
        ({"KERNEL_WORKING_DIR": "/etc"}, None),
    ],
)
def test_the_working_directory_lies_inside_what_is_mounted(environment: dict[str, str], expected: str | None) -> None:
    mounted = profile(volumes=[{"name": "home", "mount_path": "/home/ana", "source": {"emptyDir": {}}}])
    assert parse_request(environment, mounted).working_directory == expected


@pytest.mark.parametrize(
    ("asked", "expected", "dropped"),
    [
        (None, "gpu", ()),
        ("gpu", "gpu", ()),
        ("scheduled", "scheduled", ()),
        ("interactive", "gpu", ("KERNEL_LIMIT_CLASS",)),
        ("", "gpu", ("KERNEL_LIMIT_CLASS",)),
    ],
)
def test_a_client_chooses_among_the_limits_that_the_profile_opens(asked: str | None, expected: str, dropped: tuple[str, ...]) -> None:
    opened = profile(limit_class="gpu", limit_classes=["scheduled"])
    request = parse_request({"KERNEL_LIMIT_CLASS": asked} if asked is not None else {}, opened)
    assert (request.limit_class, request.dropped) == (expected, dropped)
