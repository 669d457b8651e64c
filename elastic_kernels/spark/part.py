"""The part ``spark`` of a profile: when there is a session, what its executors are, and which settings are whose."""

from __future__ import annotations

import fnmatch
import re
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, model_validator

from elastic_kernels import quantities
from elastic_kernels.fields import Amounts, DnsName, Labels, Part, Quantity, Resource, Toleration, matching

MEBIBYTE: Final = 2**20
# Spark wants 450 MiB of heap, of which the JVM's smaller collectors keep a thirtieth to themselves.
LEAST_HEAP: Final = 480
LEAST_DRIVER: Final = 2**30
# What is no heap of an executor: the JVM's own, and Python workers.
_LEAST_OVERHEAD: Final = 256
_OVERHEAD: Final = 4

Session = Literal["lazy", "eager", "none"]

ALLOWED: Final = (
    "spark.app.name",
    "spark.archives",
    "spark.default.parallelism",
    "spark.driver.maxResultSize",
    "spark.dynamicAllocation.executorIdleTimeout",
    "spark.dynamicAllocation.maxExecutors",
    "spark.dynamicAllocation.minExecutors",
    "spark.executor.cores",
    "spark.executor.memory",
    "spark.files",
    "spark.hadoop.*",
    "spark.jars",
    "spark.jars.packages",
    "spark.jars.repositories",
    "spark.kryo.*",
    "spark.pyspark.python",
    "spark.rdd.compress",
    "spark.serializer",
    "spark.speculation",
    "spark.sql.*",
    "spark.submit.pyFiles",
    "spark.task.*",
)


def _setting(value: Any) -> Any:
    """Spark writes truth in lower case, YAML has its own ways."""
    return str(value).lower() if isinstance(value, bool) else value


SettingName = Annotated[str, matching(re.compile(r"spark\.[A-Za-z0-9_.-]*[A-Za-z0-9_-]"), "the name of a Spark setting (spark.…)")]
SettingPattern = Annotated[
    str, matching(re.compile(r"spark\.([A-Za-z0-9_.-]*[A-Za-z0-9_-]|[A-Za-z0-9_.-]*\*)"), "a Spark setting, or the start of one and *")
]
SettingValue = Annotated[str, BeforeValidator(_setting, json_schema_input_type=str | bool | int | float)]


class Executors(Part):
    """The pods that do the work: made when there is some, gone a minute after it."""

    max: Annotated[int, Field(ge=1, le=1000)]
    """How many there are at most."""
    cpu: Amounts = Resource(request="1", limit="1")
    """Of each. An executor runs as many tasks at once as the limit (or else the request) has whole CPUs, and at least one."""
    memory: Quantity = "2Gi"
    """Of each, everything included: a quarter, and at least 256Mi, is for what is no heap, Python workers among it."""
    image: Annotated[str, Field(min_length=1)] | None = None
    """An image whose entry point knows the argument ``executor``, as Spark's own do. Default: the kernel's image."""
    spot: bool = False
    """Whether they run on spot machines; the driver does only if the profile itself says so."""
    node_selector: Labels = {}
    tolerations: tuple[Toleration, ...] = ()
    """Taints as ``key=value:effect``, or tolerations in Kubernetes' spelling."""

    @property
    def memory_mib(self) -> int:
        """All the memory of one, in MiB."""
        return int(quantities.parse(self.memory)) // MEBIBYTE

    @property
    def overhead_mib(self) -> int:
        """What of it is no heap."""
        return max(_LEAST_OVERHEAD, self.memory_mib // _OVERHEAD)

    @property
    def cores(self) -> int:
        """How many tasks one runs at once."""
        cpu = self.cpu.limit or self.cpu.request
        return max(1, int(quantities.parse(cpu))) if cpu else 1

    @model_validator(mode="after")
    def _check_memory(self) -> Executors:
        if self.memory_mib < LEAST_HEAP + _LEAST_OVERHEAD:
            raise ValueError(f"memory: {self.memory!r} is too little for an executor, which needs {LEAST_HEAP + _LEAST_OVERHEAD}Mi")
        return self


class Spark(Part):
    """Spark for one kind of kernel."""

    session: Session = "lazy"
    """When the names ``spark`` and ``sc`` get their session: at their first use, at the kernel's start, or never: then a program
    makes one itself, and it has the same settings. A client may choose otherwise."""
    executors: Executors
    settings: dict[SettingName, SettingValue] = {}
    """Settings of Spark's own, over those that the gateway makes of the rest; ``$(NAME)`` is a variable of the pod."""
    allowed_settings: tuple[SettingPattern, ...] = ALLOWED
    """Settings, or starts of settings followed by ``*``, that a client may make; executors never get larger or more than here."""
    service_account: DnsName = "spark-driver"
    """The service account of the kernel's pod, which may create pods; see docker/kernel-spark/driver.yaml."""

    def allows(self, setting: str) -> bool:
        """Tell whether a client may make a setting."""
        return any(fnmatch.fnmatchcase(setting, pattern) for pattern in self.allowed_settings)
