"""The chosen ways of verifying a request, put together."""

from __future__ import annotations

from pathlib import Path

from tornado.httputil import HTTPServerRequest

from elastic_kernels import identity
from elastic_kernels.errors import ConfigurationError, UnauthorizedError
from elastic_kernels.identity import Caller
from elastic_kernels.identity.header import Header
from elastic_kernels.identity.hub import Hub
from elastic_kernels.identity.service import Services
from elastic_kernels.settings import ElasticKernels


class Verifier:
    """Says who sent a request. Called on the event loop, before anything else of the request is looked at."""

    def __init__(self, settings: ElasticKernels) -> None:
        """Raises ConfigurationError if a way lacks what it needs."""
        ways = settings.identity_ways
        self._header: Header | None = None
        self._services: Services | None = None
        self._hub: Hub | None = None
        if "header" in ways:
            self._header = Header(settings.user_header, settings.groups_header, settings.trusted_proxies, settings.administrators)
        if "service" in ways:
            if not settings.services_file:
                raise ConfigurationError("The identity 'service' needs services_file: the file with the services' tokens.")
            self._services = Services(Path(settings.services_file))
        if "jupyterhub" in ways:
            if not settings.hub_api_url:
                raise ConfigurationError("The identity 'jupyterhub' needs hub_api_url, such as http://hub:8081/hub/api.")
            self._hub = Hub(
                settings.hub_api_url,
                fresh_time=settings.hub_fresh_time,
                away_time=settings.hub_away_time,
                administrators=settings.administrators,
            )

    @property
    def takes_tokens(self) -> bool:
        """Whether the ``Authorization`` header says who is asking, and so cannot carry a token that all share."""
        return self._services is not None or self._hub is not None

    async def identify(self, request: HTTPServerRequest) -> Caller:
        """Return who sent the request. Raises UnauthorizedError, and IdentityAwayError if that cannot be found out now."""
        headers = request.headers
        if self._header is not None and (users := headers.get_list(self._header.user_header)):
            return self._header.identify(users, headers.get_list(self._header.groups_header), _peer(request))
        token = identity.credentials(headers.get("Authorization")) if len(headers.get_list("Authorization")) == 1 else None
        if token is not None:
            service = self._services.identify(token) if self._services is not None else None
            if service is not None:
                return service
            if self._hub is not None:
                return await self._hub.identify(token)
            if self._services is not None:
                raise UnauthorizedError("The token that came with the request is none of this gateway's services'.")
        raise UnauthorizedError(f"The request does not say who sends it: {self._advice()}.")

    async def close(self) -> None:
        """Close all connections."""
        if self._hub is not None:
            await self._hub.close()

    def _advice(self) -> str:
        if self.takes_tokens:
            return "send your token in the header 'Authorization: token …' (a token in the address is not looked at)"
        return "connect through the proxy that authenticates you"


def _peer(request: HTTPServerRequest) -> str:
    """Return the address that connected: not ``remote_ip``, which headers can change."""
    address = getattr(getattr(request.connection, "context", None), "address", None)
    return str(address[0]) if isinstance(address, tuple) and address else ""
