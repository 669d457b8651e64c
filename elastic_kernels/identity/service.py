"""Named tokens for schedulers and other programs, which may act for the users that their grant lists.

They stand in a YAML file, as digests, so that the file alone opens nothing::

    services:
      airflow:
        tokens: [sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08]
        users: [ana, "team-*"]      # for whom it may act; "*" is everybody
        groups: [scientists]        # whose kernels it may start (default: those open to all)
        limit_class: scheduled      # which of the user's limits its kernels count against (default: the profile's)

The file is read again when it changes. A file that cannot be read lets no service in until it is mended.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from elastic_kernels.errors import ConfigurationError, IdentityAwayError
from elastic_kernels.fields import DnsLabel
from elastic_kernels.identity import Caller

log = logging.getLogger(__name__)

_ALGORITHM: Final = "sha256:"


class _Service(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    tokens: list[Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]]
    users: list[Annotated[str, StringConstraints(min_length=1)]]
    groups: list[Annotated[str, StringConstraints(min_length=1)]] = []
    limit_class: DnsLabel | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    services: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")], _Service]


class Services:
    """What the file says now."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError if the file cannot be read or is not valid."""
        self._path = path
        self._state = _state(path)
        self._callers: dict[str, Caller] | None = _read(path)

    def identify(self, token: str) -> Caller | None:
        """Return the service whose token it is, or None. Raises IdentityAwayError while the file is broken."""
        state = _state(self._path)
        if state != self._state:
            self._state = state
            try:
                self._callers = _read(self._path)
                log.info("Read %s again: %d tokens of services", self._path, len(self._callers))
            except ConfigurationError as error:
                self._callers = None
                log.error("No service is let in: %s", error)
        if self._callers is None:
            raise IdentityAwayError("The gateway's file of services cannot be read; its operator finds the reason in its log.")
        return self._callers.get(_digest(token))


def new_token() -> tuple[str, str]:
    """Return a new token and how to write it into the file."""
    token = secrets.token_urlsafe(32)
    return token, _digest(token)


def _digest(token: str) -> str:
    return _ALGORITHM + hashlib.sha256(token.encode()).hexdigest()


def _state(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when the file does, also where Kubernetes swaps the folder that it is in."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _read(path: Path) -> dict[str, Caller]:
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        file = _File.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(f"{path}: {where or 'the file'}: {first['msg']}.") from None
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from None
    callers: dict[str, Caller] = {}
    for name, service in file.services.items():
        for digest in service.tokens:
            if digest in callers:
                raise ConfigurationError(f"{path}: the services {callers[digest].name!r} and {name!r} have the same token.")
            callers[digest] = Caller(name, frozenset(service.groups), acts_for=tuple(service.users), limit_class=service.limit_class or "")
    return callers
