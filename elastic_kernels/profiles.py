"""The profile: everything an administrator says about one kind of kernel, validated.

A profile is the ``metadata.process_proxy.config`` of a kernel.json, together with the kernelspec's own ``argv``,
``display_name``, ``language`` and ``env``. Fields are written in snake case; what has a Kubernetes spelling and no shorter one
(affinity, volumes, the pod patch) keeps it. A profile that passes here builds a pod that the API server accepts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from elastic_kernels import quantities
from elastic_kernels.errors import ProfileError
from elastic_kernels.fields import (
    AbsolutePath,
    AffinityKind,
    Amounts,
    DnsLabel,
    DnsName,
    EnvironmentName,
    EnvironmentPattern,
    Labels,
    OwnAnnotations,
    OwnLabels,
    Part,
    Toleration,
    matching,
)
from elastic_kernels.spark.part import LEAST_DRIVER, Spark
from elastic_kernels.storage import Home, Packages, Volume
from elastic_kernels.warm import part as warm_part
from elastic_kernels.warm.part import Warm

PROXY_CLASS: Final = "elastic_kernels.proxy.ElasticKernelProxy"
_PACKAGES: Final = ".elastic-kernels/packages"


def _gpu(value: Any) -> Any:
    return {"count": value} if isinstance(value, int) else value


class Gpu(Part):
    """Graphics processors, as an extended resource of the nodes."""

    count: Annotated[int, Field(ge=0)]
    """How many; a plain number in place of this mapping means the same."""
    resource: Annotated[str, matching(re.compile(r"[a-z0-9.-]+/[A-Za-z0-9._-]+"), "an extended resource such as nvidia.com/gpu")] = (
        "nvidia.com/gpu"
    )
    """The extended resource that the device plugin offers."""
    node_selector: Labels = {}
    """Labels of the nodes that have them."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of those nodes."""


class Security(Part):
    """Who the kernel runs as, and what it may not do."""

    uid: Annotated[int, Field(ge=1, lt=2**31)] = 1000
    """The user id; 0 is refused."""
    gid: Annotated[int, Field(ge=0, lt=2**31)] = 100
    """The group id, also of mounted files where the volume supports it."""
    supplemental_groups: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = ()
    read_only_root: bool = False
    """Whether the container's own file system is read-only; /tmp and the home directory are then empty volumes."""


class Profile(Part):
    """One kind of kernel. ``name`` is the kernelspec's name; all other fields are an administrator's words."""

    name: Annotated[str, matching(re.compile(r"[A-Za-z0-9._-]{1,63}"), "the name of a kernelspec (letters, digits, '.', '_', '-')")]
    display_name: str = ""
    """What the Launcher shows. Default: the name."""
    description: str = ""
    language: str = "python"
    command: tuple[str, ...] = ("python", "{launcher}", "{connection_file}")
    """The kernel's argv in the pod. ``{connection_file}`` stands for a file in the pod, ``{launchers}`` for the folder of our
    launchers and ``{launcher}`` for the Python one among them; a command with ``{response_address}`` is a launcher of Enterprise
    Gateway, whose call back is waited for."""
    image: Annotated[str, Field(min_length=1)]
    images: tuple[str, ...] = ()
    """Patterns (``*`` stands for anything but a slash) of images that a user may ask for instead. Default: none."""
    named_images: dict[Annotated[str, Field(min_length=1, max_length=60)], Annotated[str, Field(min_length=1)]] = {}
    """Images that a user may choose instead, by what they are called: each is a card of its own in the Launcher."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: tuple[DnsName, ...] = ()
    cpu: Amounts | None = None
    """``500m``, ``2``: one quantity is both request and limit."""
    memory: Amounts | None = None
    """``512Mi``, ``4Gi``: one quantity is both request and limit."""
    gpu: Annotated[Gpu, BeforeValidator(_gpu, json_schema_input_type=int | Gpu)] | None = None
    spot: bool = False
    """Whether the kernel runs on spot machines: adds their toleration and requires their label (both are settings)."""
    node_selector: Labels = {}
    tolerations: tuple[Toleration, ...] = ()
    """Taints as ``key=value:effect``, or tolerations in Kubernetes' spelling."""
    affinity: dict[AffinityKind, dict[str, Any]] = {}
    """In Kubernetes' spelling."""
    priority_class: DnsName | None = None
    environment: dict[EnvironmentName, str] = {}
    client_environment: tuple[EnvironmentPattern, ...] = ()
    """Names, or starts of names followed by ``*``, of variables that a client may set. Default: none."""
    home: Annotated[Home, BeforeValidator(lambda value: {} if value is True else value)] | None = None
    """The user's home volume; ``true`` takes every default. Default: none."""
    volumes: tuple[Volume, ...] = ()
    packages: Annotated[Packages, BeforeValidator(lambda value: {} if value is True else value)] | None = None
    """Where the user's packages are kept; ``true`` keeps them on the home volume. Default: they go with the kernel."""
    working_directory: AbsolutePath | None = None
    """Where the kernel starts. Default: the image's own working directory."""
    security: Security = Security()
    service_account: DnsName | None = None
    """The pod's service account; its token is mounted only if one is named."""
    spark: Spark | None = None
    """Spark, with its driver in the kernel's pod. Default: none."""
    warm: Annotated[Warm, BeforeValidator(warm_part.as_part, json_schema_input_type=int | Warm)] | None = None
    """What is kept ready for the next starts; a plain number is so many waiting kernels. Default: nothing."""
    limit_class: DnsLabel = "interactive"
    """Which of a user's limits its kernels count against."""
    limit_classes: tuple[DnsLabel, ...] = ()
    """Other limits of the user's that a client may choose instead, in ``KERNEL_LIMIT_CLASS``: every client, at will, so that each
    needs a number of its own in the setting ``max_kernels_per_class``. Default: none."""
    idle_time: Annotated[int, Field(ge=0)] = 0
    """Seconds without activity after which the kernel may be culled; 0 leaves it to the gateway's setting."""
    cull_busy: bool = False
    """Whether a kernel is culled while it executes something, too."""
    cull_connected: bool = False
    """Whether it is culled while somebody is connected to it, too."""
    launch_timeout: Annotated[float, Field(gt=0, le=86400)] = 300
    """Seconds within which a kernel must be ready; a client that says that it waits less gets its answer then."""
    grace_period: Annotated[int, Field(ge=1, le=3600)] = 10
    """Seconds that a kernel has to end by itself before it is killed."""
    restart_after_loss: bool = False
    """Whether a kernel that somebody is connected to is started again when its machine was lost, reclaimed or needed for something
    else. It starts empty. Default: it stays dead, says why, and waits for its user."""
    on_demand_after_loss: bool = False
    """Whether such a start of a kernel on spot machines does without them: where one was taken back, there may be no other."""
    labels: OwnLabels = {}
    annotations: OwnAnnotations = {}
    users: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """The users to whom the kernel is open, and with ``groups`` everybody of those groups. Default: everybody."""
    groups: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """The groups (of JupyterHub, or of the proxy that authenticates) to whom the kernel is open."""
    authorized_users: str | None = None
    """Comma-separated, as Enterprise Gateway reads it."""
    unauthorized_users: str | None = None
    pod: dict[str, Any] = {}
    """Merged last into the pod: mappings by key, lists whose items have names by name, others replaced; null removes."""

    @property
    def calls_back(self) -> bool:
        """Whether the command is a launcher of Enterprise Gateway, which reports its connection to the gateway."""
        return any("{response_address}" in argument for argument in self.command)

    def admits(self, user: str, groups: Collection[str]) -> bool:
        """Tell whether the kernel is open to a user of these groups."""
        return not (self.users or self.groups) or user in self.users or not set(self.groups).isdisjoint(groups)

    @model_validator(mode="after")
    def _check_name(self) -> Profile:
        if self.name == "python":
            raise ValueError("Jupyter takes the name 'python' for its own kernel on the gateway's machine; choose another")
        return self

    @model_validator(mode="after")
    def _check_mounts(self) -> Profile:
        paths = [volume.mount_path for volume in self.volumes] + ([self.home.mount_path] if self.home else [])
        for path in paths:
            if paths.count(path) > 1:
                raise ValueError(f"two volumes have the mount path {path!r}")
        names_ = [volume.name for volume in self.volumes]
        if "home" in names_ and self.home:
            raise ValueError("the volume's name 'home' is taken by the home volume")
        return self

    @model_validator(mode="after")
    def _check_packages(self) -> Profile:
        if self.packages is None:
            return self
        if not any("{launcher" in argument for argument in self.command):
            raise ValueError("packages are kept by our launchers: the command needs {launcher}, or a file in {launchers}")
        folder = self.package_folder
        if folder is None:
            raise ValueError("packages are kept on the home volume: give the profile one, or give packages.path")
        own = [volume.mount_path for volume in self.volumes if "username}" in volume.sub_path and not volume.read_only]
        if not any(PurePosixPath(folder).is_relative_to(path) for path in [*own, *([self.home.mount_path] if self.home else [])]):
            raise ValueError(f"packages.path: {folder!r} is not on a volume of the user's own, where nobody else can put packages")
        return self

    @property
    def package_folder(self) -> str | None:
        """Where the user's packages are kept, or None."""
        if self.packages is None:
            return None
        return self.packages.path or (f"{self.home.mount_path}/{_PACKAGES}" if self.home else None)

    @model_validator(mode="after")
    def _check_spark(self) -> Profile:
        if self.spark is None:
            return self
        if not any("{launchers}" in argument for argument in self.command):
            raise ValueError("Spark is started by our launchers: the command needs one of them, such as {launchers}/spark.py")
        if self.service_account is not None:
            raise ValueError("a pod has one service account: name it in spark.service_account alone")
        if self.memory and self.memory.limit and quantities.parse(self.memory.limit) < LEAST_DRIVER:
            raise ValueError(f"memory: {self.memory.limit!r} is too little for a driver of Spark, which needs 1Gi")
        return self

    @model_validator(mode="after")
    def _check_warm(self) -> Profile:
        warm_part.check(self)
        return self

    @model_validator(mode="after")
    def _check_command(self) -> Profile:
        if not self.command:
            raise ValueError("the command is empty")
        if not self.calls_back and not any("{connection_file}" in argument for argument in self.command):
            raise ValueError("the command names neither {connection_file} nor {response_address}, so that nobody could reach the kernel")
        return self


def parse_profile(data: Mapping[str, Any], path: str) -> Profile:
    """Return the profile that ``data`` holds. ``path`` names it in errors (``profiles.gpu``).

    Raises ProfileError with one clause for each mistake: ``profiles.gpu.memory: '16GG' is not a quantity``.
    """
    try:
        return Profile.model_validate(dict(data))
    except ValidationError as error:
        raise ProfileError(*(_explain(path, item) for item in error.errors(include_url=False))) from None


def from_kernelspec(name: str, kernelspec: Mapping[str, Any]) -> Profile:
    """Return the profile of a kernelspec, given as the content of its kernel.json. Raises ProfileError."""
    path = f"kernelspec {name}: metadata.process_proxy.config"
    process_proxy = kernelspec.get("metadata", {}).get("process_proxy", {})
    config = process_proxy.get("config", {})
    if not isinstance(config, Mapping):
        raise ProfileError(f"{path}: {config!r} is not a mapping")
    own = sorted(set(config) & {"name", "display_name", "language", "command", "environment"})
    if own:
        raise ProfileError(f"{path}.{own[0]}: belongs to the kernelspec itself (argv, display_name, language, env), not to its config")
    data = dict(config)
    if "image_name" in data:  # as Enterprise Gateway's own kernelspecs have it
        data.setdefault("image", data.pop("image_name"))
    return parse_profile(
        data
        | {
            "name": name,
            "display_name": kernelspec.get("display_name") or name,
            "language": kernelspec.get("language") or "python",
            "command": kernelspec.get("argv", ()),
            "environment": kernelspec.get("env") or {},
        },
        path,
    )


def to_kernelspec(profile: Profile) -> dict[str, Any]:
    """Return the content of the kernel.json of a profile; ``from_kernelspec`` is its inverse."""
    config = profile.model_dump(mode="json", exclude_defaults=True, exclude={"name", "display_name", "language", "command", "environment"})
    return {
        "argv": list(profile.command),
        "display_name": profile.display_name or profile.name,
        "language": profile.language,
        # signals do not cross machines; message is the protocol's own way, and the launchers of JEG have a third
        "interrupt_mode": "signal" if profile.calls_back else "message",
        "env": dict(profile.environment),
        "metadata": {"process_proxy": {"class_name": PROXY_CLASS, "config": config}},
    }


def _explain(path: str, error: Mapping[str, Any]) -> str:
    location = [str(part) for part in error["loc"] if part != "[key]"]
    where = ".".join([path, *location])
    kind, value = error["type"], error["input"]
    if kind == "value_error":
        return f"{where}: {error['ctx']['error']}"
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(location[-1], Profile.model_fields, n=1) if len(location) == 1 else []
        return f"{where}: is not a field" + (f"; did you mean {close[0]!r}?" if close else "")
    if kind == "missing":
        return f"{where}: is missing"
    message = error["msg"].replace("Input should be", "must be").replace("Input should have", "must have")
    return (
        f"{where}: {value!r} {message[0].lower()}{message[1:]}" if len(repr(value)) < 80 else f"{where}: {message[0].lower()}{message[1:]}"
    )
