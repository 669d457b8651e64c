"""Who is verified as whom: the hub's word and its cache, a proxy's header, and the file of services."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from elastic_kernels.errors import (
    ConfigurationError,
    ElasticKernelsError,
    IdentityAwayError,
    NotAllowedError,
    RequestError,
    UnauthorizedError,
)
from elastic_kernels.identity import Caller, User, checked_name, credentials
from elastic_kernels.identity.header import Header
from elastic_kernels.identity.hub import Hub
from elastic_kernels.identity.service import Services, new_token
from elastic_kernels.identity.verifier import Verifier
from elastic_kernels.settings import ElasticKernels


class FakeHub:
    """Answers for tokens as JupyterHub does, counts what it is asked, and can be slow, wrong or away."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {"ana-token": {"kind": "user", "name": "ana", "groups": ["scientists"], "admin": True}}
        self.asked: list[str] = []
        self.delay = 0.0
        self.status = 0
        self.url = ""

    async def user(self, request: web.Request) -> web.Response:
        token = request.headers["Authorization"].removeprefix("token ")
        self.asked.append(token)
        await asyncio.sleep(self.delay)
        if self.status:
            return web.Response(status=self.status, headers={"Location": "http://127.0.0.1:1/"})
        model = self.models.get(token)
        return web.json_response(model) if model is not None else web.json_response({"status": 403, "message": "Forbidden"}, status=403)


@pytest.fixture
async def fake() -> AsyncIterator[FakeHub]:
    hub = FakeHub()
    application = web.Application()
    application.router.add_get("/hub/api/user", hub.user)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    hub.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hub/api"
    yield hub
    await runner.cleanup()


@pytest.fixture
async def lasting(fake: FakeHub) -> AsyncIterator[Hub]:
    """One whose answers are not asked for again while a test lasts."""
    verifier = Hub(fake.url + "/", fresh_time=60, away_time=1.5, administrators=["olu", "@admins"])
    yield verifier
    await verifier.close()


@pytest.fixture
async def hub(fake: FakeHub) -> AsyncIterator[Hub]:
    verifier = Hub(fake.url + "/", fresh_time=0.3, away_time=1.5, administrators=["olu", "@admins"])
    yield verifier
    await verifier.close()


async def test_the_hub_is_asked_once(fake: FakeHub, lasting: Hub) -> None:
    fake.delay = 0.05
    callers = await asyncio.gather(*(lasting.identify("ana-token") for _ in range(20)))
    assert set(callers) == {Caller("ana", frozenset({"scientists"}))}  # the hub's own administrators are not the gateway's
    await lasting.identify("ana-token")
    assert fake.asked == ["ana-token"]


async def test_the_hub_is_asked_again_later(fake: FakeHub, hub: Hub) -> None:
    await hub.identify("ana-token")
    await asyncio.sleep(0.35)
    await hub.identify("ana-token")
    assert len(fake.asked) == 2


async def test_one_who_hangs_up_does_not_take_the_answer_from_the_others(fake: FakeHub, hub: Hub) -> None:
    fake.delay = 0.1
    first, second = (asyncio.ensure_future(hub.identify("ana-token")) for _ in range(2))
    await asyncio.sleep(0.02)
    first.cancel()
    assert (await second).name == "ana"


async def test_a_revoked_token_stops_working(fake: FakeHub, hub: Hub) -> None:
    await hub.identify("ana-token")
    fake.models.clear()
    await asyncio.sleep(0.35)
    with pytest.raises(UnauthorizedError):
        await hub.identify("ana-token")


async def test_wrong_tokens_are_not_asked_about_again_and_again(fake: FakeHub, lasting: Hub) -> None:
    for _ in range(5):
        with pytest.raises(UnauthorizedError):
            await lasting.identify("wrong")
    assert fake.asked == ["wrong"]


@pytest.mark.parametrize("status", [302, 429, 500, 503])
async def test_a_hub_that_is_away_lets_those_in_whom_it_knew(fake: FakeHub, hub: Hub, status: int) -> None:
    await hub.identify("ana-token")
    fake.status = status
    await asyncio.sleep(0.35)
    assert (await hub.identify("ana-token")).name == "ana"
    asked = len(fake.asked)
    for _ in range(3):
        with pytest.raises(IdentityAwayError):
            await hub.identify("another")
    assert len(fake.asked) == asked  # it is left alone for a while
    await asyncio.sleep(1.3)
    with pytest.raises(IdentityAwayError):
        await hub.identify("ana-token")


@pytest.mark.parametrize(
    "model",
    [
        {"kind": "service", "name": "ana"},
        {"kind": "user", "name": ""},
        {"kind": "user", "name": "a" * 300},
        {"kind": "user", "name": "ana\n"},
        {"kind": "user", "name": 7},
        ["ana"],
        "ana",
        {},
    ],
)
async def test_what_the_hub_cannot_mean_is_nobody(fake: FakeHub, hub: Hub, model: Any) -> None:
    fake.models["odd"] = model
    with pytest.raises(ElasticKernelsError) as refused:
        await hub.identify("odd")
    assert refused.value.status in (401, 503)


async def test_administrators_are_named_by_the_gateway(fake: FakeHub, hub: Hub) -> None:
    fake.models |= {
        "a": {"kind": "user", "name": "olu"},
        "b": {"kind": "user", "name": "tom", "groups": ["admins"]},
        "c": {"name": "@admins"},
    }
    assert [(await hub.identify(token)).is_administrator for token in "abc"] == [True, True, True]
    assert not (await hub.identify("ana-token")).is_administrator


def test_a_header_is_believed_from_the_proxy_alone() -> None:
    header = Header("X-User", "X-Groups", ["10.1.0.0/16", "::1"], ["@ops"])
    assert header.identify(["ana"], ["a, ops,"], "10.1.2.3") == Caller("ana", frozenset({"a", "ops"}), is_administrator=True)
    assert header.identify(["M\xc3\xbcller"], [], "::ffff:10.1.2.3").name == "Müller"
    assert header.identify(["ana"], [], "::1").name == "ana"
    for users, peer in (
        (["ana"], "10.2.0.1"),
        (["ana"], ""),
        (["ana"], "unix"),
        (["ana", "bia"], "10.1.2.3"),
        (["\xff"], "10.1.2.3"),
        ([""], "10.1.2.3"),
    ):
        with pytest.raises(UnauthorizedError):
            header.identify(users, [], peer)


@pytest.mark.parametrize("proxies", [[], ["10.1.0.1/16"], ["proxy.example.com"], [""]])
def test_proxies_are_addresses(proxies: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="trusted_proxies"):
        Header("X-User", "X-Groups", proxies, [])


def services(path: Path, **content: Any) -> Path:
    path.write_text(json.dumps({"services": content}))
    return path


def digest(token: str) -> str:
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


def test_a_service_acts_for_whom_its_grant_lists(tmp_path: Path) -> None:
    file = services(tmp_path / "s", airflow={"tokens": [digest("old"), digest("new")], "users": ["ana", "team-*"], "groups": ["g"]})
    caller = Services(file).identify("new")
    assert caller is not None
    assert caller == Services(file).identify("old")
    assert Services(file).identify("none") is None
    assert caller.on_behalf_of("ana") == User("ana", frozenset({"g"}), service="airflow")
    assert caller.on_behalf_of("team-x").name == "team-x"
    for name, error in (
        ("bia", NotAllowedError),
        ("Ana", NotAllowedError),
        ("team", NotAllowedError),
        ("", RequestError),
        (None, RequestError),
        ("ana ", RequestError),
    ):
        with pytest.raises(error):
            caller.on_behalf_of(name)
    assert [caller.may_use(user, service) for user, service in (("ana", "airflow"), ("ana", ""), ("ana", "other"), ("bia", "airflow"))] == [
        True,
        False,
        False,
        False,
    ]


def test_the_file_of_services_is_read_again(tmp_path: Path) -> None:
    file = services(tmp_path / "s", a={"tokens": [digest("one")], "users": ["*"]})
    known = Services(file)
    assert known.identify("two") is None
    services(tmp_path / "new", a={"tokens": [digest("two")], "users": ["*"]})
    os.replace(tmp_path / "new", file)
    assert known.identify("one") is None
    assert known.identify("two") is not None
    file.write_text("services: [")
    for _ in range(2):
        with pytest.raises(IdentityAwayError):
            known.identify("two")
    file.unlink()
    with pytest.raises(IdentityAwayError):
        known.identify("two")
    services(file, a={"tokens": [digest("two")], "users": ["*"]})
    assert known.identify("two") is not None


@pytest.mark.parametrize(
    ("content", "clause"),
    [
        ({"a": {"tokens": ["secret"], "users": []}}, "services.a.tokens.0"),
        ({"a": {"tokens": [], "users": "ana"}}, "services.a.users"),
        ({"a": {"tokens": [], "users": [], "user": []}}, "services.a.user"),
        ({"a": {"tokens": [], "users": [], "limit_class": "At night"}}, "services.a.limit_class"),
        ({"../a": {"tokens": [], "users": []}}, "services"),
        ({"a": {"tokens": [digest("x")], "users": []}, "b": {"tokens": [digest("x")], "users": []}}, "same token"),
    ],
)
def test_mistakes_in_the_file_are_named_and_secrets_are_not(tmp_path: Path, content: dict[str, Any], clause: str) -> None:
    with pytest.raises(ConfigurationError, match=clause) as error:
        Services(services(tmp_path / "s", **content))
    assert "secret" not in str(error.value)


def test_a_service_has_a_limit_of_its_users_for_itself(tmp_path: Path) -> None:
    content = {"tokens": [digest("t")], "users": ["ana"]}
    plain = Services(services(tmp_path / "plain", a=content)).identify("t")
    own = Services(services(tmp_path / "own", a={**content, "limit_class": "scheduled"})).identify("t")
    assert plain is not None
    assert own is not None
    assert plain.on_behalf_of("ana").limit_class == ""
    assert own.on_behalf_of("ana").limit_class == "scheduled"


def test_a_new_token_is_its_digest(tmp_path: Path) -> None:
    token, written = new_token()
    assert Services(services(tmp_path / "s", a={"tokens": [written], "users": ["*"]})).identify(token) is not None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("token abc", "abc"),
        ("Bearer abc", "abc"),
        ("TOKEN  abc ", "abc"),
        ("abc", None),
        ("token", None),
        ("token a b", None),
        (None, None),
        ("token " + "x" * 1025, None),
    ],
)
def test_credentials(header: str | None, expected: str | None) -> None:
    assert credentials(header) == expected


@pytest.mark.parametrize("name", ["", " ", "a ", "a\nb", "\u202eana", "x" * 256])
def test_what_cannot_be_a_name(name: str) -> None:
    with pytest.raises(RequestError):
        checked_name(name, "It")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"identity": "service"}, "services_file"),
        ({"identity": "header"}, "trusted_proxies"),
        ({"identity": "jupyterhub"}, "hub_api_url"),
        ({"identity": "service", "services_file": "/nowhere"}, "/nowhere cannot be read"),
    ],
)
def test_a_way_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], sentence: str) -> None:
    monkeypatch.delenv("JUPYTERHUB_API_URL", raising=False)
    with pytest.raises(ConfigurationError, match=sentence):
        Verifier(ElasticKernels(**settings))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("identity", "jupyterhub, service", "jupyterhub, service"),
        ("administrators", "olu, @ops", ["olu", "@ops"]),
        ("trusted_proxies", "", []),
        ("max_kernels_per_class", "interactive=2, gpu=1", {"interactive": 2, "gpu": 1}),
        ("max_resources_per_user", "gpu=2,memory=64Gi", {"gpu": "2", "memory": "64Gi"}),
    ],
)
def test_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch, name: str, text: str, expected: Any) -> None:
    monkeypatch.setenv(f"ELASTIC_KERNELS_{name.upper()}", text)
    assert getattr(ElasticKernels(), name) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("identity", "ldap"),
        ("identity", "trust-client,service"),
        ("identity", ""),
        ("max_kernels_per_class", "interactive"),
        ("max_kernels_per_class", "interactive=two"),
        ("max_kernels_per_class", "interactive=-1"),
        ("max_kernels_per_class", "In.teractive=1"),
        ("max_resources_per_user", "disk=1Gi"),
        ("max_resources_per_user", "memory=1GG"),
    ],
)
def test_wrong_settings_are_named(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(f"ELASTIC_KERNELS_{name.upper()}", text)
    with pytest.raises(ConfigurationError, match=f"ELASTIC_KERNELS_{name.upper()}"):
        ElasticKernels()
