"""What is kept warm for the kernelspecs that this gateway has: they are read again and again, so that a changed one holds at once."""

from __future__ import annotations

import logging
from typing import Any

from elastic_kernels import profiles
from elastic_kernels.cluster import shared
from elastic_kernels.errors import ElasticKernelsError, ProfileError
from elastic_kernels.pod import Spot
from elastic_kernels.profiles import PROXY_CLASS, Profile
from elastic_kernels.settings import ElasticKernels
from elastic_kernels.warm.refill import Refill

log = logging.getLogger(__name__)


async def run(kernels: Any, settings: ElasticKernels) -> None:
    """Keep warm what profiles wish, until cancelled. Started with the gateway."""
    try:
        cluster = await shared(settings)
    except ElasticKernelsError as error:
        log.warning("Nothing can be kept warm: %s", error)
        return
    if cluster.watched is None:
        # a pod cannot go from one namespace to another
        log.info("Nothing is kept warm: each user's kernels are in a namespace of their own.")
        return
    spot = Spot(settings.spot_label, settings.spot_taint)
    await Refill(cluster, cluster.watched, lambda: _profiles(kernels.kernel_spec_manager), spot).run()


def _profiles(specs: Any) -> list[Profile]:
    """Return the profiles of all kernelspecs; one that is wrong is said where somebody starts it."""
    found = []
    for name, item in specs.get_all_specs().items():
        spec = item["spec"]
        if ((spec.get("metadata") or {}).get("process_proxy") or {}).get("class_name") != PROXY_CLASS:
            continue
        try:
            found.append(profiles.from_kernelspec(name, spec))
        except ProfileError:
            continue
    return found
