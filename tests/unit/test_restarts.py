"""What becomes of a kernel that has ended, by its cause and by whether somebody is connected to it."""

from __future__ import annotations

import pytest

from elastic_kernels.disruption import Cause
from elastic_kernels.profiles import parse_profile
from elastic_kernels.restarts import MOST_CRASHES, Action, after

PLAIN = parse_profile({"name": "a", "image": "i"}, "a")
AGAIN = parse_profile({"name": "a", "image": "i", "restart_after_loss": True}, "a")


@pytest.mark.parametrize(
    ("cause", "connected", "alone", "where_the_profile_says_so"),
    [
        (Cause.DELETED, Action.RESTART, Action.REMOVE, Action.RESTART),
        (Cause.COMPLETED, Action.RESTART, Action.REMOVE, Action.RESTART),
        (Cause.CRASHED, Action.RESTART, Action.KEEP, Action.RESTART),
        (Cause.OUT_OF_MEMORY, Action.KEEP, Action.KEEP, Action.KEEP),
        (Cause.UNSTARTABLE, Action.KEEP, Action.KEEP, Action.KEEP),
        (Cause.REFUSED, Action.KEEP, Action.KEEP, Action.KEEP),
        (Cause.EVICTED, Action.KEEP, Action.KEEP, Action.RESTART),
        (Cause.PREEMPTED, Action.KEEP, Action.KEEP, Action.RESTART),
        (Cause.RECLAIMED, Action.KEEP, Action.KEEP, Action.RESTART),
        (Cause.NODE_LOST, Action.KEEP, Action.KEEP, Action.RESTART),
        (None, Action.KEEP, Action.KEEP, Action.KEEP),
    ],
)
def test_after(cause: Cause | None, connected: Action, alone: Action, where_the_profile_says_so: Action) -> None:
    assert after(cause, PLAIN, is_connected=True, crashes=0) is connected
    assert after(cause, PLAIN, is_connected=False, crashes=0) is alone
    assert after(cause, AGAIN, is_connected=True, crashes=0) is where_the_profile_says_so
    assert after(cause, AGAIN, is_connected=False, crashes=0) is alone


def test_a_kernel_that_crashes_again_and_again_is_left_dead() -> None:
    assert after(Cause.CRASHED, PLAIN, is_connected=True, crashes=MOST_CRASHES - 1) is Action.RESTART
    assert after(Cause.CRASHED, PLAIN, is_connected=True, crashes=MOST_CRASHES) is Action.KEEP
