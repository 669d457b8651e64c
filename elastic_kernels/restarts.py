"""What becomes of a kernel that ended although nobody shut it down: ``after(cause, …)``.

A restart brings an empty kernel, which helps somebody who watches and harms a program that goes on with its next cell. So it is
for those who are connected, and only where the same would not happen again.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from elastic_kernels.disruption import Cause
from elastic_kernels.profiles import Profile

MOST_CRASHES: Final = 4
"""So many crashes in a row are restarted."""

LOSSES: Final = (Cause.EVICTED, Cause.PREEMPTED, Cause.RECLAIMED, Cause.NODE_LOST)
"""Causes that lie with the machine and not with the kernel."""


class Action(Enum):
    """What to do with a kernel that has ended."""

    RESTART = "restart"
    KEEP = "keep"
    """It stays, dead, and says why; its user restarts it or shuts it down."""
    REMOVE = "remove"
    """It goes, with its record."""


def after(cause: Cause | None, profile: Profile, *, is_connected: bool, crashes: int) -> Action:
    """Return what is to be done after an end by ``cause``; ``crashes`` is how often the kernel has crashed in a row before."""
    if cause in (Cause.DELETED, Cause.COMPLETED):
        return Action.RESTART if is_connected else Action.REMOVE
    if cause is Cause.CRASHED:
        return Action.RESTART if is_connected and crashes < MOST_CRASHES else Action.KEEP
    if cause in LOSSES:
        return Action.RESTART if is_connected and profile.restart_after_loss else Action.KEEP
    # what used too much memory would do it again
    return Action.KEEP
