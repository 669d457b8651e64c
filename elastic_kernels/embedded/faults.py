"""Faults that tests inject into the embedded cluster's API: late, wrong and lost answers, cut watches, a server that is away."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from elastic_kernels.embedded.store import ApiError

_REASONS = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}


@dataclass
class Fault:
    """What happens to the requests that match; empty fields match all."""

    verb: str = ""
    """get, list, watch, create, update, patch or delete."""
    resource: str = ""
    times: int | None = None
    """How many requests it befalls; None is all."""
    delay: float = 0.0
    """Seconds before anything else happens."""
    status: int = 0
    """The error that is answered in place of carrying the request out."""
    retry_after: int | None = None
    lost: bool = False
    """Carry the request out and cut the connection in place of an answer."""
    truncated: bool = False
    """Carry the request out and answer with the first half of the answer."""

    def matches(self, verb: str, resource: str) -> bool:
        """Tell whether it befalls this request."""
        return self.times != 0 and self.verb in ("", verb) and self.resource in ("", resource)


@dataclass
class Faults:
    """The faults in force, and a count of all requests."""

    active: list[Fault] = field(default_factory=list)
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often each verb and resource was asked for, faulty requests included."""
    cut: asyncio.Event = field(default_factory=asyncio.Event)
    """Set to cut all open watches; whoever sets it clears it."""
    away: bool = False
    """Whether every connection is closed unanswered."""

    def add(self, **fields: object) -> Fault:
        """Put a fault in force and return it."""
        fault = Fault(**fields)  # type: ignore[arg-type]
        self.active.append(fault)
        return fault

    def clear(self) -> None:
        """Let all faults go."""
        self.active.clear()
        self.away = False

    def cut_watches(self) -> None:
        """Cut all watches that are open now."""
        self.cut.set()
        self.cut = asyncio.Event()

    async def befall(self, verb: str, resource: str) -> Fault | None:
        """Count a request and apply to it what happens before it is carried out; return what happens afterwards.

        Raises ApiError.
        """
        self.requests[verb, resource] += 1
        fault = next((fault for fault in self.active if fault.matches(verb, resource)), None)
        if fault is None:
            return None
        if fault.times is not None:
            fault.times -= 1
        await asyncio.sleep(fault.delay)
        if fault.status:
            raise ApiError(fault.status, _REASONS.get(fault.status, "InternalError"), f"an injected fault: {fault.status}")
        return fault
