"""One launch. Knows nothing of Enterprise Gateway.

Whatever was created for a launch that fails, is given up by its client, or is cancelled, is handed to the reaper.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, Final

from elastic_kernels import homes, patience, pod, status
from elastic_kernels.attempt import Again, Attempt, Started
from elastic_kernels.cluster import Cluster
from elastic_kernels.errors import ClusterAwayError, ClusterError, ElasticKernelsError, LaunchError, LaunchTimeoutError
from elastic_kernels.profiles import Profile
from elastic_kernels.reach import Connect
from elastic_kernels.record import Record
from elastic_kernels.request import KernelRequest
from elastic_kernels.slots import Limits

__all__ = ["NO_LIMITS", "Again", "Started", "launch"]

NO_LIMITS: Final = Limits()


async def launch(
    cluster: Cluster,
    profile: Profile,
    asked: Record,
    request: KernelRequest,
    spot: pod.Spot,
    *,
    connect: Connect,
    arguments: Mapping[str, str],
    limits: Limits = NO_LIMITS,
    id_is_chosen: bool = True,
    home_claims: str = homes.JUPYTERHUB,
    again: Again | None = None,
) -> Started:
    """Start a kernel and return once it answers.

    ``id_is_chosen`` says that the client chose the kernel's id, so that another kernel may have it. ``home_claims`` says how the
    user's home volume is found (see ``homes``). ``again`` is for a kernel that has been started before. ``arguments`` are values for the
    command's placeholders. Raises LimitReachedError, HomeError, NotFoundError, LaunchError, LaunchTimeoutError, KernelExistsError,
    ClusterError and ClusterAwayError; then nothing that was created remains, at the latest when the API server answers again.
    """
    attempt = Attempt(cluster, asked, profile, request, limits, id_is_chosen)
    cluster.unfinished.add(attempt.abandon)
    cluster.starts.begin(attempt.start)
    outcome, sentence = "given-up", "it was given up"
    try:
        started = await _in_time(attempt, request.timeout, attempt.run(asked, spot, connect, arguments, home_claims, again))
        outcome = "ready"
        return started
    except ElasticKernelsError as error:
        is_late = isinstance(error, LaunchTimeoutError)
        # what cannot start here can nowhere
        attempt.give_up(with_joined=is_late or isinstance(error, LaunchError))
        sentence = str(error)
        outcome = "late" if is_late else "refused" if error.status in (400, 403, 409) else "failed"
        raise
    except BaseException:  # a cancelled launch, too, leaves nothing behind
        attempt.give_up()
        raise
    finally:
        cluster.unfinished.discard(attempt.abandon)
        cluster.starts.end(attempt.start, outcome, sentence)


async def _in_time(attempt: Attempt, seconds: float, run: Coroutine[Any, Any, Started]) -> Started:
    """Carry an attempt out, and say what went wrong in a sentence about the kernel."""
    now = attempt.start
    try:
        return await patience.within(run, seconds)
    except asyncio.TimeoutError:
        sentence = f"{now.status.sentence}{await attempt.why_late()}"
        raise LaunchTimeoutError(
            f"The kernel {attempt.title} was not ready within {seconds:g} seconds: {sentence}.", detail=now.status.phase.value
        ) from None
    except ClusterError as error:
        sentence = status.refused(str(error)).sentence
        raise LaunchError(f"The cluster refused the kernel {attempt.title}: {sentence}.", detail=error.detail) from error
    except ClusterAwayError as error:
        raise ClusterAwayError(
            f"The kernel {attempt.title} could not be started because the cluster does not answer; try again in a minute.",
            detail=error.detail,
        ) from error
