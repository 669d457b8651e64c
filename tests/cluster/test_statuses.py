"""What users are told when Kubernetes itself refuses, kills or takes away: provoked for real, and timed."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import pytest

from tests.cluster.conftest import connected
from tests.cluster.faults import quota, tainted
from tests.conftest import Backend, gateway_on, profile
from tests.gateway import PLUGGED_IN, Channels, Gateway, until

IDENTITY = {"ELASTIC_KERNELS_IDENTITY": "header", "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.0/8"}
ANA = {"X-Forwarded-User": "ana"}
ABSENT = {"name": "x", "mount_path": "/x"}


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    profiles = {
        "small": profile("small", display_name="Small", grace_period=2),
        "tight": profile("tight", display_name="Tight", memory="200Mi"),
        "spot": profile("spot", display_name="Spot", spot=True, grace_period=2),
        "no-claim": profile("no-claim", volumes=[{**ABSENT, "source": {"persistentVolumeClaim": {"claimName": "absent"}}}]),
        "no-secret": profile("no-secret", volumes=[{**ABSENT, "source": {"secret": {"secretName": "absent"}}}]),
        "no-config": profile("no-config", volumes=[{**ABSENT, "source": {"configMap": {"name": "absent"}}}]),
    }
    directory = tmp_path_factory.mktemp("gateway")
    async with gateway_on(backend, directory, profiles, environment=IDENTITY, configuration=PLUGGED_IN) as running:
        yield running


async def start(gateway: Gateway, name: str) -> str:
    status, body = await gateway.request("POST", "/api/kernels", {"name": name}, headers=ANA)
    assert status == 201, body
    return str(body["id"])


async def refused(gateway: Gateway, name: str) -> str:
    status, body = await gateway.request("POST", "/api/kernels", {"name": name}, headers=ANA)
    assert status >= 400, body
    return str(body["message"])


async def hears(channels: Channels, text: str, seconds: float) -> None:
    """Wait until the client is told something."""
    end = time.monotonic() + seconds
    while text not in str((await asyncio.wait_for(channels.receive(), end - time.monotonic()))["content"]):
        pass


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no-claim", "The kernel 'no-claim' cannot start: the volume claim 'absent' does not exist."),
        ("no-secret", "The kernel 'no-secret' cannot start: the secret 'absent' does not exist."),
        ("no-config", "The kernel 'no-config' cannot start: the config map 'absent' does not exist."),
    ],
)
async def test_what_does_not_exist(gateway: Gateway, name: str, sentence: str) -> None:
    begin = time.monotonic()
    assert await refused(gateway, name) == sentence
    assert time.monotonic() - begin < 15


async def test_a_quota_is_waited_for_and_then_said(backend: Backend, gateway: Gateway) -> None:
    async with quota(backend, "400Mi"):
        first = await start(gateway, "small")
        # a place that comes free in time is taken
        kernel_id = str(uuid.uuid4())
        body = {"name": "small", "env": {"KERNEL_ID": kernel_id}}
        second = asyncio.ensure_future(gateway.request("POST", "/api/kernels", body, headers=ANA))

        async def waits() -> bool:
            return "quota" in str(await gateway.request("GET", f"/api/kernels/{kernel_id}/status", headers=ANA))

        await until(waits, "the start to wait for the quota", seconds=20)
        await gateway.request("DELETE", f"/api/kernels/{first}", headers=ANA)
        assert (await second)[0] == 201
        # a restart needs a place for the new pod while the old one ends
        assert (await gateway.request("POST", f"/api/kernels/{kernel_id}/restart", headers=ANA))[0] == 200
    # counted once more, as the old pod may have ended just when the new one was let in
    async with quota(backend, "400Mi"):
        assert (await refused(gateway, "small")).startswith(
            "The cluster refused the kernel 'Small': the quota 'kernels' of its namespace has no room for it "
            "(limits.memory: 300Mi of 400Mi are in use, and it takes 300Mi)"
        )
        await gateway.request("DELETE", f"/api/kernels/{kernel_id}", headers=ANA)


async def test_memory(gateway: Gateway) -> None:
    kernel = await start(gateway, "tight")
    async with gateway.channels(kernel, headers=ANA) as channels:
        reply = await channels.execute("y = b'x' * 400_000_000", seconds=60)
        sentence = "The kernel is dead: it used more memory than its limit of 200Mi and was ended."
        assert (reply.status, reply.content["evalue"]) == ("error", sentence)
        assert reply.text == f"{sentence}\n"
    _, model = await gateway.request("GET", f"/api/kernels/{kernel}", headers=ANA)
    assert (model["execution_state"], model["reason"]) == ("dead", "it used more memory than its limit of 200Mi and was ended")
    assert (await gateway.request("POST", f"/api/kernels/{kernel}/restart", headers=ANA))[0] == 200
    assert (await gateway.request("DELETE", f"/api/kernels/{kernel}", headers=ANA))[0] == 204


async def test_a_spot_machine_that_is_about_to_go(backend: Backend, gateway: Gateway) -> None:
    kernel = await start(gateway, "spot")
    async with connected(backend.kubeconfig) as core, gateway.channels(kernel, headers=ANA) as channels:
        await channels.begin("import time; time.sleep(60)")
        async with tainted(core, "aws-node-termination-handler/spot-itn", "PreferNoSchedule"):
            await hears(channels, "The kernel: it will be ended soon: AWS takes the spot machine back.", 5)
    assert (await gateway.request("DELETE", f"/api/kernels/{kernel}", headers=ANA))[0] == 204
