"""Kernels that say themselves that they listen. The kubelet says once a second what it sees; a datagram takes a millisecond.

A launcher that knows an address of the gateway that starts it (``pod.Launch.announce_to``) sends it one UDP datagram once its kernel
listens, a JSON object::

    {"pod": "<namespace>/<name>", "address": "<the pod's address>", "mac": "<hex HMAC-SHA256 of 'pod address', with the connection key>"}

It is believed if the pod is waited for, the signature is right, and the address is also the datagram's sender, because behind a
translation of addresses nobody can tell where the kernel is. Whatever does not arrive is not missed: the watch says it, a little later.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from elastic_kernels.cluster.informer import Key

log = logging.getLogger(__name__)

AUTO: Final = "auto"
_HTTPS: Final = 443


class Announcements(asyncio.DatagramProtocol):
    """What arrives at one gateway process. Belongs to the event loop on which it was opened."""

    def __init__(self) -> None:
        self.address = ""
        """Where launchers send to, as host:port; empty where nothing can arrive."""
        self._expected: dict[str, tuple[str, Callable[[str], None]]] = {}
        self._transport: asyncio.DatagramTransport | None = None

    async def open(self, address: str, server: str) -> None:
        """Listen at ``address``: ``host``, ``host:port``, ``auto`` (where the URL ``server`` is reached from), or empty for nowhere."""
        if not address:
            return
        loop = asyncio.get_running_loop()
        try:
            host, port = (await _reached_from(server), 0) if address == AUTO else _split(address)
            self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(host, port))
        except (OSError, ValueError) as error:
            log.warning("Kernels cannot say at %s that they listen (%s): they are found when their nodes say so", address, error)
            return
        host, port = self._transport.get_extra_info("sockname")[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def close(self) -> None:
        """Listen no more."""
        if self._transport is not None:
            self._transport.close()

    @contextmanager
    def expected(self, pod: Key, key: str, listens: Callable[[str], None]) -> Iterator[None]:
        """Have ``listens`` called with a pod's address, on the event loop, when its kernel says so; ``key`` is its connection's."""
        name = "/".join(pod)
        self._expected[name] = (key, listens)
        try:
            yield
        finally:
            self._expected.pop(name, None)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Called by asyncio, for whatever arrives."""
        try:
            message = json.loads(data)
            pod, address, mac = (str(message[name]) for name in ("pod", "address", "mac"))
        except (ValueError, TypeError, KeyError):
            return
        key, listens = self._expected.get(pod, ("", None))
        if listens is not None and address == addr[0] and hmac.compare_digest(sign(key, pod, address).encode(), mac.encode()):
            listens(address)

    def error_received(self, exc: Exception) -> None:
        """Called by asyncio; nothing is ever sent."""


def sign(key: str, pod: str, address: str) -> str:
    """Return the signature of an announcement, as ``elastic_launcher`` makes it."""
    return hmac.new(key.encode(), f"{pod} {address}".encode(), hashlib.sha256).hexdigest()


def _split(address: str) -> tuple[str, int]:
    parts = urlsplit(f"//{address}")
    return parts.hostname or "", parts.port or 0


async def _reached_from(server: str) -> str:
    """Return the own address from which a server is reached: that which the cluster's pods reach, too, if any. Raises OSError."""
    parts = urlsplit(server)
    remote = (parts.hostname or "", parts.port or _HTTPS)
    # connecting a datagram socket sends nothing
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=remote)
    try:
        return str(transport.get_extra_info("sockname")[0])
    finally:
        transport.close()
