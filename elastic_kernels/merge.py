"""Merging one nested mapping into another without changing either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge(base: Mapping[str, Any], patch: Mapping[str, Any], *, lists_by_name: bool = False) -> dict[str, Any]:
    """Return ``base`` with ``patch`` merged in: mappings by key, everything else replaced, None removed.

    With ``lists_by_name``, two lists whose items all are mappings with a ``name`` are merged by that name, as Kubernetes'
    strategic merge does for containers, volumes and environment variables.
    """
    result = dict(base)
    for key, value in patch.items():
        old = result.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(old, Mapping):
            result[key] = merge(old, value, lists_by_name=lists_by_name)
        elif lists_by_name and _named(old) and _named(value):
            result[key] = _merge_lists(old, value)
        else:
            result[key] = value
    return result


def _named(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, Mapping) and "name" in item for item in value)


def _merge_lists(base: Any, patch: Any) -> list[Any]:
    items = {item["name"]: item for item in base}
    for item in patch:
        items[item["name"]] = merge(items.get(item["name"], {}), item, lists_by_name=True)
    return list(items.values())
