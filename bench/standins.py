"""Kernels that do nothing: one process answers for thousands of them, each on an address of its own.

It speaks the wire protocol of ZeroMQ itself (RFC 23, ZMTP 3.0, the NULL mechanism), because thousands of ZeroMQ sockets would take
the memory and the files of thousands of kernels. A message is answered on the connection that it came by, and that connection's
own address says whose it is. They know ``kernel_info_request``, ``execute_request`` and ``shutdown_request``.

Its standard input has a line for each kernel, ``{"address": …, "key": …, "ports": [shell, iopub, stdin, control, hb]}``, or
``{"address": …}`` for one that ends. Its standard output has ``{"listens": address}`` and ``{"ended": address}``.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

_GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_MORE, _LONG, _COMMAND = 1, 2, 4
_DELIMITER: Final = b"<IDS|MSG>"
_SOCKETS: Final = (b"ROUTER", b"PUB", b"ROUTER", b"ROUTER", b"REP")
_INFO: Final = {
    "status": "ok",
    "protocol_version": "5.3",
    "implementation": "stand-in",
    "implementation_version": "1",
    "language_info": {"name": "python", "version": "3", "mimetype": "text/x-python", "file_extension": ".py"},
    "banner": "",
}


def frames_of(buffer: bytearray) -> Iterator[tuple[int, bytes]]:
    """Take the whole frames from the front of ``buffer`` and yield flags and body of each."""
    while len(buffer) >= 2:
        flags = buffer[0]
        begin = 9 if flags & _LONG else 2
        if len(buffer) < begin:
            return
        end = begin + int.from_bytes(buffer[1:begin], "big")
        if len(buffer) < end:
            return
        body = bytes(buffer[begin:end])
        del buffer[:end]
        yield flags, body


def frame(body: bytes, flags: int = 0) -> bytes:
    """Return a frame."""
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | _LONG,)) + len(body).to_bytes(8, "big") + body


def multipart(parts: list[bytes]) -> bytes:
    """Return the frames of one message."""
    return b"".join(frame(part, _MORE) for part in parts[:-1]) + frame(parts[-1])


def ready(kind: bytes) -> bytes:
    """Return the command that ends the handshake of a socket of this kind."""
    return frame(b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind, _COMMAND)


@dataclass
class Kernel:
    """One that does nothing."""

    address: str
    key: bytes
    subscribers: set[asyncio.Transport] = field(default_factory=set)
    servers: list[asyncio.Server] = field(default_factory=list)
    connections: set[asyncio.Transport] = field(default_factory=set)

    def message(self, kind: str, parent: bytes, content: dict[str, Any]) -> list[bytes]:
        """Return a signed message without identities."""
        header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "username": "", "session": "", "date": _DATE, "version": "5.3"}
        parts = [json.dumps(header).encode(), parent, b"{}", json.dumps(content).encode()]
        digest = hmac.new(self.key, b"".join(parts), hashlib.sha256)
        return [_DELIMITER, digest.hexdigest().encode(), *parts]

    def publish(self, kind: str, parent: bytes, content: dict[str, Any]) -> None:
        """Send to all that have subscribed."""
        data = multipart([kind.encode(), *self.message(kind, parent, content)])
        for transport in self.subscribers:
            transport.write(data)

    def answer(self, transport: asyncio.Transport, parts: list[bytes]) -> None:
        """Do what a request asks for."""
        parts = parts[parts.index(_DELIMITER) :]
        parent = parts[2]
        kind = json.loads(parent)["msg_type"]
        content: dict[str, Any] = {"status": "ok"}
        self.publish("status", parent, {"execution_state": "busy"})
        if kind == "kernel_info_request":
            content = _INFO
        elif kind == "execute_request":
            self.publish("stream", parent, {"name": "stdout", "text": "begun\n"})
            content = {"status": "ok", "execution_count": 1, "user_expressions": {}, "payload": []}
        transport.write(multipart(self.message(kind.replace("_request", "_reply"), parent, content)))
        self.publish("status", parent, {"execution_state": "idle"})
        if kind == "shutdown_request":
            say(ended=self.address)

    def close(self) -> None:
        """End it."""
        for server in self.servers:
            server.close()
        for transport in self.connections:
            transport.close()


_DATE: Final = "2026-01-01T00:00:00.000000Z"


class Connection(asyncio.Protocol):
    """One client's connection to one of a kernel's ports."""

    def __init__(self, kernel: Kernel, kind: bytes) -> None:
        self._kernel = kernel
        self._kind = kind
        self._buffer = bytearray()
        self._greeted = False
        self._parts: list[bytes] = []
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called first."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._kernel.connections.add(transport)
        transport.write(_GREETING)

    def connection_lost(self, _: Exception | None) -> None:
        """Called last."""
        self._kernel.connections.discard(self._transport)
        self._kernel.subscribers.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        """Called with what came."""
        self._buffer += data
        if not self._greeted:
            if len(self._buffer) < len(_GREETING):
                return
            del self._buffer[: len(_GREETING)]
            self._greeted = True
            self._transport.write(ready(self._kind))
        for flags, body in frames_of(self._buffer):
            if flags & _COMMAND:
                continue
            self._parts.append(body)
            if not flags & _MORE:
                parts, self._parts = self._parts, []
                self._received(parts)

    def _received(self, parts: list[bytes]) -> None:
        if self._kind == b"ROUTER":
            self._kernel.answer(self._transport, parts)
        elif self._kind == b"PUB" and parts[0][:1] == b"\1":
            self._kernel.subscribers.add(self._transport)
        elif self._kind == b"REP":
            self._transport.write(multipart(parts))


async def listen(address: str, key: str, ports: list[int]) -> Kernel:
    """Return a kernel that listens."""
    loop = asyncio.get_running_loop()
    kernel = Kernel(address, key.encode())
    for port, kind in zip(ports, _SOCKETS, strict=True):
        kernel.servers.append(await loop.create_server(lambda kind=kind: Connection(kernel, kind), address, port))  # type: ignore[misc]
    return kernel


def say(**facts: str) -> None:
    """Write a line for whoever started this process."""
    print(json.dumps(facts), flush=True)


async def main() -> None:
    """Serve until standard input ends."""
    kernels: dict[str, Kernel] = {}
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        asked = json.loads(line)
        address = asked["address"]
        if "key" in asked:
            kernels[address] = await listen(**asked)
            say(listens=address)
        elif address in kernels:
            kernels.pop(address).close()


if __name__ == "__main__":
    asyncio.run(main())
