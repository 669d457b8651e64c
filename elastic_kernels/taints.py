"""Taints as people write them (``key=value:Effect``, as ``kubectl taint`` does) and the tolerations that answer them."""

from __future__ import annotations

import re
from typing import Final

EFFECTS: Final = ("NoSchedule", "PreferNoSchedule", "NoExecute")

_QUALIFIED_NAME: Final = re.compile(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VALUE: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?")


def toleration(taint: str) -> dict[str, str]:
    """Return the toleration, in Kubernetes' own spelling, of a taint ``key[=value]:Effect``.

    Raises ValueError with a sentence that says which part of the taint is wrong.
    """
    head, colon, effect = taint.rpartition(":")
    key, equals, value = head.partition("=")
    if not colon or effect not in EFFECTS:
        raise ValueError(f"{taint!r} is not a taint: write key=value:effect, with the effect one of {', '.join(EFFECTS)}")
    if not is_qualified_name(key):
        raise ValueError(f"{taint!r} is not a taint: {key!r} is not a key")
    if not is_label_value(value):
        raise ValueError(f"{taint!r} is not a taint: {value!r} is not a value")
    if equals:
        return {"key": key, "operator": "Equal", "value": value, "effect": effect}
    return {"key": key, "operator": "Exists", "effect": effect}


def is_qualified_name(text: str) -> bool:
    """Tell whether ``text`` can be the key of a label, an annotation or a taint."""
    return bool(_QUALIFIED_NAME.fullmatch(text)) and len(text.rpartition("/")[2]) <= 63 and len(text) <= 317


def is_label_value(text: str) -> bool:
    """Tell whether ``text`` can be the value of a label or a taint."""
    return len(text) <= 63 and bool(_VALUE.fullmatch(text))
