"""How JupyterHub's kubespawner writes a user's name into names and labels: the gateway has to find what it made.

There are two schemes. Since version 7 a name that is a DNS label is its own slug, and any other is what is left of it, three
hyphens, and the first eight hex digits of its SHA-256 (kubespawner's documentation, "Templates"). Before, each other byte was
written as a hyphen and its hex digits. Hubs that were upgraded have both.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

_NAME: Final = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_LABEL: Final = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?")
_LONGEST: Final = 63
_HASHED: Final = 32
_FIELD: Final = 48
_HASH_LENGTH: Final = 8

USERNAME: Final = "hub.jupyter.org/username"
"""The label, and the annotation with the raw name."""
SERVERNAME: Final = "hub.jupyter.org/servername"
STORAGE: Final = "component=singleuser-storage"


def escaped(name: str) -> str:
    """Return a name as kubespawner before version 7 has it in names and labels."""
    return "".join(c if c in "abcdefghijklmnopqrstuvwxyz0123456789" else "".join(f"-{byte:x}" for byte in c.encode()) for c in name)


def safe(name: str) -> str:
    """Return a name as kubespawner since version 7 has it in names: ``{username}`` of its templates."""
    if "--" not in name and len(name) <= _FIELD and _NAME.fullmatch(name):
        return name
    return _hashed(name, _FIELD)


def labels(name: str) -> tuple[str, ...]:
    """Return the values that the label of a user's objects can have, of both schemes."""
    valid = "--" not in name and len(name) <= _LONGEST and _LABEL.fullmatch(name)
    newer = name if valid else _hashed(name, _HASHED)
    older = escaped(name)
    return (newer, older) if older != newer and len(older) <= _LONGEST and _LABEL.fullmatch(older) else (newer,)


def expand(template: str, name: str) -> str:
    """Return a template of kubespawner's kind with ``{username}`` and ``{escaped_username}`` replaced."""
    return template.replace("{username}", safe(name)).replace("{escaped_username}", escaped(name))


def _hashed(name: str, limit: int) -> str:
    digest = hashlib.sha256(name.encode()).hexdigest()[:_HASH_LENGTH]
    room = limit - _HASH_LENGTH - 3
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).lstrip("-")[:room].rstrip("-")
    if stem and not stem[0].isalpha():
        stem = "x-" + stem[: room - 2]
    return f"{stem or 'x'}---{digest}"
