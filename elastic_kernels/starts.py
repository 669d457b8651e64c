"""Starts that are under way in this process, and those that came to nothing a while ago: for whoever asks how one is doing.

A client that chose its kernel's id can ask before it has an answer, and one whose connection broke can ask what became of it.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Final

from elastic_kernels.errors import one_line
from elastic_kernels.metrics import metrics
from elastic_kernels.status import Phase, Status

log = logging.getLogger(__name__)

_REMEMBERED: Final = 300.0
_LAUNCHES: Final = 20
NOT_TAKEN: Final = "the cluster has not taken it yet"


@dataclass
class Start:
    """One start of one kernel."""

    kernel_id: str
    user: str
    service: str
    profile: str
    status: Status = field(default_factory=lambda: Status(Phase.QUEUED, NOT_TAKEN))
    since: str = ""
    """When the phase began (RFC 3339)."""
    ended: float | None = None
    """The process's time at which it failed, None while it is under way."""
    begun: float = field(default_factory=time.monotonic)
    phase_begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.since = self.since or timestamp()

    def note(self, now: Status, pod: str = "") -> None:
        """Note a change of the status: it is logged, and the time of the phase that is over is counted."""
        if now == self.status:
            return
        if now.phase is not self.status.phase:
            moment = time.monotonic()
            metrics().phases.labels(self.profile, self.status.phase.value).observe(moment - self.phase_begun)
            self.phase_begun, self.since = moment, timestamp()
        transition(self.kernel_id, self.user, self.profile, pod, self.status, now)
        self.status = now


class Starts:
    """Those of one process."""

    def __init__(self) -> None:
        self._starts: dict[str, Start] = {}
        self._seconds: dict[str, deque[float]] = {}

    def begin(self, start: Start) -> None:
        """Take a start among them; those that failed long ago are forgotten."""
        late = time.monotonic() - _REMEMBERED
        self._starts = {key: known for key, known in self._starts.items() if known.ended is None or known.ended > late}
        self._starts[start.kernel_id] = start

    def end(self, start: Start, outcome: str, sentence: str = "") -> None:
        """Take it out again; one that failed is remembered with its ``sentence``. ``outcome`` is a word for the metrics."""
        metrics().launches.labels(start.profile, outcome).inc()
        if outcome == "ready":
            self._seconds.setdefault(start.profile, deque(maxlen=_LAUNCHES)).append(time.monotonic() - start.begun)
            self._starts.pop(start.kernel_id, None)
            return
        start.ended = time.monotonic()
        if start.status.phase is not Phase.FAILED:
            start.note(Status(Phase.FAILED, sentence, hopeless=True, cause=start.status.cause))

    def get(self, kernel_id: str) -> Start | None:
        """Return a kernel's start that is under way, or failed a while ago."""
        return self._starts.get(kernel_id)

    def is_under_way(self, kernel_id: str) -> bool:
        """Tell whether a start of a kernel is under way here."""
        start = self._starts.get(kernel_id)
        return start is not None and start.ended is None

    @property
    def are_under_way(self) -> bool:
        """Whether any start is under way here."""
        return any(start.ended is None for start in self._starts.values())

    def usually(self, profile: str) -> float | None:
        """Return the seconds that a start of this profile usually takes here, None where nobody knows."""
        seconds = self._seconds.get(profile)
        return round(statistics.median(seconds), 1) if seconds else None


def transition(kernel_id: str, user: str, profile: str, pod: str, before: Status | None, now: Status) -> None:
    """Log one change of a kernel's status: a line for programs, and for people who look for the kernel's id."""
    facts = {
        "kernel": kernel_id,
        "user": user,
        "profile": profile,
        "pod": pod,
        "from": before.phase.value if before is not None else "",
        "phase": now.phase.value,
        "cause": now.cause.value if now.cause is not None else "",
        "sentence": one_line(now.sentence),
    }
    log.info("transition %s", json.dumps({name: value for name, value in facts.items() if value}, ensure_ascii=False))


def timestamp() -> str:
    """Return the time now, as the API of Kubernetes writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
