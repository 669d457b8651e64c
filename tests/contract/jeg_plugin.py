"""For pytest, beside Enterprise Gateway's own tests: they make our application where they make theirs, with identity off."""

from __future__ import annotations

from typing import Any

from enterprise_gateway import enterprisegatewayapp

from elastic_kernels.gateway import ElasticGatewayApp
from elastic_kernels.gateway.managers import ElasticMappingKernelManager


class PluggedIn(ElasticGatewayApp):
    """As ``configure`` leaves the stock application."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel_manager_class = ElasticMappingKernelManager


enterprisegatewayapp.EnterpriseGatewayApp = PluggedIn
