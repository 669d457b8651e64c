"""A notebook in JupyterLab, and what lies beside it: the same paths in the kernel's pod, on whichever machine that is."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.conftest import Backend, gateway_on, profile
from tests.gateway import PLUGGED_IN, Gateway, free_port
from tests.hub.running import PORTS, Server, running_hub
from tests.volumes import claim, release, write


@pytest.fixture(scope="module")
async def gateway_and_server(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Gateway, Server]]:
    directory, port = tmp_path_factory.mktemp("hub"), free_port(PORTS - 1)
    environment = {"ELASTIC_KERNELS_IDENTITY": "jupyterhub", "JUPYTERHUB_API_URL": f"http://127.0.0.1:{port + 1}/hub/api"}
    # where ana's server has her files; what it lists is not looked at here, the kernels' volume is another one
    home = directory / "home-ana"
    (home / "work").mkdir(parents=True)
    profiles = {
        name: profile(name, home={"mount_path": str(home)}, environment={"H": str(home)}, spot=name == "spot") for name in ("here", "spot")
    }
    await claim(backend, "claim-ana", "ReadWriteMany", "ana")
    gateways = gateway_on(backend, tmp_path_factory.mktemp("gateway"), profiles, environment=environment, configuration=PLUGGED_IN)
    async with gateways as gateway, running_hub(directory, port, gateway.address) as hub:
        yield gateway, await hub.server_of("ana")
    await release(backend, "claim-ana")


async def test_a_notebook_imports_what_lies_beside_it(gateway_and_server: tuple[Gateway, Server]) -> None:
    gateway, server = gateway_and_server
    headers = {"Authorization": f"token {server.token}"}
    for kernel_name, cell, expected in (
        ("here", write("H", "work/helper.py", "def help(): return 'of ana'") + f"; {write('H', 'work/data.csv', '1,2')}", "3"),
        ("here", "import helper; helper.help()", "'of ana'"),
        ("spot", "import helper; helper.help(), open('data.csv').read()", "('of ana', '1,2')"),
    ):
        body = {"path": "work/n.ipynb", "name": "n.ipynb", "type": "notebook", "kernel": {"name": kernel_name}}
        status, session = await server.ask("POST", "/api/sessions", body)
        assert status == 201, session
        async with gateway.channels(session["kernel"]["id"], headers=headers) as channels:
            reply = await channels.execute(cell)
        assert (reply.status, reply.text) == ("ok", expected), reply
        assert (await server.ask("DELETE", f"/api/sessions/{session['id']}"))[0] == 204
