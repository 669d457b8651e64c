"""Room for kernels, held by pods that do nothing: on the machines of the profile, with its image, for as much as a kernel takes. Pure.

They are of a low priority, so that Kubernetes ends one as soon as any other pod needs its room; where there is an autoscaler, it then
brings a machine for the one that takes its place. They run the profile's own image, which so is on the machine already, and nobody's
code; nothing of a user's is mounted, and no service account.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from elastic_kernels import names, pod
from elastic_kernels.profiles import Profile
from elastic_kernels.record import Record
from elastic_kernels.request import KernelRequest

KIND: Final = "capacity"
# what keeps a pod where a kernel of the profile would be
_PLACEMENT: Final = (
    "nodeSelector",
    "affinity",
    "tolerations",
    "imagePullSecrets",
    "enableServiceLinks",
    "securityContext",
    "runtimeClassName",
)
_OF_CONTAINER: Final = ("image", "imagePullPolicy", "resources")


def wanted(profile: Profile, deployment: str, namespace: str, spot: pod.Spot) -> tuple[dict[str, Any], str]:
    """Return a pod that holds room for a kernel of the profile, but for its name, and a digest of it."""
    assert profile.warm is not None
    nobody = Record("", profile.name, "", namespace, deployment, "", "", "")
    request = KernelRequest(image=profile.image, timeout=profile.launch_timeout)
    spec = pod.build_pod(profile, nobody, request, pod.Launch("", 0, ""), spot)["spec"]
    (kernel,) = (container for container in spec["containers"] if container["name"] == names.CONTAINER)
    own = {
        **{name: spec[name] for name in _PLACEMENT if name in spec},
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "priorityClassName": profile.warm.capacity_priority_class,
        "containers": [
            {
                "name": KIND,
                **{name: kernel[name] for name in _OF_CONTAINER if name in kernel},
                "command": ["sleep", "infinity"],
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                },
            },
        ],
    }
    fit = hashlib.sha256(json.dumps([own, dict(profile.labels)], sort_keys=True).encode()).hexdigest()[:40]
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": namespace,
            "labels": {
                **profile.labels,
                names.PROFILE: names.slug(profile.name, limit=63),
                names.WARM: deployment,
                names.WARM_KIND: KIND,
            },
            "annotations": {names.KERNEL_NAME: profile.name, names.FIT: fit},
        },
        "spec": own,
    }
    return manifest, fit


def name(deployment: str, profile: str, number: int) -> str:
    """Return the name of a profile's how-manieth pod: two gateways that make one make the same."""
    return f"room-{names.slug(profile)}-{hashlib.sha256(deployment.encode()).hexdigest()[:4]}-{number}"
