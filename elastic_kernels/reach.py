"""How a running kernel is reached: which pod it is in by now, and on which ports, with which key.

A kernel may have several pods for a while, because a restart does not wait for the old one's end. Each says which start of the
kernel it is; the latest is the kernel's.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Any, Final

from elastic_kernels import disruption, names, patience, record, status
from elastic_kernels.cluster import Cluster, Object, key_of
from elastic_kernels.record import Record
from elastic_kernels.warm.shared import elastic_claim

_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.25
_CONNECT_SECONDS: Final = 2.0
# Whoever waits for a pod gives it up first, and clocks differ.
_MARGIN: Final = 15.0

Connect = Callable[[Record, int, str], Awaitable[dict[str, Any]]]
"""Given record, port set and the pod's address: waits for the kernel to answer and returns how to connect to it."""


async def ports_answer(asked: Record, ports: int, address: str) -> dict[str, Any]:
    """Wait until all of a kernel's ports accept connections, and return how to connect: a ``Connect`` for direct kernels."""
    connection = record.connection(asked, ports, address)
    for port in [value for name, value in connection.items() if name.endswith("_port")]:
        pause = _FIRST_PAUSE
        while not await accepts(address, port):
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE)
    return connection


async def again(cluster: Cluster, kept: Record, pod: Object, calls_back: bool) -> dict[str, Any] | None:
    """Return how to connect to a kernel that another process started, once it answers; None if that cannot be known yet.

    ``calls_back`` says that its launcher chose the ports and told the process that started it. Raises ClusterError,
    ClusterAwayError and ValueError.
    """
    address = pod["status"].get("podIP")
    if not address:
        return None
    if (pod["metadata"].get("annotations") or {}).get(names.CLAIMED) and await accepts(address, elastic_claim.PORT):
        # it waits to be told whose it is, and may never be: see cluster.leftovers
        return None
    if not calls_back:
        return await ports_answer(kept, ports_of(pod), address)
    secret = await cluster.client.get("secrets", pod["metadata"]["namespace"], pod["metadata"]["name"])
    return record.from_connection_secret(secret) if secret is not None else None


def latest(pods: Iterable[Object]) -> Object | None:
    """Return the pod of a kernel's latest start, whatever it is doing, or None if there is none."""
    return max(pods, key=lambda pod: (start_of(pod), str(pod["metadata"].get("creationTimestamp"))), default=None)


def start_of(pod: Object) -> int:
    """Return the how-manieth start of its kernel a pod is."""
    return int((pod["metadata"].get("annotations") or {}).get(names.START, "1"))


def ports_of(pod: Object) -> int:
    """Return the index of the port set that the kernel in a pod listens on."""
    return int(pod["metadata"]["annotations"][names.PORTS])


def next_start(pods: Iterable[Object], after: int) -> int:
    """Return the number of the start that follows the start ``after`` (0 if none is known), and all of ``pods`` that are over.

    A later one that is not over is what somebody else has made of the same wish. It is never the first, which nobody has seen yet and
    which goes, with the kernel, if whoever began it does not end it (see ``gateway.meeting``).
    """
    over = [start_of(pod) for pod in pods if status.is_over(pod)]
    return max([1, after, *over]) + 1


def ports_of_start(number: int) -> int:
    """Return the index of a start's port set, another than the one before: Jupyter Server tells by its ports that it is another."""
    return (number - 1) % len(record.PORT_SETS)


def is_leaving(cluster: Cluster, pod: Object) -> bool:
    """Tell whether a pod is on its way out, or will be in a moment."""
    return bool(pod["metadata"].get("deletionTimestamp")) or cluster.reaper.is_ending(key_of(pod))


def is_given_up(pod: Object, now: datetime) -> bool:
    """Tell whether a pod has had so much time to become its kernel that nobody waits for that any more, in whichever gateway."""
    annotations = pod["metadata"].get("annotations") or {}
    times = (pod["metadata"].get("creationTimestamp"), annotations.get(names.CLAIMED), annotations.get(names.AWAITED))
    begun = max((moment for moment in map(disruption.time, times) if moment is not None), default=now)
    try:
        seconds = float(annotations.get(names.LAUNCH_TIMEOUT, "inf"))
    except ValueError:
        return False
    return (now - begun).total_seconds() > seconds + _MARGIN


def token_of(record_uid: str, number: int) -> str:
    """Return the token of a start that is not a kernel's first: the same for whoever means the same start."""
    return hashlib.sha256(f"{record_uid} {number}".encode()).hexdigest()[:6]


async def why_not(pod: Object) -> str:
    """Return that a pod which runs is out of this gateway's reach, as the end of a sentence; empty if it is not, or does not run."""
    address = pod["status"].get("podIP")
    if pod["status"].get("phase") != "Running" or not address:
        return ""
    obstacle = await _obstacle(address, record.PORT_SETS[ports_of(pod)])
    # a refusal is the pod's, whose kernel does not listen
    if obstacle is None or isinstance(obstacle, ConnectionRefusedError):
        return ""
    return f"; the gateway cannot reach its address {address}, for want of a route or because of a network policy"


async def accepts(address: str, port: int) -> bool:
    """Tell whether something takes connections there."""
    return await _obstacle(address, port) is None


async def _obstacle(address: str, port: int) -> Exception | None:
    """Connect, and return why that cannot be, None if it can."""
    try:
        _, writer = await patience.within(asyncio.open_connection(address, port), _CONNECT_SECONDS)
    except (OSError, asyncio.TimeoutError) as error:
        return error
    writer.close()
    return None
