"""Enterprise Gateway's request handlers, extended: each request has a verified sender, who reaches only what is theirs.

Every handler gets ``Verified`` put before it, also those that a later Enterprise Gateway brings: what is not listed as public
needs a sender, and what has a kernel's id in its path needs that kernel to be the sender's.
"""

from __future__ import annotations

import inspect
import json
import logging
from http.client import responses
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from enterprise_gateway.base.handlers import NotFoundHandler
from enterprise_gateway.services.api.handlers import BaseSpecHandler
from jupyter_client.jsonutil import date_default
from jupyter_server.services.kernelspecs.handlers import is_kernelspec_model, kernelspec_model
from jupyter_server.utils import ensure_async, url_escape, url_path_join
from tornado import web, websocket

from elastic_kernels import profiles
from elastic_kernels.errors import ElasticKernelsError, IdentityAwayError, ProfileError, UnauthorizedError
from elastic_kernels.gateway import audit
from elastic_kernels.gateway.managers import ElasticMappingKernelManager
from elastic_kernels.gateway.sessions import OwnSessions
from elastic_kernels.gateway.websockets import PromptChannels
from elastic_kernels.identity import Caller, User
from elastic_kernels.identity.verifier import Verifier

log = logging.getLogger(__name__)

# RFC 6455, section 7.4.1
_POLICY_VIOLATION: Final = 1008

VERIFIER: Final = "elastic_kernels_verifier"
"""The application's setting that holds the Verifier, None where nobody is verified."""
PUBLIC: Final = (BaseSpecHandler, NotFoundHandler)
"""What anybody may ask: the description of the API, and what does not exist."""


class Verified(web.RequestHandler):
    """Put before each of the gateway's own handlers, whose methods these extend."""

    caller: Caller | None = None
    """Who sent the request; None where nobody is verified."""
    audited: dict[str, Any]
    """What the request's audit line will say."""

    # the extended handlers' own
    base_url: str
    get_json_body: Any

    def __init__(self, application: web.Application, request: Any, **kwargs: Any) -> None:
        _hide_token(request)
        self.audited = {}
        super().__init__(application, request, **kwargs)

    async def prepare(self) -> None:
        """Called before the request is handled. Raises HTTPError 401, 404 and 503."""
        verifier: Verifier | None = self.settings.get(VERIFIER)
        if verifier is not None and self.request.method != "OPTIONS" and not isinstance(self, PUBLIC):
            self.caller = await self._raising(verifier.identify(self.request))
            self.current_user = self.caller
            kernel_id = self.path_kwargs.get("kernel_id")
            if kernel_id is not None:
                self._own(kernel_id)
        result = super().prepare()
        if inspect.isawaitable(result):
            await result

    def _own(self, kernel_id: str) -> User:
        """Return whose the kernel is, if the caller may use it; to everybody else it does not exist. Raises HTTPError 404."""
        kernels: ElasticMappingKernelManager = self.settings["kernel_manager"]
        kernels.check_kernel_id(kernel_id)
        user = kernels.user_of(kernel_id)
        if user is None or (self.caller is not None and not self.caller.may_use(user.name, user.service)):
            if user is not None:
                self.audited |= {"user": user.name, "kernel": kernel_id}
            raise web.HTTPError(404, f"Kernel does not exist: {kernel_id}")
        self.audited |= {
            "user": user.name,
            "service": user.service,
            "kernel": kernel_id,
            "profile": kernels.get_kernel(kernel_id).kernel_name,
        }
        return user

    async def _raising(self, answer: Any) -> Any:
        """Await ``answer`` with our own errors turned into HTTPError."""
        try:
            return await answer
        except ElasticKernelsError as error:
            raise web.HTTPError(error.status, str(error)) from error

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with one plain sentence in the body's ``message``; a traceback is for the log, and the reason phrase HTTP's own."""
        error = (kwargs.get("exc_info") or (None, None, None))[1]
        standard = responses.get(status_code, "Unknown")
        if isinstance(error, web.HTTPError):
            message = error.get_message() or error.reason or standard
        elif error is not None:
            message = f"The gateway failed ({type(error).__name__}); its log has more."
        else:
            message = standard
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
        caller = self.caller.name if self.caller else None
        audit.write(event or "request", outcome, caller=caller, status=status, **{"path": self.request.path, **self.audited})

    def _event(self) -> str | None:
        """Return what the request does, in the audit's words, or None if it changes nothing."""
        method, path = self.request.method, self.request.path.rstrip("/")
        if method not in ("POST", "PUT", "PATCH", "DELETE"):
            return None
        if "/api/kernels" not in path:
            return "session"
        action = {"restart": "restart", "interrupt": "interrupt"}.get(path.rpartition("/")[2])
        return action or ("stop" if method == "DELETE" else "start")


class Kernels(Verified):
    """``/api/kernels``."""

    _build_kernel_env: Any
    _build_kernel_headers: Any

    async def get(self) -> None:
        """List the caller's own kernels; for administrators ``?user=NAME`` lists another's and ``?user=*`` everybody's."""
        if self.caller is None:
            await ensure_async(super().get())
            return
        kernels: ElasticMappingKernelManager = self.settings["kernel_manager"]
        wanted = self.get_query_argument("user", self.caller.name)
        everybody = self.caller.is_administrator and wanted != self.caller.name
        models = []
        for kernel_id in kernels.list_kernel_ids():
            user = kernels.user_of(kernel_id)
            if user is None or not self.caller.may_use(user.name, user.service):
                continue
            model = kernels.kernel_model(kernel_id)
            if everybody and wanted in ("*", user.name):
                models.append({**model, "user": user.name})
            elif not everybody and (user.name == self.caller.name or self.caller.acts_for is not None):
                models.append(model)
        self.finish(json.dumps(models, default=date_default))

    async def post(self) -> None:
        """Start a kernel. What belongs to this request goes to the manager as arguments, and nowhere else."""
        kernels: ElasticMappingKernelManager = self.settings["kernel_manager"]
        model = self._body()
        sent = model.get("env", {})
        if not isinstance(sent, dict):
            raise web.HTTPError(400, "The request's env is not a mapping of variables to values.")
        path = model.get("path")
        if path is not None and not isinstance(path, str):
            raise web.HTTPError(400, "The request's path is not text.")
        self.audited["profile"] = model.get("name") if isinstance(model.get("name"), str) else None
        most = self.settings.get("eg_max_kernels")
        if most is not None and not kernels.is_elastic(model.get("name")) and len(kernels.list_kernel_ids()) >= most:
            raise web.HTTPError(403, f"This gateway runs {most} kernels at most, and as many run now; shut one down to start another.")
        user = None
        if self.caller is not None:
            user = self._user(self.caller, sent)
            self.audited |= {"user": user.name, "service": user.service}
        kernel_id = await kernels.start_kernel(
            kernel_name=model.get("name"),
            path=path,
            env=self._build_kernel_env(sent),
            kernel_headers=self._build_kernel_headers(),
            user=user,
        )
        self._own(kernel_id) if self.caller else self.audited.update(kernel=kernel_id)
        self.set_header("Location", url_path_join(self.base_url, "api", "kernels", url_escape(kernel_id)))
        self.set_status(201)
        self.finish(json.dumps(kernels.kernel_model(kernel_id), default=date_default))

    def _body(self) -> dict[str, Any]:
        try:
            body = self.get_json_body()
        except UnicodeError:
            raise web.HTTPError(400, "The request's body is not UTF-8.") from None
        if body is not None and not isinstance(body, dict):
            raise web.HTTPError(400, "The request's body is not a JSON object.")
        return body or {}

    def _user(self, caller: Caller, sent: dict[str, Any]) -> User:
        named = sent.get("KERNEL_USERNAME")
        try:
            return caller.on_behalf_of(named if isinstance(named, str) else None)
        except ElasticKernelsError as error:
            raise web.HTTPError(error.status, str(error)) from error


class KernelAction(Verified):
    """``/api/kernels/<id>/restart`` and ``…/interrupt``."""

    async def post(self, kernel_id: str, action: str) -> None:
        """Restart or interrupt. Raises HTTPError, where the stock handler shows a traceback."""
        kernels: ElasticMappingKernelManager = self.settings["kernel_manager"]
        if action == "interrupt":
            await ensure_async(kernels.interrupt_kernel(kernel_id))
            self.set_status(204)
            self.finish()
            return
        await kernels.restart_kernel(kernel_id)
        self.finish(json.dumps(kernels.kernel_model(kernel_id), default=date_default))


class Channels(Verified, PromptChannels):
    """A kernel's websocket."""

    def open(self, kernel_id: str) -> Any:
        """Called once the connection is accepted."""
        audit.write("connect", "ok", caller=self.caller.name if self.caller else None, **self.audited)
        return super().open(kernel_id)

    async def on_message(self, message: str | bytes) -> None:
        """Called with each message of the client's, one after the other: a connection that lasts for days is verified again."""
        verifier: Verifier | None = self.settings.get(VERIFIER)
        if verifier is not None:
            try:
                await verifier.identify(self.request)
            except UnauthorizedError as error:
                audit.write("connect", "refused", caller=self.caller.name if self.caller else None, message=str(error), **self.audited)
                # Jupyter Server's own close says no reason
                websocket.WebSocketHandler.close(self, _POLICY_VIOLATION, "You are not verified any more; connect again.")
                return
            except IdentityAwayError:
                log.debug("Nobody can be verified now; connections that were go on")
        super().on_message(message)


class Sessions(Verified):
    """``/api/sessions`` and what is below."""

    @property
    def session_manager(self) -> Any:
        """The sessions that the caller has."""
        sessions = self.settings["session_manager"]
        return OwnSessions(sessions, self.caller) if self.caller is not None else sessions

    async def post(self, *args: Any, **kwargs: Any) -> None:
        """Start a session, and with it a kernel; why one could not be started is said as for a kernel."""
        self._model()
        try:
            await ensure_async(super().post(*args, **kwargs))
        except web.HTTPError as error:
            cause = error.__cause__
            if isinstance(cause, ElasticKernelsError):
                raise web.HTTPError(cause.status, str(cause)) from cause
            raise cause if isinstance(cause, web.HTTPError) else error from None

    async def patch(self, *args: Any, **kwargs: Any) -> None:
        """Change a session. Enterprise Gateway cannot start another kernel for one, which is said and not tried."""
        kernel = self._model().get("kernel") or {}
        if kernel.get("name") is not None and kernel.get("id") is None:
            raise web.HTTPError(400, "Start the session's new kernel with POST /api/kernels, and give its id here.")
        await ensure_async(super().patch(*args, **kwargs))

    def _model(self) -> dict[str, Any]:
        body = self.get_json_body()
        if not isinstance(body, dict) or not isinstance(body.get("kernel") or {}, dict):
            raise web.HTTPError(400, "The request's body is not the model of a session.")
        return body


class KernelSpecs(Verified):
    """``/api/kernelspecs`` and what is below: those that the caller may start."""

    async def get(self, kernel_name: str | None = None, *args: Any, **kwargs: Any) -> None:
        """List them, or answer for one as if the others did not exist."""
        if self.caller is None:
            await ensure_async(super().get(*((kernel_name,) if kernel_name is not None else ()), *args, **kwargs))
            return
        specs = await ensure_async(self.settings["kernel_spec_cache"].get_all_specs())
        models = {}
        for name, info in specs.items():
            model = info if is_kernelspec_model(info) else kernelspec_model(self, name, info["spec"], info["resource_dir"])
            if _is_open(name, model["spec"], self.caller):
                models[name] = model
        if kernel_name is None:
            default = self.settings["kernel_manager"].default_kernel_name
            default = default if default in models else next(iter(sorted(models)), "")
            self.finish(json.dumps({"default": default, "kernelspecs": models}))
        elif kernel_name in models:
            await ensure_async(super().get(kernel_name, *args, **kwargs))
        else:
            raise web.HTTPError(404, f"Kernel spec {kernel_name} not found")


def _is_open(name: str, spec: dict[str, Any], caller: Caller) -> bool:
    """Tell whether the caller may start the kernel of this name."""
    try:
        profile = profiles.from_kernelspec(name, spec)
    except ProfileError:
        return False
    people = [caller.name] if caller.acts_for is None else [user for user in caller.acts_for if "*" not in user]
    return profile.admits("", caller.groups) or any(profile.admits(user, caller.groups) for user in people)


class Description(Verified):
    """The API's own description, which is for everybody; the stock handler fails where only its headers are asked for."""

    SUPPORTED_METHODS = ("GET", "OPTIONS")


EXTENSIONS: Final[dict[str, type[Verified]]] = {
    "MainKernelHandler": Kernels,
    "KernelActionHandler": KernelAction,
    "ZMQChannelsHandler": Channels,
    "SessionRootHandler": Sessions,
    "SessionHandler": Sessions,
    "MainKernelSpecHandler": KernelSpecs,
    "KernelSpecHandler": KernelSpecs,
    "KernelSpecResourceHandler": KernelSpecs,
    "SpecJsonHandler": Description,
    "APIYamlHandler": Description,
}
"""By the names that the handlers have in Enterprise Gateway and Jupyter Server."""


def extended(handlers: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return an application's handlers, each with what it is extended by put before it."""
    return [(path, _extended(handler), *rest) for path, handler, *rest in handlers]


def _extended(handler: Any) -> Any:
    if not isinstance(handler, type) or issubclass(handler, Verified):
        return handler
    return type(handler.__name__, (EXTENSIONS.get(handler.__name__, Verified), handler), {})


def _hide_token(request: Any) -> None:
    """Take a token out of the request's address, which is logged. Its arguments, which are parsed by now, stay as they are."""
    path, mark, query = request.uri.partition("?")
    if mark and "token" in query:
        pairs = [(name, "[hidden]" if name == "token" else value) for name, value in parse_qsl(query, keep_blank_values=True)]
        request.uri = f"{path}?{urlencode(pairs)}"
