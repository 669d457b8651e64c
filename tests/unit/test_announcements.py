"""Kernels that say that they listen: what the launcher sends is what the gateway believes, and nothing else is."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import elastic_launcher
import pytest

from elastic_kernels.cluster.announcements import Announcements, sign
from elastic_kernels.errors import ConfigurationError
from elastic_kernels.settings import ElasticKernels

POD = ("kernels", "ana-1")
KEY = "the key of the connection"


@pytest.fixture
async def announcements() -> AsyncIterator[Announcements]:
    opened = Announcements()
    await opened.open("auto", "https://127.0.0.1:6443")
    yield opened
    opened.close()


async def test_what_a_launcher_sends_is_believed(announcements: Announcements, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "kernel.json"
    file.write_text(json.dumps({"key": KEY}))
    told: asyncio.Queue[str] = asyncio.Queue()
    for name, value in {
        elastic_launcher.ANNOUNCE: announcements.address,
        "KERNEL_NAMESPACE": "kernels",
        "KERNEL_POD_NAME": "ana-1",
        "KERNEL_POD_IP": "127.0.0.3",
    }.items():
        monkeypatch.setenv(name, value)
    with announcements.expected(POD, KEY, told.put_nowait):
        elastic_launcher.announce(str(file))
        assert await asyncio.wait_for(told.get(), 10) == "127.0.0.3"
        # whom nobody waits for sends nothing
        elastic_launcher.announce(str(file))
    assert told.empty()


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b'{"pod": "kernels/ana-1"}',
        json.dumps({"pod": "kernels/ana-1", "address": "127.0.0.1", "mac": "\u00fc"}).encode(),
        json.dumps({"pod": "kernels/ana-1", "address": "127.0.0.1", "mac": sign("another", "kernels/ana-1", "127.0.0.1")}).encode(),
        # somebody else's address
        json.dumps({"pod": "kernels/ana-1", "address": "127.0.0.9", "mac": sign(KEY, "kernels/ana-1", "127.0.0.9")}).encode(),
        json.dumps({"pod": "kernels/bob-1", "address": "127.0.0.1", "mac": sign(KEY, "kernels/bob-1", "127.0.0.1")}).encode(),
    ],
)
async def test_nothing_else_is_believed(announcements: Announcements, message: bytes) -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    host, _, port = announcements.address.rpartition(":")
    good = json.dumps({"pod": "kernels/ana-1", "address": "127.0.0.1", "mac": sign(KEY, "kernels/ana-1", "127.0.0.1")}).encode()
    with announcements.expected(POD, KEY, told.put_nowait), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 0))
        for each in (message, good):
            sender.sendto(each, (host, int(port)))
        await asyncio.wait_for(told.get(), 10)
        # datagrams of one socket to another on this machine keep their order
        assert told.empty()


async def test_an_address_that_is_not_here_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    announcements = Announcements()
    await announcements.open("192.0.2.77", "")
    assert announcements.address == ""
    assert "Kernels cannot say at 192.0.2.77 that they listen" in caplog.text
    await announcements.open("", "https://127.0.0.1:6443")
    assert announcements.address == ""


@pytest.mark.parametrize("value", ["10.0.0.5", "10.0.0.5:8890", "[::1]:8890", "gateway", "auto", ""])
def test_addresses(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELASTIC_KERNELS_ANNOUNCE_ADDRESS", value)
    assert ElasticKernels().announce_address == value


@pytest.mark.parametrize("value", ["udp://10.0.0.5", "10.0.0.5:port", ":8890", "10.0.0.5/8"])
def test_what_is_no_address(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELASTIC_KERNELS_ANNOUNCE_ADDRESS", value)
    with pytest.raises(ConfigurationError, match="is not an address; write one such as"):
        ElasticKernels()
