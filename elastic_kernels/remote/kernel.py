"""A kernel for as long as a block lasts: started, spoken with, and whatever happens, shut down."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Final

from elastic_kernels.remote import start
from elastic_kernels.remote.client import Call, RemoteKernel, RemoteKernelClient, other_loop
from elastic_kernels.remote.gateway import Address, Gateway
from elastic_kernels.remote.start import Patience, Starting

log = logging.getLogger(__name__)

_END_SECONDS: Final = 60.0
_SHORT_END_SECONDS: Final = 5.0


@contextmanager
def running_kernel(
    where: Address, profile: str, environment: Mapping[str, str], patience: Patience
) -> Iterator[tuple[RemoteKernelClient, RemoteKernel]]:
    """Start a kernel, and have it in the block; ``environment`` is what the start sends along. Raises GatewayError."""
    with ended_by_signal(), other_loop() as (loop, call):
        gateway = call(_gateway(where))
        starting = call(_starting(gateway, profile, environment, patience))
        client = RemoteKernelClient()
        client.allow_stdin = False
        is_ready = False
        try:
            call(starting.run())
            is_ready = True
            log.info("The kernel %s of %r runs", starting.kernel_id, profile)
            client.connect(loop, gateway, starting.kernel_id, away_seconds=patience.away, tell=log.warning)
            yield client, RemoteKernel(gateway, starting.kernel_id, call)
        finally:
            if is_ready:
                client.stop_channels()
            if starting.may_have_begun:
                _end(call, gateway, starting, client if is_ready else None)


async def _gateway(where: Address) -> Gateway:
    return Gateway(where)


async def _starting(gateway: Gateway, profile: str, environment: Mapping[str, str], patience: Patience) -> Starting:
    return Starting(gateway, profile, environment, patience, log.info)


def _end(call: Call, gateway: Gateway, starting: Starting, client: RemoteKernelClient | None) -> None:
    """Have the kernel shut down; ``client`` is who spoke with it, None for one that may not be there yet."""
    if client is None:
        log.info("Stopping: a start that is under way is cancelled.")
    # a gateway that was waited for in vain is not waited for again
    seconds = _END_SECONDS if client is None or client.lost is None else _SHORT_END_SECONDS
    answer = call(start.end(gateway, starting.kernel_id, starting=starting if client is None else None, seconds=seconds))
    if answer.status not in (204, 404):
        log.warning("The kernel %s could not be shut down: %s", starting.kernel_id, answer.sentence)


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does, so that no kernel stays behind; whoever handles it otherwise keeps their way."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
