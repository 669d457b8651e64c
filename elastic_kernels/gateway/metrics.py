"""``/metrics``, for Prometheus: to administrators and services, who have a token, and to nobody else.

Where no user is verified it is open, as all else is. A scraper without a token is served on a port of its own (``metrics_port``),
which a network policy can close to others.
"""

from __future__ import annotations

from typing import Final

from enterprise_gateway.mixins import CORSMixin, JSONErrorsMixin, TokenAuthorizationMixin
from jupyter_server.base.handlers import APIHandler
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from elastic_kernels.errors import NotAllowedError
from elastic_kernels.gateway.verified import Verified

PATH: Final = r"/metrics"


class Metrics(Verified, TokenAuthorizationMixin, CORSMixin, JSONErrorsMixin, APIHandler):  # type: ignore[misc]
    """``/metrics``."""

    async def get(self) -> None:
        """Answer in Prometheus's format. Raises NotAllowedError."""
        if self.caller is not None and not self.caller.is_administrator and self.caller.acts_for is None:
            raise NotAllowedError("Metrics are for administrators and services.")
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.finish(generate_latest())
