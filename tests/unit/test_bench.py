"""What the benches say of what they measured, and the wire protocol of the stand-in kernels, spoken by ZeroMQ itself."""

from __future__ import annotations

import asyncio
import math
from xml.etree import ElementTree

import pytest
from jupyter_client.session import Session
from zmq.asyncio import Context
from zmq.constants import SocketType

from bench import figures, launch, phases, plot, standins
from tests.gateway import free_port, until


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, 2.0, 4.0], "2.00 (1.00 to 4.00)"),
        ([1.0, math.inf], "1.00 (1.00 to 1.00, 1 of 2)"),
        ([math.inf], "0 of 1"),
    ],
)
def test_spread(values: list[float], said: str) -> None:
    assert figures.spread(values) == said


@pytest.mark.parametrize(
    ("values", "base", "said"),
    [([3.0, 3.0], [2.0], "1.50"), ([3.0, math.inf], [2.0], "1.50 (1/2)"), ([math.inf], [2.0], "none"), ([1.0], [math.inf], "none")],
)
def test_ratio(values: list[float], base: list[float], said: str) -> None:
    assert figures.ratio(values, base) == said


def test_what_comes_long_after_the_others_of_its_round() -> None:
    others = [launch.Start(str(number), 1.0, 5.0 + number) for number in range(5)]
    slow, silent, refused = launch.Start("slow", 4.9, 34.9), launch.Start("silent", 1.0), launch.Start()
    assert launch.late([*others, slow, silent, refused]) == [slow, silent]
    assert launch.late([silent, silent]) == [silent, silent]
    assert launch.late(others) == launch.late([slow]) == launch.late([]) == []


def test_a_table() -> None:
    assert figures.aligned([["", "one"], ["long", "1"], ["s", "100"]]) == "      one\nlong    1\ns     100"


def test_the_picture() -> None:
    starts = {
        "floor": {"1": [1.0], "20": [4.0]},
        "ours": {"1": [1.1], "20": [4.4]},
        "warm": {"1": [0.1], "20": [0.4]},
        "stock": {"1": [3.0], "20": [math.inf]},
    }
    messages = {"an <empty> cell": {"direct": [0.004], "ours": [0.004], "stock": [0.05]}}
    rows = plot.rows(starts, messages)
    assert [what for what, _ in rows] == ["1 at once, to the first output", "20 at once, to the first output", "an <empty> cell"]
    assert rows[1][1] == {"ours": pytest.approx(1.1), "warm": pytest.approx(0.1), "stock": math.inf}
    drawn = ElementTree.fromstring(plot.svg(rows))
    texts = [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"an <empty> cell", "stock Enterprise Gateway: none came", "12", "0.1", "a warm start of it"} <= set(texts)
    assert plot.rows(None, None) == []


def test_where_the_time_of_a_start_goes() -> None:
    seen = phases.Seen()
    pod = {"metadata": {"name": "pod"}, "spec": {}, "status": {"phase": "Pending"}}
    seen.note("secrets", {"metadata": {"name": "record"}}, is_gone=False)
    seen.note("pods", pod, is_gone=False)
    assert set(seen.moments) == {phases.RECORD, phases.POD}
    seen.note("pods", {**pod, "spec": {"nodeName": "general"}}, is_gone=False)
    scheduled = seen.moments[phases.SCHEDULED]
    seen.note("pods", {**pod, "spec": {"nodeName": "general"}, "status": {"phase": "Running"}}, is_gone=False)
    assert seen.moments[phases.SCHEDULED] == scheduled <= seen.moments[phases.RUNNING]
    assert seen.pods == {"pod"}
    seen.note("pods", pod, is_gone=True)
    assert not seen.pods
    # what the floor does not have is a part of what follows
    moments = {phases.RECORD: 10.5, phases.POD: 11.0, phases.OUTPUT: 14.0}
    assert phases.durations(10.0, moments) == {phases.RECORD: 0.5, phases.POD: 0.5, phases.OUTPUT: 3.0}


@pytest.mark.parametrize("length", [0, 1, 255, 256, 70000])
def test_frames(length: int) -> None:
    buffer = bytearray(standins.multipart([b"x" * length, b"end"]))
    rest = buffer[-2:]
    del buffer[-2:]
    first = list(standins.frames_of(buffer))
    buffer += rest
    assert [body for _, body in (*first, *standins.frames_of(buffer))] == [b"x" * length, b"end"]
    assert not buffer


async def test_a_stand_in_answers() -> None:
    ports = [free_port() for _ in range(5)]
    kernel = await standins.listen("127.0.0.1", "a key", ports)
    context = Context()
    session = Session(key=b"a key")
    try:
        shell, iopub = context.socket(SocketType.DEALER), context.socket(SocketType.SUB)
        iopub.subscribe(b"")
        iopub.connect(f"tcp://127.0.0.1:{ports[1]}")
        shell.connect(f"tcp://127.0.0.1:{ports[0]}")

        async def receive(socket: object) -> str:
            _, parts = session.feed_identities(await asyncio.wait_for(socket.recv_multipart(), 10))  # type: ignore[attr-defined]
            return str(session.deserialize(parts)["msg_type"])

        await until(lambda: kernel.subscribers, "the subscription")
        await shell.send_multipart(session.serialize(session.msg("execute_request", {"code": "pass"})))
        assert await receive(shell) == "execute_reply"
        assert [await receive(iopub) for _ in range(3)] == ["status", "stream", "status"]
    finally:
        context.destroy(linger=0)
        kernel.close()
