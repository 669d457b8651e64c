"""The soak on a real cluster: gateways, pods, a kubelet and the API server are killed and brought back, and no kernel is lost.

``ELASTIC_KERNELS_SOAK_SECONDS`` says for how long (1800 is the long form), ``ELASTIC_KERNELS_SOAK_SEED`` repeats a run's choices.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import soak
from tests.cluster.faults import without_api_server, without_spot_kubelet
from tests.conftest import Backend

SECONDS = float(os.environ.get("ELASTIC_KERNELS_SOAK_SECONDS") or 90)
SEED = int(os.environ.get("ELASTIC_KERNELS_SOAK_SEED") or secrets.randbelow(2**32))


async def api_away(running: soak.Soak) -> None:
    running.note("the API server is killed")
    async with without_api_server(running.backend.kubeconfig):
        await asyncio.sleep(running.random.uniform(2, 15))
    running.note("the API server is back")


async def kubelet_away(running: soak.Soak) -> None:
    running.note("the kubelet of spot is killed")
    async with without_spot_kubelet(running.backend.kubeconfig):
        await asyncio.sleep(running.random.uniform(2, 25))
    running.note("the kubelet of spot is back")


FAULTS = {"gateway": soak.end_gateway, "pods": soak.kill_pods, "API server": api_away, "kubelet": kubelet_away}


async def test_a_soak(backend: Backend, tmp_path: Path, figure: Callable[[str], None]) -> None:
    came = await soak.run(backend, tmp_path, FAULTS, SECONDS, SEED)
    figure(f"soak of {SECONDS:.0f} s, seed {SEED}: {dict(sorted(came.done.items()))}, {len(came.killed)} kernels were killed")
    if came.failures:
        pytest.fail(f"seed {SEED}, {dict(came.done)}:\n{soak.told(came, tmp_path)}", pytrace=False)
