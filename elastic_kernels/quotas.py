"""What a start does that a quota refuses: it waits for a while, as others may give theirs back; after a restart, the pod that was."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from elastic_kernels import patience, status
from elastic_kernels.cluster import Informer
from elastic_kernels.errors import ClusterError
from elastic_kernels.status import Status

# A record that has no pod for longer is nobody's (see the sweeper).
_PATIENCE: Final = 20.0
_LOOK_AGAIN: Final = 1.0
# Kubernetes counts what is in use again just after a pod has ended; a pod that it lets in meanwhile stays uncounted, for minutes.
_COUNTED: Final = 0.25


class Wait:
    """The patience of one start with quotas, which is the same for all pods that it asks for."""

    def __init__(self, pods: Informer, note: Callable[[Status], None]) -> None:
        """``note`` is told what the start waits for."""
        self._pods = pods
        self._note = note
        self._until: float | None = None

    async def may_ask_again(self, refusal: ClusterError) -> bool:
        """Return whether a pod that was refused may be asked for again, once pods have changed or a moment has passed.

        At once if no quota refused it, if the quota never has room for it, or if others have had their time.
        """
        now = asyncio.get_running_loop().time()
        refused = status.refused(str(refusal))
        if refused.hopeless or (self._until is not None and now > self._until):
            return False
        if self._until is None:
            self._until = now + _PATIENCE
        self._note(refused)
        changed = asyncio.Event()
        self._pods.observe(changed.set)
        try:
            if await patience.happens(changed, _LOOK_AGAIN):
                await asyncio.sleep(_COUNTED)
        finally:
            self._pods.unobserve(changed.set)
        return True
