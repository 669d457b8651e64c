"""A stock JupyterLab, started as a user starts it, with its kernels on the real cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path

from elastic_kernels import profilefile
from elastic_kernels.kernelspecs import shipped_profiles
from tests.conftest import Backend
from tests.gateway import until
from tests.lab.running import lab_of, running_up


async def test_a_notebook_on_the_current_cluster(backend: Backend, tmp_path: Path) -> None:
    with running_up(tmp_path, "--cluster", "current", "--notebooks", str(tmp_path), environment=backend.environment) as up:
        async with lab_of(up) as lab:
            listed = (await lab.request("GET", "/api/kernelspecs"))["kernelspecs"]
            shown = {item["spec"]["display_name"] for item in listed.values()}
            assert shown == {profile.display_name for profile in profilefile.load(shipped_profiles()).values()}
            async with lab.session("first.ipynb", "python-small") as kernel:
                (pod,) = await backend.pods(kernel)
                async with lab.channels(kernel, "one") as channels:
                    assert (await channels.execute("import os; os.environ['KERNEL_POD_NAME']")).text == repr(pod["metadata"]["name"])
                    cell = await channels.begin("import time; time.sleep(60)")
                    await lab.request("POST", f"/api/kernels/{kernel}/interrupt", status=204)
                    assert (await asyncio.wait_for(channels.finish(cell), 10)).content["ename"] == "KeyboardInterrupt"
                    await channels.execute("x = 1")
                await lab.request("POST", f"/api/kernels/{kernel}/restart")
                async with lab.channels(kernel, "one") as channels:
                    assert (await channels.execute("'x' in globals()")).text == "False"
    await until(backend.is_empty, "the pod and its record to go")
