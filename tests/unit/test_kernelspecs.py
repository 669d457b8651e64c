import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from elastic_kernels import profilefile
from elastic_kernels.errors import ConfigurationError
from elastic_kernels.kernelspecs import Installed, hardware, install, installed, logo, shipped_profiles
from elastic_kernels.profiles import Profile, from_kernelspec, parse_profile


def profile(name: str = "small", **fields: Any) -> Profile:
    return parse_profile({"name": name, "image": "kernel:1", **fields}, f"profiles.{name}")


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_a_profile_becomes_a_folder_that_a_gateway_reads(tmp_path: Path) -> None:
    wanted = profile(display_name="Small & quick", memory="2Gi", environment={"COLOUR": "blue"})
    assert install([wanted], tmp_path / "share" / "kernels") == []
    folder = tmp_path / "share" / "kernels" / "small"
    assert files(folder) == {"kernel.json", "logo-svg.svg"}
    spec = json.loads((folder / "kernel.json").read_text())
    assert spec == {
        "argv": ["python", "{launcher}", "{connection_file}"],
        "display_name": "Small & quick",
        "language": "python",
        "interrupt_mode": "message",
        "env": {"COLOUR": "blue"},
        "metadata": {
            "process_proxy": {
                "class_name": "elastic_kernels.proxy.ElasticKernelProxy",
                "config": {"image": "kernel:1", "memory": {"request": "2Gi", "limit": "2Gi"}},
            },
            "elastic_kernels": "small",
        },
    }
    assert from_kernelspec("small", spec) == wanted
    assert (folder / "kernel.json").stat().st_mode & 0o777 == 0o644


def test_installing_again_changes_removes_and_adds(tmp_path: Path) -> None:
    install([profile("one"), profile("two", display_name="Before")], tmp_path)
    assert install([profile("two", display_name="After"), profile("three")], tmp_path) == ["one"]
    assert files(tmp_path) == {"two/kernel.json", "two/logo-svg.svg", "three/kernel.json", "three/logo-svg.svg"}
    assert json.loads((tmp_path / "two" / "kernel.json").read_text())["display_name"] == "After"


def test_what_is_not_ours_is_never_touched(tmp_path: Path) -> None:
    install([profile("mine")], tmp_path)
    foreign = {
        # another kernel, a copy of ours under its own name, and what is no kernelspec at all
        "python3/kernel.json": '{"argv": ["python"], "display_name": "Python 3"}',
        "copied/kernel.json": (tmp_path / "mine" / "kernel.json").read_text(),
        "broken/kernel.json": "{",
        "list/kernel.json": "[]",
        "empty/notes.txt": "",
    }
    for path, text in foreign.items():
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text(text)
    assert install([], tmp_path) == ["mine"]
    assert {path: (tmp_path / path).read_text() for path in files(tmp_path)} == foreign


def test_a_name_that_is_taken_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "python3").mkdir()
    (tmp_path / "python3" / "kernel.json").write_text("{}")
    with pytest.raises(ConfigurationError) as caught:
        install([profile("first"), profile("python3")], tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / 'python3'} is a kernelspec of somebody else's; name the profile 'python3' differently, or remove that folder."
    )
    assert files(tmp_path) == {"python3/kernel.json"}


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError) as caught:
        install([profile()], tmp_path / "file" / "kernels")
    assert str(caught.value) == f"{tmp_path / 'file' / 'kernels'} cannot be written to (Not a directory)."


def test_installed_finds_ours_and_those_written_by_hand(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    install([profile("one", display_name="One")], first)
    install([profile("one", display_name="Hidden"), profile("two")], second)
    spec = json.loads((first / "one" / "kernel.json").read_text())
    spec["metadata"]["process_proxy"]["config"]["memory"] = "16GG"
    (second / "hand").mkdir()
    (second / "hand" / "kernel.json").write_text(json.dumps(spec))
    (second / "other").mkdir()
    (second / "other" / "kernel.json").write_text('{"argv": [], "display_name": "Other", "metadata": {"process_proxy": null}}')
    assert installed([first, tmp_path / "none", second]) == [
        Installed("one", "One", first / "one"),
        Installed(
            "hand",
            "One",
            second / "hand",
            "kernelspec hand: metadata.process_proxy.config.memory: '16GG' is not a quantity (write 500m or 2 for CPUs, 512Mi or 4Gi for "
            "bytes)",
        ),
        Installed("two", "two", second / "two"),
    ]


@pytest.mark.parametrize(
    ("fields", "badge"),
    [
        ({}, ""),
        ({"cpu": 1, "memory": "7Gi"}, ""),
        ({"cpu": {"request": 1, "limit": 4}}, "large"),
        ({"memory": {"request": "8Gi"}}, "large"),
        ({"memory": "64Gi", "spot": True}, "spot"),
        ({"memory": "64Gi", "spot": True, "gpu": 1}, "gpu"),
        ({"gpu": 0}, ""),
    ],
)
def test_hardware(fields: dict[str, Any], badge: str) -> None:
    assert hardware(profile(**fields)) == badge


def test_each_logo_is_one_picture() -> None:
    pictures = set()
    for language in ("python", "Scala", "R", "../../etc/passwd"):
        for fields in ({}, {"gpu": 1}, {"spot": True}, {"cpu": 8}):
            svg = logo(profile(language=language, **fields))
            root = ElementTree.fromstring(svg)
            assert root.tag == "{http://www.w3.org/2000/svg}svg"
            assert len(root.findall(".//{http://www.w3.org/2000/svg}circle[@r='15']")) == (1 if fields else 0)
            pictures.add(svg)
    # python, scala, and one for all others
    assert len(pictures) == 12


def test_the_shipped_profiles_can_be_installed(tmp_path: Path) -> None:
    profiles = profilefile.load(shipped_profiles())
    install(profiles.values(), tmp_path)
    assert [item.mistake for item in installed([tmp_path])] == [""] * len(profiles)
