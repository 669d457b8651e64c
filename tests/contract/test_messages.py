"""Messages between a kernel and its websocket, through our gateway: unchanged, in their order, and at once."""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import aiohttp
import pytest

from elastic_kernels.errors import SILENT_KERNEL
from tests.conftest import Backend, gateway_on, profile
from tests.gateway import Gateway, impatient, until

# no message may wait for the other side's delayed acknowledgement of the one before, which comes after 40 ms
ACKNOWLEDGED_AFTER = 0.035
# for how long whoever connects waits for a kernel to say something
IMPATIENCE = 10.0
# a function of C that keeps the interpreter's lock, when the cell is over
HANG = "import ctypes, threading; threading.Timer(1, ctypes.PyDLL(None).sleep, (1000,)).start()"
COMM = """
from comm import create_comm
create_comm("test", data={"a": 1}, buffers=[b"\\x00\\xff", b"more"])
"""


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    directory = tmp_path_factory.mktemp("gateway")
    profiles = {"small": profile("small", grace_period=2)}
    async with gateway_on(backend, directory, profiles, configuration=impatient(IMPATIENCE)) as running:
        yield running


@pytest.fixture(scope="module")
async def kernel(gateway: Gateway) -> AsyncIterator[str]:
    kernel_id = await gateway.start("small")
    yield kernel_id
    await gateway.stop(kernel_id)


async def test_cells(gateway: Gateway, kernel: str) -> None:
    async with gateway.channels(kernel) as channels:
        assert (await channels.execute("print('out ☃'); 6 * 7")).text == "out ☃\n42"
        error = await channels.execute("1 / 0")
        assert (error.status, error.content["ename"]) == ("error", "ZeroDivisionError")
        assert (await channels.execute("print(input('name? '))", answer="Ana")).text == "Ana\n"
        assert (await channels.execute("print('x' * 20_000_000)")).text == "x" * 20_000_000 + "\n"
        many = await channels.execute("for i in range(2000): print(i, flush=True)")
        assert many.text == "".join(f"{i}\n" for i in range(2000))


@pytest.mark.parametrize("used", ["the first", "the second"])
async def test_of_two_connections_of_a_session_that_come_together_the_one_that_speaks_has_it(
    gateway: Gateway, kernel: str, used: str
) -> None:
    """As JupyterLab's server makes them, of which one is nobody's: whichever comes first."""
    session = uuid.uuid4().hex
    async with gateway.channels(kernel, session=session) as first, gateway.channels(kernel, session=session) as second:
        speaks, silent = (first, second) if used == "the first" else (second, first)
        assert (await speaks.execute("6 * 7")).text == "42"
        assert (await speaks.execute("print('on')")).text == "on\n"
        # the other one is closed, and nobody misses it
        await silent.closed()
        assert (await speaks.execute("6 * 7")).text == "42"


async def test_a_kernel_that_takes_connections_and_says_nothing(gateway: Gateway) -> None:
    hangs = await gateway.start("small")
    await gateway.run(hangs, HANG)

    async def told() -> tuple[int | None, str] | None:
        async with gateway.channels(hangs) as channels:
            # it stays open if the kernel did not hang yet
            with suppress(asyncio.TimeoutError):
                return await asyncio.wait_for(channels.closed(), 1.5 * IMPATIENCE), channels.reason
        return None

    answer = await until(told, "a kernel that hangs to be told of")
    assert answer == (SILENT_KERNEL, "The kernel does not answer; restart it.")
    assert "Traceback" not in gateway.log
    assert (await gateway.request("POST", f"/api/kernels/{hangs}/restart"))[0] == 200
    assert await gateway.run(hangs, "6 * 7") == "42"
    await gateway.stop(hangs)


async def test_an_empty_cell_does_not_wait(gateway: Gateway, kernel: str) -> None:
    async with gateway.channels(kernel) as channels:
        took = []
        for _ in range(50):
            begin = time.monotonic()
            await channels.execute("pass")
            took.append(time.monotonic() - begin)
        assert min(took) < ACKNOWLEDGED_AFTER, took


async def test_buffers(gateway: Gateway, kernel: str) -> None:
    url = f"{gateway.address}/api/kernels/{kernel}/channels?session_id={uuid.uuid4().hex}"
    header = {"msg_id": "m", "msg_type": "execute_request", "username": "", "session": "s", "date": "", "version": "5.3"}
    message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "buffers": []}
    async with aiohttp.ClientSession() as client, client.ws_connect(url) as websocket:
        await websocket.send_str(json.dumps({**message, "content": {"code": COMM, "silent": False, "allow_stdin": False}}))
        while (received := await websocket.receive(timeout=60)).type is not aiohttp.WSMsgType.BINARY:
            assert received.type is aiohttp.WSMsgType.TEXT, received
    # Jupyter Server's own format: how many parts, where each begins, the JSON, the buffers
    (count,) = struct.unpack("!i", received.data[:4])
    begins = [*struct.unpack(f"!{count}I", received.data[4 : 4 * (count + 1)]), len(received.data)]
    parts = [received.data[begin:end] for begin, end in itertools.pairwise(begins)]
    opened = json.loads(parts[0])
    assert (opened["channel"], opened["msg_type"], opened["content"]["data"]) == ("iopub", "comm_open", {"a": 1})
    assert parts[1:] == [b"\x00\xff", b"more"]


async def test_the_gateway_knows_what_a_kernel_does(gateway: Gateway, kernel: str) -> None:
    async def model() -> dict[str, Any]:
        return dict((await gateway.request("GET", f"/api/kernels/{kernel}"))[1])

    async def says(state: str) -> bool:
        return bool((await model())["execution_state"] == state)

    async with gateway.channels(kernel) as channels:
        before = (await model())["last_activity"]
        identity = await channels.begin("import time\ntime.sleep(2)")
        await until(lambda: says("busy"), "the kernel to be busy")
        await channels.finish(identity)
    await until(lambda: says("idle"), "the kernel to be idle")
    assert (await model())["last_activity"] > before
