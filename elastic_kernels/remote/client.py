"""What nbclient wants of a kernel, for one behind a gateway: jupyter_client's client, with a websocket under it.

The websocket has a thread and an event loop of its own, so that it lives on while a notebook is being saved. Messages cross over to
whichever loop nbclient is waiting on.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.jsonutil import extract_dates

from elastic_kernels import patience
from elastic_kernels.remote.channels import Channels, Message
from elastic_kernels.remote.gateway import Gateway
from elastic_kernels.remote.start import Tell

T = TypeVar("T")


class Call(Protocol):
    """Runs a coroutine in the other thread, and returns its result here."""

    def __call__(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Raises what the coroutine raises; cancels it where waiting for it is interrupted."""


@contextmanager
def other_loop() -> Iterator[tuple[asyncio.AbstractEventLoop, Call]]:
    """Run an event loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="elastic-kernels", daemon=True)
    thread.start()

    def call(coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result()
        except BaseException:
            # Ctrl-C, while this waited
            future.cancel()
            raise

    async def rest() -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        yield loop, call
    finally:
        call(rest())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Inbox:
    """One channel, as jupyter_client's channels are: filled by the websocket's thread, emptied on any event loop."""

    def __init__(self, send: Callable[[Message], None]) -> None:
        self.send = send
        """Sends a message to the kernel."""
        self._messages: deque[Message] = deque()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._lock = threading.Lock()

    def put(self, message: Message) -> None:
        """Add a message of the kernel's."""
        with self._lock:
            self._messages.append(message)
            waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    async def get_msg(self, timeout: float | None = None) -> Message:
        """Return the next message. Raises queue.Empty when there was none for ``timeout`` seconds."""
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        while True:
            event = asyncio.Event()
            with self._lock:
                # taken in one step, so that whoever gives up waiting has not taken one
                if self._messages:
                    return self._messages.popleft()
                self._waiting.append((loop, event))
            if not await patience.happens(event, None if end is None else max(0.0, end - loop.time())):
                raise queue.Empty


class RemoteKernelClient(AsyncKernelClient):  # type: ignore[misc]
    """The client of one kernel. ``connect`` makes it usable, in place of ``start_channels``."""

    def connect(self, loop: asyncio.AbstractEventLoop, gateway: Gateway, kernel_id: str, *, away_seconds: float, tell: Tell) -> None:
        """Open the channels on ``loop``, and keep them open."""
        self._loop = loop
        self._inboxes = {name: Inbox(self._sender(name)) for name in ("shell", "iopub", "stdin", "control")}
        self._channels = Channels(gateway, kernel_id, self.session.session, self._deliver, away_seconds, tell)
        self._running = asyncio.run_coroutine_threadsafe(self._channels.run(), loop)

    @property
    def lost(self) -> str | None:
        """Why the kernel cannot be spoken with any more, a clause, or None."""
        if self._running.done() and not self._running.cancelled() and self._running.exception() is not None:
            return f"the connection to it failed: {self._running.exception()!r}"
        return self._channels.lost

    @property
    def shell_channel(self) -> Inbox:
        """The channel of this name."""
        return self._inboxes["shell"]

    @property
    def iopub_channel(self) -> Inbox:
        """The channel of this name."""
        return self._inboxes["iopub"]

    @property
    def stdin_channel(self) -> Inbox:
        """The channel of this name."""
        return self._inboxes["stdin"]

    @property
    def control_channel(self) -> Inbox:
        """The channel of this name."""
        return self._inboxes["control"]

    async def is_alive(self) -> bool:
        """Tell whether the kernel can be spoken with, or will be able to."""
        return self.lost is None

    def stop_channels(self) -> None:
        """Close the connection."""
        self._running.cancel()

    def _sender(self, channel: str) -> Callable[[Message], None]:
        def send(message: Message) -> None:
            self._loop.call_soon_threadsafe(self._channels.send, channel, message)

        return send

    def _deliver(self, channel: str, message: Message) -> None:
        inbox = self._inboxes.get(channel)
        if inbox is not None:
            dated: Mapping[str, Any] = {name: extract_dates(message.get(name, {})) for name in ("header", "parent_header")}
            inbox.put({**message, **dated, "msg_type": message["header"]["msg_type"], "msg_id": message["header"]["msg_id"]})


class RemoteKernel:
    """What nbclient asks of a kernel manager, for a kernel that somebody else starts and ends."""

    has_kernel = True

    def __init__(self, gateway: Gateway, kernel_id: str, call: Call) -> None:
        self._gateway, self._kernel_id, self._call = gateway, kernel_id, call

    def interrupt_kernel(self) -> None:
        """Interrupt the kernel."""
        self._call(self._gateway.ask("POST", f"/api/kernels/{self._kernel_id}/interrupt"))
