"""The pod of a kernel that waits for a user, its Secret, and what makes it a user's. Pure.

Such a pod is built by ``build_pod`` as everybody's are, for nobody. It may become a user's kernel if the pod that this very start would
have created differs from it in nothing but what can be given to it: names, owner, labels, and variables. That is not looked up in
rules, but seen by comparing the two (``fit``): an image, a volume or a machine of the user's own, and a profile that has been
changed, are differences.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

from elastic_kernels import names, pod
from elastic_kernels import record as records
from elastic_kernels.profiles import Profile
from elastic_kernels.record import Record
from elastic_kernels.request import KernelRequest
from elastic_kernels.warm.part import READ_ONCE
from elastic_kernels.warm.shared import elastic_claim

KERNEL: Final = "kernel"
"""The kind of a pod that waits to be a kernel."""
CLAIM_FILE: Final = "claim.json"
_VOLUME: Final = "record"
# A container that is not there by then has failed: images are pulled before that begins.
_START_SECONDS: Final = 120


def secret_name(deployment: str, profile: str, number: int) -> str:
    """Return the name of the Secret of the profile's how-manieth kernel that waits: two gateways that make one make the same."""
    return ".".join(("warm", deployment, names.slug(profile), str(number)))


def to_secret(profile: Profile, deployment: str, namespace: str, number: int, key: str) -> dict[str, Any]:
    """Return the Secret of a pod that waits: the launchers and ``key``, 32 random bytes in hexadecimal that are good for one claim."""
    claim = {"ip": "0.0.0.0", "key": key, "claim_port": elastic_claim.PORT}
    files = {**records.launcher_sources(), CLAIM_FILE: json.dumps(claim)}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": secret_name(deployment, profile.name, number),
            "namespace": namespace,
            "labels": {names.WARM: deployment, names.PROFILE: names.slug(profile.name, limit=63)},
        },
        "type": "elastic-kernels/warm",
        "immutable": True,
        "data": {name: base64.b64encode(text.encode()).decode() for name, text in files.items()},
    }


def key_of(secret: Mapping[str, Any]) -> bytes:
    """Return the key in the Secret of a pod that waits. Raises ValueError if it is none."""
    try:
        return bytes.fromhex(json.loads(base64.b64decode(secret["data"][CLAIM_FILE]))["key"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the secret {secret.get('metadata', {}).get('name')!r} is not of a kernel that waits") from error


def build_waiting(profile: Profile, deployment: str, secret: Mapping[str, Any], spot: pod.Spot) -> dict[str, Any]:
    """Return the pod that waits, of a Secret as the API server has it."""
    metadata = secret["metadata"]
    nobody = _nobody(profile, deployment, metadata["namespace"])
    manifest = _built(profile, nobody, spot)
    built = manifest["metadata"]
    token = hashlib.sha256(metadata["uid"].encode()).hexdigest()[:6]
    spec = dict(manifest["spec"])
    spec["volumes"] = [
        _of_secret(volume, metadata["name"]) if volume["name"] == _VOLUME else volume for volume in manifest["spec"]["volumes"]
    ]
    spec["containers"] = [
        # asked until it has answered once, and never again
        {**container, "startupProbe": {"tcpSocket": {"port": elastic_claim.PORT}, "periodSeconds": 1, "failureThreshold": _START_SECONDS}}
        if container["name"] == names.CONTAINER
        else container
        for container in manifest["spec"]["containers"]
    ]
    return {
        **manifest,
        "metadata": {
            **built,
            "name": f"warm-{names.slug(profile.name, limit=30)}-{token}",
            "labels": {
                **_without(built["labels"], records.labels_of(nobody)),
                # network policies hold from the beginning
                **names.GATEWAY_LABELS,
                names.PROFILE: names.slug(profile.name, limit=63),
                names.WARM: deployment,
                names.WARM_KIND: KERNEL,
            },
            "annotations": {
                **_without(
                    built["annotations"], (*records.annotations_of(nobody), names.LAUNCH, names.LAUNCH_TIMEOUT, names.PORTS, names.START)
                ),
                # nobody's work is lost with it
                names.SAFE_TO_EVICT: "true",
                names.KERNEL_NAME: profile.name,
                names.FIT: fit(profile, manifest),
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "Secret", "name": metadata["name"], "uid": metadata["uid"]}],
        },
        "spec": spec,
    }


def wanted(profile: Profile, deployment: str, namespace: str, spot: pod.Spot) -> tuple[dict[str, Any], str]:
    """Return the pod that is to wait for starts of a profile as it is now, but for what its Secret makes of it, and its ``fit``."""
    manifest = _built(profile, _nobody(profile, deployment, namespace), spot)
    return manifest, fit(profile, manifest)


def fit(profile: Profile, manifest: Mapping[str, Any]) -> str:
    """Return a digest of all of a kernel's pod that cannot be given to one that runs already."""
    spec = manifest["spec"]
    containers = [
        {**container, "env": [item for item in container.get("env") or () if "valueFrom" in item]}
        if container["name"] == names.CONTAINER
        else container
        for container in spec["containers"]
    ]
    volumes = [volume for volume in spec["volumes"] if volume["name"] != _VOLUME]
    content = {
        "spec": {**spec, "containers": containers, "volumes": volumes},
        # with what it began to run
        "profile": profile.model_dump(mode="json", include={"environment", "labels", "annotations", "pod"}),
        "launchers": _launchers(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:40]


def comes_too_late(request: KernelRequest) -> str | None:
    """Return the name of a variable of the client's that a running interpreter would not look at any more, or None."""
    return next((name for name in request.environment if name.startswith(READ_ONCE)), None)


def is_ready(waiting: Mapping[str, Any]) -> bool:
    """Tell whether a pod is there to be claimed."""
    state = waiting.get("status") or {}
    is_going = bool(waiting["metadata"].get("deletionTimestamp"))
    return not is_going and bool(state.get("podIP")) and _has_started(state)


def claim(manifest: Mapping[str, Any], now: str) -> dict[str, Any]:
    """Return the change of a waiting pod's metadata that makes it the one that ``manifest`` would have been.

    ``now`` is the time as the API of Kubernetes writes it.
    """
    metadata = manifest["metadata"]
    return {
        "labels": {**metadata["labels"], names.WARM: None, names.WARM_KIND: None},
        # for as long as it waited nobody neglected it
        "annotations": {**metadata["annotations"], names.CLAIMED: now, names.USED: now},
        "ownerReferences": metadata["ownerReferences"],
    }


def message(kept: Record, manifest: Mapping[str, Any]) -> bytes:
    """Return what a waiting pod is told to be the kernel of a record, in place of the pod of ``manifest``."""
    (container,) = (each for each in manifest["spec"]["containers"] if each["name"] == names.CONTAINER)
    environment = [(item["name"], None if "valueFrom" in item else item.get("value", "")) for item in container.get("env") or ()]
    return json.dumps({"connection": records.connection(kept, 0, "0.0.0.0"), "environment": environment}).encode()


def _has_started(state: Mapping[str, Any]) -> bool:
    containers = state.get("containerStatuses") or ()
    # a kubelet may say late that what has started is ready; only if it has said so, its machine may since be lost
    is_ready = any(each["type"] == "Ready" and each["status"] == "True" for each in state.get("conditions") or ())
    is_lost = not is_ready and any(each.get("ready") for each in containers)
    return state.get("phase") == "Running" and bool(containers) and all(each.get("started") for each in containers) and not is_lost


def _nobody(profile: Profile, deployment: str, namespace: str) -> Record:
    return Record(kernel_id="", kernel_name=profile.name, user="", namespace=namespace, deployment=deployment, key="", token="", slot="")


def _built(profile: Profile, nobody: Record, spot: pod.Spot) -> dict[str, Any]:
    return pod.build_pod(profile, nobody, KernelRequest(image=profile.image, timeout=profile.launch_timeout), pod.Launch("", 0, ""), spot)


def _of_secret(volume: Mapping[str, Any], name: str) -> dict[str, Any]:
    files = (*records.launcher_sources(), CLAIM_FILE)
    return {**volume, "secret": {**volume["secret"], "secretName": name, "items": [{"key": file, "path": file} for file in files]}}


def _without(mapping: Mapping[str, str], keys: Iterable[str]) -> dict[str, str]:
    return {key: value for key, value in mapping.items() if key not in frozenset(keys)}


@cache
def _launchers() -> str:
    return hashlib.sha256(json.dumps(dict(records.launcher_sources()), sort_keys=True).encode()).hexdigest()
