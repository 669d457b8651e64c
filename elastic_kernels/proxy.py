"""``ElasticKernelProxy``: what a kernelspec names. Turns Enterprise Gateway's calls into launches, polls and endings.

Enterprise Gateway awaits ``launch_process``; everything else it calls synchronously on its event loop, so that all of it here
reads the informer's copy or hands work to the reaper, and returns at once.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import secrets
import signal
from collections.abc import Mapping
from typing import Any, Final, NoReturn

from enterprise_gateway.services.processproxies.processproxy import RemoteProcessProxy, ResponseManager
from tornado import web

from elastic_kernels import identity, jeg, pod, profiles, slots, status
from elastic_kernels.callback import ElasticResponseManager
from elastic_kernels.cluster import Cluster, Ending, Key, RecordRef, shared
from elastic_kernels.errors import ConfigurationError, ElasticKernelsError, NotAllowedError, RequestError, one_line
from elastic_kernels.identity import User
from elastic_kernels.launch import Again, Started, launch
from elastic_kernels.reach import ports_answer
from elastic_kernels.record import Record
from elastic_kernels.request import parse_request
from elastic_kernels.settings import ElasticKernels
from elastic_kernels.slots import Limits

log = logging.getLogger(__name__)

_k8s: Final = jeg.import_k8s()
# An API server that is away does not make Enterprise Gateway wait for longer than this; the reaper goes on.
_END_SECONDS: Final = 5.0
_LOST: Final = -9


class ElasticKernelProxy(_k8s.KubernetesProcessProxy):  # type: ignore[misc,name-defined]
    """One start of one kernel, as Enterprise Gateway's ``RemoteKernelManager`` sees it: made anew for each restart."""

    def __init__(self, kernel_manager: Any, proxy_config: Any) -> None:
        """Called on the event loop before each start, with the kernelspec's ``config``. Raises HTTPError if it is no profile."""
        spec = kernel_manager.kernel_spec
        self._namespace: str
        self._record: RecordRef | None
        self._cluster: Cluster | None = None
        self._key: Key | None = None
        self._namespace, self._record = getattr(kernel_manager, "elastic_record", ("", None))
        self._released = False
        self._ending: Ending | None = None
        self._patience_ends = math.inf
        self._handed_over = False
        try:
            self.profile = profiles.from_kernelspec(kernel_manager.kernel_name, spec.to_dict())
        except ElasticKernelsError as error:
            raise _http_error(error) from error
        manager = _response_manager()
        if self.profile.calls_back or not isinstance(manager, ElasticResponseManager):
            super().__init__(kernel_manager, proxy_config)
        else:
            with manager.silent():
                super().__init__(kernel_manager, proxy_config)
            manager.forget(self.kernel_id)
            # an address, any address, keeps RemoteKernelManager from choosing ports and writing a connection file here
            kernel_manager.response_address = "none: the gateway connects to the kernel"

    async def launch_process(self, kernel_cmd: Any, **kwargs: Any) -> ElasticKernelProxy:
        """Start the kernel's pod and return once the kernel answers.

        ``kernel_cmd`` and the environment in ``kwargs`` are not used: the former has the gateway's paths in it, the latter the
        gateway's own variables. Raises HTTPError, whose ``log_message`` is the sentence for the user.
        """
        try:
            await self._launch(_client_environment(self.kernel_manager))
        except ElasticKernelsError as error:
            level = logging.WARNING if error.status < 500 else logging.ERROR
            self.log.log(level, "Kernel %s: %s %s", self.kernel_id, error, error.detail)
            raise _http_error(error) from error
        except web.HTTPError:
            raise
        except Exception as error:
            # a defect of ours: its traceback is for the log, and not for a user
            self.log.exception("Kernel %s: the launch failed", self.kernel_id)
            raise web.HTTPError(
                500, f"The kernel could not be started: {type(error).__name__} in the gateway; its log has more."
            ) from error
        return self

    async def _launch(self, environment: Mapping[str, str]) -> None:
        settings = ElasticKernels(parent=self.kernel_manager.parent)
        user = self._user(settings, environment)
        self._enforce_authorization(env={"KERNEL_USERNAME": user.name})
        title = self.profile.display_name or self.profile.name
        if not self.profile.admits(user.name, user.groups):
            raise NotAllowedError(f"{title!r} is not open to you; its administrator says for whom it is.")
        request = parse_request(environment, self.profile)
        if request.dropped:
            self.log.warning("Kernel %s of %r: the client's %s had no effect", self.kernel_id, user.name, ", ".join(request.dropped))
        self._cluster = await shared(settings)
        if self.profile.spark is not None and settings.identity_ways and not settings.user_namespace:
            self.log.warning(
                "Kernel %s of %r: its Spark may create pods in the namespace %r, which all users share, and a pod can mount any secret "
                "and claim there. Give each user a namespace (the setting user_namespace).",
                self.kernel_id,
                user.name,
                self._cluster.namespace_of(user.name),
            )
        asked = Record(
            kernel_id=self.kernel_id,
            kernel_name=self.profile.name,
            user=user.name,
            service=user.service,
            groups=tuple(sorted(user.groups)),
            namespace=self._cluster.namespace_of(user.name),
            deployment=self._cluster.deployment,
            key=secrets.token_hex(32),
            token=secrets.token_hex(4),
            slot="",
            limit_class=user.limit_class or request.limit_class,
            title=title,
            notebook=request.notebook,
            usage=slots.usage(self.profile),
            launch_arguments={"env": dict(environment)},
        )
        self.log.info("Kernel %s: %r starts %r", self.kernel_id, user.name, self.profile.name)
        without_spot = getattr(self.kernel_manager, "on_demand", False)
        started = await launch(
            self._cluster,
            self.profile.model_copy(update={"spot": False}) if without_spot else self.profile,
            asked,
            request,
            pod.Spot(settings.spot_label, settings.spot_taint),
            connect=self._called_back if self.profile.calls_back else ports_answer,
            arguments=self._callback_arguments() if self.profile.calls_back else {},
            limits=self._limits(settings),
            id_is_chosen="KERNEL_ID" in environment,
            home_claims=settings.home_claims,
            again=self._again(),
        )
        self.serve(self._cluster, started)
        self.log.info("Kernel %s of %r runs in the pod %s/%s", self.kernel_id, user.name, *started.key)

    def _again(self) -> Again | None:
        """Return what a restart needs to know, None for a first start."""
        if not self.kernel_manager.restarting:
            return None
        # a gateway that sees what others do does not bring back what they have ended
        sees_others = hasattr(self.kernel_manager.parent, "keeper")
        return Again(after=getattr(self.kernel_manager, "elastic_start", 0), renew=not sees_others)

    def serve(self, cluster: Cluster, started: Started) -> None:
        """Take a kernel's pod as this start's, whichever process created it; one without an address is not connected to."""
        self._key = started.key if started.key[1] else None
        self._cluster = cluster
        # also for the starts that come after this one
        self._namespace, self._record = self.kernel_manager.elastic_record = started.key[0], started.record
        self.kernel_manager.elastic_start = started.number
        self.kernel_namespace, self.kernel_pod_name = started.key
        self.container_name = self.assigned_host = self.kernel_pod_name
        self.assigned_ip = started.address
        if started.address:
            self._setup_connection_info(dict(started.connection))
        _accept_websockets_at_once(self.kernel_manager)
        self.pid = self.pgid = 0  # those of the container mean nothing here

    def release(self) -> None:
        """Have nothing to do with the kernel any more: others end it, or have."""
        self._released = True

    @property
    def key(self) -> Key | None:
        """Namespace and name of the pod, None until there is one."""
        return self._key

    def _user(self, settings: ElasticKernels, environment: Mapping[str, str]) -> User:
        """Return whose kernel it is: whom the gateway verified, or where it verifies nobody whom the client names."""
        user: User | None = getattr(self.kernel_manager, "user", None)
        if user is not None:
            return user
        if settings.identity_ways:
            raise ConfigurationError(
                f"The identity {settings.identity!r} is set, but nothing verifies it: the gateway's configuration file has to call "
                "elastic_kernels.gateway.configure(c)."
            )
        return identity.trusted_client(environment)

    def _limits(self, settings: ElasticKernels) -> Limits:
        """Return the limits, Enterprise Gateway's own two among them."""
        application = getattr(self.kernel_manager.parent, "parent", None)
        per_user = self.kernel_manager.max_kernels_per_user
        return Limits(
            per_class=dict(settings.max_kernels_per_class),
            per_user=per_user if per_user >= 0 else None,
            resources=dict(settings.max_resources_per_user),
            total=getattr(application, "max_kernels", None),
        )

    async def _called_back(self, _record: Record, _ports: int, _address: str) -> dict[str, Any]:
        answer: dict[str, Any] = await self.response_manager.answer(self.kernel_id)
        return answer

    def _callback_arguments(self) -> dict[str, str]:
        return {
            "response_address": str(self.kernel_manager.response_address),
            "public_key": str(self.kernel_manager.public_key),
            "port_range": f"{self.lower_port}..{self.upper_port}",
            "kernel_spark_context_init_mode": "none",
        }

    def poll(self) -> int | None:
        """Return None while the kernel lives, else how it ended: its exit code, or -9 where there is none.

        A kernel that is being ended lives until the API server has accepted it, so that whoever stops the gateway next loses
        nothing.
        """
        if self._cluster is None or self._key is None:
            return None
        if self._handed_over:
            return 0
        current = self._cluster.pods.get(self._key)
        if self._ending is not None:
            if not self._ending.accepted.is_set() and asyncio.get_running_loop().time() < self._patience_ends:
                return None
        elif current is not None:
            if not status.has_ended(current):
                return None
        elif not self._cluster.pods.is_fresh:
            return None
        code = status.exit_code(current) if current is not None else None
        return _LOST if code is None else code

    def wait(self) -> int | None:
        """Return at once: who ends a pod does not wait for it."""
        return self.poll()

    def send_signal(self, signum: int) -> Any:
        """Interrupt, end or poll the kernel. Other signals cannot reach a pod and are logged."""
        if signum == 0:
            return self.poll()
        if signum == signal.SIGKILL:
            return self.kill()
        if signum == signal.SIGTERM:
            return self.terminate()
        if self.comm_port > 0:
            # JEG's own way, which blocks
            asyncio.get_running_loop().run_in_executor(None, super().send_signal, signum)
        elif signum == signal.SIGINT:
            self._send_interrupt_request()
        else:
            self.log.warning("Kernel %s: signal %d cannot be sent to a pod", self.kernel_id, signum)
        return None

    def _send_interrupt_request(self) -> None:
        manager = self.kernel_manager
        manager._connect_control_socket()
        manager.session.send(manager._control_socket, manager.session.msg("interrupt_request", content={}))

    def shutdown_listener(self) -> None:
        """Called right after the kernel was asked to shut down: it may take its grace period for that. A restart does not wait."""
        if self.comm_port > 0:
            asyncio.get_running_loop().run_in_executor(None, RemoteProcessProxy.shutdown_listener, self)
        self._handed_over = bool(self.kernel_manager.restarting)
        self._end(patience=self.profile.grace_period)

    def terminate(self) -> None:
        """Have the pod deleted with the profile's grace period, and the record too unless this is a restart."""
        self._end(patience=0.0)

    def _end(self, patience: float) -> None:
        if self._cluster is None or self._released:
            return
        if self._ending is not None and (self._handed_over or self._ending.accepted.is_set()):
            return
        record = None if self.kernel_manager.restarting else self._record
        if self._key is None and record is None:
            return
        # a kernel whose restart failed has a record only
        namespace, pod_name = self._key or (self._namespace, None)
        self._ending = self._cluster.reaper.end(namespace, pod_name, grace=self.profile.grace_period, patience=patience, record=record)
        if self._patience_ends == math.inf or patience == 0:
            self._patience_ends = asyncio.get_running_loop().time() + patience + _END_SECONDS

    def kill(self) -> None:
        """Do what ``terminate`` does: after the grace period the kubelet kills, and after that the reaper takes by force."""
        self.terminate()

    def cleanup(self) -> None:
        """Called when Enterprise Gateway is done with this start: by now the pod may go, however it ended."""
        self.terminate()
        super().cleanup()

    def log_and_raise(self, http_status_code: int | None = None, reason: str | None = None) -> NoReturn:
        """Raise JEG's own errors with the sentence where users can read it: in the body, not in the HTTP reason phrase."""
        sentence = one_line(reason or "The gateway failed for a reason that it did not give.")
        self.log.error("Kernel %s: %s", self.kernel_id, sentence)
        raise web.HTTPError(http_status_code or 500, sentence)


def _response_manager() -> Any:
    """Return the process's response manager: ours, unless one of JEG's own proxies was faster."""
    return ResponseManager.instance() if ResponseManager.initialized() else ElasticResponseManager.instance()


def _accept_websockets_at_once(kernel_manager: Any) -> None:
    """Tell Enterprise Gateway that the kernel's protocol needs no adaptation, which it would otherwise ask the kernel first.

    While it waits for that answer, a second websocket of the same session waits for the first one for ever; and JupyterLab in
    Chrome opens two within milliseconds, because Chrome refuses the first for a missing subprotocol.
    """
    if not hasattr(kernel_manager, "_kernel_info_future"):
        kernel_manager._kernel_info_future = asyncio.get_running_loop().create_future()
        kernel_manager._kernel_info_future.set_result({})


def _client_environment(kernel_manager: Any) -> dict[str, str]:
    """Return what the client itself sent: JEG mixes the gateway's ``inherited_envs`` in, and its whole environment without an env."""
    sent = (kernel_manager._launch_args or {}).get("env") or {}
    if not isinstance(sent, Mapping):
        raise RequestError("The request's env is not a mapping.")
    if sent is os.environ:
        return {}
    return {name: value for name, value in sent.items() if name not in kernel_manager.inherited_envs}


def _http_error(error: ElasticKernelsError) -> web.HTTPError:
    return web.HTTPError(error.status, str(error))
