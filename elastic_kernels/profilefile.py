"""``profiles.yaml``: many profiles in one file, their common parts written once.

    common:                    # merged into every profile
      image: registry.example.com/kernel-python:1
    parts:                     # named pieces
      a-gpu: {gpu: 1, launch_timeout: 600}
    profiles:
      python-gpu:              # the kernel's name
        extends: [a-gpu]       # merged in this order, after common and before the profile's own words
        display_name: Python 3 | GPU

Mappings are merged by key, everything else is replaced, and null takes a value away. YAML's own anchors work as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from elastic_kernels.errors import ProfileError
from elastic_kernels.merge import merge
from elastic_kernels.profiles import Profile, parse_profile

_SECTIONS = ("common", "parts", "profiles")
# what several places say something of: none of them need say all that is required
_COMPOSED = ("Gpu", "NewClaim", "Spark", "Executors")


def load(path: Path) -> dict[str, Profile]:
    """Return the profiles of a file by name, in the file's order. Raises ProfileError if any part of it is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path}: is not UTF-8 text") from error
    return loads(text, str(path))


def loads(text: str, source: str) -> dict[str, Profile]:
    """Return the profiles of a YAML text by name; ``source`` names it in errors. Raises ProfileError with every mistake found."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ProfileError(f"{source}: is not YAML: {error}") from error
    document = _mapping(document or {}, source)
    for section in document:
        if section not in _SECTIONS and not str(section).startswith("x-"):
            raise ProfileError(f"{source}: {section}: is not a section; there are {', '.join(_SECTIONS)}")
    common = _mapping(document.get("common") or {}, "common")
    parts = _mapping(document.get("parts") or {}, "parts")
    profiles: dict[str, Profile] = {}
    mistakes: list[str] = []
    for name, own in _mapping(document.get("profiles") or {}, "profiles").items():
        path = f"profiles.{name}"
        try:
            profiles[str(name)] = parse_profile(_compose(str(name), _mapping(own or {}, path), common, parts), path)
        except ProfileError as error:
            mistakes.extend(error.mistakes)
    if mistakes:
        raise ProfileError(*mistakes)
    if not profiles:
        raise ProfileError(f"{source}: profiles: names no profile")
    return profiles


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of such a file, for editors that complete and check YAML."""
    profile = Profile.model_json_schema(ref_template="#/$defs/{model}")
    definitions = profile.pop("$defs", {})
    for name in _COMPOSED:
        definitions[name].pop("required", None)
    properties = {key: value for key, value in profile["properties"].items() if key != "name"}
    partial = {"type": "object", "properties": properties, "additionalProperties": False}
    extends = {"type": "array", "items": {"type": "string"}, "description": "Names of parts, merged in this order."}
    whole = {**partial, "properties": {"extends": extends, **properties}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Profiles of elastic-kernels",
        "type": "object",
        "properties": {
            "common": partial,
            "parts": {"type": "object", "additionalProperties": partial},
            "profiles": {"type": "object", "additionalProperties": whole},
        },
        "patternProperties": {"^x-": {}},
        "required": ["profiles"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _compose(name: str, own: Mapping[str, Any], common: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    extends = own.get("extends", [])
    if not isinstance(extends, list):
        raise ProfileError(f"profiles.{name}.extends: {extends!r} is not a list of parts")
    result = dict(common)
    for part in extends:
        if part not in parts:
            raise ProfileError(
                f"profiles.{name}.extends: {part!r} is not one of the parts ({', '.join(map(str, parts)) or 'there are none'})"
            )
        result = merge(result, _mapping(parts[part] or {}, f"parts.{part}"))
    return merge(result, {key: value for key, value in own.items() if key != "extends"}) | {"name": name}


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ProfileError(f"{path}: {json.dumps(value, default=str)} is not a mapping")
    return value
