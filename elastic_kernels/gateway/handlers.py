"""Enterprise Gateway's request handlers, extended: lists hold the caller's own, and starts are for the caller."""

from __future__ import annotations

import json
from typing import Any

from jupyter_client.jsonutil import date_default
from jupyter_server.services.kernelspecs.handlers import is_kernelspec_model, kernelspec_model
from jupyter_server.utils import ensure_async, url_escape, url_path_join
from tornado import web

from elastic_kernels import profiles
from elastic_kernels.errors import ElasticKernelsError, ProfileError
from elastic_kernels.gateway import finding
from elastic_kernels.gateway.report import owner
from elastic_kernels.gateway.sessions import OwnSessions
from elastic_kernels.gateway.verified import Verified
from elastic_kernels.identity import Caller, User
from elastic_kernels.request import KEEP


class Kernels(Verified):
    """``/api/kernels``."""

    _build_kernel_env: Any
    _build_kernel_headers: Any

    async def get(self) -> None:
        """List the caller's own kernels; for administrators ``?user=NAME`` lists another's and ``?user=*`` everybody's."""
        if self.caller is None:
            await finding.all_kernels(self.kernels)
            await ensure_async(super().get())
            return
        wanted = self.get_query_argument("user", self.caller.name)
        everybody = self.caller.is_administrator and wanted != self.caller.name
        models = []
        # every user's JupyterLab asks for this every few seconds, and is not to look at everybody else's each time
        is_own = not everybody and self.caller.acts_for is None
        await finding.all_kernels(self.kernels, self.caller.name if is_own else None)
        for kernel_id in self.kernels.ids_of(self.caller.name) if is_own else self.kernels.list_kernel_ids():
            user = self.kernels.user_of(kernel_id)
            if user is None or not self.caller.may_use(user.name, user.service):
                continue
            model = self.kernels.kernel_model(kernel_id)
            if everybody and wanted in ("*", user.name):
                models.append({**model, "user": user.name})
            elif not everybody and (user.name == self.caller.name or self.caller.acts_for is not None):
                models.append(model)
        self.finish(json.dumps(models, default=date_default))

    async def post(self) -> None:
        """Start a kernel. What belongs to this request goes to the manager as arguments, and nowhere else."""
        model = self.body()
        sent = model.get("env", {})
        if not isinstance(sent, dict):
            raise web.HTTPError(400, "The request's env is not a mapping of variables to values.")
        path = model.get("path")
        if path is not None and not isinstance(path, str):
            raise web.HTTPError(400, "The request's path is not text.")
        self.audited["profile"] = model.get("name") if isinstance(model.get("name"), str) else None
        most = self.settings.get("eg_max_kernels")
        if most is not None and not self.kernels.is_elastic(model.get("name")) and len(self.kernels.list_kernel_ids()) >= most:
            raise web.HTTPError(403, f"This gateway runs {most} kernels at most, and as many run now; shut one down to start another.")
        user = None
        if self.caller is not None:
            named = sent.get("KERNEL_USERNAME")
            user = self.caller.on_behalf_of(named if isinstance(named, str) else None)
            self.audited |= {"user": user.name, "service": user.service}
        start = self.kernels.start_kernel(
            kernel_name=model.get("name"),
            path=path,
            env=self._build_kernel_env(sent),
            kernel_headers=self._build_kernel_headers(),
            user=user,
        )
        kernel_id = await self.while_connected(start, keep=sent.get(KEEP) == "true")
        self.audited["kernel"] = kernel_id
        self.set_header("Location", url_path_join(self.base_url, "api", "kernels", url_escape(kernel_id)))
        self.set_status(201)
        self.finish(json.dumps(self.kernels.kernel_model(kernel_id), default=date_default))


class Kernel(Verified):
    """``/api/kernels/<id>``."""

    def own(self, kernel_id: str) -> User:
        """Return whose the kernel is; its start can be cancelled, too. Raises HTTPError 404."""
        keeper = self.kernels.keeper
        if self.request.method != "DELETE" or kernel_id in self.kernels or keeper.cluster is None:
            return super().own(kernel_id)
        user = owner(keeper.cluster, kernel_id)
        if user is None or (self.caller is not None and not self.caller.may_use(user.name, user.service)):
            raise web.HTTPError(404, f"Kernel does not exist: {kernel_id}")
        self.audited |= {"user": user.name, "service": user.service, "kernel": kernel_id}
        return user

    async def delete(self, kernel_id: str) -> None:
        """Shut the kernel down, or cancel its start, wherever that is under way."""
        if kernel_id not in self.kernels and await self.kernels.keeper.cancel(kernel_id):
            self.set_status(204)
            self.finish()
            return
        await ensure_async(super().delete(kernel_id))


class KernelAction(Verified):
    """``/api/kernels/<id>/restart`` and ``…/interrupt``."""

    # an interrupt is for the pod that the kernel is in now
    connects = True

    async def post(self, kernel_id: str, action: str) -> None:
        """Restart or interrupt. Raises HTTPError, where the stock handler shows a traceback."""
        if action == "interrupt":
            await ensure_async(self.kernels.interrupt_kernel(kernel_id))
            self.set_status(204)
            self.finish()
            return
        await self.kernels.restart_kernel(kernel_id)
        self.finish(json.dumps(self.kernels.kernel_model(kernel_id), default=date_default))


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
            await self.while_connected(ensure_async(super().post(*args, **kwargs)))
        except web.HTTPError as error:
            cause = error.__cause__
            raise cause if isinstance(cause, web.HTTPError | ElasticKernelsError) else error from None

    async def patch(self, *args: Any, **kwargs: Any) -> None:
        """Change a session. Enterprise Gateway cannot start another kernel for one, which is said and not tried."""
        kernel = self._model().get("kernel") or {}
        if kernel.get("name") is not None and kernel.get("id") is None:
            raise web.HTTPError(400, "Start the session's new kernel with POST /api/kernels, and give its id here.")
        await ensure_async(super().patch(*args, **kwargs))

    def _model(self) -> dict[str, Any]:
        body = self.body()
        if not body or not isinstance(body.get("kernel") or {}, dict):
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
            default = self.kernels.default_kernel_name
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
