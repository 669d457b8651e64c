"""The objects of the embedded cluster: names, uids, resourceVersions, watches, owners. No HTTP, no input or output.

An object is a plain dict and is never changed in place: each write stores a new one, so that watchers may keep what they got.
Rules from Kubernetes' "API Concepts" (resource versions, watch windows) and "Garbage Collection".
"""

from __future__ import annotations

import asyncio
import re
import secrets
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any, Final

from elastic_kernels.embedded.selectors import Object, Predicate
from elastic_kernels.merge import merge

NAMESPACED: Final = {
    "pods": "Pod",
    "secrets": "Secret",
    "configmaps": "ConfigMap",
    "events": "Event",
    "serviceaccounts": "ServiceAccount",
    "persistentvolumeclaims": "PersistentVolumeClaim",
}
CLUSTERED: Final = {"namespaces": "Namespace", "nodes": "Node", "persistentvolumes": "PersistentVolume"}
KINDS: Final = {**NAMESPACED, **CLUSTERED}

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")

Change = tuple[str, Object, Object | None]
"""Watch type (ADDED, MODIFIED, DELETED), the object, and what it was before."""


class ApiError(Exception):
    """An answer that is a ``Status`` with an error code."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason

    def status(self) -> Object:
        """Return the ``Status`` object of this error."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "code": self.code,
        }


class Watch:
    """One watcher's queue of changes, from the moment it was opened."""

    def __init__(self, store: Store, resource: str, namespace: str | None, matches: Predicate) -> None:
        self.queue: asyncio.Queue[Object | None] = asyncio.Queue()
        self._store = store
        self._resource = resource
        self._namespace = namespace
        self._matches = matches

    def offer(self, change: Change) -> None:
        """Put a change on the queue if it concerns this watcher: with a selector, objects come and go as they match."""
        kind, item, before = change
        if self._namespace is not None and item["metadata"].get("namespace") != self._namespace:
            return
        matched = before is not None and self._matches(before)
        matching = self._matches(item)
        if kind == "DELETED" or (matched and not matching):
            if matched or matching:
                self.queue.put_nowait({"type": "DELETED", "object": item})
        elif matching:
            self.queue.put_nowait({"type": "MODIFIED" if matched else "ADDED", "object": item})

    def close(self) -> None:
        """Receive nothing more."""
        self._store.watches[self._resource].discard(self)


class Store:
    """All objects, on one event loop."""

    def __init__(self, window: int = 10000) -> None:
        self.version = 1
        self.watches: dict[str, set[Watch]] = {resource: set() for resource in KINDS}
        self.listeners: dict[str, list[Callable[[Change], None]]] = {resource: [] for resource in KINDS}
        """Called with each change, in the order of writes. An object may have changed again by the time its change is told."""
        self._objects: dict[str, dict[tuple[str, str], Object]] = {resource: {} for resource in KINDS}
        self._history: deque[tuple[int, str, Change]] = deque(maxlen=window)
        self._dependants: dict[str, set[tuple[str, str, str]]] = {}
        self._uids: set[str] = set()
        self._untold: deque[tuple[str, Change]] = deque()
        self._telling = False
        self.delete_dependant: Callable[[str, str, str], None] = lambda resource, namespace, name: None
        """How a dependant of a deleted owner is deleted; set by whoever knows about grace periods."""

    def get(self, resource: str, namespace: str, name: str) -> Object:
        """Return an object. Raises ApiError 404."""
        try:
            return self._objects[resource][namespace, name]
        except KeyError:
            raise ApiError(404, "NotFound", f'{resource} "{name}" not found') from None

    def find(self, resource: str, namespace: str, name: str) -> Object | None:
        """Return an object or None."""
        return self._objects[resource].get((namespace, name))

    def list(self, resource: str, namespace: str | None, matches: Predicate = lambda item: True) -> list[Object]:
        """Return all objects that match."""
        items = self._objects[resource].values()
        return [item for item in items if (namespace is None or item["metadata"].get("namespace") == namespace) and matches(item)]

    def create(self, resource: str, namespace: str, item: Object) -> Object:
        """Store a new object and return it as stored. Raises ApiError 409 and 422."""
        metadata = dict(item.get("metadata") or {})
        name = metadata.get("name") or (metadata["generateName"] + secrets.token_hex(3)[:5] if metadata.get("generateName") else "")
        if not name or len(name) > 253 or not _NAME.fullmatch(name):
            raise ApiError(422, "Invalid", f'{KINDS[resource]} "{name}" is invalid: metadata.name: Invalid value: "{name}"')
        if (namespace, name) in self._objects[resource]:
            raise ApiError(409, "AlreadyExists", f'{resource} "{name}" already exists')
        if namespace and self.find("namespaces", "", namespace) is None:
            raise ApiError(404, "NotFound", f'namespaces "{namespace}" not found')
        metadata |= {"name": name, "uid": str(uuid.uuid4()), "creationTimestamp": now()}
        if resource in NAMESPACED:
            metadata["namespace"] = namespace
        else:
            metadata.pop("namespace", None)
        stored = self._write("ADDED", resource, {**item, "apiVersion": "v1", "kind": KINDS[resource], "metadata": metadata}, None)
        self._uids.add(metadata["uid"])
        for owner in metadata.get("ownerReferences") or ():
            self._dependants.setdefault(owner["uid"], set()).add((resource, namespace, name))
            if owner["uid"] not in self._uids:
                self.delete_dependant(resource, namespace, name)
        return stored

    def replace(self, resource: str, item: Object) -> Object:
        """Store a new state of an object. Raises ApiError 404, and 409 if the state that it is based on is not the latest."""
        metadata = item["metadata"]
        before = self.get(resource, metadata.get("namespace", ""), metadata["name"])
        expected = metadata.get("resourceVersion")
        if expected and expected != before["metadata"]["resourceVersion"]:
            raise ApiError(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {resource} "{metadata["name"]}": the object has been modified; '
                "please apply your changes to the latest version and try again",
            )
        kept = {key: before["metadata"][key] for key in ("uid", "creationTimestamp")}
        item = {**item, "apiVersion": "v1", "kind": KINDS[resource], "metadata": {**metadata, **kept}}
        if {**item, "metadata": {**item["metadata"], "resourceVersion": before["metadata"]["resourceVersion"]}} == before:
            return before  # a write that changes nothing is no event
        written = self._write("MODIFIED", resource, item, before)
        self._change_owners(resource, before, item)
        return written

    def _change_owners(self, resource: str, before: Object, after: Object) -> None:
        key = (resource, before["metadata"].get("namespace", ""), before["metadata"]["name"])
        old, new = ({owner["uid"] for owner in each["metadata"].get("ownerReferences") or ()} for each in (before, after))
        for uid in old - new:
            self._dependants.get(uid, set()).discard(key)
        for uid in new - old:
            self._dependants.setdefault(uid, set()).add(key)
            if uid not in self._uids:
                self.delete_dependant(*key)

    def patch(self, resource: str, namespace: str, name: str, patch: Object) -> Object:
        """Merge ``patch`` into an object."""
        return self.replace(resource, merge(self.get(resource, namespace, name), patch))

    def remove(self, resource: str, namespace: str, name: str) -> Object:
        """Take an object away at once, and its dependants after it. Raises ApiError 404."""
        before = self.get(resource, namespace, name)
        del self._objects[resource][namespace, name]
        uid = before["metadata"]["uid"]
        self._uids.discard(uid)
        gone = self._write("DELETED", resource, before, before)
        for owner in before["metadata"].get("ownerReferences") or ():
            self._dependants.get(owner["uid"], set()).discard((resource, namespace, name))
        for dependant in self._dependants.pop(uid, ()):
            self.delete_dependant(*dependant)
        if resource == "namespaces":
            for kind in NAMESPACED:
                for item in self.list(kind, name):
                    self.delete_dependant(kind, name, item["metadata"]["name"])
        return gone

    def watch(self, resource: str, namespace: str | None, matches: Predicate, since: int) -> Watch:
        """Open a watch that begins after ``since``; 0 is from now on, with all that is there. Raises ApiError 410 if it is too old."""
        watch = Watch(self, resource, namespace, matches)
        if since == 0:
            for item in self.list(resource, namespace, matches):
                watch.queue.put_nowait({"type": "ADDED", "object": item})
        else:
            oldest = self._history[0][0] if len(self._history) == self._history.maxlen else 0
            if since < oldest - 1:
                raise ApiError(410, "Expired", f"too old resource version: {since} ({oldest})")
            for change in self._since(resource, since):
                watch.offer(change)
        self.watches[resource].add(watch)
        return watch

    def _since(self, resource: str, version: int) -> Iterator[Change]:
        return (change for at, kind, change in self._history if at > version and kind == resource)

    def _write(self, kind: str, resource: str, item: Object, before: Object | None) -> Object:
        self.version += 1
        metadata = {**item["metadata"], "resourceVersion": str(self.version)}
        item = {**item, "metadata": metadata}
        if kind != "DELETED":
            self._objects[resource][metadata.get("namespace", ""), metadata["name"]] = item
        change = (kind, item, before)
        self._history.append((self.version, resource, change))
        for watch in tuple(self.watches[resource]):
            watch.offer(change)
        self._untold.append((resource, change))
        self._tell()
        return item

    def _tell(self) -> None:
        """Call the listeners; what they write themselves is told after what they are being told of."""
        if self._telling:
            return
        self._telling = True
        try:
            while self._untold:
                resource, change = self._untold.popleft()
                for listener in self.listeners[resource]:
                    listener(change)
        finally:
            self._telling = False


def now() -> str:
    """Return the time as the API writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def record_event(store: Store, pod: Object, kind: str, reason: str, message: str, source: str) -> None:
    """Write an event about a pod, or count it if the same was said before."""
    metadata: dict[str, Any] = pod["metadata"]
    name = f"{metadata['name']}.{uuid.uuid5(uuid.UUID(metadata['uid']), reason + message).hex[:16]}"
    known = store.find("events", metadata["namespace"], name)
    if known is not None:
        store.replace("events", {**known, "count": known["count"] + 1, "lastTimestamp": now()})
        return
    if store.find("namespaces", "", metadata["namespace"]) is None:
        return
    involved = {"kind": "Pod", "apiVersion": "v1", "namespace": metadata["namespace"], "name": metadata["name"], "uid": metadata["uid"]}
    store.create(
        "events",
        metadata["namespace"],
        {
            "metadata": {"name": name},
            "involvedObject": involved,
            "type": kind,
            "reason": reason,
            "message": message,
            "source": {"component": source},
            "count": 1,
            "firstTimestamp": now(),
            "lastTimestamp": now(),
        },
    )
