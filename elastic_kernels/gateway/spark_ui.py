"""``/api/kernels/<id>/spark-ui/``: the web pages of a kernel's Spark, for the kernel's owner.

The pages come through a relay in the kernel's pod, which wants a key that is derived from the kernel's own. An administrator, who
may use everybody's kernels, does not see them here: what a user's job puts on a page would run as a script in their browser, with
their rights.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any, Final
from urllib.parse import urlsplit

from enterprise_gateway.mixins import CORSMixin, JSONErrorsMixin, TokenAuthorizationMixin
from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse

from elastic_kernels.gateway.verified import Verified
from elastic_kernels.spark.configuration import UI_PORT

PATTERN: Final = r"/api/kernels/(?P<kernel_id>\w+-\w+-\w+-\w+-\w+)/spark-ui(?P<path>/.*)?"
_SECONDS: Final = 30.0
_KEY_HEADER: Final = "X-Elastic-Kernels-Key"
_MESSAGE_HEADER: Final = "X-Elastic-Kernels-Message"
# what Tornado's client says where there was no answer
_UNREACHED: Final = 599
_PASSED_ON: Final = ("Accept", "Accept-Encoding", "If-Modified-Since", "If-None-Match")
_PASSED_BACK: Final = ("Content-Type", "Content-Encoding", "Content-Disposition", "Last-Modified", "ETag")


def derived_key(key: bytes) -> str:
    """Return the relay's key, given the one that signs the kernel's messages; launchers/elastic_ui.py has the same."""
    return hmac.new(key, b"spark-ui", hashlib.sha256).hexdigest()


class SparkUI(Verified, TokenAuthorizationMixin, CORSMixin, JSONErrorsMixin, APIHandler):  # type: ignore[misc]
    """Passes requests for pages on to the kernel's pod."""

    SUPPORTED_METHODS = ("GET", "OPTIONS")

    @property
    def content_security_policy(self) -> str:
        """What the pages may do, where Jupyter's own answers may do nothing: they have scripts and styles in them."""
        return "frame-ancestors 'self'; default-src 'self' 'unsafe-inline' 'unsafe-eval' data:"

    async def get(self, kernel_id: str, path: str | None = None) -> None:
        """Answer with one of the pages, or with one sentence."""
        owner = self.own(kernel_id)
        if self.caller is not None and self.caller.name != owner.name:
            raise web.HTTPError(404, f"Kernel does not exist: {kernel_id}")
        base = url_path_join("/", self.base_url, "api", "kernels", kernel_id, "spark-ui")
        if not path:
            self.redirect(f"{base}/")
            return
        manager = self.kernels.get_kernel(kernel_id)
        address = getattr(manager.process_proxy, "assigned_ip", None)
        query = f"?{self.request.query}" if self.request.query else ""
        self._pass_back(await self._fetch(f"http://{address}:{UI_PORT}{path}{query}", manager.session.key, base), base)

    async def _fetch(self, url: str, key: bytes, base: str) -> HTTPResponse:
        headers = {name: self.request.headers[name] for name in _PASSED_ON if name in self.request.headers}
        # where Spark's links begin
        headers |= {_KEY_HEADER: derived_key(key), "X-Forwarded-Context": base}
        request = HTTPRequest(url, headers=headers, follow_redirects=False, decompress_response=False, request_timeout=_SECONDS)
        try:
            answer = await AsyncHTTPClient().fetch(request, raise_error=False)
        except OSError:
            answer = None
        if answer is None or answer.code == _UNREACHED:
            raise web.HTTPError(502, "The kernel's pod does not show Spark's pages: its launcher is another one, or it has ended.")
        if _MESSAGE_HEADER in answer.headers:
            raise web.HTTPError(answer.code, answer.headers[_MESSAGE_HEADER])
        return answer

    def _pass_back(self, answer: Any, base: str) -> None:
        self.set_status(answer.code)
        for name in _PASSED_BACK:
            if name in answer.headers:
                self.set_header(name, answer.headers[name])
        if "Location" in answer.headers:
            place = urlsplit(answer.headers["Location"])
            path = place.path if place.path.startswith(base) else f"{base}{place.path}"
            self.set_header("Location", path + (f"?{place.query}" if place.query else ""))
        self.finish(answer.body or b"")
