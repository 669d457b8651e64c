"""A kernel's messages reach its websocket as they are, and at once.

Jupyter Server takes each message apart (all of its JSON, and its dates) and puts it together again, on the one event loop that all
kernels share; of an output of megabytes that is seconds. Here what the kernel wrote is verified and passed on, and only the header is
read; nor is a large message copied on its way, which would take as long as to verify it. And where TCP would hold a small message back
until the one before it is acknowledged, which takes 40 ms, it may go. Of many small ones, what waits is taken and sent together.
"""

from __future__ import annotations

import itertools
import json
import logging
import struct
from collections.abc import Iterator
from hmac import compare_digest
from typing import Any, Final

from tornado.iostream import StreamClosedError
from zmq.constants import Flag
from zmq.error import Again

from elastic_kernels.gateway.websockets import PromptChannels

log = logging.getLogger(__name__)

# signature, header, parent header, metadata, content; buffers come after them
_PARTS: Final = 5
_PROTOCOL: Final = "5."
_NAMES: Final = (b"header", b"parent_header", b"metadata", b"content")
_EMPTY: Final = b"{}"
# What is longer is not copied to be sent in one piece.
_LARGE: Final = 1 << 20
# So many messages, or bytes, at once take some milliseconds, for which all others wait.
_AT_ONCE: Final = 50
_ENOUGH: Final = 1 << 19
# RFC 6455, section 5.2: the whole of a text, unmasked; and how it is said that the length follows in 2 bytes, or in 8
_WHOLE_TEXT: Final = 0x81
_IN_TWO, _IN_EIGHT = 126, 127


class PassingChannels(PromptChannels):
    """Put before the gateway's own websocket handler, whose methods these extend."""

    def open(self, kernel_id: str) -> Any:
        """Called once the connection is accepted."""
        self.set_nodelay(True)
        return super().open(kernel_id)

    def _on_zmq_reply(self, stream: Any, msg_list: list[bytes]) -> None:
        """Called with a message of the kernel's, whose parts are ``msg_list``; takes those that come after it as well."""
        # before it is settled, what was kept for the client to come back to comes first; and what comes when it is gone will be kept
        takes_more = self.is_settled and stream.channel == "iopub" and self._is_connected()
        more = waiting(stream.socket) if takes_more else ()
        ready: list[bytes] = []
        length = 0
        for message in itertools.chain([msg_list], more):
            try:
                passed = self._passed(stream, message)
                if passed is None:
                    self._write(ready)
                    ready = []
                    super()._on_zmq_reply(stream, message)
            except ValueError as error:
                # raised further, it would end the stream: whoever reaches the kernel's port could have a user's cells hang
                log.warning("A message on the channel %s of the kernel %s is left out: %s", stream.channel, self.kernel_id, error)
                continue
            ready += passed or []
            length += sum(map(len, passed or message))
            if length >= _ENOUGH:
                break
        self._write(ready)

    def _passed(self, stream: Any, message: list[bytes]) -> list[bytes] | None:
        """Return what is to be written for a message, in pieces; None if Jupyter Server is to handle it. Raises ValueError."""
        _, parts = self.session.feed_identities(message)
        header = None
        # what is to be changed on its way, and buffers, which have a format of their own
        is_plain = self.subprotocol is None and self.get_compression_options() is None and self.kernel_manager.allow_tracebacks
        if len(parts) == _PARTS and is_plain:
            header = json.loads(parts[1])
        if header is None or not str(header.get("version")).startswith(_PROTOCOL):
            return None
        verify(self.session, parts)
        channel = stream.channel
        if self._limit_rate(channel, {"header": header, "parent_header": None, "content": None}, parts[1:]):
            return []
        content = pieces(channel, header, parts)
        return [frame(sum(map(len, content))), *content]

    def _write(self, ready: list[bytes]) -> None:
        if not ready or not self._is_connected():
            return
        # Tornado's own way to write a message copies it twice
        for piece in [b"".join(ready)] if sum(map(len, ready)) < _LARGE else ready:
            try:
                self.ws_connection.stream.write(piece)
            except StreamClosedError:
                return

    def _is_connected(self) -> bool:
        return self.ws_connection is not None and not self.ws_connection.is_closing()


def waiting(socket: Any) -> Iterator[list[bytes]]:
    """Take what has arrived at a ZeroMQ socket after a message, as it is asked for, up to what is handled at once."""
    for _ in range(_AT_ONCE - 1):
        try:
            yield socket.recv_multipart(Flag.NOBLOCK)
        except Again:
            return


def frame(length: int) -> bytes:
    """Return what stands before a text of so many bytes on a websocket."""
    if length < _IN_TWO:
        return struct.pack("!BB", _WHOLE_TEXT, length)
    if length < 1 << 16:
        return struct.pack("!BBH", _WHOLE_TEXT, _IN_TWO, length)
    return struct.pack("!BBQ", _WHOLE_TEXT, _IN_EIGHT, length)


def verify(session: Any, parts: list[bytes]) -> None:
    """Raise ValueError unless whoever sent this message has the session's key, and has not sent it before."""
    if session.auth is None:
        return
    signature = parts[0]
    if not signature:
        raise ValueError("a kernel's message is not signed")
    if signature in session.digest_history:
        raise ValueError(f"a kernel's message came twice: {signature!r}")
    session._add_digest(signature)
    if not compare_digest(signature, session.sign(parts[1:_PARTS])):
        raise ValueError(f"a kernel's message is signed with another key: {signature!r}")


def pieces(channel: str, header: dict[str, Any], parts: list[bytes]) -> list[bytes]:
    """Return a message as websockets carry it: the JSON that Jupyter Server would write, in pieces, which are the parts as the kernel
    wrote them and what belongs between them.

    Raises UnicodeDecodeError if they are no text.
    """
    for part in parts[1:]:
        # a client would close the connection over it
        part.isascii() or part.decode()
    about = json.dumps({"channel": channel, "msg_id": header.get("msg_id"), "msg_type": header.get("msg_type"), "buffers": []}).encode()
    pairs = (piece for name, part in zip(_NAMES, parts[1:], strict=True) for piece in (b', "%b": ' % name, part or _EMPTY))
    return [about[:-1], *pairs, b"}"]
