"""What a kernel's pod is doing, in words: ``classify(pod, events)``.

The fields and reasons read here are those of the Kubernetes API (Pod v1, "Pod Lifecycle") and of the events that the scheduler,
the kubelet and the autoscalers write. Order of evidence, strongest first: the pod's end, its containers, its volumes and image
(from events), the scheduler's verdict.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final


class Phase(str, Enum):
    """The stations of a kernel's pod, in the order in which they are passed."""

    QUEUED = "queued"
    """Created, and nobody has looked at it yet."""
    SCHEDULING = "scheduling"
    """No node fits so far."""
    SCALING_UP = "scaling-up"
    """No node fits, and the autoscaler has begun to bring one up."""
    PREPARING = "preparing"
    """On a node, which attaches volumes and makes the sandbox."""
    PULLING = "pulling"
    """The node fetches the image."""
    RUNNING = "running"
    """The container runs; whether the kernel answers is for its sockets to say."""
    TERMINATING = "terminating"
    """It was told to end."""
    SUCCEEDED = "succeeded"
    """It ended by itself, with exit code 0."""
    FAILED = "failed"
    """It ended otherwise, or can never start."""


@dataclass(frozen=True)
class Status:
    """One moment of a pod: where it stands, a sentence for its user, and whether it can still become a kernel."""

    phase: Phase
    sentence: str
    hopeless: bool = False
    """Certainly lost: there is no use in waiting."""


# The kubelet's words for what no later attempt can mend (waiting.reason of a container).
_FINAL_REASONS: Final = {
    "InvalidImageName": "its image's name {image!r} is not valid",
    "ErrImageNeverPull": "its image {image!r} is not on the node and may not be pulled",
    "CreateContainerConfigError": "its container cannot be configured: {message}",
    "CreateContainerError": "its container cannot be created: {message}",
    "RunContainerError": "its container cannot be started: {message}",
    "PreStartHookError": "its container cannot be started: {message}",
    "PostStartHookError": "its container cannot be started: {message}",
}
_PULL_REASONS: Final = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError")
# What a registry says when it has no such image or will not give it (containerd, Docker).
_IMAGE_REFUSED: Final = re.compile(r"not found|manifest unknown|does not exist|unauthorized|forbidden|denied|no match for platform", re.I)
# A pull that failed for another reason is tried again; after so many attempts nobody should wait for the next.
_PULL_ATTEMPTS: Final = 2

_RESOURCE: Final = re.compile(r"Insufficient ([\w./-]*\w)")


def classify(pod: Mapping[str, Any] | None, events: Iterable[Mapping[str, Any]]) -> Status:
    """Return what ``pod`` (as the API has it; None if it is gone) is doing. ``events`` are those of this pod, in any order.

    Called on the event loop for every change of a pod that is being started.
    """
    if pod is None:
        return Status(Phase.FAILED, "its pod was deleted", hopeless=True)
    status: Mapping[str, Any] = pod.get("status") or {}
    phase = status.get("phase")
    if phase == "Failed" or phase == "Succeeded":
        return _ended(status, phase)
    if pod["metadata"].get("deletionTimestamp"):
        return Status(Phase.TERMINATING, "its pod is being deleted", hopeless=True)
    container = _container(status)
    state: Mapping[str, Any] = (container or {}).get("state") or {}
    if "terminated" in state:
        return _ended(status, "Failed")
    if "running" in state or phase == "Running":
        return Status(Phase.RUNNING, "its container runs, and the kernel does not answer yet")
    happened = sorted(events, key=_time)
    if _is_scheduled(pod):
        return _on_node(pod, state.get("waiting") or {}, happened)
    return _not_scheduled(status, happened)


def exit_code(pod: Mapping[str, Any]) -> int | None:
    """Return the exit code of a pod's container, or None while it has none."""
    terminated = ((_container(pod.get("status") or {}) or {}).get("state") or {}).get("terminated")
    return int(terminated["exitCode"]) if terminated else None


def has_ended(pod: Mapping[str, Any]) -> bool:
    """Tell whether a pod's container has come to its end."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed") or exit_code(pod) is not None


def _ended(status: Mapping[str, Any], phase: str) -> Status:
    terminated = ((_container(status) or {}).get("state") or {}).get("terminated") or {}
    code, reason = terminated.get("exitCode"), terminated.get("reason") or status.get("reason") or ""
    message = terminated.get("message") or status.get("message") or ""
    if reason == "OOMKilled":
        return Status(Phase.FAILED, "it used more memory than its limit and was ended", hopeless=True)
    if status.get("reason") == "Evicted":
        return Status(Phase.FAILED, f"its node evicted it: {status.get('message', '')}", hopeless=True)
    if reason in ("StartError", "ContainerCannotRun"):
        return Status(Phase.FAILED, f"its command cannot be run: {message}", hopeless=True)
    if reason == "DeadlineExceeded":
        return Status(Phase.FAILED, "it ran for longer than it may", hopeless=True)
    if code is None:
        return Status(Phase.FAILED, f"its pod ended: {reason or phase} {message}".strip(), hopeless=True)
    if code == 0 and phase == "Succeeded":
        return Status(Phase.SUCCEEDED, "it ended by itself with exit code 0", hopeless=True)
    signal = f" (signal {code - 128})" if code > 128 else ""
    return Status(Phase.FAILED, f"it ended with exit code {code}{signal}", hopeless=True)


def _on_node(pod: Mapping[str, Any], waiting: Mapping[str, Any], events: list[Mapping[str, Any]]) -> Status:
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    image = _image(pod)
    if reason in _FINAL_REASONS:
        return Status(Phase.FAILED, _FINAL_REASONS[reason].format(image=image, message=message or reason), hopeless=True)
    if reason in _PULL_REASONS:
        failures = [event for event in events if event.get("message", "").startswith("Failed to pull image")]
        said = message if reason == "ErrImagePull" else next((event["message"] for event in reversed(failures)), message)
        attempts = max((int(event.get("count") or 1) for event in failures), default=0)
        return Status(
            Phase.PULLING,
            f"its image {image!r} cannot be pulled: {said}",
            hopeless=bool(_IMAGE_REFUSED.search(said)) or attempts >= _PULL_ATTEMPTS,
        )
    last = events[-1] if events else {}
    if last.get("reason") == "Pulling":
        return Status(Phase.PULLING, f"its image {image!r} is being pulled to the node")
    if last.get("reason") in ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"):
        return Status(Phase.PREPARING, f"its node cannot prepare it so far: {last.get('message', '')}")
    return Status(Phase.PREPARING, "its node is preparing it")


def _not_scheduled(status: Mapping[str, Any], events: list[Mapping[str, Any]]) -> Status:
    condition: Mapping[str, Any] = next((c for c in status.get("conditions") or () if c.get("type") == "PodScheduled"), {})
    if condition.get("status") != "False":
        return Status(Phase.QUEUED, "it waits for the scheduler")
    verdict = condition.get("message", "")
    scaling = [event for event in events if event.get("reason") in ("TriggeredScaleUp", "Nominated", "NotTriggerScaleUp")]
    if scaling and scaling[-1]["reason"] != "NotTriggerScaleUp":
        return Status(Phase.SCALING_UP, f"a machine is being brought up for it ({missing(verdict)})")
    return Status(Phase.SCHEDULING, f"no machine fits it so far: {missing(verdict)}")


def missing(verdict: str) -> str:
    """Put the scheduler's verdict (``0/2 nodes are available: 1 Insufficient cpu, …``) into words that need no dictionary."""
    clauses = [f"not enough {name} is free" for name in dict.fromkeys(_RESOURCE.findall(verdict))]
    if "node selector" in verdict or "node affinity" in verdict:
        clauses.append("no node has the labels that the profile asks for")
    if "volume node affinity" in verdict:
        clauses.append("a volume lies in another zone than the free nodes")
    claim = re.search(r'persistentvolumeclaim "([^"]+)" not found', verdict)
    if claim:
        clauses.append(f"the volume claim {claim[1]!r} does not exist")
    elif "unbound immediate PersistentVolumeClaims" in verdict:
        clauses.append("a volume claim has no volume yet")
    return f"{', '.join(clauses)} (the scheduler says: {verdict})" if clauses else f"the scheduler says: {verdict}"


def _container(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next(iter(status.get("containerStatuses") or ()), None)


def _image(pod: Mapping[str, Any]) -> str:
    return str(pod["spec"]["containers"][0].get("image", ""))


def _is_scheduled(pod: Mapping[str, Any]) -> bool:
    return bool(pod["spec"].get("nodeName"))


def _time(event: Mapping[str, Any]) -> str:
    # RFC 3339 in UTC throughout: the text sorts as the time does
    return str(event.get("lastTimestamp") or event.get("eventTime") or event.get("metadata", {}).get("creationTimestamp") or "")
