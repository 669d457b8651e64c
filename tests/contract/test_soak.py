"""A short soak on the embedded cluster: gateways, pods, watches and the API server fail, and no kernel is lost."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path

import pytest

from tests import soak
from tests.conftest import Backend

pytestmark = pytest.mark.embedded
SECONDS = float(os.environ.get("ELASTIC_KERNELS_SOAK_SECONDS") or 30)
SEED = int(os.environ.get("ELASTIC_KERNELS_SOAK_SEED") or secrets.randbelow(2**32))


async def api_away(running: soak.Soak) -> None:
    assert running.backend.embedded is not None
    faults = running.backend.embedded.faults
    running.note("the API server is away")
    faults.away = True
    faults.cut_watches()
    await asyncio.sleep(running.random.uniform(2, 6))
    faults.away = False
    running.note("the API server is back")


async def cut_watches(running: soak.Soak) -> None:
    assert running.backend.embedded is not None
    running.backend.embedded.faults.cut_watches()


FAULTS = {"gateway": soak.end_gateway, "pods": soak.kill_pods, "API server": api_away, "watches": cut_watches}


async def test_a_soak(backend: Backend, tmp_path: Path) -> None:
    came = await soak.run(backend, tmp_path, FAULTS, SECONDS, SEED, pause=(1.0, 4.0))
    if came.failures:
        pytest.fail(f"seed {SEED}, {dict(came.done)}:\n{soak.told(came, tmp_path)}", pytrace=False)
