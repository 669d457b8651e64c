"""Which of Spark's executors the gateway deletes, and when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from elastic_kernels.cluster.executors import LOST_AFTER, READABLE_FOR, Executors

DRIVER = "ana-1-a"


def pod(name: str, phase: str = "Running", *, going: bool = False, **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "kernels", "uid": f"uid-{name}", "labels": labels}
    return {"metadata": {**metadata, **({"deletionTimestamp": "now"} if going else {})}, "status": {"phase": phase}}


def executor(name: str, phase: str = "Running", *, going: bool = False) -> dict[str, Any]:
    return pod(name, phase, going=going, **{"elastic-kernels/executor-of": DRIVER})


def copy(*pods: dict[str, Any], is_fresh: bool = True) -> Any:
    """Return an informer's copy."""
    found = {(each["metadata"]["namespace"], each["metadata"]["name"]): each for each in pods}
    return SimpleNamespace(get=found.get, objects=lambda: list(found.values()), is_fresh=is_fresh)


def looks(drivers: Any, executors: Any, *times: float, ending: str = "") -> list[list[str]]:
    """Return the names of what is to be deleted at each of these times, and the grace period of each."""
    ends: Any = Executors(None, drivers, executors, lambda key: key[1] == ending)  # type: ignore[arg-type]
    return [sorted(f"{each['metadata']['name']}/{grace}" for each, grace in ends.superfluous(now)) for now in times]


@pytest.mark.parametrize(
    ("drivers", "expected"),
    [
        (copy(pod(DRIVER)), [[], []]),
        (copy(), [[], ["exec-1/1"]]),
        (copy(pod(DRIVER, "Failed")), [[], ["exec-1/1"]]),
        (copy(pod(DRIVER, going=True)), [[], ["exec-1/1"]]),
        (copy(pod("another")), [[], ["exec-1/1"]]),
        (copy(is_fresh=False), [[], []]),
    ],
)
def test_an_executor_ends_with_its_driver(drivers: Any, expected: list[list[str]]) -> None:
    """What is not there at the first look may merely not have been seen."""
    assert looks(drivers, copy(executor("exec-1")), 0.0, 1.0) == expected


def test_an_executor_ends_as_soon_as_the_gateway_ends_its_driver() -> None:
    assert looks(copy(pod(DRIVER)), copy(executor("exec-1")), 0.0, ending=DRIVER) == [["exec-1/1"]]


def test_one_that_has_ended_can_be_read_for_a_while() -> None:
    present = copy(executor("exec-1", "Failed"), executor("exec-2", "Succeeded"), executor("exec-3"))
    assert looks(copy(pod(DRIVER)), present, 0.0, READABLE_FOR - 1, READABLE_FOR) == [[], [], ["exec-1/1", "exec-2/1"]]


def test_one_that_never_ran_needs_no_time() -> None:
    assert looks(copy(), copy(executor("exec-1", "Pending")), 0.0, 1.0) == [[], ["exec-1/0"]]
    assert looks(copy(pod(DRIVER)), copy(executor("exec-1", "Pending", going=True)), 0.0) == [["exec-1/0"]]


def test_one_that_is_going_is_let_go_for_a_while() -> None:
    """After that its machine does not answer, and Spark replaces nothing that is there."""
    present = copy(executor("exec-1", going=True))
    assert looks(copy(), present, 0.0, LOST_AFTER - 1, LOST_AFTER) == [[], [], ["exec-1/0"]]
