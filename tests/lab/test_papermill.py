"""A notebook on a schedule, as a scheduler runs it: papermill and ``elastic-kernels run`` against a gateway, from another environment."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Backend
from tests.gateway import until
from tests.notebooks import executed, lab_program
from tests.schedule import ANA, SERVICE, TOKEN, Ended, Schedule, ended, outputs, said, says, waits

pytestmark = pytest.mark.usefixtures("nothing_is_left")


async def test_papermill_with_parameters_and_a_module_beside_the_notebook(schedule: Schedule) -> None:
    cell = "import helper, os\nprint(helper.twice(x), os.environ['KERNEL_USERNAME'], os.getcwd())"
    notebook = schedule.write("good.ipynb", cell, parameters="x = 1")
    run = await schedule.papermill(notebook, "-p", "x", "21", **ANA)
    assert run.code == 0, run
    assert outputs(notebook) == ["", "", f"42 ana {schedule.folder}\n"]


async def test_the_readmes_examples(schedule: Schedule) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    ((?:elastic-kernels run|papermill) .*)$", readme, re.M)
    (call,) = re.findall(r"^papermill\.execute_notebook\(.*\)$", readme, re.M)
    schedule.write("report.ipynb", "print(day)", parameters="day = None")
    for command, output in zip(commands, ("report.executed.ipynb", "out.ipynb"), strict=True):
        run = await schedule.run(*command.split(), folder=str(schedule.folder), **SERVICE)
        assert run.code == 0, run
        assert "2026-11-24\\n" in (schedule.folder / output).read_text()
    (schedule.folder / "out.ipynb").unlink()
    run = await schedule.run("python", "-c", f"import papermill\n{call}", folder=str(schedule.folder), **SERVICE)
    assert run.code == 0, run
    assert "2026-11-24\\n" in (schedule.folder / "out.ipynb").read_text()


async def test_the_command_does_the_same(schedule: Schedule) -> None:
    notebook = schedule.write("command.ipynb", "import helper\nhelper.twice(x), y, z", parameters="x = y = z = None")
    parameters = schedule.folder / "parameters.yaml"
    parameters.write_text("{x: 1, z: [a]}")
    run = await schedule.run("elastic-kernels", "run", str(notebook), "-p", "x", "2", "-r", "y", "2", "-f", str(parameters), **ANA)
    assert (run.code, run.out) == (0, f"{executed(notebook)}\n"), run
    assert outputs(notebook)[-1] == "(4, '2', ['a'])"
    # nothing is said of a start that takes but a moment
    assert "waiting for the kernel (0 s)" not in run.err


async def test_the_first_cell_that_fails_ends_the_run(schedule: Schedule) -> None:
    notebook = schedule.write("bad.ipynb", "1", "raise ValueError('no such day')", "print('never')")
    run = await schedule.papermill(notebook, **ANA)
    assert run.code == 1, run
    assert run.err.rstrip().endswith("ValueError: no such day")
    assert "papermill.exceptions.PapermillExecutionError" in run.err
    assert outputs(notebook) == ["1", "ValueError: no such day", ""]
    assert "An Exception was encountered at" in executed(notebook).read_text()
    own = await schedule.run("elastic-kernels", "run", str(notebook), **ANA)
    assert own.code == 1, own
    assert "ValueError: no such day" in own.err
    assert "Traceback (most recent call last)" not in own.err.replace("ValueError                                Traceback", "")


async def test_a_service_runs_anas_notebook_while_she_has_two_open(schedule: Schedule, backend: Backend) -> None:
    notebook = schedule.write("night.ipynb", f"import os; print(os.environ['KERNEL_USERNAME'])\n{waits('night was seen')}")
    async with schedule.open_notebooks(2), schedule.begun("elastic-kernels", "run", str(notebook), **SERVICE) as process:
        running = (await schedule.started(3))[-1]
        (pod,) = await backend.pods(running["id"])
        assert pod["metadata"]["labels"]["elastic-kernels/limit-class"] == "scheduled"
        assert pod["metadata"]["annotations"]["elastic-kernels/user"] == "ana"
        assert pod["metadata"]["annotations"]["elastic-kernels/service"] == "airflow"
        schedule.touch("night was seen")
        run = await ended(process)
    assert run.code == 0, run
    assert outputs(notebook) == ["ana\n"]


async def test_the_second_of_one_waits_for_the_first(schedule: Schedule) -> None:
    first = schedule.write("first.ipynb", waits("second waits"))
    second = schedule.write("second.ipynb", "print('after')")
    async with schedule.begun("elastic-kernels", "run", str(first), **SERVICE) as one:
        await schedule.started()
        refused = await schedule.run("elastic-kernels", "run", str(second), "--wait", "0", **SERVICE)
        assert refused.code == 75, refused
        assert refused.err.splitlines()[-1].startswith("elastic-kernels: You have 1 of 1 scheduled kernels: 'Small' (first.ipynb, since ")
        async with schedule.begun("elastic-kernels", "run", str(second), **SERVICE) as two:
            await said(two, "You have 1 of 1 scheduled kernels")
            schedule.touch("second waits")
            assert (await ended(one)).code == 0
            assert (await ended(two)).code == 0
    assert outputs(second) == ["after\n"]


async def test_a_user_chooses_another_limit_only_where_an_operator_opened_it(schedule: Schedule, backend: Backend) -> None:
    notebook = schedule.write("own.ipynb", waits("own was seen"))
    async with schedule.open_notebooks(2):
        refused = await schedule.run("elastic-kernels", "run", str(notebook), "--wait", "0", **ANA)
        assert refused.code == 75, refused
        assert "You have 2 of 2 interactive kernels: 'Small'" in refused.err
        async with schedule.begun("elastic-kernels", "run", str(notebook), "--profile", "opened", **ANA) as process:
            running = (await schedule.started(3))[-1]
            (pod,) = await backend.pods(running["id"])
            assert pod["metadata"]["labels"]["elastic-kernels/limit-class"] == "scheduled"
            schedule.touch("own was seen")
            assert (await ended(process)).code == 0


WRONG: list[tuple[str, str | None, list[str], int, str]] = [
    ("unknown", None, ["--profile", "huge"], 1, "has no profile 'huge': there are crowded, missing, opened, silent, slow, small."),
    ("none", "no kernel", [], 2, "names no kernel: name a profile with --profile."),
    ("broken", "{", [], 2, "cannot be read: Notebook does not appear to be JSON: '{'."),
    ("gone", "", [], 2, "cannot be read: No such file or directory."),
    ("missing", None, ["--profile", "missing"], 1, "The kernel 'missing' cannot start: its image "),
    ("folder", None, ["--output", "/nowhere/out.ipynb"], 1, "output folder /nowhere doesn't exist."),
    ("yaml", None, ["-y", "["], 2, "--parameters-yaml is not YAML"),
    ("address", None, ["--gateway", "gateway:8888"], 2, "'gateway:8888' is not the address of a gateway"),
]


async def test_what_can_be_wrong_is_said_in_a_sentence(schedule: Schedule) -> None:
    async def run(name: str, text: str | None, arguments: list[str]) -> Ended:
        notebook = schedule.write(f"{name}.ipynb", "1", kernel=None if text == "no kernel" else "small")
        if text == "":
            notebook.unlink()
        elif text == "{":
            notebook.write_text(text)
        return await schedule.run("elastic-kernels", "run", str(notebook), *arguments, **ANA)

    runs = await asyncio.gather(*(run(name, text, arguments) for name, text, arguments, _, _ in WRONG))
    for ended_, (_, _, _, code, sentence) in zip(runs, WRONG, strict=True):
        assert ended_.code == code, ended_
        assert sentence in ended_.err.splitlines()[-1]
        assert "Traceback" not in ended_.err


async def test_a_notebook_without_a_cell_for_parameters(schedule: Schedule) -> None:
    notebook = schedule.write("plain.ipynb", "x")
    run = await schedule.run("elastic-kernels", "run", str(notebook), "-p", "x", "5", **ANA)
    assert run.code == 0, run
    assert "Input notebook does not contain a cell with tag 'parameters'" in run.err
    assert outputs(notebook) == ["", "5"]


async def test_a_token_that_is_none(schedule: Schedule) -> None:
    notebook = schedule.write("token.ipynb", "1")
    run = await schedule.run("elastic-kernels", "run", str(notebook), JUPYTER_GATEWAY_AUTH_TOKEN="wrong")
    assert (run.code, run.err.splitlines()[-1]) == (
        1,
        "elastic-kernels: The token that came with the request is none of this gateway's services'.",
    )


async def test_a_start_that_fails_in_passing_is_tried_again(schedule: Schedule) -> None:
    notebook = schedule.write("crowded.ipynb", "1", kernel="crowded")
    run = await schedule.run("elastic-kernels", "run", str(notebook), "--retries", "1", **ANA)
    assert run.code == 75, run
    sentence = "The kernel 'crowded' was not ready within 3 seconds: no machine fits it so far"
    # its status, which is asked for once a second, may have said it as well before the answer came
    assert len([line for line in run.err.splitlines() if sentence in line and not line.startswith("crowded: ")]) == 2
    assert "crowded: no machine fits it so far: not enough cpu is free" in run.err


@pytest.mark.parametrize("program", ["elastic-kernels", "papermill"])
async def test_who_ends_a_run_ends_its_kernel(schedule: Schedule, program: str) -> None:
    async def stopped(number: signal.Signals) -> Ended:
        begun = f"{program} {number.name}"
        notebook = schedule.write(f"{begun}.ipynb", f"{says(begun)}\n{waits('never')}")
        papermill = ("--engine", "elastic-kernels", str(notebook), str(executed(notebook)))
        async with schedule.begun(program, *(papermill if program == "papermill" else ("run", str(notebook))), **ANA) as process:
            await schedule.seen(begun)
            process.send_signal(number)
            return await ended(process)

    interrupted, terminated = await asyncio.gather(stopped(signal.SIGINT), stopped(signal.SIGTERM))
    assert (interrupted.code, terminated.code) == (1 if program == "papermill" else 130, 143), (interrupted, terminated)
    for run in (interrupted, terminated):
        assert program == "papermill" or "Traceback" not in run.err
        assert "Task was destroyed" not in run.err


async def test_who_ends_a_start_ends_its_kernel(schedule: Schedule, backend: Backend) -> None:
    notebook = schedule.write("slow.ipynb", "1", kernel="slow")
    async with schedule.begun("elastic-kernels", "run", str(notebook), **ANA) as process:
        await schedule.seen("slow begun")
        process.send_signal(signal.SIGINT)
        assert (await ended(process)).code == 130
    await until(backend.is_empty, "the pod to go", seconds=20)


async def test_much_output_and_an_error_that_is_not_shown(schedule: Schedule) -> None:
    """An error in the reply is enough: kernels may publish none."""
    cell = "print('x' * 4_000_000)\nget_ipython()._showtraceback = lambda *_: None\nraise ValueError('unseen')"
    notebook = schedule.write("much.ipynb", cell)
    run = await schedule.papermill(notebook, **ANA)
    assert run.code == 1, run
    assert "papermill.exceptions.PapermillExecutionError" in run.err
    assert outputs(notebook) == ["x" * 4_000_000 + "\nValueError: unseen"]


async def test_a_cell_that_takes_too_long(schedule: Schedule) -> None:
    notebook = schedule.write("endless.ipynb", f"print('it runs', flush=True)\n{waits('never')}")
    run = await schedule.run("elastic-kernels", "run", str(notebook), "--execution-timeout", "4", **ANA)
    assert run.code == 1, run
    assert "A cell timed out while it was being executed, after 4 seconds." in run.err.splitlines()[-1]
    assert outputs(notebook) == ["it runs\n"]


async def test_a_cell_that_asks_for_input(schedule: Schedule) -> None:
    notebook = schedule.write("input.ipynb", "input('Name? ')")
    run = await schedule.papermill(notebook, **ANA)
    assert run.code == 1, run
    assert outputs(notebook)[0].startswith("StdinNotImplementedError")


def example() -> Any:
    """Return the module of examples/airflow that needs no Airflow."""
    path = Path(__file__).parents[2] / "examples" / "airflow" / "notebook_task.py"
    spec = importlib.util.spec_from_file_location("notebook_task", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_example_tells_what_may_pass_from_what_does_not(schedule: Schedule, capfd: pytest.CaptureFixture[str]) -> None:
    module = example()
    program = lab_program("elastic-kernels")

    async def task(notebook: Path, **parameters: object) -> None:
        more = {"user": "ana", "gateway": schedule.gateway.address, "token": TOKEN, "program": program, "parameters": parameters}
        await asyncio.to_thread(module.run_notebook, str(notebook), str(executed(notebook)), **more)

    good = schedule.write("task.ipynb", "print(repr(day), count)")
    await task(good, day="24", count=2)
    assert outputs(good)[-1] == "'24' 2\n"
    with pytest.raises(module.NotebookFailedError, match=r"The cell 1 of .*failing.ipynb failed"):
        await task(schedule.write("failing.ipynb", "1/0"))
    with pytest.raises(module.NotebookLaterError, match="the kernel has ended"):
        await task(schedule.write("dying.ipynb", "import os; os._exit(1)"))
    assert "ZeroDivisionError" in capfd.readouterr().out
