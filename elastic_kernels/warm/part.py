"""The part ``warm`` of a profile: how much is kept ready for starts to come, and when."""

from __future__ import annotations

import zoneinfo
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from elastic_kernels.fields import DnsName, Part
from elastic_kernels.storage import GROUP
from elastic_kernels.warm import schedule

if TYPE_CHECKING:
    from elastic_kernels.profiles import Profile

MOST: Final = 1000
READ_ONCE: Final = (
    *("PYTHON", "LD_", "LC_", "LANG", "HOME", "MALLOC_", "GLIBC_", "OPENSSL_", "ZMQ_"),
    *("PYDEVD_", "DEBUGPY_", "NO_COLOR", "FORCE_COLOR"),
)
"""How the names of variables begin that an interpreter, or what a kernel imports, reads once, when it begins."""


def _window(value: str) -> str:
    schedule.parse(value)
    return value


def _zone(value: str) -> str:
    try:
        zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{value!r} is not a time zone, such as Europe/Berlin") from None
    return value


class Warm(Part):
    """What is kept ready for the profile's next starts, for nobody in particular."""

    kernels: Annotated[int, Field(ge=0, le=MOST)] = 0
    """How many kernels wait, each in a pod with the profile's resources, for somebody to start one: such a start takes a fraction of
    a second. For Python's kernels, and where the pod is the same for every user."""
    capacity: Annotated[int, Field(ge=0, le=MOST)] = 0
    """For how many kernels there is room on machines that run, and have the image: pods that do nothing hold it, and give way."""
    capacity_priority_class: DnsName = "elastic-kernels-capacity"
    """The priority class of those pods: one of the cluster's, below that of all else."""
    when: Annotated[
        tuple[Annotated[str, AfterValidator(_window)], ...],
        BeforeValidator(lambda value: (value,) if isinstance(value, str) else value, json_schema_input_type=str | tuple[str, ...]),
    ] = ()
    """When: ``Mon-Fri 08:00-19:00``, or several such times. Otherwise nothing is kept. Default: always."""
    time_zone: Annotated[str, AfterValidator(_zone)] = "UTC"
    """Whose clock that is: Europe/Berlin."""

    @model_validator(mode="after")
    def _check(self) -> Warm:
        if self.time_zone != "UTC" and not self.when:
            raise ValueError("time_zone says whose clock 'when' goes by, which is missing")
        return self

    def is_wanted(self, now: datetime) -> bool:
        """Tell whether anything is kept at ``now``, an aware time."""
        windows = [schedule.parse(window) for window in self.when]
        return not windows or schedule.is_open(windows, now.astimezone(zoneinfo.ZoneInfo(self.time_zone)))


def as_part(value: Any) -> Any:
    """Return what a plain number in place of the mapping means: so many kernels."""
    return {"kernels": value} if isinstance(value, int) and not isinstance(value, bool) else value


def check(profile: Profile) -> None:
    """Raise ValueError if kernels are to be kept warm that cannot be: whose pods are one user's from their beginning, or not Python's."""
    if profile.warm is None or not profile.warm.kernels:
        return
    own = [
        *(["its home volume"] if profile.home is not None else []),
        *(
            f"the volume {volume.name!r}"
            for volume in profile.volumes
            if volume.groups or "username}" in volume.sub_path or GROUP in volume.sub_path
        ),
    ]
    if own:
        raise ValueError(
            f"warm.kernels: a pod that waits is the same for everybody, and {own[0]} is not; warm.capacity keeps machines ready for it"
        )
    for name, value in profile.environment.items():
        if name.startswith(READ_ONCE) and "$(KERNEL_" in value:
            raise ValueError(f"warm.kernels: a pod that waits is the same for everybody, and its variable {name} is not")
    if profile.spark is not None:
        raise ValueError("warm.kernels: kernels with Spark are not kept warm; warm.capacity keeps machines ready for them")
    if not any("{launcher}" in argument for argument in profile.command):
        raise ValueError(
            "warm.kernels: our launcher of Python waits, which the command does not name ({launcher}); warm.capacity keeps machines "
            "ready for others"
        )
