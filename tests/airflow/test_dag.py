"""The DAG of examples/airflow, in a real Airflow, against a gateway; ``make test-airflow`` says where that Airflow is."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Backend, gateway_on, profile
from tests.gateway import PLUGGED_IN, Gateway
from tests.notebooks import lab_program, outputs, write

SECONDS = 240.0
TOKEN = "airflows-own"
EXAMPLES = Path(__file__).parents[2] / "examples" / "airflow"
RUN = """\
import json, sys
from datetime import datetime
from airflow.models import DagBag
bag = DagBag(sys.argv[1], include_examples=False)
assert not bag.import_errors, bag.import_errors
run = bag.get_dag("nightly_report").test(execution_date=datetime.fromisoformat(sys.argv[3]), run_conf=json.loads(sys.argv[2]))
print("STATES", run.state, *(task.state for task in run.get_task_instances()))
"""


@dataclass
class Airflow:
    """An Airflow with a database of its own, that reaches a gateway."""

    python: Path
    environment: dict[str, str]

    async def run(self, program: str, *arguments: str) -> str:
        """Run a program with Airflow's Python, and return what it said."""
        process = await asyncio.create_subprocess_exec(
            str(self.python),
            "-W",
            "ignore",
            "-c",
            program,
            *arguments,
            env=self.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(process.communicate(), SECONDS)
        assert process.returncode == 0, out.decode()
        return out.decode()

    async def nightly_report(self, notebook: Path, day: str) -> tuple[list[str], str]:
        """Run the DAG; return the states of its run and its task, and what was logged."""
        conf = {"notebook": str(notebook), "user": "ana", "program": lab_program("elastic-kernels")}
        said = await self.run(RUN, str(EXAMPLES), json.dumps(conf), f"{day}T03:00:00+00:00")
        (states,) = [line.split()[1:] for line in said.splitlines() if line.startswith("STATES ")]
        return states, said


@pytest.fixture(scope="module")
async def airflow(backend: Backend, gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Airflow:
    python = os.environ.get("ELASTIC_KERNELS_AIRFLOW") or pytest.fail("ELASTIC_KERNELS_AIRFLOW is not set; 'make test-airflow' sets it.")
    home = tmp_path_factory.mktemp("airflow")
    connection = {"conn_type": "generic", "host": gateway.address, "password": TOKEN}
    environment = {
        "PATH": f"{Path(python).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        # whose modules can be imported from it
        "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLES),
        "AIRFLOW_CONN_ELASTIC_KERNELS": json.dumps(connection),
    }
    made = Airflow(Path(python), environment)
    await made.run("from airflow.utils.db import initdb; initdb()")
    return made


@pytest.fixture(scope="module")
async def gateway(backend: Backend, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    directory = tmp_path_factory.mktemp("gateway")
    service = {"tokens": [f"sha256:{hashlib.sha256(TOKEN.encode()).hexdigest()}"], "users": ["ana"], "limit_class": "scheduled"}
    (directory / "services.yaml").write_text(json.dumps({"services": {"airflow": service}}))
    environment = {
        "ELASTIC_KERNELS_IDENTITY": "service",
        "ELASTIC_KERNELS_SERVICES_FILE": str(directory / "services.yaml"),
        "ELASTIC_KERNELS_MAX_KERNELS_PER_CLASS": "interactive=2,scheduled=1",
    }
    volumes = [{"name": "notebooks", "mount_path": str(folder), "source": {"hostPath": {"path": str(folder)}}}]
    profiles = {"small": profile("small", volumes=volumes)}
    async with gateway_on(backend, directory, profiles, environment=environment, configuration=PLUGGED_IN) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


async def test_the_night_of_a_good_notebook(airflow: Airflow, folder: Path) -> None:
    notebook = write(folder / "report.ipynb", "import os; print(day, os.environ['KERNEL_USERNAME'], os.getcwd())")
    states, said = await airflow.nightly_report(notebook, "2026-11-24")
    assert states == ["success", "success"], said
    assert outputs(folder / "report.2026-11-24.ipynb")[-1] == f"2026-11-24 ana {folder}\n"


async def test_a_cell_that_fails_is_not_tried_again(airflow: Airflow, folder: Path) -> None:
    states, said = await airflow.nightly_report(write(folder / "bad.ipynb", "raise ValueError('no rows')"), "2026-11-25")
    assert states == ["failed", "failed"], said
    assert "ValueError: no rows" in said
    assert TOKEN not in said
