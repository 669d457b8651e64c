"""The kernel's record: a Secret that is created before the pod, mounted into it, and outlives it.

It is the slot that its kernel takes of its user's limit: its name can exist once only (see ``slots``).
It holds the connection files and the launchers that the pod sees, and ``record.json``: what another gateway process needs to
take the kernel over. It is never changed, and owns the pod. It does not say so to
the API server (``immutable``): a kubelet would go on giving it to the pods of the next record that has its name, for as long as the
pod of this one ends.

The ports are constants, because a pod has an address of its own. There are two sets of them, and each start of a kernel takes
the other one: Jupyter Server tells by its ports alone that a restarted kernel must be connected to anew.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib import resources
from typing import Any, Final

from elastic_kernels import names

CONNECTION_FILE: Final = "kernel.json"
RECORD_FILE: Final = "record.json"
PORT_SETS: Final = (52317, 52322)
_CHANNELS: Final = ("shell", "iopub", "stdin", "control", "hb")


@dataclass(frozen=True)
class Record:
    """What is known of a kernel wherever it is needed, and stays the same for as long as the kernel has its id."""

    kernel_id: str
    kernel_name: str
    """The kernelspec's, and so the profile's, name."""
    user: str
    """The raw name of the user whose kernel it is."""
    namespace: str
    deployment: str
    """The gateway deployment that made it; see settings."""
    key: str
    """The key that signs the kernel's messages."""
    token: str
    """A few letters and digits, new for each record: what tells it from a later one of the same name."""
    slot: str
    """Which of the user's slots it takes."""
    limit_class: str = "interactive"
    pool: str = ""
    """What the slot is one of, if not of the limit class; see ``slots``."""
    title: str = ""
    """What the user knows the kernel by: the profile's display name."""
    groups: tuple[str, ...] = ()
    """The user's groups, as verified at the start: which groups' folders are mounted, and what admits a restart."""
    service: str = ""
    """The service that started it for the user, or empty."""
    notebook: str = ""
    """The path of the notebook that it was started for, if the client said so."""
    usage: Mapping[str, str] = field(default_factory=dict)
    """What it counts for against the user's sums: cpu, memory and gpu, as quantities."""
    launch_arguments: Mapping[str, Any] = field(default_factory=dict)
    """The client's environment as it was asked for, to start the kernel with again."""

    @property
    def name(self) -> str:
        """The Secret's name."""
        return names.record_name(self.deployment, self.user, self.pool or self.limit_class, self.slot)


def connection(record: Record, ports: int, address: str) -> dict[str, Any]:
    """Return the content of a Jupyter connection file: for the kernel (``address`` 0.0.0.0) or for who connects to it.

    ``ports`` is the index of the port set.
    """
    first = PORT_SETS[ports]
    return {
        **{f"{channel}_port": first + index for index, channel in enumerate(_CHANNELS)},
        "ip": address,
        "key": record.key,
        "transport": "tcp",
        "signature_scheme": "hmac-sha256",
        "kernel_name": record.kernel_name,
    }


def connection_key(ports: int) -> str:
    """Return the key, in the Secret's data, of the connection file of a port set."""
    return f"kernel-{ports}.json"


def labels_of(record: Record) -> dict[str, str]:
    """Return the labels that the record and its pods carry."""
    return {
        names.MANAGED_BY: names.MANAGER,
        names.DEPLOYMENT: record.deployment,
        names.KERNEL_ID: record.kernel_id,
        names.KERNEL_NAME: names.slug(record.kernel_name, limit=63),
        names.PROFILE: names.slug(record.kernel_name, limit=63),
        names.USER: names.slug(record.user),
        names.LIMIT_CLASS: record.limit_class,
        **names.GATEWAY_LABELS,
        names.GATEWAY_KERNEL_ID: record.kernel_id,
    }


def annotations_of(record: Record) -> dict[str, str]:
    """Return the annotations that the record and its pods carry: the names as they are."""
    service = {names.SERVICE: record.service} if record.service else {}
    return {names.USER: record.user, names.KERNEL_NAME: record.kernel_name, **service}


def to_secret(record: Record) -> dict[str, Any]:
    """Return the Secret of a record."""
    files = {
        **{connection_key(ports): json.dumps(connection(record, ports, "0.0.0.0")) for ports in range(len(PORT_SETS))},
        **launcher_sources(),
        RECORD_FILE: json.dumps(asdict(record)),
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": record.name,
            "namespace": record.namespace,
            "labels": labels_of(record),
            # all that the limits need to know, so that nobody has to read what is inside
            "annotations": {
                **annotations_of(record),
                names.LAUNCH: record.token,
                names.TITLE: record.title,
                names.NOTEBOOK: record.notebook,
                names.USAGE: json.dumps(dict(record.usage)),
            },
        },
        "type": "elastic-kernels/record",
        "data": {name: base64.b64encode(text.encode()).decode() for name, text in files.items()},
    }


def from_secret(secret: Mapping[str, Any]) -> Record:
    """Return the record that a Secret holds. Raises ValueError if it is no record of ours or a damaged one."""
    try:
        content = json.loads(base64.b64decode(secret["data"][RECORD_FILE]))
        # gateways of two versions share their kernels while one takes the other's place
        known = {name: value for name, value in content.items() if name in {field.name for field in fields(Record)}}
        return Record(**known | {"groups": tuple(known.get("groups") or ())})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the secret {secret.get('metadata', {}).get('name')!r} is not a kernel's record") from error


def to_connection_secret(record: Record, pod: Mapping[str, Any], connection: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Secret, named after its pod and gone with it, of a connection that a launcher chose and reported."""
    metadata = pod["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            # not the labels of a record, which it is not
            "labels": {names.GATEWAY_KERNEL_ID: record.kernel_id},
            "annotations": {names.LAUNCH: metadata["annotations"][names.LAUNCH]},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}],
        },
        "type": "elastic-kernels/connection",
        "immutable": True,
        "data": {CONNECTION_FILE: base64.b64encode(json.dumps(dict(connection)).encode()).decode()},
    }


def from_connection_secret(secret: Mapping[str, Any]) -> dict[str, Any]:
    """Return the connection that a launcher reported. Raises ValueError if the Secret holds none."""
    try:
        return dict(json.loads(base64.b64decode(secret["data"][CONNECTION_FILE])))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the secret {secret.get('metadata', {}).get('name')!r} is not a kernel's connection") from error


@cache
def launcher_sources() -> Mapping[str, str]:
    """Return the launchers, which travel with the record, by the names of their files. They are read once."""
    folder = resources.files("elastic_kernels.launchers")
    files = (file for file in folder.iterdir() if file.name.endswith(".py") and file.name != "__init__.py")
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(files, key=lambda file: file.name)}
