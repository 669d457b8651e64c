"""Volumes for groups and for packages: what lasts from one kernel to the next, and for whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from elastic_kernels.profiles import Profile
from tests.conftest import Backend, gateway_on, profile
from tests.gateway import PLUGGED_IN, Gateway, until
from tests.volumes import IDENTITY, as_user, claim, files, kernel, refused, release, wheel, write

TEAMS = {"name": "teams", "mount_path": "/teams/{group}", "claim": "efs", "sub_path": "teams/{group}", "make_sub_path": True}
OWN = {"name": "own", "mount_path": "/own", "claim": "efs", "sub_path": "users/{username}", "make_sub_path": True}
PINNED = {"name": "pinned", "mount_path": "/pinned", "claim": "efs", "sub_path": "pinned"}
# what a pod of the embedded cluster mounts is elsewhere on this machine: its variables say where
PLACES = {"H": "/home/jovyan", "SCIENCE": "/teams/science", "OPS": "/teams/ops", "OWN": "/own", "PINNED": "/pinned"}
KEEPS = {"home": True, "packages": True}
TEAM = {"team": ["/pinned"]}
OTHER_IMAGE = "elastic-kernels/test-plain-ipykernel:dev"
PROFILES: dict[str, Profile] = {
    "teams": profile("teams", volumes=[TEAMS, OWN], environment=PLACES),
    "teams-only": profile("teams-only", volumes=[{**TEAMS, "groups": ["ops"]}], environment=PLACES),
    "keeps": profile("keeps", **KEEPS, environment=PLACES, named_images={"Plain": OTHER_IMAGE}),
    "keeps-too": profile("keeps-too", **KEEPS, spot=True, environment=PLACES),
    "makes": profile("makes", volumes=[{**PINNED, "make_sub_path": True}], environment=PLACES),
    "pinned": profile("pinned", home=True, packages=TEAM, volumes=[{**PINNED, "read_only": True}], environment=PLACES),
    "elsewhere": profile("elsewhere", home=True, node_selector={"topology.kubernetes.io/zone": "eu-1b"}),
}
ZONE = [{"matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["eu-1a"]}]}]


@pytest.fixture(scope="module")
async def gateway(backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    await asyncio.gather(
        claim(backend, "efs", "ReadWriteMany"),
        claim(backend, "claim-ana", "ReadWriteMany", "ana"),
        claim(backend, "claim-zoe", "ReadWriteOnce", "zoe", terms=ZONE),
    )
    directory = tmp_path_factory.mktemp("gateway")
    async with gateway_on(backend, directory, PROFILES, environment=IDENTITY, configuration=PLUGGED_IN) as running:
        yield running
    await release(backend, "efs", "claim-ana", "claim-zoe")


async def test_a_folder_for_each_group_and_for_each_user(gateway: Gateway) -> None:
    async with kernel(gateway, "ana:science,ops", "teams") as run:
        await run(write("SCIENCE", "found.txt", "by ana"))
        await run(write("OPS", "page.txt", "by ana"))
        await run(write("OWN", "diary.txt", "of ana"))
    async with kernel(gateway, "leo:science", "teams") as run:
        assert await run("import os; open(os.environ['SCIENCE'] + '/found.txt').read()") == "'by ana'"
        assert await run("os.path.exists(os.environ['OPS'])") == "False"
        assert await run(files("OWN")) == "[]"
    async with kernel(gateway, "bia", "teams") as run:
        assert await run("import os; [name for name in ('SCIENCE', 'OPS') if os.path.exists(os.environ[name])]") == "[]"
    async with kernel(gateway, "ana:science,ops", "teams-only") as run:
        assert await run("import os; [name for name in ('SCIENCE', 'OPS') if os.path.exists(os.environ[name])]") == "['OPS']"


async def test_what_pip_installs_is_there_in_the_next_kernel(gateway: Gateway) -> None:
    async with kernel(gateway, "ana", "keeps") as run:
        await run(wheel("lasting", "1.0", "word = 'first'"))
        said = await run("%pip install --no-index --find-links $H lasting")
        assert "Successfully installed lasting-1.0" in said
        assert await run("import lasting; lasting.word") == "'first'"
    # in the next one, of another profile with the same image, on another machine; and in what it starts
    async with kernel(gateway, "ana", "keeps-too") as run:
        assert await run("import lasting; lasting.word") == "'first'"
        assert await run("!python -c 'import lasting, ipykernel; print(lasting.word)'") == "first\r\n"
        await run(wheel("lasting", "2.0", "word = 'second'"))
        assert "Successfully installed lasting-2.0" in await run("!pip install --no-index --find-links $H --upgrade lasting")
    async with kernel(gateway, "ana", "keeps") as run:
        assert await run("import lasting; lasting.word") == "'second'"
        assert "Successfully uninstalled lasting-2.0" in await run("%pip uninstall --yes lasting")
    # each image has its own
    async with kernel(gateway, "ana", "keeps") as run:
        await run("%pip install --no-index --find-links $H lasting")
    async with kernel(gateway, "ana", "keeps", KERNEL_IMAGE="Plain") as run:
        assert await run("import importlib.util; importlib.util.find_spec('lasting') is None") == "True"


async def test_packages_that_a_team_has_pinned(gateway: Gateway) -> None:
    async with kernel(gateway, "bia", "makes") as run:
        await run(write("PINNED", "pinned_by_team.py", "version = 7"))
    async with kernel(gateway, "ana", "pinned") as run:
        assert await run("import pinned_by_team; pinned_by_team.version") == "7"
        assert await run("!python -c 'import pinned_by_team; print(pinned_by_team.version)'") == "7\r\n"


async def test_a_home_that_lies_in_another_zone(backend: Backend, gateway: Gateway) -> None:
    assert await refused(gateway, "zoe", "elsewhere") == (
        409,
        "Your home volume, the claim 'claim-zoe', lies where topology.kubernetes.io/zone is eu-1a, and 'elsewhere' runs elsewhere; "
        "choose another kernel.",
    )
    await until(backend.is_empty, "what was refused to leave nothing")
    assert (await gateway.request("GET", "/api/kernels", headers=as_user("zoe"))) == (200, [])
