"""The pod that waits: what is in it, whom it fits, what a claim makes of it; and how many of them there are to be."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest

from elastic_kernels import names
from elastic_kernels.cluster import Object
from elastic_kernels.homes import Home
from elastic_kernels.pod import Launch, Spot, build_pod
from elastic_kernels.profiles import Profile, parse_profile
from elastic_kernels.record import Record, launcher_sources
from elastic_kernels.request import parse_request
from elastic_kernels.warm import plan, waiting
from elastic_kernels.warm.shared import elastic_claim
from tests import conftest

SPOT = Spot(label="elastic-kernels/capacity=spot", taint="elastic-kernels/capacity=spot:NoSchedule")
NOW = datetime(2026, 11, 25, 12, tzinfo=timezone.utc)
KEY = "ab" * 32


def profile(**fields: Any) -> Profile:
    return parse_profile({"name": "small", "image": "example/kernel:1", "warm": 2, **fields}, "profiles.small")


def stored(given: Profile, number: int = 1) -> Object:
    secret = waiting.to_secret(given, "blue", "kernels", number, KEY)
    return {**secret, "metadata": {**secret["metadata"], "uid": "uid-of-the-secret"}}


def waits(given: Profile) -> Object:
    return waiting.build_waiting(given, "blue", stored(given), SPOT)


def cold(given: Profile, *, user: str = "ana", groups: tuple[str, ...] = (), home: Home | None = None, **environment: str) -> Object:
    mine = conftest.record("small", user=user, groups=groups)
    return build_pod(given, mine, parse_request(environment, given), Launch("a1b2c3", 0, "uid-of-the-record", home=home), SPOT)


def test_a_pod_that_waits_is_nobodys_and_differs_from_a_kernels_in_little() -> None:
    given = profile(labels={"cost": "team"}, environment={"A": "b"}, pod={"spec": {"hostname": "x"}})
    pod, of_ana = waits(given), cold(given)
    assert pod["metadata"] == {
        "name": "warm-small-" + pod["metadata"]["name"][-6:],
        "namespace": "kernels",
        "labels": {
            "cost": "team",
            "app": "enterprise-gateway",
            "component": "kernel",
            "elastic-kernels/profile": "small",
            "elastic-kernels/warm": "blue",
            "elastic-kernels/warm-kind": "kernel",
        },
        "annotations": {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "true",
            "elastic-kernels/kernel-name": "small",
            "elastic-kernels/fit": waiting.fit(given, of_ana),
        },
        "ownerReferences": [{"apiVersion": "v1", "kind": "Secret", "name": "warm.blue.small.1", "uid": "uid-of-the-secret"}],
    }
    (own,), (anas,) = pod["spec"]["containers"], of_ana["spec"]["containers"]
    assert own.pop("startupProbe") == {"tcpSocket": {"port": elastic_claim.PORT}, "periodSeconds": 1, "failureThreshold": 120}
    assert {item["name"] for item in own["env"]} == {item["name"] for item in anas.pop("env")}
    assert not any("ana" in str(item.get("value")) for item in own.pop("env"))
    assert own == anas
    (files,), _ = pod["spec"].pop("volumes"), of_ana["spec"].pop("volumes")
    assert files["secret"]["secretName"] == "warm.blue.small.1"
    assert {item["path"] for item in files["secret"]["items"]} == {"claim.json", *launcher_sources()}
    assert {**pod["spec"], "containers": []} == {**of_ana["spec"], "containers": []}


def test_its_secret_holds_a_key_for_one_claim_and_no_kernels() -> None:
    secret = stored(profile())
    assert waiting.key_of(secret) == bytes.fromhex(KEY)
    assert set(secret["data"]) == {"claim.json", *launcher_sources()}
    assert names.MANAGED_BY not in secret["metadata"]["labels"]
    with pytest.raises(ValueError, match="is not of a kernel that waits"):
        waiting.key_of({"metadata": {"name": "other"}, "data": {}})


OPEN: dict[str, Any] = {"images": ["example/*:2"], "client_environment": ["WISH"]}
DATA = {"name": "data", "mount_path": "/data", "claim": "data"}


@pytest.mark.parametrize(
    "start",
    [
        cold(profile(**OPEN), user="bob"),
        cold(profile(**OPEN), groups=("ops",), WISH="x", KERNEL_LIMIT_CLASS="interactive"),
        cold(profile(**OPEN), KERNEL_WORKING_DIR="/data"),
    ],
)
def test_whom_it_fits(start: Object) -> None:
    assert waiting.fit(profile(**OPEN), start) == waits(profile(**OPEN))["metadata"]["annotations"][names.FIT]


@pytest.mark.parametrize(
    ("now", "start"),
    [
        # an image of the user's own
        (profile(**OPEN), cold(profile(**OPEN), KERNEL_IMAGE="example/other:2")),
        # a profile that has changed
        *((changed, cold(changed)) for changed in (
            profile(image="example/kernel:2"),
            profile(memory="1Gi"),
            profile(environment={"PYTHONHASHSEED": "0"}),
            profile(labels={"cost": "other"}),
            profile(volumes=[DATA]),
            profile(spot=True),
            profile(security={"uid": 1001}),
            profile(pod={"metadata": {"labels": {"x": "y"}}}),
        )),
        # what is one user's, even if nothing had refused it
        (profile(), cold(profile(warm=None, home=True), home=Home("claim-ana"))),
        (profile(), cold(profile(warm=None, volumes=[{**DATA, "groups": ["ops"]}]), groups=("ops",))),
        (profile(), cold(profile(), home=Home("claim-ana", node="there"))),
    ],
)  # fmt: skip
def test_whom_it_does_not_fit(now: Profile, start: Object) -> None:
    assert waiting.fit(now, start) != waits(profile(**OPEN))["metadata"]["annotations"][names.FIT]


def test_a_claim_makes_it_the_pod_that_would_have_been_created() -> None:
    given = profile(annotations={"note": "x"})
    start = cold(given)
    change = waiting.claim(start, "2026-11-25T12:00:00Z")
    assert change["ownerReferences"] == start["metadata"]["ownerReferences"]
    assert change["labels"] == {**start["metadata"]["labels"], names.WARM: None, names.WARM_KIND: None}
    claimed = {names.CLAIMED: "2026-11-25T12:00:00Z", names.USED: "2026-11-25T12:00:00Z"}
    assert change["annotations"] == {**start["metadata"]["annotations"], **claimed}
    assert change["annotations"][names.SAFE_TO_EVICT] == "false"


def test_it_is_told_the_key_and_the_variables_in_their_order() -> None:
    given = profile(client_environment=["WISH"])
    start = cold(given, WISH="$(KERNEL_ID)")
    kept = Record("id", "small", "ana", "kernels", "blue", "secret", "d4e5f6", "1")
    told = json.loads(waiting.message(kept, start))
    assert (told["connection"]["key"], told["connection"]["shell_port"]) == ("secret", 52317)
    assert told["environment"][:2] == [["KERNEL_POD_NAME", None], ["KERNEL_POD_IP", None]]
    assert ["WISH", "$$(KERNEL_ID)"] in told["environment"]
    assert ["KERNEL_USERNAME", "ana"] in told["environment"]


@pytest.mark.parametrize(
    ("environment", "late"),
    [
        ({"WISH": "x"}, None),
        ({"PYTHONPATH": "/x"}, "PYTHONPATH"),
        ({"WISH": "x", "LD_PRELOAD": "y"}, "LD_PRELOAD"),
        ({"HOME": "/x"}, "HOME"),
    ],
)
def test_some_variables_need_an_interpreter_of_their_own(environment: dict[str, str], late: str | None) -> None:
    request = parse_request(environment, profile(client_environment=["WISH", "PYTHON*", "LD_*", "HOME"]))
    assert waiting.comes_too_late(request) == late


def there(given: Profile, name: str, *, ready: bool = True, phase: str = "Running", since: int = 0, **metadata: Any) -> Object:
    pod = waits(given)
    state = "running" if phase == "Running" else "terminated"
    container = {"name": "kernel", "started": ready, "ready": ready, "state": {state: {"exitCode": 1}}}
    return {
        **pod,
        "metadata": {**pod["metadata"], "name": name, "uid": name, "creationTimestamp": f"2026-11-25T11:00:{since:02}Z", **metadata},
        "status": {
            "phase": phase,
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": str(ready)}],
            "containerStatuses": [container],
        },
    }


def wish(given: Profile, at: datetime = NOW) -> list[plan.Wish]:
    return plan.wishes([given], "blue", "kernels", SPOT, at)


@pytest.mark.parametrize(
    ("pods", "too_many", "missing"),
    [
        ([], [], 2),
        ([there(profile(), "a"), there(profile(), "b")], [], 0),
        # those that wait stay, and the oldest
        ([there(profile(), "a", since=2), there(profile(), "b", ready=False), there(profile(), "c", since=1), there(profile(), "d", since=3)], ["d", "b"], 0),
        # one that has ended, one that is going, and one of another time
        ([there(profile(), "a", phase="Failed"), there(profile(), "b", deletionTimestamp="2026-11-25T12:00:00Z")], ["a"], 2),
        ([there(profile(memory="1Gi"), "a"), there(profile(), "b")], ["a"], 1),
        # one that is coming is counted
        ([there(profile(), "a", ready=False)], [], 1),
    ],
)  # fmt: skip
def test_how_many_there_are_to_be(pods: list[Object], too_many: list[str], missing: int) -> None:
    wanted = wish(profile())
    assert [item["metadata"]["name"] for item in plan.superfluous(wanted, pods, NOW)] == too_many
    assert plan.missing(wanted[0], pods) == missing


def test_two_at_most_are_on_their_way_and_none_at_other_hours() -> None:
    many = profile(warm={"kernels": 9, "capacity": 1, "when": "Wed 08:00-19:00"})
    kernels, room = wish(many)
    assert (kernels.count, room.count) == (9, 1)
    assert plan.missing(kernels, []) == 2
    assert plan.missing(kernels, [there(many, "a"), there(many, "b", ready=False), there(many, "c", ready=False)]) == 0
    late = NOW.replace(hour=20)
    assert wish(many, late) == []
    assert len(plan.superfluous([], [there(many, "a")], late)) == 1


def test_one_whose_machine_is_not_heard_of_is_not_kept() -> None:
    lost = there(profile(), "a")
    lost["status"]["conditions"][0]["status"] = "False"
    assert not waiting.is_ready(lost)
    assert plan.superfluous(wish(profile()), [lost], NOW) == [lost]


def test_room_is_held_where_a_kernel_would_be_and_for_as_much() -> None:
    given = profile(
        warm={"capacity": 1}, home=True, cpu=2, memory="4Gi", gpu=1, spot=True, node_selector={"pool": "gpu"},
        service_account="reader", image_pull_secrets=["registry"], priority_class="kernels",
    )  # fmt: skip
    (room,) = wish(given)
    kernel = cold(given, home=Home("claim-ana"))["spec"]
    spec = room.manifest["spec"]
    for field in ("nodeSelector", "tolerations", "affinity", "imagePullSecrets", "securityContext"):
        assert spec[field] == kernel[field]
    (container,) = spec["containers"]
    assert container["resources"] == kernel["containers"][0]["resources"]
    assert (container["image"], container["command"]) == ("example/kernel:1", ["sleep", "infinity"])
    assert spec["priorityClassName"] == "elastic-kernels-capacity"
    assert "volumes" not in spec
    assert "serviceAccountName" not in spec
    assert spec["automountServiceAccountToken"] is False
    assert names.MANAGED_BY not in room.manifest["metadata"]["labels"]


NODES = [
    {"metadata": {"name": name, "labels": {"pool": name}}, "spec": {}, "status": {"allocatable": {"cpu": cpu, "memory": "64Gi"}}}
    for name, cpu in (("small", "4"), ("large", "32"))
]


@pytest.mark.parametrize(
    ("own_node", "kernel", "known", "is_in_the_way"),
    [
        ("small", {"cpu": 2}, NODES, True),
        # no room that it holds would be enough
        ("small", {"cpu": 8}, NODES, False),
        ("large", {"cpu": 8}, NODES, True),
        # it could not run there
        ("large", {"cpu": 2, "node_selector": {"pool": "small"}}, NODES, False),
        # one that is to be made could come there
        ("", {"cpu": 8}, NODES, True),
        ("", {"cpu": 8, "node_selector": {"pool": "gpu"}}, NODES, False),
        # who knows
        ("small", {"cpu": 8}, None, True),
    ],
)  # fmt: skip
def test_what_is_in_the_way_of_a_kernel(own_node: str, kernel: dict[str, Any], known: list[Object] | None, is_in_the_way: bool) -> None:
    waits_ = waits(profile(cpu=1))
    waits_["spec"]["nodeName"] = own_node
    assert plan.in_the_way(waits_, [cold(profile(warm=None, **kernel))], known) is is_in_the_way


def test_a_kernel_is_stuck_if_the_scheduler_says_so_and_makes_no_room() -> None:
    def found(**status: Any) -> Object:
        return {**cold(profile()), "status": {"phase": "Pending", **status}}

    refused = [{"type": "PodScheduled", "status": "False"}]
    stuck = found(conditions=refused)
    assert plan.stuck([found(), stuck, found(conditions=refused, nominatedNodeName="n")]) == [stuck]
