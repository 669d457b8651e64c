"""What can go wrong, as exceptions whose text is meant for people.

Every error carries three things: the HTTP status that a REST client sees, one public sentence (what, why, what to do), and a
detail for the operator's log. Only the sentence leaves the gateway, in the response body's ``message``.
"""

from __future__ import annotations

from typing import Final

SILENT_KERNEL: Final = 4504
"""The code with which a gateway closes the websocket of a kernel that takes connections and says nothing; RFC 6455, section 7.4.2,
leaves such codes to us."""


class ElasticKernelsError(Exception):
    """The base of all errors that this project raises on purpose.

    ``str(error)`` is the public sentence; ``detail`` is for the log and may be empty; ``status`` is an HTTP status code.
    """

    status = 500
    retry_after: float | None = None
    """Seconds after which the same request may succeed, where it may: what the response's ``Retry-After`` says."""

    def __init__(self, sentence: str, *, detail: str = "") -> None:
        super().__init__(one_line(sentence))
        self.detail = detail


class ProfileError(ElasticKernelsError):
    """A profile, or a file of them, is not valid: each mistake is a clause with a path and a value."""

    status = 500

    def __init__(self, *mistakes: str) -> None:
        super().__init__("; ".join(mistakes))
        self.mistakes = tuple(one_line(mistake) for mistake in mistakes)


class RequestError(ElasticKernelsError):
    """The client asked for something malformed."""

    status = 400


class UnauthorizedError(ElasticKernelsError):
    """The request does not say who sends it, or not in a way that can be believed."""

    status = 401


class IdentityAwayError(ElasticKernelsError):
    """Who sends the request cannot be found out now."""

    status = 503


class NotAllowedError(ElasticKernelsError):
    """The client asked for something that is not open to it."""

    status = 403


class LimitReachedError(ElasticKernelsError):
    """The user, or the deployment, has as many kernels as it may have."""

    status = 403
    retry_after = 5.0


class NotFoundError(ElasticKernelsError):
    """There is no such thing, or none that the caller may know of."""

    status = 404


class KernelExistsError(ElasticKernelsError):
    """The kernel id that a client chose belongs to a kernel already."""

    status = 409


class NotRunningError(ElasticKernelsError):
    """The kernel is dead, so that nothing can be asked of it."""

    status = 409


class HomeError(ElasticKernelsError):
    """The user's home volume cannot be had, or not where the kernel runs."""

    status = 409


class LaunchError(ElasticKernelsError):
    """The kernel's pod cannot start, or can start but not run the kernel."""

    status = 500


class LaunchTimeoutError(ElasticKernelsError):
    """The launch took longer than it may; the sentence says what it was waiting for."""

    status = 504


class ClusterError(ElasticKernelsError):
    """The Kubernetes API refused a request. ``reason`` is the API's word for it (``AlreadyExists``, ``Forbidden``, …)."""

    status = 502

    def __init__(self, sentence: str, *, code: int, reason: str, detail: str = "", retry_after: float | None = None) -> None:
        super().__init__(sentence, detail=detail)
        self.code = code
        self.reason = reason
        self.retry_after = retry_after


class ClusterAwayError(ElasticKernelsError):
    """The Kubernetes API did not answer within the time that the caller could wait."""

    status = 503


class ConfigurationError(ElasticKernelsError):
    """The gateway's own settings are wrong or incomplete."""

    status = 500


def one_line(text: str, limit: int = 1000) -> str:
    """Return ``text`` on one line, without control characters, cut to ``limit`` characters.

    Texts from clusters and containers pass through here before a user reads them.
    """
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
