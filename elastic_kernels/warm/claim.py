"""A kernel that waits becomes a user's: one change of its pod that one gateway alone can make, and one message.

The record comes first, as for every kernel. The change makes the pod the record's, if it is still as it was seen waiting; of two
gateways that try, the API server refuses the second, which takes another pod or starts without one. Then the pod is told the kernel's
key and variables. A pod that was claimed and does not answer is ended, and the kernel starts without it, on the same record.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from datetime import datetime, timezone
from typing import Any, Final

from elastic_kernels import disruption, names
from elastic_kernels.cluster import Cluster, Object
from elastic_kernels.errors import ClusterError
from elastic_kernels.metrics import metrics
from elastic_kernels.profiles import Profile
from elastic_kernels.record import Record
from elastic_kernels.request import KernelRequest
from elastic_kernels.starts import timestamp
from elastic_kernels.warm import waiting
from elastic_kernels.warm.shared import elastic_claim

log = logging.getLogger(__name__)

# What a pod on a busy machine may take to read a few kilobytes.
_SECONDS: Final = 5.0
_CONNECT_SECONDS: Final = 1.0
# Others are after the same pods: who has lost so often does without.
_ATTEMPTS: Final = 3

Carry = Callable[[Coroutine[Any, Any, Object | None]], Awaitable[Object | None]]
"""Makes a request, and does not lose sight of it if whoever waits for it goes away."""


async def take(
    cluster: Cluster,
    profile: Profile,
    request: KernelRequest,
    kept: Record,
    manifest: Object,
    change: Carry,
    claimed: Callable[[Object], None],
) -> Object | None:
    """Return a pod that waited and is now the kernel of a record, in place of the one of ``manifest``; None where there is none.

    ``change`` makes the change of a pod; ``claimed`` is told of each pod that is the record's from
    then on. Raises ClusterError and ClusterAwayError.
    """
    late = waiting.comes_too_late(request)
    if late is not None:
        log.info("Kernel %s starts without a waiting one, because its interpreter must begin with %s", kept.kernel_id, late)
        return None
    for _ in range(_ATTEMPTS):
        found = _reserve(cluster, waiting.fit(profile, manifest), kept.namespace)
        if found is None:
            break
        key = (found["metadata"]["namespace"], found["metadata"]["name"])
        try:
            taken = await _claim(cluster, found, kept, manifest, change, claimed)
        except ClusterError as error:
            log.warning("Kernel %s: no waiting pod can be taken: %s (%s)", kept.kernel_id, error, error.detail)
            break
        finally:
            cluster.reserved.discard(key)
        if taken is not None:
            metrics().warm.labels(profile.name, "taken").inc()
            return taken
    metrics().warm.labels(profile.name, "none").inc()
    return None


def _reserve(cluster: Cluster, fit: str, namespace: str) -> Object | None:
    """Return a pod that waits and would do, which no other start of this process tries to get at the same time."""
    fitting = [
        item
        for item in cluster.waiting.objects()
        if waiting.is_ready(item)
        and item["metadata"]["annotations"].get(names.FIT) == fit
        and item["metadata"]["namespace"] == namespace
        and (namespace, item["metadata"]["name"]) not in cluster.reserved
        # whose machine is not about to go, or gone
        and disruption.find(item, (), datetime.now(timezone.utc), cluster.node_of(item)) is None
    ]
    if not fitting:
        return None
    # gateways that choose at the same time choose differently
    chosen = random.choice(fitting)
    cluster.reserved.add((namespace, chosen["metadata"]["name"]))
    return chosen


async def _claim(
    cluster: Cluster,
    found: Object,
    kept: Record,
    manifest: Object,
    change: Carry,
    claimed: Callable[[Object], None],
) -> Object | None:
    metadata = found["metadata"]
    secret = await cluster.client.get("secrets", metadata["namespace"], metadata["ownerReferences"][0]["name"])
    if secret is None:
        return None
    taken = await _change(cluster, found, manifest, change)
    if taken is None:
        log.info("Kernel %s: the pod %s is somebody else's by now", kept.kernel_id, metadata["name"])
        return None
    claimed(taken)
    try:
        await asyncio.wait_for(_tell(taken["status"]["podIP"], waiting.key_of(secret), waiting.message(kept, manifest)), _SECONDS)
    except (OSError, EOFError, ValueError, asyncio.TimeoutError) as error:
        log.warning("Kernel %s: the pod %s waited and does not answer (%r); it is ended", kept.kernel_id, metadata["name"], error)
        cluster.reaper.end(metadata["namespace"], metadata["name"], grace=0)
        return None
    log.info("Kernel %s takes the pod %s, which waited", kept.kernel_id, metadata["name"])
    return taken


async def _change(cluster: Cluster, found: Object, manifest: Object, change: Carry) -> Object | None:
    """Make a pod that waits the one of ``manifest``; None if it does not wait any more."""
    metadata, seen = found["metadata"], found
    for _ in range(_ATTEMPTS):
        taken = await change(cluster.client.change("pods", seen, waiting.claim(manifest, timestamp())))
        if taken is not None:
            return taken
        now = await cluster.client.get("pods", metadata["namespace"], metadata["name"])
        if now is None or now["metadata"]["uid"] != metadata["uid"]:
            return None
        if now["metadata"].get("ownerReferences") == manifest["metadata"]["ownerReferences"]:
            # it was this very change, of which no answer said so
            return now
        if names.WARM not in (now["metadata"].get("labels") or {}) or not waiting.is_ready(now):
            return None
        # its kubelet has said something of it, which the watch has not brought yet
        seen = now
    return None


async def _tell(address: str, key: bytes, content: bytes) -> None:
    """Send the message, and see from the answer that the pod itself has read it."""
    message = elastic_claim.seal(key, content)
    # its machine takes the connection, however busy the pod is
    reader, writer = await asyncio.wait_for(asyncio.open_connection(address, elastic_claim.PORT), _CONNECT_SECONDS)
    try:
        writer.write(len(message).to_bytes(elastic_claim.LENGTH, "big") + message)
        answer = await reader.readexactly(elastic_claim.RECEIPT)
        if not hmac.compare_digest(answer, elastic_claim.receipt(key, message)):
            raise ValueError("the answer is not the pod's")
    finally:
        writer.close()
