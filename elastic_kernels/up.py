"""``elastic-kernels up``: a cluster (embedded, or the kubeconfig's), a stock gateway and a stock JupyterLab, until Ctrl-C.

What it starts ends with it, and what it writes lies in one temporary directory: both servers are given an empty configuration,
so that nothing of the user's own Jupyter changes what is shown, or is changed.
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import math
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from elastic_kernels import kernelspecs, names
from elastic_kernels.cluster import Client
from elastic_kernels.embedded import NODES, EmbeddedCluster, node
from elastic_kernels.errors import ElasticKernelsError
from elastic_kernels.settings import ElasticKernels, default_namespace
from elastic_kernels.shutdown import shut_down
from elastic_kernels.up_plan import Options, Plan, settle
from elastic_kernels.up_servers import HOST, Server, serving

_START_SECONDS: Final = 90.0
# The lab asks the gateway to end its kernels; those of others end after the gateway, which lets them go on.
_LAB_END_SECONDS: Final = 10.0
_END_SECONDS: Final = 10.0
_GATEWAY_END_SECONDS: Final = 25.0
# So that a kernel that is late is answered by the gateway, which knows why, and not by a client that gave up.
_CLIENT_PATIENCE: Final = 15
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What would lead the servers elsewhere than where they are told to go.
_OTHERS_VARIABLES: Final = ("JUPYTER_", "JUPYTERLAB_", "EG_", "KG_", "KERNEL_")

# The scheduler counts with it; as with CPUs and memory, nothing stands behind it.
_GPU_NODE: Final = node("gpu", "on-demand", amounts={"cpu": "64", "memory": "256Gi", "pods": "10000", "nvidia.com/gpu": "8"})

Say = Callable[[str], None]


async def up(options: Options, say: Say) -> None:
    """Start everything, say where it is, and return once a signal to end has been obeyed.

    Raises ConfigurationError if something that is needed is missing, ServerError if a server does not start or ends by itself.
    In any case nothing is left: no process, no kernel, no file.
    """
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(_run(settle(options), say))
    asked: list[float] = []

    def end() -> None:
        # once: what ends in order is not helped by being interrupted, and has time limits of its own
        if not asked:
            asked.append(time.monotonic())
            say("Ending      JupyterLab, kernels, gateway and cluster")
            running.cancel()

    for number in _SIGNALS:
        loop.add_signal_handler(number, end)
    try:
        await running
    except asyncio.CancelledError:
        say(f"Ended       nothing is left ({time.monotonic() - asked[0]:.1f} s)")
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def _run(plan: Plan, say: Say) -> None:
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="elastic-kernels-", ignore_cleanup_errors=True)))
        stack.enter_context(_logged(directory / "cluster.log"))
        with _timed(say, "Cluster") as step:
            kubeconfig, step.done = await stack.enter_async_context(_cluster(plan, directory))
        say(f"Kernels     {', '.join(repr(profile.display_name or name) for name, profile in plan.profiles.items())}")
        kernelspecs.install(plan.profiles.values(), directory / "jupyter" / "kernels")
        begin = time.monotonic()
        # others may use the same namespace; what ends with this gateway is its own
        deployment = f"up-{secrets.token_hex(4)}"
        stack.push_async_callback(_end_kernels, deployment, kubeconfig, say)
        gateway = await stack.enter_async_context(_gateway(plan, directory, kubeconfig, deployment))
        lab = await stack.enter_async_context(_lab(plan, directory)) if plan.lab else None
        # both start at the same time, which is what the time of each is counted from
        with _timed(say, "Gateway", begin) as step:
            version = (await gateway.ready("/api", {"Authorization": f"token {plan.token}"}, _START_SECONDS))["gateway_version"]
            step.done = f"Jupyter Enterprise Gateway {version}, {gateway.url}"
        if lab is not None:
            with _timed(say, "JupyterLab", begin) as step:
                await lab.ready("/api", {}, _START_SECONDS)
                step.done = f"{plan.lab}, notebooks in {plan.notebooks}"
        say(f"Logs        {directory}/*.log until the end, which is Ctrl-C")
        say(f"Open        {lab.url}/lab?token={plan.token}" if lab else f"Gateway     {gateway.url}/?token={plan.token}")
        await _first(*(server.lives() for server in (gateway, lab) if server))


@asynccontextmanager
async def _cluster(plan: Plan, directory: Path) -> AsyncIterator[tuple[str, str]]:
    """Have a cluster: its kubeconfig (empty where the environment says it), and a line that describes it."""
    if plan.python is not None:
        path = f"{plan.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        async with EmbeddedCluster(directory / "cluster", nodes=(*NODES, _GPU_NODE), environment={"PATH": path}) as cluster:
            yield str(cluster.kubeconfig), f"embedded, pods are processes of this machine, {cluster.server}"
        return
    settings = ElasticKernels()
    client = await Client.connect(kubeconfig=settings.kubeconfig, context=settings.context, retry_time=0.0)
    try:
        namespace = settings.namespace or default_namespace(client.context_namespace)
        await client.list("pods", namespace, limit="1")
    finally:
        await client.close()
    files = settings.kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    yield "", f"the one of {files}, kernels in the namespace {namespace!r}"


async def _end_kernels(deployment: str, kubeconfig: str, say: Say) -> None:
    """Shut down what the gateway, which is gone, has left running."""
    # there is little point in waiting for a cluster that is gone as well
    settings = ElasticKernels(deployment=deployment, retry_time=_END_SECONDS, **({"kubeconfig": kubeconfig} if kubeconfig else {}))
    try:
        await shut_down(settings, None, lambda line: None)
    except ElasticKernelsError as error:
        say(f"Kernels     may be left in the cluster, with the label {names.DEPLOYMENT}={deployment}: {error}")


def _gateway(plan: Plan, directory: Path, kubeconfig: str, deployment: str) -> AbstractAsyncContextManager[Server]:
    configuration = f"""from elastic_kernels.gateway import configure
configure(c)
c.KernelSpecManager.whitelist = {sorted(plan.profiles)!r}
c.KernelSpecManager.ensure_native_kernel = False
"""
    (directory / "gateway").mkdir()
    (directory / "gateway" / "jupyter_enterprise_gateway_config.py").write_text(configuration)
    environment = {
        **_own_environment(directory, "gateway"),
        "JUPYTER_PATH": str(directory / "jupyter"),
        "EG_AUTH_TOKEN": plan.token,
        "EG_RESPONSE_PORT": str(plan.response_port),
        # there is one user, who may well be root in a container
        "EG_UNAUTHORIZED_USERS": "",
        "ELASTIC_KERNELS_DEPLOYMENT": deployment,
        **({"KUBECONFIG": kubeconfig, "ELASTIC_KERNELS_KUBECONFIG": kubeconfig} if kubeconfig else {}),
    }
    command = [sys.executable, "-m", "enterprise_gateway", f"--EnterpriseGatewayApp.ip={HOST}"]
    command += [f"--EnterpriseGatewayApp.port={plan.gateway_port}", "--EnterpriseGatewayApp.port_retries=0"]
    log = directory / "gateway.log"
    return serving("The gateway", plan.gateway_port, command, environment, log, patience=_GATEWAY_END_SECONDS)


def _lab(plan: Plan, directory: Path) -> AbstractAsyncContextManager[Server]:
    assert plan.lab is not None
    assert plan.lab_port is not None
    # no questions about news, and no look-ups of updates, in a browser that starts anew each time
    settings = directory / "lab" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    environment = {
        **_own_environment(directory, "lab"),
        "JUPYTER_TOKEN": plan.token,
        "JUPYTER_GATEWAY_AUTH_TOKEN": plan.token,
        "KERNEL_USERNAME": getpass.getuser(),
        # which notebook a kernel is for
        "JUPYTER_GATEWAY_ALLOWED_ENVS": "JPY_SESSION_NAME",
        "KERNEL_LAUNCH_TIMEOUT": str(math.ceil(max(profile.launch_timeout for profile in plan.profiles.values()))),
        "JUPYTER_GATEWAY_LAUNCH_TIMEOUT_PAD": str(_CLIENT_PATIENCE),
    }
    command = [str(plan.lab), f"--gateway-url=http://{HOST}:{plan.gateway_port}", f"--ServerApp.ip={HOST}"]
    command += [f"--ServerApp.port={plan.lab_port}", "--ServerApp.port_retries=0", "--ServerApp.allow_root=True"]
    command += ["--ServerApp.open_browser=False", f"--ServerApp.root_dir={plan.notebooks}"]
    return serving("JupyterLab", plan.lab_port, command, environment, directory / "lab.log", patience=_LAB_END_SECONDS)


def _own_environment(directory: Path, server: str) -> dict[str, str]:
    """Return this process's environment with Jupyter's directories replaced by the server's own, temporary ones."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS_VARIABLES)}
    return {
        **kept,
        "JUPYTER_CONFIG_DIR": str(directory / server),
        "JUPYTER_DATA_DIR": str(directory / f"{server}-data"),
        "JUPYTER_RUNTIME_DIR": str(directory / f"{server}-run"),
        "PYTHONUNBUFFERED": "1",
    }


async def _first(*endless: Coroutine[Any, Any, None]) -> None:
    """Wait for the first of them to raise, and raise that."""
    tasks = [asyncio.ensure_future(item) for item in endless]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        next(iter(done)).result()
    finally:
        for task in tasks:
            task.cancel()


@contextmanager
def _logged(log: Path) -> Iterator[None]:
    """Keep this process's own log, which is the embedded cluster's, out of the terminal."""
    handler = logging.FileHandler(log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


class _Step:
    done = ""


@contextmanager
def _timed(say: Say, what: str, begin: float | None = None) -> Iterator[_Step]:
    """Say in one line what was done and how long it took, unless it failed."""
    begin = time.monotonic() if begin is None else begin
    step = _Step()
    yield step
    say(f"{what:11} {step.done} ({time.monotonic() - begin:.1f} s)")
