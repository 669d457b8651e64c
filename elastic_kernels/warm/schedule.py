"""When something is kept warm: ``Mon-Fri 08:00-19:00``, ``Sat,Sun``, ``22:00-06:00``. Pure.

A window that ends before it begins lasts into the next day, and belongs to the day on which it begins. Times are those of a clock on
the wall: on the day on which clocks are changed a window is an hour shorter or longer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW: Final = re.compile(r"(?:(?P<days>[A-Za-z]{3}(?:[-,][A-Za-z]{3})*))?\s*(?:(?P<begin>\d{1,2}:\d\d)\s*-\s*(?P<end>\d{1,2}:\d\d))?")
_DAY: Final = 24 * 60


@dataclass(frozen=True)
class Window:
    """Some hours of some days of the week."""

    days: frozenset[int]
    """0 is Monday."""
    begin: int
    """Minutes since midnight."""
    end: int
    """Minutes since the midnight on which the first day begins; past 24 hours where it lasts into the next day."""


def parse(text: str) -> Window:
    """Return the window that a text describes. Raises ValueError."""
    found = _WINDOW.fullmatch(text.strip())
    if found is None or not text.strip():
        raise ValueError(f"{text!r} is not a time such as 'Mon-Fri 08:00-19:00'")
    days = frozenset(_days(found["days"], text)) if found["days"] else frozenset(range(7))
    if found["begin"] is None:
        return Window(days, 0, _DAY)
    begin, end = _minutes(found["begin"], text), _minutes(found["end"], text)
    if begin in (_DAY, end):
        raise ValueError(f"{text!r} is no time at all")
    return Window(days, begin, end if end > begin else end + _DAY)


def is_open(windows: Iterable[Window], moment: datetime) -> bool:
    """Tell whether ``moment``, as a clock on the wall shows it, is in one of the windows."""
    day, minute = moment.weekday(), moment.hour * 60 + moment.minute
    return any(
        (day in window.days and window.begin <= minute < window.end)
        or ((day - 1) % 7 in window.days and window.begin <= minute + _DAY < window.end)
        for window in windows
    )


def _days(text: str, whole: str) -> Iterable[int]:
    for part in text.split(","):
        first, _, last = part.partition("-")
        begin, end = _day(first, whole), _day(last or first, whole)
        yield from (number % 7 for number in range(begin, end + 1 if end >= begin else end + 8))


def _day(text: str, whole: str) -> int:
    if text.lower() not in _DAYS:
        raise ValueError(f"{whole!r} is not a time such as 'Mon-Fri 08:00-19:00': {text!r} is no day")
    return _DAYS.index(text.lower())


def _minutes(text: str, whole: str) -> int:
    hours, _, minutes = text.partition(":")
    total = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or total > _DAY:
        raise ValueError(f"{whole!r} is not a time such as 'Mon-Fri 08:00-19:00': {text!r} is no time of day")
    return total
