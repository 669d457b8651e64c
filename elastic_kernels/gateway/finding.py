"""What requests wait for: that a kernel which the cluster has is served by this gateway, wherever it was started.

A client of several gateways is ahead of each of them: it asks for what another one has just answered with.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from elastic_kernels.cluster import Cluster, user_of
from elastic_kernels.errors import ClusterAwayError

# How long a request waits for the kernel to answer, or for the first look at the cluster.
_PATIENCE: Final = 10.0
# How long one for a kernel that is not known, or is restarted elsewhere, waits for a copy that is not kept up, or for that kernel.
_CATCH_UP: Final = 5.0
# By how much another gateway may be ahead of the copy here, and by how much a kubelet may be behind a kernel that answers already.
_AHEAD: Final = 0.5
_BEHIND: Final = 2.0


async def all_kernels(kernels: Any, user: str | None = None) -> None:
    """Return once all kernels that run are among ``kernels``, or all of a ``user``. Raises ClusterAwayError if that takes too long."""
    await _looked(kernels)
    kernels.keeper.meet_all()

    def is_missing(kernel_id: str) -> bool:
        # what is served may be followed for long, and is listed meanwhile
        if kernel_id in kernels:
            return False
        item = kernels.keeper.cluster.record_of(kernel_id) if user is not None and kernels.keeper.cluster is not None else None
        # one that another gateway starts may take long to answer, which is nothing to others
        return item is None or user_of(item) == user

    await kernels.keeper.works.settled(is_missing, _PATIENCE)


async def kernel(kernels: Any, kernel_id: str, *, is_to_answer: bool = False, is_to_restart: bool = False, is_to_end: bool = False) -> None:
    """Return once a kernel that the cluster has is among ``kernels``, and if it ``is_to_answer``, in the pod that it is in now.

    One that ``is_to_restart`` is not waited for while another gateway starts it, which is joined; one that ``is_to_end`` need not run
    yet. Raises ClusterAwayError where it is not known, and another gateway may know it.
    """
    await _looked(kernels)
    keeper = kernels.keeper
    cluster = keeper.cluster
    if cluster is None or (kernel_id in kernels and not is_to_answer):
        return
    is_unknown = kernel_id not in kernels and cluster.record_of(kernel_id) is None and not keeper.has_ended(kernel_id)
    # what a stale copy does not have may be there
    if is_unknown and not await cluster.catches_up(_CATCH_UP):
        raise ClusterAwayError("The gateway cannot see the cluster and does not know this kernel; try again in a minute.")
    if kernel_id in kernels:
        keeper.look_after(kernel_id)
    else:
        await _met(kernels, cluster, kernel_id, is_to_end)
    await keeper.works.settled(lambda each: each == kernel_id, _PATIENCE)
    if is_to_answer and not is_to_restart:
        await _followed(kernels, kernel_id)


async def _looked(kernels: Any) -> None:
    if not await kernels.keeper.has_looked(_PATIENCE):
        raise ClusterAwayError("The gateway cannot see the cluster and does not know your kernels; try again in a minute.")


async def _met(kernels: Any, cluster: Cluster, kernel_id: str, is_to_end: bool) -> None:
    """Wait until a kernel is met, which a client may have from another gateway before all of it is known here."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    while True:
        kernels.keeper.meet(kernel_id)
        if kernels.keeper.is_settled(kernel_id):
            return
        is_known = cluster.record_of(kernel_id) is not None
        left = begin + (_BEHIND if is_known else _AHEAD) - loop.time()
        if left <= 0 or (is_known and is_to_end):
            return
        await kernels.keeper.change(left)


async def _followed(kernels: Any, kernel_id: str) -> None:
    """Wait a while for a kernel that another gateway starts again: it may answer before its kubelet says that it runs."""
    loop = asyncio.get_running_loop()
    end = loop.time() + _CATCH_UP
    while (kernel := kernels._kernels.get(kernel_id)) is not None and (left := end - loop.time()) > 0:
        if not kernel.awaited or kernel.restarting:
            return
        await kernels.keeper.change(left)
