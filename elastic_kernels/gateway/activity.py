"""What a kernel is doing, as it says itself: busy or idle, with which request, and when it was last heard.

Stock Jupyter Server takes the latest status message for the kernel's state, so that an answer on the control channel makes a
kernel look idle while its cell runs. Here a kernel is busy for as long as a request to execute something is. And one that is
met while it runs is asked: its answer on the shell channel comes when it has nothing else to do.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any, Final

from jupyter_client.session import Session
from jupyter_server._tz import utcnow

from elastic_kernels import patience
from elastic_kernels.gateway.passing import waiting

log = logging.getLogger(__name__)

_QUESTION: Final = "kernel_info_request"
_WELCOME: Final = "iopub_welcome"
_STATUS: Final = b'"status"'
# A kernel's first word. Its answer on the shell channel may overtake it, and nothing takes it back.
_BEGINS: Final = "starting"
_HEADER: Final = 1
_PARENT: Final = 2
_CONTENT: Final = 4
# One that has nothing else to do answers within milliseconds.
_ANSWERS: Final = 1.0


def watch(kernel: Any) -> None:
    """Listen to a kernel whose activity stream is connected: keeps ``last_activity``, ``execution_state`` and ``executing``.

    ``kernel`` is a kernel manager; its ``executing`` is the header of the request that is being executed, or None.
    """
    session = Session(config=kernel.session.config, key=kernel.session.key)
    kernel.executing = None
    kernel.is_known = False

    def heard(parts: list[bytes]) -> None:
        for message in itertools.chain([parts], waiting(kernel._activity_stream.socket)):
            try:
                take(message)
            except (ValueError, LookupError, AttributeError) as error:
                # raised further, it would end the stream, and a kernel that is not heard looks idle
                log.warning("A message of the kernel %s is no message: %r", kernel.kernel_id, error)

    def take(parts: list[bytes]) -> None:
        _, message = session.feed_identities(parts)
        if kernel.executing is not None and kernel.is_known and _STATUS not in message[_HEADER]:
            # what a cell prints, of which there may be very much
            kernel.last_activity = utcnow()
            return
        header, parent = session.unpack(message[_HEADER]), session.unpack(message[_PARENT])
        if parent.get("msg_type") != _QUESTION and header.get("msg_type") != _WELCOME:
            # what gateways ask, and clients that merely connect, and what they are told then, is no use of a kernel
            kernel.last_activity = utcnow()
        note(kernel, header, parent, lambda: session.unpack(message[_CONTENT]))

    kernel._activity_stream.on_recv(heard)


def ask(kernel: Any, state: str) -> None:
    """Have the state of a kernel set to idle once it answers; until then it is ``state``, if it says nothing else."""
    forget(kernel)
    kernel.execution_state = state
    kernel.asking = kernel.connect_shell()
    kernel.answered, kernel.asked_at = asyncio.Event(), asyncio.get_running_loop().time()

    def answered(_: object) -> None:
        forget(kernel)
        kernel.is_known = True
        kernel.answered.set()
        if kernel.executing is None:
            kernel.execution_state = "idle"

    kernel.asking.on_recv(answered)
    kernel.session.send(kernel.asking, _QUESTION)


async def answers(kernel: Any) -> None:
    """Wait a moment for a kernel that has been asked and is taken for busy as long as it does not answer.

    Nobody who connects to a busy one waits until what it says arrives, so that a kernel which only looks busy would lose its first words.
    """
    answered = getattr(kernel, "answered", None)
    if answered is not None and kernel.execution_state == "busy" and not kernel.is_known:
        await patience.happens(answered, kernel.asked_at + _ANSWERS - asyncio.get_running_loop().time())


def forget(kernel: Any) -> None:
    """End what ``ask`` began."""
    asking = getattr(kernel, "asking", None)
    if asking is not None and not asking.closed():
        asking.close(linger=0)
    kernel.asking = None


def note(kernel: Any, header: dict[str, Any], parent: dict[str, Any], content: Callable[[], dict[str, Any]]) -> None:
    """Note one message of a kernel's; ``content`` returns what it says. What one that is dead said before changes nothing."""
    if kernel.execution_state == "dead":
        return
    executes = parent.get("msg_type") == "execute_request"
    if header.get("msg_type") != "status":
        if executes and not kernel.is_known and kernel.executing is None:
            # begun before anybody here listened. (A thread may write in the name of a cell that is over.)
            kernel.executing, kernel.execution_state = parent, "busy"
        return
    state = content()["execution_state"]
    if executes:
        is_over = state == "idle" and kernel.executing in (None, parent)
        if state == "idle" and not is_over:
            return
        kernel.is_known = True
        kernel.executing = None if is_over else parent
        kernel.execution_state = state
    elif kernel.is_known and kernel.executing is None and parent.get("msg_type") != _QUESTION and state != _BEGINS:
        # one that is merely asked is not busy: who connects to it then would not be waited for, and lose the first of its output
        kernel.execution_state = state
