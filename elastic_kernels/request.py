"""What a client may ask for: the environment of its request, reduced to the few wishes that a profile opens.

Enterprise Gateway passes every ``KERNEL_*`` variable of a client on to its launcher, which writes them into the pod. Here the
list below is all there is; whatever else arrives is dropped and named in the log.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from elastic_kernels.errors import NotAllowedError, RequestError
from elastic_kernels.profiles import Profile
from elastic_kernels.spark import wishes as spark_wishes
from elastic_kernels.spark.wishes import SparkWishes
from elastic_kernels.storage import GROUP

KEEP: Final = "KERNEL_KEEP"
"""Whether a start goes on though its client has hung up: ``true``."""

# Read elsewhere: identity takes the first, Enterprise Gateway itself the second; the third and fourth are set by Enterprise
# Gateway and by clients, and mean nothing here.
_KNOWN: Final = frozenset({"KERNEL_USERNAME", "KERNEL_ID", KEEP, "KERNEL_GATEWAY", "KERNEL_PATH", "JPY_SESSION_NAME"})
MAXIMUM_LENGTH: Final = 32768
_LONGEST_PATH: Final = 1024
_LONGEST_IMAGE: Final = 512
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")


@dataclass(frozen=True)
class KernelRequest:
    """The wishes of one client for one kernel, each within what the profile allows."""

    image: str
    """The image to run: the profile's, or one that a pattern of the profile admits."""
    timeout: float
    """Seconds until the client must have an answer."""
    working_directory: str | None = None
    """The folder to start in, inside the home volume or another one of the profile's."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the profile opens to clients."""
    limit_class: str = ""
    """Which of the user's limits the kernel counts against: the profile's, or one of those that it lets clients choose."""
    notebook: str = ""
    """The notebook that it is for, as Jupyter Server names it in ``JPY_SESSION_NAME``: to tell a user's kernels apart."""
    spark: SparkWishes = field(default_factory=SparkWishes)
    """What it asks of Spark."""
    dropped: tuple[str, ...] = ()
    """Names of variables that the client sent and that had no effect; their values are nobody's business."""


def parse_request(environment: Mapping[str, str], profile: Profile) -> KernelRequest:
    """Return what ``environment``, the client's own variables, asks of ``profile``.

    Raises RequestError for a value that is malformed and NotAllowedError for an image or a setting that the profile does not admit.
    """
    wishes = dict(environment)
    opened = {name: value for name, value in wishes.items() if name not in _KNOWN and _is_open(name, profile)}
    for name, value in opened.items():
        if not isinstance(value, str) or len(value) > MAXIMUM_LENGTH or "\0" in value:
            raise RequestError(f"The environment variable {name} is not text of at most {MAXIMUM_LENGTH} characters.")
    timeout = min(launch_timeout(wishes.pop("KERNEL_LAUNCH_TIMEOUT", None)) or math.inf, profile.launch_timeout)
    image = _image(wishes.pop("KERNEL_IMAGE", None), profile) if profile.images or profile.named_images else None
    limit_class = wishes.get("KERNEL_LIMIT_CLASS")
    if limit_class in (profile.limit_class, *profile.limit_classes):
        del wishes["KERNEL_LIMIT_CLASS"]
    else:
        limit_class = profile.limit_class
    directory = _directory(wishes.pop("KERNEL_WORKING_DIR", None), profile)
    spark = _spark(wishes, profile)
    dropped = {name for name in wishes if name not in opened and name not in _KNOWN}
    return KernelRequest(
        image=image or profile.image,
        timeout=timeout,
        working_directory=directory,
        environment=opened,
        limit_class=limit_class,
        spark=spark,
        notebook=_notebook(wishes.get("JPY_SESSION_NAME")),
        dropped=tuple(sorted(dropped)),
    )


def image_matches(image: str, pattern: str) -> bool:
    """Tell whether ``pattern`` admits ``image``; a ``*`` in it stands for any text without a slash."""
    return re.fullmatch("[^/]*".join(map(re.escape, pattern.split("*"))), image) is not None


def _is_open(name: str, profile: Profile) -> bool:
    return any(name == open_ or (open_.endswith("*") and name.startswith(open_[:-1])) for open_ in profile.client_environment)


def launch_timeout(text: str | None) -> float | None:
    """Return the seconds that a ``KERNEL_LAUNCH_TIMEOUT`` stands for, None where there is none. Raises RequestError."""
    if text is None:
        return None
    try:
        seconds = float(text)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise RequestError("KERNEL_LAUNCH_TIMEOUT is not a number of seconds above zero.")
    return seconds


def _spark(wishes: dict[str, str], profile: Profile) -> SparkWishes:
    """Take what is asked of Spark out of the wishes, if the profile has it."""
    if profile.spark is None:
        return SparkWishes()
    settings, session = wishes.pop(spark_wishes.SETTINGS, None), wishes.pop(spark_wishes.SESSION, None)
    return spark_wishes.parse(settings, session, profile.spark, profile.display_name or profile.name)


def _notebook(path: object) -> str:
    return path if isinstance(path, str) and len(path) <= _LONGEST_PATH and path.isprintable() else ""


def _image(wanted: object, profile: Profile) -> str | None:
    if not wanted or wanted == profile.image:
        return None
    named = profile.named_images
    if not isinstance(wanted, str) or not (wanted in named or (len(wanted) <= _LONGEST_IMAGE and _IMAGE.fullmatch(wanted))):
        raise RequestError("KERNEL_IMAGE is not the name of an image, such as registry.example.com/team/image:1.")
    image = named.get(wanted, wanted)
    if image not in named.values() and not any(image_matches(image, pattern) for pattern in profile.images):
        choices = [*(repr(name) for name in named), *(f"one that matches {pattern}" for pattern in profile.images)]
        raise NotAllowedError(
            f"The image {image!r} is not one that {profile.display_name or profile.name!r} allows; ask for {' or '.join(choices)}."
        )
    return image


def _directory(directory: str | None, profile: Profile) -> str | None:
    """Honour a folder only inside what is mounted: elsewhere the client's paths mean nothing in the pod."""
    if not directory or not directory.startswith("/") or ".." in directory.split("/") or not directory.isprintable():
        return None
    path = PurePosixPath(directory)
    mounts = [volume.mount_path for volume in profile.volumes] + ([profile.home.mount_path] if profile.home else [])
    # where a folder for each group is mounted, which of them are is not decided here
    return str(path) if any(path.is_relative_to(mount.partition(f"/{GROUP}")[0]) for mount in mounts) else None
