"""The connections to an API server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from elastic_kernels.cluster import Client

# of /proc/net/tcp: the kind of timer that probes a connection on which nothing comes, and how many hundredths of a second are left
PROBES = "02"
FIRST_PROBE = 15_00


def timer(local: int, remote: int) -> tuple[str, int]:
    """Return the timer of the connection between these two ports of this machine."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if [int(address.rpartition(":")[2], 16) for address in fields[1:3]] == [local, remote]:
            kind, _, left = fields[5].partition(":")
            return kind, int(left, 16)
    raise AssertionError(f"no connection from {local} to {remote}")


async def test_a_watch_notices_that_the_other_end_is_gone(tmp_path: Path) -> None:
    peers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer.get_extra_info("peername")[1])
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    (tmp_path / "kubeconfig").write_text(
        json.dumps(
            {
                "current-context": "there",
                "contexts": [{"name": "there", "context": {"cluster": "there", "user": "me"}}],
                "clusters": [{"name": "there", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "users": [{"name": "me", "user": {}}],
            }
        )
    )
    client = await Client.connect(kubeconfig=str(tmp_path / "kubeconfig"))
    async with server:
        async with client.watch("pods", "kernels", timeoutSeconds="300"):
            kind, left = timer(peers[0], port)
        await client.close()
    assert kind == PROBES
    assert left <= FIRST_PROBE
