"""Spark's web pages for the kernel's owner: a relay in the kernel's pod that opens them to the gateway, and to nobody else.

Spark itself shows them to anybody who reaches its port, which other pods do; so it listens on the pod's own loopback interface
alone (SPARK_LOCAL_IP), and this relay on an open one. It passes on what comes with a key that the gateway derives from the kernel's
own, which both of them have. Pages are read: nothing is changed through it.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT = 4040
KEY_HEADER = "X-Elastic-Kernels-Key"
MESSAGE_HEADER = "X-Elastic-Kernels-Message"
"""What tells this relay's own answers from Spark's: one sentence."""

_SECONDS = 30.0
_PASSED_ON = ("Accept", "Accept-Encoding", "If-Modified-Since", "If-None-Match", "X-Forwarded-Context")
_PASSED_BACK = ("Content-Type", "Content-Length", "Content-Encoding", "Content-Disposition", "Location", "Last-Modified", "ETag")


def derived_key(key: bytes) -> str:
    """Return the key of the relay, given the one that signs the kernel's messages."""
    return hmac.new(key, b"spark-ui", hashlib.sha256).hexdigest()


def serve(key: bytes, port_of_spark: Callable[[], int | None], port: int = PORT) -> ThreadingHTTPServer:
    """Serve from now on, in threads; ``port_of_spark`` returns where Spark listens, None while it does not."""
    expected = derived_key(key)

    class Relay(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not hmac.compare_digest(self.headers.get(KEY_HEADER, "").encode(), expected.encode()):
                self._refuse(403, "This is for the gateway.")
                return
            port_ = port_of_spark()
            if port_ is None:
                self._refuse(404, "The kernel has not started Spark, or its Spark shows no pages.")
                return
            connection = http.client.HTTPConnection("127.0.0.1", port_, timeout=_SECONDS)
            try:
                connection.request("GET", self.path, headers={name: self.headers[name] for name in _PASSED_ON if name in self.headers})
                self._answer(connection.getresponse())
            except OSError as error:
                self._refuse(502, f"The kernel's Spark does not answer ({error}).")
            finally:
                connection.close()

        def _refuse(self, status: int, sentence: str) -> None:
            self.send_response(status)
            self.send_header(MESSAGE_HEADER, sentence)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _answer(self, answer: http.client.HTTPResponse) -> None:
            self.send_response(answer.status)
            for name in _PASSED_BACK:
                if (value := answer.getheader(name)) is not None:
                    self.send_header(name, value)
            self.end_headers()
            shutil.copyfileobj(answer, self.wfile)

        def log_message(self, *_: Any) -> None:
            """Say nothing: a page is many requests."""

    server = ThreadingHTTPServer(("", port), Relay)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="Spark's pages", daemon=True).start()
    return server
