"""The picture for the README: how many times the floor each thing takes, as bars on a logarithmic scale. SVG, written by hand."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from bench.figures import RESULTS

PICTURE: Final = Path(__file__).parents[1] / "docs" / "speed.svg"

_COLOURS: Final = {"ours": "#1f77b4", "warm": "#8fc1e3", "stock": "#d98c3f"}
_TITLES: Final = {"ours": "elastic-kernels", "warm": "a warm start of it", "stock": "stock Enterprise Gateway"}
_LEFT, _WIDTH, _RIGHT, _BAR, _GAP, _TOP = 210, 440, 70, 13, 12, 58
_TICKS: Final = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)

Row = tuple[str, Mapping[str, float]]
"""What was measured, and how many times the floor it took whom; infinite for what never came."""


def rows(launch: Any, messages: Any) -> list[Row]:
    """Return what the results of the two benches say, as ratios of medians; either may be None."""
    found = [(f"{count} at once, to the first output", by_count(launch, count), "floor") for count in (launch or {"floor": ()})["floor"]]
    found += [(what, by_name, "direct") for what, by_name in (messages or {}).items()]
    return [
        (what, {name: _ratio(values, by_name[base]) for name, values in by_name.items() if name != base}) for what, by_name, base in found
    ]


def by_count(launch: Any, count: str) -> dict[str, list[float]]:
    """Return one count's seconds, by who started the kernels."""
    return {name: results[count] for name, results in launch.items()}


def _ratio(values: Sequence[float], base: Sequence[float]) -> float:
    came = [value for value in values if math.isfinite(value)]
    return statistics.median(came) / statistics.median(base) if came else math.inf


def svg(found: Sequence[Row]) -> str:
    """Return the picture."""
    came = [ratio for _, ratios in found for ratio in ratios.values() if math.isfinite(ratio)] or [1.0]
    least, most = min(*came, 1.0), max(came)
    ticks = [tick for tick in _TICKS if least / 2.5 <= tick <= 2 * most]
    low, high = math.log(ticks[0]), math.log(max(most * 1.2, ticks[-1]))

    def x(ratio: float) -> float:
        return _LEFT + _WIDTH * (min(max(math.log(ratio), low), high) - low) / (high - low)

    heights = [_BAR * len(ratios) + _GAP for _, ratios in found]
    bottom = _TOP + sum(heights)
    parts = [_text(8, 18, "How many times the floor (bare pods; a direct ZeroMQ connection): less is better", "start", 13)]
    for index, name in enumerate(_COLOURS):
        left = _LEFT + 130 * index
        parts += [f'<rect x="{left}" y="28" width="11" height="11" fill="{_COLOURS[name]}"/>', _text(left + 16, 38, _TITLES[name], "start")]
    for tick in ticks:
        colour = "#555" if tick == 1 else "#ddd"
        parts += [
            f'<line x1="{x(tick):.1f}" y1="{_TOP - 6}" x2="{x(tick):.1f}" y2="{bottom}" stroke="{colour}"/>',
            _text(x(tick), bottom + 14, f"{tick:g}"),
        ]
    y = _TOP
    for (what, ratios), height in zip(found, heights, strict=True):
        parts.append(_text(_LEFT - 8, y + _BAR * len(ratios) / 2 + 4, what, "end"))
        for index, (name, ratio) in enumerate(ratios.items()):
            top = y + _BAR * index
            if not math.isfinite(ratio):
                parts.append(_text(x(1) + 4, top + _BAR - 3, f"{_TITLES[name]}: none came", "start"))
                continue
            begin, end = sorted((x(1), x(ratio)))
            parts += [
                f'<rect x="{begin:.1f}" y="{top}" width="{max(end - begin, 1):.1f}" height="{_BAR - 2}" fill="{_COLOURS[name]}"/>',
                _text(end + 4, top + _BAR - 3, f"{ratio:.2g}", "start"),
            ]
        y += height
    size = f'width="{_LEFT + _WIDTH + _RIGHT}" height="{bottom + 24}"'
    style = 'font-family="sans-serif" font-size="11" fill="#222"'
    return "\n".join(
        [f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>\n"]
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def draw() -> bool:
    """Draw what the results' files say; return whether there was anything."""
    launch, messages = (_results(part) for part in ("launch", "messages"))
    found = rows(launch, messages)
    if found:
        PICTURE.write_text(svg(found))
    return bool(found)


def _results(part: str) -> Any:
    file = RESULTS / f"{part}.json"
    return json.loads(file.read_text())["results"] if file.exists() else None
