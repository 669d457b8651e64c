"""The floor under every launch: what scheduler, kubelet and ipykernel need when no gateway is in between.

Bare pods are created at once, each with a Secret that holds its connection file, as a gateway would. One watch tells when they
have addresses. A launch ends with the first output of a cell. No gateway on the same cluster can be faster.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import secrets
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import zmq.asyncio
from jupyter_client.session import Session
from kubernetes.aio import client, config
from zmq.constants import Flag, SocketOption, SocketType
from zmq.error import Again

IMAGE: Final = "elastic-kernels/kernel-python:dev"
SECONDS: Final = 300.0
_MOUNT: Final = "/var/run/elastic-kernels"
_LABEL: Final = "elastic-kernels/floor"
_PORTS: Final = {f"{channel}_port": 52317 + index for index, channel in enumerate(("shell", "iopub", "stdin", "control", "hb"))}
# a kernel that listens is noticed after this, not after ZeroMQ's 100
_RECONNECT_MS: Final = 10
_NUDGE_MS: Final = 100


async def measure(count: int, namespace: str, image: str) -> list[float]:
    """Return, for each of ``count`` kernels created at once, the seconds until it printed; leave nothing behind."""
    return [seconds for seconds, _ in await outputs(count, namespace, image, "")]


async def outputs(count: int, namespace: str, image: str, code: str) -> list[tuple[float, str]]:
    """Do the same with a cell that goes on with ``code``, and return all that it printed as well."""
    run = secrets.token_hex(4)
    names = [f"floor-{run}-{index}" for index in range(count)]
    addresses: dict[str, asyncio.Future[str]] = {name: asyncio.get_running_loop().create_future() for name in names}
    gone = {name: asyncio.Event() for name in names}
    async with core() as api, _watching(api, namespace, run, addresses, gone):
        context = zmq.asyncio.Context()
        launches = [asyncio.ensure_future(_launch(api, context, namespace, name, run, image, addresses[name], code)) for name in names]
        try:
            return await asyncio.wait_for(asyncio.gather(*launches), SECONDS)
        finally:
            # of several that failed, only the first one's error is raised; the others end here
            for launch in launches:
                launch.cancel()
            await asyncio.gather(*launches, return_exceptions=True)
            context.destroy(linger=0)
            await _clean_up(api, namespace, run, gone)


@asynccontextmanager
async def core() -> AsyncIterator[Any]:
    """Yield Kubernetes' own client for the cluster of KUBECONFIG."""
    configuration = client.Configuration()
    await config.load_kube_config(client_configuration=configuration)
    # all requests of a burst at once, rather than in the order of free connections
    configuration.connection_pool_maxsize = 0
    async with client.ApiClient(configuration) as api:
        yield client.CoreV1Api(api)


async def _launch(
    core: Any, context: zmq.asyncio.Context, namespace: str, name: str, run: str, image: str, address: asyncio.Future[str], code: str
) -> tuple[float, str]:
    connection = {**_PORTS, "ip": "0.0.0.0", "key": secrets.token_hex(16), "transport": "tcp", "signature_scheme": "hmac-sha256"}
    begin = time.monotonic()
    await core.create_namespaced_secret(namespace, _secret(name, run, connection))
    await core.create_namespaced_pod(namespace, _pod(name, run, image))
    came, text = await _hello(context, connection, await address, code)
    return came - begin, text


async def _hello(context: zmq.asyncio.Context, connection: Mapping[str, Any], address: str, code: str) -> tuple[float, str]:
    """Return when (the process's time) the kernel published what a cell prints first, and all that the cell printed."""
    session = Session(key=connection["key"].encode(), signature_scheme=connection["signature_scheme"])
    with context.socket(SocketType.DEALER) as shell, context.socket(SocketType.SUB) as iopub:
        iopub.subscribe(b"")
        for socket, channel in ((shell, "shell"), (iopub, "iopub")):
            socket.setsockopt(SocketOption.RECONNECT_IVL, _RECONNECT_MS)
            # nothing is to wait for a kernel that does not listen yet, which would have to answer all of it later
            socket.setsockopt(SocketOption.IMMEDIATE, 1)
            socket.setsockopt(SocketOption.LINGER, 0)
            socket.connect(f"tcp://{address}:{connection[f'{channel}_port']}")
        # what a kernel publishes before the subscription has reached it is lost: a cell waits until anything came through.
        # ipykernel 7 says a welcome; an older one says that it is busy with this request
        while not await iopub.poll(_NUDGE_MS):
            with contextlib.suppress(Again):
                await shell.send_multipart(session.serialize(session.msg("kernel_info_request")), flags=Flag.NOBLOCK)
        cell = session.msg("execute_request", {"code": f'print("hello", flush=True)\n{code}', "silent": False, "allow_stdin": False})
        await shell.send_multipart(session.serialize(cell))
        came, text = 0.0, ""
        while True:
            _, parts = session.feed_identities(await iopub.recv_multipart())
            message = session.deserialize(parts)
            if message["parent_header"].get("msg_id") != cell["header"]["msg_id"]:
                continue
            if message["msg_type"] == "stream":
                came, text = came or time.monotonic(), text + message["content"]["text"]
            is_over = message["msg_type"] == "status" and message["content"]["execution_state"] == "idle"
            if came and (is_over or not code):
                return came, text


@asynccontextmanager
async def _watching(
    core: Any, namespace: str, run: str, addresses: Mapping[str, asyncio.Future[str]], gone: Mapping[str, asyncio.Event]
) -> AsyncIterator[None]:
    """Have ``addresses`` and ``gone`` filled from one watch for as long as the context lasts."""
    # opened before the first pod is created, so that none is missed
    response = await core.list_namespaced_pod_without_preload_content(namespace, label_selector=f"{_LABEL}={run}", watch=True)
    task = asyncio.ensure_future(_read(response, addresses, gone))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        response.close()


async def _read(response: Any, addresses: Mapping[str, asyncio.Future[str]], gone: Mapping[str, asyncio.Event]) -> None:
    error: Exception = ConnectionError("the API server ended the watch")
    try:
        async for line in response.content:
            event = json.loads(line)
            if event["type"] == "ERROR":
                raise ConnectionError(event["object"].get("message"))
            pod = event["object"]
            name, status = pod["metadata"]["name"], pod["status"]
            if event["type"] == "DELETED":
                gone[name].set()
            if addresses[name].done():
                continue
            waiting = [container["state"].get("waiting", {}).get("reason", "") for container in status.get("containerStatuses", ())]
            hopeless = any(reason.startswith("Err") or reason.endswith(("BackOff", "Error")) for reason in waiting)
            if hopeless or event["type"] == "DELETED" or status.get("phase") in ("Failed", "Succeeded"):
                addresses[name].set_exception(RuntimeError(f"the pod {name} ended before it began: {json.dumps(status)}"))
            elif status.get("podIP"):
                addresses[name].set_result(status["podIP"])
    except Exception as caught:
        error = caught
    for future in addresses.values():
        if not future.done():
            future.set_exception(error)


async def _clean_up(core: Any, namespace: str, run: str, gone: Mapping[str, asyncio.Event]) -> None:
    selector = f"{_LABEL}={run}"
    created = {pod.metadata.name for pod in (await core.list_namespaced_pod(namespace, label_selector=selector)).items}
    await core.delete_collection_namespaced_pod(namespace, label_selector=selector, grace_period_seconds=0)
    await core.delete_collection_namespaced_secret(namespace, label_selector=selector)
    await asyncio.wait_for(asyncio.gather(*(gone[name].wait() for name in created)), SECONDS)


def _secret(name: str, run: str, connection: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": {_LABEL: run}},
        "immutable": True,
        "stringData": {"kernel.json": json.dumps(connection)},
    }


def _pod(name: str, run: str, image: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {_LABEL: run}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {"runAsUser": 1000, "runAsGroup": 100, "runAsNonRoot": True, "fsGroup": 100},
            "containers": [
                {
                    "name": "kernel",
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python", "-m", "ipykernel_launcher", "-f", f"{_MOUNT}/kernel.json"],
                    "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                    "volumeMounts": [{"name": "record", "mountPath": _MOUNT, "readOnly": True}],
                }
            ],
            "volumes": [{"name": "record", "secret": {"secretName": name, "defaultMode": 0o440}}],
        },
    }


def main(arguments: list[str]) -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description="Time kernels that no gateway starts, on the cluster of KUBECONFIG.")
    parser.add_argument("--count", type=int, default=1, help="how many at once (default: %(default)s)")
    parser.add_argument("--namespace", default="default", help="where (default: %(default)s)")
    parser.add_argument("--image", default=IMAGE, help="default: %(default)s")
    given = parser.parse_args(arguments)
    seconds = asyncio.run(measure(given.count, given.namespace, given.image))
    figures = {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)}
    print(f"{given.count} at once:", ", ".join(f"{name} {value:.2f} s" for name, value in figures.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
