"""A kernel asked over ZeroMQ, without a gateway: what tells one that hangs from one that a gateway does not hear."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import zmq.asyncio
from jupyter_client.session import Session
from zmq.constants import SocketOption, SocketType

_KINDS = {"iopub": SocketType.SUB, "hb": SocketType.REQ, "shell": SocketType.DEALER, "control": SocketType.DEALER}


async def heard(connection: Mapping[str, Any], seconds: float = 5.0) -> list[str]:
    """Ask a kernel for its info on two channels, and return those of its channels on which something came within so many seconds each.

    ``connection`` is the content of its connection file.
    """
    session = Session(key=connection["key"].encode())
    context = zmq.asyncio.Context()
    sockets = {channel: context.socket(kind) for channel, kind in _KINDS.items()}
    try:
        sockets["iopub"].setsockopt(SocketOption.SUBSCRIBE, b"")
        for channel, socket in sockets.items():
            socket.connect(f"tcp://{connection['ip']}:{connection[f'{channel}_port']}")
        await sockets["hb"].send(b"are you there?")
        # the second time because a subscription takes a moment to reach the kernel
        for pause in (1, 0):
            for channel in ("shell", "control"):
                await sockets[channel].send_multipart(session.serialize(session.msg("kernel_info_request")))
            await asyncio.sleep(pause)
        return [channel for channel, socket in sockets.items() if await socket.poll(int(seconds * 1000))]
    finally:
        context.destroy(linger=0)
