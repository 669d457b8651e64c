"""One ``elastic-kernels up`` for a module of tests; what it leaves behind fails them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.lab.running import Lab, Up, lab_of, running_up

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
