"""What was asked of a kernel and what it said; finds out, after a connection was cut, what is missing.

A gateway keeps what a kernel says while nobody is connected, and sends it to the same session that comes back. Lost is what was on
its way when the connection was cut, in either direction. A kernel handles the requests of a session in their order: after a new
connection one more question, the probe, is asked, and what was asked before it and is unanswered when its answer is complete was
lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

REPLY: Final = "reply"
IDLE: Final = "idle"
# how jupyter_client's Session makes them, and so ipykernel: a session's messages are counted
_COUNTED: Final = re.compile(r"(.+)_([0-9]+)")


class Ledger:
    """The requests of one session. A request is complete with its reply and the kernel's idle status, in whatever order."""

    def __init__(self) -> None:
        self._missing: dict[str, set[str]] = {}
        self._heard_of: set[str] = set()
        self._suspects: frozenset[str] = frozenset()
        self._probe: str | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether anything but a probe is unanswered."""
        return any(identity != self._probe for identity in self._missing)

    def sent(self, channel: str, message: Mapping[str, Any]) -> None:
        """Note a message that is sent now."""
        identity = message["header"]["msg_id"]
        if channel == "shell" and message["header"]["msg_type"].endswith("_request") and identity != self._probe:
            self._missing[identity] = {REPLY, IDLE}

    def probed(self, identity: str) -> None:
        """Note a probe that is about to be sent, by its msg_id; it takes the place of an earlier one."""
        if self._probe is not None:
            self._missing.pop(self._probe, None)
        self._suspects = frozenset(self._missing)
        self._probe = identity
        self._missing[identity] = {REPLY, IDLE}

    def heard(self, channel: str, message: Mapping[str, Any]) -> str | None:
        """Note a message of the kernel's. Returns how something was lost, if that is certain now, else None."""
        identity = message.get("parent_header", {}).get("msg_id")
        missing = self._missing.get(identity)
        if missing is None:
            return None
        self._heard_of.add(identity)
        kind = message["header"]["msg_type"]
        if channel == "shell":
            missing.discard(REPLY)
        elif kind == "status" and message["content"].get("execution_state") == "idle":
            missing.discard(IDLE)
        if missing:
            return None
        del self._missing[identity]
        self._heard_of.discard(identity)
        if identity != self._probe:
            return None
        self._probe = None
        return self._loss()

    def is_probe(self, message: Mapping[str, Any]) -> bool:
        """Tell whether a message belongs to the probe, which nobody else has asked for."""
        return self._probe is not None and bool(message.get("parent_header", {}).get("msg_id") == self._probe)

    def _loss(self) -> str | None:
        unanswered = self._suspects & self._missing.keys()
        if not unanswered:
            return None
        if any(REPLY not in self._missing[identity] for identity in unanswered):
            return "a part of what the cell printed was lost when the connection to the gateway was cut"
        if self._heard_of & unanswered:
            return "the cell's result was lost when the connection to the gateway was cut; whether it succeeded is not known"
        return "the connection to the gateway was cut before the kernel took the cell; whether it ran is not known"


class Counter:
    """The messages of a kernel that counts them: tells whether some are missing between two connections."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._is_cut = False

    def cut(self) -> None:
        """Note that the connection is another from here on."""
        self._is_cut = True

    def heard(self, message: Mapping[str, Any]) -> bool:
        """Note a message; return whether some before it are missing, as far as can be told. Replies overtake, which is no gap."""
        counted = _COUNTED.fullmatch(str(message["header"].get("msg_id")))
        if counted is None:
            return False
        sender, number = counted[1], int(counted[2])
        last = self._last.get(sender)
        self._last[sender] = max(number, last if last is not None else number)
        if last is None or number <= last or not self._is_cut:
            return False
        self._is_cut = False
        return number > last + 1
