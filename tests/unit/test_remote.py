"""What the client of a gateway does on its own: what an answer means, what a start does about it, what was lost."""

from __future__ import annotations

import asyncio
import json
import re
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from elastic_kernels.errors import SILENT_KERNEL, ConfigurationError
from elastic_kernels.remote import start
from elastic_kernels.remote.channels import Channels, decode
from elastic_kernels.remote.gateway import Address, Answer, Gateway, GatewayError, address
from elastic_kernels.remote.ledger import Counter, Ledger
from elastic_kernels.remote.start import Patience, Starting, Verdict, kernel_environment, verdict

Told = tuple[int, str, dict[str, str]]
URL = {"JUPYTER_GATEWAY_URL": "http://gateway:8888/"}


@pytest.mark.parametrize(
    ("environment", "arguments", "expected"),
    [
        (URL, {}, Address("http://gateway:8888")),
        ({}, {"url": "https://g/base"}, Address("https://g/base")),
        ({**URL, "JUPYTERHUB_API_TOKEN": "h"}, {}, Address("http://gateway:8888", {"Authorization": "token h"})),
        (
            {**URL, "JUPYTERHUB_API_TOKEN": "h", "JUPYTER_GATEWAY_AUTH_TOKEN": "g", "JUPYTER_GATEWAY_AUTH_SCHEME": "Bearer"},
            {},
            Address("http://gateway:8888", {"Authorization": "Bearer g"}),
        ),
        ({**URL, "JUPYTER_GATEWAY_AUTH_TOKEN": "g"}, {"token": "t"}, Address("http://gateway:8888", {"Authorization": "token t"})),
        (
            {**URL, "JUPYTER_GATEWAY_HEADERS": '{"X": "1"}', "JUPYTER_GATEWAY_VALIDATE_CERT": "no", "JUPYTER_GATEWAY_CA_CERTS": "ca.pem"},
            {},
            Address("http://gateway:8888", {"X": "1"}, validate_cert=False, ca_certs="ca.pem"),
        ),
    ],
)
def test_the_address(environment: Mapping[str, str], arguments: Any, expected: Address) -> None:
    assert address(environment, **arguments) == expected


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "No gateway is named"),
        ({"JUPYTER_GATEWAY_URL": "gateway:8888"}, "'gateway:8888' is not the address of a gateway"),
        ({**URL, "JUPYTER_GATEWAY_HEADERS": "[]"}, "JUPYTER_GATEWAY_HEADERS is not"),
        ({**URL, "JUPYTER_GATEWAY_HEADERS": "{"}, "JUPYTER_GATEWAY_HEADERS is not"),
    ],
)
def test_an_address_that_is_none(environment: Mapping[str, str], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence):
        address(environment)


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(address(URL, token="secret"))


def test_what_a_start_sends_along() -> None:
    environment = {"KERNEL_USERNAME": "x", "KERNEL_ID": "of another", "KERNEL_TEAM": "a", "HOME": "/h", "AWS_PROFILE": "p"}
    environment["JUPYTER_GATEWAY_ALLOWED_ENVS"] = "AWS_PROFILE, OTHER"
    assert kernel_environment(environment, user="ana", folder="/home/ana", notebook="a.ipynb") == {
        "KERNEL_USERNAME": "ana",
        "KERNEL_TEAM": "a",
        "AWS_PROFILE": "p",
        "KERNEL_WORKING_DIR": "/home/ana",
        "KERNEL_LIMIT_CLASS": "scheduled",
        "JPY_SESSION_NAME": "a.ipynb",
    }


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(201), Verdict.STARTED),
        (Answer(403), Verdict.REFUSED),
        (Answer(403, retry_after=10), Verdict.FULL),
        (Answer(404), Verdict.REFUSED),
        (Answer(500), Verdict.REFUSED),
        (Answer(409), Verdict.FAILED),
        (Answer(503), Verdict.AWAY),
        (Answer(429), Verdict.AWAY),
        (Answer(504), Verdict.FAILED),
        (Answer(504, from_gateway=False), Verdict.AWAY),
        (Answer(0, from_gateway=False), Verdict.AWAY),
    ],
)
def test_what_an_answer_means(answer: Answer, expected: Verdict) -> None:
    assert verdict(answer) is expected


@dataclass
class Scripted:
    """A gateway that answers starts as it is told; a kernel exists once an answer was 201, or ``lost`` stands for one that got lost."""

    answers: list[Told]
    statuses: list[dict[str, Any]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    has_kernel: bool = False
    afterwards: dict[str, Any] | None = None
    """What the status is after the last of ``statuses``."""
    answers_never: bool = False
    said_all: asyncio.Event = field(default_factory=asyncio.Event)

    async def post(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.json())
        # a start takes as long as there is something to say about it
        if self.answers_never:
            await asyncio.sleep(60)
        if self.statuses:
            await self.said_all.wait()
        status, text, headers = self.answers.pop(0)
        if status == 0:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        self.has_kernel = self.has_kernel or status == 201 or text == "lost"
        return web.Response(status=status, text=text, headers=headers, content_type="application/json")

    async def get(self, _request: web.Request) -> web.Response:
        return web.json_response({}, status=200 if self.has_kernel else 404)

    async def status(self, _request: web.Request) -> web.Response:
        if not self.statuses:
            self.said_all.set()
            return web.json_response(self.afterwards or {}, status=200 if self.afterwards else 404)
        return web.json_response(self.statuses.pop(0))

    async def channels(self, request: web.Request) -> web.WebSocketResponse:
        """Close a websocket, as gateways do for a kernel that takes connections and says nothing."""
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        await websocket.close(code=SILENT_KERNEL, message=b"The kernel does not answer.")
        return websocket

    async def specs(self, _request: web.Request) -> web.Response:
        return web.json_response({"kernelspecs": {"small": {}, "gpu": {}}})


@asynccontextmanager
async def scripted(answers: Sequence[Told], **more: Any) -> AsyncIterator[tuple[Scripted, Gateway]]:
    gateway = Scripted(list(answers), **more)
    application = web.Application()
    application.router.add_post("/api/kernels", gateway.post)
    application.router.add_get("/api/kernelspecs", gateway.specs)
    application.router.add_get("/api/kernels/{id}", gateway.get)
    application.router.add_get("/api/kernels/{id}/status", gateway.status)
    application.router.add_get("/api/kernels/{id}/channels", gateway.channels)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    client = Gateway(Address(f"http://127.0.0.1:{port}"))
    try:
        yield gateway, client
    finally:
        client.close()
        await runner.cleanup()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_FIRST_PAUSE", 0.01)
    monkeypatch.setattr(start, "_FAILED_PAUSE", 0.02)
    monkeypatch.setattr(start, "_STATUS_PAUSE", 0.02)
    monkeypatch.setattr(start, "_LOOK_SECONDS", 0.1)


def said(message: str) -> str:
    return json.dumps({"message": message})


HTML = "<html>504 Gateway Time-out</html>"
CREATED: Told = (201, "{}", {})
LATE: Told = (504, said("It was not ready within 2 seconds."), {})
FULL: Told = (403, said("You have 1 of 1."), {"Retry-After": "0"})
AWAY: Told = (504, HTML, {})
HUB_AWAY: Told = (503, said("JupyterHub does not answer."), {})
EXISTS: Told = (409, said("There is a kernel with that id already."), {})


@pytest.mark.parametrize(
    ("answers", "requests"),
    [
        ([CREATED], 1),
        ([LATE, LATE, CREATED], 3),
        ([FULL, FULL, FULL, FULL, CREATED], 5),
        # a proxy gave up, and the gateway went on
        ([AWAY, EXISTS, EXISTS, EXISTS, EXISTS, CREATED], 6),
        # the kernel is there, and the answer that said so got lost
        ([(504, "lost", {})], 1),
        ([(0, "", {}), AWAY, CREATED], 3),
        ([HUB_AWAY, HUB_AWAY, HUB_AWAY, HUB_AWAY, CREATED], 5),
        ([AWAY, HUB_AWAY, EXISTS, EXISTS, EXISTS, EXISTS, CREATED], 7),
    ],
)
async def test_a_start_that_succeeds_in_the_end(answers: list[Told], requests: int) -> None:
    async with scripted(answers) as (gateway, client):
        starting = Starting(client, "small", {"KERNEL_USERNAME": "ana"}, Patience(), gateway.told.append)
        await starting.run()
        assert [asked["env"]["KERNEL_ID"] for asked in gateway.asked] == [starting.kernel_id] * requests
        assert starting.may_have_begun
        assert gateway.answers == []


@pytest.mark.parametrize(
    ("answers", "patience", "sentence", "later", "begun"),
    [
        ([LATE, LATE], Patience(retries=1), "It was not ready within 2 seconds.", True, False),
        ([FULL], Patience(limit=0), "You have 1 of 1.", True, False),
        ([AWAY], Patience(away=0), "answers 504", True, True),
        ([HUB_AWAY], Patience(away=0), "JupyterHub does not answer.", True, False),
        ([EXISTS, EXISTS], Patience(retries=1), "There is a kernel", True, False),
        ([(403, said("Not for you."), {})], Patience(), "Not for you.", False, False),
        ([(500, said("It cannot start."), {})], Patience(), "It cannot start.", False, False),
        ([(404, said("No."), {})], Patience(), "has no profile 'huge': there are gpu, small.", False, False),
    ],
)
async def test_a_start_that_does_not(answers: list[Told], patience: Patience, sentence: str, later: bool, begun: bool) -> None:
    async with scripted(answers) as (gateway, client):
        starting = Starting(client, "huge", {}, patience, gateway.told.append)
        with pytest.raises(GatewayError) as caught:
            await starting.run()
        assert sentence in str(caught.value)
        assert (caught.value.may_succeed_later, starting.may_have_begun) == (later, begun)


async def test_what_a_start_waits_for_is_said() -> None:
    sentences = ["it waits for the scheduler", "a machine is being brought up for it", "a machine is being brought up for it"]
    statuses = [{"phase": "x", "sentence": text, "since": "2026-01-01T00:00:00Z", "hopeless": False} for text in sentences]
    async with scripted([CREATED], statuses=list(statuses)) as (gateway, client):
        gateway.afterwards = statuses[-1]
        await Starting(client, "gpu", {}, Patience(start=60), gateway.told.append).run()
        assert [re.sub(r" \(\d s\)$", "", line) for line in gateway.told] == [f"gpu: {text}" for text in sentences[:2]]
        assert gateway.asked[0]["env"]["KERNEL_LAUNCH_TIMEOUT"] == "60"


async def test_a_start_whose_answer_never_comes() -> None:
    async with scripted([CREATED], statuses=[{"sentence": "it runs", "hopeless": False}]) as (gateway, client):
        gateway.afterwards, gateway.has_kernel = gateway.statuses[-1], True
        gateway.answers_never = True
        await asyncio.wait_for(Starting(client, "gpu", {}, Patience(), gateway.told.append).run(), 10)


@pytest.mark.parametrize(("cause", "requests"), [("preempted", 2), ("unstartable", 1), (None, 1)])
async def test_what_a_machine_did_is_tried_again(cause: str | None, requests: int) -> None:
    async with scripted([(500, said("It cannot start."), {}), CREATED]) as (gateway, client):
        gateway.afterwards = {"phase": "failed", "sentence": "it was ended", "hopeless": True, "cause": cause}
        starting = Starting(client, "gpu", {}, Patience(), gateway.told.append)
        if requests == 1:
            with pytest.raises(GatewayError):
                await starting.run()
        else:
            await starting.run()
        assert len(gateway.asked) == requests


async def test_a_kernel_that_takes_connections_and_says_nothing() -> None:
    async with scripted([], has_kernel=True) as (gateway, client):
        channels = Channels(client, "a-kernel", "a-session", lambda channel, message: None, 60, gateway.told.append)
        await asyncio.wait_for(channels.run(), 10)
        assert (channels.lost, gateway.told) == ("the kernel takes connections and does not answer", [])


def message(kind: str, parent: str, channel: str = "iopub", **content: Any) -> dict[str, Any]:
    return {"channel": channel, "header": {"msg_type": kind}, "parent_header": {"msg_id": parent}, "content": content}


def request(identity: str) -> dict[str, Any]:
    return {"header": {"msg_id": identity, "msg_type": "execute_request"}}


REPLY = message("execute_reply", "cell", "shell")
IDLE = message("status", "cell", execution_state="idle")
PRINTED = message("stream", "cell")
PROBE = [message("kernel_info_reply", "probe", "shell"), message("status", "probe", execution_state="idle")]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [PRINTED, REPLY, IDLE, *PROBE], None),
        ([PRINTED], [IDLE, REPLY, *PROBE], None),
        ([REPLY], [IDLE, *PROBE], None),
        ([REPLY, IDLE], PROBE, None),
        ([PRINTED], PROBE, "the cell's result was lost"),
        ([PRINTED], [IDLE, *PROBE], "the cell's result was lost"),
        ([REPLY], PROBE, "a part of what the cell printed was lost"),
        ([], PROBE, "before the kernel took the cell"),
        ([], PROBE[:1], None),
    ],
)
def test_what_was_lost(before: list[dict[str, Any]], after: list[dict[str, Any]], expected: str | None) -> None:
    ledger = Ledger()
    ledger.sent("shell", request("cell"))
    assert [ledger.heard(item["channel"], item) for item in before] == [None] * len(before)
    ledger.probed("probe")
    found = [loss for item in after if (loss := ledger.heard(item["channel"], item))]
    assert [expected in loss for loss in found if expected] == [True] * bool(expected)
    assert len(found) == bool(expected)


def test_what_is_asked_after_a_probe_is_not_lost() -> None:
    ledger = Ledger()
    ledger.probed("probe")
    ledger.sent("shell", request("next"))
    assert [ledger.heard(item["channel"], item) for item in PROBE] == [None, None]
    assert ledger.is_waiting


def test_a_later_probe_takes_the_place_of_one_that_was_cut_off() -> None:
    ledger = Ledger()
    ledger.sent("shell", request("cell"))
    ledger.probed("cut off")
    ledger.probed("probe")
    assert [bool(ledger.heard(item["channel"], item)) for item in PROBE] == [False, True]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (["k_1_0", "k_1_1"], ["k_1_2", "k_1_9"], [False, False]),
        (["k_1_0", "k_1_1"], ["k_1_3", "k_1_9"], [True, False]),
        (["k_1_0", "k_1_2"], ["k_1_1", "k_1_3"], [False, False]),
        (["k_1_0"], ["gateway_7_9", "k_1_1"], [False, False]),
        (["uuid"], ["other"], [False]),
        (["k_1_0"], ["new_2_5"], [False]),
    ],
)
def test_what_is_missing_between_two_connections(before: list[str], after: list[str], expected: list[bool]) -> None:
    counter = Counter()
    assert not any(counter.heard({"header": {"msg_id": identity}}) for identity in before)
    counter.cut()
    assert [counter.heard({"header": {"msg_id": identity}}) for identity in after] == expected


def test_frames() -> None:
    text = json.dumps({"header": {"msg_type": "comm_msg"}})
    assert decode(text) == json.loads(text)
    body = text.encode()
    first = 4 * 4
    packed = struct.pack("!4I", 3, first, first + len(body), first + len(body) + 2) + body + b"ab" + b"cde"
    assert decode(packed) == {**json.loads(text), "buffers": [b"ab", b"cde"]}
