"""How ``elastic-kernels up`` ends: nothing is left, whatever made it end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import pytest

from tests.gateway import until
from tests.lab.running import COMMAND, Up, lab_of, running_up


def living(processes: dict[int, str]) -> dict[int, str]:
    return {pid: command for pid, command in processes.items() if Path(f"/proc/{pid}/cmdline").exists()}


async def nothing_is_left(up: Up, processes: dict[int, str]) -> None:
    # orphans are reaped by the first process of the machine, in its own time
    await until(lambda: not living(processes), f"the end of {processes}", seconds=20)
    assert list(up.temporary.iterdir()) == []
    for port in up.ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, port


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_everything(tmp_path: Path, number: signal.Signals) -> None:
    with running_up(tmp_path) as up:
        async with lab_of(up) as lab:
            for path, code in (("busy.ipynb", "while True: pass"), ("idle.ipynb", "")):
                asked = {"path": path, "name": path, "type": "notebook", "kernel": {"name": "python-small"}}
                made = await lab.request("POST", "/api/sessions", asked, 201)
                async with lab.channels(made["kernel"]["id"]) as channels:
                    await channels.begin(code)
        processes = up.descendants()
        commands = "\n".join(processes.values())
        assert len(processes) >= 4, commands
        assert commands.count("elastic-kernels/kernel.json") == 2, commands
        exit_code, out, err = up.end(number)
        assert (exit_code, err) == (0, "")
        assert out.startswith("Ending      JupyterLab, kernels, gateway and cluster\nEnded       nothing is left (")
        await nothing_is_left(up, processes)


@pytest.mark.parametrize(("program", "name"), [("enterprise_gateway", "The gateway"), ("jupyter-lab", "JupyterLab")])
async def test_a_server_that_ends_by_itself_is_said_and_ends_everything(tmp_path: Path, program: str, name: str) -> None:
    with running_up(tmp_path) as up:
        processes = up.descendants()
        (pid,) = (pid for pid, command in processes.items() if program in command)
        os.kill(pid, signal.SIGKILL)
        code, out, err = await asyncio.to_thread(up.ended)
        assert (code, out) == (1, "")
        assert err.startswith(f"elastic-kernels: {name} ended by itself (exit code -9).\nThe end of its log:\n")
        await nothing_is_left(up, processes)


async def test_without_lab_the_gateway_has_the_port(tmp_path: Path) -> None:
    with running_up(tmp_path, "--no-lab") as up:
        assert [line.split()[0] for line in up.lines] == ["Cluster", "Kernels", "Gateway", "Logs", "Gateway"]
        assert not any("jupyter-lab" in command for command in up.descendants().values())
        async with lab_of(up) as gateway:
            assert sorted((await gateway.request("GET", "/api/kernelspecs"))["kernelspecs"]) == [
                "python-gpu",
                "python-large",
                "python-small",
                "python-spot",
            ]


async def refused(*arguments: str) -> tuple[int | None, str]:
    """Run a command that cannot be begun and return its exit code and what it said."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(str(COMMAND), "up", *arguments, stdout=pipe, stderr=pipe)
    out, err = await asyncio.wait_for(process.communicate(), 30)
    assert out == b""
    return process.returncode, err.decode()


async def test_a_port_that_is_taken_is_said_before_anything_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert await refused("--port", str(port)) == (
            2,
            f"elastic-kernels: The port {port} of 127.0.0.1 cannot be used (Address already in use); name another with --port, or "
            "--port 0 for a free one.\n",
        )


async def test_a_cluster_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    code, err = await refused("--cluster", "current", "--port", "0")
    assert code == 2
    assert err.startswith("elastic-kernels: No Kubernetes cluster is configured: ")
    assert err.count("\n") == 1
