"""Which kernels the keeper looks at: of thousands, those that something has happened to, and the others in turns."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

_SECONDS: Final = 1.0
# What happens by time alone may wait for so many seconds where there are very many kernels; this many are looked at each second anyway.
_TURNS: Final = 10
_IN_TURN: Final = 200


class Attention:
    """Kernels, by their ids. Belongs to one event loop."""

    def __init__(self) -> None:
        self.due: set[str] = set()
        """Those that something has happened to, or that something is open about."""
        self._is_everybodys = True
        self._turn: list[str] = []
        self._next = 0.0

    def everybody(self) -> None:
        """Have all be looked at the next time: something has happened that may concern any."""
        self._is_everybodys = True

    def due_again(self, kernel_id: str) -> None:
        """Have a kernel be looked at the next time."""
        self.due.add(kernel_id)

    def take(self, now: float, everybody: Callable[[], Collection[str]]) -> set[str]:
        """Return those to look at now (the loop's time); ``everybody`` returns all. Whoever is not done with one makes it due again."""
        due, self.due = self.due, set()
        if self._is_everybodys:
            self._is_everybodys = False
            due.update(everybody())
        elif now >= self._next:
            self._next = now + _SECONDS
            if not self._turn:
                self._turn = list(everybody())
                self._count = max(_IN_TURN, -(-len(self._turn) // _TURNS))
            due.update(self._turn[-self._count :])
            del self._turn[-self._count :]
        return due
