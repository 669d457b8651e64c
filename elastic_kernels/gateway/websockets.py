"""A session's second websocket takes the place of its first at once, whatever the first is doing.

Enterprise Gateway closes the first one politely and waits. A client that is gone does not answer, so that the wait is 5 seconds
long; and a first websocket that is not open yet never closes at all. JupyterLab in Chrome does just this with every kernel:
Chrome refuses the first connection, for a subprotocol that gateways do not speak, and the second follows milliseconds later.
"""

from __future__ import annotations

from typing import Any, Final

from jupyter_server.services.kernels.handlers import ZMQChannelsHandler
from tornado import web

_GONE: Final = 410


class PromptChannels(ZMQChannelsHandler):  # type: ignore[misc]
    """Put before the gateway's own websocket handler, whose methods these extend."""

    was_replaced = False
    is_open = False
    is_settled = False
    """Whether the kernel's messages go to this websocket by now."""

    async def _register_session(self) -> None:
        former = self._open_sessions.get(f"{self.kernel_id}:{self.session.session}")
        if former is not None:
            former.give_way()
        await super()._register_session()
        if former is not None and not former.is_settled and self.kernel_id in self.kernel_manager:
            # it leaves its connections to the kernel in a state that nobody can go on with
            self.kernel_manager.stop_buffering(self.kernel_id)

    def give_way(self) -> None:
        """Close without a farewell, which nobody would hear."""
        self.was_replaced = True
        if self.ws_connection is not None:
            self.ws_connection.stream.close()
        elif not self._close_future.done():
            self._close_future.set_result(None)

    async def pre_get(self) -> None:
        """Called before the connection is accepted; takes as long as the kernel takes to say what protocol it speaks."""
        await super().pre_get()
        if self.was_replaced:
            raise web.HTTPError(_GONE, "Another connection has taken this session over.")

    def open(self, kernel_id: str) -> Any:
        """Called once the connection is accepted; the result is done when the kernel's messages arrive."""
        self.is_open = True
        if kernel_id in self.kernel_manager and self.kernel_manager.ports_changed(kernel_id):
            # What is kept for a session leads to the kernel before the restart. Jupyter Server asks for this only where something
            # is kept: at a later time, of connections that are good, which then bring each message a second time.
            self.kernel_manager.stop_buffering(kernel_id)
        connected = super().open(kernel_id)
        if connected is not None:
            connected.add_done_callback(self._settle)
        return connected

    def _settle(self, _: object) -> None:
        self.is_settled = True

    def on_close(self) -> None:
        """Called when the connection is gone, also one that was never accepted: that one has not been counted either."""
        if self.is_open:
            super().on_close()
        elif not self._close_future.done():
            self._close_future.set_result(None)
