"""An informer: a local copy of all objects of one resource that match a selector, kept up to date by one watch.

List, then watch from the list's resourceVersion, with bookmarks (Kubernetes, "Efficient detection of changes"). A watch that the
server ends is resumed where it was; ``410 Gone`` means list again; any other failure means wait, with jitter, and try again,
for ever: a copy that is not being updated says so (``stale_since``), and an object that is absent from it is not known to be gone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from elastic_kernels import patience
from elastic_kernels.cluster.client import Client, Object
from elastic_kernels.errors import ClusterAwayError, ClusterError

log = logging.getLogger(__name__)

WATCH_SECONDS: Final = 300
_FIRST_WAIT: Final = 0.1
_LONGEST_WAIT: Final = 10.0
_HURRIED: Final = 0.5

Key = tuple[str, str]
"""Namespace and name."""


class Informer:
    """The copy and its upkeep. All methods are called on the event loop that ``run`` runs on; the reading ones are synchronous."""

    def __init__(
        self,
        client: Client,
        resource: str,
        namespace: str | None,
        *,
        selectors: Mapping[str, str],
        metadata_only: bool = False,
        on_change: Callable[[], None] | None = None,
        trim: Callable[[Object], Object] | None = None,
        index: Mapping[str, Callable[[Object], str]] | None = None,
    ) -> None:
        """``selectors`` are ``labelSelector`` and ``fieldSelector``; ``on_change`` is called after any change, and must not block.

        With ``metadata_only`` the copy holds nothing else of the objects. ``trim`` returns what is kept of one; a change of what is not
        kept is none. ``index`` says, by name, what objects can be found by.
        """
        self.stale_since: float | None = None
        """The loop's time since which the copy has not been kept up, None while it is."""
        self._client = client
        self._resource = resource
        self._namespace = namespace
        self._selectors = dict(selectors)
        self._metadata_only = metadata_only
        self._trim = trim
        self._observers: set[Callable[[], None]] = {on_change} if on_change else set()
        self._pause = _FIRST_WAIT
        self._objects: dict[Key, Object] = {}
        self._index = {name: _Index(value_of) for name, value_of in (index or {}).items()}
        self._followers: list[Callable[[Object], None]] = []
        self._listeners: dict[Key, set[Callable[[Object | None], None]]] = {}
        self._listed = asyncio.Event()
        self._hurry = asyncio.Event()
        self._version = ""

    def get(self, key: Key) -> Object | None:
        """Return the object as last seen, or None if it is not in the copy. The caller does not change it."""
        return self._objects.get(key)

    def objects(self) -> list[Object]:
        """Return all objects of the copy."""
        return list(self._objects.values())

    def __len__(self) -> int:
        """Return how many objects the copy has."""
        return len(self._objects)

    def find(self, index: str, value: str) -> list[Object]:
        """Return the objects of the copy that have this value, without looking at any other."""
        return [self._objects[key] for key in self._index[index].keys_of(value)]

    @property
    def is_fresh(self) -> bool:
        """Whether the copy is complete and being kept up: only then is an absent object a deleted one."""
        return self._listed.is_set() and self.stale_since is None

    def hurry(self) -> None:
        """Have a copy that is not kept up be tried again soon: somebody waits for it."""
        self._hurry.set()

    async def listed(self) -> None:
        """Wait for the first complete copy."""
        await self._listed.wait()

    def listen(self, key: Key, listener: Callable[[Object | None], None]) -> None:
        """Have ``listener`` called with the object of ``key`` after each change, with None when it goes. It must not block."""
        self._listeners.setdefault(key, set()).add(listener)

    def forget(self, key: Key, listener: Callable[[Object | None], None]) -> None:
        """End what ``listen`` began."""
        listeners = self._listeners.get(key, set())
        listeners.discard(listener)
        if not listeners:
            self._listeners.pop(key, None)

    def follow(self, follower: Callable[[Object], None]) -> None:
        """Have ``follower`` called with each object that has changed, and with the last state of one that goes. It must not block."""
        self._followers.append(follower)

    def observe(self, observer: Callable[[], None]) -> None:
        """Have ``observer`` called after any change. It must not block."""
        self._observers.add(observer)

    def unobserve(self, observer: Callable[[], None]) -> None:
        """End what ``observe`` began."""
        self._observers.discard(observer)

    async def run(self) -> None:
        """Keep the copy up until cancelled. Never raises for what the cluster does."""
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
                continue
            except _GoneError:
                self._version = ""
                await asyncio.sleep(random.uniform(0, _FIRST_WAIT))
                continue
            except ClusterError as error:
                # a refusal that will not pass by itself (RBAC) is as loud as one that will: somebody can mend it while we wait
                log.warning("Watching %s: %s (%s)", self._resource, error, error.detail)
                self._version = ""
            except ClusterAwayError as error:
                log.info("Watching %s: %s (%s)", self._resource, error, error.detail)
            except Exception:
                log.exception("Watching %s failed; the copy is built anew", self._resource)
                self._version = ""
            if self.stale_since is None:
                self.stale_since = asyncio.get_running_loop().time()
            await self._wait_a_while(self._pause * random.uniform(0.5, 1.0))
            self._pause = min(self._pause * 2, _LONGEST_WAIT)

    async def _wait_a_while(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, _HURRIED))
        self._hurry.clear()
        await patience.happens(self._hurry, max(seconds - _HURRIED, 0))

    async def _list(self) -> None:
        answer = await self._client.list(self._resource, self._namespace, metadata_only=self._metadata_only, **self._selectors)
        objects = {key_of(item): self._kept(item) for item in answer.get("items") or ()}
        gone = {key: item for key, item in self._objects.items() if key not in objects}
        changed = [key for key, item in objects.items() if _version(self._objects.get(key)) != _version(item)]
        self._objects = objects
        for index in self._index.values():
            index.rebuild(objects)
        self._version = answer["metadata"]["resourceVersion"]
        self.stale_since = None
        self._listed.set()
        for key, item in (*((key, objects[key]) for key in changed), *gone.items()):
            self._tell(key, item)

    async def _watch(self) -> None:
        query = {**self._selectors, "resourceVersion": self._version, "timeoutSeconds": str(WATCH_SECONDS)}
        async with self._client.watch(self._resource, self._namespace, metadata_only=self._metadata_only, **query) as events:
            self.stale_since = None
            self._pause = _FIRST_WAIT
            async for event in events:
                self._apply(event["type"], event["object"])

    def _apply(self, kind: str, item: Object) -> None:
        if kind == "ERROR":
            if item.get("code") == 410:
                raise _GoneError
            raise ClusterError(str(item.get("message")), code=int(item.get("code") or 500), reason=str(item.get("reason")))
        self._version = _version(item)
        if kind == "BOOKMARK":
            return
        key = key_of(item)
        kept = self._kept(item)
        before = self._objects.get(key)
        if kind == "DELETED":
            self._objects.pop(key, None)
        elif self._trim is not None and before == kept:
            return
        else:
            self._objects[key] = kept
        for index in self._index.values():
            index.change(key, before, self._objects.get(key))
        self._tell(key, kept)

    def _kept(self, item: Object) -> Object:
        # who set which field: nobody here asks, and of thousands of pods it is much
        item["metadata"].pop("managedFields", None)
        return self._trim(item) if self._trim is not None else item

    def _tell(self, key: Key, item: Object) -> None:
        for follower in self._followers:
            follower(item)
        for listener in tuple(self._listeners.get(key, ())):
            listener(self._objects.get(key))
        for observer in tuple(self._observers):
            observer()


class _Index:
    """Which objects have which value, in the order in which they got it."""

    def __init__(self, value_of: Callable[[Object], str]) -> None:
        self._value_of = value_of
        self._keys: dict[str, dict[Key, None]] = {}

    def keys_of(self, value: str) -> Iterable[Key]:
        return self._keys.get(value, ())

    def rebuild(self, objects: Mapping[Key, Object]) -> None:
        self._keys = {}
        for key, item in objects.items():
            self.change(key, None, item)

    def change(self, key: Key, before: Object | None, after: Object | None) -> None:
        old = self._value_of(before) if before is not None else None
        new = self._value_of(after) if after is not None else None
        if old == new:
            return
        if old is not None:
            self._keys[old].pop(key, None)
            if not self._keys[old]:
                del self._keys[old]
        if new is not None:
            self._keys.setdefault(new, {})[key] = None


class _GoneError(Exception):
    """The watch's resourceVersion is too old."""


def key_of(item: Object) -> Key:
    """Return an object's namespace, empty where it has none, and its name."""
    metadata: dict[str, Any] = item["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _version(item: Object | None) -> str:
    return str(item["metadata"].get("resourceVersion", "")) if item else ""
