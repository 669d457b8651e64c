"""What a pod mounts, on a machine where nothing can be mounted.

Each mount path becomes a directory below the pod's own root, and every text of the pod that begins with a mount path (in the
command, in variables, as working directory) is written anew with that directory. What lies outside of the mounts is the
machine's own file system. What a kernel that waited is told later is not written anew.

A file in a mounted Secret that says where to listen (JSON with ``ip``, ``key`` and a port) and says "on all interfaces" gets the pod's
own address instead: local processes share the machine's interfaces, and all kernels listen on the same ports.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elastic_kernels.embedded.selectors import Object
from elastic_kernels.embedded.store import Store


class MissingError(Exception):
    """A volume's source is not there yet; the text is the kubelet's."""


def place(store: Store, pod: Object, root: Path, claims: Path, address: str) -> dict[str, str]:
    """Make the directories of a pod's mounts, and return them by mount path. Raises MissingError."""
    namespace = pod["metadata"]["namespace"]
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes") or ()}
    places: dict[str, str] = {}
    for mount in pod["spec"]["containers"][0].get("volumeMounts") or ():
        volume = volumes[mount["name"]]
        own = root / mount["mountPath"].strip("/")
        if "secret" in volume or "configMap" in volume:
            _write_files(store, namespace, volume, own, address)
            source = own
        elif "persistentVolumeClaim" in volume:
            source = claims / namespace / volume["persistentVolumeClaim"]["claimName"]
        elif "hostPath" in volume:
            source = Path(volume["hostPath"]["path"])
        else:
            source = root / ".volumes" / volume["name"]
        source = source / mount["subPath"] if mount.get("subPath") else source
        source.mkdir(parents=True, exist_ok=True)
        places[mount["mountPath"].rstrip("/")] = str(source)
    return places


def rewrite(text: str, places: Mapping[str, str]) -> str:
    """Return ``text`` with each mount path in it, where a path may begin and end, replaced by its directory."""
    if not places:
        return text
    paths = "|".join(re.escape(path) for path in sorted(places, key=len, reverse=True))
    return re.sub(rf"(?<![\w.-])({paths})(?=$|[/:;,\s'\"])", lambda match: places[match[1]], text)


def remove(root: Path) -> None:
    """Remove a pod's root; files that a process still writes are no reason to stop."""
    shutil.rmtree(root, ignore_errors=True)


def _write_files(store: Store, namespace: str, volume: Mapping[str, Any], directory: Path, address: str) -> None:
    if "secret" in volume:
        source, resource, name = volume["secret"], "secrets", volume["secret"]["secretName"]
    else:
        source, resource, name = volume["configMap"], "configmaps", volume["configMap"]["name"]
    found = store.find(resource, namespace, name)
    if found is None:
        raise MissingError(f'MountVolume.SetUp failed for volume "{volume["name"]}" : {resource[:-1]} "{name}" not found')
    data: dict[str, bytes] = {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}
    for key, value in (found.get("data") or {}).items():
        data[key] = base64.b64decode(value) if resource == "secrets" else value.encode()
    items = {item["key"]: item["path"] for item in source["items"]} if source.get("items") else {key: key for key in data}
    for key, path in items.items():
        if key not in data:
            raise MissingError(f'MountVolume.SetUp failed for volume "{volume["name"]}" : references non-existent secret key: {key}')
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_own_address(data[key], address) if resource == "secrets" else data[key])


def _own_address(content: bytes, address: str) -> bytes:
    try:
        connection = json.loads(content)
    except ValueError:
        return content
    if not isinstance(connection, dict) or not {"ip", "key"} <= connection.keys() or connection["ip"] not in ("0.0.0.0", "*"):
        return content
    if not connection.keys() & {"shell_port", "claim_port"}:
        return content
    return json.dumps({**connection, "ip": address}).encode()
