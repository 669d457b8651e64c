"""Profiles become kernelspec folders: a kernel.json and a logo for each, beside whatever else is in the directory.

A folder is ours if its kernel.json says so and names the folder: a copy that somebody made and changed is not, and is never
touched. Every file appears whole or not at all, and a kernel.json last, so that a gateway may read while this writes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from elastic_kernels import names, quantities
from elastic_kernels.errors import ConfigurationError, ElasticKernelsError
from elastic_kernels.profiles import PROXY_CLASS, Profile, from_kernelspec, to_kernelspec

KERNEL_FILE: Final = "kernel.json"
LOGO_FILE: Final = "logo-svg.svg"
# the key in a kernelspec's metadata whose value is the name of the folder that is ours
_MARK: Final = "elastic_kernels"
_LARGE_MEMORY: Final = quantities.parse("8Gi")
_LARGE_CPU: Final = quantities.parse("4")
_SVG: Final = re.compile(r"<svg\b[^>]*>(.*)</svg>", re.DOTALL)


@dataclass(frozen=True)
class Installed:
    """A kernelspec on disk that names the process proxy of this library."""

    name: str
    display_name: str
    folder: Path
    mistake: str = ""
    """Why it cannot be started, or empty."""


def shipped_profiles() -> Path:
    """Return the profiles.yaml that comes with this library."""
    return Path(str(resources.files("elastic_kernels.shipped"))) / "profiles.yaml"


def install(profiles: Iterable[Profile], directory: Path) -> list[str]:
    """Make ``directory`` hold exactly these profiles, besides kernelspecs that are not ours; return the names that it removed.

    Raises ConfigurationError, before anything is written, if a name belongs to a kernelspec that is not ours; and if the
    directory cannot be written to.
    """
    wanted: dict[str, Profile] = {}
    for profile in (each for given in profiles for each in variants(given)):
        if profile.name in wanted:
            raise ConfigurationError(f"Two kernelspecs would be named {profile.name!r}; name the profile or its image differently.")
        wanted[profile.name] = profile
    for name in wanted:
        if (directory / name / KERNEL_FILE).exists() and not _is_ours(directory / name):
            raise ConfigurationError(
                f"{directory / name} is a kernelspec of somebody else's; name the profile {name!r} differently, or remove that folder."
            )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        old = [folder.name for folder in sorted(directory.iterdir()) if _is_ours(folder) and folder.name not in wanted]
        for name in old:
            # without this file it is no kernelspec any more
            (directory / name / KERNEL_FILE).unlink()
            shutil.rmtree(directory / name)
        for profile in wanted.values():
            folder = directory / profile.name
            folder.mkdir(exist_ok=True)
            _write(folder / LOGO_FILE, logo(profile))
            _write(folder / KERNEL_FILE, json.dumps(_marked(profile), indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ConfigurationError(f"{directory} cannot be written to ({error.strerror}).") from error
    return old


def variants(profile: Profile) -> list[Profile]:
    """Return the profile, and one more for each of its named images: what the Launcher shows."""
    title = profile.display_name or profile.name
    # what waits is of the profile's own image
    chosen: Iterable[dict[str, Any]] = (
        {
            "name": f"{profile.name}-{names.slug(name)}",
            "display_name": f"{title} | {name}",
            "image": image,
            "named_images": {},
            "warm": None,
        }
        for name, image in profile.named_images.items()
    )
    return [profile, *(profile.model_copy(update=changes) for changes in chosen)]


def installed(directories: Iterable[Path]) -> list[Installed]:
    """Return the kernelspecs of this library, written by hand or installed; of two with one name the first directory's counts."""
    found: dict[str, Installed] = {}
    for directory in directories:
        for folder in sorted(directory.iterdir()) if directory.is_dir() else ():
            spec = _read(folder)
            process_proxy = _mapping(_mapping(spec.get("metadata")).get("process_proxy"))
            if process_proxy.get("class_name") == PROXY_CLASS and folder.name not in found:
                found[folder.name] = _described(folder, spec)
    return list(found.values())


def hardware(profile: Profile) -> str:
    """Return what distinguishes the machine of a profile, as its logo's badge shows it: gpu, spot, large or nothing."""
    if profile.gpu and profile.gpu.count:
        return "gpu"
    if profile.spot:
        return "spot"
    memory = [quantities.parse(value) for value in (profile.memory.limit, profile.memory.request) if value] if profile.memory else []
    cpu = [quantities.parse(value) for value in (profile.cpu.limit, profile.cpu.request) if value] if profile.cpu else []
    return "large" if max(memory, default=0) >= _LARGE_MEMORY or max(cpu, default=0) >= _LARGE_CPU else ""


def logo(profile: Profile) -> str:
    """Return the SVG of a profile: its language's picture, with a badge for its hardware in the corner."""
    pictures = Path(str(resources.files("elastic_kernels.shipped"))) / "logos"
    picture = pictures / f"{profile.language.lower()}.svg"
    # the language is an administrator's free text
    svg = (picture if picture in pictures.glob("*.svg") else pictures / "kernel.svg").read_text(encoding="utf-8")
    badge = hardware(profile)
    if not badge:
        return svg
    match = _SVG.search((pictures / f"badge-{badge}.svg").read_text(encoding="utf-8"))
    assert match is not None
    return svg.replace("</svg>", f"{match[1].strip()}\n</svg>")


def _marked(profile: Profile) -> dict[str, Any]:
    spec = to_kernelspec(profile)
    return {**spec, "metadata": {**spec["metadata"], _MARK: profile.name}}


def _is_ours(folder: Path) -> bool:
    return _mapping(_read(folder).get("metadata")).get(_MARK) == folder.name


def _described(folder: Path, spec: Mapping[str, Any]) -> Installed:
    display_name = str(spec.get("display_name") or folder.name)
    try:
        from_kernelspec(folder.name, spec)
    except ElasticKernelsError as error:
        return Installed(folder.name, display_name, folder, str(error))
    return Installed(folder.name, display_name, folder)


def _read(folder: Path) -> Mapping[str, Any]:
    """Return the content of a folder's kernel.json, or nothing if there is none that can be read."""
    try:
        return _mapping(json.loads((folder / KERNEL_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _write(path: Path, text: str) -> None:
    """Write a file so that no reader ever sees a part of it."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        # the gateway that reads it may be another user
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
