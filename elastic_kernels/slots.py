"""The limits: how many kernels a user may have, of each class and in all, how much they may take, and all users' kernels together.

A limit is a fact of the API server, not a count in anybody's memory. Each kernel's record takes a slot by its name, and two
records cannot have the same name: two gateways that both want a user's last slot of a class are told apart there. (Where a limit
is set on all of a user's kernels together and none on the class, the slots are of all classes.) What one name cannot say follows
from the order in which the records were created: a record stands if it keeps the limits together with those that were created
before it, and one that does not is taken back before it has a pod. The order is that of ``resourceVersion`` (Kubernetes, "API
Concepts": they can be compared), and the watch brings records in that order, so that whoever has seen its own has seen all
earlier ones.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from elastic_kernels import names, patience, quantities
from elastic_kernels.cluster import BY_KERNEL, BY_USER, Cluster, Key, Object
from elastic_kernels.errors import ClusterError, ElasticKernelsError, KernelExistsError, LimitReachedError, NotAllowedError
from elastic_kernels.profiles import Profile
from elastic_kernels.record import Record

# How long a start waits for earlier ones to be decided that may leave a slot to it.
_PATIENCE: Final = 5.0
# How long it waits for the watch to bring its record, before it asks.
_WATCH_SECONDS: Final = 1.0
_UNITS: Final = {"gpu": "GPUs", "memory": "of memory", "cpu": "CPUs"}
_NAMED: Final = 5
_ALL_CLASSES: Final = "all"


@dataclass(frozen=True)
class Limits:
    """What holds for one user, and for the deployment. None and absent mean no limit."""

    per_class: Mapping[str, int] = field(default_factory=dict)
    """Of one user, by limit class."""
    per_user: int | None = None
    """Of one user, all classes together."""
    resources: Mapping[str, str] = field(default_factory=dict)
    """What all kernels of one user may take together: quantities of cpu, memory, gpu."""
    total: int | None = None
    """Of all users."""


@dataclass(frozen=True)
class Holder:
    """What the metadata of a kernel's record says."""

    namespace: str
    name: str
    uid: str
    order: int
    """Its place among all records in the order of their creation."""
    user: str
    limit_class: str
    slot: str
    kernel_id: str
    title: str
    notebook: str
    since: str
    usage: Mapping[str, str]


@dataclass(frozen=True)
class Excess:
    """A limit that one kernel more would pass, and the kernels that are below it."""

    sentence: str
    holders: tuple[Holder, ...]


def holder(secret: Mapping[str, Any]) -> Holder:
    """Return what a record's metadata says."""
    metadata = secret["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    try:
        usage = json.loads(annotations.get(names.USAGE) or "{}")
    except ValueError:
        usage = {}
    return Holder(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        # a record that was changed since says which place it had
        order=int(annotations.get(names.ORDER) or metadata["resourceVersion"]),
        user=annotations.get(names.USER, ""),
        limit_class=labels.get(names.LIMIT_CLASS, ""),
        slot=metadata["name"].rpartition(".")[2],
        kernel_id=labels.get(names.KERNEL_ID, ""),
        title=annotations.get(names.TITLE) or annotations.get(names.KERNEL_NAME, ""),
        notebook=annotations.get(names.NOTEBOOK, ""),
        since=metadata.get("creationTimestamp", ""),
        usage=usage if isinstance(usage, dict) else {},
    )


def usage(profile: Profile) -> dict[str, str]:
    """Return what a kernel of this profile counts for: its limit, or where it has none its request."""
    amounts = {"cpu": profile.cpu, "memory": profile.memory}
    plain = {name: amount.limit or amount.request for name, amount in amounts.items() if amount is not None}
    gpus = {"gpu": str(profile.gpu.count)} if profile.gpu and profile.gpu.count else {}
    return {name: amount for name, amount in {**plain, **gpus}.items() if amount}


def exceeded(limits: Limits, mine: Holder, others: Iterable[Holder]) -> Excess | None:
    """Return the first limit that ``mine`` would pass together with those of ``others`` that came before it, or None."""
    before = sorted((other for other in others if other.order < mine.order), key=lambda other: other.order)
    own = tuple(other for other in before if other.user == mine.user)
    same = tuple(other for other in own if other.limit_class == mine.limit_class)
    allowed = limits.per_class.get(mine.limit_class)
    if allowed is not None and len(same) >= allowed:
        return Excess(_of_class(mine.limit_class, allowed, same), same)
    if limits.per_user is not None and len(own) >= limits.per_user:
        return Excess(_of_user(limits.per_user, own), own)
    for resource, most in limits.resources.items():
        wanted, taken = _amount(mine, resource), sum((_amount(other, resource) for other in own), Decimal(0))
        if wanted and taken + wanted > quantities.parse(most):
            users = tuple(other for other in own if _amount(other, resource))
            return Excess(_of_resource(mine, resource, most, users), users)
    if limits.total is not None and len(before) >= limits.total:
        end = f" You have {len(own)} of them{_list(own)}" if own else " Try again when somebody has shut one down."
        return Excess(f"All {limits.total} kernels that this gateway may run at a time are in use.{end}", tuple(before))
    return None


def check(profile: Profile, limits: Limits) -> None:
    """Raise NotAllowedError if a limit is set on something of which the profile does not say how much it takes."""
    for resource in ("cpu", "memory"):
        if resource in limits.resources and resource not in usage(profile):
            raise NotAllowedError(
                f"{profile.display_name or profile.name!r} does not say how much {resource} it takes, which is limited for each user; "
                "its administrator has to add that to the profile."
            )


async def take(
    cluster: Cluster, asked: Record, limits: Limits, create: Callable[[Record], Awaitable[Object]], *, id_is_chosen: bool
) -> Object:
    """Create the record of ``asked`` in a slot that is free, and return it once it is sure that it may stay.

    ``create`` creates a record as the Secret that it is, and whoever gave it takes back what it created if this raises:
    LimitReachedError, KernelExistsError (only if the client chose the kernel's id, as ``id_is_chosen`` says), ClusterError and
    ClusterAwayError.
    """
    claims: set[Key] = set()
    try:
        if asked.limit_class in limits.per_class:
            secret = await _numbered(cluster, asked, limits.per_class[asked.limit_class], create, claims)
        elif limits.per_user is not None:
            secret = await _numbered(cluster, replace(asked, pool=_ALL_CLASSES), limits.per_user, create, claims)
        else:
            # nobody else's: a token is in it
            secret = await create(replace(asked, slot=f"x{asked.token}"))
        if limits != Limits() or id_is_chosen:
            await _confirm(cluster, holder(secret), limits, id_is_chosen)
        return secret
    finally:
        cluster.claimed -= claims


async def _numbered(
    cluster: Cluster, asked: Record, allowed: int, create: Callable[[Record], Awaitable[Object]], claims: set[Key]
) -> Object:
    """Create the record under the first number that nobody has.

    What other starts of this process are trying is left to them at first, so that those of one burst do not all try the same; it
    decides nothing. ``claims`` gets what this one tries, for as long as ``cluster.claimed`` is to have it.
    """
    slots = {numbered.name: numbered for numbered in (replace(asked, slot=str(number)) for number in range(1, allowed + 1))}
    taken = {name for name in slots if cluster.records.get((asked.namespace, name)) or (asked.namespace, name) in cluster.claimed}
    while True:
        for name, numbered in slots.items():
            key = (asked.namespace, name)
            if name in taken:
                continue
            if key not in cluster.claimed:
                cluster.claimed.add(key)
                claims.add(key)
            try:
                return await create(numbered)
            except ClusterError as error:
                if error.code != 409:
                    raise
        # all are taken, as far as is known here: what is really so is asked before anybody is refused
        held = await _listed(cluster, asked.user)
        taken = {other.name for other in held}
        same = [other for other in held if other.name in slots]
        if len(same) == allowed:
            raise _refusal(Excess(_of_user(allowed, same) if asked.pool else _of_class(asked.limit_class, allowed, same), tuple(same)))


async def _confirm(cluster: Cluster, mine: Holder, limits: Limits, id_is_chosen: bool) -> None:
    """Return if the record may stay; wait for a while where earlier ones without a pod may themselves go again."""
    loop = asyncio.get_running_loop()
    end = loop.time() + _PATIENCE
    changed = asyncio.Event()
    watched = (cluster.records, cluster.pods)
    for informer in watched:
        informer.observe(changed.set)
    try:
        while True:
            changed.clear()
            others = [other for other in await _known(cluster, mine, limits) if other.uid != mine.uid]
            if id_is_chosen and any(other.kernel_id == mine.kernel_id and other.order < mine.order for other in others):
                raise KernelExistsError(f"There is a kernel with the id {mine.kernel_id} already.")
            excess = exceeded(limits, mine, others)
            if excess is None:
                return
            left = end - loop.time()
            if left <= 0 or all(cluster.pods.find(BY_KERNEL, other.kernel_id) for other in excess.holders):
                raise _refusal(excess)
            await patience.happens(changed, left)
    finally:
        for informer in watched:
            informer.unobserve(changed.set)


def _refusal(excess: Excess) -> ElasticKernelsError:
    refusal: ElasticKernelsError = LimitReachedError(excess.sentence)
    if not excess.holders:
        # nobody's end would make room
        refusal.retry_after = None
    return refusal


async def _known(cluster: Cluster, mine: Holder, limits: Limits) -> list[Holder]:
    """Return the records that may count against ``mine``, as they were at a moment after it was created."""
    key = (mine.namespace, mine.name)
    seen = asyncio.Event()

    def look(_: Object | None = None) -> None:
        item = cluster.records.get(key)
        if cluster.records.is_fresh and item is not None and item["metadata"]["uid"] == mine.uid:
            seen.set()

    cluster.records.listen(key, look)
    try:
        look()
        await patience.happens(seen, _WATCH_SECONDS)
    finally:
        cluster.records.forget(key, look)
    if not seen.is_set():
        return await _listed(cluster, None)
    records = cluster.records
    if limits.total is not None and len(records) > limits.total:
        return [holder(item) for item in records.objects()]
    # who is not the user's counts for nothing but the total; of thousands of kernels, that is nearly all
    related = (*records.find(BY_USER, mine.user), *records.find(BY_KERNEL, mine.kernel_id))
    return list({item["metadata"]["uid"]: holder(item) for item in related}.values())


async def _listed(cluster: Cluster, user: str | None) -> list[Holder]:
    """Return the records that there are now, of one user or of all, as the API server says."""
    selector = names.selector(cluster.deployment) + (f",{names.USER}={names.slug(user)}" if user is not None else "")
    answer = await cluster.client.list("secrets", cluster.watched, metadata_only=True, labelSelector=selector)
    return [holder(item) for item in answer.get("items") or ()]


def _of_user(allowed: int, own: Collection[Holder]) -> str:
    return f"{_has(own, allowed)} kernels{_list(own)}"


def _of_class(limit_class: str, allowed: int, same: Collection[Holder]) -> str:
    return f"{_has(same, allowed)} {limit_class} kernels{_list(same)}"


def _of_resource(mine: Holder, resource: str, most: str, users: Collection[Holder]) -> str:
    unit = _UNITS[resource]
    wanted = f"{mine.title!r} takes {mine.usage[resource]} {unit}"
    if not users:
        return f"{wanted}, and you may have {most}: choose a smaller kernel."
    return f"{wanted}, and you may have {most} with all your kernels together{_list(users, resource)}"


def _has(holders: Collection[Holder], allowed: int) -> str:
    return f"You have {len(holders)} of {allowed}"


def _list(holders: Collection[Holder], resource: str | None = None) -> str:
    """Return the rest of a sentence: what the user has running, and how to free one."""
    if not holders:
        return "."
    named = [_described(other, resource) for other in itertools.islice(holders, _NAMED)]
    more = f" and {len(holders) - _NAMED} more" if len(holders) > _NAMED else ""
    return f": {', '.join(named)}{more}. Shut one down (in JupyterLab under Running Terminals and Kernels) to start another."


def _described(other: Holder, resource: str | None) -> str:
    facts = [
        *([other.notebook.rpartition("/")[2]] if other.notebook else []),
        *([f"{other.usage[resource]} {_UNITS[resource]}"] if resource else []),
        f"since {_time(other.since)}",
    ]
    return f"{other.title!r} ({', '.join(facts)})"


def _time(text: str) -> str:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").strftime("%d %b %H:%M UTC")
    except ValueError:
        return text


def _amount(other: Holder, resource: str) -> Decimal:
    try:
        return quantities.parse(str(other.usage.get(resource, "0")))
    except ValueError:
        return Decimal(0)
