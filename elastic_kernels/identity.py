"""Who is asking: the user that a request's sender is taken for."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from elastic_kernels import names
from elastic_kernels.errors import RequestError

MAXIMUM_LENGTH: Final = 255


@dataclass(frozen=True)
class User:
    """A person or service that owns kernels."""

    name: str
    """The raw name, as the identity provider spells it."""

    @property
    def slug(self) -> str:
        """The name as Kubernetes can carry it in labels and in names of pods."""
        return names.slug(self.name)


def trusted_client(environment: Mapping[str, str]) -> User:
    """Return the user that the client says it is, in ``KERNEL_USERNAME``: stock behaviour, for one person on one cluster.

    A client that names nobody is the gateway's own user, as in Enterprise Gateway. Raises RequestError if the name cannot be one.
    """
    name = environment.get("KERNEL_USERNAME") or getpass.getuser()
    if len(name) > MAXIMUM_LENGTH or not name.isprintable() or not name.strip():
        raise RequestError(f"KERNEL_USERNAME is not a user name: it needs 1 to {MAXIMUM_LENGTH} printable characters.")
    return User(name)
