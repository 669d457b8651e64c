"""A notebook on a schedule, on the real cluster: papermill and its engine, in the kernel's image, for a user who has all hers open."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cluster.scala_cells import CELLS, Cell
from tests.cluster.spark import SMALL, grant
from tests.cluster.test_scala import scala_profile
from tests.conftest import Backend, gateway_on, profile
from tests.gateway import PLUGGED_IN, Gateway, until
from tests.notebooks import executed, lab_program, outputs, write
from tests.schedule import ANA as AS_ANA
from tests.schedule import TOKEN, Schedule, with_a_scheduler

ANA = {"X-Forwarded-User": "ana"}
SECONDS = 180.0


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    directory = tmp_path_factory.mktemp("gateway")
    environment = with_a_scheduler(directory)
    await grant(backend.kubeconfig, backend.namespace)
    profiles = {
        "small": profile("small", display_name="Small"),
        "huge": profile("huge", memory="4Ti", launch_timeout=5),
        "in-scala": scala_profile("in-scala"),
        "on-executors": scala_profile("on-executors", spark={"executors": {**SMALL, "max": 1}}),
    }
    async with gateway_on(backend, directory, profiles, environment=environment, configuration=PLUGGED_IN) as running:
        yield running


async def begun(gateway: Gateway, *arguments: str | Path) -> asyncio.subprocess.Process:
    environment = {"PATH": os.environ["PATH"], "JUPYTER_GATEWAY_URL": gateway.address, "JUPYTER_GATEWAY_AUTH_TOKEN": TOKEN}
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        lab_program("elastic-kernels"), "run", *arguments, "--user", "ana", env=environment, stderr=pipe
    )


async def run(gateway: Gateway, *arguments: str | Path) -> tuple[int | None, str]:
    process = await begun(gateway, *arguments)
    _, said = await asyncio.wait_for(process.communicate(), SECONDS)
    return process.returncode, said.decode()


async def test_at_night_while_she_has_two_open(backend: Backend, gateway: Gateway, tmp_path: Path) -> None:
    starts = [gateway.request("POST", "/api/kernels", {"name": "small", "env": {}}, headers=ANA) for _ in range(2)]
    opened = [body["id"] for _, body in await asyncio.gather(*starts)]
    notebook = write(tmp_path / "night.ipynb", "import os\nprint(os.environ['KERNEL_USERNAME'], os.environ['KERNEL_POD_NAME'], day)")
    code, said = await run(gateway, notebook, "-p", "day", "24", "--log-output")
    assert code == 0, said
    (line,) = [line for line in said.splitlines() if line.startswith("ana ")]
    assert line.split()[1].startswith("ana-")
    assert line.endswith(" 24")
    code, said = await run(gateway, write(tmp_path / "bad.ipynb", "1", "1/0"))
    assert code == 1, said
    assert "ZeroDivisionError: division by zero" in said
    await asyncio.gather(*(gateway.request("DELETE", f"/api/kernels/{kernel}", headers=ANA) for kernel in opened))


async def test_what_cannot_be_had_now(gateway: Gateway, tmp_path: Path) -> None:
    code, said = await run(gateway, write(tmp_path / "huge.ipynb", "1", kernel="huge"), "--retries", "0")
    assert code == 75, said
    assert "The kernel 'huge' was not ready within 5 seconds: no machine fits it so far: not enough memory is free" in said


async def test_a_run_that_is_stopped_leaves_no_pod(backend: Backend, gateway: Gateway, tmp_path: Path) -> None:
    process = await begun(gateway, write(tmp_path / "long.ipynb", "print('it runs')\nimport time; time.sleep(600)"), "--log-output")
    assert process.stderr is not None
    async for line in process.stderr:
        if b"it runs" in line:
            break
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 143
    await until(backend.is_empty, "the pod and its record to go")


async def test_each_kind_of_failure_in_scala_ends_the_run(gateway: Gateway, tmp_path: Path) -> None:
    schedule = Schedule(gateway, tmp_path, {})
    kinds = [cell for cell in CELLS if cell.kind]
    assert len(kinds) >= 13
    # as many as ana may have at a time
    room = asyncio.Semaphore(2)

    async def wrong(number: int, cell: Cell, kernel: str) -> str:
        notebook = write(
            tmp_path / f"{number}.ipynb",
            "println(day)",
            cell.code,
            'println("never")',
            parameters="val day = 0",
            kernel=kernel,
            language="scala",
        )
        async with room:
            run = await schedule.papermill(notebook, "-p", "day", "24", **AS_ANA)
        # its number is another one here
        says = re.sub(r" \(cell .*", "", cell.says)
        *before, failing, after = outputs(executed(notebook))
        is_told = f"{cell.error}: " in failing and says in failing and f"{cell.error}: " in run.err
        is_right = run.code == 1 and is_told and before[-1] == "24\n" and after == ""
        return "" if is_right else f"{cell.kind} with {kernel}: {run}, {[*before, failing, after]}"

    runs = [(cell, "on-executors" if cell.kind == "a task of Spark" else "in-scala") for cell in kinds]
    found = await asyncio.gather(*(wrong(number, cell, kernel) for number, (cell, kernel) in enumerate(runs)))
    assert not any(found), "\n".join(found)
