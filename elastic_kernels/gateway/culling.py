"""Idle kernels are shut down, by their profile's ``idle_time`` or the gateway's own setting, and their users are warned before.

Every gateway hears what every kernel says, but not who is connected to another gateway. So the time at which a kernel was last in
use stands on its pod, where whoever knows better writes it, once in a while; and who does not see the cluster culls nothing.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any, Final

from elastic_kernels import disruption, names
from elastic_kernels.cluster import Cluster, Object

# An idle kernel's last use is written so many times within its idle time, but within these bounds (seconds).
_WRITES: Final = 6
_SHORTEST: Final = 1.0
_LONGEST: Final = 60.0
# The part of the idle time that is left when the user is warned, and no more than this.
_WARNING: Final = 0.2
_LONGEST_WARNING: Final = 600.0
# What is dead is in nobody's way but in that of its user's limit.
_DEAD: Final = 86400.0


def limit_of(kernels: Any, kernel: Any) -> float:
    """Return after how many seconds without use a kernel is shut down; 0 is never."""
    own = kernel.process_proxy.profile.idle_time if kernel.process_proxy is not None else 0
    limit = float(own or max(kernels.cull_idle_timeout, 0))
    return limit or (_DEAD if kernel.execution_state == "dead" else 0.0)


def used_at(kernels: Any, kernel: Any, pod: Object | None, now: datetime) -> tuple[datetime, datetime | None]:
    """Return when a kernel was last in use, as far as is known here, and as its pod says."""
    shared = disruption.time((pod["metadata"].get("annotations") or {}).get(names.USED)) if pod is not None else None
    if kernel.execution_state == "dead":
        return disruption.time(kernel.died_at) or now, shared
    profile = kernel.process_proxy.profile
    executes = kernel.execution_state != "idle" and not (profile.cull_busy or kernels.cull_busy)
    is_connected = kernels._kernel_connections.get(kernel.kernel_id, 0) > 0 and not (profile.cull_connected or kernels.cull_connected)
    return (now if executes or is_connected else kernel.last_activity), shared


def interval(limit: float) -> float:
    """Return how many seconds what is written of a kernel's last use may be old."""
    return min(max(limit / _WRITES, _SHORTEST), _LONGEST)


def ends_at(limit: float, here: datetime, shared: datetime | None) -> datetime:
    """Return when a kernel will have been idle for long enough."""
    return (max(here, shared) if shared is not None else here) + timedelta(seconds=limit)


def warning(limit: float, end: datetime, now: datetime) -> str:
    """Return what a user is told about a kernel that will be shut down at ``end``, empty if it is too early for that."""
    if (end - now).total_seconds() > min(limit * _WARNING, _LONGEST_WARNING):
        return ""
    return f"it is shut down at {end:%H:%M:%S} UTC if nothing uses it until then"


async def write(cluster: Cluster, pod: Object, moment: datetime) -> None:
    """Write on a pod when its kernel was last in use. Raises ClusterError and ClusterAwayError."""
    await cluster.client.annotate("pods", pod, {names.USED: moment.isoformat(timespec="seconds")})


def is_to_be_written(limit: float, here: datetime, shared: datetime | None) -> bool:
    """Tell whether others should know what is known here. Of several gateways that know the same, chance lets one be first."""
    return shared is None or (here - shared).total_seconds() > interval(limit) * random.uniform(1.0, 1.5)
