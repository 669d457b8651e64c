"""What is put before each of Enterprise Gateway's handlers: the request's sender is verified, and refused in one sentence."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections.abc import Awaitable
from http.client import responses
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import parse_qsl, urlencode

from enterprise_gateway.base.handlers import NotFoundHandler
from enterprise_gateway.services.api.handlers import BaseSpecHandler
from tornado import web

from elastic_kernels.errors import ElasticKernelsError
from elastic_kernels.gateway import audit, finding
from elastic_kernels.gateway.managers import ElasticMappingKernelManager
from elastic_kernels.identity import Caller, User
from elastic_kernels.identity.verifier import Verifier

log = logging.getLogger(__name__)

T = TypeVar("T")

# what nginx writes into its log
_HUNG_UP: Final = 499

VERIFIER: Final = "elastic_kernels_verifier"
"""The application's setting that holds the Verifier, None where nobody is verified."""
PUBLIC: Final = (BaseSpecHandler, NotFoundHandler)
"""What anybody may ask: the description of the API, and what does not exist."""


class Verified(web.RequestHandler):
    """Put before each of the gateway's own handlers, whose methods these extend."""

    caller: Caller | None = None
    """Who sent the request; None where nobody is verified."""
    waits: ClassVar[bool] = True
    """Whether a kernel that others started is waited for."""
    connects: ClassVar[bool] = False
    """Whether it is a connection to a kernel, which has to answer."""
    audited: dict[str, Any]
    """What the request's audit line will say."""

    _work: asyncio.Future[Any] | None = None
    _hung_up = False

    # the extended handlers' own
    base_url: str
    get_json_body: Any

    @property
    def kernels(self) -> ElasticMappingKernelManager:
        """The gateway's kernels."""
        manager: ElasticMappingKernelManager = self.settings["kernel_manager"]
        return manager

    def __init__(self, application: web.Application, request: Any, **kwargs: Any) -> None:
        _hide_token(request)
        self.audited = {}
        super().__init__(application, request, **kwargs)

    async def prepare(self) -> None:
        """Called before the request is handled. Raises UnauthorizedError, IdentityAwayError, and HTTPError 404."""
        verifier: Verifier | None = self.settings.get(VERIFIER)
        kernel_id = self.path_kwargs.get("kernel_id")
        if verifier is not None and self.request.method != "OPTIONS" and not isinstance(self, PUBLIC):
            self.caller = await verifier.identify(self.request)
            self.current_user = self.caller
        if kernel_id is not None and self.request.method != "OPTIONS":
            if self.waits:
                await finding.kernel(
                    self.kernels,
                    kernel_id,
                    is_to_answer=self.connects,
                    is_to_restart=self.path_kwargs.get("action") == "restart",
                    is_to_end=self.request.method == "DELETE",
                )
            if self.caller is not None:
                self.own(kernel_id)
        result = super().prepare()
        if inspect.isawaitable(result):
            await result

    async def while_connected(self, work: Awaitable[T], *, keep: bool = False) -> T:
        """Return what ``work`` does, and cancel it when the client hangs up, unless it is to be kept. Raises HTTPError then."""
        self._work = None if keep else asyncio.ensure_future(work)
        if self._work is not None and self._hung_up:
            # while it was being verified
            self._work.cancel()
        try:
            return await (self._work if self._work is not None else work)
        except asyncio.CancelledError:
            if self._work is None or not self._work.cancelled():
                raise
            if self._hung_up:
                raise web.HTTPError(_HUNG_UP, "The client hung up, so that the start was cancelled.") from None
            raise web.HTTPError(409, "The kernel was shut down while it started.") from None

    def on_connection_close(self) -> None:
        """Called when the client has hung up."""
        super().on_connection_close()
        self._hung_up = True
        if self._work is not None:
            self._work.cancel()

    def body(self) -> dict[str, Any]:
        """Return the request's body, empty where there is none. Raises HTTPError 400."""
        try:
            body = self.get_json_body()
        except UnicodeError:
            raise web.HTTPError(400, "The request's body is not UTF-8.") from None
        if body is not None and not isinstance(body, dict):
            raise web.HTTPError(400, "The request's body is not a JSON object.")
        return body or {}

    def own(self, kernel_id: str) -> User:
        """Return whose the kernel is, if the caller may use it; to everybody else it does not exist. Raises HTTPError 404."""
        self.kernels.check_kernel_id(kernel_id)
        user = self.kernels.user_of(kernel_id)
        if user is None or (self.caller is not None and not self.caller.may_use(user.name, user.service)):
            if user is not None:
                self.audited |= {"user": user.name, "kernel": kernel_id}
            raise web.HTTPError(404, f"Kernel does not exist: {kernel_id}")
        self.audited |= {
            "user": user.name,
            "service": user.service,
            "kernel": kernel_id,
            "profile": self.kernels.get_kernel(kernel_id).kernel_name,
        }
        return user

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Called with what a handler raised: our own errors are a line in the log, and not a traceback."""
        if isinstance(value, ElasticKernelsError):
            level = logging.WARNING if value.status < 500 else logging.ERROR
            log.log(level, "%d %s %s: %s %s", value.status, self.request.method, self.request.path, value, value.detail)
        else:
            super().log_exception(typ, value, tb)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Called when a handler raised something: our own errors know their status."""
        error = (kwargs.get("exc_info") or (None, None, None))[1]
        super().send_error(error.status if isinstance(error, ElasticKernelsError) else status_code, **kwargs)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with one plain sentence in the body's ``message``; a traceback is for the log, and the reason phrase HTTP's own."""
        error = (kwargs.get("exc_info") or (None, None, None))[1]
        standard = responses.get(status_code, "Unknown")
        if isinstance(error, web.HTTPError):
            message = error.get_message() or error.reason or standard
        elif isinstance(error, ElasticKernelsError):
            message = str(error)
        elif error is not None:
            message = f"The gateway failed ({type(error).__name__}); its log has more."
        else:
            message = standard
        cause = error.__cause__ if isinstance(error, web.HTTPError) else error
        if isinstance(cause, ElasticKernelsError) and cause.retry_after is not None:
            self.set_header("Retry-After", f"{cause.retry_after:.0f}")
        self.audited["message"] = message
        self.set_header("Content-Type", "application/json")
        self.set_status(status_code)
        self.finish(json.dumps({"reason": standard, "message": message}))

    def on_finish(self) -> None:
        """Called when the request has been answered: what changes something, and what is refused, is audited."""
        super().on_finish()
        status = self.get_status()
        refused = status in (401, 403) or (status == 404 and "user" in self.audited)
        event = self._event()
        if event is None and not refused:
            return
        outcome = "ok" if status < 400 else "refused" if status < 500 else "failed"
        self.audit(event or "request", outcome, status=status, path=self.request.path)

    def audit(self, event: str, outcome: str, **more: Any) -> None:
        """Write a line about this request's sender, and what is known of what they ask for."""
        audit.write(event, outcome, caller=self.caller.name if self.caller else None, **{**more, **self.audited})

    def _event(self) -> str | None:
        """Return what the request does, in the audit's words, or None if it changes nothing."""
        method, path = self.request.method, self.request.path.rstrip("/")
        if method not in ("POST", "PUT", "PATCH", "DELETE"):
            return None
        if "/api/kernels" not in path:
            return "session"
        action = {"restart": "restart", "interrupt": "interrupt"}.get(path.rpartition("/")[2])
        return action or ("stop" if method == "DELETE" else "start")


def _hide_token(request: Any) -> None:
    """Take a token out of the request's address, which is logged. Its arguments, which are parsed by now, stay as they are."""
    path, mark, query = request.uri.partition("?")
    if mark and "token" in query:
        pairs = [(name, "[hidden]" if name == "token" else value) for name, value in parse_qsl(query, keep_blank_values=True)]
        request.uri = f"{path}?{urlencode(pairs)}"
