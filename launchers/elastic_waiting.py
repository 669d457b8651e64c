"""A kernel that waits for its user: all is imported, and one message says whose it is, with which key, folder and variables.

Anybody in the cluster may be able to connect, so that nobody can keep others from it: connections are served side by side, have
little time, and are few. The first message that is signed with this pod's key is the only one that is ever taken.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import tempfile
import time
from typing import Any

import elastic_claim

FILE = "claim.json"
"""Beside the launchers of a pod that waits: its key, and where it listens."""

_CONNECTIONS = 32
_SECONDS = 5.0
# Kubernetes, "Define Environment Variables": $(NAME) is a variable of before, $$ a dollar sign
_REFERENCE = re.compile(r"\$(\$|\(([A-Za-z_][A-Za-z0-9_.-]*)\))")


def wait(file: str) -> str:
    """Wait for the message, enter the environment that it brings, and return the connection file that is made from it."""
    with open(file, encoding="utf-8") as opened:
        own = json.load(opened)
    key = bytes.fromhex(own["key"])
    with socket.create_server((own["ip"], own["claim_port"]), backlog=_CONNECTIONS) as listener:
        content = json.loads(receive(listener, key))
    enter(content["environment"])
    # the address is the pod's own affair
    return _write({**content["connection"], "ip": own["ip"]})


def receive(listener: socket.socket, key: bytes) -> bytes:
    """Return what the first message holds that is signed with ``key``; its sender gets a receipt."""
    listener.setblocking(False)
    begun: dict[socket.socket, float] = {}
    read: dict[socket.socket, bytearray] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)

        def close(connection: socket.socket) -> None:
            selector.unregister(connection)
            connection.close()
            del begun[connection], read[connection]

        try:
            while True:
                ready = selector.select(1.0 if begun else None)
                for connection in [known for known, since in begun.items() if time.monotonic() - since > _SECONDS]:
                    close(connection)
                for item, _ in ready:
                    connection = item.fileobj  # type: ignore[assignment]
                    if connection is listener:
                        _accept(listener, selector, begun, read, close)
                    elif connection in begun:
                        message = _message(connection, read[connection])
                        content = _content(key, message) if message else None
                        if message and content is not None:
                            connection.settimeout(_SECONDS)
                            connection.sendall(elastic_claim.receipt(key, message))
                            return content
                        if message is not None:
                            close(connection)
        finally:
            for connection in tuple(begun):
                close(connection)


def enter(environment: list[tuple[str, str | None]]) -> None:
    """Set the variables that the pod of a start without warmth would have had, in their order and as a kubelet does.

    One without a value is the pod's own, which it has already.
    """
    known: dict[str, str] = {}
    for name, value in environment:
        if value is None:
            known[name] = os.environ.get(name, "")
        else:
            known[name] = _REFERENCE.sub(lambda match: "$" if match[1] == "$" else known.get(match[2], match[0]), value)
            os.environ[name] = known[name]
    time.tzset()
    # what is read of them when it is first needed is read anew
    tempfile.tempdir = None


def _accept(
    listener: socket.socket, selector: selectors.BaseSelector, begun: dict[Any, float], read: dict[Any, bytearray], close: Any
) -> None:
    try:
        connection, _ = listener.accept()
    except OSError:  # it is gone again
        return
    if len(begun) >= _CONNECTIONS:
        close(min(begun, key=lambda known: begun[known]))
    connection.setblocking(False)
    begun[connection], read[connection] = time.monotonic(), bytearray()
    selector.register(connection, selectors.EVENT_READ)


def _message(connection: socket.socket, read: bytearray) -> bytes | None:
    """Read on, and return the message if it is complete, None if it is not yet, and nothing at all if it will be none."""
    try:
        part = connection.recv(2**16)
    except BlockingIOError:
        return None
    except OSError:
        return b""
    if not part:
        return b""
    read += part
    if len(read) < elastic_claim.LENGTH:
        return None
    length = int.from_bytes(read[: elastic_claim.LENGTH], "big")
    if length > elastic_claim.LONGEST:
        return b""
    return bytes(read[elastic_claim.LENGTH : elastic_claim.LENGTH + length]) if len(read) >= elastic_claim.LENGTH + length else None


def _content(key: bytes, message: bytes) -> bytes | None:
    try:
        return elastic_claim.unseal(key, message)
    except ValueError:
        return None


def _write(connection: dict[str, Any]) -> str:
    # a file that nobody else may read, as the file itself would be if it was there from the beginning
    descriptor, path = tempfile.mkstemp(prefix="kernel-", suffix=".json")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(connection, file)
    return path
