"""A proxy in front verifies: it names the user in a header, which is believed from the proxy's own addresses only."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Collection, Sequence

from elastic_kernels.errors import ConfigurationError, RequestError, UnauthorizedError
from elastic_kernels.identity import Caller, checked_name, person

log = logging.getLogger(__name__)


class Header:
    """What trusted proxies say."""

    def __init__(self, user_header: str, groups_header: str, proxies: Sequence[str], administrators: Collection[str]) -> None:
        """``proxies`` are addresses and networks (``10.0.0.0/8``). Raises ConfigurationError if one is neither, or there is none."""
        self.user_header = user_header
        self.groups_header = groups_header
        self._administrators = frozenset(administrators)
        try:
            self._proxies = [ipaddress.ip_network(proxy) for proxy in proxies]
        except ValueError as error:
            raise ConfigurationError(f"trusted_proxies: {error}; write addresses and networks, such as 10.1.2.3 or 10.1.0.0/16.") from error
        if not self._proxies:
            raise ConfigurationError("The identity 'header' needs trusted_proxies: the addresses of the proxies that set the header.")

    def identify(self, users: Sequence[str], groups: Sequence[str], peer: str) -> Caller:
        """Return whom the headers name; ``users`` and ``groups`` are all values of each, ``peer`` is the address that connected.

        Raises UnauthorizedError.
        """
        if not self._trusts(peer):
            log.warning("%s sends the header %s and is not among the trusted proxies", peer, self.user_header)
            raise UnauthorizedError(f"The header {self.user_header} is believed from the gateway's trusted proxies only.")
        if len(users) != 1:
            raise UnauthorizedError(f"The header {self.user_header} came more than once.")
        try:
            # HTTP's own encoding is Latin-1; what everybody writes is UTF-8
            name = checked_name(_decoded(users[0]), f"The header {self.user_header}")
        except (RequestError, UnicodeError) as error:
            raise UnauthorizedError(f"The header {self.user_header} holds no user name.", detail=str(error)) from error
        return person(name, [group.strip() for value in groups for group in value.split(",") if group.strip()], self._administrators)

    def _trusts(self, peer: str) -> bool:
        try:
            address = ipaddress.ip_address(peer)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in proxy for proxy in self._proxies)


def _decoded(value: str) -> str:
    return value.encode("latin-1").decode("utf-8")
