"""Busy or idle: what a kernel's messages say about it, in the order in which they come."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from jupyter_client.session import Session
from zmq.error import Again

from elastic_kernels.gateway.activity import answers, note, watch

CELL, OTHER, INFO, COMM = (
    {"msg_type": "execute_request", "msg_id": "cell"},
    {"msg_type": "execute_request", "msg_id": "other"},
    {"msg_type": "kernel_info_request", "msg_id": "info"},
    {"msg_type": "comm_msg", "msg_id": "comm"},
)
Message = tuple[str, dict[str, Any]]


def heard(*messages: Message, is_known: bool = True, state: str = "idle") -> tuple[str, str | None]:
    """Return state and executed request after messages: a state or another kind of message, and the request it belongs to."""
    kernel = SimpleNamespace(executing=None, execution_state=state, is_known=is_known)
    for kind, parent in messages:
        is_state = kind in ("busy", "idle", "starting")
        header = {"msg_type": "status" if is_state else kind}
        note(kernel, header, parent, lambda kind=kind: {"execution_state": kind})  # type: ignore[misc]
    return kernel.execution_state, kernel.executing["msg_id"] if kernel.executing else None


@pytest.mark.parametrize(
    ("messages", "state"),
    [
        ([("busy", CELL)], ("busy", "cell")),
        ([("busy", CELL), ("stream", CELL), ("idle", CELL)], ("idle", None)),
        # an answer on the control channel while a cell runs
        ([("busy", CELL), ("busy", INFO), ("idle", INFO)], ("busy", "cell")),
        # its first word, which its answer on the shell channel has overtaken
        ([("starting", {})], ("idle", None)),
        ([("starting", {}), ("busy", CELL)], ("busy", "cell")),
        # who is asked how it is has nothing to do
        ([("busy", INFO)], ("idle", None)),
        ([("busy", INFO), ("idle", INFO)], ("idle", None)),
        ([("busy", COMM)], ("busy", None)),
        ([("busy", COMM), ("idle", COMM)], ("idle", None)),
        ([("busy", CELL), ("idle", CELL), ("busy", OTHER)], ("busy", "other")),
        # an end that is not that of the cell that runs
        ([("busy", CELL), ("busy", OTHER), ("idle", CELL)], ("busy", "other")),
        # a thread that writes in the name of a cell that is over
        ([("busy", CELL), ("idle", CELL), ("stream", CELL)], ("idle", None)),
    ],
)
def test_a_kernel_that_is_known(messages: list[Message], state: tuple[str, str | None]) -> None:
    assert heard(*messages) == state


@pytest.mark.parametrize(
    ("messages", "state"),
    [
        # its cell began before anybody listened
        ([("stream", CELL)], ("busy", "cell")),
        ([("stream", CELL), ("busy", INFO), ("idle", INFO)], ("busy", "cell")),
        ([("stream", CELL), ("idle", CELL)], ("idle", None)),
        ([("idle", CELL)], ("idle", None)),
        # others ask as well, on the control channel
        ([("busy", INFO), ("idle", INFO)], ("busy", None)),
    ],
)
def test_a_kernel_that_is_met_while_it_runs(messages: list[Message], state: tuple[str, str | None]) -> None:
    assert heard(*messages, is_known=False, state="busy") == state


class Stream:
    """An activity stream: what it is given to call, and what has arrived at its socket beyond what that is called with."""

    def __init__(self, *more: list[bytes]) -> None:
        self.socket = self
        self._more = list(more)

    def recv_multipart(self, _: int) -> list[bytes]:
        if not self._more:
            raise Again
        return self._more.pop(0)

    def on_recv(self, callback: Any) -> None:
        self.callback = callback


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"no delimiter"],
        [b"<IDS|MSG>", b""],
        [b"<IDS|MSG>", b"", b"{", b"{}", b"{}", b"{}"],
        [b"<IDS|MSG>", b"", b"1", b"2", b"{}", b"{}"],
    ],
)
def test_what_is_no_message_does_not_end_the_stream(parts: list[bytes]) -> None:
    session = Session(key=b"a key")
    busy = session.serialize(session.msg("status", {"execution_state": "busy"}, parent=session.msg("execute_request")))
    # what follows comes with it, or after it
    for stream, later in ((Stream(busy), []), (Stream(), [busy])):
        kernel = SimpleNamespace(session=session, _activity_stream=stream, execution_state="idle", kernel_id="k", last_activity=None)
        watch(kernel)
        for message in (parts, *later):
            stream.callback(message)
        assert kernel.execution_state == "busy"


def test_what_a_cell_prints_is_use() -> None:
    session = Session(key=b"a key")
    parent = session.msg("execute_request")
    stream = Stream()
    kernel = SimpleNamespace(session=session, _activity_stream=stream, execution_state="idle", kernel_id="k", last_activity=None)
    watch(kernel)
    stream.callback(session.serialize(session.msg("status", {"execution_state": "busy"}, parent=parent)))
    kernel.last_activity = None
    stream.callback(session.serialize(session.msg("stream", {"name": "stdout", "text": '"status"'}, parent=parent)))
    assert (kernel.execution_state, kernel.last_activity is None) == ("busy", False)


async def test_who_connects_waits_for_a_kernel_that_is_asked_and_not_for_one_that_is_busy() -> None:
    now = asyncio.get_running_loop().time()

    def kernel(**fields: Any) -> SimpleNamespace:
        return SimpleNamespace(**{"execution_state": "busy", "is_known": False, "answered": asyncio.Event(), "asked_at": now, **fields})

    asked = kernel()
    waiting = asyncio.ensure_future(answers(asked))
    assert not (await asyncio.wait({waiting}, timeout=0.05))[0]
    asked.answered.set()
    await asyncio.wait_for(waiting, 0.5)
    for other in (kernel(is_known=True), kernel(execution_state="idle"), kernel(asked_at=now - 1), SimpleNamespace(execution_state="busy")):
        await asyncio.wait_for(answers(other), 0.5)
