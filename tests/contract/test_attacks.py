"""A table of attacks: what somebody may try to get at what is not theirs. None gets it, none ends in a traceback or a 500.

The users are verified by a proxy's header, which the test sets as the proxy would; tokens of services come beside it. How
JupyterHub verifies has tests of its own.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from elastic_kernels.names import slug
from tests.conftest import Backend, gateway_on, profile
from tests.gateway import PLUGGED_IN, Gateway, until

TOKEN = "the-token-of-airflow"
SESSION_ID = "0a1b2c3d-0000-4000-8000-0123456789ab"


def as_user(name: str, **headers: str) -> dict[str, str]:
    return {"X-Forwarded-User": name, **headers}


def as_service(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"token {token}"}


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    directory = tmp_path_factory.mktemp("gateway")
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    (directory / "services.yaml").write_text(json.dumps({"services": {"airflow": {"tokens": [f"sha256:{digest}"], "users": ["ana"]}}}))
    environment = {
        "ELASTIC_KERNELS_IDENTITY": "header,service",
        "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.1",
        "ELASTIC_KERNELS_SERVICES_FILE": str(directory / "services.yaml"),
        "ELASTIC_KERNELS_ADMINISTRATORS": "olu,@operators",
        "ELASTIC_KERNELS_MAX_KERNELS_PER_CLASS": "interactive=2",
        "ELASTIC_KERNELS_AUDIT_FILE": str(directory / "audit.log"),
    }
    profiles = {"small": profile("small"), "secret": profile("secret", groups=["scientists"], limit_class="secret")}
    configuration = PLUGGED_IN + "c.EnterpriseGatewayApp.log_level = 'DEBUG'\n"
    async with gateway_on(backend, directory, profiles, environment=environment, configuration=configuration) as running:
        yield running


@pytest.fixture(scope="module")
async def anas(gateway: Gateway) -> AsyncIterator[str]:
    """A kernel of ana's, in which she has something to hide."""
    kernel_id = await start(gateway, as_user("ana"))
    async with channels(gateway, kernel_id, as_user("ana")) as own:
        assert (await own.execute("secret = 'of ana'; secret")).text == "'of ana'"
    yield kernel_id
    assert (await gateway.request("DELETE", f"/api/kernels/{kernel_id}", headers=as_user("ana")))[0] == 204


async def start(gateway: Gateway, headers: Mapping[str, str], kernel: str = "small", **environment: str) -> str:
    status, body = await gateway.request("POST", "/api/kernels", {"name": kernel, "env": environment}, headers=headers)
    assert status == 201, body
    return str(body["id"])


def channels(gateway: Gateway, kernel_id: str, headers: Mapping[str, str]) -> Any:
    return gateway.channels(kernel_id, headers=headers)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/kernels/{id}", None),
        ("DELETE", "/api/kernels/{id}", None),
        ("POST", "/api/kernels/{id}/interrupt", {}),
        ("POST", "/api/kernels/{id}/restart", {}),
        ("GET", "/api/kernels/{id}/channels", None),
        ("GET", "/api/kernels/{id}?user=ana", None),
        ("DELETE", "/api/kernels/{id}?user=ana", None),
    ],
)
@pytest.mark.parametrize(
    "headers", [as_user("bia"), as_user("Ana"), as_user("aná"), as_service()], ids=lambda h: str(sorted(h.items())[0][1])
)
async def test_anothers_kernel_does_not_exist(
    gateway: Gateway, anas: str, headers: dict[str, str], method: str, path: str, body: Any
) -> None:
    status, answer = await gateway.request(method, path.format(id=anas), body, headers=headers)
    unknown, other = await gateway.request(method, path.format(id=uuid.uuid4()), body, headers=headers)
    assert (status, unknown) == (404, 404)
    assert answer["message"] == f"Kernel does not exist: {anas}"
    assert answer["message"].replace(anas, "") == re.sub("[0-9a-f-]{36}", "", other["message"])


async def test_anothers_websocket_does_not_open(gateway: Gateway, anas: str) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with channels(gateway, anas, as_user("bia")):
            pass
    assert refused.value.status == 404
    async with channels(gateway, anas, as_user("ana")) as own:
        assert (await own.execute("secret")).text == "'of ana'"


async def test_a_list_holds_ones_own(gateway: Gateway, anas: str) -> None:
    async def listed(headers: dict[str, str], query: str = "") -> list[str]:
        status, models = await gateway.request("GET", f"/api/kernels{query}", headers=headers)
        assert status == 200
        return [model["id"] for model in models]

    assert await listed(as_user("ana")) == [anas]
    assert await listed(as_user("bia")) == []
    assert await listed(as_user("bia"), "?user=ana") == []
    assert await listed(as_service()) == []  # it did not start that one
    assert await listed(as_user("olu")) == []
    assert await listed(as_user("olu"), "?user=ana") == [anas]
    assert await listed(as_user("tom", **{"X-Forwarded-Groups": "staff, operators"}), "?user=*") == [anas]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "token wrong"},
        {"Authorization": f"Basic {base64.b64encode(b'ana:' + TOKEN.encode()).decode()}"},
        {"Authorization": TOKEN},
        {"Authorization": "token " + "x" * 5000},
        {"Authorization": "token caf\xe9"},
        {"Authorization": "token  "},
        {"Cookie": f"token={TOKEN}"},
        as_user(""),
        as_user("x" * 300),
        {"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1;user=ana"},
        {"X_Forwarded_User": "ana"},
        {"X-Remote-User": "ana"},
    ],
    ids=lambda headers: re.sub(r"\W+", "-", str(headers))[:40],
)
async def test_who_is_not_verified_is_nobody(gateway: Gateway, anas: str, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/api/kernels"), ("POST", "/api/kernels"), ("GET", f"/api/kernels/{anas}"), ("GET", "/api/kernelspecs")):
        status, body = await gateway.request(method, path, {} if method == "POST" else None, headers=headers)
        assert status == 401, body
        assert set(body) == {"reason", "message"}
        assert body["message"].endswith(".")


async def test_a_name_twice_is_nobodys(gateway: Gateway) -> None:
    status, body = await raw(gateway, b"GET /api/kernels HTTP/1.1\r\nHost: x\r\nX-Forwarded-User: ana\r\nX-Forwarded-User: bia\r\n\r\n")
    assert (status, "more than once" in body) == (401, True)


async def test_a_token_in_the_address_opens_nothing_and_is_not_logged(gateway: Gateway, anas: str) -> None:
    for path in ("/api/kernels", f"/api/kernels/{anas}/channels", "/api/nothing", "/api/kernels/%ff", "/api/kernelspecs/small"):
        status, _ = await gateway.request("GET", f"{path}?x=1&token={TOKEN}")
        assert status in (400, 401, 404)
    assert TOKEN not in gateway.log


@pytest.mark.parametrize(
    "header",
    [
        b"X-Forwarded-User: " + b"a" * 70000,
        b"X-Forwarded-User: ana\x00",
        b"X-Forwarded-User: caf\xe9",
        b"X-Forwarded-User: a\x7fb",
        b"X-Forwarded-User: ana\r\n X-Forwarded-User: bia",
        b"Authorization: token \x80\xff",
        b": x",
    ],
)
async def test_malformed_headers_are_refused(gateway: Gateway, header: bytes) -> None:
    status, _ = await raw(gateway, b"GET /api/kernels HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n")
    assert status in (400, 401, 431, 0)  # 0: closed without an answer


async def test_the_body_cannot_name_another_user(backend: Backend, gateway: Gateway) -> None:
    kernel_id = await start(gateway, as_user("bia"), KERNEL_USERNAME="ana", KERNEL_USER="ana")
    (pod,) = await backend.pods(kernel_id)
    assert pod["metadata"]["annotations"]["elastic-kernels/user"] == "bia"
    async with channels(gateway, kernel_id, as_user("bia")) as own:
        assert (await own.execute("import os; os.environ['KERNEL_USERNAME']")).text == "'bia'"
    await gateway.request("DELETE", f"/api/kernels/{kernel_id}", headers=as_user("bia"))


async def test_a_service_acts_for_whom_it_may_and_reaches_what_it_started(backend: Backend, gateway: Gateway, anas: str) -> None:
    for environment, status in (
        ({}, 400),
        ({"KERNEL_USERNAME": "bia"}, 403),
        ({"KERNEL_USERNAME": " ana"}, 400),
        ({"KERNEL_USERNAME": "a" * 300}, 400),
    ):
        answer = await gateway.request("POST", "/api/kernels", {"name": "small", "env": environment}, headers=as_service())
        assert answer[0] == status, answer
    kernel_id = await start(gateway, as_service(), KERNEL_USERNAME="ana")
    (pod,) = await backend.pods(kernel_id)
    assert pod["metadata"]["annotations"]["elastic-kernels/user"] == "ana"
    assert pod["metadata"]["annotations"]["elastic-kernels/service"] == "airflow"
    assert [model["id"] for model in (await gateway.request("GET", "/api/kernels", headers=as_service()))[1]] == [kernel_id]
    # it is ana's, and counts against her limit
    assert (await gateway.request("GET", f"/api/kernels/{kernel_id}", headers=as_user("ana")))[0] == 200
    status, body = await gateway.request("POST", "/api/kernels", {"name": "small"}, headers=as_user("ana"))
    assert (status, body["message"][:41]) == (403, "You have 2 of 2 interactive kernels: 'sma")
    assert (await gateway.request("DELETE", f"/api/kernels/{kernel_id}", headers=as_service()))[0] == 204


async def test_an_open_websocket_ends_with_its_token(gateway: Gateway) -> None:
    file = Path(gateway.directory) / "services.yaml"
    kept = file.read_text()
    services = json.loads(kept)
    digest = hashlib.sha256(b"for-a-while").hexdigest()
    services["services"]["temporary"] = {"tokens": [f"sha256:{digest}"], "users": ["tim"]}
    file.write_text(json.dumps(services))
    try:
        kernel_id = await start(gateway, as_service("for-a-while"), KERNEL_USERNAME="tim")
        async with gateway.channels(kernel_id, headers=as_service("for-a-while")) as own:
            assert (await own.execute("6 * 7")).text == "42"
            file.write_text(kept)
            await own.send("shell", "execute_request", {"code": "1"})
            assert await own.closed() == 1008
    finally:
        file.write_text(kept)
    assert (await gateway.request("DELETE", f"/api/kernels/{kernel_id}", headers=as_user("tim")))[0] == 204


async def test_the_id_of_anothers_kernel_cannot_be_chosen(gateway: Gateway, anas: str) -> None:
    body = {"name": "small", "env": {"KERNEL_ID": anas}}
    assert (await gateway.request("POST", "/api/kernels", body, headers=as_user("bia")))[0] == 409
    async with channels(gateway, anas, as_user("ana")) as own:
        assert (await own.execute("secret")).text == "'of ana'"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "../../../etc/passwd"}, 404),
        ({"name": "small/../secret"}, 404),
        ({"name": "..%2fsmall"}, 404),
        ({"name": "\0"}, 404),
        ({"name": "x" * 10000}, 404),
        ({"name": 7}, 400),
        ({"name": ["small"]}, 400),
        ({"name": {"a": 1}}, 400),
        ({"name": "small", "path": ["/etc"]}, 400),
        ({"name": "small", "env": []}, 400),
        ({"name": "small", "env": {"KERNEL_X": 1}}, 400),
        ({"name": "small", "env": {"KERNEL_X": "y" * 5000}}, 400),
        ({"name": "small", "env": {"KERNEL_ID": "../../x"}}, 400),
        ({"name": "small", "env": {"KERNEL_ID": "00000000-0000-0000-0000-000000000000"}}, 400),
        ({"name": "small", "env": {"KERNEL_LAUNCH_TIMEOUT": "soon"}}, 400),
        ([], 400),
        ("small", 400),
        ({"name": "secret"}, 403),
    ],
    ids=str,
)
async def test_a_malformed_or_forbidden_start_is_one_sentence(
    backend: Backend, gateway: Gateway, anas: str, body: Any, status: int
) -> None:
    before = len(await backend.records())
    answer, content = await gateway.request("POST", "/api/kernels", body, headers=as_user("bia"))
    assert (answer, set(content)) == (status, {"reason", "message"}), content
    assert len(await backend.records()) == before


@pytest.mark.parametrize(
    "path",
    [
        "/api/kernels/../../etc/passwd",
        "/kernelspecs/small/../../../../etc/passwd",
        "/kernelspecs/%2e%2e/kernel.json",
        "/kernelspecs/small/%2e%2e%2f%2e%2e%2fconfig/jupyter_enterprise_gateway_config.py",
    ],
)
async def test_paths_lead_nowhere_else(gateway: Gateway, path: str) -> None:
    status, body = await raw(gateway, f"GET {path} HTTP/1.1\r\nHost: x\r\nX-Forwarded-User: bia\r\nConnection: close\r\n\r\n".encode())
    assert status in (400, 403, 404)
    assert "root:" not in body
    assert "configure" not in body


async def test_a_kernelspec_is_there_for_its_groups_alone(gateway: Gateway) -> None:
    scientist = as_user("sam", **{"X-Forwarded-Groups": "scientists"})
    for headers, names in ((as_user("bia"), {"small"}), (scientist, {"small", "secret"})):
        _, body = await gateway.request("GET", "/api/kernelspecs", headers=headers)
        assert set(body["kernelspecs"]) == names
        assert body["default"] in names
        assert (await gateway.request("GET", "/api/kernelspecs/secret?user=sam", headers=headers))[0] == (200 if "secret" in names else 404)
    kernel_id = await start(gateway, scientist, "secret")
    await gateway.request("DELETE", f"/api/kernels/{kernel_id}", headers=scientist)


@pytest.mark.parametrize(
    "other",
    [
        "Bia",
        "bía",
        "bi%61",
        "bia@example.com",
        slug("bia@example.com"),
        "bia-example-com",
        "b" * 255,
        "bia.interactive",
        "../bia",
        "bia\u202e",
    ],
)
async def test_names_that_look_alike_are_different_users(backend: Backend, gateway: Gateway, other: str) -> None:
    """Each has limits, kernels and labels of their own, also beside one whose slots are all taken."""
    mine = [await start(gateway, as_user("bia")) for _ in range(2)]
    status, body = await gateway.request("POST", "/api/kernels", {"name": "small"}, headers=as_user(other))
    if not other.isprintable():
        assert status == 401
    else:
        assert status == 201, body
        (pod,) = await backend.pods(body["id"])
        assert pod["metadata"]["annotations"]["elastic-kernels/user"] == other
        for kernel_id in mine:
            assert (await gateway.request("GET", f"/api/kernels/{kernel_id}", headers=as_user(other)))[0] == 404
        assert (await gateway.request("DELETE", f"/api/kernels/{body['id']}", headers=as_user(other)))[0] == 204
    for kernel_id in mine:
        await gateway.request("DELETE", f"/api/kernels/{kernel_id}", headers=as_user("bia"))


async def test_sessions_are_ones_own(gateway: Gateway, anas: str) -> None:
    model = {"path": "analysis.ipynb", "type": "notebook", "kernel": {"name": "small"}}
    status, hers = await gateway.request("POST", "/api/sessions", model, headers=as_user("ana"))
    assert status == 201, hers
    status, his = await gateway.request("POST", "/api/sessions", model, headers=as_user("bia"))
    assert status == 201, his
    # the same path is another session
    assert his["kernel"]["id"] != hers["kernel"]["id"]
    assert [s["id"] for s in (await gateway.request("GET", "/api/sessions", headers=as_user("bia")))[1]] == [his["id"]]
    for method, body in (("GET", None), ("PATCH", {"path": "x"}), ("DELETE", None)):
        assert (await gateway.request(method, f"/api/sessions/{hers['id']}", body, headers=as_user("bia")))[0] == 404
    # nor can one's own session be put on another's kernel
    stolen = {"kernel": {"id": anas}}
    assert (await gateway.request("PATCH", f"/api/sessions/{his['id']}", stolen, headers=as_user("bia")))[0] == 404
    malformed: list[Any] = [
        [],
        {"path": 1},
        {"path": "x", "type": "notebook", "kernel": 7},
        {"path": "x", "type": "notebook", "kernel": {"name": "none"}},
    ]
    for broken in malformed:
        assert 400 <= (await gateway.request("POST", "/api/sessions", broken, headers=as_user("bia")))[0] < 500
    for broken in ([], {"kernel": 7}, {"kernel": {"name": "small"}}):
        assert (await gateway.request("PATCH", f"/api/sessions/{his['id']}", broken, headers=as_user("bia")))[0] == 400
    status, full = await gateway.request("POST", "/api/sessions", {**model, "path": "third.ipynb"}, headers=as_user("ana"))
    assert (status, full["message"][:38]) == (403, "You have 2 of 2 interactive kernels: '")
    assert (await gateway.request("DELETE", f"/api/sessions/{hers['id']}", headers=as_user("ana")))[0] == 204
    assert (await gateway.request("DELETE", f"/api/sessions/{his['id']}", headers=as_user("bia")))[0] == 204


async def test_overlapping_requests_do_not_share_anything(gateway: Gateway) -> None:
    """In stock Enterprise Gateway one of two overlapping starts leaves its environment behind for requests without one."""

    async def began(user: str, body: dict[str, Any]) -> tuple[str, str]:
        status, model = await gateway.request("POST", "/api/kernels", {"name": "small", **body}, headers=as_user(user))
        assert status == 201, model
        async with channels(gateway, model["id"], as_user(user)) as own:
            return model["id"], (await own.execute("import os; os.environ['KERNEL_USERNAME'], 'GATEWAY_SECRET' in os.environ")).text

    users = ("cleo", "dan", "eve", "fay")
    for body in ({"env": {"KERNEL_SECRET": "x"}}, {}):
        answers = await asyncio.gather(*(began(user, body if user != "dan" else {}) for user in users))
        assert [text for _, text in answers] == [f"({user!r}, False)" for user in users]
        await asyncio.gather(
            *(
                gateway.request("DELETE", f"/api/kernels/{kernel}", headers=as_user(user))
                for user, (kernel, _) in zip(users, answers, strict=True)
            )
        )


async def test_what_is_secret_is_nowhere(backend: Backend, gateway: Gateway, anas: str) -> None:
    """Not in the log, which is on DEBUG here, nor in a pod, nor in what a start that fails answers."""
    assert (await gateway.request("GET", "/api/kernels", headers=as_service()))[0] == 200
    (record,) = [item for item in await backend.records() if item["metadata"]["labels"]["elastic-kernels/kernel-id"] == anas]
    key = json.loads(base64.b64decode(record["data"]["record.json"]))["key"]
    pods = json.dumps(await backend.pods())
    audited = (Path(gateway.directory) / "audit.log").read_text()
    for text in (gateway.log, pods, audited):
        for secret in (key, record["data"]["kernel-0.json"], record["data"]["record.json"], TOKEN):
            assert secret not in text


async def test_the_audit_says_who_did_what(gateway: Gateway, anas: str) -> None:
    await gateway.request("DELETE", f"/api/kernels/{anas}", headers=as_user("mallory"))

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in (Path(gateway.directory) / "audit.log").read_text().splitlines()]

    (refused,) = await until(lambda: [line for line in lines() if line.get("caller") == "mallory"], "the audit's line")
    assert {key: refused[key] for key in ("event", "outcome", "status", "user", "kernel")} == {
        "event": "stop",
        "outcome": "refused",
        "status": 404,
        "user": "ana",
        "kernel": anas,
    }
    started = [line for line in lines() if line["event"] == "start" and line.get("kernel") == anas]
    assert [(line["outcome"], line.get("caller"), line["profile"]) for line in started] == [("ok", "ana", "small")]
    assert any(line["event"] == "end" and line["user"] == "bia" for line in lines())
    assert any(line["event"] == "start" and line["outcome"] == "refused" and line.get("caller") == "airflow" for line in lines())


async def raw(gateway: Gateway, request: bytes) -> tuple[int, str]:
    """Send bytes, and return status (0: none) and text of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.address.rpartition(":")[2]))
    writer.write(request)
    try:
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
        length = re.search(rb"Content-Length: (\d+)", answer)
        answer += await reader.readexactly(int(length[1])) if length else b""
    except (asyncio.IncompleteReadError, ConnectionError):
        return 0, ""
    finally:
        writer.close()
    return int(answer.split(b" ", 2)[1]), answer.decode("utf-8", "replace")
