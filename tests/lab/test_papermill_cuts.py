"""A run whose gateway goes away, or whose kernel does: it goes on where it can, says what is lost, and never hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.between import between
from tests.gateway import PLUGGED_IN, SECONDS, Gateway, free_port, running_gateway, until
from tests.schedule import ANA, Schedule, ended, outputs, printed, said, says, waits

pytestmark = pytest.mark.usefixtures("nothing_is_left")


async def test_a_connection_that_is_cut_comes_back_and_nothing_is_lost(schedule: Schedule) -> None:
    numbers = "for number in range({}, {}):\n    print(number, flush=True)\n"
    cell = f"{numbers.format(0, 100)}{waits('it is cut')}\n{numbers.format(100, 200)}{says('at 200')}\n{numbers.format(200, 300)}"
    notebook = schedule.write("cut.ipynb", cell, "print('next')")
    async with schedule.through_a_proxy(notebook) as (proxy, process):
        await printed(process, "99")
        await proxy.disappear()
        await until(schedule.is_alone, "the gateway to notice")
        schedule.touch("it is cut")
        await schedule.seen("at 200")
        await proxy.appear()
        run = await ended(process)
    assert run.code == 0, run
    assert outputs(notebook) == ["".join(f"{number}\n" for number in range(300)), "next\n"]
    assert "The gateway is there again; the run goes on." in run.err


async def test_output_that_is_lost_is_missed(schedule: Schedule) -> None:
    """What was on its way when the connection was cut is gone: the notebook says so, where it is missing."""
    cell = f"print('one', flush=True)\n{waits('say two')}\nprint('two', flush=True)\n{waits('say three')}\nprint('three')"
    notebook = schedule.write("missing output.ipynb", cell)
    async with schedule.through_a_proxy(notebook) as (proxy, process):
        await printed(process, "one")
        proxy.loses = True
        schedule.touch("say two")
        # and not merely an answer to whether the kernel is still there
        await asyncio.wait_for(proxy.swallowed(b'"two'), SECONDS)
        proxy.cut_clients()
        proxy.loses = False
        await said(process, "the run goes on")
        schedule.touch("say three")
        run = await ended(process)
    assert run.code == 0, run
    missing = "The connection to the gateway was cut here, and a part of what the kernel said is missing."
    assert outputs(notebook) == [f"one\n{missing}\nthree\n"]


async def test_a_cell_that_ended_while_the_gateway_was_away(schedule: Schedule) -> None:
    cell = f"print('it runs', flush=True)\n{waits('gateway is away')}\nprint('over')\n{says('is over')}\n1/0"
    notebook = schedule.write("ended.ipynb", cell, "print('never')")
    async with schedule.through_a_proxy(notebook) as (proxy, process):
        await printed(process, "it runs")
        await proxy.disappear()
        await until(schedule.is_alone, "the gateway to notice")
        schedule.touch("gateway is away")
        await schedule.seen("is over")
        await proxy.appear()
        run = await ended(process)
    assert run.code == 1, run
    assert outputs(notebook) == ["it runs\nover\nZeroDivisionError: division by zero", ""]


async def test_a_result_that_is_lost_is_noticed(schedule: Schedule) -> None:
    """Something between swallows the reply, and both ends believe that all is well: the run ends with a sentence, and does not hang."""
    cell = f"print('it runs', flush=True)\n{waits('nothing comes back')}\nprint('over')"
    notebook = schedule.write("lost.ipynb", cell, "print('never')")
    async with schedule.through_a_proxy(notebook) as (proxy, process):
        await printed(process, "it runs")
        proxy.loses = True
        schedule.touch("nothing comes back")

        async def is_idle() -> bool:
            return bool((await schedule.kernels())[0]["execution_state"] == "idle")

        await until(is_idle, "the cell's end")
        await asyncio.wait_for(proxy.swallowed(b'"execute_reply"'), SECONDS)
        proxy.cut_clients()
        proxy.loses = False
        run = await ended(process)
    assert run.code == 138, run
    sentence = (
        "Cell 1 has no result: the cell's result was lost when the connection to the gateway was cut; whether it succeeded is not known."
    )
    assert f"elastic-kernels: {sentence}" in run.err.splitlines()[-1]
    assert outputs(notebook) == [f"it runs\nKernelLostError: {sentence}", ""]


async def test_a_gateway_that_is_away_at_the_start(schedule: Schedule) -> None:
    notebook = schedule.write("away.ipynb", "print('here')")
    nowhere = f"http://127.0.0.1:{free_port()}"
    run = await schedule.run("elastic-kernels", "run", str(notebook), "--away", "2", gateway=nowhere, **ANA)
    assert (run.code, run.err.splitlines()[-1]) == (75, f"elastic-kernels: The gateway {nowhere} does not answer (nothing listens there).")
    async with between(schedule.gateway.address) as proxy:
        await proxy.disappear()
        async with schedule.begun("elastic-kernels", "run", str(notebook), gateway=proxy.address, **ANA) as process:
            await said(process, "does not answer")
            await proxy.appear()
            run = await ended(process)
    assert run.code == 0, run
    assert outputs(notebook) == ["here\n"]


async def test_a_gateway_that_does_not_come_back(schedule: Schedule) -> None:
    notebook = schedule.write("forever.ipynb", f"{says('forever')}\n{waits('never')}")
    async with between(schedule.gateway.address) as proxy:
        async with schedule.begun("elastic-kernels", "run", str(notebook), "--away", "2", gateway=proxy.address, **ANA) as process:
            await schedule.seen("forever")
            await proxy.disappear()
            run = await ended(process)
        await proxy.appear()
    (kernel,) = await schedule.kernels()
    assert run.code == 138, run
    assert "the gateway did not come back within 2 seconds" in run.err.splitlines()[-1]
    assert f"The kernel {kernel['id']} could not be shut down" in run.err
    await schedule.shut_down(kernel["id"])


@asynccontextmanager
async def another_gateway(schedule: Schedule, directory: Path) -> AsyncIterator[Gateway]:
    (directory / "kernels").symlink_to(schedule.gateway.directory / "kernels")
    async with running_gateway(directory, schedule.environment, configuration=PLUGGED_IN) as gateway:
        yield gateway


async def test_a_gateway_that_is_killed_and_another_one_that_goes_on(schedule: Schedule, tmp_path: Path) -> None:
    ticking = waits("another is there").replace("    time", "    print('tick', flush=True)\n    time")
    notebook = schedule.write("killed.ipynb", f"x = 1\n{ticking}\nprint('over')", "print(x)")
    async with (
        another_gateway(schedule, tmp_path) as first,
        between(first.address) as proxy,
        schedule.begun("elastic-kernels", "run", str(notebook), "--log-output", gateway=proxy.address, **ANA) as process,
    ):
        await printed(process, "tick")
        first.kill()
        await said(process, "does not answer")
        proxy.gateway = schedule.gateway.address
        await said(process, "the run goes on")
        # by then the other gateway is connected to the kernel
        await printed(process, "tick")
        schedule.touch("another is there")
        run = await ended(process)
    assert run.code == 0, run
    first_cell, second_cell = outputs(notebook)
    assert first_cell.endswith("tick\nover\n")
    assert "a part of what the kernel said is missing" in first_cell
    assert second_cell == "1\n"


async def test_a_cell_that_ended_while_no_gateway_was_there(schedule: Schedule, tmp_path: Path) -> None:
    cell = f"{says('dies runs')}\n{waits('none is there')}\n{says('dies is over')}"
    notebook = schedule.write("nobody.ipynb", cell, "print('never')")
    async with (
        another_gateway(schedule, tmp_path) as first,
        between(first.address) as proxy,
        schedule.begun("elastic-kernels", "run", str(notebook), gateway=proxy.address, **ANA) as process,
    ):
        await schedule.seen("dies runs")
        first.kill()
        await said(process, "does not answer")
        schedule.touch("none is there")
        await schedule.seen("dies is over")
        proxy.gateway = schedule.gateway.address
        run = await ended(process)
    assert run.code == 138, run
    assert "Cell 1 has no result: the cell's result was lost" in run.err


async def test_a_kernel_that_dies(schedule: Schedule) -> None:
    notebook = schedule.write("dies.ipynb", "import os; os._exit(1)", "print('never')")
    run = await schedule.papermill(notebook, **ANA)
    assert run.code == 138, run
    assert outputs(notebook)[0].startswith("The kernel has ended and is started again")
    assert "\nKernelLostError: Cell 1 has no result: the kernel has ended and is started again" in outputs(notebook)[0]
    assert outputs(notebook)[0].endswith(": it ended with exit code 1.")
    assert outputs(notebook)[1] == ""


async def test_a_kernel_that_takes_connections_and_says_nothing(schedule: Schedule) -> None:
    notebook = schedule.write("silent.ipynb", "print('never')", kernel="silent")
    run = await schedule.papermill(notebook, **ANA)
    assert run.code == 138, run
    assert "Cell 1 has no result: the kernel takes connections and does not answer." in outputs(notebook)[0]


async def test_a_kernel_that_somebody_shuts_down(schedule: Schedule) -> None:
    notebook = schedule.write("shut.ipynb", f"{says('shut')}\n{waits('never')}")
    async with schedule.begun("elastic-kernels", "run", str(notebook), **ANA) as process:
        await schedule.seen("shut")
        (kernel,) = await schedule.kernels()
        await schedule.shut_down(kernel["id"])
        run = await ended(process)
    assert run.code == 138, run
    assert "the gateway does not know the kernel any more" in run.err.splitlines()[-1]
