"""The response port, for launchers of Enterprise Gateway that call back: JEG's protocol, served without blocking the loop.

Stock JEG accepts and reads one connection at a time, with calls that block its event loop from the first remote kernel on, so
that one silent client stops all launches. Here each connection has a task, a deadline and a limit of its own; key and socket
are made when the first kernel needs them. Decoding, and the wire format, are JEG's own (``ResponseManager._decode_payload``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from Cryptodome.PublicKey import RSA
from enterprise_gateway.services.processproxies.processproxy import ResponseManager
from traitlets.config import SingletonConfigurable

log = logging.getLogger(__name__)

MAXIMUM_BYTES: Final = 64 * 1024
SECONDS: Final = 10.0


class ElasticResponseManager(ResponseManager):  # type: ignore[misc]
    """JEG's response manager on asyncio. Whoever creates it first in a process gives it to JEG's own proxies as well."""

    def __init__(self, **kwargs: Any) -> None:
        SingletonConfigurable.__init__(self, **kwargs)  # not JEG's, which would make key and socket at once
        self._response_registry: dict[str, Any] = {}
        self._response_socket = None
        self._server: asyncio.Task[asyncio.AbstractServer] | None = None
        self._silent = False

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Give out neither address nor key for a while: for kernels that do not call back."""
        self._silent = True
        try:
            yield
        finally:
            self._silent = False

    @property
    def response_address(self) -> str:
        """``host:port`` for launchers; the first to ask opens the port."""
        if self._silent:
            return ""
        self._listen()
        return str(super().response_address)

    @property
    def public_key(self) -> str:
        """The key with which launchers encrypt their answers, as JEG spells it."""
        if self._silent:
            return ""
        self._listen()
        return str(super().public_key)

    def forget(self, kernel_id: str) -> None:
        """Expect no answer from this kernel any more."""
        self._response_registry.pop(kernel_id, None)

    async def answer(self, kernel_id: str) -> dict[str, Any]:
        """Wait for the kernel's launcher and return what it sent; who calls sets the time limit."""
        response = self._response_registry[kernel_id]
        await response.wait()
        self.forget(kernel_id)
        return dict(response.response)

    def _listen(self) -> None:
        if self._server is not None:
            return
        self._private_key = RSA.generate(self.KEY_SIZE)
        self._public_key = self._private_key.publickey()
        self._public_pem = self._public_key.export_key("PEM")
        self._prepare_response_socket()
        self._response_socket.setblocking(False)  # type: ignore[attr-defined]
        serving = asyncio.start_server(self._serve, sock=self._response_socket, limit=MAXIMUM_BYTES)
        self._server = asyncio.get_running_loop().create_task(serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        try:
            data = await asyncio.wait_for(_read(reader), SECONDS)
            self._post_connection(self._decode_payload(data))
        except Exception as error:
            # whatever a stranger sends is no reason to stop serving the others
            log.warning("A connection from %s to the response port brought no kernel: %r", peer, error)
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> str:
    data = await reader.read(MAXIMUM_BYTES)
    while not reader.at_eof():
        if len(data) >= MAXIMUM_BYTES:
            raise ValueError(f"it sent more than {MAXIMUM_BYTES} bytes")
        data += await reader.read(MAXIMUM_BYTES)
    return data.decode("utf-8")
