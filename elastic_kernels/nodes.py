"""Whether a node will do for a pod, by Kubernetes' own rules: selectors, affinity, taints, and what the node has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from elastic_kernels import quantities

Object = dict[str, Any]

BLOCKING: Final = ("NoSchedule", "NoExecute")


def obstacle(pod: Mapping[str, Any], node: Mapping[str, Any]) -> str | None:
    """Return, as a clause about the kernel, why its pod can never run on the node; None if it can when there is room.

    Used with a profile's manifest and the node that a volume is bound to.
    """
    labels = node["metadata"].get("labels") or {}
    for key, value in (pod["spec"].get("nodeSelector") or {}).items():
        if labels.get(key) != value:
            return f"it needs a machine with {key}={value}"
    if not matches_affinity(pod, labels, node["metadata"]["name"]):
        return "it runs on machines of another kind"
    for taint in node["spec"].get("taints") or ():
        if taint["effect"] in BLOCKING and not any(tolerates(t, taint) for t in pod["spec"].get("tolerations") or ()):
            return f"it may not run where {taint['key']}={taint.get('value', '')} is"
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    for name, amount in requests(pod).items():
        if name not in ("cpu", "memory") and amount > quantities.parse(str(allocatable.get(name, "0"))):
            return f"it needs {name}"
    return None


def contradiction(pod: Mapping[str, Any], terms: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Return a label and its values that each of the node selector terms requires, and the pod excludes; None if there is none.

    Used with a profile's manifest and the terms of a volume, for example that it lies in one zone: no node that is or comes will do.
    """
    required = [
        [(e["key"], frozenset(e.get("values") or ())) for e in term.get("matchExpressions") or () if e["operator"] == "In"]
        for term in terms
    ]
    excluded = [next(((key, values) for key, values in term if _excludes(pod, key, values)), None) for term in required]
    first = excluded[0] if excluded else None
    return (first[0], " or ".join(sorted(first[1]))) if first is not None and None not in excluded else None


def _excludes(pod: Mapping[str, Any], key: str, values: frozenset[str]) -> bool:
    """Tell whether the pod can run on no node whose label ``key`` has one of the values."""
    selected = (pod["spec"].get("nodeSelector") or {}).get(key)
    if selected is not None and selected not in values:
        return True
    alternatives = _required_terms(pod)
    own = [
        [set(e.get("values") or ()) for e in term.get("matchExpressions") or () if e["key"] == key and e["operator"] == "In"]
        for term in alternatives
    ]
    return bool(alternatives) and all(any(wanted.isdisjoint(values) for wanted in term) for term in own)


def requests(pod: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a pod's containers ask for; a limit without a request is one."""
    total: dict[str, Any] = {}
    for container in pod["spec"]["containers"]:
        resources = container.get("resources") or {}
        for name, amount in {**(resources.get("limits") or {}), **(resources.get("requests") or {})}.items():
            total[name] = total.get(name, 0) + quantities.parse(str(amount))
    return total


def tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    """Tell whether a toleration answers a taint (Kubernetes, "Taints and Tolerations")."""
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return bool(toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", ""))


def matches_affinity(pod: Mapping[str, Any], labels: Mapping[str, str], name: str) -> bool:
    """Tell whether a node of these labels and this name is one that the pod's required node affinity admits."""
    terms = _required_terms(pod)
    return not terms or any(matches_term(term, labels, name) for term in terms)


def _required_terms(pod: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    return list(required.get("nodeSelectorTerms") or ())


def matches_term(term: Mapping[str, Any], labels: Mapping[str, str], name: str) -> bool:
    """Tell whether a node satisfies every expression of a node selector term; an empty term matches nothing."""
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    return bool(expressions or fields) and (
        all(_satisfies(expression, labels) for expression in expressions)
        and all(_satisfies(expression, {"metadata.name": name}) for expression in fields)
    )


def _satisfies(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values") or ()
    operator = expression["operator"]
    if operator == "In":
        return value in values
    if operator == "NotIn":
        return value not in values
    return bool((value is not None) == (operator == "Exists"))
