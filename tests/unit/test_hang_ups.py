"""A client that hangs up at an awkward moment leaves no kernel behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado import web

from elastic_kernels.gateway import ElasticGatewayApp
from elastic_kernels.gateway.managers import ElasticKernelManager, ElasticMappingKernelManager
from elastic_kernels.gateway.verified import Verified


async def test_while_it_is_verified() -> None:
    handler = Verified.__new__(Verified)
    handler._hung_up = True
    begun = False

    async def start() -> None:
        nonlocal begun
        begun = True

    with pytest.raises(web.HTTPError, match="The client hung up") as refused:
        await handler.while_connected(start())
    assert refused.value.status_code == 499
    assert not begun


async def test_as_its_start_succeeds(application: ElasticGatewayApp, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels: ElasticMappingKernelManager = application.kernel_manager
    ended: list[str] = []

    async def succeeds(self: Any, *, kernel_id: str, **_: Any) -> None:
        """As its superclass's, which is cancelled between the kernel's start and its own next step."""
        self._starting_kernels[kernel_id] = asyncio.get_running_loop().create_future()
        self._starting_kernels[kernel_id].set_result(None)
        self._kernels[kernel_id] = ElasticKernelManager(parent=self)
        # what others see of it meanwhile
        assert self.kernel_model(kernel_id)["execution_state"] == "starting"
        raise asyncio.CancelledError

    async def shutdown(self: Any, kernel_id: str, now: bool = False) -> None:
        del self._kernels[kernel_id]
        ended.append(kernel_id)

    monkeypatch.setattr(AsyncMappingKernelManager, "start_kernel", succeeds)
    monkeypatch.setattr(ElasticMappingKernelManager, "shutdown_kernel", shutdown)
    monkeypatch.setattr(ElasticMappingKernelManager, "is_elastic", lambda self, name: True)
    monkeypatch.setattr(ElasticMappingKernelManager, "_checked_kernel_name", lambda self, name: "small")
    with pytest.raises(asyncio.CancelledError):
        await kernels.start_kernel(env={"KERNEL_ID": "0a1b2c3d-0000-4000-8000-0123456789ab"})
    await asyncio.gather(*kernels._ends)
    assert ended == ["0a1b2c3d-0000-4000-8000-0123456789ab"]
    assert not kernels._starting_kernels
