"""Why a kernel is dead, on its record, where every gateway sees it, also when the pod that would say so is gone."""

from __future__ import annotations

import logging

from elastic_kernels import names
from elastic_kernels.cluster import Cluster, Object
from elastic_kernels.errors import ClusterAwayError, ClusterError, one_line

log = logging.getLogger(__name__)


def obituary(item: Object) -> str:
    """Return what a record says of its kernel's end, empty if it says nothing."""
    return str((item["metadata"].get("annotations") or {}).get(names.ENDED, ""))


async def mark(cluster: Cluster, item: Object, sentence: str) -> None:
    """Write on a kernel's record why it is dead, for every gateway to see; empty takes it back."""
    metadata = item["metadata"]
    try:
        # a change makes the record look newer than it is, and its place among the others is what limits go by
        order = (metadata.get("annotations") or {}).get(names.ORDER) or metadata["resourceVersion"]
        await cluster.client.annotate("secrets", item, {names.ENDED: one_line(sentence), names.ORDER: order})
    except (ClusterError, ClusterAwayError) as error:
        log.warning("The record %s cannot be marked as that of a dead kernel: %s", metadata["name"], error)
