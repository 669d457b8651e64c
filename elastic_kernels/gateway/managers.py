"""Enterprise Gateway's managers, extended: a kernel knows whose it is, and a start takes all that it needs as arguments.

Restarts and shutdowns work at any moment, twice, and at the same time: a second restart waits for the first one's outcome, and a
shutdown ends a restart that is under way.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any

from enterprise_gateway.services.kernels.remotemanager import (
    RemoteKernelManager,
    RemoteMappingKernelManager,
    get_process_proxy_config,
    import_item,
)
from jupyter_client.ioloop import AsyncIOLoopKernelRestarter
from jupyter_client.kernelspec import NATIVE_KERNEL_NAME, NoSuchKernel
from jupyter_server._tz import utcnow
from traitlets import Type

from elastic_kernels import identity, profiles, reach
from elastic_kernels.errors import ClusterAwayError, KernelExistsError, NotAllowedError, NotFoundError, NotRunningError, RequestError
from elastic_kernels.gateway import activity, audit, serving
from elastic_kernels.gateway.keeper import Keeper
from elastic_kernels.gateway.users import KernelsByUser
from elastic_kernels.identity import User
from elastic_kernels.proxy import ElasticKernelProxy
from elastic_kernels.request import launch_timeout


class Restarter(AsyncIOLoopKernelRestarter):  # type: ignore[misc]
    """Leaves the pods to the keeper, which is told of their ends and does not have to ask; not even a timer runs for each of them."""

    def start(self) -> None:
        """Called when the kernel has started."""
        if not isinstance(self.kernel_manager.process_proxy, ElasticKernelProxy):
            super().start()


class ElasticKernelManager(RemoteKernelManager):  # type: ignore[misc]
    """One kernel, of one user."""

    restarter_class = Type(Restarter, klass=AsyncIOLoopKernelRestarter, config=True)
    user: User | None = None
    """Whose it is, as verified at its start; None where nobody is verified."""
    reason: str = ""
    """Why it is dead, if it is."""
    died_at: str = ""
    """And since when."""
    on_demand: bool = False
    """Whether it is not started on spot machines, whatever its profile says."""
    warning: str = ""
    """What its user should know: that it is about to be culled."""
    awaited: str = ""
    """What it is doing while a start of it by another gateway has not come to its end, a clause; empty where none is under way."""
    execution_state: str = "starting"
    """What it does, in Jupyter's words."""
    executing: dict[str, Any] | None = None
    """The header of the request that it executes."""
    is_known: bool = False
    """Whether it has said what it does."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.last_activity = utcnow()

    async def start_kernel(self, *, user: User | None = None, **kwargs: Any) -> None:
        """Start the kernel, for ``user`` the first time; a restart leaves it to whom it belongs."""
        if user is not None:
            self.user = user
        await super().start_kernel(**kwargs)

    def request_shutdown(self, restart: bool = False) -> None:
        """Ask the kernel to shut down; one that is dead cannot be asked."""
        if self.has_kernel:
            super().request_shutdown(restart)

    async def interrupt_kernel(self) -> None:
        """Interrupt what the kernel executes.

        Raises NotRunningError for one that is dead or being started elsewhere, and ClusterAwayError for one that may have been
        restarted elsewhere meanwhile.
        """
        if not self.shutting_down:
            self.check_started()
        if self.has_kernel:
            await super().interrupt_kernel()
            # a shutdown interrupts first, and its end does not depend on that
            if not self.shutting_down and not await self._is_where_it_was():
                raise ClusterAwayError("The gateway cannot see the cluster, and this kernel is not where it was; try again in a minute.")
        elif not self.shutting_down:
            raise NotRunningError(f"The kernel is not running: {self.reason or 'it has ended'}. Restart it, or shut it down.")

    def check_started(self) -> None:
        """Raise NotRunningError if another gateway is starting the kernel, or was when it was killed."""
        if self.awaited and not self.restarting:
            raise NotRunningError(f"The kernel is being started, and cannot be used yet: {self.awaited}. Try again in a moment.")

    async def _is_where_it_was(self) -> bool:
        cluster = self.parent.keeper.cluster
        if cluster is None or cluster.pods.is_fresh or not isinstance(self.process_proxy, ElasticKernelProxy):
            return True
        return await reach.accepts(self.ip, self.control_port)


class ElasticMappingKernelManager(RemoteMappingKernelManager):  # type: ignore[misc]
    """All kernels of this gateway process, which are all kernels of its deployment."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._kernels = KernelsByUser()
        self.keeper = Keeper(self)
        self._restarts: dict[str, asyncio.Task[None]] = {}
        self._shutdowns: Counter[str] = Counter()
        self._ends: set[asyncio.Task[None]] = set()

    def _kernel_manager_class_default(self) -> str:
        return f"{__name__}.{ElasticKernelManager.__name__}"

    async def start_kernel(self, *, user: User | None = None, **kwargs: Any) -> str:
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
                kernel_id: str = kwargs.pop("kernel_id", None) or self.new_kernel_id(**kwargs)
                try:
                    # the limits are the cluster's: those that Enterprise Gateway counts in its memory are not asked as well
                    await super(RemoteMappingKernelManager, self).start_kernel(kernel_id=kernel_id, **kwargs)
                except asyncio.CancelledError:
                    self._end_unwanted(kernel_id)
                    raise
                kwargs.pop("user")
                self.parent.kernel_session_manager.create_session(kernel_id, **kwargs)
                activity.ask(self._kernels[kernel_id], "starting")
                return kernel_id
            if user is not None:
                raise NotAllowedError(f"{name!r} does not run in a pod of its own, so that it is open to nobody here.")
            kwargs.pop("user")
            return str(await super().start_kernel(**kwargs))
        finally:
            for starting, future in tuple(self._starting_kernels.items()):
                # a start that failed stays there otherwise; one that succeeded is taken out by whoever began it
                if future.done() and (future.cancelled() or future.exception() is not None):
                    self._starting_kernels.pop(starting, None)

    def _end_unwanted(self, kernel_id: str) -> None:
        """End a kernel whose start was cancelled, if it had succeeded in that very moment."""
        if kernel_id not in self:
            return
        self._starting_kernels.pop(kernel_id, None)
        end = asyncio.get_running_loop().create_task(self.shutdown_kernel(kernel_id, now=True))
        self._ends.add(end)

        def ended(_: object) -> None:
            self._ends.discard(end)
            if not end.cancelled() and (error := end.exception()) is not None:
                self.log.warning("Kernel %s, which nobody waits for any more, could not be ended: %s", kernel_id, error)

        end.add_done_callback(ended)

    async def restart_kernel(self, kernel_id: str, now: bool = False) -> None:
        """Restart a kernel, dead or alive, or wait for the restart that is under way. Raises HTTPError; then the kernel is dead."""
        if kernel_id in self._shutdowns:
            raise NotFoundError(f"Kernel does not exist: {kernel_id}: it is being shut down.")
        restart = self._restarts.get(kernel_id)
        if restart is None:
            restart = self._restarts[kernel_id] = asyncio.get_running_loop().create_task(self._restart(kernel_id))
            restart.add_done_callback(lambda _: self._restarts.pop(kernel_id, None))
        try:
            # a client that hangs up does not end what others wait for
            await asyncio.shield(restart)
        except asyncio.CancelledError:
            if restart.cancelled():
                raise NotFoundError(f"Kernel does not exist: {kernel_id}: it was shut down while it restarted.") from None
            raise

    async def _restart(self, kernel_id: str) -> None:
        kernel = self.get_kernel(kernel_id)
        if self.keeper.cluster is not None:
            self.keeper.health.clear(self.keeper.cluster, kernel_id)
        kernel.restarting = True
        try:
            # not JEG's own, which waits for a flag; and never 'now', which shuts a kernel down that has no connection
            await super(RemoteMappingKernelManager, self).restart_kernel(kernel_id)
            kernel.reason = kernel.awaited = ""
            if self.keeper.cluster is not None:
                self.keeper.health.revived(self.keeper.cluster, kernel_id)
            if isinstance(kernel.process_proxy, ElasticKernelProxy):
                activity.ask(kernel, "starting")
                for websocket in serving.websockets(kernel_id):
                    # what it is connected to is the pod that was
                    websocket.moved()
        except Exception as error:
            if kernel_id in self:
                sentence = f"it could not be started again: {getattr(error, 'log_message', None) or error}"
                self.keeper.health.failed(kernel_id, self.keeper.cluster, sentence)
            raise
        finally:
            # which a restart that fails leaves behind
            kernel.restarting = kernel.shutting_down = False

    async def restarted(self, kernel_id: str, seconds: float | None = None) -> None:
        """Return once the restart of a kernel that is under way here, if one is, has come to its end, or when ``seconds`` are over."""
        under_way = self._restarts.get(kernel_id)
        if under_way is not None:
            await asyncio.wait({under_way}, timeout=seconds)

    async def shutdown_kernel(self, kernel_id: str, now: bool = False, restart: bool = False) -> None:
        """Shut a kernel down, whatever it is doing; raises NotFoundError for one that somebody else shut down at the same time."""
        self._shutdowns[kernel_id] += 1
        try:
            await self._shut_down(kernel_id, now, restart)
        finally:
            self._shutdowns[kernel_id] -= 1
            self._shutdowns += Counter()  # without those that are over

    async def _shut_down(self, kernel_id: str, now: bool, restart: bool) -> None:
        under_way = self._restarts.get(kernel_id)
        if under_way is not None:
            under_way.cancel()
            await asyncio.wait({under_way})
        kernel = self._kernels.get(kernel_id)
        is_elsewhere = kernel is not None and (not kernel.has_kernel or bool(kernel.awaited))
        try:
            await super(RemoteMappingKernelManager, self).shutdown_kernel(kernel_id, now, restart)
        except KeyError:
            raise NotFoundError(f"Kernel does not exist: {kernel_id}") from None
        finally:
            if kernel is not None and kernel_id in self:
                # it failed, and another gateway may end the kernel
                kernel.shutting_down = False
        await self.keeper.ended(kernel_id, kernel, with_rest=is_elsewhere)

    def ids_of(self, name: str) -> list[str]:
        """Return the ids of a user's kernels, and of those that do not say whose they are."""
        kernels: KernelsByUser = self._kernels
        return kernels.of(name)

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

    def start_watching_activity(self, kernel_id: str) -> None:
        """Called when a kernel can be listened to, for the first time and after each restart."""
        super().start_watching_activity(kernel_id)
        kernel = self._kernels[kernel_id]
        if isinstance(kernel.process_proxy, ElasticKernelProxy):
            activity.watch(kernel)

    def remove_kernel(self, kernel_id: str) -> None:
        """Called when a kernel has ended, for whatever reason."""
        user, manager = self.user_of(kernel_id), self._kernels.get(kernel_id)
        super().remove_kernel(kernel_id)
        if manager is not None:
            activity.forget(manager)
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

    async def cull_kernel_if_idle(self, kernel_id: str) -> None:
        """Called for each kernel once in a while: for ours the keeper decides, who sees what other gateways know."""
        if getattr(self._kernels.get(kernel_id), "elastic_record", None) is None:
            await super().cull_kernel_if_idle(kernel_id)

    def calls_back(self, name: str) -> bool:
        """Tell whether the kernel of this name is one whose launcher calls the gateway back. Raises NoSuchKernel and ProfileError."""
        return profiles.from_kernelspec(name, self.kernel_spec_manager.get_kernel_spec(name).to_dict()).calls_back

    def _handle_kernel_died(self, kernel_id: str) -> None:
        """Called when a kernel is given up: one of ours stays, dead, until its user shuts it down."""
        kernel = self._kernels.get(kernel_id)
        if kernel is not None and getattr(kernel, "elastic_record", None) is None:
            super()._handle_kernel_died(kernel_id)

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


def _is_uuid4(text: Any) -> bool:
    try:
        return isinstance(text, str) and str(uuid.UUID(text, version=4)) == text
    except ValueError:
        return False
