"""Which of Enterprise Gateway's handlers is extended by which of ours.

Every handler gets ``Verified`` put before it, also those that a later Enterprise Gateway brings: what is not listed as public
needs a sender, and what has a kernel's id in its path needs that kernel to be the sender's.
"""

from __future__ import annotations

from typing import Any, Final

from jupyter_server.utils import url_path_join

from elastic_kernels.gateway import handlers, metrics, report, spark_ui
from elastic_kernels.gateway.channels import Channels
from elastic_kernels.gateway.verified import Verified

EXTENSIONS: Final[dict[str, type[Verified]]] = {
    "MainKernelHandler": handlers.Kernels,
    "KernelHandler": handlers.Kernel,
    "KernelActionHandler": handlers.KernelAction,
    "ZMQChannelsHandler": Channels,
    "SessionRootHandler": handlers.Sessions,
    "SessionHandler": handlers.Sessions,
    "MainKernelSpecHandler": handlers.KernelSpecs,
    "KernelSpecHandler": handlers.KernelSpecs,
    "KernelSpecResourceHandler": handlers.KernelSpecs,
    "SpecJsonHandler": handlers.Description,
    "APIYamlHandler": handlers.Description,
}
"""By the names that the handlers have in Enterprise Gateway and Jupyter Server."""


OWN: Final[dict[str, type[Verified]]] = {
    report.PATH: report.KernelStatus,
    metrics.PATH: metrics.Metrics,
    spark_ui.PATTERN: spark_ui.SparkUI,
}
"""What Enterprise Gateway does not have, by path."""


def extended(handlers: list[tuple[Any, ...]], base_url: str) -> list[tuple[Any, ...]]:
    """Return an application's handlers, each with what it is extended by put before it, and ours."""
    ours = [(url_path_join("/", base_url, path), handler) for path, handler in OWN.items()]
    # first, because the last of the others is for whatever there is not
    return [*ours, *((path, _extended(handler), *rest) for path, handler, *rest in handlers)]


def _extended(handler: Any) -> Any:
    if not isinstance(handler, type) or issubclass(handler, Verified):
        return handler
    return type(handler.__name__, (EXTENSIONS.get(handler.__name__, Verified), handler), {})
