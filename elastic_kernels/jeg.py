"""Enterprise Gateway's process proxy, importable anywhere.

Its module ``k8s`` calls ``load_incluster_config()`` when it is imported, which fails outside a pod, and which nothing here
needs: elastic_kernels.cluster makes its own connection.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from unittest import mock

import kubernetes.config


def import_k8s() -> ModuleType:
    """Return ``enterprise_gateway.services.processproxies.k8s``, whether or not this process runs in a cluster."""
    load = kubernetes.config.load_incluster_config

    def load_if_possible(*args: object, **kwargs: object) -> None:
        try:
            load(*args, **kwargs)
        except kubernetes.config.ConfigException:
            return

    with mock.patch.object(kubernetes.config, "load_incluster_config", load_if_possible):
        return importlib.import_module("enterprise_gateway.services.processproxies.k8s")
