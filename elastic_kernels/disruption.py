"""Why a pod ends although its kernel did nothing wrong: evicted, preempted, its machine lost or taken away.

Evidence, strongest first: the reason that a kubelet leaves in the pod's status, the condition ``DisruptionTarget`` (Kubernetes,
"Disruptions"), events, and the pod's node: taints and conditions that termination handlers set before a machine goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Final

from elastic_kernels import names, words
from elastic_kernels.nodes import tolerates

Object = Mapping[str, Any]

ABSENT: Final[Object] = {"metadata": {}, "spec": {}, "status": {}}
"""Stands for the node of a pod where a complete copy of all nodes has none of its name."""

# A kubelet that is alive has confirmed a pod's end by then.
_CONFIRMED_AFTER: Final = 20.0
# A node is there before its pods run; the watch that brings it may be a little later than the one that brings them.
_KNOWN_AFTER: Final = 5.0


class Cause(str, Enum):
    """What brought a pod to its end, or will, where that matters for whether to start it again."""

    COMPLETED = "completed"
    """The kernel ended by itself."""
    CRASHED = "crashed"
    """The kernel ended with an error."""
    OUT_OF_MEMORY = "out-of-memory"
    DELETED = "deleted"
    """Somebody deleted the pod."""
    EVICTED = "evicted"
    PREEMPTED = "preempted"
    """Something of higher priority took its place."""
    RECLAIMED = "reclaimed"
    """Its machine was, or is about to be, taken away: spot capacity, a scale-down, a repair."""
    NODE_LOST = "node-lost"
    """Its machine does not answer or no longer exists."""
    REFUSED = "refused"
    """The machine that the scheduler chose would not take it."""
    UNSTARTABLE = "unstartable"
    """Something that it needs does not exist or cannot be had."""


@dataclass(frozen=True)
class Disruption:
    """What happens to a pod, as a cause and a clause."""

    cause: Cause
    words: str


# Reasons of a pod that a kubelet ended or would not take (Pod v1, status.reason).
_KUBELET: Final = {
    "NodeLost": Disruption(Cause.NODE_LOST, "its machine does not answer any more"),
    "Preempting": Disruption(Cause.PREEMPTED, "its machine needed the place for something of higher priority"),
    "NodeShutdown": Disruption(Cause.RECLAIMED, "its machine was shut down"),
    "Shutdown": Disruption(Cause.RECLAIMED, "its machine was shut down"),
    "Terminated": Disruption(Cause.RECLAIMED, "its machine was shut down"),
}
NO_MACHINE: Final = Disruption(Cause.NODE_LOST, "its machine no longer exists")
"""The node's object is gone, which only its kubelet could bring back."""

# Reasons of the condition DisruptionTarget.
_TARGET: Final = {
    "PreemptionByScheduler": Disruption(Cause.PREEMPTED, "something of higher priority needs its place"),
    "DeletionByTaintManager": Disruption(Cause.EVICTED, "its machine is closed to it by a taint"),
    "EvictionByEvictionAPI": Disruption(Cause.EVICTED, "its machine is being emptied"),
    "DeletionByPodGC": NO_MACHINE,
    "TerminationByKubelet": Disruption(Cause.EVICTED, "its machine ended it"),
}
# Taints that say that a machine is about to go, as the termination handlers of clouds and autoscalers set them.
_LEAVING: Final = {
    "aws-node-termination-handler/spot-itn": "AWS takes the spot machine back",
    "aws-node-termination-handler/rebalance-recommendation": "AWS may take the spot machine back soon",
    "aws-node-termination-handler/scheduled-maintenance": "AWS repairs the machine",
    "aws-node-termination-handler/asg-lifecycle-termination": "the machine is being taken away",
    "cloud.google.com/impending-node-termination": "Google Cloud takes the machine back",
    "karpenter.sh/disrupted": "the machine is being taken away",
    "karpenter.sh/disruption": "the machine is being taken away",
    "karpenter.sh/interruption": "the spot machine is taken back",
    "ToBeDeletedByClusterAutoscaler": "the autoscaler takes the machine away",
    "node.kubernetes.io/out-of-service": "the machine is out of service",
}
# Conditions that node problem detectors and termination handlers set to True.
_LEAVING_CONDITIONS: Final = ("SpotTermination", "SpotInterruption", "TerminateScheduled", "PreemptScheduled", "VMEventScheduled")
_UNREACHABLE: Final = "node.kubernetes.io/unreachable"


def find(pod: Object, events: Iterable[Object], now: datetime, node: Object | None) -> Disruption | None:
    """Return what happens, or has happened, to a pod through no fault of its own, or None if nothing has.

    ``events`` are the pod's, in order; ``node`` is the one it runs on, where that is known, or ``ABSENT``.
    """
    status = pod.get("status") or {}
    reason, message = status.get("reason", ""), status.get("message", "")
    if reason == "Evicted":
        return Disruption(Cause.EVICTED, words.eviction(message))
    if reason in _KUBELET:
        return _KUBELET[reason]
    lost = _lost(pod, node, now)
    target = condition(status, "DisruptionTarget")
    if target.get("status") == "True":
        known = _TARGET.get(target.get("reason", ""))
        if known is not None and known.cause is Cause.EVICTED and lost:
            return lost
        return known or Disruption(Cause.EVICTED, f"the cluster ends it: {target.get('message', target.get('reason', ''))}")
    leaving = _leaving(node)
    for event in reversed(list(events)):
        kind, text = event.get("reason"), event.get("message", "")
        if kind == "Preempted":
            return _TARGET["PreemptionByScheduler"]
        if kind == "TaintManagerEviction" and text.startswith("Marking for deletion"):
            return lost or leaving or _TARGET["DeletionByTaintManager"]
        if kind == "Evicted":
            return lost or leaving or Disruption(Cause.EVICTED, f"it is being evicted: {text}")
    return lost or leaving or (_TARGET["DeletionByTaintManager"] if _is_closed(pod, node) else None)


def of_node(node: Object) -> dict[str, Any]:
    """Return what of a node is looked at here: a node is large, and says every few minutes that it is well."""
    conditions = [condition(node.get("status") or {}, kind) for kind in _LEAVING_CONDITIONS]
    announced = [found for found in conditions if found.get("status") == "True"]
    return {
        "metadata": {name: node["metadata"][name] for name in ("name", "uid") if name in node["metadata"]},
        "spec": {"taints": (node.get("spec") or {}).get("taints") or []},
        "status": {"conditions": [{key: found[key] for key in ("type", "status", "message") if key in found} for found in announced]},
    }


def is_unheard(pod: Object, node: Object | None, now: datetime) -> bool:
    """Tell whether nobody hears of a pod's machine any more.

    The node says so; or the pod does, whose readiness the control plane takes away when a kubelet falls silent, while the
    kubelet's own word, the container's state, stays as it was; or a deletion is long overdue.
    """
    taints = (node.get("spec") or {}).get("taints") or () if node is not None else ()
    if any(taint.get("key") == _UNREACHABLE for taint in taints):
        return True
    status = pod.get("status") or {}
    container = _kernels_container(status)
    is_running = "running" in (container.get("state") or {})
    if is_running and container.get("ready") and condition(status, "Ready").get("status") == "False":
        return True
    deadline = time(pod["metadata"].get("deletionTimestamp"))
    return is_running and deadline is not None and (now - deadline).total_seconds() > _CONFIRMED_AFTER


def container_state(status: Object) -> Object:
    """Return the state of the container of a pod's kernel, given the pod's status."""
    return _kernels_container(status).get("state") or {}


def _kernels_container(status: Object) -> Object:
    """Return what a pod's status says of its kernel's container; what else a profile or a mesh puts into the pod may come first."""
    containers = status.get("containerStatuses") or ()
    return next((each for each in containers if each.get("name") == names.CONTAINER), next(iter(containers), {}))


def _lost(pod: Object, node: Object | None, now: datetime) -> Disruption | None:
    """Return that a pod's machine is lost, if it is."""
    if node is ABSENT:
        begun = time((container_state(pod.get("status") or {}).get("running") or {}).get("startedAt"))
        if begun is not None and (now - begun).total_seconds() > _KNOWN_AFTER:
            return NO_MACHINE
    return Disruption(Cause.NODE_LOST, "its machine does not answer any more") if is_unheard(pod, node, now) else None


def _is_closed(pod: Object, node: Object | None) -> bool:
    """Tell whether a taint of its node drives a pod away: one that it does not tolerate, or not for long if it is being deleted."""
    may_be_for_long = not pod["metadata"].get("deletionTimestamp")
    tolerations = [each for each in pod["spec"].get("tolerations") or () if may_be_for_long or each.get("tolerationSeconds") is None]
    taints = (node.get("spec") or {}).get("taints") or () if node is not None else ()
    return any(taint.get("effect") == "NoExecute" and not any(tolerates(each, taint) for each in tolerations) for taint in taints)


def _leaving(node: Object | None) -> Disruption | None:
    """Return what a node's taints and conditions announce."""
    if node is None:
        return None
    for taint in (node.get("spec") or {}).get("taints") or ():
        if taint.get("key") in _LEAVING:
            return Disruption(Cause.RECLAIMED, _LEAVING[taint["key"]])
    for kind in _LEAVING_CONDITIONS:
        found = condition(node.get("status") or {}, kind)
        if found.get("status") == "True":
            return Disruption(Cause.RECLAIMED, f"its machine is being taken away ({found.get('message') or kind})")
    return None


def condition(status: Object, kind: str) -> Object:
    """Return a condition of an object's status, empty if it has none of this kind."""
    return next((item for item in status.get("conditions") or () if item.get("type") == kind), {})


def time(text: Any) -> datetime | None:
    """Return the moment that a timestamp of the API stands for, None where there is none or it cannot be read."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
