"""Pods that are to go only as long as nobody else wants them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from elastic_kernels.cluster import Client, Object
from elastic_kernels.cluster.informer import Informer
from elastic_kernels.cluster.reaper import Reaper, RecordRef
from tests.gateway import until

KEY = ("ns", "pod")


class OnePod(Client):
    """An API server with one pod, at which something may happen between two requests."""

    def __init__(self) -> None:
        self.pod: Object | None = {"metadata": {"name": "pod", "namespace": "ns", "uid": "u", "resourceVersion": "1", "annotations": {}}}
        self.after_get: Callable[[], object] = lambda: None
        self.asked: list[tuple[str, str | None]] = []

    def annotate_it(self, version: str, **annotations: str) -> None:
        assert self.pod is not None
        metadata = self.pod["metadata"]
        self.pod = {"metadata": {**metadata, "resourceVersion": version, "annotations": {**metadata["annotations"], **annotations}}}

    async def get(self, resource: str, namespace: str, name: str) -> Object | None:
        found = self.pod
        await asyncio.sleep(0)
        self.after_get()
        return found

    async def delete(
        self, resource: str, namespace: str, name: str, *, grace: int | None = None, uid: str | None = None, version: str | None = None
    ) -> bool:
        self.asked.append((resource, version))
        is_it = self.pod is not None and version in (None, self.pod["metadata"]["resourceVersion"])
        if is_it and resource == "pods":
            self.pod = None
        return is_it


def reaper_of(client: OnePod) -> Reaper:
    return Reaper(client, Informer(client, "pods", "ns", selectors={}))


def is_unwanted(pod: Object) -> bool:
    return "wanted" not in pod["metadata"]["annotations"]


async def decided(reaper: Reaper) -> bool:
    """Return, once that is certain, whether the pod is on its way out."""
    await reaper.decided(KEY, 5)
    is_ending = reaper.is_ending(KEY)
    await reaper.close(1)
    return is_ending


async def test_a_pod_that_is_wanted_by_now_stays() -> None:
    client = OnePod()
    client.annotate_it("2", wanted="yes")
    reaper = reaper_of(client)
    reaper.end(*KEY, grace=0, still=is_unwanted)
    assert not await decided(reaper)
    assert (client.pod is not None, client.asked) == (True, [])


async def test_a_pod_that_is_wanted_while_it_is_deleted_stays() -> None:
    client = OnePod()
    changes = [{"version": "3", "wanted": "yes"}, {"version": "2"}]

    def change() -> None:
        if changes:
            client.annotate_it(**changes.pop())

    client.after_get = change
    reaper = reaper_of(client)
    reaper.end(*KEY, grace=0, still=is_unwanted)
    assert not await decided(reaper)
    assert (client.pod is not None, client.asked) == (True, [("pods", "1"), ("pods", "2")])


async def test_a_pod_that_nobody_wants_goes() -> None:
    client = OnePod()
    reaper = reaper_of(client)
    reaper.end(*KEY, grace=0, still=is_unwanted)
    assert await decided(reaper)
    assert (client.pod, client.asked) == (None, [("pods", "1")])


async def test_a_later_pod_of_the_same_name_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the reaper has not seen that the one before is gone, and takes what it waits for to be on a lost node."""
    monkeypatch.setattr("elastic_kernels.cluster.reaper._MARGIN", 0.05)
    client = OnePod()
    reaper = reaper_of(client)
    reaper.end(*KEY, grace=0, still=is_unwanted)
    await reaper.decided(KEY, 5)
    client.pod = {"metadata": {"name": "pod", "namespace": "ns", "uid": "another", "resourceVersion": "9", "annotations": {}}}

    async def is_over() -> bool:
        return not reaper.is_ending(KEY)

    await until(is_over, "the first pod's end", seconds=5)
    assert (client.pod is not None, client.asked) == (True, [("pods", "1")])


async def test_what_several_want_to_go_goes_if_one_of_them_does() -> None:
    client = OnePod()
    client.annotate_it("2", wanted="yes")
    reaper = reaper_of(client)
    reaper.end(*KEY, grace=0, still=is_unwanted)
    reaper.end(*KEY, grace=0, still=lambda pod: not is_unwanted(pod))
    assert not reaper.is_certain(KEY)
    assert await decided(reaper)
    assert client.pod is None


async def test_whoever_shuts_a_kernel_down_has_its_pod_go_in_any_case() -> None:
    client = OnePod()
    client.annotate_it("2", wanted="yes")
    reaper = reaper_of(client)
    client.after_get = lambda: reaper.end(*KEY, grace=0, record=RecordRef("record", "token", "u2"))
    reaper.end(*KEY, grace=0, still=is_unwanted)
    assert await decided(reaper)
    assert (client.pod, client.asked[-1]) == (None, ("secrets", None))
