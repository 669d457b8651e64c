"""``elastic-kernels up`` as somebody in a terminal runs it, and JupyterLab's API as a browser uses it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp

from tests.gateway import Channels

START_SECONDS = 120.0
END_SECONDS = 60.0
COMMAND = Path(sys.executable).with_name("elastic-kernels")


@dataclass
class Up:
    """A running ``elastic-kernels up``."""

    process: subprocess.Popen[str]
    temporary: Path
    """Where it makes its temporary directory."""
    lines: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        """What it told its user to open."""
        return str(self._said(r"(?:Open|Gateway) +(http://\S+token=\w+)"))

    @property
    def token(self) -> str:
        return parse_qs(urlsplit(self.address).query)["token"][0]

    @property
    def ports(self) -> list[int]:
        """Every port that it named."""
        return sorted({int(port) for port in re.findall(r"http://127\.0\.0\.1:(\d+)", "\n".join(self.lines))})

    def log(self, server: str) -> str:
        (path,) = self.temporary.glob(f"elastic-kernels-*/{server}.log")
        return path.read_text(errors="replace")

    def descendants(self) -> dict[int, str]:
        """Return the processes that it started and those that they started, with their command lines."""
        parents = {pid: parent for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if (parent := _parent(pid)) is not None}
        found = {self.process.pid}
        while new := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
            found |= new
        return {pid: _command(pid) for pid in found - {self.process.pid}}

    def end(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str, str]:
        """Send it a signal, and return its exit code and what it said from then on, on stdout and stderr."""
        self.process.send_signal(number)
        return self.ended()

    def ended(self) -> tuple[int, str, str]:
        """Wait for its end, and return as ``end`` does."""
        out, err = self.process.communicate(timeout=END_SECONDS)
        return self.process.returncode, out, err

    def _said(self, pattern: str) -> str:
        match = re.search(pattern, "\n".join(self.lines))
        assert match is not None, self.lines
        return match[1]


@contextmanager
def running_up(directory: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Up]:
    """Run ``elastic-kernels up`` until its address is there; kill what is left afterwards."""
    temporary = directory / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [str(COMMAND), "up", "--port", "0", *arguments],
        env={**os.environ, "TMPDIR": str(temporary), **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    up = Up(process, temporary)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            up.lines.append(line.rstrip("\n"))
            if "token=" in line:
                break
        else:
            raise AssertionError(f"it did not start: {up.lines} {process.communicate(timeout=END_SECONDS)}")
        yield up
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.communicate(timeout=END_SECONDS)
            finally:
                process.kill()


class Lab:
    """JupyterLab's own REST API and websockets, with the token that its address has."""

    def __init__(self, up: Up, client: aiohttp.ClientSession) -> None:
        self.up = up
        self._client = client
        self._root = "http://" + urlsplit(up.address).netloc

    async def request(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        """Return the JSON of an answer, which has to have this status."""
        async with self._client.request(method, self._root + path, json=body) as response:
            text = await response.text()
            assert response.status == status, (response.status, text, self.up.log("gateway"))
            return await response.json() if "json" in response.content_type else text

    @asynccontextmanager
    async def session(self, path: str, kernel: str) -> AsyncIterator[str]:
        """Open a notebook with a kernel, as a click on a card does; shut it down afterwards. The value is the kernel's id."""
        asked = {"path": path, "name": path, "type": "notebook", "kernel": {"name": kernel}}
        made = await self.request("POST", "/api/sessions", asked, 201)
        try:
            yield made["kernel"]["id"]
        finally:
            await self.request("DELETE", f"/api/sessions/{made['id']}", status=204)

    @asynccontextmanager
    async def channels(self, kernel_id: str, session: str = "") -> AsyncIterator[Channels]:
        """Open a websocket; one with a ``session`` of before goes on where that one ended."""
        async with self._client.ws_connect(self._channels(kernel_id, session or os.urandom(8).hex()), max_msg_size=0) as websocket:
            yield Channels(websocket)

    async def break_off(self, kernel_id: str, session: str) -> None:
        """Open a websocket, and break the connection off without a word as soon as it is accepted."""
        websocket = await self._client.ws_connect(self._channels(kernel_id, session))
        transport = websocket.get_extra_info("socket")
        transport.shutdown(socket.SHUT_RDWR)

    def _channels(self, kernel_id: str, session: str) -> str:
        return f"{self._root}/api/kernels/{kernel_id}/channels?session_id={session}"


@asynccontextmanager
async def lab_of(up: Up) -> AsyncIterator[Lab]:
    headers = {"Authorization": f"token {up.token}"}
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=START_SECONDS)) as client:
        yield Lab(up, client)


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""
