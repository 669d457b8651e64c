"""A kernel's websocket, whose sender is verified for as long as it lasts."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any, Final

from jupyter_client.jsonutil import date_default
from jupyter_server.base.zmqhandlers import WebSocketMixin
from tornado import websocket

from elastic_kernels.errors import IdentityAwayError, UnauthorizedError
from elastic_kernels.gateway import activity
from elastic_kernels.gateway.passing import PassingChannels
from elastic_kernels.gateway.verified import VERIFIER, Verified
from elastic_kernels.identity.verifier import Verifier

log = logging.getLogger(__name__)

# RFC 6455, section 7.4.1
_POLICY_VIOLATION: Final = 1008
_SERVICE_RESTART: Final = 1012
_PARENT: Final = 2
# How long whoever connects waits for a restart that is under way.
_PATIENCE: Final = 10.0
# By then whoever knows of a restart has connected anew.
_ANEW: Final = 3.0


class Channels(Verified, PassingChannels):
    """A kernel's websocket."""

    connects = True
    was_moved = False

    def initialize(self) -> None:
        """Called first."""
        super().initialize()
        self._unanswered: dict[str, dict[str, Any]] = {}
        """The headers of the client's requests to execute something that have not been answered."""

    async def prepare(self) -> None:
        """Called before the connection is accepted. Raises NotRunningError for a kernel that is being started elsewhere."""
        await super().prepare()
        kernel = self.kernels._kernels.get(self.path_kwargs["kernel_id"])
        if kernel is not None:
            kernel.check_started()
            await self.kernels.restarted(self.path_kwargs["kernel_id"], _PATIENCE)
            await activity.answers(kernel)

    def died(self, sentence: str) -> None:
        """Called when the kernel is dead: cells that run end with an error that says why, and the client is told."""
        self._say(f"The kernel is dead: {sentence}.")
        self._send_status_message("dead")

    def restarts(self, sentence: str) -> None:
        """Called before the kernel, which has ended, is started again: cells that ran end with an error."""
        self._say(f"The kernel has ended and is started again, without what was in it: {sentence}.")
        self._send_status_message("restarting")

    def notice(self, sentence: str) -> None:
        """Tell the client something about the kernel, which goes on: where the output of what runs goes, if something does."""
        for header in self._running().values():
            self._send("iopub", "stream", {"name": "stderr", "text": f"{sentence}\n"}, header)

    def _running(self) -> dict[str, dict[str, Any]]:
        executing = getattr(self.kernels.get_kernel(self.kernel_id), "executing", None)
        return dict(self._unanswered) or ({executing["msg_id"]: executing} if executing else {})

    def moved(self, seconds: float = _ANEW) -> None:
        """Called when the kernel is another by now, which this websocket's connections do not lead to: the client connects anew.

        JupyterLab does after a restart that its user asked for, and is given the time: its server would connect once more for a websocket
        that is closed first, and take the session from the one that is used.
        """
        self.was_moved = self.is_open
        asyncio.get_running_loop().call_later(seconds, self._close_moved)

    def _close_moved(self) -> None:
        if self.was_moved or self.stands_back:
            websocket.WebSocketHandler.close(self, _SERVICE_RESTART, "The kernel was restarted; connect again.")

    def on_close(self) -> None:
        """Called when the connection is gone."""
        super().on_close()
        if self.was_moved and self.kernel_id in self.kernels:
            # what is kept for its client to come back to leads to a kernel that was
            self.kernels.stop_buffering(self.kernel_id)

    def _say(self, sentence: str) -> None:
        """End what runs, for this client, with ``sentence`` where its output goes."""
        self.notice(sentence)
        for header in self._running().values():
            failure = {"ename": "DeadKernel", "evalue": sentence, "traceback": [sentence]}
            self._send("shell", "execute_reply", {"status": "error", "execution_count": None, **failure}, header)
            self._send("iopub", "status", {"execution_state": "idle"}, header)
        self._unanswered = {}

    def _send(self, channel: str, kind: str, content: dict[str, Any], parent: dict[str, Any]) -> None:
        message = {**self.session.msg(kind, content, parent=parent), "channel": channel}
        self.write_message(json.dumps(message, default=date_default))

    def _on_zmq_reply(self, stream: Any, parts: list[bytes]) -> None:
        if self._unanswered and getattr(stream, "channel", None) == "shell":
            _, message = self.session.feed_identities(parts)
            self._unanswered.pop(self.session.unpack(message[_PARENT]).get("msg_id", ""), None)
        super()._on_zmq_reply(stream, parts)

    def open(self, kernel_id: str) -> Any:
        """Called once the connection is accepted."""
        self.audit("connect", "ok")
        if self._why_useless():
            # There is nothing to connect to, until it is restarted. What its client says then has this websocket take the session.
            self.stands_back = True
            self.set_nodelay(True)
            WebSocketMixin.open(self, kernel_id)
            self._send_status_message("dead" if self.kernels.get_kernel(kernel_id).execution_state == "dead" else "restarting")
            return None
        return super().open(kernel_id)

    def _why_useless(self) -> str:
        """Return why a cell would not be executed, a sentence; empty if it would."""
        kernel = self.kernels._kernels.get(self.kernel_id)
        if kernel is None:
            return ""
        if self.was_moved or kernel.restarting:
            return "The kernel was restarted, and this cell was not executed; run it again."
        if kernel.execution_state == "dead":
            return f"The kernel is dead: {kernel.reason}."
        return f"The kernel is being started, and this cell was not executed: {kernel.awaited}." if kernel.awaited else ""

    def write_message(self, message: Any, binary: bool = False) -> Any:
        """Send something to the client; one that is gone, or was never there, is told nothing."""
        try:
            return super().write_message(message, binary=binary)
        except websocket.WebSocketClosedError:
            gone = asyncio.get_running_loop().create_future()
            gone.set_result(None)
            return gone

    async def on_message(self, message: str | bytes) -> None:
        """Called with each message of the client's, one after the other: a connection that lasts for days is verified again."""
        verifier: Verifier | None = self.settings.get(VERIFIER)
        if verifier is not None:
            try:
                await verifier.identify(self.request)
            except UnauthorizedError as error:
                self.audit("connect", "refused", message=str(error))
                # Jupyter Server's own close says no reason
                websocket.WebSocketHandler.close(self, _POLICY_VIOLATION, "You are not verified any more; connect again.")
                return
            except IdentityAwayError:
                log.debug("Nobody can be verified now; connections that were go on")
        if self.stands_back:
            if self.ping_callback is not None:
                # no answer to a ping is read meanwhile
                self.ping_callback.stop()
            await self.kernels.restarted(self.kernel_id)
        useless = self._why_useless()
        if isinstance(message, str) and '"execute_request"' in message:
            header = json.loads(message).get("header") or {}
            if header.get("msg_type") == "execute_request":
                self._unanswered[str(header.get("msg_id"))] = header
                if useless:
                    self._say(useless)
        if self.was_moved:
            self._close_moved()
        if useless:
            return
        await self.take_over()
        super().on_message(message)
