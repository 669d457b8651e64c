"""The embedded cluster's scheduler: which node a pod fits, and what it lacks, in the words of Kubernetes' own scheduler."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

from elastic_kernels import quantities
from elastic_kernels.embedded.selectors import Object
from elastic_kernels.embedded.store import Change, Store, now, record_event
from elastic_kernels.nodes import BLOCKING, matches_affinity, matches_term, requests, tolerates

Amounts = dict[str, Decimal]


class Scheduler:
    """Binds pods to nodes, for every change of either. Synchronous: it runs inside the store's writes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._used: dict[str, Amounts] = {}
        self._counted: set[str] = set()
        """The uids of the pods whose requests are in it."""
        self._waiting: dict[tuple[str, str], None] = {}
        store.listeners["pods"].append(self._pod_changed)
        store.listeners["nodes"].append(lambda _: self._try_again())
        store.listeners["persistentvolumeclaims"].append(lambda _: self._try_again())

    def _pod_changed(self, change: Change) -> None:
        kind, pod, before = change
        key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
        ended = kind == "DELETED" or is_over(pod)
        was_counted = before is not None and bool(before["spec"].get("nodeName")) and not is_over(before)
        if pod["spec"].get("nodeName"):
            self._count(pod, not ended)
        if ended:
            self._waiting.pop(key, None)
            if was_counted:
                self._try_again()
        elif kind == "ADDED" and not pod["spec"].get("nodeName"):
            self._waiting[key] = None
            self._schedule(key)

    def _count(self, pod: Object, counts: bool) -> None:
        """Have a pod that has a node counted there, or not any more."""
        uid = pod["metadata"]["uid"]
        if counts == (uid in self._counted):
            return
        self._counted ^= {uid}
        sign = 1 if counts else -1
        used = self._used.setdefault(pod["spec"]["nodeName"], {})
        for name, amount in requests(pod).items():
            used[name] = used.get(name, Decimal(0)) + sign * amount

    def _try_again(self) -> None:
        for key in tuple(self._waiting):
            self._schedule(key)

    def _schedule(self, key: tuple[str, str]) -> None:
        pod = self._store.find("pods", *key)
        if pod is None or pod["metadata"].get("deletionTimestamp") or pod["spec"].get("nodeName"):
            return
        nodes = self._store.list("nodes", None)
        obstacles = {node["metadata"]["name"]: self._obstacles(pod, node) for node in nodes}
        fitting = [node for node in nodes if not obstacles[node["metadata"]["name"]]]
        if fitting:
            self._bind(key, pod, max(fitting, key=lambda node: _preference(pod, node)))
            return
        counted = Counter(text for texts in obstacles.values() for text in texts)
        said = ", ".join(f"{count} {text}" for text, count in sorted(counted.items()))
        verdict = f"0/{len(nodes)} nodes are available: {said}."
        record_event(self._store, pod, "Warning", "FailedScheduling", verdict, "default-scheduler")
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": verdict, "lastTransitionTime": now()}
        known = [c for c in pod["status"].get("conditions", ()) if c["type"] == "PodScheduled"]
        if not known or known[0].get("message") != verdict:
            self._store.patch("pods", *key, {"status": {"conditions": [condition]}})

    def _bind(self, key: tuple[str, str], pod: Object, node: Object) -> None:
        self._waiting.pop(key, None)
        name = node["metadata"]["name"]
        record_event(self._store, pod, "Normal", "Scheduled", f"Successfully assigned {'/'.join(key)} to {name}", "default-scheduler")
        condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now()}
        # counted at once, so that the next pod finds the room taken: the change may be told later
        self._count({**pod, "spec": {**pod["spec"], "nodeName": name}}, True)
        self._store.patch("pods", *key, {"spec": {"nodeName": name}, "status": {"conditions": [condition]}})

    def _obstacles(self, pod: Object, node: Object) -> list[str]:
        """Return what keeps a pod off a node; empty if nothing does."""
        missing = [name for name in claims(pod) if self._store.find("persistentvolumeclaims", pod["metadata"]["namespace"], name) is None]
        if missing:
            return [f'persistentvolumeclaim "{missing[0]}" not found']
        if node["spec"].get("unschedulable"):
            return ["node(s) were unschedulable"]
        labels = node["metadata"].get("labels") or {}
        selector = pod["spec"].get("nodeSelector") or {}
        if not selector.items() <= labels.items() or not matches_affinity(pod, labels, node["metadata"]["name"]):
            return ["node(s) didn't match Pod's node affinity"]
        for taint in node["spec"].get("taints") or ():
            if taint["effect"] in BLOCKING and not any(tolerates(t, taint) for t in pod["spec"].get("tolerations") or ()):
                return [f"node(s) had taint {{{taint['key']}: {taint.get('value', '')}}}, that the pod didn't tolerate"]
        used = self._used.get(node["metadata"]["name"], {})
        allocatable = node["status"]["allocatable"]
        return [
            f"Insufficient {name}"
            for name, amount in requests(pod).items()
            if amount > quantities.parse(str(allocatable.get(name, "0"))) - used.get(name, Decimal(0))
        ]


def is_over(pod: Object) -> bool:
    """Tell whether a pod has come to its end and holds nothing any more."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def claims(pod: Object) -> list[str]:
    """Return the names of the volume claims that a pod mounts."""
    volumes = pod["spec"].get("volumes") or ()
    return [volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume]


def _preference(pod: Object, node: Object) -> int:
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    labels = node["metadata"].get("labels") or {}
    preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    return sum(term["weight"] for term in preferred if matches_term(term["preference"], labels, node["metadata"]["name"]))
