"""What a module of tests has for itself: an ``elastic-kernels up``, or a gateway for notebooks on a schedule. What is left fails them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.conftest import Backend, gateway_on, profile
from tests.gateway import impatient, until
from tests.lab.running import Lab, Up, lab_of, running_up
from tests.schedule import SILENT, SLOW, Schedule, with_a_scheduler

PROFILES = """\
common:
  image: elastic-kernels/kernel-python:dev
  grace_period: 2
profiles:
  small: {display_name: Small and quick, memory: 512Mi}
  gpu: {display_name: With a GPU, gpu: 1, memory: 1Gi}
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    directory = tmp_path_factory.mktemp("up")
    (directory / "profiles.yaml").write_text(PROFILES)
    notebooks = directory / "notebooks"
    notebooks.mkdir()
    with running_up(directory, "--profiles", str(directory / "profiles.yaml"), "--notebooks", str(notebooks)) as running:
        yield running
        assert running.end()[0] == 0
        assert list(running.temporary.iterdir()) == []


@pytest.fixture(scope="module")
async def lab(up: Up) -> AsyncIterator[Lab]:
    async with lab_of(up) as client:
        yield client


@pytest.fixture(scope="module")
async def schedule(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Schedule]:
    directory, folder = tmp_path_factory.mktemp("gateway"), tmp_path_factory.mktemp("work") / "notebooks"
    folder.mkdir()
    (folder / "helper.py").write_text("def twice(x):\n    return 2 * x\n")
    environment = with_a_scheduler(directory)
    volumes = [{"name": "notebooks", "mount_path": str(folder), "source": {"hostPath": {"path": str(folder)}}}]
    profiles = {
        "small": profile("small", display_name="Small", volumes=volumes, grace_period=1),
        "opened": profile("opened", limit_classes=["scheduled"], volumes=volumes, grace_period=1),
        "missing": profile("missing", image="registry.invalid/missing:1"),
        "slow": profile("slow", command=["sh", "-c", SLOW, str(folder), "{connection_file}"], volumes=volumes, grace_period=1),
        "silent": profile("silent", command=["python", "-c", SILENT, "{connection_file}"], grace_period=1),
        "crowded": profile("crowded", cpu="1000", launch_timeout=3),
    }
    async with gateway_on(backend, directory, profiles, environment=environment, configuration=impatient(15)) as gateway:
        yield Schedule(gateway, folder, {**backend.environment, **environment})


@pytest.fixture
async def nothing_is_left(schedule: Schedule) -> AsyncIterator[None]:
    """Whatever happened to a run: its kernel is shut down. One that is left fails this test, and not the next one."""
    yield

    async def none() -> bool:
        return not await schedule.kernels()

    try:
        await until(none, "the kernels to be shut down", seconds=20)
    finally:
        for kernel in await schedule.kernels():
            await schedule.shut_down(kernel["id"])
