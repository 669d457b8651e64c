"""A kernel's messages reach its websocket as they are, and at once.

Jupyter Server takes each message apart (all of its JSON, and its dates) and puts it together again, on the one event loop that all
kernels share; of an output of megabytes that is seconds. Here what the kernel wrote is verified and passed on, and only the header is
read. And where TCP would hold a small message back until the one before it is acknowledged, which takes 40 ms, it may go.
"""

from __future__ import annotations

import json
import logging
from hmac import compare_digest
from typing import Any, Final

from jupyter_server.services.kernels.handlers import ZMQChannelsHandler

log = logging.getLogger(__name__)

# signature, header, parent header, metadata, content; buffers come after them
_PARTS: Final = 5
_PROTOCOL: Final = "5."
_NAMES: Final = (b"header", b"parent_header", b"metadata", b"content")
_EMPTY: Final = b"{}"


class PassingChannels(ZMQChannelsHandler):  # type: ignore[misc]
    """Put before the gateway's own websocket handler, whose methods these extend."""

    def open(self, kernel_id: str) -> Any:
        """Called once the connection is accepted."""
        self.set_nodelay(True)
        return super().open(kernel_id)

    def _on_zmq_reply(self, stream: Any, msg_list: list[bytes]) -> None:
        """Called with each message of the kernel's, whose parts are ``msg_list``."""
        try:
            self._pass(stream, msg_list)
        except ValueError as error:
            # raised further, it would end the stream: whoever reaches the kernel's port could have a user's cells hang
            log.warning("A message on the channel %s of the kernel %s is left out: %s", stream.channel, self.kernel_id, error)

    def _pass(self, stream: Any, msg_list: list[bytes]) -> None:
        _, parts = self.session.feed_identities(msg_list)
        header = None
        # what is to be changed on its way, and buffers, which have a format of their own, are Jupyter Server's to handle
        if len(parts) == _PARTS and self.subprotocol is None and self.kernel_manager.allow_tracebacks:
            header = json.loads(parts[1])
        if header is None or not str(header.get("version")).startswith(_PROTOCOL) or self.ws_connection is None:
            super()._on_zmq_reply(stream, msg_list)
            return
        verify(self.session, parts)
        channel = stream.channel
        if not self._limit_rate(channel, {"header": header, "parent_header": None, "content": None}, parts[1:]):
            self.write_message(text(channel, header, parts), binary=False)


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


def text(channel: str, header: dict[str, Any], parts: list[bytes]) -> bytes:
    """Return a message as websockets carry it: the JSON that Jupyter Server would write, made of the parts as the kernel wrote them.

    Raises UnicodeDecodeError if they are no text.
    """
    for part in parts[1:]:
        # a client would close the connection over it
        part.isascii() or part.decode()
    about = json.dumps({"channel": channel, "msg_id": header.get("msg_id"), "msg_type": header.get("msg_type"), "buffers": []}).encode()
    pairs = (piece for name, part in zip(_NAMES, parts[1:], strict=True) for piece in (b', "%b": ' % name, part or _EMPTY))
    return b"".join((about[:-1], *pairs, b"}"))
