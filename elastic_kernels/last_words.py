"""The end of the log of a container that failed, for a sentence about its kernel."""

from __future__ import annotations

import logging
from typing import Final

from elastic_kernels import names, status
from elastic_kernels.cluster import Cluster, Key
from elastic_kernels.errors import ElasticKernelsError, one_line

log = logging.getLogger(__name__)

_LOG_LINES: Final = 5
# what a kubelet has in place of a log that is gone
_NO_LOG: Final = (
    "Error on reading termination message from logs: ",
    "failed to try resolving symlinks in path ",
    "unable to retrieve container logs for ",
)


async def of(cluster: Cluster, key: Key | None) -> str:
    """Return the end of the log of the pod of this namespace and name, a sentence after others; empty if there is none."""
    pod = cluster.pods.get(key) if key is not None else None
    if key is None or pod is None or status.exit_code(pod) is None:
        return ""
    said = status.last_words(pod)
    if not said or said.startswith(_NO_LOG):
        try:
            said = await cluster.client.pod_log(*key, names.CONTAINER, lines=_LOG_LINES)
        except ElasticKernelsError as error:
            log.info("The log of the pod %s cannot be read: %s", "/".join(key), error)
            return ""
    lines = "" if said.startswith(_NO_LOG) else one_line("\n".join(said.splitlines()[-_LOG_LINES:]), limit=600)
    return f" The end of its log: {lines}" if lines else ""
