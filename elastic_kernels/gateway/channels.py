"""A kernel's websocket, whose sender is verified for as long as it lasts."""

from __future__ import annotations

import logging
from typing import Any, Final

from tornado import websocket

from elastic_kernels.errors import IdentityAwayError, UnauthorizedError
from elastic_kernels.gateway.verified import VERIFIER, Verified
from elastic_kernels.gateway.websockets import PromptChannels
from elastic_kernels.identity.verifier import Verifier

log = logging.getLogger(__name__)

# RFC 6455, section 7.4.1
_POLICY_VIOLATION: Final = 1008


class Channels(Verified, PromptChannels):
    """A kernel's websocket."""

    def open(self, kernel_id: str) -> Any:
        """Called once the connection is accepted."""
        self.audit("connect", "ok")
        return super().open(kernel_id)

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
        super().on_message(message)
