"""The profile: everything an administrator says about one kind of kernel, validated.

A profile is the ``metadata.process_proxy.config`` of a kernel.json, together with the kernelspec's own ``argv``,
``display_name``, ``language`` and ``env``. Fields are written in snake case; what has a Kubernetes spelling and no shorter one
(affinity, volumes, the pod patch) keeps it. A profile that passes here builds a pod that the API server accepts.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from elastic_kernels import names, quantities, taints
from elastic_kernels.errors import ProfileError

# what images have their programs and libraries in
_NOT_MOUNTED: Final = (
    *("/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/opt", "/proc", "/sbin", "/sys"),
    *("/usr", "/usr/bin", "/usr/lib", "/usr/local", "/usr/local/bin", "/usr/local/lib"),
)
PROXY_CLASS: Final = "elastic_kernels.proxy.ElasticKernelProxy"

_ENVIRONMENT_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ENVIRONMENT_PATTERN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?")
_DNS_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_DNS_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def _quantity(value: Any) -> str:
    text = str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else repr(value)
    try:
        amount = quantities.parse(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a quantity (write 500m or 2 for CPUs, 512Mi or 4Gi for bytes)") from None
    if amount <= 0:
        raise ValueError(f"{text!r} is not a quantity above zero")
    return text


def _request_and_limit(value: Any) -> Any:
    if isinstance(value, Mapping | BaseModel):
        return value
    amount = _quantity(value)
    return {"request": amount, "limit": amount}


def _gpu(value: Any) -> Any:
    return {"count": value} if isinstance(value, int) else value


def _toleration(value: Any) -> Any:
    if isinstance(value, str):
        return taints.toleration(value)
    if not isinstance(value, Mapping):
        raise ValueError(f"{value!r} is not a toleration: write a taint as key=value:effect, or Kubernetes' own mapping")
    unknown = set(value) - {"key", "operator", "value", "effect", "tolerationSeconds"}
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]!r} is not a field of a toleration")
    if value.get("operator", "Equal") not in ("Equal", "Exists"):
        raise ValueError(f"{value['operator']!r} is not an operator of a toleration: Equal or Exists")
    if value.get("effect") not in (None, "", *taints.EFFECTS):
        raise ValueError(f"{value['effect']!r} is not an effect of a taint: {', '.join(taints.EFFECTS)}")
    if value.get("key") and not taints.is_qualified_name(value["key"]):
        raise ValueError(f"{value['key']!r} is not the key of a taint")
    if not value.get("key") and value.get("operator") != "Exists":
        raise ValueError("a toleration without a key needs the operator Exists")
    return dict(value)


def _matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(f"{value!r} is not {what}")
        return value

    return AfterValidator(check)


def _label_key(value: str) -> str:
    if not taints.is_qualified_name(value):
        raise ValueError(f"{value!r} is not the key of a label or annotation")
    return value


def _label_value(value: str) -> str:
    if not taints.is_label_value(value):
        raise ValueError(f"{value!r} is not the value of a label")
    return value


def _not_ours(value: str) -> str:
    if value.startswith(names.PREFIX) or value in (names.MANAGED_BY, names.GATEWAY_KERNEL_ID, *names.GATEWAY_LABELS):
        raise ValueError(f"{value!r} is set by the gateway itself")
    return value


def _absolute(value: str) -> str:
    if not value.startswith("/") or ".." in value.split("/") or ":" in value:
        raise ValueError(f"{value!r} is not an absolute path")
    return value.rstrip("/") or "/"


def _sub_path(value: str) -> str:
    if value.startswith("/") or ".." in value.split("/"):
        raise ValueError(f"{value!r} is not a folder within a volume")
    unknown = set(re.findall(r"\{[^}]*\}", value)) - {"{username}", "{escaped_username}"}
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]} is not known here: {{username}} and {{escaped_username}} are")
    return value


SubPath = Annotated[str, AfterValidator(_sub_path)]
Quantity = Annotated[str, BeforeValidator(_quantity, json_schema_input_type=str | int | float)]
Toleration = Annotated[dict[str, Any], BeforeValidator(_toleration, json_schema_input_type=str | dict[str, Any])]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
DnsName = Annotated[str, _matching(_DNS_NAME, "a name of Kubernetes (lower-case letters, digits, hyphens, dots)")]
DnsLabel = Annotated[str, _matching(_DNS_LABEL, "a name of Kubernetes (lower-case letters, digits and hyphens, at most 63)")]
EnvironmentName = Annotated[str, _matching(_ENVIRONMENT_NAME, "the name of an environment variable")]
EnvironmentPattern = Annotated[str, _matching(_ENVIRONMENT_PATTERN, "the name of an environment variable, or the start of one and *")]
AffinityKind = Annotated[
    str, _matching(re.compile("nodeAffinity|podAffinity|podAntiAffinity"), "one of nodeAffinity, podAffinity, podAntiAffinity")
]
Labels = dict[Annotated[str, AfterValidator(_label_key)], Annotated[str, AfterValidator(_label_value)]]
OwnLabels = dict[Annotated[str, AfterValidator(_label_key), AfterValidator(_not_ours)], Annotated[str, AfterValidator(_label_value)]]
OwnAnnotations = dict[Annotated[str, AfterValidator(_label_key), AfterValidator(_not_ours)], str]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, coerce_numbers_to_str=True)


class Resource(_Part):
    """How much of CPU or memory: one quantity for both, or request and limit apart."""

    request: Quantity | None = None
    """What the scheduler reserves."""
    limit: Quantity | None = None
    """What the container may not exceed."""

    @model_validator(mode="after")
    def _request_within_limit(self) -> Resource:
        if self.request and self.limit and quantities.parse(self.request) > quantities.parse(self.limit):
            raise ValueError(f"the request {self.request!r} is above the limit {self.limit!r}")
        return self


class Gpu(_Part):
    """Graphics processors, as an extended resource of the nodes."""

    count: Annotated[int, Field(ge=0)]
    """How many; a plain number in place of this mapping means the same."""
    resource: Annotated[str, _matching(re.compile(r"[a-z0-9.-]+/[A-Za-z0-9._-]+"), "an extended resource such as nvidia.com/gpu")] = (
        "nvidia.com/gpu"
    )
    """The extended resource that the device plugin offers."""
    node_selector: Labels = {}
    """Labels of the nodes that have them."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of those nodes."""


Amounts = Annotated[Resource, BeforeValidator(_request_and_limit, json_schema_input_type=str | int | float | Resource)]


class Volume(_Part):
    """A volume, at one path, the same for every kernel of the profile."""

    name: DnsLabel
    """Its name in the pod."""
    mount_path: AbsolutePath
    """Where the kernel sees it."""
    source: Annotated[dict[str, dict[str, Any]], Field(min_length=1, max_length=1)]
    """What it is, in Kubernetes' spelling: ``{persistentVolumeClaim: {claimName: shared}}``, ``{emptyDir: {}}``, …"""
    read_only: bool = False
    sub_path: SubPath = ""
    """A folder of the volume in place of the whole. ``{username}`` in it is the user's name as JupyterHub's kubespawner writes it,
    ``{escaped_username}`` as it did before version 7."""


class NewClaim(_Part):
    """A claim that the gateway creates."""

    size: Quantity
    access_modes: tuple[Literal["ReadWriteOnce", "ReadWriteMany"], ...] = ("ReadWriteOnce",)
    storage_class: str | None = None
    """Default: the cluster's."""


class Home(_Part):
    """The user's own volume, the one that their JupyterLab has; which claim it is, is found (the setting ``home_claims``)."""

    mount_path: AbsolutePath = "/home/jovyan"
    sub_path: SubPath = ""
    """A folder of the volume, as with other volumes."""
    missing: Literal["error", "scratch", "create"] = "error"
    """What happens to a user who has none: they are told so, they get an empty volume for as long as the pod lives, or a claim."""
    create: NewClaim | None = None
    """The claim that ``missing: create`` makes."""
    unreachable: Literal["refuse", "leave-out"] = "refuse"
    """What happens where the volume cannot be mounted, because another machine has it: the start is refused, or an empty volume
    takes its place."""

    @model_validator(mode="after")
    def _check_create(self) -> Home:
        if (self.missing == "create") != (self.create is not None):
            raise ValueError("'missing: create' and 'create' need each other")
        return self


class Security(_Part):
    """Who the kernel runs as, and what it may not do."""

    uid: Annotated[int, Field(ge=1, lt=2**31)] = 1000
    """The user id; 0 is refused."""
    gid: Annotated[int, Field(ge=0, lt=2**31)] = 100
    """The group id, also of mounted files where the volume supports it."""
    supplemental_groups: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = ()
    read_only_root: bool = False
    """Whether the container's own file system is read-only; /tmp and the home directory are then empty volumes."""


class Profile(_Part):
    """One kind of kernel. ``name`` is the kernelspec's name; all other fields are an administrator's words."""

    name: Annotated[str, _matching(re.compile(r"[A-Za-z0-9._-]{1,63}"), "the name of a kernelspec (letters, digits, '.', '_', '-')")]
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
    working_directory: AbsolutePath | None = None
    """Where the kernel starts. Default: the image's own working directory."""
    security: Security = Security()
    service_account: DnsName | None = None
    """The pod's service account; its token is mounted only if one is named."""
    limit_class: DnsLabel = "interactive"
    """Which of a user's limits its kernels count against."""
    idle_time: Annotated[int, Field(ge=0)] = 0
    """Seconds without activity after which the kernel may be culled; 0 leaves it to the gateway's setting."""
    launch_timeout: Annotated[float, Field(gt=0, le=86400)] = 300
    """Seconds within which a kernel must be ready; a client that says that it waits less gets its answer then."""
    grace_period: Annotated[int, Field(ge=1, le=3600)] = 10
    """Seconds that a kernel has to end by itself before it is killed."""
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
            if path in _NOT_MOUNTED:
                raise ValueError(f"a volume at {path!r} would cover what the image needs to run")
        for path in paths:
            if paths.count(path) > 1:
                raise ValueError(f"two volumes have the mount path {path!r}")
        names_ = [volume.name for volume in self.volumes]
        if "home" in names_ and self.home:
            raise ValueError("the volume's name 'home' is taken by the home volume")
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
