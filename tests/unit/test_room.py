"""A gateway takes the sockets and files that it may have, and what the environment says stands."""

from __future__ import annotations

import os
import resource

import pytest

from elastic_kernels.gateway import room


@pytest.fixture(autouse=True)
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Stand for the system's limits: a process may have few files, and as many as it asks for."""
    monkeypatch.setattr(os, "environ", {})
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: asked.append(pair))
    return asked


def test_all_that_there_is(limits: list[tuple[int, int]]) -> None:
    room.make()
    assert (os.environ["EG_ZMQ_MAX_SOCKETS"], limits) == ("65535", [(4096, 4096)])


def test_what_the_environment_says_stands() -> None:
    os.environ["EG_ZMQ_MAX_SOCKETS"] = "2000"
    room.make()
    assert os.environ["EG_ZMQ_MAX_SOCKETS"] == "2000"


def test_a_system_that_refuses_is_no_reason_not_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    room.make()
