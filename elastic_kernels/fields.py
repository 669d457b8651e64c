"""What the values in a profile are: each a type that checks itself, and says what is wrong in one clause.

Quantities, names and labels follow Kubernetes (its documentation, "Object Names and IDs", "Labels and Selectors", "Resource units").
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator

from elastic_kernels import names, quantities, taints

_ENVIRONMENT_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ENVIRONMENT_PATTERN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\*?")
_DNS_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_DNS_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def quantity(value: Any) -> str:
    """Return a quantity above zero as text. Raises ValueError."""
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
    amount = quantity(value)
    return {"request": amount, "limit": amount}


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


def matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    """Return what checks that a text is ``what`` (``a name of …``), that is, matches as a whole."""

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


def absolute(value: str) -> str:
    """Return an absolute path without a slash at its end. Raises ValueError."""
    if not value.startswith("/") or ".." in value.split("/") or ":" in value:
        raise ValueError(f"{value!r} is not an absolute path")
    return value.rstrip("/") or "/"


def _sub_path(value: str) -> str:
    if value.startswith("/") or ".." in value.split("/"):
        raise ValueError(f"{value!r} is not a folder within a volume")
    unknown = set(re.findall(r"\{[^}]*\}", value)) - {"{username}", "{escaped_username}", "{group}"}
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]} is not known here: {{username}}, {{escaped_username}} and {{group}} are")
    return value


SubPath = Annotated[str, AfterValidator(_sub_path)]
Quantity = Annotated[str, BeforeValidator(quantity, json_schema_input_type=str | int | float)]
Toleration = Annotated[dict[str, Any], BeforeValidator(_toleration, json_schema_input_type=str | dict[str, Any])]
AbsolutePath = Annotated[str, AfterValidator(absolute)]
DnsName = Annotated[str, matching(_DNS_NAME, "a name of Kubernetes (lower-case letters, digits, hyphens, dots)")]
DnsLabel = Annotated[str, matching(_DNS_LABEL, "a name of Kubernetes (lower-case letters, digits and hyphens, at most 63)")]
EnvironmentName = Annotated[str, matching(_ENVIRONMENT_NAME, "the name of an environment variable")]
EnvironmentPattern = Annotated[str, matching(_ENVIRONMENT_PATTERN, "the name of an environment variable, or the start of one and *")]
AffinityKind = Annotated[
    str, matching(re.compile("nodeAffinity|podAffinity|podAntiAffinity"), "one of nodeAffinity, podAffinity, podAntiAffinity")
]
Labels = dict[Annotated[str, AfterValidator(_label_key)], Annotated[str, AfterValidator(_label_value)]]
OwnLabels = dict[Annotated[str, AfterValidator(_label_key), AfterValidator(_not_ours)], Annotated[str, AfterValidator(_label_value)]]
OwnAnnotations = dict[Annotated[str, AfterValidator(_label_key), AfterValidator(_not_ours)], str]


class Part(BaseModel):
    """What every part of a profile is: unchangeable, and with no field that nobody knows."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, coerce_numbers_to_str=True)


class Resource(Part):
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


Amounts = Annotated[Resource, BeforeValidator(_request_and_limit, json_schema_input_type=str | int | float | Resource)]
