"""A kernel's life through a stock gateway's REST and WebSocket API: the same on the embedded cluster and on a real one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Backend, gateway_on, profile
from tests.gateway import Gateway, until

ONE_FILE: dict[str, Any] = {
    # the least that an administrator can write: a kernel.json that names the class
    "argv": ["python", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
    "display_name": "From one file",
    "language": "python",
    "metadata": {
        "process_proxy": {
            "class_name": "elastic_kernels.proxy.ElasticKernelProxy",
            "config": {"image": "elastic-kernels/kernel-python:dev", "memory": "300Mi"},
        }
    },
}


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    profiles = {
        "small": profile("small", display_name="Small", client_environment=["MY_*"]),
        "other": profile("other", environment={"COLOUR": "blue"}, memory="400Mi", grace_period=60),
    }
    broken = {
        **ONE_FILE,
        "metadata": {"process_proxy": {**ONE_FILE["metadata"]["process_proxy"], "config": {"memory": "16GG", "gpus": -1}}},
    }
    async with gateway_on(backend, tmp_path_factory.mktemp("gateway"), profiles, {"one-file": ONE_FILE, "broken": broken}) as running:
        yield running


@pytest.fixture
async def kernel(gateway: Gateway) -> AsyncIterator[str]:
    kernel_id = await gateway.start("small")
    yield kernel_id
    await gateway.stop(kernel_id)


async def test_cells(gateway: Gateway, kernel: str) -> None:
    async with gateway.channels(kernel) as channels:
        assert (await channels.execute("print('out'); 6 * 7")).text == "out\n42"
        display = await channels.execute("from IPython.display import display, HTML; display(HTML('<b>hi</b>'))")
        assert display.published[-1]["content"]["data"]["text/html"] == "<b>hi</b>"
        error = await channels.execute("1 / 0")
        assert (error.status, error.content["ename"]) == ("error", "ZeroDivisionError")
        assert [m["content"]["ename"] for m in error.published if m["msg_type"] == "error"] == ["ZeroDivisionError"]
        assert (await channels.execute("print(input('name? '))", answer="Ana")).text == "Ana\n"
        assert (await channels.execute("print('x' * 20_000_000)")).text == "x" * 20_000_000 + "\n"


async def test_interrupt_ends_a_sleep_and_a_busy_loop_and_keeps_the_state(gateway: Gateway, kernel: str) -> None:
    async with gateway.channels(kernel) as channels:
        await channels.execute("x = 1; import time")
        for code in ("time.sleep(60)", "while True: pass", "import subprocess; subprocess.run(['sleep', '60'])"):
            cell = await channels.begin(code)
            assert (await gateway.request("POST", f"/api/kernels/{kernel}/interrupt"))[0] == 204
            reply = await asyncio.wait_for(channels.finish(cell), 10)
            assert reply.content["ename"] == "KeyboardInterrupt"
        assert (await channels.execute("x")).text == "1"


async def test_restart_keeps_the_id_and_nothing_else(backend: Backend, gateway: Gateway, kernel: str) -> None:
    await gateway.run(kernel, "x = 1")
    before = {pod["metadata"]["name"] for pod in await backend.pods(kernel)}
    records = await backend.records()
    for _ in range(3):
        status, body = await gateway.request("POST", f"/api/kernels/{kernel}/restart")
        assert (status, body["id"]) == (200, kernel)
        assert await gateway.run(kernel, "print('x' in globals())") == "False\n"
    assert [item["metadata"]["uid"] for item in await backend.records()] == [item["metadata"]["uid"] for item in records]

    async def replaced() -> bool:
        now = {pod["metadata"]["name"] for pod in await backend.pods(kernel)}
        return len(now) == 1 and not now & before

    await until(replaced, "the old pods to go")


async def test_shutdown_runs_exit_handlers_and_leaves_nothing(backend: Backend, gateway: Gateway, tmp_path: Path) -> None:
    kernel = await gateway.start("other")
    # the embedded cluster's pods are processes of this machine
    file = tmp_path / "farewell"
    place = "/dev/termination-log" if backend.embedded is None else str(file)
    await gateway.run(kernel, f"import atexit, time; atexit.register(lambda: (time.sleep(1), open({place!r}, 'w').write('farewell')))")
    (pod,) = await backend.pods(kernel)
    last_words = asyncio.ensure_future(backend.last_words(pod["metadata"]["name"]))
    begin = time.monotonic()
    await gateway.stop(kernel)
    assert (await gateway.request("GET", f"/api/kernels/{kernel}"))[0] == 404

    async def gone() -> bool:
        return not await backend.pods(kernel) and kernel not in str(await backend.records())

    await until(gone, "the pod and its record to go", seconds=90)
    # a kubelet takes its time after the end as well
    assert time.monotonic() - begin < 50, "as long as the grace period"
    said = await last_words
    assert (said if backend.embedded is None else file.read_text()) == "farewell"


async def test_two_profiles_at_once(backend: Backend, gateway: Gateway) -> None:
    one, two = await asyncio.gather(gateway.start("small"), gateway.start("other"))
    code = "import os; print(os.environ.get('COLOUR'), os.environ['KERNEL_NAME'])"
    assert list(await asyncio.gather(gateway.run(one, code), gateway.run(two, code))) == ["None small\n", "blue other\n"]
    limits = [(await backend.pods(kernel))[0]["spec"]["containers"][0]["resources"]["limits"] for kernel in (one, two)]
    assert [limit["memory"] for limit in limits] == ["300Mi", "400Mi"]
    await asyncio.gather(gateway.stop(one), gateway.stop(two))


async def test_one_kernel_json_is_enough(gateway: Gateway) -> None:
    kernel = await gateway.start("one-file")
    assert await gateway.run(kernel, "6 * 7") == "42"
    async with gateway.channels(kernel) as channels:
        cell = await channels.begin("import time; time.sleep(60)")
        await gateway.request("POST", f"/api/kernels/{kernel}/interrupt")
        assert (await asyncio.wait_for(channels.finish(cell), 10)).status == "error"
    await gateway.stop(kernel)


async def test_the_environment_is_the_profiles_alone(gateway: Gateway) -> None:
    wishes = {"MY_REGION": "$(KERNEL_ID) $HOME", "KERNEL_VOLUMES": "[]", "KERNEL_NAMESPACE": "kube-system", "KERNEL_UID": "0", "OTHER": "1"}
    kernel = await gateway.start("small", **wishes)
    variables = json.loads(await gateway.run(kernel, "import json, os; print(json.dumps(dict(os.environ)))"))
    await gateway.stop(kernel)
    assert variables["MY_REGION"] == "$(KERNEL_ID) $HOME"
    assert variables["KERNEL_USERNAME"] == "ana"
    assert variables["KERNEL_ID"] == kernel
    assert variables["KERNEL_NAMESPACE"] != "kube-system"
    assert not {"GATEWAY_SECRET", "OTHER", "KERNEL_VOLUMES", "KERNEL_UID", "KUBECONFIG", "EG_LIST_KERNELS"} & variables.keys()
    assert "the client's KERNEL_NAMESPACE, KERNEL_UID, KERNEL_VOLUMES, OTHER had no effect" in gateway.log


async def test_without_an_env_nothing_of_the_gateways_own_reaches_the_kernel(gateway: Gateway) -> None:
    status, body = await gateway.request("POST", "/api/kernels", {"name": "small"})
    assert status == 201
    assert await gateway.run(body["id"], "import os; print('GATEWAY_SECRET' in os.environ, 'KUBECONFIG' in os.environ)") == "False False\n"
    await gateway.stop(body["id"])


async def test_labels_and_annotations_say_whose_and_what(backend: Backend, gateway: Gateway) -> None:
    kernel = await gateway.start("small", KERNEL_USERNAME="Ana Müller <ana@example.com>")
    (pod,), records = await backend.pods(kernel), await backend.records()
    (record,) = [item for item in records if item["metadata"]["labels"]["elastic-kernels/kernel-id"] == kernel]
    for metadata in (pod["metadata"], record["metadata"]):
        assert metadata["annotations"]["elastic-kernels/user"] == "Ana Müller <ana@example.com>"
        assert metadata["labels"]["elastic-kernels/user"].startswith("ana-m-ller-ana-example-com--")
        assert metadata["labels"]["elastic-kernels/profile"] == "small"
        assert metadata["labels"]["elastic-kernels/deployment"] == "default"
    await gateway.stop(kernel)


async def test_a_broken_profile_is_refused_with_path_and_value(gateway: Gateway) -> None:
    status, sentence = await gateway.refused("broken")
    assert status == 500
    assert "metadata.process_proxy.config.memory: '16GG' is not a quantity" in sentence
    assert "metadata.process_proxy.config.gpus: is not a field; did you mean 'gpu'?" in sentence
    assert "metadata.process_proxy.config.image: is missing" in sentence


async def test_a_kernel_id_that_is_taken_is_refused_and_its_kernel_lives(gateway: Gateway, kernel: str) -> None:
    status, _ = await gateway.request("POST", "/api/kernels", {"name": "small", "env": {"KERNEL_ID": kernel}})
    assert status in (409, 500)  # the second is Enterprise Gateway's own, where it knows the id itself
    assert await gateway.run(kernel, "6 * 7") == "42"


@pytest.mark.parametrize("wish", ["soon", "-1", "nan", "0"])
async def test_a_bad_launch_timeout_is_a_bad_request(backend: Backend, gateway: Gateway, wish: str) -> None:
    status, body = await gateway.request("POST", "/api/kernels", {"name": "small", "env": {"KERNEL_LAUNCH_TIMEOUT": wish}})
    # Enterprise Gateway itself stumbles over what is no number at all, before any code of ours is asked
    assert status == (500 if wish == "soon" else 400), body


async def test_a_killed_pod_ends_its_kernel_and_no_other(backend: Backend, gateway: Gateway, kernel: str) -> None:
    other = await gateway.start("other")
    (pod,) = await backend.pods(other)
    await backend.api.delete("pods", backend.namespace, pod["metadata"]["name"], grace=0)

    async def noticed() -> bool:
        return (await gateway.request("GET", f"/api/kernels/{other}"))[0] == 404

    # nobody is connected, so Enterprise Gateway removes it rather than restarting it
    await until(noticed, "the gateway to notice", seconds=20)
    assert await gateway.run(kernel, "6 * 7") == "42"
