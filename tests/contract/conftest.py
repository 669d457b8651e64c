"""What tests of this lane that end their gateways have for themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conftest import Backend, shut_down_all
from tests.gateway import until


@pytest.fixture
async def nothing_left(backend: Backend) -> AsyncIterator[None]:
    """End what kernels a test leaves to the next gateway, and wait until nothing of them is there."""
    yield
    await shut_down_all(backend.environment)
    await until(backend.is_empty, "the last kernel's pod and record to go")
