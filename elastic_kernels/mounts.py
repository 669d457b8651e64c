"""What a kernel's pod mounts, and where: the user's home, the profile's volumes, and the folders in them. Pure, as ``pod`` is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from elastic_kernels import hubnames
from elastic_kernels.homes import Home
from elastic_kernels.profiles import Profile
from elastic_kernels.storage import GROUP, Volume

HOME_VOLUME: Final = "home"
FOLDERS: Final = "folders"
"""The container that makes folders before the kernel starts."""
_WHOLE: Final = "/volumes"
# what is there is left as it is; where nobody can give a folder away (EFS access points), it has its owner already
_MAKE: Final = 'for d in "$@"; do [ -d "$d" ] || { mkdir -p "$d" && { chown "$OWNER" "$d" || [ -w "$d" ]; }; } || exit 1; done'


@dataclass(frozen=True)
class Mount:
    """One volume, or a folder of one, at one path of the kernel."""

    name: str
    """The volume's name in the pod."""
    source: Mapping[str, Any]
    """What the volume is, in Kubernetes' spelling."""
    path: str
    sub_path: str = ""
    read_only: bool = False
    make: bool = False
    """Whether the folder is made for the kernel if it is not there."""


def mounts(profile: Profile, user: str, groups: Sequence[str], home: Home | None) -> list[Mount]:
    """Return what is mounted for a user of these groups; ``home`` is what was found for them, None if the profile mounts none."""
    found = _of_home(profile, user, home) if profile.home and home else []
    for volume in profile.volumes:
        found += _of_volume(volume, user, groups)
    # a claim that is in a pod twice keeps a kubelet waiting for ever
    return [Mount(_first(found, mount), mount.source, mount.path, mount.sub_path, mount.read_only, mount.make) for mount in found]


def volumes(mounted: Iterable[Mount]) -> list[dict[str, Any]]:
    """Return the pod's volumes for what is mounted."""
    return [{"name": name, **source} for name, source in {mount.name: mount.source for mount in mounted}.items()]


def volume_mounts(mounted: Iterable[Mount]) -> list[dict[str, Any]]:
    """Return the kernel's container's volumeMounts for what is mounted."""
    return [
        {
            "name": mount.name,
            "mountPath": mount.path,
            **({"subPath": mount.sub_path} if mount.sub_path else {}),
            **({"readOnly": True} if mount.read_only else {}),
        }
        for mount in mounted
    ]


def folder_containers(profile: Profile, mounted: Iterable[Mount], resources: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the init container that makes the folders that are to be made, if any are.

    It runs as root, with the profile's own image and not with one that a user asked for, and sees these volumes whole.
    """
    made = [mount for mount in mounted if mount.make]
    if not made:
        return []
    names = dict.fromkeys(mount.name for mount in made)
    return [
        {
            "name": FOLDERS,
            "image": profile.image,
            **({"imagePullPolicy": profile.image_pull_policy} if profile.image_pull_policy else {}),
            "command": ["/bin/sh", "-c", _MAKE, "sh", *(f"{_WHOLE}/{mount.name}/{mount.sub_path}" for mount in made)],
            "env": [{"name": "OWNER", "value": f"{profile.security.uid}:{profile.security.gid}"}],
            # what it says is the pod's status then, and need not be looked for
            "terminationMessagePolicy": "FallbackToLogsOnError",
            "resources": dict(resources),
            "securityContext": {
                "runAsUser": 0,
                "runAsNonRoot": False,
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"], "add": ["CHOWN", "DAC_OVERRIDE"]},
            },
            "volumeMounts": [{"name": name, "mountPath": f"{_WHOLE}/{name}"} for name in names],
        }
    ]


def _of_home(profile: Profile, user: str, home: Home) -> list[Mount]:
    assert profile.home is not None
    if not home.claim:
        return [Mount(HOME_VOLUME, {"emptyDir": {}}, profile.home.mount_path)]
    source = {"persistentVolumeClaim": {"claimName": home.claim}}
    sub_path = hubnames.expand(profile.home.sub_path, user)
    return [Mount(HOME_VOLUME, source, profile.home.mount_path, sub_path, make=profile.home.make_sub_path)]


def _of_volume(volume: Volume, user: str, groups: Sequence[str]) -> list[Mount]:
    own = volume.groups_of(groups)
    if own == [] or (own is None and GROUP in volume.mount_path):
        return []
    folders = [hubnames.safe(group) for group in own] if own is not None and GROUP in volume.mount_path else [""]
    return [
        Mount(
            volume.name,
            volume.in_kubernetes(),
            volume.mount_path.replace(GROUP, folder),
            hubnames.expand(volume.sub_path, user).replace(GROUP, folder),
            volume.read_only,
            volume.make_sub_path,
        )
        for folder in folders
    ]


def _first(found: Sequence[Mount], mount: Mount) -> str:
    if "persistentVolumeClaim" not in mount.source:
        return mount.name
    return next(other.name for other in found if other.source == mount.source)
