"""Which pod a kernel is in, and which start comes next: two gateways that mean the same must come to the same."""

from __future__ import annotations

import asyncio
from datetime import datetime, timezone
from typing import Any

import pytest

from elastic_kernels import record
from elastic_kernels.reach import is_given_up, latest, next_start, ports_of_start, token_of, why_not
from tests.gateway import free_port


def pod(number: int, phase: str = "Running", *, deleted: bool = False) -> dict[str, Any]:
    deletion = {"deletionTimestamp": "2026-01-01T00:00:09Z"} if deleted else {}
    return {
        "metadata": {
            "name": f"p{number}",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {"elastic-kernels/start": str(number)},
            **deletion,
        },
        "status": {"phase": phase},
    }


@pytest.mark.parametrize(
    ("pods", "after", "number"),
    [
        ([], 1, 2),
        # nothing is known of the starts before, but that there were some
        ([], 0, 2),
        ([pod(1)], 1, 2),
        ([pod(1, deleted=True)], 1, 2),
        # another gateway has done what this one is about to do
        ([pod(1, deleted=True), pod(2)], 1, 2),
        ([pod(1), pod(2, "Pending")], 1, 2),
        # it has, and it came to nothing
        ([pod(1), pod(2, "Failed")], 1, 3),
        ([pod(2), pod(1)], 2, 3),
    ],
)
def test_the_next_start(pods: list[dict[str, Any]], after: int, number: int) -> None:
    assert next_start(pods, after) == number


def test_the_latest_pod() -> None:
    assert latest([]) is None
    assert latest([pod(2), pod(10, "Failed"), pod(1)]) == pod(10, "Failed")


def test_each_start_takes_other_ports_than_the_one_before_and_a_name_of_its_own() -> None:
    assert [ports_of_start(number) for number in (1, 2, 3, 4)] == [0, 1, 0, 1]
    assert token_of("uid", 2) == token_of("uid", 2)
    assert len({token_of("uid", 2), token_of("uid", 3), token_of("other", 2)}) == 3


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({"launch-timeout": "60"}, True),
        ({"launch-timeout": "90"}, False),
        ({}, False),
        ({"launch-timeout": "soon"}, False),
        # what waited for its user before, and what somebody else waits for as well
        ({"launch-timeout": "60", "claimed": "2026-11-24T10:00:50Z"}, False),
        ({"launch-timeout": "60", "awaited": "2026-11-24T10:01:10+00:00"}, False),
        ({"launch-timeout": "5", "awaited": "2026-11-24T10:01:10+00:00"}, True),
    ],
)
def test_what_nobody_waits_for_any_more(annotations: dict[str, str], expected: bool) -> None:
    created = {"creationTimestamp": "2026-11-24T10:00:00Z"}
    pod = {"metadata": {**created, "annotations": {f"elastic-kernels/{name}": value for name, value in annotations.items()}}}
    assert is_given_up(pod, datetime(2026, 11, 24, 10, 1, 40, tzinfo=timezone.utc)) is expected


@pytest.mark.parametrize("error", [OSError(113, "No route to host"), asyncio.TimeoutError()])
async def test_a_pod_that_cannot_be_reached_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def unreachable(_host: str, _port: int) -> Any:
        raise error

    monkeypatch.setattr(asyncio, "open_connection", unreachable)
    said = "; the gateway cannot reach its address 10.0.0.9, for want of a route or because of a network policy"
    assert await why_not(running("10.0.0.9")) == said
    # what does not run, or has no address yet, has no listener to be reached
    assert await why_not({**running("10.0.0.9"), "status": {"phase": "Pending", "podIP": "10.0.0.9"}}) == ""
    assert await why_not(running("")) == ""


async def test_of_a_pod_that_is_reached_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setattr(record, "PORT_SETS", (port, port))
    assert await why_not(running("127.0.0.1")) == ""
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port):
        assert await why_not(running("127.0.0.1")) == ""


def running(address: str) -> dict[str, Any]:
    return {"metadata": {"name": "p", "annotations": {"elastic-kernels/ports": "0"}}, "status": {"phase": "Running", "podIP": address}}
