"""A kernel that another process started: whether it can be served here, and how it is reached."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from elastic_kernels import patience, reach, status
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


async def reached(cluster: Cluster, kept: Record, ref: RecordRef, pod: Object | None, calls_back: bool) -> Started | None:
    """Return how a kernel is reached, without an address if it is dead; None if it does not answer yet.

    ``calls_back`` says that its launcher chose the ports. Raises what ``reach.again`` raises.
    """
    if pod is None or status.has_ended(pod):
        return Started(key_of(pod) if pod is not None else (kept.namespace, ""), "", {}, ref, reach.start_of(pod) if pod is not None else 0)
    try:
        connection = await patience.within(reach.again(cluster, kept, pod, calls_back), _PATIENCE)
    except asyncio.TimeoutError:
        return None
    return Started(key_of(pod), pod["status"]["podIP"], connection, ref, reach.start_of(pod)) if connection is not None else None
