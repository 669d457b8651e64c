"""A kernel that another process started: whether it can be served here, and how it is reached.

One whose pod does not run yet is that other process's to wait for, which may have been killed meanwhile. A kernel that its user has
seen, because it has been started before, is served all the same, for as long without a connection. One that nobody has seen yet
is nobody's, once whoever started it would have given it up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from elastic_kernels import names, patience, reach, status
from elastic_kernels.cluster import Cluster, Object, RecordRef, key_of
from elastic_kernels.launch import Started
from elastic_kernels.record import Record
from elastic_kernels.status import Phase

# A kernel that does not answer by then is tried again later.
_PATIENCE: Final = 10.0


def is_worth(pod: Object) -> bool:
    """Tell whether a pod's kernel can be served: it runs, or has run and is not being taken away."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    state: Mapping[str, Any] = pod.get("status") or {}
    return (state.get("phase") == Phase.RUNNING.value.capitalize() and bool(state.get("podIP"))) or status.has_ended(pod)


def is_under_way(pod: Object) -> bool:
    """Tell whether a pod is one that does not run yet, and may."""
    return not (pod["metadata"].get("deletionTimestamp") or is_worth(pod))


def is_lost(pod: Object, now: datetime) -> bool:
    """Tell whether a pod does not run, has not been used (which kubelets may be late to say), and is not waited for any more."""
    is_used = names.USED in (pod["metadata"].get("annotations") or {})
    return is_under_way(pod) and not is_used and reach.is_given_up(pod, now)


async def reached(cluster: Cluster, kept: Record, ref: RecordRef, pod: Object | None, calls_back: bool) -> Started | None:
    """Return how a kernel is reached, without an address if it is dead or its pod does not run; None if it does not answer yet.

    ``calls_back`` says that its launcher chose the ports. Raises what ``reach.again`` raises.
    """
    if pod is None or status.has_ended(pod):
        return Started(key_of(pod) if pod is not None else (kept.namespace, ""), "", {}, ref, reach.start_of(pod) if pod is not None else 0)
    if is_under_way(pod):
        return before(kept, ref, pod)
    try:
        connection = await patience.within(reach.again(cluster, kept, pod, calls_back), _PATIENCE)
    except asyncio.TimeoutError:
        return None
    return Started(key_of(pod), pod["status"]["podIP"], connection, ref, reach.start_of(pod)) if connection is not None else None


def before(kept: Record, ref: RecordRef, pod: Object) -> Started:
    """Return a kernel as it is before the start that a pod is: in no pod, and without a connection."""
    return Started((kept.namespace, ""), "", {}, ref, max(reach.start_of(pod) - 1, 1))
