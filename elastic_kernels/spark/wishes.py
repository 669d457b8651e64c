"""What a client may ask of Spark: ``KERNEL_SPARK_SETTINGS`` and ``KERNEL_SPARK_SESSION``, within what the profile allows.

Settings are words such as ``spark.sql.shuffle.partitions=8 spark.jars=/shared/a.jar,/shared/b.jar``, quoted as in a shell, or one
JSON mapping. This keeps a profile's promises; it is no barrier, because a kernel's own code may start Spark as it likes. What
bounds that are the rights of the service account, and quotas.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, cast, get_args

from elastic_kernels.errors import NotAllowedError, RequestError
from elastic_kernels.spark.part import LEAST_HEAP, Executors, Session, Spark

SETTINGS: Final = "KERNEL_SPARK_SETTINGS"
SESSION: Final = "KERNEL_SPARK_SESSION"
_LONGEST: Final = 32768
_NAME: Final = re.compile(r"spark\.[A-Za-z0-9_.-]+")
_SIZE: Final = re.compile(r"([0-9]{1,9})([kmgt]?)b?", re.IGNORECASE)
_MIB: Final = {"k": 1 / 1024, "": 1, "m": 1, "g": 1024, "t": 1024**2}


@dataclass(frozen=True)
class SparkWishes:
    """The wishes of one client, checked."""

    session: Session | None = None
    """When there is a session, or None for what the profile says."""
    settings: Mapping[str, str] = field(default_factory=dict)


def parse(settings: object, session: object, spark: Spark, title: str) -> SparkWishes:
    """Return what the values of the two variables (None for one that is absent) ask for; ``title`` names the profile in errors.

    Raises RequestError for what is malformed and NotAllowedError for what the profile does not allow.
    """
    if session is not None and session not in get_args(Session):
        raise RequestError(f"{SESSION} is not one of {', '.join(get_args(Session))}.")
    parsed = _parse(settings)
    for name, value in parsed.items():
        if not spark.allows(name):
            raise NotAllowedError(
                f"The Spark setting {name!r} is not one that {title!r} lets you make; those are: {', '.join(spark.allowed_settings)}."
            )
        if name in _BOUNDS:
            _BOUNDS[name](value, spark.executors, title)
    return SparkWishes(cast("Session | None", session), parsed)


def _parse(text: object) -> dict[str, str]:
    if text is None or text == "":
        return {}
    malformed = RequestError(f"{SETTINGS} is not a list of settings: write spark.a=b spark.c=d, or a JSON mapping of texts.")
    if not isinstance(text, str) or len(text) > _LONGEST or "\0" in text:
        raise malformed
    try:
        pairs = json.loads(text) if text.lstrip().startswith("{") else _words(text)
    except ValueError:
        raise malformed from None
    if not all(isinstance(value, str) and _NAME.fullmatch(name) and value.isprintable() for name, value in pairs.items()):
        raise malformed
    return dict(pairs)


def _words(text: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in shlex.split(text)]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError
    return {name: value for name, _, value in pairs}


def _count(setting: str, most: Callable[[Executors], int], least: int, what: str) -> Callable[[str, Executors, str], None]:
    def check(value: str, executors: Executors, title: str) -> None:
        if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) >= least):
            raise RequestError(f"The Spark setting {setting!r} is not a number of at least {least}: {value!r}.")
        if int(value) > most(executors):
            raise NotAllowedError(f"The Spark setting {setting!r} asks for {value}, and {title!r} has {most(executors)} {what}.")

    return check


def _memory(value: str, executors: Executors, title: str) -> None:
    match = _SIZE.fullmatch(value)
    size = int(match[1]) * _MIB[match[2].lower()] if match else 0
    if size < LEAST_HEAP:
        raise RequestError(f"The Spark setting 'spark.executor.memory' is not a size of at least {LEAST_HEAP}m: {value!r}.")
    heap = executors.memory_mib - executors.overhead_mib
    if size > heap:
        raise NotAllowedError(
            f"The Spark setting 'spark.executor.memory' asks for {value}, and an executor of {title!r} has {heap}m: "
            f"its {executors.memory_mib}m, less {executors.overhead_mib}m for what is no heap."
        )


_BOUNDS: Final[Mapping[str, Callable[[str, Executors, str], None]]] = {
    "spark.executor.memory": _memory,
    "spark.executor.cores": _count("spark.executor.cores", lambda executors: executors.cores, 1, "cores for each executor"),
    **{
        setting: _count(setting, lambda executors: executors.max, least, "executors at most")
        for setting, least in {
            "spark.dynamicAllocation.maxExecutors": 1,
            "spark.dynamicAllocation.minExecutors": 0,
            "spark.dynamicAllocation.initialExecutors": 0,
            "spark.executor.instances": 0,
        }.items()
    },
}
