"""Notebooks on a schedule, as tests run them: a gateway that knows a scheduler, and programs in another environment."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import notebooks
from tests.between import Between, between
from tests.gateway import Gateway, until
from tests.notebooks import executed, lab_program

# of a program, on a machine that has much else to do; what hangs takes longer
SECONDS = 180.0
TOKEN = "the-schedulers-own"
ANA = {"JUPYTER_GATEWAY_HEADERS": json.dumps({"X-Forwarded-User": "ana"})}
SERVICE = {"JUPYTER_GATEWAY_AUTH_TOKEN": TOKEN, "KERNEL_USERNAME": "ana"}

LIMITED = {
    "ELASTIC_KERNELS_IDENTITY": "header,service",
    "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.1",
    "ELASTIC_KERNELS_MAX_KERNELS_PER_CLASS": "interactive=2,scheduled=1",
}

# a kernel that begins to start, and never comes to its end
SLOW = 'cd "$0"; touch "slow begun"; exec sleep 600'

# a kernel that takes connections, and says nothing
SILENT = """
import json, socket, sys, time
connection = json.load(open(sys.argv[1]))
servers = [socket.create_server((connection["ip"], port)) for name, port in connection.items() if name.endswith("_port")]
time.sleep(600)
"""


@dataclass
class Ended:
    """A program that has come to its end."""

    code: int
    out: str
    err: str


@dataclass
class Schedule:
    """A gateway, and a folder of notebooks that kernels see at the same path."""

    gateway: Gateway
    folder: Path
    environment: Mapping[str, str]
    """What another gateway of the same deployment needs."""

    def write(self, name: str, *cells: str, kernel: str | None = "small", parameters: str | None = None) -> Path:
        """Write a notebook into the folder."""
        return notebooks.write(self.folder / name, *cells, kernel=kernel, parameters=parameters)

    @asynccontextmanager
    async def begun(
        self, *command: str, gateway: str | None = None, folder: str | None = None, **environment: str
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """Begin a program of the lab's environment, in a folder of its own by default; one that still runs afterwards is killed."""
        own = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "JUPYTER_GATEWAY_URL": gateway or self.gateway.address}
        process = await asyncio.create_subprocess_exec(
            lab_program(command[0]),
            *command[1:],
            env={**own, **environment},
            cwd=folder or self.folder.parent,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                _, err = await process.communicate()
                # pytest shows it beside the failure
                sys.stderr.write(err.decode())

    @asynccontextmanager
    async def through_a_proxy(self, notebook: Path) -> AsyncIterator[tuple[Between, asyncio.subprocess.Process]]:
        """Begin a run whose way to the gateway can be cut."""
        async with between(self.gateway.address) as proxy:
            command = ("elastic-kernels", "run", str(notebook), "--log-output")
            async with self.begun(*command, gateway=proxy.address, **ANA) as process:
                yield proxy, process

    async def run(self, *command: str, gateway: str | None = None, folder: str | None = None, **environment: str) -> Ended:
        """Run a program to its end."""
        async with self.begun(*command, gateway=gateway, folder=folder, **environment) as process:
            return await ended(process)

    async def papermill(self, notebook: Path, *arguments: str, **environment: str) -> Ended:
        """Run a notebook with papermill's own command line."""
        command = ("papermill", "--engine", "elastic-kernels", str(notebook), str(executed(notebook)), "--no-progress-bar")
        return await self.run(*command, *arguments, **environment)

    async def seen(self, name: str) -> None:
        """Wait until a cell has made this file."""
        await until((self.folder / name).exists, name)

    def touch(self, name: str) -> None:
        """Make a file that a cell waits for."""
        (self.folder / name).touch()

    async def kernels(self) -> list[dict[str, Any]]:
        """Return ana's kernels."""
        return list((await self.gateway.request("GET", "/api/kernels", headers={"X-Forwarded-User": "ana"}))[1])

    async def is_alone(self) -> bool:
        """Tell whether nobody is connected to any of ana's kernels."""
        return not any(model["connections"] for model in await self.kernels())

    async def shut_down(self, kernel_id: str) -> None:
        """Shut a kernel of ana's down."""
        await self.gateway.request("DELETE", f"/api/kernels/{kernel_id}", headers={"X-Forwarded-User": "ana"})

    async def started(self, count: int = 1) -> list[dict[str, Any]]:
        """Wait until so many kernels of ana's run."""

        async def enough() -> list[dict[str, Any]] | None:
            found = await self.kernels()
            return found if len(found) >= count else None

        return list(await until(enough, f"{count} kernels"))

    @asynccontextmanager
    async def open_notebooks(self, count: int) -> AsyncIterator[None]:
        """Have so many kernels of ana's run, as if she had that many notebooks open."""
        headers = {"X-Forwarded-User": "ana"}
        answers = [await self.gateway.request("POST", "/api/kernels", {"name": "small", "env": {}}, headers=headers) for _ in range(count)]
        try:
            assert [status for status, _ in answers] == [201] * count, answers
            yield
        finally:
            for _, body in answers:
                await self.shut_down(body["id"])


def says(name: str) -> str:
    """Return a line of a cell that makes a file."""
    return f"open({name!r}, 'w').close()"


def waits(name: str) -> str:
    """Return lines of a cell that wait for a file."""
    return f"import os, time\nwhile not os.path.exists({name!r}):\n    time.sleep(0.05)"


def outputs(notebook: Path) -> list[str]:
    """Return what each code cell put out, in the executed notebook."""
    return notebooks.outputs(executed(notebook))


async def said(process: asyncio.subprocess.Process, part: str) -> None:
    """Wait until a line that a program says on stderr contains this."""
    await _line(process, lambda line: part in line, part)


async def printed(process: asyncio.subprocess.Process, output: str) -> None:
    """Wait until a cell's output, in ``--log-output``, has this line (all of it: ids of kernels have a 99 in them, too)."""
    await _line(process, lambda line: line == output, output)


async def _line(process: asyncio.subprocess.Process, is_it: Callable[[str], bool], what: str) -> None:
    assert process.stderr is not None
    async for line in process.stderr:
        if is_it(line.decode().rstrip()):
            return
    raise AssertionError(f"it never said {what!r}")


async def ended(process: asyncio.subprocess.Process) -> Ended:
    out, err = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


def with_a_scheduler(directory: Path) -> dict[str, str]:
    """Return the variables of a gateway that verifies users and a scheduler, whose token it finds in this folder."""
    service = {"tokens": [f"sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}"], "users": ["ana"], "limit_class": "scheduled"}
    (directory / "services.yaml").write_text(json.dumps({"services": {"airflow": service}}))
    return {**LIMITED, "ELASTIC_KERNELS_SERVICES_FILE": str(directory / "services.yaml")}
