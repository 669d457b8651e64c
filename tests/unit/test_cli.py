import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from elastic_kernels import cli, profilefile
from elastic_kernels.errors import ConfigurationError
from elastic_kernels.up_plan import find_lab

GOOD = """\
common: {image: "kernel:1"}
profiles:
  small: {display_name: Small}
  with-a-gpu: {gpu: 1}
"""
BAD = """\
common: {image: "kernel:1"}
profiles:
  small: {memory: 16GG, cpus: 2}
  fine: {}
  gpu: {gpu: -1, extends: [nothing]}
  other: {images: 7}
"""

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    path = tmp_path / "profiles.yaml"
    path.write_text(GOOD)
    return path


def said(captured: Captured) -> tuple[str, str]:
    out, err = captured.readouterr()
    return out, err


def test_check_prints_a_line_for_each_profile(profiles: Path, capsys: Captured) -> None:
    assert cli.main(["profiles", "check", str(profiles)]) == 0
    assert said(capsys) == ("small       Small       kernel:1\nwith-a-gpu  with-a-gpu  kernel:1\n", "")


def test_check_prints_every_mistake_on_its_own_line(tmp_path: Path, capsys: Captured) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    assert cli.main(["profiles", "check", str(path)]) == 1
    assert said(capsys) == (
        "",
        "profiles.small.memory: '16GG' is not a quantity (write 500m or 2 for CPUs, 512Mi or 4Gi for bytes)\n"
        "profiles.small.cpus: is not a field; did you mean 'cpu'?\n"
        "profiles.gpu.extends: 'nothing' is not one of the parts (there are none)\n"
        "profiles.other.images: 7 must be a valid tuple\n",
    )


def test_check_of_a_file_that_is_not_there(tmp_path: Path, capsys: Captured) -> None:
    assert cli.main(["profiles", "check", str(tmp_path / "none.yaml")]) == 1
    assert said(capsys) == ("", f"{tmp_path / 'none.yaml'}: cannot be read (No such file or directory)\n")


def test_schema_is_json(capsys: Captured) -> None:
    assert cli.main(["profiles", "schema"]) == 0
    out, err = said(capsys)
    assert (json.loads(out), err) == (profilefile.json_schema(), "")


def test_install_into_a_folder_and_again(profiles: Path, tmp_path: Path, capsys: Captured) -> None:
    command = ["kernelspecs", "install", "--profiles", str(profiles), "--path", str(tmp_path / "kernels")]
    assert cli.main(command) == 0
    small, gpu = tmp_path / "kernels" / "small", tmp_path / "kernels" / "with-a-gpu"
    assert said(capsys) == (f"installed {small}\ninstalled {gpu}\n", "")
    profiles.write_text(GOOD.replace("  with-a-gpu: {gpu: 1}\n", ""))
    assert cli.main(command) == 0
    assert said(capsys) == (f"installed {small}\nremoved   {gpu}\n", "")


def test_install_for_the_user_is_listed(profiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_PATH", "")
    assert cli.main(["kernelspecs", "install", "--profiles", str(profiles), "--user"]) == 0
    folder = tmp_path / "data" / "kernels"
    assert said(capsys) == (f"installed {folder / 'small'}\ninstalled {folder / 'with-a-gpu'}\n", "")
    assert cli.main(["kernelspecs", "list"]) == 0
    assert said(capsys) == (f"small       Small       {folder / 'small'}\nwith-a-gpu  with-a-gpu  {folder / 'with-a-gpu'}\n", "")


def test_list_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PATH", "")
    assert cli.main(["kernelspecs", "list"]) == 0
    assert said(capsys) == ("", "elastic-kernels: no kernelspec of this library is installed; see: elastic-kernels kernelspecs install\n")
    spec = {"argv": ["{connection_file}"], "metadata": {"process_proxy": {"class_name": "elastic_kernels.proxy.ElasticKernelProxy"}}}
    (tmp_path / "kernels" / "hand").mkdir(parents=True)
    (tmp_path / "kernels" / "hand" / "kernel.json").write_text(json.dumps(spec))
    assert cli.main(["kernelspecs", "list"]) == 1
    assert said(capsys) == (
        f"hand  hand  {tmp_path / 'kernels' / 'hand'}\n",
        "kernelspec hand: metadata.process_proxy.config.image: is missing\n",
    )


def test_install_over_somebody_elses(profiles: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "kernel.json").write_text("{}")
    assert cli.main(["kernelspecs", "install", "--profiles", str(profiles), "--path", str(tmp_path)]) == 2
    assert said(capsys) == (
        "",
        f"elastic-kernels: {tmp_path / 'small'} is a kernelspec of somebody else's; name the profile 'small' differently, or remove that "
        "folder.\n",
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["up", "--port", "http"], "argument --port: 'http' is not a port: a number from 0 to 65535"),
        (["up", "--port", "65536"], "argument --port: '65536' is not a port: a number from 0 to 65535"),
        (["kernelspecs", "install"], "one of the arguments --sys-prefix --user --path is required"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_misuse(arguments: list[str], sentence: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    out, err = said(capsys)
    assert (out, err.splitlines()[-1].partition("error: ")[2]) == ("", sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--lab", "/none/jupyter-lab"],
            "/none/jupyter-lab is not a program; name the jupyter-lab of an environment that holds JupyterLab 4.",
        ),
        (["--notebooks", "/none"], "/none is not a folder; name the one with your notebooks with --notebooks."),
    ],
)
def test_up_that_cannot_begin(arguments: list[str], sentence: str, capsys: Captured) -> None:
    assert cli.main(["up", *arguments]) == 2
    assert said(capsys) == ("", f"elastic-kernels: {sentence}\n")


def test_up_with_profiles_that_are_wrong(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "bad.yaml").write_text("profiles: {a: {}}")
    assert cli.main(["up", "--profiles", str(tmp_path / "bad.yaml")]) == 1
    assert said(capsys) == ("", "profiles.a.image: is missing\n")


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_find_lab_takes_the_first_that_is_there(tmp_path: Path) -> None:
    own = program(tmp_path / "project" / ".venv" / "bin" / "jupyter-lab")
    elsewhere = program(tmp_path / "elsewhere" / "bin" / "jupyter-lab")
    prefix = own.parent.parent
    path = {"PATH": f"{own.parent}{os.pathsep}{elsewhere.parent}"}
    assert find_lab(None, {"PATH": str(own.parent)}, prefix) is None, "the gateway's own environment has an old one at best"
    assert find_lab(None, path, prefix) == elsewhere
    beside = program(tmp_path / "project" / ".venv-lab" / "bin" / "jupyter-lab")
    assert find_lab(None, path, prefix) == beside
    named = program(tmp_path / "named" / "jupyter-lab")
    assert find_lab(None, {**path, "ELASTIC_KERNELS_LAB": str(named)}, prefix) == named
    assert find_lab(elsewhere, {**path, "ELASTIC_KERNELS_LAB": str(named)}, prefix) == elsewhere


def test_a_lab_that_is_named_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        find_lab(tmp_path, {}, tmp_path)
    with pytest.raises(ConfigurationError):
        find_lab(None, {"ELASTIC_KERNELS_LAB": str(tmp_path / "none")}, tmp_path)


def test_the_program_has_a_version_and_bears_a_reader_who_stops_early() -> None:
    command = str(Path(sys.executable).with_name("elastic-kernels"))
    assert subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout == "elastic-kernels 0.1.0\n"
    with subprocess.Popen([command, "profiles", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)
