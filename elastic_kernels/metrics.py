"""What Prometheus can ask a gateway. No user's name is in it, and nothing of what kernels do.

Gauges are of the whole deployment, so that each gateway of it says the same; counters and times are of one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from prometheus_client import Counter, Gauge, Histogram

_SECONDS = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)


@dataclass(frozen=True)
class Metrics:
    """One process's."""

    launches: Counter
    """By profile and outcome: ready, refused, failed, late, given-up."""
    phases: Histogram
    """Seconds that launches spent in each phase, by profile."""
    warm: Counter
    """Starts of profiles that keep kernels warm, by profile and outcome: taken, or none that would do."""
    waiting: Gauge
    """Pods that are kept for starts to come, by profile and kind: kernel, capacity."""
    kernels: Gauge
    """By limit class and phase."""
    staleness: Gauge
    """Seconds since which a watch has not been kept up, by resource; 0 while it is."""
    api_errors: Counter
    """Requests to the Kubernetes API that failed, by method and code (``none`` where there was no answer)."""

    def count_kernels(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Set the number of kernels of each limit class and phase; what is not named there is none."""
        self.kernels.clear()
        for (limit_class, phase), count in counts.items():
            self.kernels.labels(limit_class, phase).set(count)


@cache
def metrics() -> Metrics:
    """Return the process's metrics, which are registered with Prometheus's library by whoever asks first."""
    return Metrics(
        launches=Counter("elastic_kernels_launches", "Launches of kernels, by how they came out.", ["profile", "outcome"]),
        phases=Histogram("elastic_kernels_launch_phase_seconds", "Time in each phase of a launch.", ["profile", "phase"], buckets=_SECONDS),
        warm=Counter("elastic_kernels_warm_starts", "Starts of profiles that keep kernels warm.", ["profile", "outcome"]),
        waiting=Gauge("elastic_kernels_waiting", "Pods that are kept for starts to come, and are no kernels.", ["profile", "kind"]),
        kernels=Gauge("elastic_kernels_kernels", "Kernels of the deployment.", ["limit_class", "phase"]),
        staleness=Gauge("elastic_kernels_watch_staleness_seconds", "For how long a watch has not been kept up.", ["resource"]),
        api_errors=Counter("elastic_kernels_api_errors", "Requests to the Kubernetes API that failed.", ["method", "code"]),
    )
