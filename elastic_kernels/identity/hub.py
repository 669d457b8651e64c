"""JupyterHub verifies: the request's token is a user's API token, and the hub says whose.

The hub is asked once for a token and then not again for a short time, by however many requests: what it said is kept under the
token's digest, and requests that arrive while it is being asked wait for the same answer. A hub that is away lets those in whom
it knew a while ago; for all others the answer is 503, at once, because it is not asked more than once in a few seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from elastic_kernels.errors import IdentityAwayError, RequestError, UnauthorizedError
from elastic_kernels.identity import Caller, checked_name, person

log = logging.getLogger(__name__)

_TIMEOUT: Final = 5.0
_PAUSE_WHILE_AWAY: Final = 2.0
# a token that is none is asked about again after this time, so that a new one works soon
_REFUSED_TIME: Final = 5.0
_REMEMBERED: Final = 10_000
_REFUSALS: Final = (401, 403, 404)


@dataclass(frozen=True)
class _Answer:
    caller: Caller | None
    """None: the hub does not know the token."""
    time: float


class Hub:
    """One hub's word about tokens. Belongs to one event loop."""

    def __init__(self, url: str, *, fresh_time: float, away_time: float, administrators: Collection[str]) -> None:
        """``url`` is the hub's API (``http://hub:8081/hub/api``); the times, in seconds, say for how long an answer holds while the
        hub answers, and while it does not. ``administrators`` are names, and groups as ``@group``."""
        self._url = url.rstrip("/") + "/user"
        self._fresh_time = fresh_time
        self._away_time = max(fresh_time, away_time)
        self._administrators = frozenset(administrators)
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._asking: dict[str, asyncio.Task[Caller | None]] = {}
        self._away_until = 0.0
        self._session: aiohttp.ClientSession | None = None

    async def identify(self, token: str) -> Caller:
        """Return whose token it is. Raises UnauthorizedError and IdentityAwayError."""
        now = asyncio.get_running_loop().time()
        digest = hashlib.sha256(token.encode()).hexdigest()
        known = self._answers.get(digest)
        if known is not None and now < known.time + (self._fresh_time if known.caller else min(self._fresh_time, _REFUSED_TIME)):
            return _believed(known.caller)
        try:
            if now < self._away_until:
                raise IdentityAwayError("JupyterHub, which knows whose token this is, does not answer; try again in a minute.")
            asking = self._asking.get(digest)
            if asking is None:
                asking = self._asking[digest] = asyncio.get_running_loop().create_task(self._ask(token, digest))
                asking.add_done_callback(lambda _: self._asking.pop(digest, None))
            return _believed(await asyncio.shield(asking))
        except IdentityAwayError:
            if known is not None and known.caller is not None and now < known.time + self._away_time:
                return known.caller
            raise

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def _ask(self, token: str, digest: str) -> Caller | None:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        try:
            caller = _caller(await self._answer(token), self._administrators)
        except UnauthorizedError:
            caller = None
        except IdentityAwayError as error:
            log.warning("%s (%s)", error, error.detail)
            self._away_until = loop.time() + _PAUSE_WHILE_AWAY
            raise
        self._answers[digest] = _Answer(caller, begin)
        self._answers.move_to_end(digest)
        while len(self._answers) > _REMEMBERED:
            self._answers.popitem(last=False)
        return caller

    async def _answer(self, token: str) -> Any:
        sentence = "JupyterHub, which knows whose token this is, does not answer; try again in a minute."
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT))
        headers = {"Authorization": f"token {token}", "Accept": "application/json"}
        try:
            # the token is for the hub alone, not for whom it may redirect to
            async with self._session.get(self._url, headers=headers, allow_redirects=False) as response:
                if response.status in _REFUSALS:
                    raise UnauthorizedError("JupyterHub does not know this token.")
                if response.status != 200:
                    raise IdentityAwayError(sentence, detail=f"{self._url} answers {response.status}")
                return await response.json(content_type=None)
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
            raise IdentityAwayError(sentence, detail=f"{self._url}: {error!r}") from error


def _believed(caller: Caller | None) -> Caller:
    if caller is None:
        raise UnauthorizedError(
            "JupyterHub does not know the token that came with the request; restart your server to get a new one, or use one of a user "
            "(a service needs a token of the gateway's own)."
        )
    return caller


def _caller(answer: Any, administrators: Collection[str]) -> Caller:
    """Return whom the hub's user model (JupyterHub's REST API, ``GET /user``) describes.

    Raises UnauthorizedError for a service of the hub, which could have any user's name, and IdentityAwayError for no model at all.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("name"), str):
        raise IdentityAwayError("JupyterHub's answer about the token cannot be read.", detail="its user model has no name")
    if answer.get("kind", "user") != "user":
        raise UnauthorizedError("The token belongs to a service of JupyterHub, not to a user.")
    try:
        name = checked_name(answer["name"], "JupyterHub's user")
    except RequestError as error:
        raise UnauthorizedError(str(error)) from error
    groups = answer.get("groups")
    return person(name, [group for group in groups if isinstance(group, str)] if isinstance(groups, list) else [], administrators)
