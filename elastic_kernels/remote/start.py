"""Start a kernel and wait for it, through whatever passes: a limit that is reached, a gateway that is away, a launch that failed once.

The client chooses the kernel's id, so that asking again is no second kernel: an answer that was lost on its way is found by that id.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from elastic_kernels.remote.gateway import Answer, Gateway, GatewayError

SCHEDULED: Final = "scheduled"
# no profile allows more
_LONGEST_START: Final = 86400.0 + 600
_STATUS_PAUSE: Final = 1.0
_LONGEST_STATUS_PAUSE: Final = 10.0
_LOOK_SECONDS: Final = 30.0
_WAITING: Final = "waiting for the kernel"
_SAID_AGAIN: Final = 30.0
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
# what is in use or has no room needs a while to change
_FAILED_PAUSE: Final = 5.0
# causes of a start's end that lie with machines, and may not be there the next time
_PASSING: Final = ("deleted", "evicted", "preempted", "reclaimed", "node-lost", "refused")
# of a kernel that this program itself runs in: not what the new one is to be
_OWN: Final = ("KERNEL_ID", "KERNEL_POD_NAME", "KERNEL_NAME", "KERNEL_LANGUAGE")

Tell = Callable[[str], None]
"""Shows one sentence to whoever waits. Called on the event loop."""


@dataclass(frozen=True)
class Patience:
    """For how long what is waited for, in seconds."""

    start: float | None = None
    """For a kernel to be ready; None leaves it to the profile."""
    limit: float = 600.0
    """For one of the user's own kernels to end, while they have as many as they may."""
    away: float = 120.0
    """For a gateway that does not answer."""
    retries: int = 2
    """How often a launch is repeated that failed in passing."""


class Verdict(Enum):
    """What to do about the answer to a start."""

    STARTED = "started"
    REFUSED = "refused"
    """It would be refused again."""
    FULL = "full"
    """A limit is reached."""
    AWAY = "away"
    """The gateway, or what it needs, is away; if it did not answer at all, the kernel may be starting nevertheless."""
    UNDER_WAY = "under way"
    """An earlier start of the same kernel goes on, of which the gateway did not answer."""
    FAILED = "failed"
    """It failed in passing, and may succeed when it is tried again."""


def verdict(answer: Answer, *, may_have_begun: bool = False) -> Verdict:
    """Return what an answer to ``POST /api/kernels`` means; ``may_have_begun`` says that an earlier one may have got lost."""
    if answer.status == 201:
        return Verdict.STARTED
    if answer.is_away or answer.status in (408, 429, 502, 503):
        return Verdict.AWAY
    if answer.status == 403 and answer.retry_after is not None:
        return Verdict.FULL
    if answer.status == 409 and may_have_begun:
        return Verdict.UNDER_WAY
    return Verdict.FAILED if answer.status in (409, 504) else Verdict.REFUSED


def kernel_environment(
    environment: Mapping[str, str],
    *,
    user: str | None = None,
    image: str | None = None,
    folder: str | None = None,
    notebook: str | None = None,
    limit_class: str | None = SCHEDULED,
) -> dict[str, str]:
    """Return what a start sends along: what a JupyterLab in this environment would, and what the arguments say."""
    also = {name.strip() for name in environment.get("JUPYTER_GATEWAY_ALLOWED_ENVS", "").split(",")}
    sent = {name: value for name, value in environment.items() if (name.startswith("KERNEL_") and name not in _OWN) or name in also}
    own = {
        "KERNEL_USERNAME": user,
        "KERNEL_IMAGE": image,
        "KERNEL_WORKING_DIR": folder,
        "KERNEL_LIMIT_CLASS": limit_class,
        "JPY_SESSION_NAME": notebook,
    }
    return {**sent, **{name: value for name, value in own.items() if value}}


class Starting:
    """One start under way. Belongs to one event loop."""

    def __init__(self, gateway: Gateway, profile: str, environment: Mapping[str, str], patience: Patience, tell: Tell) -> None:
        self.kernel_id = str(uuid.uuid4())
        self.may_have_begun = False
        """Whether there may be a kernel of this id, now or soon."""
        self.has_status = False
        """Whether the gateway says what a start is doing: then a start of which it says nothing is over."""
        self._gateway = gateway
        self._patience = patience
        self._tell = tell
        self._profile = profile
        # kept, because a proxy that hangs up after a minute is no reason to begin again; who gives up says so
        self._environment = {**environment, "KERNEL_ID": self.kernel_id, "KERNEL_KEEP": "true"}
        self._began = asyncio.get_running_loop().time()
        self._said = ("", self._began)

    async def run(self) -> None:
        """Return once the kernel answers. Raises GatewayError."""
        loop = asyncio.get_running_loop()
        patience = {Verdict.FULL: self._patience.limit, Verdict.AWAY: self._patience.away}
        pause, failures, former, since = _FIRST_PAUSE, 0, Verdict.STARTED, self._began
        while True:
            begun, self.may_have_begun = self.may_have_begun, True
            answer = await self._post()
            now, meaning = loop.time(), verdict(answer, may_have_begun=begun)
            if meaning is Verdict.STARTED:
                return
            # one that says why there is no kernel says nothing about an earlier start
            unheard = meaning is Verdict.AWAY and (answer.from_gateway or not answer.may_have_arrived)
            self.may_have_begun = (begun and unheard) or meaning is Verdict.UNDER_WAY or (meaning is Verdict.AWAY and not unheard)
            if meaning is Verdict.REFUSED and await self._cause() in _PASSING:
                meaning = Verdict.FAILED
            if meaning is Verdict.REFUSED:
                raise GatewayError(await self._refusal(answer), answer)
            if meaning is not former:
                former, since = meaning, now
            failures += meaning is Verdict.FAILED
            left = min(self._left(now), patience.get(meaning, math.inf) - (now - since))
            if left <= 0 or failures > self._patience.retries:
                raise GatewayError(answer.sentence, answer, may_succeed_later=True)
            waiting = meaning is Verdict.UNDER_WAY
            self._say(f"{self._profile}: {_WAITING}" if waiting else f"{answer.sentence} Trying again.", now)
            pause = _FIRST_PAUSE if waiting else max(pause, _FAILED_PAUSE) if meaning is Verdict.FAILED else pause
            await asyncio.sleep(min(left, max(pause, answer.retry_after or 0)))
            pause = min(pause * 2, _LONGEST_PAUSE)
            # the answer to an earlier request may have been lost, and not the request
            if self.may_have_begun and await self._is_there():
                return

    def _left(self, now: float) -> float:
        return math.inf if self._patience.start is None else self._patience.start - (now - self._began)

    async def _post(self) -> Answer:
        """Ask for the kernel, and meanwhile say what it waits for."""
        environment = dict(self._environment)
        if self._patience.start is not None:
            left = self._left(asyncio.get_running_loop().time())
            environment["KERNEL_LAUNCH_TIMEOUT"] = f"{max(left, 1):.0f}"
        body = {"name": self._profile, "env": environment}
        asking = asyncio.ensure_future(self._gateway.ask("POST", "/api/kernels", body, seconds=_LONGEST_START))
        watching = asyncio.ensure_future(self._watch())
        try:
            await asyncio.wait({asking, watching}, return_when=asyncio.FIRST_COMPLETED)
            return asking.result() if asking.done() else watching.result()
        finally:
            for task in (asking, watching):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _watch(self) -> Answer:
        """Say what the start waits for, for as long as the gateway is there; return how it is not."""
        loop = asyncio.get_running_loop()
        away_since: float | None = None
        pause, look_at, seen = _STATUS_PAUSE, loop.time() + _LOOK_SECONDS, 0
        while True:
            await asyncio.sleep(pause)
            answer = await self._gateway.ask("GET", f"/api/kernels/{self.kernel_id}/status", seconds=10)
            now = loop.time()
            sentence = answer.body.get("sentence") if answer.status == 200 else None
            self.has_status = self.has_status or sentence is not None
            self._say(f"{self._profile}: {sentence or _WAITING}", now)
            # a gateway that knows nothing of it is not asked every second
            pause = _STATUS_PAUSE if sentence else min(2 * pause, _LONGEST_STATUS_PAUSE)
            away_since = (away_since or now) if answer.is_away else None
            if away_since is not None and now - away_since > self._patience.away:
                return answer
            if now >= look_at:
                look_at, seen = now + _LOOK_SECONDS, seen + await self._is_there()
                # the answer to the start may have got lost on its way, which nobody notices
                if seen > 1:
                    return Answer(201)

    async def _is_there(self) -> bool:
        return (await self._gateway.ask("GET", f"/api/kernels/{self.kernel_id}", seconds=10)).status == 200

    def _say(self, sentence: str, now: float) -> None:
        """Show a sentence that is new, and one that stays the same from time to time."""
        said, when = self._said
        if sentence != said or now - when >= _SAID_AGAIN:
            self._said = (sentence, now)
            self._tell(f"{sentence} ({now - self._began:.0f} s)")

    async def _cause(self) -> object:
        """Return what brought the start to its end, where the gateway says it."""
        return (await self._gateway.ask("GET", f"/api/kernels/{self.kernel_id}/status", seconds=10)).body.get("cause")

    async def _refusal(self, answer: Answer) -> str:
        if answer.status != 404:
            return answer.sentence
        listed = await profiles(self._gateway)
        if self._profile in listed:
            return answer.sentence
        return unknown(self._profile, self._gateway, listed)


async def profiles(gateway: Gateway) -> dict[str, Any]:
    """Return the kernelspecs that the caller may start, by name; none where the gateway does not say."""
    answer = await gateway.ask("GET", "/api/kernelspecs")
    listed = answer.body.get("kernelspecs")
    return listed if isinstance(listed, dict) else {}


def unknown(profile: str, gateway: Gateway, listed: Mapping[str, Any]) -> str:
    """Return the sentence for a profile that is not among those that the caller may start."""
    there = f"there are {', '.join(sorted(listed))}" if listed else "there are none for you"
    return f"The gateway {gateway.address.url} has no profile {profile!r}: {there}."


async def end(gateway: Gateway, kernel_id: str, *, starting: Starting | None = None, seconds: float) -> Answer:
    """Have a kernel shut down, and return what came of it: 204, or 404 where there is none any more.

    ``starting`` is a start of it that may be under way, so that it can still appear.
    """
    loop = asyncio.get_running_loop()
    stop = loop.time() + seconds
    pause = _FIRST_PAUSE / 4
    while True:
        answer = await gateway.ask("DELETE", f"/api/kernels/{kernel_id}")
        is_over = answer.status == 404 and (starting is None or (starting.has_status and not await _is_known(gateway, kernel_id)))
        if answer.status == 204 or is_over or loop.time() >= stop:
            return answer
        await asyncio.sleep(min(pause, stop - loop.time()))
        pause = min(pause * 2, 5.0)


async def _is_known(gateway: Gateway, kernel_id: str) -> bool:
    answer = await gateway.ask("GET", f"/api/kernels/{kernel_id}/status", seconds=10)
    # a start that failed is remembered for a while
    return answer.status != 404 and answer.body.get("hopeless") is not True
