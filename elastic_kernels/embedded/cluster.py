"""``EmbeddedCluster``: store, scheduler, kubelet and API together, on the caller's event loop."""

from __future__ import annotations

import random
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from aiohttp import web

from elastic_kernels.embedded.api import Api
from elastic_kernels.embedded.faults import Faults
from elastic_kernels.embedded.kubelet import Kubelet
from elastic_kernels.embedded.scheduler import Scheduler
from elastic_kernels.embedded.selectors import Object
from elastic_kernels.embedded.store import Store

# Nothing is held to these: they are there for the scheduler to count with.
_CAPACITY: Final = {"cpu": "64", "memory": "256Gi", "pods": "10000"}
_CAPACITY_LABEL: Final = "elastic-kernels/capacity"


def node(name: str, capacity: str, *, tainted: bool = False, amounts: Mapping[str, str] = _CAPACITY) -> Object:
    """Return a node that is labelled, and may be tainted, by what kind of machine it stands for."""
    taints = [{"key": _CAPACITY_LABEL, "value": capacity, "effect": "NoSchedule"}] if tainted else []
    return {
        "metadata": {"name": name, "labels": {_CAPACITY_LABEL: capacity, "kubernetes.io/hostname": name}},
        "spec": {"taints": taints},
        "status": {"capacity": dict(amounts), "allocatable": dict(amounts), "conditions": [{"type": "Ready", "status": "True"}]},
    }


NODES: Final = (node("general", "on-demand"), node("spot", "spot", tainted=True))


class EmbeddedCluster:
    """An async context manager: a cluster that begins on entering, and is gone with all its processes on leaving."""

    def __init__(
        self,
        directory: Path | None = None,
        port: int = 0,
        *,
        nodes: tuple[Object, ...] = NODES,
        environment: Mapping[str, str] | None = None,
        refuse_image: Callable[[str], str | None] = lambda image: None,
        serves: Callable[[str], bool] = lambda node: True,
        window: int = 10000,
    ) -> None:
        """Prepare it; nothing happens before it is entered.

        ``directory`` holds claims, logs and processes' files; without one a temporary one is made and removed. ``environment`` is
        what processes have besides their pod's own variables: at least a PATH on which ``python`` is found. ``refuse_image``
        returns what pulling an image fails with; ``serves`` tells for a node's name whether it has a kubelet; ``window`` is how
        many changes a watch can go back.
        """
        self.store = Store(window)
        self.faults = Faults()
        self.server = ""
        """The API's address, such as http://127.0.0.1:8001, once entered."""
        self.kubeconfig = Path()
        """A kubeconfig file for it."""
        self._own_directory = directory is None
        self._directory = directory or Path()
        self._port = port
        self._nodes = nodes
        self._environment = {"LANG": "C.UTF-8", **(environment or {})}
        self._refuse_image = refuse_image
        self._serves = serves
        self._runner: web.AppRunner | None = None
        self._kubelet: Kubelet | None = None
        self._last_address = 0

    async def __aenter__(self) -> EmbeddedCluster:
        """Begin. Raises OSError if the port is taken."""
        if self._own_directory:
            self._directory = Path(tempfile.mkdtemp(prefix="elastic-kernels-"))
        listening = socket.create_server(("127.0.0.1", self._port))
        port = listening.getsockname()[1]
        # addresses of this cluster alone, as good as another's port is not ours: 127.<port>.x.y, beginning anywhere
        self._network = max(1, port >> 8)
        self._last_address = random.randrange(256, 2**16)
        Scheduler(self.store)
        self._kubelet = Kubelet(
            self.store,
            self._directory,
            self._address,
            environment=self._environment,
            refuse_image=self._refuse_image,
            serves=self._serves,
        )
        for name in ("default", "kube-system"):
            self.store.create("namespaces", "", {"metadata": {"name": name}, "status": {"phase": "Active"}})
        for item in self._nodes:
            self.store.create("nodes", "", item)
        api = Api(self.store, self.faults, self._kubelet.log_of)
        self._runner = web.AppRunner(api.application(), access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, listening).start()
        self.server = f"http://127.0.0.1:{port}"
        self.kubeconfig = self._directory / "kubeconfig"
        self.kubeconfig.parent.mkdir(parents=True, exist_ok=True)
        self.kubeconfig.write_text(yaml.safe_dump(_kubeconfig(self.server)))
        return self

    async def __aexit__(self, *_: object) -> None:
        """End everything."""
        assert self._runner is not None
        assert self._kubelet is not None
        await self._kubelet.close()
        self.faults.cut_watches()
        await self._runner.cleanup()
        if self._own_directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _address(self) -> str:
        """Return an address of 127.0.0.0/8 that no other pod has."""
        self._last_address = self._last_address % (2**16 - 2) + 1
        return f"127.{self._network}.{self._last_address >> 8}.{self._last_address & 255}"


def _kubeconfig(server: str) -> Any:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "embedded", "cluster": {"server": server}}],
        "users": [{"name": "anybody", "user": {}}],
        "contexts": [{"name": "embedded", "context": {"cluster": "embedded", "user": "anybody", "namespace": "default"}}],
        "current-context": "embedded",
    }
