"""Volume claims that have no volume: why that is, as the cluster says in the claims' own events, which are not the pod's."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from elastic_kernels import patience
from elastic_kernels.cluster import Client, Object
from elastic_kernels.errors import ElasticKernelsError, one_line

log = logging.getLogger(__name__)

# Whoever asks has waited in vain for a long time already.
_SECONDS: Final = 2.0


async def why(client: Client, pod: Object) -> str:
    """Return what the cluster says last of each of a pod's claims that have no volume, as the end of a sentence; empty if nothing."""
    try:
        return await patience.within(_why(client, pod), _SECONDS)
    except (ElasticKernelsError, asyncio.TimeoutError) as error:
        log.info("What is said of the claims of the pod %s cannot be seen: %s", pod["metadata"]["name"], error)
        return ""


async def _why(client: Client, pod: Object) -> str:
    namespace, said = pod["metadata"]["namespace"], []
    for volume in pod["spec"].get("volumes") or ():
        name = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        claim = await client.get("persistentvolumeclaims", namespace, name) if name else None
        if claim is None or (claim.get("status") or {}).get("phase") == "Bound":
            continue
        events = (await client.list("events", namespace, fieldSelector=f"involvedObject.uid={claim['metadata']['uid']}")).get("items") or []
        last: Object = max(events, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""), default={})
        if last.get("message"):
            said.append(f"; of the volume claim {name!r} it is said: {one_line(last['message']).rstrip('.')}")
    return "".join(said)
