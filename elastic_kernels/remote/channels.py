"""A kernel's websocket that comes back: through a gateway or a proxy that was away for a while, and nothing is lost unnoticed.

The session keeps its name, by which the gateway sends what the kernel said meanwhile. What cannot be mended ends the channels with a
sentence, and nobody waits for ever.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from tornado.httpclient import HTTPClientError
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, websocket_connect

from elastic_kernels.errors import SILENT_KERNEL
from elastic_kernels.remote.gateway import CONNECT_SECONDS, Answer, Gateway
from elastic_kernels.remote.ledger import Counter, Ledger
from elastic_kernels.remote.start import Tell

# what is between them takes a connection for idle after a minute or so, and notices nothing when one end is gone
_PING_SECONDS: Final = 20.0
_MESSAGE_BYTES: Final = 2**31 - 1
_LOOK_SECONDS: Final = 5.0
_GONE_SECONDS: Final = 5.0
# one that ends sooner without a word was none
_PROVEN_SECONDS: Final = 5.0
_FIRST_PAUSE: Final = 0.25
_LONGEST_PAUSE: Final = 10.0

DEAD_KERNEL: Final = "DeadKernel"
"""The error with which a gateway ends a cell whose kernel has ended."""

_MISSING: Final = "The connection to the gateway was cut here, and a part of what the kernel said is missing."

Message = dict[str, Any]


class Channels:
    """The channels of one session with one kernel. Belongs to one event loop."""

    def __init__(
        self, gateway: Gateway, kernel_id: str, session: str, deliver: Callable[[str, Message], None], away_seconds: float, tell: Tell
    ) -> None:
        """``deliver`` gets each message, with its channel, on the event loop; ``away_seconds`` is for how long a gateway is waited for."""
        self.lost: str | None = None
        """Why the kernel is no longer there, or cannot be spoken with, once that is so: a clause."""
        self._gateway = gateway
        self._kernel_id = kernel_id
        self._session = session
        self._deliver = deliver
        self._away_seconds = away_seconds
        self._tell = tell
        self._ledger = Ledger()
        self._counter = Counter()
        self._unsent: deque[Message] = deque()
        self._connection: WebSocketClientConnection | None = None
        self._connected_before = False
        self._heard = False
        self._gone_since: float | None = None

    def send(self, channel: str, message: Mapping[str, Any]) -> None:
        """Send a message, now or as soon as there is a connection."""
        self._unsent.append({**message, "channel": channel, "buffers": []})
        self._flush()

    async def run(self) -> None:
        """Keep the connection until the kernel is lost, or this is cancelled."""
        looking = asyncio.ensure_future(self._look())
        loop = asyncio.get_running_loop()
        away_since, pause = loop.time(), _FIRST_PAUSE
        try:
            while self.lost is None:
                connection = await self._connect()
                if isinstance(connection, WebSocketClientConnection):
                    opened, self._heard = loop.time(), False
                    await self._converse(connection)
                    if self._heard or loop.time() - opened >= _PROVEN_SECONDS:
                        away_since, pause = loop.time(), _FIRST_PAUSE
                        continue
                    why = "The gateway closes the connection."
                else:
                    why = connection.sentence
                if self.lost is None and loop.time() - away_since >= self._away_seconds:
                    self.lost = f"the gateway did not come back within {self._away_seconds:.0f} seconds: {why}"
                if self.lost is not None:
                    return
                if pause == _FIRST_PAUSE:
                    self._tell(f"{why} Trying again for {self._away_seconds:.0f} seconds.")
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
        finally:
            looking.cancel()
            if self._connection is not None:
                self._connection.close()

    async def _connect(self) -> WebSocketClientConnection | Answer:
        """Return a new connection, or why there is none."""
        answer = await self._gateway.ask("GET", f"/api/kernels/{self._kernel_id}")
        self._judge(answer)
        if answer.status == 200 and self.lost is None:
            connection = await self._open()
            if isinstance(connection, WebSocketClientConnection):
                return connection
            answer = connection
            self._judge(answer)
        return answer

    async def _open(self) -> WebSocketClientConnection | Answer:
        request = self._gateway.request(f"/api/kernels/{self._kernel_id}/channels?session_id={self._session}")
        request.url = "ws" + request.url.removeprefix("http")
        opening = websocket_connect(request, ping_interval=_PING_SECONDS, ping_timeout=_PING_SECONDS, max_message_size=_MESSAGE_BYTES)
        try:
            return await asyncio.wait_for(asyncio.ensure_future(opening), 2 * CONNECT_SECONDS)
        except HTTPClientError as error:
            return Answer(error.code, sentence=f"The gateway answers {error.code} {error.message}.")
        except (OSError, asyncio.TimeoutError, WebSocketClosedError) as error:
            return self._gateway.unreachable(error)

    async def _converse(self, connection: WebSocketClientConnection) -> None:
        """Pass messages on until the connection ends."""
        self._connection = connection
        if self._connected_before:
            self._tell("The gateway is there again; the run goes on.")
            self._counter.cut()
            if self._ledger.is_waiting:
                self._probe()
        self._connected_before = True
        self._flush()
        while self.lost is None:
            text = await connection.read_message()
            if text is None:
                if connection.close_code == SILENT_KERNEL:
                    self.lost = "the kernel takes connections and does not answer"
                break
            self._heard = True
            self._receive(decode(text))
        self._connection = None

    def _receive(self, message: Message) -> None:
        channel = str(message.get("channel"))
        is_probe = self._ledger.is_probe(message)
        loss = self._ledger.heard(channel, message)
        kind, content = message["header"]["msg_type"], message["content"]
        if kind == "execute_reply" and content.get("ename") == DEAD_KERNEL:
            self.lost = _clause(str(content.get("evalue", "")))
        elif kind == "status" and content.get("execution_state") in ("restarting", "dead"):
            self.lost = self.lost or "the kernel has ended, and with it all that its cells had made"
        elif channel == "stdin" and kind == "input_request":
            self.lost = f"a cell asks for input ({content.get('prompt', '')!r}), and nobody is there to give it"
        elif not is_probe:
            if self._counter.heard(message) and message.get("parent_header"):
                self._tell(_MISSING)
                self._deliver("iopub", _printed(_MISSING, message["parent_header"]))
            self._deliver(channel, message)
        self.lost = self.lost or loss

    def _probe(self) -> None:
        header = {"msg_id": uuid.uuid4().hex, "msg_type": "kernel_info_request", "session": self._session, "version": "5.3"}
        header |= {"username": "", "date": ""}
        probe = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": {}, "buffers": []}
        self._ledger.probed(header["msg_id"])
        # before what is not sent yet, so that it says nothing about that
        self._unsent.appendleft(probe)

    def _flush(self) -> None:
        while self._connection is not None and self._unsent:
            message = self._unsent[0]
            try:
                sending = self._connection.write_message(json.dumps(message, default=_plain))
            except WebSocketClosedError:
                return
            # whether it arrived is for the probe to find out
            sending.add_done_callback(lambda sent: sent.exception())
            self._unsent.popleft()
            self._ledger.sent(message["channel"], message)

    async def _look(self) -> None:
        """Look now and then whether the gateway still has the kernel: nothing is said over a websocket when it is shut down."""
        while self.lost is None:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._connection is not None:
                self._judge(await self._gateway.ask("GET", f"/api/kernels/{self._kernel_id}"))
                if self.lost is not None and self._connection is not None:
                    self._connection.close()

    def _judge(self, answer: Answer) -> None:
        """Find out whether an answer about the kernel is the last one."""
        if answer.status == 200 and answer.body.get("execution_state") == "dead":
            self.lost = self.lost or f"the kernel is dead: {answer.body.get('reason') or 'it has ended'}"
        now = asyncio.get_running_loop().time()
        self._gone_since = (self._gone_since or now) if answer.status == 404 else None
        # a gateway that was started anew may take a moment to find its kernels
        if self._gone_since is not None and now - self._gone_since >= _GONE_SECONDS:
            self.lost = "the gateway does not know the kernel any more: somebody shut it down, it was idle for too long, or it was lost"
        elif answer.status in (401, 403):
            self.lost = f"the gateway lets nobody in any more: {answer.sentence}"


def _clause(sentence: str) -> str:
    """Return a sentence as a part of another one."""
    return sentence[:1].lower() + sentence[1:].rstrip(".") or "the kernel has ended"


def _printed(text: str, parent: Mapping[str, Any]) -> Message:
    """Return a message as if the cell of ``parent`` had printed a line on stderr."""
    header = {"msg_id": uuid.uuid4().hex, "msg_type": "stream", "session": "", "username": "", "date": "", "version": "5.3"}
    content = {"name": "stderr", "text": f"{text}\n"}
    return {"channel": "iopub", "header": header, "parent_header": parent, "metadata": {}, "content": content, "buffers": []}


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def decode(frame: str | bytes) -> Message:
    """Return the message of a websocket frame: JSON, or with binary parts behind it as Jupyter Server packs them."""
    if isinstance(frame, str):
        message: Message = json.loads(frame)
        return message
    (count,) = struct.unpack_from("!i", frame)
    offsets = [*struct.unpack_from(f"!{count}I", frame, 4), len(frame)]
    parts = [frame[start:stop] for start, stop in itertools.pairwise(offsets)]
    message = json.loads(parts[0])
    message["buffers"] = parts[1:]
    return message
