"""A notebook on a schedule, as a scheduler runs it: papermill and ``elastic-kernels run`` against a gateway, from another environment."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import notebooks
from tests.between import between
from tests.conftest import Backend, gateway_on, profile
from tests.gateway import PLUGGED_IN, Gateway, free_port, running_gateway, until
from tests.notebooks import executed, lab_program

SECONDS = 90.0
TOKEN = "the-schedulers-own"
ANA = {"JUPYTER_GATEWAY_HEADERS": json.dumps({"X-Forwarded-User": "ana"})}
SERVICE = {"JUPYTER_GATEWAY_AUTH_TOKEN": TOKEN, "KERNEL_USERNAME": "ana"}

# a kernel that begins to start, and never comes to its end
SLOW = 'cd "$0"; touch "slow begun"; exec sleep 600'


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
                await self.gateway.request("DELETE", f"/api/kernels/{body['id']}", headers=headers)


def says(name: str) -> str:
    """Return a line of a cell that makes a file."""
    return f"open({name!r}, 'w').close()"


def waits(name: str) -> str:
    """Return lines of a cell that wait for a file."""
    return f"import os, time\nwhile not os.path.exists({name!r}):\n    time.sleep(0.05)"


def outputs(notebook: Path) -> list[str]:
    """Return what each code cell put out, in the executed notebook."""
    return notebooks.outputs(executed(notebook))


async def said(process: asyncio.subprocess.Process, text: str) -> None:
    """Wait until a program says something on stderr."""
    assert process.stderr is not None
    async for line in process.stderr:
        if text in line.decode():
            return
    raise AssertionError(f"it never said {text!r}")


async def ended(process: asyncio.subprocess.Process) -> Ended:
    out, err = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


@pytest.fixture(scope="module")
async def schedule(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Schedule]:
    directory, folder = tmp_path_factory.mktemp("gateway"), tmp_path_factory.mktemp("work") / "notebooks"
    folder.mkdir()
    (folder / "helper.py").write_text("def twice(x):\n    return 2 * x\n")
    service = {"tokens": [f"sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}"], "users": ["ana"], "limit_class": "scheduled"}
    (directory / "services.yaml").write_text(json.dumps({"services": {"airflow": service}}))
    environment = {
        "ELASTIC_KERNELS_IDENTITY": "header,service",
        "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.1",
        "ELASTIC_KERNELS_SERVICES_FILE": str(directory / "services.yaml"),
        "ELASTIC_KERNELS_MAX_KERNELS_PER_CLASS": "interactive=2,scheduled=1",
    }
    volumes = [{"name": "notebooks", "mount_path": str(folder), "source": {"hostPath": {"path": str(folder)}}}]
    profiles = {
        "small": profile("small", display_name="Small", volumes=volumes, grace_period=1),
        "opened": profile("opened", limit_classes=["scheduled"], volumes=volumes, grace_period=1),
        "missing": profile("missing", image="registry.invalid/missing:1"),
        "slow": profile("slow", command=["sh", "-c", SLOW, str(folder), "{connection_file}"], volumes=volumes, grace_period=1),
        "crowded": profile("crowded", cpu="1000", launch_timeout=3),
    }
    async with gateway_on(backend, directory, profiles, environment=environment, configuration=PLUGGED_IN) as gateway:
        yield Schedule(gateway, folder, {**backend.environment, **environment})


@pytest.fixture(autouse=True)
async def _nothing_is_left(schedule: Schedule) -> AsyncIterator[None]:
    """Whatever happened to a run: its kernel is shut down."""
    yield

    async def none() -> bool:
        return not await schedule.kernels()

    await until(none, "the kernels to be shut down", seconds=20)


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
    assert "waiting for the kernel" not in run.err or "(1 s)" in run.err


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
    notebook = schedule.write("night.ipynb", "import os; print(os.environ['KERNEL_USERNAME'])\nimport time; time.sleep(1)")
    async with schedule.open_notebooks(2), schedule.begun("elastic-kernels", "run", str(notebook), **SERVICE) as process:
        running = (await schedule.started(3))[-1]
        (pod,) = await backend.pods(running["id"])
        assert pod["metadata"]["labels"]["elastic-kernels/limit-class"] == "scheduled"
        assert pod["metadata"]["annotations"]["elastic-kernels/user"] == "ana"
        assert pod["metadata"]["annotations"]["elastic-kernels/service"] == "airflow"
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
    notebook = schedule.write("own.ipynb", "import time; time.sleep(1)")
    async with schedule.open_notebooks(2):
        refused = await schedule.run("elastic-kernels", "run", str(notebook), "--wait", "0", **ANA)
        assert refused.code == 75, refused
        assert "You have 2 of 2 interactive kernels: 'Small'" in refused.err
        async with schedule.begun("elastic-kernels", "run", str(notebook), "--profile", "opened", **ANA) as process:
            running = (await schedule.started(3))[-1]
            (pod,) = await backend.pods(running["id"])
            assert pod["metadata"]["labels"]["elastic-kernels/limit-class"] == "scheduled"
            assert (await ended(process)).code == 0


WRONG: list[tuple[str, str | None, list[str], int, str]] = [
    ("unknown", None, ["--profile", "huge"], 1, "has no profile 'huge': there are crowded, missing, opened, slow, small."),
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
    assert run.err.count(sentence) == 2
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


async def test_a_connection_that_is_cut_comes_back_and_nothing_is_lost(schedule: Schedule) -> None:
    numbers = "for number in range({}, {}):\n    print(number, flush=True)\n"
    cell = f"{numbers.format(0, 100)}{waits('it is cut')}\n{numbers.format(100, 200)}{says('at 200')}\n{numbers.format(200, 300)}"
    notebook = schedule.write("cut.ipynb", cell, "print('next')")
    async with (
        between(schedule.gateway.address) as proxy,
        schedule.begun("elastic-kernels", "run", str(notebook), "--log-output", gateway=proxy.address, **ANA) as process,
    ):
        await said(process, "99")
        await proxy.disappear()
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
    async with (
        between(schedule.gateway.address) as proxy,
        schedule.begun("elastic-kernels", "run", str(notebook), "--log-output", gateway=proxy.address, **ANA) as process,
    ):
        await said(process, "one")
        proxy.loses = True
        lost = asyncio.ensure_future(proxy.swallowed())
        await asyncio.sleep(0)
        schedule.touch("say two")
        await lost
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
    async with (
        between(schedule.gateway.address) as proxy,
        schedule.begun("elastic-kernels", "run", str(notebook), "--log-output", gateway=proxy.address, **ANA) as process,
    ):
        await said(process, "it runs")
        await proxy.disappear()
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
    async with (
        between(schedule.gateway.address) as proxy,
        schedule.begun("elastic-kernels", "run", str(notebook), "--log-output", gateway=proxy.address, **ANA) as process,
    ):
        await said(process, "it runs")
        proxy.loses = True
        schedule.touch("nothing comes back")

        async def is_idle() -> bool:
            return bool((await schedule.kernels())[0]["execution_state"] == "idle")

        await until(is_idle, "the cell's end")
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
    await schedule.gateway.request("DELETE", f"/api/kernels/{kernel['id']}", headers={"X-Forwarded-User": "ana"})


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
        await said(process, "tick")
        first.kill()
        await said(process, "does not answer")
        proxy.gateway = schedule.gateway.address
        await said(process, "the run goes on")
        # by then the other gateway is connected to the kernel
        await said(process, "tick")
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


async def test_a_kernel_that_somebody_shuts_down(schedule: Schedule) -> None:
    notebook = schedule.write("shut.ipynb", f"{says('shut')}\n{waits('never')}")
    async with schedule.begun("elastic-kernels", "run", str(notebook), **ANA) as process:
        await schedule.seen("shut")
        (kernel,) = await schedule.kernels()
        await schedule.gateway.request("DELETE", f"/api/kernels/{kernel['id']}", headers={"X-Forwarded-User": "ana"})
        run = await ended(process)
    assert run.code == 138, run
    assert "the gateway does not know the kernel any more" in run.err.splitlines()[-1]


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
