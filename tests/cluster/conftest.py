"""The real cluster of these tests: reached or failed with a sentence, a namespace for each module, and its evidence when a test fails."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio import client, config

from elastic_kernels.cluster import Client
from tests.conftest import Backend

REACHABLE_SECONDS = 10.0
NAMESPACE_SECONDS = 120.0
LOG_LINES = 40
NAMESPACE = pytest.StashKey[tuple[Path, str]]()
FIGURES = pytest.StashKey[list[str]]()


@asynccontextmanager
async def connected(kubeconfig: Path) -> AsyncIterator[Any]:
    """Yield the API of pods, nodes and namespaces, with the rights that the kubeconfig gives."""
    configuration = client.Configuration()
    await config.load_kube_config(str(kubeconfig), client_configuration=configuration)
    async with client.ApiClient(configuration) as api:
        yield client.CoreV1Api(api)


@pytest.fixture(scope="session")
async def kubeconfig(real_cluster: Path | None) -> Path:
    """Return the kubeconfig of a cluster that answers and has the two nodes."""
    name = os.environ.get("KUBECONFIG", "")
    if not name:
        pytest.fail("KUBECONFIG is not set: these tests need a real cluster; tests/cluster/kind.yaml says how to get one.", pytrace=False)
    try:
        async with connected(Path(name)) as core:
            nodes = (await core.list_node(_request_timeout=REACHABLE_SECONDS)).items
    except Exception as error:
        pytest.fail(f"The cluster of KUBECONFIG={name} does not answer: {type(error).__name__}: {error}", pytrace=False)
    if not any((node.metadata.labels or {}).get("elastic-kernels/capacity") == "spot" for node in nodes):
        found = ", ".join(node.metadata.name for node in nodes)
        pytest.fail(f"No node of {name} has the label elastic-kernels/capacity=spot (there are: {found}); see kind.yaml.", pytrace=False)
    return Path(name)


@pytest.fixture(scope="module")
async def namespace(kubeconfig: Path, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Yield a namespace that is new, ready for pods, and gone afterwards."""
    name = f"test-{secrets.token_hex(3)}"
    async with connected(kubeconfig) as core:
        await core.create_namespace({"metadata": {"name": name}})
        request.config.stash[NAMESPACE] = (kubeconfig, name)
        try:
            # pods are refused until a controller has made it
            await eventually(lambda: present(core.read_namespaced_service_account("default", name)), f"a service account in {name}")
            yield name
        finally:
            del request.config.stash[NAMESPACE]
            # otherwise a namespace waits for its pods' grace periods
            await core.delete_collection_namespaced_pod(name, grace_period_seconds=0)
            await core.delete_namespace(name)
            await eventually(lambda: absent(core.read_namespace(name)), f"the namespace {name} to be deleted")


@pytest.fixture(scope="module")
async def backend(kubeconfig: Path, namespace: str) -> AsyncIterator[Backend]:
    """Stand for the fixture of the same name that other lanes use: here there is no choice of cluster."""
    api = await Client.connect(kubeconfig=str(kubeconfig), retry_time=20)
    try:
        yield Backend(kubeconfig, namespace, api, environment={"KUBECONFIG": str(kubeconfig), "ELASTIC_KERNELS_NAMESPACE": namespace})
    finally:
        await api.close()


async def present(request: Awaitable[Any]) -> bool:
    """Tell whether an object is there; any answer but it and 404 is an error."""
    try:
        await request
    except client.ApiException as error:
        if error.status != 404:
            raise
        return False
    return True


async def absent(request: Awaitable[Any]) -> bool:
    return not await present(request)


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    end = time.monotonic() + NAMESPACE_SECONDS
    while not await condition():
        if time.monotonic() > end:
            pytest.fail(f"Waited {NAMESPACE_SECONDS:.0f} s in vain for {what}.", pytrace=False)
        await asyncio.sleep(0.2)


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return what is called with a measured figure, in words, to have it among those at the end of the run's report."""
    return request.config.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures."""
    if figures := config.stash.get(FIGURES, []):
        terminalreporter.section("figures")
        for line in figures:
            terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the cluster says to the report of a failure, before any fixture takes it away."""
    report = yield
    if report.failed and (where := item.config.stash.get(NAMESPACE, None)):
        # the tests' own loop is between two tests now, and stays as it is
        with ThreadPoolExecutor(1) as executor:
            report.sections.append((f"namespace {where[1]}", executor.submit(asyncio.run, evidence(*where)).result()))
    return report


async def evidence(kubeconfig: Path, namespace: str) -> str:
    """Return the state, the events and the logs of a namespace's pods, or why they cannot be had."""
    try:
        async with connected(kubeconfig) as core:
            pods = (await core.list_namespaced_pod(namespace)).items
            events = (await core.list_namespaced_event(namespace)).items
            logs = await asyncio.gather(*(log(core, pod) for pod in pods))
    except Exception as error:
        return f"cannot be looked at: {type(error).__name__}: {error}"
    lines = [f"event {event.involved_object.name}: {event.reason}: {event.message}" for event in events]
    for pod, text in zip(pods, logs, strict=True):
        states = [status.state.to_dict() for status in pod.status.container_statuses or ()]
        lines += [f"pod {pod.metadata.name}: {pod.status.phase} on {pod.spec.node_name}: {states}", text]
    return "\n".join(lines) or "no pods, no events"


async def log(core: Any, pod: Any) -> str:
    try:
        return str(await core.read_namespaced_pod_log(pod.metadata.name, pod.metadata.namespace, tail_lines=LOG_LINES))
    except client.ApiException as error:
        return f"no log: {error.reason}"
