"""A profile with Spark: the settings that its launcher gives to Spark, and the template of its executors' pods. Pure.

Spark runs in client mode: the driver is in the kernel's pod, asks the API server for executors, and they call it back at the
pod's address. Executors belong to the kernel's pod, and go with it. The driver's service account has no right to delete
anything, nor to anything but pods; settings keep Spark from trying.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from elastic_kernels import names, quantities, taints
from elastic_kernels.homes import Home
from elastic_kernels.mounts import HOME_VOLUME
from elastic_kernels.profiles import Profile
from elastic_kernels.record import Record
from elastic_kernels.request import KernelRequest
from elastic_kernels.spark.part import LEAST_HEAP, MEBIBYTE, Spark

if TYPE_CHECKING:
    from elastic_kernels.pod import Spot

SETTINGS: Final = "ELASTIC_KERNELS_SPARK_CONF"
"""The variable of the kernel's pod with Spark's settings, as a JSON mapping."""
SESSION: Final = "ELASTIC_KERNELS_SPARK_SESSION"
"""The variable that says when there is a session: lazy, eager or none."""
DRIVER_PORT: Final = 7078
BLOCK_MANAGER_PORT: Final = 7079
UI_PORT: Final = 4040
"""Where the launcher shows Spark's pages to the gateway; Spark itself shows them inside the pod alone."""

_VOLUME: Final = "spark"
_MOUNT_PATH: Final = "/var/run/elastic-kernels-spark"
_TEMPLATE: Final = "executor.json"
_CONTAINER: Final = "executor"
_GRACE: Final = 3
_RECORD: Final = "record"
# What was on a machine that does not answer is computed elsewhere, and sooner than a kernel is given up, which nobody can replace.
_LOST: Final = tuple(
    {"key": f"node.kubernetes.io/{condition}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 30}
    for condition in ("not-ready", "unreachable")
)
# The JVM's part of the pod's memory: in Python the rest is the kernel's, in Scala the JVM is the kernel.
_DRIVER_SHARE: Final = {"python": 0.5, "scala": 0.7}


def with_spark(
    manifest: Mapping[str, Any], profile: Profile, record: Record, request: KernelRequest, home: Home | None, spot: Spot
) -> dict[str, Any]:
    """Return the kernel's pod with what Spark needs in it; a pod of a profile without Spark as it is.

    ``manifest`` is the pod without Spark: executors have its volumes, its user and its security. ``home`` is the user's home volume,
    and ``spot`` what marks spot machines.
    """
    if profile.spark is None:
        return dict(manifest)
    metadata, spec = manifest["metadata"], manifest["spec"]
    container = spec["containers"][0]
    template = json.dumps(_template(manifest, profile, record, home, spot))
    settings = _settings(profile, record, request, profile.spark, metadata["name"])
    source = {"items": [{"path": _TEMPLATE, "fieldRef": {"fieldPath": f"metadata.annotations['{names.EXECUTOR}']"}}]}
    kernel = {
        **container,
        "env": [
            *container["env"],
            {"name": SETTINGS, "value": json.dumps(settings, sort_keys=True)},
            {"name": SESSION, "value": request.spark.session or profile.spark.session},
            # of Spark's ports this leaves the web pages, whose address cannot be set otherwise
            {"name": "SPARK_LOCAL_IP", "value": "127.0.0.1"},
        ],
        "volumeMounts": [*container["volumeMounts"], {"name": _VOLUME, "mountPath": _MOUNT_PATH, "readOnly": True}],
    }
    return {
        **manifest,
        "metadata": {**metadata, "annotations": {**metadata["annotations"], names.EXECUTOR: template}},
        "spec": {
            **spec,
            "automountServiceAccountToken": True,
            "serviceAccountName": profile.spark.service_account,
            "containers": [kernel, *spec["containers"][1:]],
            "volumes": [*spec["volumes"], {"name": _VOLUME, "downwardAPI": source}],
        },
    }


def _settings(profile: Profile, record: Record, request: KernelRequest, spark: Spark, pod: str) -> dict[str, str]:
    """Return Spark's settings; ``$(NAME)`` in them is expanded by the kubelet."""
    executors = spark.executors
    cpu = {"request": executors.cpu.request or executors.cpu.limit, "limit": executors.cpu.limit}
    ours = {
        # there is no name to resolve in a cluster without DNS; these variables are in every pod
        "spark.master": "k8s://https://$(KUBERNETES_SERVICE_HOST):$(KUBERNETES_SERVICE_PORT)",
        "spark.submit.deployMode": "client",
        "spark.app.name": record.kernel_name,
        "spark.kubernetes.namespace": record.namespace,
        "spark.kubernetes.driver.pod.name": pod,
        "spark.driver.host": "$(KERNEL_POD_IP)",
        "spark.driver.port": str(DRIVER_PORT),
        "spark.driver.blockManager.port": str(BLOCK_MANAGER_PORT),
        "spark.ui.port": str(UI_PORT + 1),
        # pages are to be read: what changes something there is an address that any web page could call
        "spark.ui.killEnabled": "false",
        # other pods reach these ports, and have no business there
        "spark.authenticate": "true",
        "spark.kubernetes.executor.container.image": executors.image or request.image,
        "spark.kubernetes.container.image.pullPolicy": profile.image_pull_policy or "IfNotPresent",
        "spark.kubernetes.executor.podTemplateFile": f"{_MOUNT_PATH}/{_TEMPLATE}",
        "spark.kubernetes.executor.podTemplateContainerName": _CONTAINER,
        # what would need rights to more than pods, or to delete them
        "spark.kubernetes.executor.disableConfigMap": "true",
        "spark.kubernetes.executor.deleteOnTermination": "false",
        "spark.kubernetes.driver.service.deleteOnTermination": "false",
        "spark.kubernetes.driver.ownPersistentVolumeClaim": "false",
        "spark.kubernetes.driver.reusePersistentVolumeClaim": "false",
        **{f"spark.kubernetes.executor.{kind}.cores": amount for kind, amount in cpu.items() if amount},
        "spark.executor.cores": str(executors.cores),
        "spark.executor.memory": f"{executors.memory_mib - executors.overhead_mib}m",
        "spark.executor.memoryOverhead": f"{executors.overhead_mib}m",
        # executors come with work; a session does not wait for any
        "spark.dynamicAllocation.enabled": "true",
        "spark.dynamicAllocation.shuffleTracking.enabled": "true",
        "spark.dynamicAllocation.minExecutors": "0",
        "spark.dynamicAllocation.initialExecutors": "0",
        "spark.dynamicAllocation.maxExecutors": str(executors.max),
        "spark.scheduler.minRegisteredResourcesRatio": "0",
        # executors that are taken away now and then, for as long as a kernel lives, are no reason to end the driver
        "spark.executor.failuresValidityInterval": "10m",
        "spark.executor.maxNumFailures": str(max(20, 4 * executors.max)),
        # a machine that does not answer is not waited for as long as one that is merely busy might need
        "spark.storage.blockManagerHeartbeatTimeoutMs": "60s",
        "spark.network.timeoutInterval": "10s",
        "spark.ui.showConsoleProgress": "false",
        **_driver_memory(profile),
    }
    wished = {name: value.replace("$", "$$") for name, value in request.spark.settings.items()}
    return {**ours, **spark.settings, **wished}


def _driver_memory(profile: Profile) -> dict[str, str]:
    if profile.memory is None or profile.memory.limit is None:
        return {}
    share = _DRIVER_SHARE.get(profile.language, _DRIVER_SHARE["python"])
    mebibytes = int(float(quantities.parse(profile.memory.limit)) * share) // MEBIBYTE
    return {"spark.driver.memory": f"{max(LEAST_HEAP, mebibytes)}m"}


def _template(manifest: Mapping[str, Any], profile: Profile, record: Record, home: Home | None, spot: Spot) -> dict[str, Any]:
    """Return the pod that Spark makes executors from; it adds the name, the owner, the image, the sizes and what is to be run."""
    assert profile.spark is not None
    executors = profile.spark.executors
    spec, container = manifest["spec"], manifest["spec"]["containers"][0]
    # executors are on other machines
    absent = {_RECORD, *([HOME_VOLUME] if home and home.one_machine else [])}
    key, _, value = spot.label.partition("=")
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "labels": {
                **profile.labels,
                names.DEPLOYMENT: record.deployment,
                names.USER: names.slug(record.user),
                names.PROFILE: names.slug(record.kernel_name, limit=63),
                names.EXECUTOR_OF: manifest["metadata"]["name"],
            },
            "annotations": {names.SAFE_TO_EVICT: "false", **profile.annotations, names.USER: record.user},
        },
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": _GRACE,
            **{name: spec[name] for name in ("priorityClassName", "imagePullSecrets", "securityContext") if name in spec},
            "nodeSelector": {**executors.node_selector, **({key: value} if executors.spot else {})},
            "tolerations": [*executors.tolerations, *([taints.toleration(spot.taint)] if executors.spot else []), *_LOST],
            "containers": [
                {
                    "name": _CONTAINER,
                    # jars and files are put where an executor starts
                    "workingDir": "/tmp",
                    "env": [entry for entry in container["env"] if "value" in entry and not entry["name"].startswith("KERNEL_")],
                    "securityContext": container["securityContext"],
                    "volumeMounts": [mount for mount in container["volumeMounts"] if mount["name"] not in absent],
                }
            ],
            "volumes": [volume for volume in spec["volumes"] if volume["name"] not in absent],
        },
    }
