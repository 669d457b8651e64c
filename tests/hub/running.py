"""A real JupyterHub as a child process, and what its users and its administrator ask it for."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from tests.gateway import until

CONFIGURATION = Path(__file__).with_name("jupyterhub_config.py")
START_SECONDS = 120.0
# of a hub, one after the other: where its users are, its own, its proxy's
PORTS = 3


class Hub:
    """A running hub."""

    def __init__(self, port: int, gateway: str, directory: Path, client: aiohttp.ClientSession) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.api = f"http://127.0.0.1:{port + 1}/hub/api"
        """Where the gateway asks, without the proxy between."""
        self.token, self.service_token = secrets.token_hex(16), secrets.token_hex(16)
        self._port, self._gateway, self._directory, self._client = port, gateway, directory, client
        self._process: asyncio.subprocess.Process | None = None

    @property
    def log(self) -> str:
        return (self._directory / "hub.log").read_text(errors="replace")

    async def start(self) -> None:
        """Start it, and return once it answers."""
        hub = Path(os.environ["ELASTIC_KERNELS_LAB"]).with_name("jupyterhub")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._directory),
            "TEST_DIRECTORY": str(self._directory),
            "TEST_PORT": str(self._port),
            "TEST_GATEWAY": self._gateway,
            "TEST_PASSWORD": "password",
            "TEST_TOKEN": self.token,
            "TEST_SERVICE_TOKEN": self.service_token,
        }
        with (self._directory / "hub.log").open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                str(hub),
                "--config",
                str(CONFIGURATION),
                env=environment,
                cwd=self._directory,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        await until(self._answers, f"the hub to answer; see {self._directory}", seconds=START_SECONDS)

    async def stop(self) -> None:
        """End it, its proxy and its users' servers."""
        assert self._process is not None
        self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), 30)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    async def ask(self, method: str, path: str, body: Any = None, *, token: str | None = None, base: str = "") -> tuple[int, Any]:
        """Return status and JSON of an answer, of the hub's API or of what is behind its proxy (``base``)."""
        headers = {"Authorization": f"token {token or self.token}"}
        url = (base or f"{self.address}/hub/api") + path
        async with self._client.request(method, url, json=body, headers=headers) as response:
            is_json = response.content_type == "application/json"
            return response.status, await response.json() if is_json else await response.text()

    async def server_of(self, user: str) -> Server:
        """Make a user, start their JupyterLab server, and return it as that user reaches it."""
        assert (await self.ask("POST", f"/users/{user}"))[0] in (201, 409)
        assert (await self.ask("POST", f"/users/{user}/server"))[0] in (201, 202)

        async def is_ready() -> bool:
            return bool((await self.ask("GET", f"/users/{user}"))[1]["servers"].get("", {}).get("ready"))

        await until(is_ready, f"{user}'s server", seconds=START_SECONDS)
        return Server(self, user, await self.token_of(user))

    async def token_of(self, user: str) -> str:
        """Return a new API token of a user."""
        status, body = await self.ask("POST", f"/users/{user}/tokens", {"note": "test"})
        assert status == 201, body
        return str(body["token"])

    async def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, self.log[-3000:]
        try:
            return (await self.ask("GET", "/"))[0] == 200
        except aiohttp.ClientError:
            return False


class Server:
    """One user's JupyterLab server, behind the hub's proxy."""

    def __init__(self, hub: Hub, user: str, token: str) -> None:
        self._hub, self.user, self.token = hub, user, token

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return status and JSON of an answer."""
        return await self._hub.ask(method, path, body, token=self.token, base=f"{self._hub.address}/user/{self.user}")


@asynccontextmanager
async def running_hub(directory: Path, port: int, gateway: str) -> AsyncIterator[Hub]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as client:
        hub = Hub(port, gateway, directory, client)
        await hub.start()
        try:
            yield hub
        finally:
            await hub.stop()
