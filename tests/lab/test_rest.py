"""A stock JupyterLab 4 server, started by ``elastic-kernels up``, through its own API."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.lab.running import Lab


async def test_the_profiles_are_its_kernels(lab: Lab) -> None:
    found = await lab.request("GET", "/api/kernelspecs")
    assert {name: item["spec"]["display_name"] for name, item in found["kernelspecs"].items()} == {
        "small": "Small and quick",
        "gpu": "With a GPU",
    }
    for item in found["kernelspecs"].values():
        assert (await lab.request("GET", item["resources"]["logo-svg"])).startswith("<svg")


async def test_nobody_comes_in_without_the_token(lab: Lab) -> None:
    address = urlsplit(lab.up.address)
    gateway = next(line.split()[-3] for line in lab.up.lines if line.startswith("Gateway")).rstrip(",")
    async with aiohttp.ClientSession() as stranger:
        for url in (f"http://{address.netloc}/api/kernelspecs", f"{gateway}/api/kernelspecs"):
            async with stranger.get(url) as response:
                assert response.status in (401, 403), url


async def test_a_notebook_runs_and_its_kernel_starts_in_the_notebooks_folder(lab: Lab) -> None:
    await lab.request("PUT", "/api/contents/beside.txt", {"type": "file", "format": "text", "content": "a file of Ana's"}, 201)
    async with lab.session("first.ipynb", "small") as kernel, lab.channels(kernel) as channels:
        assert (await channels.execute("print(open('beside.txt').read()); 6 * 7")).text == "a file of Ana's\n42"
        assert (await channels.execute("import os; os.environ['KERNEL_NAME']")).text == "'small'"
        assert (await channels.execute("1 / 0")).content["ename"] == "ZeroDivisionError"


async def test_after_a_restart_the_same_session_and_a_new_one_find_an_empty_kernel(lab: Lab) -> None:
    async with lab.session("restart.ipynb", "small") as kernel:
        for turn in range(3):
            async with lab.channels(kernel, "kept") as before:
                assert (await before.execute(f"x = {turn}; x")).text == str(turn)
                restarted = await lab.request("POST", f"/api/kernels/{kernel}/restart")
                assert restarted["id"] == kernel
            # JupyterLab closes its websocket after a restart and opens it again under the same session
            async with lab.channels(kernel, "kept") as after, lab.channels(kernel) as new:
                assert (await after.execute("'x' in globals()")).text == "False"
                assert (await after.execute("y = 1; y")).text == "1"
                assert (await new.execute("y, 'x' in globals()")).text == "(1, False)"


async def test_nothing_comes_in_between_after_a_restart(lab: Lab) -> None:
    """JupyterLab's server connects once more, seconds later, for a connection that the gateway closed before JupyterLab did."""
    async with lab.session("again.ipynb", "small") as kernel:
        async with lab.channels(kernel, "kept") as before:
            await before.execute("1")
            await lab.request("POST", f"/api/kernels/{kernel}/restart")
            await asyncio.sleep(0.05)
        async with lab.channels(kernel, "kept") as after:
            for number in range(12):
                assert (await after.execute(str(number))).text == str(number)
                await asyncio.sleep(0.5)


@pytest.mark.parametrize("pause", [0, 0.02, 0.1, 0.5])
async def test_a_second_connection_of_a_session_replaces_one_that_broke_off(lab: Lab, pause: float) -> None:
    """What Chrome makes JupyterLab do with every kernel, and networks with some: the first connection goes without a farewell."""
    async with lab.session("twice.ipynb", "small") as kernel:
        await lab.break_off(kernel, "twice")
        await asyncio.sleep(pause)
        begin = time.monotonic()
        async with lab.channels(kernel, "twice") as channels:
            assert (await channels.execute("6 * 7")).text == "42"
        # where the first one is waited for, that is five seconds
        assert time.monotonic() - begin < 4.5


async def test_an_interrupt_ends_the_cell_and_keeps_the_state(lab: Lab) -> None:
    async with lab.session("interrupt.ipynb", "small") as kernel, lab.channels(kernel) as channels:
        await channels.execute("x = 1")
        cell = await channels.begin("import time; time.sleep(60)")
        begin = time.monotonic()
        await lab.request("POST", f"/api/kernels/{kernel}/interrupt", status=204)
        assert (await asyncio.wait_for(channels.finish(cell), 10)).content["ename"] == "KeyboardInterrupt"
        assert time.monotonic() - begin < 5
        assert (await channels.execute("x")).text == "1"


async def test_two_notebooks_at_once_have_kernels_of_their_own(lab: Lab) -> None:
    async with lab.session("a.ipynb", "small") as one, lab.session("b.ipynb", "gpu") as other:
        assert one != other
        async with lab.channels(one) as first, lab.channels(other) as second:
            code = "import os; print(os.getpid(), os.environ['KERNEL_NAME'])"
            (pid, name), (other_pid, other_name) = [(await c.execute(code)).text.split() for c in (first, second)]
            assert (name, other_name) == ("small", "gpu")
            assert pid != other_pid
        listed = {item["id"] for item in await lab.request("GET", "/api/kernels")}
        assert {one, other} <= listed


async def test_a_kernel_that_was_shut_down_is_gone(lab: Lab) -> None:
    async with lab.session("gone.ipynb", "small") as kernel:
        pass
    assert kernel not in {item["id"] for item in await lab.request("GET", "/api/kernels")}
    await lab.request("GET", f"/api/kernels/{kernel}", status=404)
