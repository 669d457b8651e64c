"""What is left of kernels that waited: pods that were claimed and never told, and Secrets whose pods are gone.

A gateway that is killed between its claim and its message leaves a pod that is a user's and no kernel: it still listens for
the message that nobody will send. Every gateway looks, and ends such a pod with its record. Who is told does not listen any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from elastic_kernels import names, status
from elastic_kernels.cluster.client import Client
from elastic_kernels.cluster.informer import Informer, key_of
from elastic_kernels.cluster.reaper import Reaper, RecordRef
from elastic_kernels.errors import ClusterAwayError, ClusterError
from elastic_kernels.warm.shared import elastic_claim

log = logging.getLogger(__name__)

Object = dict[str, Any]

# The message comes right after the claim, and what uses a Secret right after it.
ORPHANED_AFTER: Final = 30.0
_INTERVAL: Final = 2.0
_CONNECT_SECONDS: Final = 2.0


class Leftovers:
    """Belongs to one event loop."""

    def __init__(
        self,
        client: Client,
        pods: Informer,
        records: Informer,
        waiting: Informer,
        warm_secrets: Informer,
        reaper: Reaper,
        is_starting: Callable[[str], bool],
    ) -> None:
        """``is_starting`` tells whether a start of a kernel is under way here."""
        self._client = client
        self._pods, self._records, self._waiting, self._secrets = pods, records, waiting, warm_secrets
        self._reaper = reaper
        self._is_starting = is_starting
        self._since: dict[str, float] = {}
        self._told: set[str] = set()

    async def run(self) -> None:
        """Look, again and again, until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL)
            try:
                await self.sweep(asyncio.get_running_loop().time())
            except (ClusterError, ClusterAwayError) as error:
                log.info("What is left of waiting pods cannot be swept: %s (%s)", error, error.detail)

    async def sweep(self, now: float) -> None:
        """End what, at the time ``now`` of the loop, nobody has wanted for long enough. Raises ClusterError and ClusterAwayError."""
        if not all(each.is_fresh for each in (self._pods, self._records, self._waiting, self._secrets)):
            # what is not there may merely not be seen
            self._since.clear()
            return
        claimed = [item for item in self._pods.objects() if (item["metadata"].get("annotations") or {}).get(names.CLAIMED)]
        suspects = {item["metadata"]["uid"]: item for item in claimed if self._is_suspect(item)}
        used = {secret_of(item) for item in (*claimed, *self._waiting.objects())}
        alone = {item["metadata"]["uid"]: item for item in self._secrets.objects() if key_of(item) not in used}
        self._told &= {item["metadata"]["uid"] for item in claimed}
        self._since = {uid: self._since.get(uid, now) for uid in (*suspects, *alone)}
        late = {uid for uid, since in self._since.items() if now - since >= ORPHANED_AFTER}
        for uid, item in suspects.items():
            if uid in late:
                await self._ask(item)
        for uid, item in alone.items():
            if uid in late:
                await self._client.delete("secrets", *key_of(item), uid=uid)

    def _is_suspect(self, item: Object) -> bool:
        metadata = item["metadata"]
        is_starting = self._is_starting(metadata["labels"].get(names.KERNEL_ID, ""))
        return metadata["uid"] not in self._told and not status.is_over(item) and not is_starting

    async def _ask(self, item: Object) -> None:
        """See whether a pod still waits to be told, and end it with its record if it does."""
        metadata = item["metadata"]
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(item["status"]["podIP"], elastic_claim.PORT), _CONNECT_SECONDS)
        except ConnectionRefusedError:
            self._told.add(metadata["uid"])
            return
        except (OSError, asyncio.TimeoutError):
            return
        writer.close()
        log.warning("The pod %s was claimed for a kernel and never told; nobody starts it any more, and it is ended", metadata["name"])
        record = next((each for each in metadata.get("ownerReferences") or () if each["kind"] == "Secret"), None)
        ref = RecordRef(record["name"], record["uid"], record["uid"]) if record else None
        self._reaper.end(metadata["namespace"], metadata["name"], grace=0, record=ref)


def secret_of(item: Object) -> tuple[str, str]:
    """Return the namespace and name of the Secret that a pod began with, whether it waits, was claimed, or never waited."""
    mounted = [volume["secret"]["secretName"] for volume in item["spec"].get("volumes") or () if volume["name"] == "record"]
    return item["metadata"]["namespace"], mounted[0] if mounted else ""
