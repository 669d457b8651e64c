"""What a user is told about a kernel that starts, runs or has failed; what Prometheus is told; what the log says."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.conftest import Backend, gateway_on, profile
from tests.gateway import PLUGGED_IN, Gateway, running_gateway, until, write_kernelspecs

IDENTITY = {
    "ELASTIC_KERNELS_IDENTITY": "header",
    "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.0/8",
    "ELASTIC_KERNELS_ADMINISTRATORS": "root",
}
ANA, BIA, ROOT = ({"X-Forwarded-User": name} for name in ("ana", "bia", "root"))
PROFILES = {
    "small": profile("small", display_name="Small", limit_class="small"),
    "huge": profile("huge", display_name="Huge", memory="4Ti"),
    "silent": profile("silent", command=["python", "-c", "import time; time.sleep(100)", "{connection_file}"], grace_period=1),
}


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    directory = tmp_path_factory.mktemp("gateway")
    async with gateway_on(backend, directory, PROFILES, environment=IDENTITY, configuration=PLUGGED_IN) as running:
        yield running


def begin(gateway: Gateway, kernel: str, **environment: str) -> tuple[str, asyncio.Future[tuple[int, Any]]]:
    """Begin a start with a chosen id, and return both."""
    kernel_id = str(uuid.uuid4())
    body = {"name": kernel, "env": {"KERNEL_ID": kernel_id, **environment}}
    return kernel_id, asyncio.ensure_future(gateway.request("POST", "/api/kernels", body, headers=ANA))


async def status(gateway: Gateway, kernel_id: str, user: dict[str, str] = ANA) -> dict[str, Any]:
    code, body = await gateway.request("GET", f"/api/kernels/{kernel_id}/status", headers=user)
    return dict(body) if code == 200 else {"phase": code}


async def reaches(gateway: Gateway, kernel_id: str, phase: str) -> dict[str, Any]:
    async def there() -> bool:
        return bool((await status(gateway, kernel_id))["phase"] == phase)

    await until(there, f"the start to be {phase}")
    return await status(gateway, kernel_id)


async def test_a_start_says_how_it_is_doing_also_to_those_who_ask_elsewhere(
    backend: Backend, gateway: Gateway, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("beside")
    write_kernelspecs(directory, PROFILES)
    async with running_gateway(directory, {**backend.environment, **IDENTITY}, configuration=PLUGGED_IN) as beside:
        kernel_id, launch = begin(gateway, "huge", KERNEL_LAUNCH_TIMEOUT="6")
        for asked in (gateway, beside):
            now = await reaches(asked, kernel_id, "scheduling")
            assert now["sentence"].startswith("no machine fits it so far: not enough memory is free"), now
            assert (now["id"], now["hopeless"], now["usually"]) == (kernel_id, False, None)
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", now["since"])
            # to others it does not exist
            assert (await status(asked, kernel_id, BIA))["phase"] == 404
        code, body = await launch
        assert code == 504
        # a client whose connection broke can ask what became of it
        failed = await status(gateway, kernel_id)
        assert (failed["phase"], failed["sentence"], failed["hopeless"]) == ("failed", body["message"], True)
        assert (await status(gateway, kernel_id, BIA))["phase"] == 404
    assert (await status(gateway, str(uuid.uuid4())))["phase"] == 404


async def test_a_stream_tells_each_change(gateway: Gateway) -> None:
    kernel_id, launch = begin(gateway, "small")

    async def begun() -> bool:
        return bool((await status(gateway, kernel_id))["phase"] != 404)

    await until(begun, "the start to begin")
    phases: list[str] = []
    async with aiohttp.ClientSession() as client:
        url = f"{gateway.address}/api/kernels/{kernel_id}/status"
        async with client.get(url, headers={**ANA, "Accept": "text/event-stream"}) as answer:
            assert (answer.status, answer.content_type) == (200, "text/event-stream")
            async for line in answer.content:
                if line.startswith(b"data: ") and line.strip() != b"data: {}":
                    phase = json.loads(line[6:])["phase"]
                    if phases[-1:] == [phase]:
                        continue  # its sentence is another one
                    phases.append(phase)
                    if phase == "ready":
                        assert (await launch)[0] == 201
                        await gateway.request("DELETE", f"/api/kernels/{kernel_id}", headers=ANA)
                elif line.startswith(b"event: end"):
                    break
    until_ready = phases[: phases.index("ready") + 1]
    order = ["queued", "scheduling", "preparing", "pulling", "running", "ready"]
    assert [phase for phase in order if phase in until_ready] == until_ready, phases
    assert set(phases[len(until_ready) :]) <= {"terminating", "succeeded"}, phases


async def test_a_kernel_that_runs(gateway: Gateway) -> None:
    code, body = await gateway.request("POST", "/api/kernels", {"name": "small"}, headers=ANA)
    assert code == 201
    now = await status(gateway, body["id"])
    assert (now["phase"], now["sentence"], now["cause"]) == ("ready", "it is ready", None)
    assert now["usually"] > 0

    def transitions() -> list[dict[str, Any]]:
        lines = [line for line in gateway.log.splitlines() if "transition {" in line and body["id"] in line]
        return [json.loads(line[line.index("{") :]) for line in lines]

    await until(lambda: transitions()[-1]["phase"] == "ready", "the log to say that it is ready")
    assert {(line["user"], line["profile"]) for line in transitions()} == {("ana", "small")}
    await gateway.request("DELETE", f"/api/kernels/{body['id']}", headers=ANA)


async def test_metrics_are_for_administrators(gateway: Gateway) -> None:
    code, body = await gateway.request("POST", "/api/kernels", {"name": "small"}, headers=ANA)
    assert code == 201
    assert (await gateway.request("GET", "/metrics"))[0] == 401
    refused, answer = await gateway.request("GET", "/metrics", headers=ANA)
    assert (refused, answer["message"]) == (403, "Metrics are for administrators and services.")

    async def counted() -> bool:
        return 'elastic_kernels_kernels{limit_class="small",phase="ready"} 1.0' in await metrics(gateway)

    await until(counted, "the kernel to be counted", seconds=10)
    text = await metrics(gateway)
    launches = re.search(r'elastic_kernels_launches_total\{outcome="ready",profile="small"\} (\d+)', text)
    assert launches is not None
    assert int(launches[1]) >= 1
    assert 'elastic_kernels_watch_staleness_seconds{resource="pods"} 0.0' in text
    assert "ana" not in re.findall(r'"(\w+)"', text)
    await gateway.request("DELETE", f"/api/kernels/{body['id']}", headers=ANA)


async def metrics(gateway: Gateway) -> str:
    async with aiohttp.ClientSession() as client, client.get(f"{gateway.address}/metrics", headers=ROOT) as answer:
        assert answer.status == 200
        return await answer.text()


async def test_a_client_that_hangs_up_cancels_its_start(backend: Backend, gateway: Gateway) -> None:
    kernel_id, launch = begin(gateway, "huge")
    await reaches(gateway, kernel_id, "scheduling")
    launch.cancel()
    await until(lambda: nothing(backend, kernel_id), "the pod and the record to go", seconds=10)
    assert (await status(gateway, kernel_id))["sentence"] == "it was given up"


async def test_a_start_that_is_to_be_kept_goes_on(backend: Backend, gateway: Gateway) -> None:
    kernel_id, launch = begin(gateway, "small", KERNEL_KEEP="true")

    async def known() -> bool:
        return bool((await status(gateway, kernel_id))["phase"] != 404)

    await until(known, "the start to begin")
    launch.cancel()
    await reaches(gateway, kernel_id, "ready")
    assert (await gateway.request("DELETE", f"/api/kernels/{kernel_id}", headers=ANA))[0] == 204


async def test_a_start_is_cancelled_by_its_id_at_any_gateway(
    backend: Backend, gateway: Gateway, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("beside")
    write_kernelspecs(directory, PROFILES)
    async with running_gateway(directory, {**backend.environment, **IDENTITY}, configuration=PLUGGED_IN) as beside:
        for asked, code in ((gateway, 409), (beside, 500)):
            kernel_id, launch = begin(gateway, "huge")
            await reaches(asked, kernel_id, "scheduling")
            assert (await asked.request("DELETE", f"/api/kernels/{kernel_id}", headers=BIA))[0] == 404
            assert (await asked.request("DELETE", f"/api/kernels/{kernel_id}", headers=ANA))[0] == 204
            assert (await launch)[0] == code
            await until(lambda kernel_id=kernel_id: nothing(backend, kernel_id), "the pod and the record to go", seconds=10)


async def nothing(backend: Backend, kernel_id: str) -> bool:
    return not await backend.pods(kernel_id) and kernel_id not in str(await backend.records())
