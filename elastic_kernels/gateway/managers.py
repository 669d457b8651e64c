"""Enterprise Gateway's managers, extended: a kernel knows whose it is, and a start takes all that it needs as arguments."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from enterprise_gateway.services.kernels.remotemanager import (
    RemoteKernelManager,
    RemoteMappingKernelManager,
    get_process_proxy_config,
    import_item,
)
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, NoSuchKernel

from elastic_kernels import identity
from elastic_kernels.errors import KernelExistsError, NotAllowedError, NotFoundError, RequestError
from elastic_kernels.gateway import audit
from elastic_kernels.identity import User
from elastic_kernels.proxy import ElasticKernelProxy
from elastic_kernels.request import launch_timeout


class ElasticKernelManager(RemoteKernelManager):  # type: ignore[misc]
    """One kernel, of one user."""

    user: User | None = None
    """Whose it is, as verified at its start; None where nobody is verified."""

    async def start_kernel(self, *, user: User | None = None, **kwargs: Any) -> None:
        """Start the kernel, for ``user`` the first time; a restart leaves it to whom it belongs."""
        if user is not None:
            self.user = user
        await super().start_kernel(**kwargs)


class ElasticMappingKernelManager(RemoteMappingKernelManager):  # type: ignore[misc]
    """All kernels of this gateway process."""

    def _kernel_manager_class_default(self) -> str:
        return f"{__name__}.{ElasticKernelManager.__name__}"

    async def start_kernel(self, *args: Any, user: User | None = None, **kwargs: Any) -> str:
        """Start a kernel and return its id. ``user`` is whose it is to be, None where nobody is verified.

        What the client asked for is in ``kwargs``: ``kernel_name``, ``path``, and ``env``, without which the kernel gets none of
        the gateway's environment either. Raises RequestError, NotFoundError, NotAllowedError, KernelExistsError, and HTTPError
        where the launch failed.
        """
        name = self._checked_kernel_name(kwargs.get("kernel_name"))
        environment = self._checked_environment(kwargs.get("env"), user)
        kwargs |= {"kernel_name": name, "env": environment, "user": user}
        try:
            if self.is_elastic(name):
                # the limits are the cluster's: those that Enterprise Gateway counts in its memory are not asked as well
                kernel_id: str = await super(RemoteMappingKernelManager, self).start_kernel(*args, **kwargs)
                kwargs.pop("user")
                self.parent.kernel_session_manager.create_session(kernel_id, **kwargs)
                return kernel_id
            if user is not None:
                raise NotAllowedError(f"{name!r} does not run in a pod of its own, so that it is open to nobody here.")
            kwargs.pop("user")
            return str(await super().start_kernel(*args, **kwargs))
        finally:
            for starting, future in tuple(self._starting_kernels.items()):
                # a start that failed stays there otherwise; one that succeeded is taken out by whoever began it
                if future.done() and (future.cancelled() or future.exception() is not None):
                    self._starting_kernels.pop(starting, None)

    def user_of(self, kernel_id: str) -> User | None:
        """Return whose kernel it is, or None if there is no such kernel, or none that says so."""
        manager = self._kernels.get(kernel_id)
        if manager is None:
            return None
        user: User | None = getattr(manager, "user", None)
        if user is None:
            # one that Enterprise Gateway itself brought back from a session that it had saved
            name = ((manager._launch_args or {}).get("env") or {}).get("KERNEL_USERNAME")
            user = User(name) if isinstance(name, str) and name else None
        return user

    def remove_kernel(self, kernel_id: str) -> None:
        """Called when a kernel has ended, for whatever reason."""
        user, manager = self.user_of(kernel_id), self._kernels.get(kernel_id)
        super().remove_kernel(kernel_id)
        if user is not None and manager is not None:
            self.log.info("Kernel %s of %r has ended", kernel_id, user.name)
            audit.write("end", "ok", user=user.name, service=user.service, kernel=kernel_id, profile=manager.kernel_name)

    def is_elastic(self, name: Any) -> bool:
        """Tell whether the kernel of this name is one of ours, whose limits the cluster knows."""
        try:
            proxy = get_process_proxy_config(self.kernel_spec_manager.get_kernel_spec(name))
            return issubclass(import_item(proxy["class_name"]), ElasticKernelProxy)
        except (ImportError, KeyError, TypeError, ValueError, OSError):
            return False

    def _checked_kernel_name(self, name: Any) -> str:
        if name is None:
            name = self.default_kernel_name
        if not isinstance(name, str):
            raise RequestError("The kernel's name is not text.")
        if name == "python":  # Jupyter's own name for the kernel on this machine
            name = NATIVE_KERNEL_NAME
        try:
            self.kernel_spec_manager.get_kernel_spec(name)
        except (NoSuchKernel, ValueError, OSError):
            raise NotFoundError(f"There is no kernel named {name!r}; GET /api/kernelspecs lists those that there are.") from None
        return str(name)

    def _checked_environment(self, sent: Any, user: User | None) -> dict[str, str]:
        """Return the client's variables, with the user's verified name among them."""
        environment = dict(sent) if isinstance(sent, Mapping) else {}
        launch_timeout(environment.get("KERNEL_LAUNCH_TIMEOUT"))
        if user is not None:
            environment["KERNEL_USERNAME"] = user.name
        elif "KERNEL_USERNAME" in environment:
            identity.trusted_client(environment)
        chosen = environment.get("KERNEL_ID")
        if chosen is not None:
            if not _is_uuid4(chosen):
                raise RequestError("KERNEL_ID is not a UUID of version 4, in lower case and with hyphens.")
            if chosen in self._kernels or chosen in self._starting_kernels:
                raise KernelExistsError(f"There is a kernel with the id {chosen} already.")
        return environment

    async def shutdown_kernel(self, kernel_id: str, now: bool = False, restart: bool = False) -> None:
        """Shut a kernel down; raises NotFoundError for one that somebody else shut down at the same time."""
        try:
            await super().shutdown_kernel(kernel_id, now, restart)
        except KeyError:
            raise NotFoundError(f"Kernel does not exist: {kernel_id}") from None


def _is_uuid4(text: Any) -> bool:
    try:
        return isinstance(text, str) and str(uuid.UUID(text, version=4)) == text
    except ValueError:
        return False
