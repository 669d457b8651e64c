"""``build_pod``: a profile and one launch become a manifest. Pure: no input or output, no clock, no randomness.

The profile is an administrator's word and is carried out as it stands. What came from a client appears in three places only:
the image (if the profile admits it), the working directory and the values of variables that the profile opens; neither of
them is expanded or parsed by anybody on the way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from elastic_kernels import mounts, names, taints
from elastic_kernels import record as records
from elastic_kernels.homes import Home
from elastic_kernels.merge import merge
from elastic_kernels.mounts import Mount
from elastic_kernels.profiles import Profile
from elastic_kernels.record import Record
from elastic_kernels.request import KernelRequest
from elastic_kernels.spark import configuration

MOUNT_PATH: Final = "/var/run/elastic-kernels"
HOME: Final = "/home/jovyan"
_PLACEHOLDER: Final = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True)
class Spot:
    """How this cluster marks its spot machines."""

    label: str
    """``key=value``."""
    taint: str
    """``key=value:effect``."""


@dataclass(frozen=True)
class Launch:
    """One start of a kernel: what differs from the start before."""

    token: str
    """A few letters and digits, new at every start; the pod's name ends with it."""
    ports: int
    """Which set of ports the kernel listens on."""
    record_uid: str
    """The uid of the record's Secret, which owns the pod."""
    number: int = 1
    """The how-manieth start of the kernel it is."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Values of further placeholders in the command: ``response_address`` and others, where the kernel calls back."""
    announce_to: str = ""
    """Where the launcher says that the kernel listens, as host:port; empty for nowhere."""
    home: Home | None = None
    """What is mounted as the user's home, None for nothing."""
    attempt: str = ""
    """A few letters and digits as well, of the one who starts it: several may mean the same start, and so the same token."""


def build_pod(profile: Profile, record: Record, request: KernelRequest, launch: Launch, spot: Spot) -> dict[str, Any]:
    """Return the manifest of the pod that runs one start of a kernel."""
    manifest: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": names.pod_name(record.user, record.kernel_id, launch.token),
            "namespace": record.namespace,
            "labels": {**profile.labels, **records.labels_of(record)},
            "annotations": {
                # a node with an idle kernel on it is not idle
                names.SAFE_TO_EVICT: "false",
                **profile.annotations,
                **records.annotations_of(record),
                names.LAUNCH: launch.attempt,
                names.LAUNCH_TIMEOUT: f"{request.timeout:g}",
                names.PORTS: str(launch.ports),
                names.START: str(launch.number),
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "Secret", "name": record.name, "uid": launch.record_uid}],
        },
        "spec": _spec(profile, record, request, launch, spot),
    }
    with_spark = configuration.with_spark(manifest, profile, record, request, launch.home, spot)
    return merge(with_spark, profile.pod, lists_by_name=True)


def _spec(profile: Profile, record: Record, request: KernelRequest, launch: Launch, spot: Spot) -> dict[str, Any]:
    security = profile.security
    mounted = mounts.mounts(profile, record.user, record.groups, launch.home)
    resources = _resources(profile)
    return _present(
        {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": profile.grace_period,
            "automountServiceAccountToken": profile.service_account is not None,
            "serviceAccountName": profile.service_account,
            # otherwise every service of the namespace adds variables to the kernel's environment
            "enableServiceLinks": False,
            # as the first process of its container, ipykernel would interrupt its children and not itself
            "shareProcessNamespace": True,
            "priorityClassName": profile.priority_class,
            "imagePullSecrets": [{"name": name} for name in profile.image_pull_secrets],
            "nodeSelector": {**profile.node_selector, **(profile.gpu.node_selector if profile.gpu else {})},
            "tolerations": _tolerations(profile, spot),
            "affinity": _affinity(profile, launch, spot),
            "securityContext": _present(
                {
                    "runAsUser": security.uid,
                    "runAsGroup": security.gid,
                    "runAsNonRoot": True,
                    "fsGroup": security.gid,
                    "fsGroupChangePolicy": "OnRootMismatch",
                    "supplementalGroups": list(security.supplemental_groups),
                    "seccompProfile": {"type": "RuntimeDefault"},
                }
            ),
            "initContainers": mounts.folder_containers(profile, mounted, _without_gpu(profile, resources)),
            "containers": [_container(profile, record, request, launch, mounted, resources)],
            "volumes": _volumes(profile, record, launch, mounted),
        }
    )


def _container(
    profile: Profile, record: Record, request: KernelRequest, launch: Launch, mounted: Sequence[Mount], resources: Mapping[str, Any]
) -> dict[str, Any]:
    home = profile.home.mount_path if profile.home and launch.home else None
    return _present(
        {
            "name": names.CONTAINER,
            "image": request.image,
            "imagePullPolicy": profile.image_pull_policy,
            # a launch that fails says the end of its log, which need not be looked for then, and may be gone
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "command": _command(profile, record, launch),
            # where JupyterLab starts, too
            "workingDir": profile.working_directory or home,
            "env": _environment(profile, record, request, launch, home),
            "resources": resources,
            "securityContext": _present(
                {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": profile.security.read_only_root or None,
                }
            ),
            "volumeMounts": _mounts(profile, mounted),
        }
    )


def _command(profile: Profile, record: Record, launch: Launch) -> list[str]:
    values = {
        "connection_file": f"{MOUNT_PATH}/{records.CONNECTION_FILE}",
        "launcher": f"{MOUNT_PATH}/python.py",
        "launchers": MOUNT_PATH,
        "kernel_id": record.kernel_id,
        **launch.arguments,
    }
    return [_PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), argument) for argument in profile.command]


def _environment(profile: Profile, record: Record, request: KernelRequest, launch: Launch, home: str | None) -> list[dict[str, Any]]:
    derived = {"KERNEL_POD_NAME": "metadata.name", "KERNEL_POD_IP": "status.podIP"}
    plain = {
        **({"HOME": home} if home else {}),
        **profile.environment,
        **{name: _literal(value) for name, value in request.environment.items()},
        "KERNEL_ID": record.kernel_id,
        "KERNEL_NAME": record.kernel_name,
        "KERNEL_LANGUAGE": profile.language,
        "KERNEL_USERNAME": _literal(record.user),
        "KERNEL_NAMESPACE": record.namespace,
        **({"KERNEL_WORKING_DIR": _literal(request.working_directory)} if request.working_directory else {}),
        **_packages(profile, request),
        **({"ELASTIC_KERNELS_ANNOUNCE": launch.announce_to} if launch.announce_to else {}),
        # the names under which the start scripts of Enterprise Gateway's images look for their arguments
        **{name.upper(): value for name, value in launch.arguments.items()},
    }
    return [
        # first, so that a profile's variables may refer to them as $(KERNEL_POD_IP)
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in derived.items()),
        *({"name": name, "value": value} for name, value in sorted(plain.items()) if name not in derived),
    ]


def _packages(profile: Profile, request: KernelRequest) -> dict[str, str]:
    """Return where the launcher finds packages: the user's are kept apart for each image, and by the launcher for each Python."""
    folder = profile.package_folder
    if profile.packages is None or folder is None:
        return {}
    team = {"KERNEL_TEAM_PACKAGES": ":".join(profile.packages.team)} if profile.packages.team else {}
    return {"KERNEL_PACKAGES": f"{folder}/{names.slug(request.image, limit=63)}", **team}


def _literal(text: str) -> str:
    """Keep Kubernetes from expanding ``$(NAME)`` in a text that is not an administrator's."""
    return text.replace("$", "$$")


def _resources(profile: Profile) -> dict[str, Any]:
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    for name, amount in (("cpu", profile.cpu), ("memory", profile.memory)):
        if amount and amount.request:
            requests[name] = amount.request
        if amount and amount.limit:
            limits[name] = amount.limit
    if profile.gpu and profile.gpu.count:
        # Kubernetes wants request and limit of an extended resource to be equal
        requests[profile.gpu.resource] = limits[profile.gpu.resource] = str(profile.gpu.count)
    return _present({"requests": requests, "limits": limits})


def _without_gpu(profile: Profile, resources: Mapping[str, Any]) -> dict[str, Any]:
    gpu = profile.gpu.resource if profile.gpu else ""
    return {kind: {name: amount for name, amount in amounts.items() if name != gpu} for kind, amounts in resources.items()}


def _tolerations(profile: Profile, spot: Spot) -> list[dict[str, Any]]:
    every = [
        *profile.tolerations,
        *(profile.gpu.tolerations if profile.gpu else ()),
        *([taints.toleration(spot.taint)] if profile.spot else ()),
    ]
    return [toleration for index, toleration in enumerate(every) if toleration not in every[:index]]


def _affinity(profile: Profile, launch: Launch, spot: Spot) -> dict[str, Any]:
    key, _, value = spot.label.partition("=")
    expressions = [{"key": key, "operator": "In", "values": [value]}] if profile.spot else []
    node = launch.home.node if launch.home else ""
    fields = [{"key": "metadata.name", "operator": "In", "values": [node]}] if node else []
    if not expressions and not fields:
        return dict(profile.affinity)
    node_affinity = profile.affinity.get("nodeAffinity", {})
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {})
    # terms are alternatives: what is needed has to stand in each
    terms = [
        _present(
            {
                **term,
                "matchExpressions": [*term.get("matchExpressions", ()), *expressions],
                "matchFields": [*term.get("matchFields", ()), *fields],
            }
        )
        for term in required.get("nodeSelectorTerms", [{}])
    ]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {**profile.affinity, "nodeAffinity": {**node_affinity, **required}}


def _volumes(profile: Profile, record: Record, launch: Launch, mounted: Sequence[Mount]) -> list[dict[str, Any]]:
    items = {records.connection_key(launch.ports): records.CONNECTION_FILE, **{name: name for name in records.launcher_sources()}}
    own = {
        "name": "record",
        "secret": {
            "secretName": record.name,
            "items": [{"key": key, "path": path} for key, path in items.items()],
            "defaultMode": 0o440,
        },
    }
    scratch = [{"name": name, "emptyDir": {}} for name in _scratch(profile, mounted)]
    return [own, *scratch, *mounts.volumes(mounted)]


def _mounts(profile: Profile, mounted: Sequence[Mount]) -> list[dict[str, Any]]:
    own = {"name": "record", "mountPath": MOUNT_PATH, "readOnly": True}
    scratch = [{"name": name, "mountPath": path} for name, path in _scratch(profile, mounted).items()]
    return [own, *scratch, *mounts.volume_mounts(mounted)]


def _scratch(profile: Profile, mounted: Sequence[Mount]) -> dict[str, str]:
    """Return the volumes that make a read-only container usable, except where the profile mounts something of its own."""
    if not profile.security.read_only_root:
        return {}
    taken = {mount.path for mount in mounted}
    return {name: path for name, path in {"scratch-tmp": "/tmp", "scratch-home": HOME}.items() if path not in taken}


def _present(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mapping without its absent and empty values."""
    return {key: value for key, value in mapping.items() if value is not None and value not in ({}, [])}
