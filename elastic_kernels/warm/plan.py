"""What is to be done so that as much is kept ready as profiles wish: which pods are too many, and which are missing. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from elastic_kernels import disruption, names, nodes, pod, quantities, status
from elastic_kernels.profiles import Profile
from elastic_kernels.warm import capacity, waiting

Object = dict[str, Any]

# So many of a profile are on their way at a time: machines have kernels to start as well.
_AT_ONCE: Final = 2


@dataclass(frozen=True)
class Wish:
    """What one profile wants to have of one kind at a moment."""

    profile: Profile
    kind: str
    count: int
    fit: str
    manifest: Object
    """The pod, but for its name and what it is told."""


def wishes(profiles: Iterable[Profile], deployment: str, namespace: str, spot: pod.Spot, now: datetime) -> list[Wish]:
    """Return what profiles wish at ``now``, an aware time; none of them at another hour."""
    found = []
    for profile in profiles:
        warm = profile.warm
        if warm is None or not warm.is_wanted(now):
            continue
        for kind, count, of_kind in ((waiting.KERNEL, warm.kernels, waiting), (capacity.KIND, warm.capacity, capacity)):
            if count:
                manifest, fit = of_kind.wanted(profile, deployment, namespace, spot)
                found.append(Wish(profile, kind, count, fit, manifest))
    return found


def superfluous(wanted: Sequence[Wish], there: Iterable[Object], now: datetime) -> list[Object]:
    """Return the pods that nobody wishes: those that have ended or are lost, are another profile's than there is now, or too many."""
    found: list[Object] = []
    left = {_wished(wish): wish.count for wish in wanted}
    # those that wait already are kept before those that do not, and the oldest before others
    order = sorted(_alive(there, with_ended=True), key=lambda item: (not waiting.is_ready(item), item["metadata"]["creationTimestamp"]))
    for item in order:
        if status.has_ended(item) or disruption.is_unheard(item, None, now) or left.get(_of(item), 0) < 1:
            found.append(item)
        else:
            left[_of(item)] -= 1
    return found


def missing(wish: Wish, there: Collection[Object]) -> int:
    """Return how many pods are to be made now for a wish."""
    alive = [item for item in _alive(there) if _of(item) == _wished(wish)]
    coming = sum(not waiting.is_ready(item) for item in alive)
    return max(0, min(wish.count - len(alive), _AT_ONCE - coming))


def stuck(kernels: Iterable[Object]) -> list[Object]:
    """Return the kernels' pods for which the scheduler has found no machine, and makes no room on one."""
    return [
        item
        for item in kernels
        if not item["metadata"].get("deletionTimestamp")
        and not item["spec"].get("nodeName")
        and not (item.get("status") or {}).get("nominatedNodeName")
        and any(
            condition["type"] == "PodScheduled" and condition["status"] == "False"
            for condition in (item.get("status") or {}).get("conditions") or ()
        )
    ]


def in_the_way(waits: Object, kernels: Iterable[Object], known: Sequence[Object] | None) -> bool:
    """Tell whether a pod that waits, or would, takes room that one of the stuck kernels could have.

    ``known`` are the cluster's nodes, None where the gateway may not look at them: then it does.
    """
    if known is None:
        return any(True for _ in kernels)
    own = waits["spec"].get("nodeName")
    places = [node for node in known if (node["metadata"]["name"] == own if own else nodes.obstacle(waits, node) is None)]
    return any(_can_have(kernel, node) for kernel in kernels for node in places)


def _can_have(kernel: Object, node: Object) -> bool:
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    wanted = nodes.requests(kernel)
    return nodes.obstacle(kernel, node) is None and all(
        amount <= quantities.parse(str(allocatable.get(name, "0"))) for name, amount in wanted.items()
    )


def _alive(there: Iterable[Object], *, with_ended: bool = False) -> list[Object]:
    return [item for item in there if not item["metadata"].get("deletionTimestamp") and (with_ended or not status.has_ended(item))]


def _of(item: Mapping[str, Any]) -> tuple[str, str, str]:
    labels, annotations = item["metadata"].get("labels") or {}, item["metadata"].get("annotations") or {}
    return annotations.get(names.KERNEL_NAME, ""), labels.get(names.WARM_KIND, ""), annotations.get(names.FIT, "")


def _wished(wish: Wish) -> tuple[str, str, str]:
    return wish.profile.name, wish.kind, wish.fit
