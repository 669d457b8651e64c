"""A deployment whose gateways come and go: how they are run, and what ana and bob do with them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.conftest import Backend, profile
from tests.gateway import PLUGGED_IN, Gateway, running_gateway, write_kernelspecs

# answers after some seconds
SLOW = profile("slow", command=["sh", "-c", "sleep 4; exec python -m ipykernel_launcher -f {connection_file}"])
PROFILES = {
    "small": profile("small", display_name="Small", limit_class="small"),
    "other": profile("other", limit_class="other"),
    "slow": SLOW,
    "lingering": profile("lingering", limit_class="small", grace_period=60),
}
SETTINGS = {"ELASTIC_KERNELS_IDENTITY": "header", "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.0/8"}
ANA, BOB = {"X-Forwarded-User": "ana"}, {"X-Forwarded-User": "bob"}
COUNTING = "import time\nfor number in range(400):\n    print(number, flush=True); time.sleep(0.25)"


@asynccontextmanager
async def gateway(backend: Backend, directory: Path, configuration: str = "", **settings: str) -> AsyncIterator[Gateway]:
    write_kernelspecs(directory, PROFILES)
    environment = {**backend.environment, **SETTINGS, **settings}
    async with running_gateway(directory, environment, configuration=PLUGGED_IN + configuration) as running:
        yield running


async def start(running: Gateway, kernel: str = "small", user: dict[str, str] = ANA) -> str:
    status, body = await running.request("POST", "/api/kernels", {"name": kernel}, headers=user)
    assert status == 201, body
    return str(body["id"])


async def run(running: Gateway, kernel: str, code: str, user: dict[str, str] = ANA) -> str:
    async with running.channels(kernel, headers=user) as channels:
        reply = await channels.execute(code)
        assert reply.status == "ok", reply
        return reply.text


async def listed(running: Gateway, user: dict[str, str] = ANA) -> set[str]:
    status, models = await running.request("GET", "/api/kernels", headers=user)
    assert status == 200, models
    return {model["id"] for model in models}
