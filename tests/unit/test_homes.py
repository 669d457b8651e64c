"""Homes as tables: kubespawner's names, as kubespawner itself makes them, and what follows from a claim."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from elastic_kernels import homes, hubnames, nodes
from elastic_kernels.cluster import Client, Object
from elastic_kernels.embedded.selectors import label_predicate
from elastic_kernels.errors import ClusterError, HomeError, ProfileError
from elastic_kernels.homes import SCRATCH, Home
from elastic_kernels.profiles import Profile, parse_profile

NAMES = [
    "ana",
    "user@email.com",
    "ALLCAPS",
    "Ana",
    "has-hyphen",
    "a--b",
    "9x",
    "1-",
    "-a",
    "a-",
    "x" * 48,
    "x" * 49,
    "x" * 63,
    "x" * 64,
    "é",
    "日本",
    "a.b_c",
    "_",
    "",
    "a b",
    "ana---0925f997",
    "user-email-com---0925f997",
    "0" * 60,
    "a\N{COMBINING ACUTE ACCENT}",
]
KUBESPAWNER = """
import json, sys
from kubespawner.slugs import escape_slug, is_valid_label, safe_slug
print(json.dumps([[safe_slug(n, max_length=48), escape_slug(n), safe_slug(n, is_valid=is_valid_label)] for n in json.load(sys.stdin)]))
"""


def test_names_are_kubespawners_own() -> None:
    python = Path(os.environ["ELASTIC_KERNELS_LAB"]).with_name("python")
    run = subprocess.run([str(python), "-c", KUBESPAWNER], input=json.dumps(NAMES), capture_output=True, text=True, check=True)
    for name, (safe, escaped, label) in zip(NAMES, json.loads(run.stdout), strict=True):
        assert (hubnames.safe(name), hubnames.escaped(name), hubnames.labels(name)[0]) == (safe, escaped, label), name


@pytest.mark.parametrize(
    ("template", "expected"),
    [("claim-{username}", "claim-a-b-c---09c4d0bd"), ("claim-{escaped_username}", "claim-a-40b-2ec"), ("homes", "homes"), ("{x}", "{x}")],
)
def test_templates(template: str, expected: str) -> None:
    found = hubnames.expand(template, "a@b.c")
    assert found.startswith(expected[:13])
    assert "@" not in found


class Claims(Client):
    """An API server with some claims, pods and nodes."""

    def __init__(self, *objects: Object) -> None:
        self.objects = list(objects)
        self.created: list[Object] = []

    def _of(self, resource: str) -> list[Object]:
        return [item for item in self.objects if item["resource"] == resource]

    async def get(self, resource: str, namespace: str, name: str) -> Object | None:
        if resource == "nodes" and not self._of("nodes"):
            raise ClusterError("forbidden", code=403, reason="Forbidden")
        return next((item for item in self._of(resource) if item["metadata"]["name"] == name), None)

    async def list(self, resource: str, namespace: str | None, *, metadata_only: bool = False, **query: str) -> Object:
        matches = label_predicate(query.get("labelSelector", ""))
        return {"items": [item for item in self._of(resource) if matches(item)]}

    async def create(self, resource: str, body: Object) -> Object:
        self.created.append(body)
        return body


def claim(name: str, user: str | None, *modes: str, label: str | None = None, server: str = "", deleted: bool = False) -> Object:
    annotations = {**({hubnames.USERNAME: user} if user else {}), **({hubnames.SERVERNAME: server} if server else {})}
    labels = {"component": "singleuser-storage", hubnames.USERNAME: label or hubnames.labels(user or "")[0]}
    metadata: Object = {"name": name, "annotations": annotations, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"}
    if deleted:
        metadata["deletionTimestamp"] = "2026-01-02T00:00:00Z"
    return {"resource": "persistentvolumeclaims", "metadata": metadata, "spec": {"accessModes": list(modes or ("ReadWriteMany",))}}


def pod(claim_name: str, node: str, phase: str = "Running") -> Object:
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": claim_name}}]
    return {
        "resource": "pods",
        "metadata": {"name": "jupyter-ana", "labels": {}},
        "spec": {"nodeName": node, "volumes": volumes},
        "status": {"phase": phase},
    }


def profile(**home: Any) -> Profile:
    return parse_profile({"name": "p", "image": "i", "home": home or True}, "p")


async def find(client: Client, given: Profile, user: str = "Ana", claims: str = "jupyterhub") -> Home | None:
    return await homes.find(client, "ns", given, user, claims)


@pytest.mark.parametrize(
    ("claims", "found"),
    [
        ([claim("claim-x", "Ana")], Home("claim-x")),
        ([claim("claim-x", "Ana", "ReadWriteOnce", "ReadWriteMany")], Home("claim-x")),
        ([claim("named", "Ana", server="gpu"), claim("default", "Ana")], Home("default")),
        ([claim("named", "Ana", server="gpu")], Home("named")),
        ([claim("bias", "bia", label=hubnames.labels("Ana")[0])], None),  # the same slug, another name
        ([claim("nobodys", None, label=hubnames.labels("Ana")[0])], None),
        ([], None),
    ],
)
async def test_which_claim_is_theirs(claims: list[Object], found: Home | None) -> None:
    assert await find(Claims(*claims), profile(missing="scratch")) == (found or SCRATCH)
    if found is None:
        with pytest.raises(HomeError, match="You have no home volume"):
            await find(Claims(*claims), profile())


async def test_a_hub_that_was_upgraded_has_labels_of_before() -> None:
    made_before = claim("claim-ana-40x", "ana@x", label=hubnames.escaped("ana@x"))
    assert made_before["metadata"]["labels"][hubnames.USERNAME] == "ana-40x"
    assert await find(Claims(made_before), profile(), user="ana@x") == Home("claim-ana-40x")


async def test_a_template_names_a_claim_that_must_not_be_anothers() -> None:
    name = f"claim-{hubnames.safe('Ana')}"
    for owner in ("Ana", None):
        assert await find(Claims(claim(name, owner)), profile(), claims="claim-{username}") == Home(name)
    with pytest.raises(HomeError, match="is another user's"):
        await find(Claims(claim(name, "bia")), profile(), claims="claim-{username}")


async def test_what_an_access_mode_means() -> None:
    once = claim("c", "Ana", "ReadWriteOnce")
    assert await find(Claims(once), profile()) == Home("c")
    assert await find(Claims(once, pod("c", "general", "Succeeded"), pod("d", "spot")), profile()) == Home("c")
    assert await find(Claims(once, pod("c", "general")), profile()) == Home("c", "general", "jupyter-ana")
    for mode, why in (("ReadWriteOncePod", "one pod alone can use it"), ("ReadOnlyMany", "it can only be read")):
        with pytest.raises(HomeError, match=why):
            await find(Claims(claim("c", "Ana", mode)), profile())
        assert await find(Claims(claim("c", "Ana", mode)), profile(unreachable="leave-out")) == SCRATCH
    with pytest.raises(HomeError, match="is being deleted"):
        await find(Claims(claim("c", "Ana", deleted=True)), profile())
    assert await find(Claims(once), parse_profile({"name": "p", "image": "i"}, "p")) is None


async def test_a_claim_is_created_as_kubespawner_would() -> None:
    client = Claims()
    found = await find(client, profile(missing="create", create={"size": "5Gi", "storage_class": "efs", "access_modes": ["ReadWriteMany"]}))
    (made,) = client.created
    assert found == Home(made["metadata"]["name"])
    assert made["metadata"]["annotations"] == {hubnames.USERNAME: "Ana"}
    assert made["spec"] == {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "5Gi"}}, "storageClassName": "efs"}


def node(**labels: str) -> Object:
    return {"resource": "nodes", "metadata": {"name": "general", "labels": labels}, "spec": {}, "status": {"allocatable": {"cpu": "4"}}}


async def test_a_gateway_without_the_right_to_nodes_leaves_it_to_the_scheduler() -> None:
    home = Home("c", "general", "jupyter-ana")
    manifest: Object = {"spec": {"nodeSelector": {"gpu": "t4"}, "containers": [{}]}}
    assert await homes.reachable(Claims(), profile(), home, manifest) == home
    with pytest.raises(HomeError, match=r"in use on the machine 'general' by the pod 'jupyter-ana'.*it needs a machine with gpu=t4"):
        await homes.reachable(Claims(node()), profile(), home, manifest)
    assert await homes.reachable(Claims(node(gpu="t4")), profile(), home, manifest) == home


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({}, None),
        ({"nodeSelector": {"a": "b"}}, None),
        ({"nodeSelector": {"a": "c"}}, "it needs a machine with a=c"),
        ({"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]}, "it needs nvidia.com/gpu"),
        ({"containers": [{"resources": {"requests": {"cpu": "64"}}}]}, None),  # that may change; what a machine is does not
        ({"tolerations": []}, "it may not run where dedicated=db is"),
    ],
)
def test_obstacles(spec: Object, why: str | None) -> None:
    tainted = {**node(a="b"), "spec": {"taints": [{"key": "dedicated", "value": "db", "effect": "NoSchedule"}]}}
    tolerations = [{"key": "dedicated", "operator": "Exists"}]
    assert nodes.obstacle({"spec": {"containers": [{}], "tolerations": tolerations, **spec}}, tainted) == why


@pytest.mark.parametrize(
    ("fields", "clause"),
    [
        ({"home": {"mount_path": "/usr"}}, "would cover what the image needs to run"),
        ({"volumes": [{"name": "v", "mount_path": "/", "source": {"emptyDir": {}}}]}, "would cover what the image needs to run"),
        ({"home": {"missing": "create"}}, "need each other"),
        ({"home": {"create": {"size": "1Gi"}}}, "need each other"),
        ({"home": {"sub_path": "../x"}}, "not a folder within a volume"),
        ({"home": {"sub_path": "{user}"}}, "{user} is not known here"),
        ({"home": True, "volumes": [{"name": "home", "mount_path": "/x", "source": {"emptyDir": {}}}]}, "is taken by the home volume"),
        (
            {"home": True, "volumes": [{"name": "v", "mount_path": "/home/jovyan", "source": {"emptyDir": {}}}]},
            "two volumes have the mount path",
        ),
    ],
)
def test_profiles_that_cannot_be_meant(fields: dict[str, Any], clause: str) -> None:
    with pytest.raises(ProfileError) as error:
        parse_profile({"name": "p", "image": "i", **fields}, "profiles.p")
    assert clause in str(error.value)
