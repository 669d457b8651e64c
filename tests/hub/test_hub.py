"""A real JupyterHub with two users, each with a JupyterLab server of their own, in front of one gateway."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Backend, gateway_on, profile
from tests.gateway import PLUGGED_IN, Gateway, free_port, until
from tests.hub.running import PORTS, Hub, Server, running_hub
from tests.notebooks import lab_program, write

FRESH_SECONDS = 3


@dataclass
class Company:
    """A hub, its gateway, and the servers of two people."""

    hub: Hub
    gateway: Gateway
    ana: Server
    bia: Server


@pytest.fixture(scope="module")
async def company(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Company]:
    directory, port = tmp_path_factory.mktemp("hub"), free_port(PORTS - 1)
    environment = {
        "ELASTIC_KERNELS_IDENTITY": "jupyterhub",
        "ELASTIC_KERNELS_HUB_FRESH_TIME": str(FRESH_SECONDS),
        "JUPYTERHUB_API_URL": f"http://127.0.0.1:{port + 1}/hub/api",
        "EG_MAX_KERNELS_PER_USER": "2",
    }
    profiles = {"small": profile("small", display_name="Small"), "science": profile("science", groups=["scientists"])}
    gateways = gateway_on(backend, tmp_path_factory.mktemp("gateway"), profiles, environment=environment, configuration=PLUGGED_IN)
    async with gateways as gateway, running_hub(directory, port, gateway.address) as hub:
        ana, bia = await hub.server_of("ana"), await hub.server_of("bia")
        yield Company(hub, gateway, ana, bia)
        for server in (ana, bia):
            for kernel in (await gateway.request("GET", "/api/kernels", headers=_token(server.token)))[1]:
                await gateway.request("DELETE", f"/api/kernels/{kernel['id']}", headers=_token(server.token))


async def session(server: Server, notebook: str, kernel: str = "small") -> tuple[int, dict[str, object]]:
    """Open a notebook, as JupyterLab does."""
    body = {"path": notebook, "name": notebook, "type": "notebook", "kernel": {"name": kernel}}
    return await server.ask("POST", "/api/sessions", body)


async def test_each_sees_their_own_and_the_third_is_refused(backend: Backend, company: Company) -> None:
    for number in (1, 2):
        for server in (company.ana, company.bia):
            status, body = await session(server, f"{number}.ipynb")
            assert status == 201, body
    for server in (company.ana, company.bia):
        kernels = {kernel["id"] for kernel in (await server.ask("GET", "/api/kernels"))[1]}
        owners = {
            pod["metadata"]["labels"]["elastic-kernels/kernel-id"]: pod["metadata"]["annotations"]["elastic-kernels/user"]
            for pod in await backend.pods()
        }
        assert kernels == {kernel for kernel, owner in owners.items() if owner == server.user}
        assert len(kernels) == 2
        status, body = await session(server, "3.ipynb")
        assert status >= 400
        assert "You have 2 of 2 kernels: 'Small' (" in str(body["message"])
        assert "(1.ipynb, since " in str(body["message"])
        assert "to start another." in str(body["message"])


async def test_the_tokens_are_theirs(company: Company) -> None:
    """Whatever bia's server is told to say, its token says that she is bia."""
    (kernel, _) = (await company.ana.ask("GET", "/api/kernels"))[1]
    for method in ("GET", "DELETE"):
        answer = await company.gateway.request(method, f"/api/kernels/{kernel['id']}", headers=_token(company.bia.token))
        assert answer[0] == 404
    own = await company.gateway.request("GET", f"/api/kernels/{kernel['id']}", headers=_token(company.ana.token))
    assert own[0] == 200
    body = {"name": "small", "env": {"KERNEL_USERNAME": "ana"}}
    status, refused = await company.gateway.request("POST", "/api/kernels", body, headers=_token(company.bia.token))
    assert (status, refused["message"][:24]) == (403, "You have 2 of 2 kernels:")


async def test_a_notebook_from_the_command_line_is_its_users(backend: Backend, company: Company, tmp_path: Path) -> None:
    """As in a terminal of leo's JupyterLab, whose environment holds the hub's token and no other name than his."""
    await company.hub.ask("POST", "/users/leo")
    token = await company.hub.token_of("leo")
    notebook = write(tmp_path / "night.ipynb", "import os; print(os.environ['KERNEL_USERNAME'])")
    environment = {"PATH": os.environ["PATH"], "JUPYTER_GATEWAY_URL": company.gateway.address, "JUPYTERHUB_API_TOKEN": token}
    process = await asyncio.create_subprocess_exec(
        lab_program("elastic-kernels"),
        "run",
        str(notebook),
        "--log-output",
        env={**environment, "KERNEL_USERNAME": "ana"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 0, said.decode()
    assert "\nleo\n" in said.decode()


async def test_kernels_for_a_group_of_the_hub(company: Company) -> None:
    for server, expected in ((company.ana, {"small", "science"}), (company.bia, {"small"})):
        _, listed = await company.gateway.request("GET", "/api/kernelspecs", headers=_token(server.token))
        assert set(listed["kernelspecs"]) == expected


async def test_a_service_of_the_hub_that_has_a_users_name_is_nobody(company: Company) -> None:
    status, body = await company.gateway.request("GET", "/api/kernels", headers=_token(company.hub.service_token))
    assert status == 401, body


async def test_a_token_of_a_deleted_user_stops_working(company: Company) -> None:
    await company.hub.ask("POST", "/users/eve")
    token = await company.hub.token_of("eve")
    assert (await company.gateway.request("GET", "/api/kernels", headers=_token(token))) == (200, [])
    assert (await company.hub.ask("DELETE", "/users/eve"))[0] == 204

    async def is_refused() -> bool:
        return (await company.gateway.request("GET", "/api/kernels", headers=_token(token)))[0] == 401

    await until(is_refused, "the token to stop working", seconds=FRESH_SECONDS + 5)


async def test_while_the_hub_is_away_those_it_knew_are_let_in(company: Company) -> None:
    known, unknown = company.bia.token, await company.hub.token_of("bia")
    assert (await company.gateway.request("GET", "/api/kernels", headers=_token(known)))[0] == 200
    await company.hub.stop()
    try:
        status, body = await company.gateway.request("GET", "/api/kernels", headers=_token(unknown))
        assert (status, body["message"][:11]) == (503, "JupyterHub,")
        assert (await company.gateway.request("GET", "/api/kernels", headers=_token(known)))[0] == 200
    finally:
        await company.hub.start()

    async def knows_again() -> bool:
        return (await company.gateway.request("GET", "/api/kernels", headers=_token(unknown)))[0] == 200

    await until(knows_again, "the hub's word")


def _token(token: str) -> dict[str, str]:
    return {"Authorization": f"token {token}"}
