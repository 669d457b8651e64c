"""What all benches share: medians with their spread, ratios, tables, files. Pure, but for the file."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).parent / "results"


def spread(values: Sequence[float], unit: float = 1.0, digits: int = 2) -> str:
    """Return median and range of what came (what did not is infinite), and how many that was if it was not all."""
    came = [value * unit for value in values if math.isfinite(value)]
    if not came:
        return f"0 of {len(values)}"
    missed = "" if len(came) == len(values) else f", {len(came)} of {len(values)}"
    return f"{statistics.median(came):.{digits}f} ({min(came):.{digits}f} to {max(came):.{digits}f}{missed})"


def ratio(values: Sequence[float], base: Sequence[float]) -> str:
    """Return the ratio of the medians of what came, with how many came if not all did."""
    came, ground = ([value for value in each if math.isfinite(value)] for each in (values, base))
    if not came or not ground:
        return "none"
    missed = "" if len(came) == len(values) else f" ({len(came)}/{len(values)})"
    return f"{statistics.median(came) / statistics.median(ground):.2f}{missed}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return a table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = (
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]) for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def save(part: str, results: Any) -> None:
    """Write ``results/<part>.json``, with what it was measured on."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=RESULTS.parent, capture_output=True, text=True, check=False)
    about = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "processors": os.cpu_count(),
        "machine": platform.machine(),
        "load before": os.getloadavg(),
    }
    keep(f"{part}.json", json.dumps({"about": about, "results": results}, indent=1))


def keep(name: str, text: str) -> Path:
    """Write a file beside the results, and return where it is."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / name
    path.write_text(text)
    return path
