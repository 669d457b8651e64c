"""The gateway as a command of ours: as the stock one with the plug-in, and without a configuration file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Backend, profile, shut_down_all
from tests.gateway import running_gateway, until, write_kernelspecs

COMMAND = (str(Path(sys.executable).with_name("elastic-kernels")), "gateway")
ANA = {"X-Forwarded-User": "ana"}


async def test_the_command_verifies_users(backend: Backend, tmp_path: Path) -> None:
    write_kernelspecs(tmp_path, {"small": profile("small")})
    environment = {**backend.environment, "ELASTIC_KERNELS_IDENTITY": "header", "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.1"}
    async with running_gateway(tmp_path, environment, command=COMMAND) as gateway:
        assert (await gateway.request("GET", "/api/kernels"))[0] == 401
        status, body = await gateway.request("POST", "/api/kernels", {"name": "small"}, headers=ANA)
        assert status == 201, body
        async with gateway.channels(body["id"], headers=ANA) as own:
            assert (await own.execute("6 * 7")).text == "42"
        assert [model["id"] for model in (await gateway.request("GET", "/api/kernels", headers=ANA))[1]] == [body["id"]]
        assert (await gateway.request("GET", "/api/kernels", headers={"X-Forwarded-User": "bia"}))[1] == []
    # it outlives its gateway
    assert len(await backend.pods()) == 1
    await shut_down_all(backend.environment)
    await until(backend.is_empty, "the kernel to go")


async def test_who_verifies_nobody_is_told_so(backend: Backend, tmp_path: Path) -> None:
    async with running_gateway(tmp_path, backend.environment, command=COMMAND) as gateway:
        assert "No user is verified (the setting identity is trust-client)" in gateway.log


@pytest.mark.embedded
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--ElasticKernels.identity=jupyterhub"], "The identity 'jupyterhub' needs hub_api_url, such as http://hub:8081/hub/api."),
        (["--ElasticKernels.identity=ldap"], "'ldap' is not a way to verify a user: trust-client, jupyterhub, header, service."),
        (["--ElasticKernels.identity=service", "--ElasticKernels.services_file=/nowhere"], "/nowhere cannot be read: "),
        (["--ElasticKernels.audit_file=/nowhere/audit.log"], "audit_file: /nowhere/audit.log cannot be written: "),
    ],
)
def test_a_setting_that_is_wrong_ends_it_with_a_sentence(tmp_path: Path, options: list[str], sentence: str) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "JUPYTER_CONFIG_DIR": str(tmp_path),
        "JUPYTER_RUNTIME_DIR": str(tmp_path),
    }
    ended = subprocess.run([*COMMAND, *options], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert sentence in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_an_identity_that_nothing_verifies_starts_no_kernel(backend: Backend, tmp_path: Path) -> None:
    """A stock gateway without the plug-in, on which somebody has set an identity."""
    write_kernelspecs(tmp_path, {"small": profile("small")})
    environment = {**backend.environment, "ELASTIC_KERNELS_IDENTITY": "header", "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.1"}
    async with running_gateway(tmp_path, environment) as gateway:
        status, sentence = await gateway.refused("small")
        assert status == 500
        assert sentence.startswith("The identity 'header' is set, but nothing verifies it")
    assert await backend.is_empty()
