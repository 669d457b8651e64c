"""Room for thousands of kernels in one process: a gateway holds a few ZeroMQ sockets, and as many files again, for each of them.

Left alone, ZeroMQ gives a process 1023 sockets, which are used up by some five hundred kernels, and many systems give it 1024 files.
"""

from __future__ import annotations

import logging
import os
import resource
from typing import Final

log = logging.getLogger(__name__)

# Enterprise Gateway's own setting, which it reads when it starts its first kernel
ZMQ_MAX_SOCKETS: Final = "EG_ZMQ_MAX_SOCKETS"
# libzmq takes no more
MOST_SOCKETS: Final = 65535


def make() -> None:
    """Let this process have all the sockets and files that it may have; what the environment says about the former stands."""
    os.environ.setdefault(ZMQ_MAX_SOCKETS, str(MOST_SOCKETS))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        # macOS says that there is no limit, and then has one
        log.info("The limit of %d open files stays: %s", soft, error)
