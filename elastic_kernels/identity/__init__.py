"""Who is asking: a request's sender, verified, and what is theirs.

There are four ways to verify one, each in a module of its own; ``verifier`` puts the chosen ones together. None of them believes
what a client merely says, except ``trust-client``, which is stock Enterprise Gateway's behaviour and has no module: with it
nobody is verified, and a kernel's user is whoever ``KERNEL_USERNAME`` names.
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from elastic_kernels.errors import NotAllowedError, RequestError

TRUST_CLIENT: Final = "trust-client"
WAYS: Final = (TRUST_CLIENT, "jupyterhub", "header", "service")
MAXIMUM_LENGTH: Final = 255

_CREDENTIALS: Final = re.compile(r"(?:token|bearer) +([\x21-\x7e]{1,1024})", re.IGNORECASE)


@dataclass(frozen=True)
class User:
    """A person for whom kernels run."""

    name: str
    """The raw name, as the identity provider spells it. Names that differ at all are different users."""
    groups: frozenset[str] = frozenset()
    service: str = ""
    """The service that acts for them here, or empty."""
    limit_class: str = ""
    """Which of their limits the kernels count against that this service starts; empty: the profile says it."""


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request, verified: a person, or a service that acts for people."""

    name: str
    groups: frozenset[str] = frozenset()
    is_administrator: bool = False
    acts_for: tuple[str, ...] | None = None
    """Patterns (``*`` stands for any text) of the users for whom a service may act; None for a person."""
    limit_class: str = ""
    """The limit of its users' that a service's kernels count against, whatever their profiles say; empty: the profiles say it."""

    def on_behalf_of(self, named: str | None) -> User:
        """Return the user for whom a request of this caller starts a kernel; ``named`` is whom the request itself names.

        A person is that user, whatever the request says. Raises RequestError and NotAllowedError for a service.
        """
        if self.acts_for is None:
            return User(self.name, self.groups)
        if not named:
            raise RequestError(f"The service {self.name!r} must say for which user it acts, in KERNEL_USERNAME.")
        name = checked_name(named, "KERNEL_USERNAME")
        if not self._grants(name):
            raise NotAllowedError(f"The service {self.name!r} may not act for the user {name!r}; its grant does not list them.")
        return User(name, self.groups, service=self.name, limit_class=self.limit_class)

    def may_use(self, user: str, service: str) -> bool:
        """Tell whether a kernel of ``user``, started through ``service`` or by themselves (empty), is this caller's."""
        if self.acts_for is not None:
            return service == self.name and self._grants(user)
        return user == self.name or self.is_administrator

    def _grants(self, user: str) -> bool:
        return any(matches(user, pattern) for pattern in self.acts_for or ())


def person(name: str, groups: Collection[str], administrators: Collection[str]) -> Caller:
    """Return a person as a caller; ``administrators`` are names, and groups as ``@group``."""
    is_administrator = name in administrators or any(f"@{group}" in administrators for group in groups)
    return Caller(name, frozenset(groups), is_administrator)


def matches(name: str, pattern: str) -> bool:
    """Tell whether ``pattern``, in which ``*`` stands for any text, admits ``name``."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None


def checked_name(name: str, where: str) -> str:
    """Return ``name`` if it can be a user's; ``where`` is where it was found. Raises RequestError."""
    if not name or len(name) > MAXIMUM_LENGTH or not name.isprintable() or name != name.strip():
        raise RequestError(f"{where} is not a user name: it needs 1 to {MAXIMUM_LENGTH} printable characters, and no blanks around them.")
    return name


def credentials(authorization: str | None) -> str | None:
    """Return the token of an ``Authorization`` header, ``token …`` or ``Bearer …``, or None if it holds none that can be one."""
    match = _CREDENTIALS.fullmatch((authorization or "").strip())
    return match[1] if match else None


def trusted_client(environment: Mapping[str, str]) -> User:
    """Return the user that the client says it is, in ``KERNEL_USERNAME``: stock behaviour, for one person on one cluster.

    A client that names nobody is the gateway's own user, as in Enterprise Gateway. Raises RequestError if the name cannot be one.
    """
    return User(checked_name(environment.get("KERNEL_USERNAME") or getpass.getuser(), "KERNEL_USERNAME"))
