"""Requests to the Kubernetes API: raw JSON over one pool of connections, with a time limit on each and retries that are safe.

What is retried: failures in passing (no connection, no answer in time, 429, and 5xx), with exponential waits, jitter and the
server's ``Retry-After``, for ``retry_time`` seconds in all. What makes it safe: reads and deletes may be repeated as they are;
a create that had no answer may have worked, so an ``AlreadyExists`` after such an attempt is settled by looking whether the
object is the one that was sent.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import config as kubernetes_config
from kubernetes.aio.client import ApiClient, Configuration

from elastic_kernels.errors import ClusterAwayError, ClusterError, ConfigurationError
from elastic_kernels.metrics import metrics

Object = dict[str, Any]

_JSON: Final = "application/json"
_MERGE_PATCH: Final = "application/merge-patch+json"
# Kubernetes, "API Concepts", "Metadata-only fetches"
_METADATA_LIST: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_RETRIED: Final = (429, 500, 502, 503, 504)
# The machine of an API server, or a balancer before it, may be lost without a word: seconds until it is asked, between two
# questions, and how many of them.
_PROBES: Final = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_FIRST_WAIT: Final = 0.1
_LONGEST_WAIT: Final = 5.0
_SERVICE_ACCOUNT_TOKEN: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


class Client:
    """Speaks to one API server as one identity. Belongs to the event loop on which it was connected."""

    def __init__(self, api: ApiClient, *, context_namespace: str, request_timeout: float, retry_time: float) -> None:
        self.context_namespace = context_namespace
        """The namespace of the kubeconfig's context, or empty."""
        self._api = api
        self._request_timeout = request_timeout
        self._retry_time = retry_time

    @property
    def server(self) -> str:
        """The API server's URL."""
        return str(self._api.configuration.host)

    @classmethod
    async def connect(cls, *, kubeconfig: str = "", context: str = "", request_timeout: float = 10.0, retry_time: float = 75.0) -> Client:
        """Return a client for the cluster that the arguments, the pod or the environment name; no request is made.

        Order: the arguments, in-cluster configuration, ``KUBECONFIG``, ``~/.kube/config``. Raises ConfigurationError.
        """
        configuration = Configuration()
        # the API server closes the doors itself when it has too many; one pool serves watches and requests alike
        configuration.connection_pool_maxsize = 0
        configuration.retries = None
        namespace = ""
        if not kubeconfig and not context and _in_cluster():
            kubernetes_config.load_incluster_config(client_configuration=configuration)
        else:
            files = kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
            try:
                loader = await kubernetes_config.load_kube_config(files, context or None, configuration, persist_config=False)
            except (kubernetes_config.ConfigException, OSError, ValueError) as error:
                raise ConfigurationError(
                    f"No Kubernetes cluster is configured: {files} cannot be used ({error}). Set KUBECONFIG, or "
                    "ELASTIC_KERNELS_KUBECONFIG and ELASTIC_KERNELS_CONTEXT, or run inside the cluster."
                ) from error
            namespace = str((loader.current_context or {}).get("context", {}).get("namespace") or "")
        return cls(ApiClient(configuration), context_namespace=namespace, request_timeout=request_timeout, retry_time=retry_time)

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()

    async def get(self, resource: str, namespace: str, name: str) -> Object | None:
        """Return the object, or None if there is none. Raises ClusterError and ClusterAwayError."""
        try:
            return await self._retry("GET", _path(resource, namespace, name))
        except ClusterError as error:
            if error.code == 404:
                return None
            raise

    async def list(self, resource: str, namespace: str | None, *, metadata_only: bool = False, **query: str) -> Object:
        """Return the list object of ``resource``, in all namespaces if ``namespace`` is None. Raises as ``get`` does.

        It is as of now, unless ``resourceVersion`` is asked for. ``metadata_only`` leaves the objects' content at the server.
        """
        accept = _METADATA_LIST if metadata_only else _JSON
        answer = await self._retry("GET", _path(resource, namespace), query=query, accept=accept)
        # an empty list of metadata has none
        return {**answer, "items": answer.get("items") or []}

    async def create(self, resource: str, body: Object) -> Object:
        """Create ``body`` and return it as stored.

        Its labels, annotations and data tell it from any other object of its name: something in them is new at every launch.
        Raises ClusterError (code 409 for a name that another object has) and ClusterAwayError; after the latter it may exist.
        """
        metadata = body["metadata"]
        unanswered = False

        async def attempt() -> Object:
            nonlocal unanswered
            try:
                return await self._request("POST", _path(resource, metadata["namespace"]), body=body)
            except ClusterAwayError:
                unanswered = True
                raise
            except ClusterError as error:
                if error.code == 409 and unanswered:
                    found = await self._request("GET", _path(resource, metadata["namespace"], metadata["name"]))
                    if _is_same(found, body):
                        return found
                unanswered = unanswered or error.code >= 500
                raise

        return await self._until_answered(attempt)

    async def delete(
        self, resource: str, namespace: str, name: str, *, grace: int | None = None, uid: str | None = None, version: str | None = None
    ) -> bool:
        """Ask for an object's deletion; return False if it was gone already. Raises as ``get`` does.

        ``grace`` is in seconds, 0 removes a pod from the API without waiting for its node. ``uid`` protects a later object of
        the same name, and ``version``, its resourceVersion, one that somebody has changed meanwhile: then False is returned, too.
        """
        if not name:
            raise ValueError("without a name, everything would be deleted")
        options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        conditions = {"uid": uid, "resourceVersion": version}
        if wanted := {name: value for name, value in conditions.items() if value is not None}:
            options["preconditions"] = wanted
        try:
            await self._retry("DELETE", _path(resource, namespace, name), body=options)
        except ClusterError as error:
            if error.code == 404 or (error.code == 409 and "preconditions" in options):
                return False
            raise
        return True

    async def annotate(self, resource: str, item: Object, annotations: Mapping[str, str]) -> Object | None:
        """Add to an object's annotations and return it as it is then; None if it is gone, or not as it was in ``item`` any more.

        Raises as ``get`` does.
        """
        return await self.change(resource, item, {"annotations": dict(annotations)})

    async def change(self, resource: str, item: Object, metadata: Object) -> Object | None:
        """Merge into an object's metadata and return it as it is then; None if it is gone, or not as it was in ``item`` any more.

        Of several who change what they have seen in the same state, one gets it. None may also stand for a change of this very
        caller's whose answer was lost. Raises as ``get`` does.
        """
        known = item["metadata"]
        body = {"metadata": {**metadata, "resourceVersion": known["resourceVersion"]}}
        path = _path(resource, known.get("namespace"), known["name"])
        try:
            return await self._until_answered(lambda: self._request("PATCH", path, body=body, accept=_JSON))
        except ClusterError as error:
            if error.code in (404, 409):
                return None
            raise

    async def pod_log(self, namespace: str, name: str, container: str, *, lines: int) -> str:
        """Return the last lines of the log of a pod's container. Raises as ``get`` does; one attempt only."""
        query = {"container": container, "tailLines": str(lines)}
        response = await self._send("GET", _path("pods", namespace, name) + "/log", query, None)
        return response.decode("utf-8", "replace")

    @asynccontextmanager
    async def watch(
        self, resource: str, namespace: str | None, *, metadata_only: bool = False, **query: str
    ) -> AsyncIterator[AsyncIterator[Object]]:
        """Open one watch and yield its events as they arrive: ``{"type": …, "object": …}``, until the server ends it.

        The server ends it after ``timeoutSeconds``, which the caller gives; silence for longer than that raises ClusterAwayError,
        as every broken connection does, and one whose other end is gone without a word after half a minute.
        """
        silence = float(query["timeoutSeconds"]) + self._request_timeout
        timeout = aiohttp.ClientTimeout(total=None, connect=self._request_timeout, sock_read=silence)
        path = _path(resource, namespace)
        try:
            query = {**query, "watch": "1", "allowWatchBookmarks": "true"}
            response = await self._open("GET", path, query, None, timeout, _METADATA if metadata_only else _JSON)
            try:
                if response.status >= 400:
                    raise _error(response.status, await response.read(), response.headers, f"watch {path}")
                _probe(response)
                yield _lines(response)
            finally:
                response.close()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise ClusterAwayError("The Kubernetes API cannot be reached.", detail=f"watch {path}: {error!r}") from error

    async def _retry(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Object | None = None, accept: str = _JSON
    ) -> Object:
        return await self._until_answered(lambda: self._request(method, path, query=query, body=body, accept=accept))

    async def _until_answered(self, attempt: Any) -> Object:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._retry_time
        wait = _FIRST_WAIT
        while True:
            try:
                result: Object = await attempt()
                return result
            except (ClusterAwayError, ClusterError) as error:
                if isinstance(error, ClusterError) and error.code not in _RETRIED:
                    raise
                asked = error.retry_after if isinstance(error, ClusterError) else None
                pause = asked if asked is not None else wait * random.uniform(0.5, 1.0)
                if loop.time() + pause > deadline:
                    raise
            await asyncio.sleep(pause)
            wait = min(wait * 2, _LONGEST_WAIT)

    async def _request(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Object | None = None, accept: str = _JSON
    ) -> Object:
        content = await self._send(method, path, query, body, accept)
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise ClusterAwayError("The Kubernetes API's answer cannot be read.", detail=f"{method} {path}: {content[:200]!r}") from error
        if not isinstance(answer, dict):
            raise ClusterAwayError("The Kubernetes API's answer cannot be read.", detail=f"{method} {path}: {content[:200]!r}")
        return answer

    async def _send(self, method: str, path: str, query: Mapping[str, str] | None, body: Object | None, accept: str = _JSON) -> bytes:
        timeout = aiohttp.ClientTimeout(total=self._request_timeout)
        try:
            response = await self._open(method, path, query, body, timeout, accept)
            content = await response.read()
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            metrics().api_errors.labels(method, "none").inc()
            raise ClusterAwayError("The Kubernetes API cannot be reached.", detail=f"{method} {path}: {error!r}") from error
        if response.status >= 400:
            metrics().api_errors.labels(method, str(response.status)).inc()
            raise _error(response.status, content, response.headers, f"{method} {path}")
        return bytes(content)

    async def _open(
        self, method: str, path: str, query: Mapping[str, str] | None, body: Object | None, timeout: aiohttp.ClientTimeout, accept: str
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": accept, "Content-Type": _MERGE_PATCH if method == "PATCH" else _JSON}
        # the client library holds the identity: certificates, and tokens that it renews
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = f"{self._api.configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        response = await self._api.rest_client.request(method, url, headers=headers, body=body, _request_timeout=timeout)
        raw: aiohttp.ClientResponse = response.response
        return raw


def _in_cluster() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ and _SERVICE_ACCOUNT_TOKEN.is_file()


def _path(resource: str, namespace: str | None, name: str | None = None) -> str:
    parts = [
        "/api/v1",
        *(["namespaces", quote(namespace, safe="")] if namespace else []),
        resource,
        *([quote(name, safe="")] if name else []),
    ]
    return "/".join(parts)


def _probe(response: aiohttp.ClientResponse) -> None:
    """Have a connection on which nothing may come for minutes probed by the operating system, where it can."""
    transport = response.connection.transport if response.connection is not None else None
    connection = transport.get_extra_info("socket") if transport is not None else None
    if connection is None:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[Object]:
    while line := await response.content.readline():
        if line.endswith(b"\n"):  # a last line without an end was cut
            yield json.loads(line)


def _is_same(found: Object, sent: Object) -> bool:
    """Tell whether ``found`` is what ``sent`` became; webhooks may have added to it."""
    for key in ("labels", "annotations"):
        there = found["metadata"].get(key) or {}
        if any(there.get(name) != value for name, value in (sent["metadata"].get(key) or {}).items()):
            return False
    return bool(found.get("data") == sent.get("data"))


def _error(code: int, content: bytes, headers: Mapping[str, str], what: str) -> ClusterError:
    """Turn an API ``Status`` (Kubernetes, "API Concepts") into an error; an answer of something in between has none."""
    try:
        status = json.loads(content)
        message, reason = str(status.get("message", "")), str(status.get("reason", ""))
    except (ValueError, AttributeError):
        message, reason = content[:200].decode("utf-8", "replace"), ""
    try:
        retry_after = float(headers["Retry-After"]) if "Retry-After" in headers else None
    except ValueError:
        retry_after = None
    return ClusterError(
        message or f"The Kubernetes API answered with status {code}.",
        code=code,
        reason=reason,
        detail=f"{what}: {code}",
        retry_after=retry_after,
    )
