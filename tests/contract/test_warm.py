"""Kernels that wait for their users: whose they become, how often, and what is not theirs."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from elastic_kernels import names, pod
from elastic_kernels import record as records
from elastic_kernels.cluster import Object
from elastic_kernels.cluster.leftovers import ORPHANED_AFTER
from elastic_kernels.profiles import Profile
from elastic_kernels.record import Record
from elastic_kernels.request import parse_request
from elastic_kernels.starts import timestamp
from elastic_kernels.warm import waiting as warmth
from elastic_kernels.warm.shared import elastic_claim
from elastic_kernels.warm.waiting import is_ready
from tests.conftest import Backend, profile
from tests.gateway import PLUGGED_IN, Gateway, running_gateway, until, write_kernelspecs

SMALL: dict[str, Any] = {"memory": "150Mi", "cpu": {"request": "10m"}}
pytestmark = pytest.mark.usefixtures("nothing_left")

SPOT = pod.Spot("elastic-kernels/capacity=spot", "elastic-kernels/capacity=spot:NoSchedule")


def warm(name: str = "small", count: int = 1, **fields: Any) -> Profile:
    return profile(name, **{**SMALL, "warm": {"kernels": count}, **fields})


async def waiting(backend: Backend, **query: Any) -> list[Object]:
    """Return the pods that wait, in the order of their names."""
    found = (await backend.api.list("pods", backend.namespace, labelSelector=names.WARM, **query))["items"]
    return sorted(found, key=lambda item: str(item["metadata"]["name"]))


async def ready(backend: Backend, count: int) -> list[Object]:
    """Return the pods that wait, once there are so many and all of them can be claimed."""

    async def look() -> list[Object]:
        # as watches have them, by which gateways know
        found = await waiting(backend, resourceVersion="0")
        return found if len(found) == count and all(map(is_ready, found)) else []

    found: list[Object] = await until(look, f"{count} pods to wait")
    return found


@asynccontextmanager
async def gateway(backend: Backend, directory: Path, *profiles: Profile, **settings: str) -> AsyncIterator[Gateway]:
    write_kernelspecs(directory, {each.name: each for each in profiles})
    async with running_gateway(directory, {**backend.environment, **settings}, configuration=PLUGGED_IN) as running:
        yield running


@pytest.fixture(autouse=True)
async def nothing_waits(backend: Backend) -> AsyncIterator[None]:
    """See what waits go as well; made before ``nothing_left``, which ends it, and so over after it."""
    yield
    await until(lambda: _none(backend, 0), "all that waits to go")


async def test_a_start_takes_a_pod_that_waits_and_another_takes_its_place(backend: Backend, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path, warm(count=2)) as running:
        before = {item["metadata"]["uid"] for item in await ready(backend, 2)}
        # nobody's: neither kernels nor records
        assert (await running.request("GET", "/api/kernels")) == (200, [])
        assert await backend.is_empty()
        kernel = await running.start("small")
        assert await running.run(kernel, "x = 7; print(6 * x)") == "42\n"
        (taken,) = await backend.pods(kernel)
        assert taken["metadata"]["uid"] in before
        (record,) = await backend.records()
        assert [owner["uid"] for owner in taken["metadata"]["ownerReferences"]] == [record["metadata"]["uid"]]
        assert names.WARM not in taken["metadata"]["labels"]
        assert taken["metadata"]["annotations"][names.SAFE_TO_EVICT] == "false"
        # nobody can tell it anything any more
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection(taken["status"]["podIP"], elastic_claim.PORT)
        assert taken["metadata"]["uid"] not in {item["metadata"]["uid"] for item in await ready(backend, 2)}
        # a restart is in a pod of its own, as every restart
        assert (await running.request("POST", f"/api/kernels/{kernel}/restart"))[0] == 200
        assert await running.run(kernel, "print('x' in globals())") == "False\n"
        await running.stop(kernel)
        await until(backend.is_empty, "the kernel's pods and record to go")
        assert len(await waiting(backend)) == 2


WHERE = """
import json, os, getpass, tempfile, sys
own = ("KERNEL_ID", "KERNEL_NAME", "KERNEL_POD_NAME", "KERNEL_POD_IP", "HOME", "HOSTNAME", "PWD", "OLDPWD", "JPY_PARENT_PID")
shown = {name: value for name, value in os.environ.items() if name not in own}
print(json.dumps([shown, os.getcwd().rpartition('/')[2], sys.argv[1:2] == ['-f'], tempfile.gettempdir(), __import__('time').tzname[0]]))
"""


async def test_it_is_told_all_that_it_would_have_begun_with_and_nothing_else(backend: Backend, tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "client_environment": ["WISH*", "TZ", "PYTHONPATH"],
        "environment": {"WELCOME": "$(KERNEL_USERNAME) in $(KERNEL_NAMESPACE) at $(NOBODY) $$(KERNEL_ID)", "WISH_B": "the profile's"},
        "volumes": [{"name": "data", "mount_path": "/data", "source": {"emptyDir": {}}}],
    }
    hostile = {
        "KERNEL_WORKING_DIR": "/data",
        "KERNEL_USERNAME": "eve $(KERNEL_POD_IP) $$",
        "WISH_A": "$(KERNEL_POD_IP) $$x ${HOME} `id` \n'\"",
        "WISH_B": "the client's",
        "TZ": "EST5",
        # none of which a profile opens
        "KERNEL_POD_IP": "10.9.9.9",
        "LD_PRELOAD": "/tmp/x.so",
        "KERNEL_NAMESPACE": "kube-system",
        "elastic-kernels/claimed": "x",
        "ELASTIC_KERNELS_CLAIM": "x",
    }
    async with gateway(backend, tmp_path, warm(**fields), profile("cold", **SMALL, **fields)) as running:
        uids = {item["metadata"]["uid"] for item in await ready(backend, 1)}
        said = []
        for name in ("small", "cold"):
            kernel = await running.start(name, **hostile)
            (found,) = await backend.pods(kernel)
            assert (found["metadata"]["uid"] in uids) is (name == "small")
            said.append(json.loads(await running.run(kernel, WHERE)))
            await running.stop(kernel)
        told, begun = said
        assert (
            told[0].pop("WELCOME")
            == begun[0].pop("WELCOME")
            == f"{hostile['KERNEL_USERNAME']} in {backend.namespace} at $(NOBODY) $(KERNEL_ID)"
        )
        if backend.embedded is not None:
            # there a mount is a folder of this machine, whose name a pod learns at its beginning, and not later
            assert (told[0].pop("KERNEL_WORKING_DIR"), told[1]) == ("/data", "home")
            assert (begun[0].pop("KERNEL_WORKING_DIR").endswith("/data"), begun[1]) == (True, "data")
            told[1] = begun[1]
        assert told == begun
        assert (told[0]["WISH_A"], told[0]["WISH_B"], told[4]) == (hostile["WISH_A"], "the client's", "EST")
        # what an interpreter must begin with it begins with, in a pod of its own
        await ready(backend, 1)
        kernel = await running.start("small", PYTHONPATH="/elsewhere/own")
        assert await running.run(kernel, "import sys; print('/elsewhere/own' in sys.path)") == "True\n"
        assert len(await ready(backend, 1)) == 1


async def test_of_two_gateways_one_gets_the_pod_and_both_users_their_kernels(backend: Backend, tmp_path: Path) -> None:
    limit = {"ELASTIC_KERNELS_MAX_KERNELS_PER_CLASS": "interactive=1"}
    async with AsyncExitStack() as stack:
        running = [await stack.enter_async_context(gateway(backend, tmp_path / name, warm(), **limit)) for name in ("one", "two")]
        for _ in range(3):
            (only,) = await ready(backend, 1)
            if backend.embedded is not None:
                # both have asked before either is answered
                backend.embedded.faults.add(verb="patch", resource="pods", delay=0.5, times=2)
            users = ["ana", "bob"]
            kernels = await asyncio.gather(*(each.start("small", KERNEL_USERNAME=user) for each, user in zip(running, users, strict=True)))
            pods = [(await backend.pods(kernel))[0]["metadata"]["uid"] for kernel in kernels]
            assert pods.count(only["metadata"]["uid"]) == 1
            assert len(set(pods)) == 2
            for each, kernel, user in zip(running, kernels, users, strict=True):
                assert await each.run(kernel, "import os; print(os.environ['KERNEL_USERNAME'])") == f"{user}\n"
                # a limit is a limit, whatever waits
                await ready(backend, 1)
                status, said = await each.refused("small", KERNEL_USERNAME=user)
                assert (status, said[:36]) == (403, "You have 1 of 1 interactive kernels:")
            assert len(await ready(backend, 1)) == 1
            for each, kernel in zip(running, kernels, strict=True):
                await each.stop(kernel)
            await until(backend.is_empty, "the kernels to go")
        if backend.embedded is not None:
            backend.embedded.faults.clear()


async def test_a_burst_takes_what_waits_and_starts_the_others(backend: Backend, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path, warm(count=3)) as running:
        uids = {item["metadata"]["uid"] for item in await ready(backend, 3)}
        kernels = await asyncio.gather(*(running.start("small") for _ in range(5)))
        pods = {(await backend.pods(kernel))[0]["metadata"]["uid"] for kernel in kernels}
        assert len(pods) == 5
        assert uids < pods
        assert await asyncio.gather(*(running.run(kernel, "print(1)") for kernel in kernels)) == ["1\n"] * 5


async def test_what_waits_follows_the_profile_and_the_clock(backend: Backend, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path, warm(count=2)) as running:
        old = {item["metadata"]["annotations"][names.FIT] for item in await ready(backend, 2)}

        async def renewed() -> bool:
            there = await waiting(backend)
            return len(there) == 1 and is_ready(there[0]) and there[0]["metadata"]["annotations"][names.FIT] not in old

        write_kernelspecs(tmp_path, {"small": warm(count=1, environment={"VERSION": "2"})})
        await until(renewed, "the outdated pods to be replaced by a single one")
        (new,) = await waiting(backend)
        kernel = await running.start("small")
        assert await running.run(kernel, "import os; print(os.environ['VERSION'])") == "2\n"
        assert [item["metadata"]["uid"] for item in await backend.pods(kernel)] == [new["metadata"]["uid"]], running.log[-3000:]
        # at another time of the week nothing waits, and nothing is left
        day = (datetime.now(timezone.utc) + timedelta(days=3)).strftime("%a")
        write_kernelspecs(tmp_path, {"small": warm(warm={"kernels": 2, "when": f"{day} 00:00-24:00"})})
        await until(lambda: _none(backend, 1), "all that waits to go, but for the Secret of the kernel's pod")
        assert await running.run(kernel, "print(2)") == "2\n"


async def _none(backend: Backend, secrets_left: int) -> bool:
    secrets_ = (await backend.api.list("secrets", backend.namespace, labelSelector=names.WARM))["items"]
    return not await waiting(backend) and len(secrets_) == secrets_left


async def test_another_gateway_serves_a_kernel_that_waited_and_ends_what_was_never_told(backend: Backend, tmp_path: Path) -> None:
    small = warm(count=2)
    async with gateway(backend, tmp_path / "first", small) as first:
        await ready(backend, 2)
        kernel = await first.start("small")
        assert await first.run(kernel, "x = 5; print(x)") == "5\n"
        left = (await ready(backend, 2))[0]
        first.kill()
    # as a gateway leaves it that is killed between its claim and its message
    request = parse_request({}, small)
    lost = Record(
        "9c4f2b1e-7d0a-4c56-8f3e-2a1b0c9d8e7f", "small", "ana", backend.namespace, "default", "00" * 32, secrets.token_hex(4), "x1"
    )
    record = await backend.api.create("secrets", records.to_secret(lost))
    manifest = pod.build_pod(small, lost, request, pod.Launch("abc", 0, record["metadata"]["uid"]), SPOT)

    async def claimed() -> bool:
        # its kubelet may have said something of it since
        (now,) = [item for item in await waiting(backend) if item["metadata"]["uid"] == left["metadata"]["uid"]]
        return await backend.api.change("pods", now, warmth.claim(manifest, timestamp())) is not None

    await until(claimed, "the pod to be claimed")
    async with gateway(backend, tmp_path / "second", small) as second:
        status, listed = await second.request("GET", "/api/kernels")
        assert (status, [model["id"] for model in listed]) == (200, [kernel])
        assert await second.run(kernel, "print(x)") == "5\n"

        async def ended() -> bool:
            return not await backend.pods(lost.kernel_id) and len(await backend.records()) == 1

        await until(ended, "the pod that was never told to go, with its record", seconds=ORPHANED_AFTER + 60)
        # the other one was as old, and is a kernel
        assert await second.run(kernel, "print(x)") == "5\n"


async def test_a_pod_that_does_not_answer_is_ended_and_the_kernel_starts_without_it(backend: Backend, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path, warm()) as running:
        (only,) = await ready(backend, 1)
        # whoever has its key can tell it once: it is told something else before
        secret = await backend.api.get("secrets", backend.namespace, only["metadata"]["ownerReferences"][0]["name"])
        assert secret is not None
        key = warmth.key_of(secret)
        reader, writer = await asyncio.open_connection(only["status"]["podIP"], elastic_claim.PORT)
        message = elastic_claim.seal(key, json.dumps({"connection": {"key": "another"}, "environment": []}).encode())
        writer.write(len(message).to_bytes(elastic_claim.LENGTH, "big") + message)
        assert await reader.readexactly(elastic_claim.RECEIPT) == elastic_claim.receipt(key, message)
        writer.close()
        kernel = await running.start("small")
        assert await running.run(kernel, "print(3)") == "3\n"
        assert await running.run(kernel, "print(4)") == "4\n"
        (own,) = [item for item in await backend.pods(kernel) if not item["metadata"].get("deletionTimestamp")]
        assert own["metadata"]["uid"] != only["metadata"]["uid"]


async def test_what_cannot_start_is_not_tried_without_end(backend: Backend, tmp_path: Path) -> None:
    async with gateway(backend, tmp_path, warm(command=["python", "-c", "raise SystemExit('{launcher} {connection_file}')"])) as running:
        await until(lambda: "has ended" in running.log, "the gateway to say that what waited has ended")
        await asyncio.sleep(5)
        assert running.log.count("has ended") == 1
        assert await _none(backend, 0)


@pytest.mark.embedded
@pytest.mark.parametrize("kind", ["kernels", "capacity"])
async def test_what_waits_makes_room_for_kernels(backend: Backend, tmp_path: Path, kind: str) -> None:
    big = {"cpu": {"request": "20"}}
    held = profile("held", **{**SMALL, **big}, warm={kind: 3})
    async with gateway(backend, tmp_path, held, profile("big", **{**SMALL, **big})) as running:
        # three times 20 of the 64 CPUs that the one machine has
        await until(lambda: _running(backend, 3), "three pods to hold room")
        kernel = await running.start("big")
        assert await running.run(kernel, "print(1)") == "1\n"
        # nothing comes in the way of the next one
        assert await running.run(await running.start("big"), "print(2)") == "2\n"
        await running.stop(kernel)
        await until(lambda: _running(backend, 2), "room to be held again")


async def _running(backend: Backend, count: int) -> bool:
    found = [item for item in await waiting(backend) if item["status"].get("phase") == "Running"]
    return len(found) == count
