"""What a profile mounts: the user's home, volumes for all or for groups, and the folder that keeps a user's packages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, model_validator

from elastic_kernels.fields import AbsolutePath, DnsLabel, DnsName, Part, Quantity, SubPath, absolute, matching

GROUP: Final = "{group}"
# what images have their programs and libraries in
_NOT_MOUNTED: Final = (
    *("/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/opt", "/proc", "/sbin", "/sys"),
    *("/usr", "/usr/bin", "/usr/lib", "/usr/local", "/usr/local/bin", "/usr/local/lib"),
)


def _mount_path(value: str) -> str:
    path = absolute(value)
    if path in _NOT_MOUNTED:
        raise ValueError(f"a volume at {path!r} would cover what the image needs to run")
    unknown = set(re.findall(r"\{[^}]*\}", path)) - {GROUP}
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]} is not known here: {{group}} is")
    return path


MountPath = Annotated[str, AfterValidator(_mount_path)]


class Nfs(Part):
    """A folder that an NFS server exports."""

    server: Annotated[str, matching(re.compile(r"[A-Za-z0-9.:-]+"), "the name or address of a server")]
    path: AbsolutePath = "/"


class Efs(Part):
    """A file system of Amazon EFS, mounted by NFS: no driver and no claim is needed, and nothing is encrypted on the way. For access
    points, which have a uid of their own, and for TLS, use a claim of the EFS CSI driver."""

    file_system: Annotated[str, matching(re.compile(r"fs-[0-9a-f]+"), "the id of a file system, such as fs-0123456789abcdef0")]
    region: Annotated[str, matching(re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]"), "a region, such as eu-west-1")]
    path: AbsolutePath = "/"


class Volume(Part):
    """A volume at one path: the same for every kernel of the profile, or a folder of it for each user or group."""

    name: DnsLabel
    """Its name in the pod."""
    mount_path: MountPath
    """Where the kernel sees it. With ``{group}`` in it, and in ``sub_path``, it is mounted once for each of the user's groups."""
    claim: DnsName | None = None
    """What it is: a claim in the kernels' namespace. One of ``claim``, ``nfs``, ``efs`` and ``source`` says it."""
    nfs: Nfs | None = None
    efs: Efs | None = None
    source: Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=1)] | None = None
    """Any other, in Kubernetes' spelling: ``{emptyDir: {}}``, …"""
    read_only: bool = False
    sub_path: SubPath = ""
    """A folder of the volume in place of the whole. ``{username}`` in it is the user's name as JupyterHub's kubespawner writes it,
    ``{escaped_username}`` as it did before version 7, ``{group}`` the name of a group written likewise."""
    make_sub_path: bool = False
    """Whether a folder that is not there is made for the kernel's uid and gid; otherwise the node makes one that root alone can write
    to. It takes a container that runs as root, of the profile's own image, before each start."""
    groups: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """The groups to whose members it is mounted, by their verified names. Default: everybody, and with ``{group}`` every group."""

    @model_validator(mode="after")
    def _check(self) -> Volume:
        given = [name for name in ("claim", "nfs", "efs", "source") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"one of claim, nfs, efs and source says what the volume is, not {' and '.join(given) or 'none'}")
        if (GROUP in self.mount_path) != (GROUP in self.sub_path):
            raise ValueError("mount_path and sub_path must both have {group} in them, or neither")
        if self.make_sub_path and not self.sub_path:
            raise ValueError("make_sub_path needs a sub_path")
        return self

    def in_kubernetes(self) -> dict[str, dict[str, Any]]:
        """Return what it is, in Kubernetes' spelling."""
        if self.claim is not None:
            return {"persistentVolumeClaim": {"claimName": self.claim}}
        if self.nfs is not None:
            return {"nfs": {"server": self.nfs.server, "path": self.nfs.path}}
        if self.efs is not None:
            server = f"{self.efs.file_system}.efs.{self.efs.region}.amazonaws.com"
            return {"nfs": {"server": server, "path": self.efs.path}}
        return dict(self.source or {})

    def groups_of(self, groups: Sequence[str]) -> list[str] | None:
        """Return for which of a user's groups it is mounted; None if it is mounted once, whatever they are."""
        own = [group for group in groups if not self.groups or group in self.groups]
        return own if GROUP in self.mount_path or self.groups else None


class NewClaim(Part):
    """A claim that the gateway creates."""

    size: Quantity
    access_modes: tuple[Literal["ReadWriteOnce", "ReadWriteMany"], ...] = ("ReadWriteOnce",)
    storage_class: str | None = None
    """Default: the cluster's."""


class Home(Part):
    """The user's own volume, the one that their JupyterLab has; which claim it is, is found (the setting ``home_claims``)."""

    mount_path: MountPath = "/home/jovyan"
    sub_path: SubPath = ""
    """A folder of the volume, as with other volumes."""
    make_sub_path: bool = False
    """As with other volumes."""
    missing: Literal["error", "scratch", "create"] = "error"
    """What happens to a user who has none: they are told so, they get an empty volume for as long as the pod lives, or a claim."""
    create: NewClaim | None = None
    """The claim that ``missing: create`` makes."""
    unreachable: Literal["refuse", "leave-out"] = "refuse"
    """What happens where the volume cannot be mounted, because another machine has it: the start is refused, or an empty volume
    takes its place."""

    @model_validator(mode="after")
    def _check(self) -> Home:
        if (self.missing == "create") != (self.create is not None):
            raise ValueError("'missing: create' and 'create' need each other")
        if self.make_sub_path and not self.sub_path:
            raise ValueError("make_sub_path needs a sub_path")
        if GROUP in self.mount_path or GROUP in self.sub_path:
            raise ValueError("a home is a user's, so that {group} stands for nothing here")
        return self


class Packages(Part):
    """Packages that last: a folder of the user's that every kernel imports from, and where ``%pip install`` lands."""

    path: AbsolutePath | None = None
    """The folder, on the home volume or on one with ``{username}`` in its sub_path; below it is one for each image and version of
    Python. Default: .elastic-kernels/packages on the home volume."""
    team: tuple[AbsolutePath, ...] = ()
    """Folders of packages that a team has pinned (made with ``pip install --target``, or the site-packages of a virtual environment),
    imported from after the user's own and before the image's."""
