"""Every route of the gateway, walked: each has somebody's decision on who may use it, and a new one fails here until it has."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port

from elastic_kernels.gateway import ElasticGatewayApp
from elastic_kernels.gateway.verified import PUBLIC, Verified

ID = "0a1b2c3d-0000-4000-8000-0123456789ab"
# the pattern, an example of a path, and what somebody without credentials gets there
DECISIONS = {
    r"/api/swagger.json": ("/api/swagger.json", 200),
    r"/api/swagger.yaml": ("/api/swagger.yaml", 200),
    r"/api/kernels": ("/api/kernels", 401),
    r"/api/kernels/(?P<kernel_id>\w+-\w+-\w+-\w+-\w+)": (f"/api/kernels/{ID}", 401),
    r"/api/kernels/(?P<kernel_id>\w+-\w+-\w+-\w+-\w+)/(?P<action>restart|interrupt)": (f"/api/kernels/{ID}/restart", 401),
    r"/api/kernels/(?P<kernel_id>\w+-\w+-\w+-\w+-\w+)/channels": (f"/api/kernels/{ID}/channels", 401),
    r"/api/kernels/(?P<kernel_id>\w+-\w+-\w+-\w+-\w+)/spark-ui(?P<path>/.*)?": (f"/api/kernels/{ID}/spark-ui/jobs/", 401),
    r"/api/kernels/(?P<kernel_id>\w+-\w+-\w+-\w+-\w+)/status": (f"/api/kernels/{ID}/status", 401),
    r"/metrics": ("/metrics", 401),
    r"/api/kernelspecs": ("/api/kernelspecs", 401),
    r"/api/kernelspecs/(?P<kernel_name>[\w\.\-%]+)": ("/api/kernelspecs/small", 401),
    r"/kernelspecs/(?P<kernel_name>[\w\.\-%]+)/(?P<path>.*)": ("/kernelspecs/small/logo.svg", 401),
    r"/api/sessions/(?P<session_id>\w+-\w+-\w+-\w+-\w+)": (f"/api/sessions/{ID}", 401),
    r"/api/sessions": ("/api/sessions", 401),
    r"/api": ("/api", 401),
    r"/(.*)": ("/nothing", 404),
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")


def routes(application: ElasticGatewayApp) -> dict[str, Any]:
    rules = application.web_app.wildcard_router.rules
    return {rule.matcher.regex.pattern.rstrip("$"): rule.target for rule in rules}


def test_each_route_has_a_decision(application: ElasticGatewayApp) -> None:
    found = routes(application)
    assert set(found) == set(DECISIONS), "decide who may use what is new, and write it down here"
    for pattern, handler in found.items():
        assert issubclass(handler, Verified), pattern
        assert (DECISIONS[pattern][1] != 401) == issubclass(handler, PUBLIC), pattern
        # what names a kernel is looked up by just this name
        assert ("kernels/" in pattern) == ("kernel_id" in re.compile(pattern).groupindex), pattern


def test_nobody_gets_past_any_of_them(application: ElasticGatewayApp) -> None:
    async def walk() -> None:
        socket, port = bind_unused_port()
        server = HTTPServer(application.web_app)
        server.add_socket(socket)
        client = AsyncHTTPClient(force_instance=True)
        for path, status in DECISIONS.values():
            for method in METHODS:
                request = HTTPRequest(
                    f"http://127.0.0.1:{port}{path}",
                    method=method,
                    body=b"{}" if method in ("POST", "PUT", "PATCH") else None,
                    # from an address that is not trusted
                    headers={"X-Forwarded-User": "ana"},
                )
                answer = await client.fetch(request, raise_error=False)
                expected = (status, 404, 405) if status != 401 else (401, 405)
                assert answer.code in expected, (method, path, answer.body)
                assert method in ("HEAD",) or answer.code == 200 or set(json.loads(answer.body)) == {"reason", "message"}, answer.body
        client.close()
        server.stop()

    asyncio.run(walk())
