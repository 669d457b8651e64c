"""``elastic-kernels shutdown``: ends kernels, of one user or all of a deployment, which no gateway does by itself.

It needs no gateway. The kernels get their grace period; gateways that serve them see them go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from elastic_kernels import names
from elastic_kernels.cluster import Client, Object
from elastic_kernels.errors import ClusterAwayError
from elastic_kernels.settings import ElasticKernels, default_namespace

_PAUSE: Final = 0.5
# What kubelets need beyond the longest grace period.
_MARGIN: Final = 60.0


async def shut_down(settings: ElasticKernels, user: str | None, say: Callable[[str], None]) -> None:
    """End the kernels of ``user``, or with None of everybody, and return when their pods are gone; ``say`` gets a line for each.

    Raises ConfigurationError, ClusterError and ClusterAwayError, the latter also if pods are still there after their time.
    """
    client = await Client.connect(
        kubeconfig=settings.kubeconfig, context=settings.context, request_timeout=settings.request_timeout, retry_time=settings.retry_time
    )
    namespace = None if settings.user_namespace else settings.namespace or default_namespace(client.context_namespace)
    selector = names.selector(settings.deployment) + (f",{names.USER}={names.slug(user)}" if user is not None else "")
    try:
        records, pods = await asyncio.gather(
            client.list("secrets", namespace, metadata_only=True, labelSelector=selector),
            client.list("pods", namespace, labelSelector=selector),
        )
        found = [*pods["items"], *records["items"]]
        await asyncio.gather(*(_delete(client, "pods", item, grace=_grace(item)) for item in pods["items"]))
        await asyncio.gather(*(_delete(client, "secrets", item) for item in records["items"]))
        if user is None:
            # what waits for nobody now, and has nothing to end; a gateway that runs keeps others
            for resource in ("pods", "secrets"):
                waiting = await client.list(resource, namespace, metadata_only=True, labelSelector=names.warm_selector(settings.deployment))
                await asyncio.gather(*(_delete(client, resource, item, grace=0) for item in waiting["items"]))
        for item in records["items"]:
            say(_line(item))
        longest = max((item["spec"].get("terminationGracePeriodSeconds", 30) for item in pods["items"]), default=0)
        end = asyncio.get_running_loop().time() + longest + _MARGIN
        while left := (await client.list("pods", namespace, labelSelector=selector))["items"]:
            if asyncio.get_running_loop().time() > end:
                raise ClusterAwayError(f"{len(left)} pods do not end; their nodes may be away: {', '.join(_name(item) for item in left)}.")
            await asyncio.sleep(_PAUSE)
        say(f"{len(records['items'])} kernels of the deployment {settings.deployment!r} are shut down" if found else "there was none")
    finally:
        await client.close()


async def _delete(client: Client, resource: str, item: Object, *, grace: int | None = None) -> None:
    metadata = item["metadata"]
    await client.delete(resource, metadata["namespace"], metadata["name"], grace=grace, uid=metadata["uid"])


def _grace(pod: Object) -> int | None:
    """Return the seconds that a pod has to end, None for those that it says itself.

    One that does not run, as far as its kubelet has said, needs none, and the kubelet may look for its record, which goes as well,
    for more than a minute before it lets the pod go.
    """
    return 0 if pod["status"].get("phase") == "Pending" else None


def _line(item: Object) -> str:
    annotations = item["metadata"].get("annotations") or {}
    facts = [annotations.get(names.TITLE, ""), annotations.get(names.USER, ""), annotations.get(names.NOTEBOOK, "")]
    return "  ".join([item["metadata"]["labels"].get(names.KERNEL_ID, ""), *filter(None, facts)])


def _name(item: Object) -> str:
    return f"{item['metadata']['namespace']}/{item['metadata']['name']}"
