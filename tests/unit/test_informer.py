"""An informer's indexes say what a walk through all objects would say, whatever comes."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from elastic_kernels.cluster import Informer

CHANGES = st.lists(
    st.tuples(st.sampled_from(["ADDED", "MODIFIED", "DELETED", "list"]), st.integers(0, 4), st.sampled_from(["ana", "bob", ""])),
    max_size=30,
)


class Listing:
    """A client whose list is what it is told."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []

    async def list(self, *_: object, **__: object) -> dict[str, Any]:
        return {"items": self.items, "metadata": {"resourceVersion": "1"}}


def item(number: int, user: str) -> dict[str, Any]:
    return {"metadata": {"namespace": "ns", "name": f"kernel-{number}", "resourceVersion": "1", "annotations": {"user": user}}}


def user_of(found: dict[str, Any]) -> str:
    return str(found["metadata"]["annotations"]["user"])


@given(CHANGES)
def test_an_index_finds_what_is_there(changes: list[tuple[str, int, str]]) -> None:
    client = Listing()
    informer = Informer(client, "secrets", "ns", selectors={}, index={"user": user_of})  # type: ignore[arg-type]
    for kind, number, user in changes:
        if kind == "list":
            client.items = [item(each, user) for each in range(number)]
            asyncio.run(informer._list())
        else:
            informer._apply(kind, item(number, user))
        for name in ("ana", "bob", "", "nobody"):
            assert sorted(map(str, informer.find("user", name))) == sorted(
                str(each) for each in informer.objects() if user_of(each) == name
            )
        assert len(informer) == len(informer.objects())


def test_who_set_which_field_is_not_kept() -> None:
    client = Listing()
    client.items = [{**item(1, "ana"), "metadata": {**item(1, "ana")["metadata"], "managedFields": [{"manager": "kubelet"}]}}]
    informer = Informer(client, "pods", "ns", selectors={})  # type: ignore[arg-type]
    asyncio.run(informer._list())
    assert informer.objects() == [item(1, "ana")]
    changed = item(1, "bob")
    informer._apply("MODIFIED", {**changed, "metadata": {**changed["metadata"], "managedFields": [{"manager": "kubelet"}]}})
    assert informer.objects() == [changed]
