"""What several of these tests are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from traitlets.config import Config

from elastic_kernels.gateway import ElasticGatewayApp
from elastic_kernels.gateway.managers import ElasticMappingKernelManager


@pytest.fixture
def application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ElasticGatewayApp]:
    """A gateway that has been made and does not serve."""
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    config = Config()
    config.ElasticKernels.identity = "header"
    config.ElasticKernels.trusted_proxies = ["10.0.0.0/8"]
    config.EnterpriseGatewayApp.kernel_manager_class = ElasticMappingKernelManager
    made = ElasticGatewayApp(config=config)
    made.init_configurables()
    made.init_webapp()
    yield made
    ElasticGatewayApp.clear_instance()
