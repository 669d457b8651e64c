"""A session's second websocket takes the place of its first at once, whatever the first is doing.

Enterprise Gateway closes the first one politely and waits. A client that is gone does not answer, so that the wait is 5 seconds
long; and a first websocket that is not open yet never closes at all. JupyterLab in Chrome does just this with every kernel:
Chrome refuses the first connection, for a subprotocol that gateways do not speak, and the second follows milliseconds later.

Of two that come so close together, the one that arrives later need not be the one that somebody uses: JupyterLab's server connects for
both, and at one end nobody is left. Whichever has to stand back waits for its client to say something, and then has the session; if
nothing comes, it is closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import Any, Final

from jupyter_server.services.kernels.handlers import ZMQChannelsHandler
from tornado.websocket import WebSocketHandler

from elastic_kernels.errors import SILENT_KERNEL

log = logging.getLogger(__name__)

# Whoever comes back after its connection broke takes longer.
_TOGETHER: Final = 1.0
# Clients begin with a question to the kernel.
_SPEAKS: Final = 10.0
# HTTP's "Switching Protocols"
_CONNECTED: Final = 101


class PromptChannels(ZMQChannelsHandler):  # type: ignore[misc]
    """Put before the gateway's own websocket handler, whose methods these extend."""

    stands_back = False
    """Whether the session is another one's, or nobody's, and this one's client has said nothing yet that it is needed for."""
    is_open = False
    """Whether it has had the session, and connections to the kernel."""
    open_since = 0.0
    is_settled = False
    """Whether the kernel's messages go to this websocket by now."""

    async def _register_session(self) -> None:
        former = self._former()
        if former is not None and former.is_open and asyncio.get_running_loop().time() - former.open_since < _TOGETHER:
            self.stands_back = True
        else:
            await self._take_session(former)

    def _former(self) -> PromptChannels | None:
        former: PromptChannels | None = self._open_sessions.get(f"{self.kernel_id}:{self.session.session}")
        return former

    async def _take_session(self, former: PromptChannels | None) -> None:
        if former is not None:
            former.give_way()
        await super()._register_session()
        if former is not None and not former.is_settled and self.kernel_id in self.kernel_manager:
            # it leaves its connections to the kernel in a state that nobody can go on with
            self.kernel_manager.stop_buffering(self.kernel_id)

    def give_way(self) -> None:
        """Leave the session to another one: close without a farewell, which nobody would hear; or stand back, if it is not open yet."""
        if self.is_open:
            if self.ws_connection is not None:
                self.ws_connection.stream.close()
            return
        self.stands_back = True
        if not self._close_future.done():
            self._close_future.set_result(None)

    def open(self, kernel_id: str) -> Any:
        """Called once the connection is accepted; the result is done when the kernel's messages arrive."""
        if self.stands_back:
            asyncio.get_running_loop().call_later(_SPEAKS, self._close_unused)
            return None
        return self._join(kernel_id)

    async def take_over(self) -> None:
        """Called before each message of the client's is taken: one that has stood back, and is used all the same, takes the session."""
        if not self.stands_back:
            return
        if self.kernel_id not in self.kernel_manager:
            self._close_unused()
            return
        self.stands_back = False
        # who waited for this one to close has been told that it did
        self._close_future = asyncio.get_running_loop().create_future()
        former = self._former()
        if former is not self:
            await self._take_session(former)
        connected = self._join(self.kernel_id)
        if connected is not None:
            await connected

    def on_finish(self) -> None:
        """Called when the request has been answered, be it with a refusal to connect: then nobody closes what never opened."""
        super().on_finish()
        if self.get_status() != _CONNECTED:
            self._unregister()

    def _unregister(self) -> None:
        if self._open_sessions.get(self.session_key) is self:
            del self._open_sessions[self.session_key]

    def _close_unused(self) -> None:
        if self.stands_back and self.ws_connection is not None:
            self.ws_connection.stream.close()

    def _join(self, kernel_id: str) -> Any:
        self.is_open, self.open_since = True, asyncio.get_running_loop().time()
        if self.ping_callback is not None:
            self.ping_callback.stop()
        if kernel_id in self.kernel_manager:
            # one that was met dead has had another
            self.session.key = self.kernel_manager.get_kernel(kernel_id).session.key
        if kernel_id in self.kernel_manager and self.kernel_manager.ports_changed(kernel_id):
            # What is kept for a session leads to the kernel before the restart. Jupyter Server asks for this only where something
            # is kept: at a later time, of connections that are good, which then bring each message a second time.
            self.kernel_manager.stop_buffering(kernel_id)
        connected = super().open(kernel_id)
        if connected is None:
            return None
        connected.add_done_callback(self._settle)
        return self._answered(connected)

    async def _answered(self, connected: Awaitable[None]) -> None:
        """Return once the kernel's messages arrive, or close if it takes connections and says nothing: the client may try again."""
        try:
            await connected
        except asyncio.TimeoutError:
            log.warning("The kernel %s has not answered a websocket within %g s", self.kernel_id, self.kernel_info_timeout)
            # Jupyter Server's own close says no reason
            WebSocketHandler.close(self, SILENT_KERNEL, "The kernel does not answer; restart it.")

    def _settle(self, _: object) -> None:
        self.is_settled = True

    def on_close(self) -> None:
        """Called when the connection is gone, also one that was never accepted: that one has not been counted either."""
        if self.is_open:
            super().on_close()
            return
        self._unregister()
        if not self._close_future.done():
            self._close_future.set_result(None)
