"""When Kubernetes knew something, and when the kernel's user did: an administrator's own watch beside the gateway's answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from elastic_kernels.cluster import Client, Object
from tests.gateway import Gateway

# A certain failure is to be known to the user within this time of Kubernetes' knowing it ...
SECONDS = 2.0
# ... and this much is the measuring's: two cores run the cluster, the gateway, the kernels and the tests, and the question is put
# ten times a second.
MARGIN = 1.5
_PAUSE = 0.1


class Witness:
    """What a watch of pods, events and nodes has shown, each with the time (monotonic, in seconds) at which it did."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, str, Object]] = []
        self._changed = asyncio.Event()

    def note(self, kind: str, item: Object) -> None:
        self.seen.append((time.monotonic(), kind, item))
        self._changed.set()

    async def first(self, kind: str, fact: Callable[[Object], bool], after: float, kernel: str = "", seconds: float = 60.0) -> float:
        """Return when the fact was first seen in an object of this kind, ``after`` a moment; wait for it if it has not been yet.

        With the id of a ``kernel``, only its pods count, and their events.
        """
        end = time.monotonic() + seconds
        while True:
            self._changed.clear()
            for moment, seen, item in self.seen:
                # the names of pods carry the beginning of the id, and those of events begin with their pod's
                if seen == kind and moment >= after and kernel[:8] in item["metadata"]["name"] and fact(item):
                    return moment
            await asyncio.wait_for(self._changed.wait(), end - time.monotonic())


@asynccontextmanager
async def witness(api: Client, namespace: str) -> AsyncIterator[Witness]:
    """Watch for as long as the context lasts; a node's deletion is seen as a node without a status."""
    here = Witness()

    async def look(resource: str, where: str | None) -> None:
        version = (await api.list(resource, where))["metadata"]["resourceVersion"]
        listening.set()
        async with api.watch(resource, where, resourceVersion=version, timeoutSeconds="7200") as events:
            async for event in events:
                item = event["object"]
                if event["type"] == "BOOKMARK":  # it has no status either, and nothing was deleted
                    continue
                here.note(resource, {**item, "status": {}} if event["type"] == "DELETED" else item)

    tasks = []
    for resource, where in (("pods", namespace), ("events", namespace), ("nodes", None)):
        listening = asyncio.Event()
        tasks.append(asyncio.ensure_future(look(resource, where)))
        await listening.wait()
    try:
        yield here
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def told(
    gateway: Gateway, kernel: str, headers: dict[str, str], sentence: str, seconds: float = 60.0
) -> tuple[float, dict[str, Any]]:
    """Return when ``GET /api/kernels/<id>/status`` first said a sentence that begins so, and the whole answer."""
    end = time.monotonic() + seconds
    said: list[Any] = []
    while time.monotonic() < end:
        status, body = await gateway.request("GET", f"/api/kernels/{kernel}/status", headers=headers)
        if status == 200 and body["sentence"].startswith(sentence):
            return time.monotonic(), body
        if not said or said[-1] != body:
            said.append(body)
        await asyncio.sleep(_PAUSE)
    raise AssertionError(f"waited {seconds} s in vain for {sentence!r}; the status said: {said}")
