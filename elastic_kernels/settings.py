"""The process's settings: each a trait, an environment variable, a default and one sentence, in one place.

A setting is given in the gateway's configuration file (``c.ElasticKernels.namespace = "kernels"``) or in the environment
(``ELASTIC_KERNELS_NAMESPACE=kernels``); the file wins. In the environment lists are written ``one,two`` and mappings
``key=value,key=value``. What belongs to one kind of kernel stands in its profile instead.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from traitlets import Dict, Enum, Float, Int, List, TraitError, TraitType, Unicode, default, validate
from traitlets.config import Configurable

from elastic_kernels import hubnames, names, quantities, taints
from elastic_kernels.errors import ConfigurationError
from elastic_kernels.identity import TRUST_CLIENT, WAYS

ENVIRONMENT_PREFIX: Final = "ELASTIC_KERNELS_"
RESOURCES: Final = ("cpu", "memory", "gpu")
_IN_CLUSTER_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class ElasticKernels(Configurable):
    """The settings of one gateway process. Read on the event loop, once, when the first kernel starts."""

    namespace = Unicode(
        config=True,
        help="The namespace of the kernels' pods and records. Default: EG_NAMESPACE, else the gateway's own namespace, else the "
        "kubeconfig context's, else 'default'.",
    )
    user_namespace = Unicode(
        config=True,
        help="The template of a namespace for each user's kernels, such as hub-{username}: that of JupyterHub's servers, because home "
        "volumes can be mounted in their own namespace alone. Needs rights in all namespaces. Default: all kernels are in one.",
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
    home_claims = Unicode(
        "jupyterhub",
        config=True,
        help="How a user's home claim is found: jupyterhub, by the labels and the annotation of kubespawner; or a template of its name, "
        "such as claim-{username}, or claim-{escaped_username} for claims of kubespawner before version 7.",
    )
    identity = Unicode(
        TRUST_CLIENT,
        config=True,
        help="How a request's sender is verified: jupyterhub, header or service, or several of them with commas between; or "
        "trust-client, which verifies nobody and believes KERNEL_USERNAME, as stock Enterprise Gateway does.",
    )
    administrators = List(
        Unicode(),
        config=True,
        help="Users, and groups as @group, who may use everybody's kernels. They see them with ?user=NAME or ?user=*.",
    )
    hub_api_url = Unicode(config=True, help="JupyterHub's API, such as http://hub:8081/hub/api. Default: JUPYTERHUB_API_URL.")
    hub_fresh_time = Float(
        30.0, config=True, help="Seconds for which JupyterHub's word about a token holds; a revoked one works no longer."
    )
    hub_away_time = Float(300.0, config=True, help="Seconds for which JupyterHub's last word about a token holds while the hub is away.")
    user_header = Unicode("X-Forwarded-User", config=True, help="The header in which a trusted proxy names the user.")
    groups_header = Unicode("X-Forwarded-Groups", config=True, help="The header in which it names their groups, with commas between.")
    trusted_proxies = List(Unicode(), config=True, help="The addresses and networks of the proxies whose headers are believed.")
    services_file = Unicode(config=True, help="The YAML file with the tokens of services and the users for whom they may act.")
    audit_file = Unicode(config=True, help="The file that audit lines, one JSON object each, are appended to. Default: the gateway's log.")
    max_kernels_per_class = Dict(
        value_trait=Int(min=0),
        key_trait=Unicode(),
        config=True,
        help="How many kernels of a limit class one user may have, such as interactive=2,gpu=1. Default: no limit. Enterprise "
        "Gateway's own max_kernels_per_user limits a user's kernels of all classes together, and max_kernels all users' kernels.",
    )
    max_resources_per_user = Dict(
        value_trait=Unicode(),
        key_trait=Enum(RESOURCES),
        config=True,
        help="How much all kernels of one user may take together, such as gpu=2,memory=64Gi,cpu=16. Default: no limit.",
    )
    announce_address = Unicode(
        config=True,
        help="An address of this process, such as 10.0.0.5 or 10.0.0.5:8890, to which kernels in pods send a datagram when they listen, "
        "which is before their node says so; auto is the address from which the API server is reached, with any free port. For a gateway "
        "that is alone: others know of such a kernel only when its node has spoken. Default: nowhere.",
    )
    drain_time = Float(20.0, config=True, help="Seconds for which a gateway that is told to end waits for the launches under way.")
    metrics_port = Int(0, min=0, max=65535, config=True, help="A port with metrics, and nothing else, for everybody. Default: none.")
    request_timeout = Float(10.0, config=True, help="Seconds that one request to the Kubernetes API may take.")
    retry_time = Float(75.0, config=True, help="Seconds for which a request to the Kubernetes API is repeated when it fails in passing.")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        configured = set(self.config.get("ElasticKernels", {})) | set(kwargs)
        for name, trait in self.traits(config=True).items():
            variable = ENVIRONMENT_PREFIX + name.upper()
            if name not in configured and variable in os.environ:
                try:
                    setattr(self, name, _from_text(trait, os.environ[variable]))
                except (TraitError, ValueError) as error:
                    raise ConfigurationError(f"{variable}: {error}") from error

    @default("hub_api_url")
    def _default_hub_api_url(self) -> str:
        return os.environ.get("JUPYTERHUB_API_URL", "")

    @property
    def identity_ways(self) -> tuple[str, ...]:
        """The ways in which a request's sender is verified; none of them for trust-client."""
        ways = tuple(way.strip() for way in self.identity.split(","))
        return () if ways == (TRUST_CLIENT,) else ways

    @validate("identity")
    def _check_identity(self, proposal: dict[str, Any]) -> str:
        value: str = proposal["value"]
        ways = [way.strip() for way in value.split(",")]
        unknown = [way for way in ways if way not in WAYS]
        if unknown:
            raise TraitError(f"{unknown[0]!r} is not a way to verify a user: {', '.join(WAYS)}.")
        if TRUST_CLIENT in ways and len(ways) > 1:
            raise TraitError(f"{TRUST_CLIENT} believes everybody; it cannot be combined with other ways.")
        return value

    @validate("announce_address")
    def _check_announce_address(self, proposal: dict[str, Any]) -> str:
        value: str = proposal["value"]
        parts = urlsplit(f"//{value}")
        try:
            is_address = not value or (parts.netloc == value and bool(parts.hostname) and (parts.port or 0) >= 0)
        except ValueError:
            is_address = False
        if not is_address:
            raise TraitError(f"{value!r} is not an address; write one such as 10.0.0.5 or 10.0.0.5:8890, or auto.")
        return value

    @validate("max_kernels_per_class")
    def _check_classes(self, proposal: dict[str, Any]) -> dict[str, int]:
        value: dict[str, int] = proposal["value"]
        for name in value:
            if names.slug(name, limit=63) != name:
                raise TraitError(f"{name!r} is not a limit class: lower-case letters, digits and hyphens.")
        return value

    @validate("max_resources_per_user")
    def _check_resources(self, proposal: dict[str, Any]) -> dict[str, str]:
        value: dict[str, str] = proposal["value"]
        for name, amount in value.items():
            try:
                quantities.parse(amount)
            except ValueError as error:
                raise TraitError(f"{name}: {error}.") from error
        return value

    @validate("user_namespace")
    def _check_user_namespace(self, proposal: dict[str, Any]) -> str:
        value: str = proposal["value"]
        if value and (hubnames.expand(value, "a") == value or names.slug(hubnames.expand(value, "a")) != hubnames.expand(value, "a")):
            raise TraitError(f"{value!r} is not a template of namespaces; write one such as hub-{{username}}.")
        return value

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


def _from_text(trait: TraitType[Any, Any], text: str) -> Any:
    """Return the value that ``text`` stands for. Raises TraitError and ValueError."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if isinstance(trait, List):
        return parts
    if isinstance(trait, Dict):
        pairs = [part.partition("=") for part in parts]
        if not all(key and value for key, _, value in pairs):
            raise ValueError(f"{text!r} is not a list of key=value with commas between")
        number = isinstance(trait._value_trait, Int)
        return {key.strip(): int(value) if number else value.strip() for key, _, value in pairs}
    return trait.from_string(text)


def default_namespace(context_namespace: str = "") -> str:
    """Return the namespace that holds where no setting names one; ``context_namespace`` is the kubeconfig context's or empty."""
    if os.environ.get("EG_NAMESPACE"):
        return os.environ["EG_NAMESPACE"]
    if _IN_CLUSTER_NAMESPACE.is_file():
        return _IN_CLUSTER_NAMESPACE.read_text(encoding="utf-8").strip()
    return context_namespace or "default"
