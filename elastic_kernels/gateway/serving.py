"""Enterprise Gateway's bookkeeping for a kernel that this process did not start: take it up, follow it, let it go.

What Enterprise Gateway does in its own start, and in ``start_kernel_from_session``, is done here for a kernel that runs already.
Nothing here touches the cluster.
"""

from __future__ import annotations

import os
from datetime import datetime
from typing import Any

from jupyter_server._tz import utcnow
from jupyter_server.services.kernels.handlers import ZMQChannelsHandler

from elastic_kernels import disruption, names, status
from elastic_kernels.cluster import Cluster, Key, Object
from elastic_kernels.gateway import activity
from elastic_kernels.identity import User
from elastic_kernels.launch import Started
from elastic_kernels.record import Record


def pod_key(kernel: Any) -> Key | None:
    """Return the pod in which a kernel is served here."""
    return kernel.process_proxy.key if kernel.process_proxy is not None else None


def take_up(kernels: Any, cluster: Cluster, record: Record, started: Started, pod: Object | None) -> Any:
    """Make the manager of a kernel that runs, or has run, and put it among ``kernels``. Raises what a broken kernelspec raises."""
    kernel_id = record.kernel_id
    kernel = kernels.kernel_manager_factory(
        connection_file=os.path.join(kernels.connection_dir, f"kernel-{kernel_id}.json"),
        parent=kernels,
        log=kernels.log,
        kernel_name=record.kernel_name,
        kernel_spec_manager=kernels.kernel_spec_manager,
    )
    environment = dict(record.launch_arguments.get("env") or {})
    kernel.user = User(record.user, frozenset(record.groups), record.service)
    # what a restart starts it with
    kernel._launch_args = {"env": environment}
    kernel._capture_user_overrides(env=environment)
    kernel._get_process_proxy()
    kernel.kernel_id = kernel_id
    used = disruption.time((pod["metadata"].get("annotations") or {}).get(names.USED)) if pod is not None else None
    kernel.execution_state = "starting"
    kernels._kernels[kernel_id] = kernel
    kernels._kernel_connections[kernel_id] = 0
    _connect(kernels, cluster, kernel, started)
    kernels._kernel_ports[kernel_id] = kernel.ports
    kernels.parent.kernel_session_manager.create_session(kernel_id, kernel_name=record.kernel_name, env=environment)
    kernels.add_restart_callback(kernel_id, lambda: kernels._handle_kernel_died(kernel_id), "dead")
    kernel.last_activity = used or utcnow()
    return kernel


def move(kernels: Any, cluster: Cluster, kernel: Any, started: Started) -> None:
    """Follow a kernel to another pod: somebody else has restarted it. Its websockets are closed, for their clients to connect anew."""
    kernel_id = kernel.kernel_id
    leave(kernel)
    kernels.stop_watching_activity(kernel_id)
    # what an old websocket's connections may still bring is of the kernel that was
    kernels.stop_buffering(kernel_id)
    kernel._close_control_socket()
    kernel._get_process_proxy()
    kernel.reason = kernel.awaited = ""
    kernel.shutting_down = False
    _connect(kernels, cluster, kernel, started)
    for websocket in websockets(kernel_id):
        websocket.moved()


def drop(kernels: Any, kernel_id: str) -> None:
    """Take a kernel that others have ended out of ``kernels``; what it was is left alone."""
    kernel = kernels._kernels[kernel_id]
    leave(kernel)
    kernel.shutting_down = True
    kernel.stop_restarter()
    kernels.stop_watching_activity(kernel_id)
    kernels.stop_buffering(kernel_id)
    kernel.cleanup_resources()
    kernels.remove_kernel(kernel_id)
    kernels._kernel_connections.pop(kernel_id, None)
    kernels._kernel_ports.pop(kernel_id, None)


def leave(kernel: Any) -> None:
    """Let a kernel's pod be, whatever becomes of its manager."""
    activity.forget(kernel)
    if kernel.process_proxy is not None:
        kernel.process_proxy.release()


def websockets(kernel_id: str) -> list[Any]:
    """Return the open websockets of a kernel."""
    return [handler for key, handler in ZMQChannelsHandler._open_sessions.items() if key.partition(":")[0] == kernel_id]


def started_at(pod: Any) -> datetime | None:
    """Return when a pod began to be its kernel."""
    return disruption.time(status.begun(pod))


def _connect(kernels: Any, cluster: Cluster, kernel: Any, started: Started) -> None:
    proxy = kernel.process_proxy
    proxy.serve(cluster, started)
    if not started.address:
        kernel.kernel = None
        return
    kernel.kernel = proxy
    kernel.start_restarter()
    kernel._connect_control_socket()
    kernels.start_watching_activity(kernel.kernel_id)
    activity.ask(kernel, "busy")
