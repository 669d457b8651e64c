"""The Kubernetes API over HTTP, for the resources of the store: what kubectl and the gateway's client need of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from elastic_kernels import quantities, taints
from elastic_kernels.embedded.faults import Fault, Faults
from elastic_kernels.embedded.selectors import Object, Predicate, field_predicate, label_predicate
from elastic_kernels.embedded.store import CLUSTERED, KINDS, NAMESPACED, ApiError, Store, now
from elastic_kernels.merge import merge

_VERBS: Final = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
_SHORT: Final = {"pods": ["po"], "nodes": ["no"], "namespaces": ["ns"], "configmaps": ["cm"], "events": ["ev"]}
_BOOKMARK_SECONDS: Final = 60.0


class Api:
    """Answers requests from a store. Nothing here is kept but what the faults count."""

    def __init__(self, store: Store, faults: Faults, log_of: Callable[[Object], Path]) -> None:
        self._store = store
        self._faults = faults
        self._log_of = log_of
        store.delete_dependant = self._delete_dependant

    def application(self) -> web.Application:
        """Return the web application."""
        application = web.Application(client_max_size=4 * 2**20, middlewares=[self._guard])
        application.router.add_get("/{tail:(version|api|apis|api/v1|healthz|readyz|livez)/?}", _discover)
        application.router.add_route("*", "/api/v1/{path:.+}", self._resource)
        return application

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self._faults.away:
            _cut(request)
        try:
            response: web.StreamResponse = await handler(request)
        except ApiError as error:
            return web.json_response(error.status(), status=error.code)
        except web.HTTPNotFound:
            return web.json_response(ApiError(404, "NotFound", "the server could not find the requested resource").status(), status=404)
        return response

    async def _resource(self, request: web.Request) -> web.StreamResponse:
        namespace, resource, name, sub = _parse(request.match_info["path"])
        verb = _verb(request, name)
        try:
            fault = await self._faults.befall(verb, resource)
        except ApiError as error:
            matching = next((f for f in self._faults.active if f.status == error.code and f.retry_after is not None), None)
            headers = {"Retry-After": str(matching.retry_after)} if matching else {}
            return web.json_response(error.status(), status=error.code, headers=headers)
        if verb == "watch":
            return await self._watch(request, resource, namespace)
        if sub == "log" and name:
            return self._log(request, namespace or "", name)
        body = await _body(request)
        answer, status = self._answer(request, verb, resource, namespace, name, sub, body)
        return _respond(request, answer, status, fault)

    def _answer(
        self, request: web.Request, verb: str, resource: str, namespace: str | None, name: str | None, sub: str, body: Any
    ) -> tuple[Object, int]:
        space = namespace or ""
        if verb == "list":
            items = self._store.list(resource, namespace, _selection(request))
            if _wants_metadata(request):
                items = [_metadata_of(item) for item in items]
            return _list(resource, items, self._store.version), 200
        if verb == "create":
            return self._store.create(resource, space, _checked(resource, body)), 201
        if verb == "deletecollection":
            items = self._store.list(resource, namespace, _selection(request))
            for item in items:
                self._delete(resource, item, body or {})
            return _list(resource, items, self._store.version), 200
        assert name is not None
        current = self._store.get(resource, space, name)
        if verb == "get":
            return current, 200
        if verb == "delete":
            return self._delete(resource, current, {**_delete_options(request), **(body or {})}), 200
        return self._store.replace(resource, _changed(current, body, verb, sub, request.content_type)), 200

    def _delete(self, resource: str, item: Object, options: Object) -> Object:
        metadata = item["metadata"]
        preconditions = options.get("preconditions") or {}
        uid, version = preconditions.get("uid"), preconditions.get("resourceVersion")
        if version and version != metadata["resourceVersion"]:
            found = metadata["resourceVersion"]
            raise ApiError(
                409, "Conflict", f"Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {found}"
            )
        if uid and uid != metadata["uid"]:
            raise ApiError(409, "Conflict", f"Precondition failed: UID in precondition: {uid}, UID in object meta: {metadata['uid']}")
        space, name = metadata.get("namespace", ""), metadata["name"]
        if options.get("propagationPolicy") == "Orphan":
            for kind in NAMESPACED:
                for other in self._store.list(kind, space):
                    owners = [o for o in other["metadata"].get("ownerReferences") or () if o["uid"] != metadata["uid"]]
                    if len(owners) != len(other["metadata"].get("ownerReferences") or ()):
                        self._store.replace(kind, {**other, "metadata": {**other["metadata"], "ownerReferences": owners}})
        grace = options.get("gracePeriodSeconds")
        if grace is None:
            grace = item["spec"].get("terminationGracePeriodSeconds", 30) if resource == "pods" else 0
        ended = (item.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        if resource != "pods" or grace == 0 or not item["spec"].get("nodeName") or ended:
            return self._store.remove(resource, space, name)
        known = metadata.get("deletionGracePeriodSeconds")
        if known is not None and known <= grace:
            return item
        marked = {**metadata, "deletionTimestamp": now(), "deletionGracePeriodSeconds": grace}
        return self._store.replace(resource, {**item, "metadata": marked})

    def _delete_dependant(self, resource: str, namespace: str, name: str) -> None:
        item = self._store.find(resource, namespace, name)
        if item is not None:
            self._delete(resource, item, {})

    async def _watch(self, request: web.Request, resource: str, namespace: str | None) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        try:
            await response.prepare(request)
        except ConnectionError:
            # whoever asked did not wait
            return response
        since = int(request.query.get("resourceVersion") or 0)
        try:
            watch = self._store.watch(resource, namespace, _selection(request), since)
        except ApiError as error:
            await _send(response, {"type": "ERROR", "object": error.status()})
            return response
        cut = self._faults.cut
        loop = asyncio.get_running_loop()
        end = loop.time() + float(request.query.get("timeoutSeconds") or 1800)
        cutting = asyncio.ensure_future(cut.wait())
        try:
            while (left := end - loop.time()) > 0:
                getting = asyncio.ensure_future(watch.queue.get())
                done, _ = await asyncio.wait({getting, cutting}, timeout=min(left, _BOOKMARK_SECONDS), return_when=asyncio.FIRST_COMPLETED)
                if cutting in done:
                    getting.cancel()
                    _cut(request)
                if getting in done:
                    event = getting.result()
                    if event is not None and _wants_metadata(request):
                        event = {**event, "object": _metadata_of(event["object"])}
                    await _send(response, event)
                    continue
                getting.cancel()
                if request.query.get("allowWatchBookmarks"):
                    mark = {"kind": KINDS[resource], "apiVersion": "v1", "metadata": {"resourceVersion": str(self._store.version)}}
                    await _send(response, {"type": "BOOKMARK", "object": mark})
        except ConnectionError:
            pass
        finally:
            cutting.cancel()
            watch.close()
        return response

    def _log(self, request: web.Request, namespace: str, name: str) -> web.Response:
        pod = self._store.get("pods", namespace, name)
        path = self._log_of(pod)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        count = request.query.get("tailLines")
        return web.Response(body=b"".join(lines[-int(count) :] if count else lines), content_type="text/plain")


def _parse(path: str) -> tuple[str | None, str, str | None, str]:
    """Return namespace, resource, name and subresource of a path below /api/v1. Raises ApiError 404."""
    parts = path.strip("/").split("/")
    namespace = None
    if parts[0] == "namespaces" and len(parts) > 2 and parts[2] not in ("status", "finalize"):
        namespace, parts = parts[1], parts[2:]
    resource, name, sub = (*parts, "", "")[:3]
    known = resource in NAMESPACED or (resource in CLUSTERED and namespace is None)
    if not known or len(parts) > 3:
        raise ApiError(404, "NotFound", "the server could not find the requested resource")
    return namespace, resource, name or None, sub


def _verb(request: web.Request, name: str | None) -> str:
    if request.method == "GET":
        watches = request.query.get("watch") in ("1", "true")
        return "watch" if watches else "get" if name else "list"
    if request.method == "DELETE":
        return "delete" if name else "deletecollection"
    try:
        return {"POST": "create", "PUT": "update", "PATCH": "patch"}[request.method]
    except KeyError:
        raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource") from None


async def _body(request: web.Request) -> Any:
    text = await request.read()
    if not text:
        return None
    try:
        return json.loads(text)
    except ValueError:
        raise ApiError(400, "BadRequest", "the body of the request is not JSON") from None


def _selection(request: web.Request) -> Predicate:
    try:
        labels = label_predicate(request.query.get("labelSelector", ""))
        fields = field_predicate(request.query.get("fieldSelector", ""))
    except ValueError as error:
        raise ApiError(400, "BadRequest", str(error)) from None
    return lambda item: labels(item) and fields(item)


def _checked(resource: str, body: Any) -> Object:
    """Return a body that is fit to be stored. Raises ApiError 400 and 422, for what a real server would refuse as well."""
    if not isinstance(body, dict) or not isinstance(body.get("metadata"), dict):
        raise ApiError(400, "BadRequest", "the object provided is unrecognized")
    for key, value in (body["metadata"].get("labels") or {}).items():
        if not taints.is_qualified_name(key) or not taints.is_label_value(str(value)):
            raise ApiError(422, "Invalid", f"metadata.labels: Invalid value: {value!r}")
    if resource != "pods":
        return {**body, "spec": body.get("spec") or {}} if resource == "nodes" else body
    containers = (body.get("spec") or {}).get("containers")
    if not containers or not all(container.get("name") and container.get("image") for container in containers):
        raise ApiError(422, "Invalid", "spec.containers: Required value")
    names = {volume["name"] for volume in body["spec"].get("volumes") or ()}
    for container in containers:
        for mount in container.get("volumeMounts") or ():
            if mount["name"] not in names:
                raise ApiError(422, "Invalid", f'spec.containers[0].volumeMounts[0].name: Not found: "{mount["name"]}"')
        for amounts in (container.get("resources") or {}).values():
            for amount in amounts.values():
                try:
                    quantities.parse(str(amount))
                except ValueError as error:
                    raise ApiError(400, "BadRequest", str(error)) from None
    return {**body, "status": {"phase": "Pending", "qosClass": "Burstable"}}


def _changed(current: Object, body: Any, verb: str, sub: str, content_type: str) -> Object:
    if verb == "update":
        return {**current, "status": body.get("status", {})} if sub == "status" else {**body, "status": current.get("status", {})}
    if content_type == "application/json-patch+json":
        return _json_patch(current, body)
    return merge(current, body)


def _json_patch(item: Object, operations: Any) -> Object:
    """Apply add, replace and remove of a JSON patch (RFC 6902) to mappings."""
    result: Object = json.loads(json.dumps(item))
    for operation in operations:
        *path, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        target = result
        for part in path:
            target = target.setdefault(part, {})
        if operation["op"] == "remove":
            target.pop(last, None)
        else:
            target[last] = operation["value"]
    return result


def _delete_options(request: web.Request) -> Object:
    grace = request.query.get("gracePeriodSeconds")
    return {"gracePeriodSeconds": int(grace)} if grace is not None else {}


def _wants_metadata(request: web.Request) -> bool:
    return "as=PartialObjectMetadata" in request.headers.get("Accept", "")


def _metadata_of(item: Object) -> Object:
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"]}


def _list(resource: str, items: list[Object], version: int) -> Object:
    return {"kind": f"{KINDS[resource]}List", "apiVersion": "v1", "metadata": {"resourceVersion": str(version)}, "items": items}


def _respond(request: web.Request, answer: Object, status: int, fault: Fault | None) -> web.Response:
    if fault is not None and fault.lost:
        _cut(request)
    text = json.dumps(answer)
    if fault is not None and fault.truncated:
        text = text[: len(text) // 2]
    return web.Response(text=text, status=status, content_type="application/json")


async def _send(response: web.StreamResponse, event: Any) -> None:
    await response.write(json.dumps(event).encode() + b"\n")


def _cut(request: web.Request) -> None:
    """Close the connection without an answer."""
    if request.transport is not None:
        with contextlib.suppress(OSError):
            request.transport.abort()
    raise ConnectionResetError


async def _discover(request: web.Request) -> web.Response:
    """Answer what clients ask before anything else: versions, groups, resources."""
    path = request.match_info["tail"].strip("/")
    if path in ("healthz", "readyz", "livez"):
        return web.Response(text="ok")
    if path == "version":
        return web.json_response({"major": "1", "minor": "30", "gitVersion": "v1.30.0-embedded"})
    if path == "api":
        return web.json_response({"kind": "APIVersions", "versions": ["v1"]})
    if path == "apis":
        return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": []})
    resources = [
        {
            "name": name,
            "singularName": kind.lower(),
            "namespaced": name in NAMESPACED,
            "kind": kind,
            "verbs": _VERBS,
            "shortNames": _SHORT.get(name, []),
        }
        for name, kind in KINDS.items()
    ]
    return web.json_response({"kind": "APIResourceList", "groupVersion": "v1", "resources": resources})
