"""What can stand between a client and a gateway: a proxy whose connections break, which goes away, or which loses what it carries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class Between:
    """A TCP proxy in front of a gateway."""

    def __init__(self, gateway: str) -> None:
        self.gateway = gateway
        """Where new connections lead."""
        self._server: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._port = 0
        self.loses = False
        """Whether what the gateway says is swallowed; the gateway does not notice."""
        self._lost = bytearray()
        self._swallowed = asyncio.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def appear(self) -> None:
        """Take connections, at the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def disappear(self) -> None:
        """Break all connections off, and take none."""
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Break all connections off, on both sides."""
        for pair in tuple(self._pairs):
            for writer in pair:
                writer.transport.abort()

    def cut_clients(self) -> None:
        """Break the clients' side off, and let the gateway believe that all is well."""
        for client, _ in tuple(self._pairs):
            client.transport.abort()

    async def swallowed(self, part: bytes) -> None:
        """Wait until this was among what was lost of the gateway's."""
        while part not in self._lost:
            self._swallowed.clear()
            await self._swallowed.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parts = urlsplit(self.gateway)
        try:
            there, onward = await asyncio.open_connection(parts.hostname, parts.port)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, onward)
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._carry(reader, onward), self._carry(there, writer, from_gateway=True))
        finally:
            self._pairs.discard(pair)
            for end in pair:
                end.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_gateway: bool = False) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if from_gateway and self.loses:
                    self._lost += data
                    self._swallowed.set()
                    continue
                writer.write(data)
                await writer.drain()
        if not (from_gateway and self.loses):
            with suppress(ConnectionError, OSError):
                writer.close()


@asynccontextmanager
async def between(gateway: str) -> AsyncIterator[Between]:
    proxy = Between(gateway)
    await proxy.appear()
    try:
        yield proxy
    finally:
        await proxy.disappear()
