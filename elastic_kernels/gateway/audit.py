"""The audit: one JSON object a line, saying who did what, to which kernel, when, and how it came out.

Keys: ``time`` (ISO 8601, UTC), ``event`` (what somebody asked for: ``start``, ``restart``, ``interrupt``, ``stop``, ``connect``,
``session``, ``request``; or ``end``, a kernel's end for whatever reason), ``outcome`` (``ok``, ``refused``, ``failed``), ``caller``
(the verified sender), ``user`` (whose kernel it is), ``service`` (through which it acts), ``kernel``, ``profile``, ``path`` and
``status`` of the request, and ``message`` where it did not come out well. Tokens, keys and values of variables are never among them.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
from datetime import datetime, timezone
from typing import Any, Final

from elastic_kernels.errors import ConfigurationError

log: Final = logging.getLogger("elastic_kernels.audit")


def write(event: str, outcome: str, **facts: Any) -> None:
    """Write one line. Facts that are empty are left out."""
    known = {name: value for name, value in facts.items() if value not in ("", None)}
    time = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    log.info(json.dumps({"time": time, "event": event, "outcome": outcome, **known}, ensure_ascii=False))


def to_file(path: str) -> None:
    """Have the lines appended to a file in place of the gateway's log. Raises ConfigurationError if it cannot be written."""
    try:
        # a file that was rotated away is opened anew
        handler = logging.handlers.WatchedFileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"audit_file: {path} cannot be written: {error}.") from error
    handler.setFormatter(logging.Formatter("%(message)s"))
    for former in tuple(log.handlers):
        log.removeHandler(former)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
