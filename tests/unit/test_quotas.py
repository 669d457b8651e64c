"""A start that a quota refuses asks again when others may have given theirs back, for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from elastic_kernels.errors import ClusterError
from elastic_kernels.quotas import Wait
from elastic_kernels.status import Phase, Status
from tests.unit import virtual_time


def refusal(message: str) -> ClusterError:
    return ClusterError(message, code=403, reason="Forbidden")


FULL = refusal('pods "p" is forbidden: exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1')
TOO_SMALL = refusal('pods "p" is forbidden: exceeded quota: q, requested: pods=2, used: pods=0, limited: pods=1')
FORBIDDEN = refusal('pods is forbidden: User "u" cannot create resource "pods"')


class Pods:
    """Stands for the gateway's copy of all pods."""

    def __init__(self) -> None:
        self.observers: set[Callable[[], None]] = set()

    def observe(self, observer: Callable[[], None]) -> None:
        self.observers.add(observer)

    def unobserve(self, observer: Callable[[], None]) -> None:
        self.observers.discard(observer)

    def change(self) -> None:
        for observer in self.observers:
            observer()


def after_changes_at(*moments: float, refusals: list[ClusterError]) -> tuple[list[float], list[Status]]:
    """Return at which seconds a start asks again that is refused in this way each time, and what it notes of that."""
    pods = Pods()
    noted: list[Status] = []

    async def asks() -> list[float]:
        loop = asyncio.get_running_loop()
        for moment in moments:
            loop.call_later(moment, pods.change)
        wait = Wait(pods, noted.append)  # type: ignore[arg-type]
        asked = []
        for refused in refusals:
            if not await wait.may_ask_again(refused):
                break
            asked.append(round(loop.time(), 3))
        assert not pods.observers
        return asked

    return virtual_time.run(asks()), noted


def test_it_looks_now_and_then() -> None:
    asked, noted = after_changes_at(refusals=[FULL] * 3)
    assert asked == [1, 2, 3]
    assert {status.phase for status in noted} == {Phase.QUEUED}


def test_it_lets_kubernetes_count_what_has_ended_before_it_asks() -> None:
    """What a quota lets in while it is counted may stay uncounted."""
    asked, _ = after_changes_at(0.5, 0.6, 1.5, refusals=[FULL] * 3)
    assert asked == [0.75, 1.75, 2.75]


def test_others_have_their_time_and_no_more() -> None:
    asked, _ = after_changes_at(refusals=[FULL] * 100)
    assert asked[-1] == 21


@pytest.mark.parametrize("refused", [TOO_SMALL, FORBIDDEN])
def test_what_no_waiting_mends(refused: ClusterError) -> None:
    assert after_changes_at(refusals=[refused]) == ([], [])
