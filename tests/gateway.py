"""A gateway as its users meet it: a stock ``jupyter enterprisegateway`` process, its REST API, its kernels' websockets."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from elastic_kernels.profiles import Profile, to_kernelspec

SECONDS = 60.0
# below those that the operating system gives to connections and to whoever asks for any, also between a port's choice and its use
PORTS = range(20000, 30000)


@dataclass
class Reply:
    """What one execution brought: the reply and everything that the kernel published on the way."""

    content: dict[str, Any]
    published: list[dict[str, Any]] = field(default_factory=list)

    @property
    def status(self) -> str:
        return str(self.content["status"])

    @property
    def text(self) -> str:
        """What the cell printed, and the plain text of what it displayed or returned."""
        parts = []
        for message in self.published:
            content = message["content"]
            if message["msg_type"] == "stream":
                parts.append(content["text"])
            elif message["msg_type"] in ("execute_result", "display_data"):
                parts.append(content["data"]["text/plain"])
        return "".join(parts)

    @property
    def result(self) -> str:
        """The plain text of what it returned, whatever else was said: what is to be said of a kernel goes to the cell that runs."""
        results = [message["content"]["data"] for message in self.published if message["msg_type"] == "execute_result"]
        return "".join(data["text/plain"] for data in results)


class Channels:
    """One websocket to a kernel, as JupyterLab opens it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse[Any]) -> None:
        self._socket = socket
        self.session = uuid.uuid4().hex
        self.reason = ""
        """Why the gateway closed the connection, in its words."""

    async def closed(self) -> int | None:
        """Wait until the gateway closes the connection, and return the code that it gives."""
        while not self._socket.closed:
            message = await self._socket.receive(timeout=SECONDS)
            if message.type is aiohttp.WSMsgType.CLOSE:
                self.reason = str(message.extra)
        return self._socket.close_code

    async def send(self, channel: str, kind: str, content: Mapping[str, Any]) -> str:
        identity = uuid.uuid4().hex
        header = {"msg_id": identity, "msg_type": kind, "username": "", "session": self.session, "date": "", "version": "5.3"}
        message = {"channel": channel, "header": header, "parent_header": {}, "metadata": {}, "content": content, "buffers": []}
        await self._socket.send_str(json.dumps(message))
        return identity

    async def receive(self) -> dict[str, Any]:
        message = await self._socket.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise ConnectionError(f"the websocket ended: {message}")
        return dict(json.loads(message.data))

    async def execute(self, code: str, *, answer: str | None = None, seconds: float = SECONDS) -> Reply:
        """Run a cell and return once both its reply and its idle status are there; ``answer`` is for a prompt on stdin."""
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": answer is not None}
        return await asyncio.wait_for(self.finish(await self.send("shell", "execute_request", content), answer), seconds)

    async def begin(self, code: str) -> str:
        """Begin a cell and return its identity once it is running: ``finish`` waits for its end."""
        code = f"print('begun', flush=True)\n{code}"
        identity = await self.send("shell", "execute_request", {"code": code, "silent": False, "allow_stdin": False})
        while (message := await self.receive())["msg_type"] != "stream" or message["parent_header"].get("msg_id") != identity:
            pass
        return identity

    async def finish(self, identity: str, answer: str | None = None) -> Reply:
        """Collect what belongs to the execution of ``identity``."""
        reply: dict[str, Any] | None = None
        published: list[dict[str, Any]] = []
        idle = False
        while reply is None or not idle:
            message = await self.receive()
            if message["parent_header"].get("msg_id") != identity:
                continue
            kind = message["msg_type"]
            if kind == "execute_reply":
                reply = message["content"]
            elif kind == "input_request":
                await self.send("stdin", "input_reply", {"value": answer})
            elif kind == "status":
                idle = idle or message["content"]["execution_state"] == "idle"
            else:
                published.append(message)
        return Reply(reply, published)


STOCK = (sys.executable, "-m", "enterprise_gateway")
PLUGGED_IN = "from elastic_kernels.gateway import configure\nconfigure(get_config())\n"


def impatient(seconds: float) -> str:
    """Return the configuration of a gateway that is plugged in, and waits so long for a kernel to say something, in place of 60 s."""
    return f"{PLUGGED_IN}get_config().MappingKernelManager.kernel_info_timeout = {seconds}\n"


class Gateway:
    """A running gateway and a client of its REST API."""

    def __init__(self, address: str, client: aiohttp.ClientSession, log: Path, process: asyncio.subprocess.Process | None = None) -> None:
        self.address = address
        self.process = process
        self.directory = log.parent
        self._client = client
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """End it as a machine does that fails."""
        assert self.process is not None
        self.process.kill()

    async def killed(self) -> None:
        """End it as a machine does that fails, and wait for its end."""
        self.kill()
        assert self.process is not None
        await asyncio.wait_for(self.process.wait(), SECONDS)

    async def terminate(self) -> None:
        """End it as an operator does, and wait for its end."""
        assert self.process is not None
        self.process.terminate()
        await asyncio.wait_for(self.process.wait(), SECONDS)

    async def request(self, method: str, path: str, body: Any = None, *, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
        """Return status and JSON body of an answer (None for an empty one)."""
        async with self._client.request(method, self.address + path, json=body, headers=headers) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None

    async def start(self, kernel: str, **environment: str) -> str:
        """Start a kernel as user ana and return its id."""
        status, body = await self.request("POST", "/api/kernels", {"name": kernel, "env": {"KERNEL_USERNAME": "ana", **environment}})
        assert status == 201, body
        return str(body["id"])

    async def refused(self, kernel: str, **environment: str) -> tuple[int, str]:
        """Start a kernel that cannot start, and return status and sentence."""
        status, body = await self.request("POST", "/api/kernels", {"name": kernel, "env": {"KERNEL_USERNAME": "ana", **environment}})
        assert status >= 400, body
        assert "traceback" not in body, body
        return status, body["message"]

    async def stop(self, kernel_id: str) -> None:
        status, body = await self.request("DELETE", f"/api/kernels/{kernel_id}")
        assert status == 204, body

    @asynccontextmanager
    async def channels(self, kernel_id: str, *, headers: Mapping[str, str] | None = None, session: str = "") -> AsyncIterator[Channels]:
        """Yield a websocket, of a session of its own unless one is given."""
        url = f"{self.address}/api/kernels/{kernel_id}/channels?session_id={session or uuid.uuid4().hex}"
        async with self._client.ws_connect(url, max_msg_size=0, headers=headers) as websocket:
            yield Channels(websocket)

    async def run(self, kernel_id: str, code: str) -> str:
        """Run one cell over a websocket of its own and return what it showed."""
        async with self.channels(kernel_id) as channels:
            reply = await channels.execute(code)
            assert reply.status == "ok", reply
            return reply.text


def write_kernelspecs(directory: Path, profiles: Mapping[str, Profile], raw: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Write profiles (and ``raw`` kernel.json contents) where a gateway with ``JUPYTER_PATH=directory`` finds them."""
    specs = {**{name: to_kernelspec(profile) for name, profile in profiles.items()}, **(raw or {})}
    for name, spec in specs.items():
        folder = directory / "kernels" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "kernel.json").write_text(json.dumps(spec))


@asynccontextmanager
async def running_gateway(
    directory: Path, environment: Mapping[str, str], *arguments: str, configuration: str = "", command: Sequence[str] = STOCK
) -> AsyncIterator[Gateway]:
    """Run a stock gateway whose kernelspecs are in ``directory``; end it, as an operator would, with SIGTERM.

    ``configuration`` is the text of its configuration file, ``PLUGGED_IN`` for one that our plug-in extends; ``command`` is another
    program than the stock one.
    """
    (directory / "config").mkdir(exist_ok=True)
    (directory / "config" / "jupyter_enterprise_gateway_config.py").write_text(configuration)
    port = free_port()
    log = directory / "gateway.log"
    own = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(directory),
        "JUPYTER_PATH": str(directory),
        "JUPYTER_CONFIG_DIR": str(directory / "config"),
        "JUPYTER_RUNTIME_DIR": str(directory / "runtime"),
        "EG_LIST_KERNELS": "True",
        # the profile decides what a client may set
        "EG_CLIENT_ENVS": "*",
        "EG_RESPONSE_PORT": str(free_port()),
        # whom kernels without KERNEL_USERNAME belong to; root, which may run this, is refused by default
        "LOGNAME": "gateway",
        # what must never be seen in a pod
        "GATEWAY_SECRET": "of the gateway",
    }
    command = [*command, f"--EnterpriseGatewayApp.port={port}", "--EnterpriseGatewayApp.ip=127.0.0.1"]
    # a kernel of this process's own machine would pass for a pod
    command += ["--EnterpriseGatewayApp.port_retries=0", "--KernelSpecManager.ensure_native_kernel=False", *arguments]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, env={**own, **environment}, stdout=output, stderr=output)
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as client:
            gateway = Gateway(f"http://127.0.0.1:{port}", client, log, process)
            await until(lambda: _answers(gateway, process), "the gateway to answer", seconds=60)
            yield gateway
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 60)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()
            raise


async def _answers(gateway: Gateway, process: asyncio.subprocess.Process) -> bool:
    assert process.returncode is None, gateway.log
    try:
        return (await gateway.request("GET", "/api/swagger.json"))[0] == 200
    except aiohttp.ClientConnectionError:
        return False


async def until(condition: Any, what: str, *, seconds: float = SECONDS) -> Any:
    """Wait until ``condition`` (awaitable results are awaited) is true and return its value; fail, naming ``what``, if it never is."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        await asyncio.sleep(0.05)


def free_port(neighbours: int = 0) -> int:
    """Return a port that is free, as are so many after it."""
    while True:
        port = random.choice(PORTS)
        with suppress(OSError):
            for each in range(port, port + neighbours + 1):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", each))
            return port
