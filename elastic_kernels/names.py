"""Every name that reaches Kubernetes: slugs of users, label and annotation keys, names of pods and records.

Rules (Kubernetes, "Object Names and IDs" and "Labels and Selectors"): a name is a DNS label of lower-case letters, digits and
hyphens, at most 63 characters; a label value is at most 63 characters of letters, digits, ``-``, ``_`` and ``.``, and begins and
ends with a letter or digit. A slug satisfies both, and two different users never share one: a name that has to be changed or cut
gets a hash of the original. The raw name stands in an annotation; a slug is a name, not a proof.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

PREFIX: Final = "elastic-kernels/"

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGER: Final = "elastic-kernels"

CONTAINER: Final = "kernel"
"""The container of a pod in which its kernel runs; a profile or a mesh may add others."""

AWAITED: Final = PREFIX + "awaited"
CLAIMED: Final = PREFIX + "claimed"
DEPLOYMENT: Final = PREFIX + "deployment"
ENDED: Final = PREFIX + "ended"
EXECUTOR: Final = PREFIX + "executor"
EXECUTOR_OF: Final = PREFIX + "executor-of"
FIT: Final = PREFIX + "fit"
KERNEL_ID: Final = PREFIX + "kernel-id"
KERNEL_NAME: Final = PREFIX + "kernel-name"
LAUNCH: Final = PREFIX + "launch"
LAUNCH_TIMEOUT: Final = PREFIX + "launch-timeout"
LIMIT_CLASS: Final = PREFIX + "limit-class"
NOTEBOOK: Final = PREFIX + "notebook"
ORDER: Final = PREFIX + "order"
PORTS: Final = PREFIX + "ports"
PROFILE: Final = PREFIX + "profile"
SERVICE: Final = PREFIX + "service"
START: Final = PREFIX + "start"
TITLE: Final = PREFIX + "title"
USAGE: Final = PREFIX + "usage"
USED: Final = PREFIX + "used"
USER: Final = PREFIX + "user"
WARM: Final = PREFIX + "warm"
WARM_KIND: Final = PREFIX + "warm-kind"

# What stock Enterprise Gateway puts on its pods; network policies and dashboards written for it keep working.
GATEWAY_LABELS: Final = {"app": "enterprise-gateway", "component": "kernel"}
GATEWAY_KERNEL_ID: Final = "kernel_id"

SAFE_TO_EVICT: Final = "cluster-autoscaler.kubernetes.io/safe-to-evict"

_DNS_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_HASH_LENGTH: Final = 8


def slug(text: str, limit: int = 40) -> str:
    """Return a DNS label of at most ``limit`` (>= 12) characters that stands for ``text`` and for nothing else.

    A text that is a DNS label, short enough and without a double hyphen is its own slug; every other becomes what is left of
    it, ``--``, and eight hex digits of its SHA-256. The double hyphen is what keeps the two kinds apart.
    """
    if len(text) <= limit and "--" not in text and _DNS_LABEL.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_LENGTH]
    stem = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[: limit - _HASH_LENGTH - 2].rstrip("-")
    return f"{stem or 'x'}--{digest}"


def record_name(deployment: str, user: str, pool: str, slot: str) -> str:
    """Return the name of the record that takes a slot of a pool of a user's: one at most of all records can have it.

    None of the parts can hold a dot, so that no two of them can be mistaken for another two.
    """
    return ".".join(("kernel", deployment, slug(user), pool, slot))


def pod_name(user: str, kernel_id: str, launch: str) -> str:
    """Return the name of the pod of one launch: ``launch`` is a short token, new at every start."""
    return f"{slug(user)}-{kernel_id[:8]}-{launch}"


def warm_selector(deployment: str) -> str:
    """Return the label selector of what is kept ready for the kernels of this deployment, and is no kernel."""
    return f"{WARM}={deployment}"


def selector(deployment: str) -> str:
    """Return the label selector of everything that gateways of this deployment made."""
    return f"{MANAGED_BY}={MANAGER},{DEPLOYMENT}={deployment}"
