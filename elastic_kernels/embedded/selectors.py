"""Label and field selectors, as list and watch requests carry them (Kubernetes, "Labels and Selectors", "Field Selectors")."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

Object = dict[str, Any]
Predicate = Callable[[Object], bool]

_REQUIREMENT: Final = re.compile(
    r"\s*(?:(?P<absent>!)\s*)?(?P<key>[\w./-]+)\s*"
    r"(?:(?P<operator>==|=|!=)\s*(?P<value>[\w.-]*)|(?P<set>in|notin)\s*\((?P<values>[^)]*)\))?\s*(?:,|$)"
)


def label_predicate(selector: str) -> Predicate:
    """Return the test that a label selector stands for. Raises ValueError for what is none."""
    tests = []
    position = 0
    while position < len(selector):
        match = _REQUIREMENT.match(selector, position)
        if match is None or match.end() == position:
            raise ValueError(f"unable to parse requirement: {selector[position:]!r}")
        tests.append(_requirement(match))
        position = match.end()
    return lambda item: all(test(item["metadata"].get("labels") or {}) for test in tests)


def field_predicate(selector: str) -> Predicate:
    """Return the test that a field selector (``a.b=c,d!=e``) stands for. Raises ValueError for what is none."""
    tests = []
    for part in filter(None, selector.split(",")):
        match = re.fullmatch(r"([\w.]+)(==|=|!=)(.*)", part)
        if match is None:
            raise ValueError(f"invalid field selector: {part!r}")
        tests.append((match[1].split("."), match[2] != "!=", match[3]))
    return lambda item: all((_field(item, path) == value) is equal for path, equal, value in tests)


def _requirement(match: re.Match[str]) -> Callable[[Mapping[str, str]], bool]:
    key, value = match["key"], match["value"]
    if match["set"]:
        values = {item.strip() for item in match["values"].split(",")}
        return (lambda labels: labels.get(key) in values) if match["set"] == "in" else (lambda labels: labels.get(key) not in values)
    if match["operator"]:
        return (lambda labels: labels.get(key) != value) if match["operator"] == "!=" else (lambda labels: labels.get(key) == value)
    return (lambda labels: key not in labels) if match["absent"] else (lambda labels: key in labels)


def _field(item: Object, path: list[str]) -> str:
    value: Any = item
    for part in path:
        value = value.get(part, "") if isinstance(value, Mapping) else ""
    return str(value)
