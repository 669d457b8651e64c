"""The user's home volume: which claim is theirs, whether a kernel can mount it, and where the kernel has to run for that.

The claim is found, not guessed: by the labels that JupyterHub's kubespawner puts on it, and the annotation with the raw name
decides, because a label is but a slug of it. Its access mode says the rest (Kubernetes, "Persistent Volumes"): one that many
nodes may mount is mounted anywhere; one that a single node may mount is mounted on the node that has it now, or not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from elastic_kernels import hubnames, nodes
from elastic_kernels.cluster import Client, Object
from elastic_kernels.errors import ClusterError, HomeError
from elastic_kernels.profiles import Profile

log = logging.getLogger(__name__)

JUPYTERHUB: Final = "jupyterhub"
"""The setting ``home_claims`` that finds claims by kubespawner's labels; any other is a template of their names."""


@dataclass(frozen=True)
class Home:
    """What is mounted as the user's home."""

    claim: str = ""
    """The claim's name; empty for a volume that goes with the pod."""
    node: str = ""
    """The one node that can mount it now, or empty if any can."""
    holder: str = ""
    """The pod that uses it there."""
    terms: tuple[Mapping[str, Any], ...] = ()
    """Where its volume can be, as node selector terms of Kubernetes, any of which will do; none if it can be anywhere."""
    one_machine: bool = field(default=False, compare=False)
    """Whether a single machine at a time can mount it."""


SCRATCH: Final = Home()


async def find(client: Client, namespace: str, profile: Profile, user: str, claims: str) -> Home | None:
    """Return what to mount as the user's home, None if the profile mounts none; a claim is created if the profile says so.

    ``claims`` is the setting ``home_claims``. Raises HomeError, ClusterError and ClusterAwayError.
    """
    wanted = profile.home
    if wanted is None:
        return None
    claim = await _claim(client, namespace, user, claims)
    if claim is None:
        if wanted.missing == "scratch":
            return SCRATCH
        if wanted.missing == "error":
            raise HomeError(
                f"You have no home volume in the namespace {namespace!r}, and {_title(profile)} needs one; start your JupyterLab server "
                "once, which makes it, or ask your administrator."
            )
        claim = await _create(client, namespace, profile, user, claims)
    name = str(claim["metadata"]["name"])
    if claim["metadata"].get("deletionTimestamp"):
        raise HomeError(f"Your home volume, the claim {name!r}, is being deleted; try again when it has been made anew.")
    modes = (claim.get("status") or {}).get("accessModes") or claim["spec"].get("accessModes") or ()
    if "ReadWriteMany" in modes:
        return Home(name)
    if "ReadWriteOnce" not in modes:
        why = "one pod alone can use it" if "ReadWriteOncePod" in modes else "it can only be read"
        return _unreachable(profile, f"Your home volume, the claim {name!r}, cannot be used by a kernel beside your server, because {why}.")
    holder = await _holder(client, namespace, name)
    if holder is not None:
        return Home(name, node=holder["spec"]["nodeName"], holder=holder["metadata"]["name"], one_machine=True)
    volume = await _look(client, "persistentvolumes", str(claim["spec"].get("volumeName") or ""))
    required = (((volume or {}).get("spec") or {}).get("nodeAffinity") or {}).get("required") or {}
    return Home(name, terms=tuple(required.get("nodeSelectorTerms") or ()), one_machine=True)


async def reachable(client: Client, profile: Profile, home: Home, manifest: Mapping[str, Any]) -> Home:
    """Return ``home`` if the pod of ``manifest`` can run where it is, else what the profile says: nothing of it, or HomeError."""
    place = nodes.contradiction(manifest, home.terms)
    if place is not None:
        return _unreachable(
            profile,
            f"Your home volume, the claim {home.claim!r}, lies where {place[0]} is {place[1]}, and {_title(profile)} runs elsewhere; "
            "choose another kernel.",
        )
    node = await _look(client, "nodes", home.node)
    why = nodes.obstacle(manifest, node) if node is not None else None
    if why is None:
        return home
    return _unreachable(
        profile,
        f"Your home volume is in use on the machine {home.node!r} by the pod {home.holder!r}, and only one machine at a time can use it; "
        f"{_title(profile)} cannot run there, because {why}. Choose another kernel, or stop what uses the volume.",
    )


def _unreachable(profile: Profile, sentence: str) -> Home:
    assert profile.home is not None
    if profile.home.unreachable == "refuse":
        raise HomeError(sentence)
    log.warning("The home volume is left out: %s", sentence)
    return SCRATCH


async def _claim(client: Client, namespace: str, user: str, claims: str) -> Object | None:
    if claims != JUPYTERHUB:
        name = hubnames.expand(claims, user)
        found = await client.get("persistentvolumeclaims", namespace, name)
        owner = (found["metadata"].get("annotations") or {}).get(hubnames.USERNAME, user) if found else user
        if owner != user:
            raise HomeError(f"The claim {name!r}, which should be your home volume, is another user's; ask your administrator.")
        return found
    selector = f"{hubnames.STORAGE},{hubnames.USERNAME} in ({','.join(hubnames.labels(user))})"
    listed = await client.list("persistentvolumeclaims", namespace, labelSelector=selector)
    own = [item for item in listed.get("items") or () if (item["metadata"].get("annotations") or {}).get(hubnames.USERNAME) == user]
    # that of the default server comes before those of named ones, and the oldest first
    own.sort(key=lambda item: (hubnames.SERVERNAME in item["metadata"]["annotations"], item["metadata"]["creationTimestamp"]))
    return own[0] if own else None


async def _create(client: Client, namespace: str, profile: Profile, user: str, claims: str) -> Object:
    """Create the claim as kubespawner would have, so that both find it from then on."""
    assert profile.home is not None
    assert profile.home.create is not None
    template = profile.home.create
    name = hubnames.expand("claim-{username}" if claims == JUPYTERHUB else claims, user)
    body: Object = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {hubnames.USERNAME: hubnames.labels(user)[0], "component": "singleuser-storage"},
            "annotations": {hubnames.USERNAME: user},
        },
        "spec": {
            "accessModes": list(template.access_modes),
            "resources": {"requests": {"storage": template.size}},
            **({"storageClassName": template.storage_class} if template.storage_class is not None else {}),
        },
    }
    try:
        return await client.create("persistentvolumeclaims", body)
    except ClusterError as error:
        if error.code != 409:
            raise
        # another start of the same user made it at the same time
        found = await _claim(client, namespace, user, claims)
        if found is None:
            raise HomeError(f"The claim {name!r}, which should be your home volume, is another user's; ask your administrator.") from error
        return found


async def _holder(client: Client, namespace: str, claim: str) -> Object | None:
    """Return a pod that has the claim mounted on its node, or is about to."""
    listed = await client.list("pods", namespace)
    for pod in listed.get("items") or ():
        ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        volumes = pod["spec"].get("volumes") or ()
        if not ended and pod["spec"].get("nodeName") and any(_claims(volume) == claim for volume in volumes):
            return dict(pod)
    return None


async def _look(client: Client, resource: str, name: str) -> Object | None:
    """Return what belongs to no namespace; None also for a gateway without the right to look, which leaves it to the scheduler."""
    if not name:
        return None
    try:
        return await client.get(resource, "", name)
    except ClusterError as error:
        log.info("%s %s cannot be looked at: %s", resource, name, error)
        return None


def _claims(volume: Mapping[str, Any]) -> str | None:
    return (volume.get("persistentVolumeClaim") or {}).get("claimName")


def _title(profile: Profile) -> str:
    return repr(profile.display_name or profile.name)
