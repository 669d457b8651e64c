"""The one file that both sides of a claim read: it lies among the launchers, which pods get as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import elastic_claim  # as mypy finds it, and pods do
else:
    from elastic_kernels.launchers import elastic_claim

__all__ = ["elastic_claim"]
