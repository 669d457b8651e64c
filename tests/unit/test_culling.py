"""When a kernel has been idle for long enough, and who says so."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest

from elastic_kernels.gateway.culling import ends_at, interval, is_to_be_written, limit_of, used_at, warning
from elastic_kernels.profiles import parse_profile

NOW = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
BEFORE = NOW - timedelta(minutes=10)


def manager(**settings: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"cull_idle_timeout": 0, "cull_busy": False, "cull_connected": False, "_kernel_connections": {}, **settings})


def kernel(state: str = "idle", **fields: Any) -> SimpleNamespace:
    profile = parse_profile({"name": "a", "image": "i", **fields}, "a")
    proxy = SimpleNamespace(profile=profile)
    return SimpleNamespace(kernel_id="k", execution_state=state, last_activity=BEFORE, process_proxy=proxy, died_at="2026-01-01T11:00:00Z")


def pod(**annotations: str) -> dict[str, Any]:
    return {"metadata": {"creationTimestamp": "2026-01-01T10:00:00Z", "annotations": annotations}}


@pytest.mark.parametrize(
    ("kernels", "one", "seconds"),
    [
        (manager(), kernel(), 0),
        (manager(cull_idle_timeout=600), kernel(), 600),
        (manager(cull_idle_timeout=600), kernel(idle_time=60), 60),
        (manager(), kernel("dead"), 86400),
        (manager(), kernel("dead", idle_time=60), 60),
    ],
)
def test_the_limit(kernels: Any, one: Any, seconds: float) -> None:
    assert limit_of(kernels, one) == seconds


@pytest.mark.parametrize(
    ("kernels", "one", "here"),
    [
        (manager(), kernel(), BEFORE),
        (manager(), kernel("busy"), NOW),
        (manager(), kernel("starting"), NOW),
        (manager(), kernel("busy", cull_busy=True), BEFORE),
        (manager(cull_busy=True), kernel("busy"), BEFORE),
        (manager(_kernel_connections={"k": 1}), kernel(), NOW),
        (manager(_kernel_connections={"k": 1}), kernel(cull_connected=True), BEFORE),
        (manager(), kernel("dead"), datetime(2026, 1, 1, 11, tzinfo=timezone.utc)),
    ],
)
def test_the_last_use(kernels: Any, one: Any, here: datetime) -> None:
    assert used_at(kernels, one, None, NOW) == (here, None)


def test_what_others_know_is_on_the_pod() -> None:
    assert used_at(manager(), kernel(), pod(), NOW)[1] is None
    assert is_to_be_written(600, BEFORE, None)
    shared = used_at(manager(), kernel(), pod(**{"elastic-kernels/used": "2026-01-01T11:59:00+00:00"}), NOW)[1]
    assert shared == NOW - timedelta(minutes=1)
    assert ends_at(600, BEFORE, shared) == shared + timedelta(seconds=600)
    assert ends_at(600, NOW, shared) == NOW + timedelta(seconds=600)


def test_what_is_known_here_is_written_before_others_could_cull() -> None:
    assert interval(3600) == 60
    assert interval(60) == 10
    # at the latest after one and a half intervals, and never within one
    assert is_to_be_written(60, NOW, NOW - timedelta(seconds=16))
    assert not is_to_be_written(60, NOW, NOW - timedelta(seconds=9))
    assert not is_to_be_written(60, BEFORE, NOW)


def test_the_warning() -> None:
    assert warning(3600, NOW + timedelta(seconds=601), NOW) == ""
    assert warning(3600, NOW + timedelta(seconds=600), NOW) == "it is shut down at 12:10:00 UTC if nothing uses it until then"
