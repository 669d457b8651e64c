"""The process's settings: each a trait, an environment variable, a default and one sentence, in one place.

A setting is given in the gateway's configuration file (``c.ElasticKernels.namespace = "kernels"``) or in the environment
(``ELASTIC_KERNELS_NAMESPACE=kernels``); the file wins. What belongs to one kind of kernel stands in its profile instead.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from traitlets import Float, TraitError, Unicode, validate
from traitlets.config import Configurable

from elastic_kernels import names, taints
from elastic_kernels.errors import ConfigurationError

ENVIRONMENT_PREFIX: Final = "ELASTIC_KERNELS_"
_IN_CLUSTER_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class ElasticKernels(Configurable):
    """The settings of one gateway process. Read on the event loop, once, when the first kernel starts."""

    namespace = Unicode(
        config=True,
        help="The namespace of the kernels' pods and records. Default: EG_NAMESPACE, else the gateway's own namespace, else the "
        "kubeconfig context's, else 'default'.",
    )
    deployment = Unicode(
        "default",
        config=True,
        help="The name of this gateway deployment, a label value: gateways that share it share their kernels.",
    )
    kubeconfig = Unicode(
        config=True,
        help="The kubeconfig file. Default: in-cluster configuration in a pod, else KUBECONFIG, else ~/.kube/config.",
    )
    context = Unicode(config=True, help="The kubeconfig context. Default: the file's current context.")
    spot_label = Unicode(
        names.PREFIX + "capacity=spot",
        config=True,
        help="The node label, as key=value, that marks spot machines; a profile with 'spot: true' requires it.",
    )
    spot_taint = Unicode(
        names.PREFIX + "capacity=spot:NoSchedule",
        config=True,
        help="The taint, as key=value:effect, of spot machines; a profile with 'spot: true' tolerates it.",
    )
    request_timeout = Float(10.0, config=True, help="Seconds that one request to the Kubernetes API may take.")
    retry_time = Float(75.0, config=True, help="Seconds for which a request to the Kubernetes API is repeated when it fails in passing.")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        configured = set(self.config.get("ElasticKernels", {})) | set(kwargs)
        for name, trait in self.traits(config=True).items():
            variable = ENVIRONMENT_PREFIX + name.upper()
            if name not in configured and variable in os.environ:
                try:
                    setattr(self, name, trait.from_string(os.environ[variable]))
                except (TraitError, ValueError) as error:
                    raise ConfigurationError(f"{variable}: {error}") from error

    @validate("deployment")
    def _check_deployment(self, proposal: dict[str, Any]) -> str:
        value: str = proposal["value"]
        if names.slug(value, limit=63) != value:
            raise TraitError(f"{value!r} is not a label value of lower-case letters, digits and hyphens.")
        return value

    @validate("spot_taint")
    def _check_spot_taint(self, proposal: dict[str, Any]) -> str:
        value: str = proposal["value"]
        try:
            taints.toleration(value)
        except ValueError as error:
            raise TraitError(str(error)) from error
        return value

    @validate("spot_label")
    def _check_spot_label(self, proposal: dict[str, Any]) -> str:
        value: str = proposal["value"]
        if value.count("=") != 1 or not all(value.split("=")):
            raise TraitError(f"{value!r} is not a label; write key=value.")
        return value


def default_namespace(context_namespace: str = "") -> str:
    """Return the namespace that holds where no setting names one; ``context_namespace`` is the kubeconfig context's or empty."""
    if os.environ.get("EG_NAMESPACE"):
        return os.environ["EG_NAMESPACE"]
    if _IN_CLUSTER_NAMESPACE.is_file():
        return _IN_CLUSTER_NAMESPACE.read_text(encoding="utf-8").strip()
    return context_namespace or "default"
