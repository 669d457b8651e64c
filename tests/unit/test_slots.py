"""The limits as tables: what is exceeded, by whom, and what the sentence says."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from elastic_kernels import slots
from elastic_kernels.cluster import Client, Informer, Object, Reaper, RecordRef
from elastic_kernels.cluster.sweeper import ORPHANED_AFTER, Sweeper
from elastic_kernels.errors import ClusterAwayError, NotAllowedError
from elastic_kernels.names import record_name
from elastic_kernels.profiles import parse_profile
from elastic_kernels.record import Record, from_secret, to_secret
from elastic_kernels.slots import Holder, Limits, exceeded

SMALL = Holder("ns", "n1", "u1", 10, "ana", "interactive", "1", "k1", "Small", "", "2026-11-24T09:05:00Z", {"memory": "2Gi", "cpu": "1"})
GPU = replace(
    SMALL, name="n2", uid="u2", order=20, limit_class="gpu", title="GPU", notebook="work/train.ipynb", usage={"memory": "8Gi", "gpu": "2"}
)
BIAS = replace(SMALL, name="n3", uid="u3", order=30, user="bia")
LATER = replace(SMALL, name="n9", uid="u9", order=90)
MINE = replace(SMALL, name="n5", uid="u5", order=50, title="Mine")


@pytest.mark.parametrize(
    ("limits", "others", "sentence"),
    [
        (Limits(), [SMALL, GPU, BIAS], None),
        (Limits(per_class={"interactive": 2}), [SMALL, GPU, BIAS], None),
        (
            Limits(per_class={"interactive": 1}),
            [SMALL, GPU, BIAS],
            "You have 1 of 1 interactive kernels: 'Small' (since 24 Nov 09:05 UTC). Shut one down (in JupyterLab under Running Terminals and "
            "Kernels) to start another.",
        ),
        (Limits(per_class={"interactive": 1}), [LATER], None),
        (Limits(per_class={"interactive": 0}), [], "You have 0 of 0 interactive kernels."),
        (Limits(per_user=3), [SMALL, GPU, BIAS], None),
        (
            Limits(per_user=2),
            [GPU, SMALL, BIAS],
            "You have 2 of 2 kernels: 'Small' (since 24 Nov 09:05 UTC), 'GPU' (train.ipynb, since 24 Nov 09:05 UTC). Shut one down (in "
            "JupyterLab under Running Terminals and Kernels) to start another.",
        ),
        (Limits(resources={"memory": "12Gi"}), [SMALL, GPU, BIAS], None),
        (
            Limits(resources={"memory": "11Gi"}),
            [SMALL, GPU, BIAS],
            "'Mine' takes 2Gi of memory, and you may have 11Gi with all your kernels together: 'Small' (2Gi of memory, since 24 Nov 09:05 "
            "UTC), 'GPU' (train.ipynb, 8Gi of memory, since 24 Nov 09:05 UTC). Shut one down (in JupyterLab under Running Terminals and "
            "Kernels) to start another.",
        ),
        (Limits(resources={"memory": "1Gi"}), [], "'Mine' takes 2Gi of memory, and you may have 1Gi: choose a smaller kernel."),
        (Limits(resources={"gpu": "2"}), [GPU], None),
        (Limits(total=4), [SMALL, GPU, BIAS], None),
        (
            Limits(total=1),
            [BIAS],
            "All 1 kernels that this gateway may run at a time are in use. Try again when somebody has shut one down.",
        ),
    ],
)
def test_exceeded(limits: Limits, others: list[Holder], sentence: str | None) -> None:
    excess = exceeded(limits, MINE, others)
    assert (excess.sentence if excess else None) == sentence
    # other people's kernels are nobody's business
    assert excess is None or "bia" not in excess.sentence


def test_who_waits_is_told_to_only_where_it_helps() -> None:
    held, too_large = (exceeded(limits, MINE, [SMALL, GPU]) for limits in (Limits(per_user=2), Limits(resources={"memory": "1Gi"})))
    assert held is not None
    assert too_large is not None
    assert slots._refusal(held).retry_after
    assert slots._refusal(replace(too_large, holders=())).retry_after is None


def test_a_long_list_is_cut() -> None:
    excess = exceeded(Limits(per_user=9), MINE, [replace(SMALL, order=number) for number in range(9)])
    assert excess is not None
    assert excess.sentence.count("'Small'") == 5
    assert " and 4 more. Shut one down" in excess.sentence


def test_a_record_says_what_it_holds() -> None:
    record = Record(
        "k", "small", "Ana <a@b>", "ns", "blue", key="x", token="t", slot="2", title="Small", notebook="a/b.ipynb", usage={"gpu": "1"}
    )
    secret: dict[str, Any] = to_secret(record)
    secret["metadata"] |= {"uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-11-24T09:05:00Z"}
    found = slots.holder(secret)
    assert found == Holder(
        "ns", record.name, "u", 7, "Ana <a@b>", "interactive", "2", "k", "Small", "a/b.ipynb", "2026-11-24T09:05:00Z", {"gpu": "1"}
    )
    assert from_secret(secret) == record


def test_usage_and_what_has_none() -> None:
    profile = parse_profile({"name": "p", "image": "i", "memory": {"request": "1Gi"}, "cpu": {"request": "1", "limit": 2}, "gpu": 2}, "p")
    assert slots.usage(profile) == {"memory": "1Gi", "cpu": "2", "gpu": "2"}
    unlimited = parse_profile({"name": "p", "image": "i"}, "p")
    slots.check(unlimited, Limits(resources={"gpu": "1"}))
    with pytest.raises(NotAllowedError, match="how much memory it takes"):
        slots.check(unlimited, Limits(resources={"memory": "1Gi"}))


def test_no_two_users_share_a_name() -> None:
    users = ["ana", "Ana", "ana-interactive", "ana.interactive", "a na", "anà", "ana--1", "x" * 41, "x" * 42, "", "kernel.default.ana"]
    names = {record_name(deployment, user, pool, "1") for deployment in ("a", "a-b") for user in users for pool in ("b", "b-c")}
    assert len(names) == 2 * len(users) * 2
    assert all(len(name) <= 253 for name in names)


class OneSecret(Client):
    """An API server with one secret, which says what it was asked."""

    def __init__(self, secret: Object) -> None:
        self.secret, self.asked = secret, list[tuple[str, Any]]()
        self.away = 0

    async def get(self, resource: str, namespace: str, name: str) -> Object | None:
        return self.secret if name == self.secret["metadata"]["name"] else None

    async def delete(
        self, resource: str, namespace: str, name: str, *, grace: int | None = None, uid: str | None = None, version: str | None = None
    ) -> bool:
        if self.away:
            self.away -= 1
            raise ClusterAwayError("away")
        self.asked.append((name, uid))
        return resource == "secrets"


def secret(token: str) -> Object:
    return {"metadata": {"name": "slot", "namespace": "ns", "uid": "u2", "annotations": {"elastic-kernels/launch": token}}}


@pytest.mark.parametrize(
    ("reference", "deleted"),
    [
        (RecordRef("slot", "mine", "u1"), [("slot", "u1")]),  # the server refuses another uid
        (RecordRef("slot", "mine"), [("slot", "u2")]),
        (RecordRef("slot", "of-before"), []),
        (RecordRef("gone", "mine"), []),
    ],
)
async def test_the_reaper_takes_no_record_that_came_after(reference: RecordRef, deleted: list[Any]) -> None:
    client = OneSecret(secret("mine"))
    reaper = Reaper(client, Informer(client, "pods", "ns", selectors={}))
    ending = reaper.end("ns", None, grace=0, record=reference)
    await asyncio.wait_for(ending.accepted.wait(), 5)
    assert client.asked == deleted
    await reaper.close(1)


def test_the_sweeper_waits_and_sees_first(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    class FakeReaper:
        def end(self, namespace: str, pod: str | None, *, grace: int, record: RecordRef | None = None) -> None:
            ended.append(f"{record.name}/{record.uid}" if record is not None else f"pod {pod}")

    client = OneSecret(secret("t"))
    pods, records = (Informer(client, resource, "ns", selectors={}) for resource in ("pods", "secrets"))
    starting: set[str] = set()
    sweeper = Sweeper(pods, records, FakeReaper(), starting.__contains__)  # type: ignore[arg-type]
    metadata = {"name": "slot", "namespace": "ns", "uid": "u", "resourceVersion": "1", "labels": {"elastic-kernels/kernel-id": "k"}}
    records._apply("ADDED", {"metadata": metadata})
    sweeper.sweep(0.0)
    sweeper.sweep(1000.0)
    assert ended == []  # neither copy is complete yet
    for informer in (pods, records):
        informer._listed.set()
    sweeper.sweep(1000.0)
    sweeper.sweep(1000.0 + ORPHANED_AFTER - 1)
    pods._apply("ADDED", {"metadata": {**metadata, "name": "pod"}})
    sweeper.sweep(1000.0 + ORPHANED_AFTER + 1)
    pods._apply("DELETED", {"metadata": {**metadata, "name": "pod"}})
    sweeper.sweep(1000.0 + ORPHANED_AFTER + 2)
    assert ended == []  # it had one in between
    pods.stale_since = 1.0
    sweeper.sweep(2000.0)
    pods.stale_since = None
    sweeper.sweep(2001.0)
    assert ended == []  # nothing counts that was not seen
    starting.add("k")
    sweeper.sweep(2001.0 + ORPHANED_AFTER)
    assert ended == []  # the API takes its time over the pod
    starting.clear()
    sweeper.sweep(3000.0)
    sweeper.sweep(3000.0 + ORPHANED_AFTER)
    assert ended == ["slot/u"]
    # and pods whose record is gone, while a record's is not touched
    records._apply("DELETED", {"metadata": metadata})
    records._apply("ADDED", {"metadata": {**metadata, "name": "other", "uid": "o", "labels": {"elastic-kernels/kernel-id": "l"}}})
    for name, owner in (("of-none", "u"), ("of-one", "o")):
        labels = {"elastic-kernels/kernel-id": "l" if owner == "o" else "k"}
        pods._apply("ADDED", {"metadata": {**metadata, "name": name, "uid": name, "labels": labels, "ownerReferences": [{"uid": owner}]}})
    sweeper.sweep(4000.0)
    sweeper.sweep(4000.0 + ORPHANED_AFTER - 1)
    assert ended == ["slot/u"]
    sweeper.sweep(4000.0 + ORPHANED_AFTER)
    assert ended == ["slot/u", "pod of-none"]
