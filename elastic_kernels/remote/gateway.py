"""One gateway as its clients see it: where it is, who asks, and what it answers. An answer is a value, also when there is none."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest

from elastic_kernels.errors import ConfigurationError, ElasticKernelsError, one_line

CONNECT_SECONDS: Final = 20.0
REQUEST_SECONDS: Final = 60.0
NO_ANSWER: Final = 0
_IN_BETWEEN: Final = (502, 503, 504)
_UNHEARD: Final = {
    socket.gaierror: "its name is not known",
    ConnectionRefusedError: "nothing listens there",
    ssl.SSLError: "its certificate is not trusted",
}
_FALSE: Final = ("0", "false", "no", "n", "off")


@dataclass(frozen=True)
class Address:
    """Where a gateway is, and what every request to it carries."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    validate_cert: bool = True
    ca_certs: str | None = None


@dataclass(frozen=True)
class Answer:
    """What came back: a status (``NO_ANSWER`` where nothing came), and what the body says."""

    status: int
    body: Mapping[str, Any] = field(default_factory=dict)
    sentence: str = ""
    """Why there is no success, for a person."""
    retry_after: float | None = None
    """Seconds after which the gateway says that it may be asked again."""
    may_have_arrived: bool = True
    """Whether the gateway may have heard the question."""
    from_gateway: bool = True
    """Whether the gateway itself said it: a proxy before it, or nobody at all, did otherwise."""

    @property
    def is_away(self) -> bool:
        """Whether the gateway did not hear the question, or its answer was lost."""
        return self.status == NO_ANSWER or (self.status in _IN_BETWEEN and not self.from_gateway)


class GatewayError(ElasticKernelsError):
    """The gateway did not do what it was asked for; ``answer`` is what it said."""

    def __init__(self, sentence: str, answer: Answer = Answer(NO_ANSWER), *, may_succeed_later: bool = False) -> None:
        super().__init__(sentence)
        self.answer = answer
        self.may_succeed_later = may_succeed_later


def address(environment: Mapping[str, str], *, url: str | None = None, token: str | None = None) -> Address:
    """Return the gateway that the environment names as it does for JupyterLab (``JUPYTER_GATEWAY_*``); arguments come first.

    The token is ``JUPYTER_GATEWAY_AUTH_TOKEN``, else what JupyterHub gave the user's server. Raises ConfigurationError.
    """
    where = (url or environment.get("JUPYTER_GATEWAY_URL") or "").rstrip("/")
    if not where:
        raise ConfigurationError("No gateway is named: give its address with --gateway, or in JUPYTER_GATEWAY_URL.")
    parts = urlsplit(where)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"{where!r} is not the address of a gateway; it looks like http://gateway:8888.")
    try:
        headers = json.loads(environment.get("JUPYTER_GATEWAY_HEADERS") or "{}")
        if not isinstance(headers, dict):
            raise ValueError
    except ValueError:
        raise ConfigurationError("JUPYTER_GATEWAY_HEADERS is not a JSON object of names and values.") from None
    secret = token or environment.get("JUPYTER_GATEWAY_AUTH_TOKEN") or environment.get("JUPYTERHUB_API_TOKEN")
    if secret:
        name = environment.get("JUPYTER_GATEWAY_AUTH_HEADER_KEY") or "Authorization"
        headers[name] = f"{environment.get('JUPYTER_GATEWAY_AUTH_SCHEME') or 'token'} {secret}"
    return Address(
        url=where,
        headers={str(name): str(value) for name, value in headers.items()},
        validate_cert=environment.get("JUPYTER_GATEWAY_VALIDATE_CERT", "true").lower() not in _FALSE,
        ca_certs=environment.get("JUPYTER_GATEWAY_CA_CERTS") or None,
    )


class Gateway:
    """Requests to one gateway. Belongs to one event loop."""

    def __init__(self, where: Address) -> None:
        self.address = where
        self._client = AsyncHTTPClient(force_instance=True)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    async def ask(self, method: str, path: str, body: Any = None, *, seconds: float = REQUEST_SECONDS) -> Answer:
        """Return the gateway's answer; nothing that can happen on the way raises. ``seconds`` of 0 wait for ever."""
        request = self.request(path, method=method, body=json.dumps(body) if body is not None else None, request_timeout=seconds)
        try:
            response = await self._client.fetch(request, raise_error=False)
        except (HTTPClientError, OSError, ValueError) as error:
            return self.unreachable(error)
        if response.code == 599:
            return self.unreachable(response.error)
        content = _json(response.body)
        message = content.get("message") if isinstance(content, dict) else None
        standard = f"The gateway {self.address.url} answers {response.code} {response.reason}."
        return Answer(
            status=response.code,
            body=content if isinstance(content, dict) else {},
            sentence=one_line(str(message)) if message else standard,
            retry_after=_seconds(response.headers.get("Retry-After")),
            from_gateway=content is not None,
        )

    def request(self, path: str, **more: Any) -> HTTPRequest:
        """Return a request for ``path`` with what all requests carry; ``more`` goes to tornado's HTTPRequest."""
        where = self.address
        return HTTPRequest(
            where.url + path,
            headers={**where.headers, "Content-Type": "application/json"},
            validate_cert=where.validate_cert,
            ca_certs=where.ca_certs,
            connect_timeout=CONNECT_SECONDS,
            # a redirection would carry the token to whoever is named in it
            follow_redirects=False,
            allow_nonstandard_methods=True,
            **more,
        )

    def unreachable(self, error: BaseException | None) -> Answer:
        """Return what stands for an answer where ``error`` came in place of one."""
        said = next((text for kind, text in _UNHEARD.items() if isinstance(error, kind)), None)
        return Answer(
            NO_ANSWER,
            sentence=f"The gateway {self.address.url} does not answer ({said or one_line(str(error or 'no answer'))}).",
            may_have_arrived=said is None,
            from_gateway=False,
        )


def _json(body: bytes | None) -> Any:
    try:
        return json.loads(body or b"null")
    except ValueError:
        return None


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdecimal() else None
