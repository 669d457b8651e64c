"""What pods, events and nodes mean, in words. The objects are cut from what real API servers, kubelets and autoscalers wrote."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from elastic_kernels.disruption import ABSENT, Cause
from elastic_kernels.status import Phase, Status, classify, exit_code, refused

NOW = datetime(2026, 1, 1, 0, 10, tzinfo=timezone.utc)


def pod(phase: str = "Pending", node: str = "general", state: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    statuses = {"containerStatuses": [{"name": "kernel", "state": state, "ready": "running" in state}]} if state else {}
    container = {"name": "kernel", "image": "example/kernel:1", "resources": {"limits": {"memory": "2Gi"}}}
    return {
        "metadata": {"name": "p", "namespace": "n", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": [container], **({"nodeName": node} if node else {})},
        "status": {"phase": phase, **statuses, **status},
    }


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return pod(state={"waiting": {"reason": reason, **({"message": message} if message else {})}})


def terminated(code: int, reason: str = "Error", phase: str = "Failed", **more: str) -> dict[str, Any]:
    return pod(phase, state={"terminated": {"exitCode": code, "reason": reason, **more}})


def running(**status: Any) -> dict[str, Any]:
    return pod("Running", state={"running": {"startedAt": "2026-01-01T00:00:05Z"}}, **status)


def condition(kind: str, status: str = "False", reason: str = "", message: str = "", time: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": time}]}


def unschedulable(message: str, **more: Any) -> dict[str, Any]:
    return pod(node="", **condition("PodScheduled", "False", "Unschedulable", message, **more))


def deleted(item: dict[str, Any], time: str = "2026-01-01T00:10:00Z") -> dict[str, Any]:
    return {**item, "metadata": {**item["metadata"], "deletionTimestamp": time}}


def target(reason: str) -> dict[str, Any]:
    return condition("DisruptionTarget", "True", reason, "…")


def node(*taints: str, effect: str = "NoSchedule", **conditions: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "general"},
        "spec": {"taints": [{"key": key, "effect": effect} for key in taints]},
        "status": {"conditions": [{"type": kind, "status": status} for kind, status in conditions.items()]},
    }


def event(reason: str, message: str = "", count: int = 1, time: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    return {"reason": reason, "message": message, "count": count, "lastTimestamp": time}


PULL = 'Failed to pull image "example/kernel:1": rpc error: failed to resolve reference: '
SECRET = 'MountVolume.SetUp failed for volume "x" : secret "x" not found'
CONFIG_MAP = 'MountVolume.SetUp failed for volume "x" : configmap "x" not found'
ATTACH = 'AttachVolume.Attach failed for volume "pvc-1" : rpc error: code = DeadlineExceeded desc = context deadline exceeded'
MULTI = 'Multi-Attach error for volume "pvc-1" Volume is already exclusively attached to one node and can\'t be attached to another'
RESERVED = 'failed to reserve container name "kernel_p_n_0": name is reserved'
NO_LABELS = "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
NO_CPU = "0/3 nodes are available: 3 Insufficient cpu."
NO_GPU = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
NO_CLAIM = '0/2 nodes are available: persistentvolumeclaim "absent" not found. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.'
NO_GROUP = "pod didn't trigger scale-up: 1 node(s) didn't match Pod's node affinity/selector, 1 Insufficient nvidia.com/gpu"
AT_MAXIMUM = "pod didn't trigger scale-up: 1 node(s) had untolerated taint(s), 3 max node group size reached"
NO_POOL = 'Failed to schedule pod, incompatible with nodepool "default", daemonset overhead={"cpu":"150m"}, incompatible requirements, label "gpu" does not have known values'
POOL_LIMIT = 'Failed to schedule pod, all available instance types exceed limits for nodepool: "default"'
LABELS = "no node has the labels that the profile asks for (the scheduler says: " + NO_LABELS + ")"
GPU = "not enough nvidia.com/gpu is free (the scheduler says: " + NO_GPU + ")"


def test_what_another_container_of_the_pod_does_is_not_what_the_kernel_does() -> None:
    """Kubelets list them by name."""
    beside = {"name": "istio-proxy", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}, "ready": False}
    lives, ended = running(), terminated(137, "OOMKilled")
    for item in (lives, ended):
        item["status"]["containerStatuses"].insert(0, beside)
    assert exit_code(lives) is None
    assert exit_code(ended) == 137


@pytest.mark.parametrize(
    ("item", "events", "phase", "sentence", "hopeless"),
    [
        (None, [], Phase.FAILED, "its pod was deleted", True),
        (pod(node=""), [], Phase.QUEUED, "it waits for the scheduler", False),
        (pod(node="", **condition("PodScheduled", "False", "SchedulingGated", "Scheduling is blocked")), [], Phase.QUEUED, "it waits for its turn, which a scheduling gate decides on", False),
        (pod(), [], Phase.PREPARING, "its node is preparing it", False),
        (waiting("ContainerCreating"), [event("Pulling")], Phase.PULLING, "its image 'example/kernel:1' is being pulled to the node", False),
        (waiting("ContainerCreating"), [event("Pulling"), event("Pulled", time="2026-01-01T00:00:09Z")], Phase.PREPARING, "its node is preparing it", False),
        (waiting("ContainerCreating"), [event("FailedCreatePodSandBox", "cni")], Phase.PREPARING, "its node cannot prepare it so far: cni", False),
        (waiting("ContainerCreating"), [event("FailedMount", SECRET)], Phase.PREPARING, "its node cannot prepare it so far: the secret 'x' does not exist", False),
        (waiting("ContainerCreating"), [event("FailedMount", SECRET, 2)], Phase.FAILED, "the secret 'x' does not exist", True),
        (waiting("ContainerCreating"), [event("FailedMount", CONFIG_MAP, 3)], Phase.FAILED, "the config map 'x' does not exist", True),
        (waiting("ContainerCreating"), [event("FailedMount", "timed out", 3)], Phase.PREPARING, "its node cannot prepare it so far: timed out", False),
        (waiting("ContainerCreating"), [event("FailedAttachVolume", ATTACH, 3)], Phase.PREPARING, f"a volume cannot be attached to its machine so far ({ATTACH})", False),
        (waiting("ContainerCreating"), [event("FailedAttachVolume", MULTI)], Phase.PREPARING, f"a volume is attached to another machine, and can follow once it is free there ({MULTI})", False),
        (waiting("ErrImagePull", "not found"), [], Phase.PULLING, "its image 'example/kernel:1' cannot be pulled: there is no such image (not found)", True),
        (waiting("ErrImagePull", "connection refused"), [event("Failed", PULL + "connection refused")], Phase.PULLING, "its image 'example/kernel:1' cannot be pulled: connection refused", False),
        (waiting("ImagePullBackOff", "Back-off"), [event("Failed", PULL + "timeout", 2), event("Failed", "Error: ErrImagePull", 2)], Phase.PULLING, "its image 'example/kernel:1' cannot be pulled: " + PULL + "timeout", True),
        (waiting("ImagePullBackOff", "Back-off"), [event("Failed", PULL + "pull access denied", 1)], Phase.PULLING, f"its image 'example/kernel:1' cannot be pulled: the registry refuses it ({PULL}pull access denied)", True),
        (waiting("InvalidImageName"), [], Phase.FAILED, "its image's name 'example/kernel:1' is not valid", True),
        (waiting("ErrImageNeverPull"), [], Phase.FAILED, "its image 'example/kernel:1' is not on the node and may not be pulled", True),
        (waiting("CreateContainerConfigError", 'secret "absent" not found'), [], Phase.FAILED, 'its container cannot be configured: secret "absent" not found', True),
        (waiting("CreateContainerError", "no command specified"), [], Phase.FAILED, "its container cannot be created: no command specified", True),
        (waiting("CreateContainerError", RESERVED), [], Phase.PREPARING, "its node is preparing it", False),
        (running(), [], Phase.RUNNING, "its container runs, and the kernel does not answer yet", False),
        (unschedulable(NO_CPU), [], Phase.SCHEDULING, f"no machine fits it so far: not enough cpu is free (the scheduler says: {NO_CPU})", False),
        (unschedulable("0/1 …"), [event("TriggeredScaleUp", "pod triggered scale-up: [{a 1->2 (max: 3)}]")], Phase.SCALING_UP, "a machine is being brought up for it (the scheduler says: 0/1 …)", False),
        (unschedulable("0/1 …"), [event("Nominated", "Pod should schedule on: nodeclaim/a")], Phase.SCALING_UP, "a machine is being brought up for it (the scheduler says: 0/1 …)", False),
        (unschedulable(NO_LABELS), [event("NotTriggerScaleUp", NO_GROUP)], Phase.FAILED, f"no machine fits it, and the autoscaler has none that would: {LABELS} (the autoscaler says: {NO_GROUP})", True),
        (unschedulable(NO_GPU), [event("NotTriggerScaleUp", NO_GROUP)], Phase.FAILED, f"no machine fits it, and the autoscaler has none that would: {GPU} (the autoscaler says: {NO_GROUP})", True),
        (unschedulable(NO_LABELS), [event("FailedScheduling", NO_POOL)], Phase.FAILED, f"no machine fits it, and the autoscaler has none that would: {LABELS} (the autoscaler says: {NO_POOL})", True),
        # other pods may end
        (unschedulable(NO_CPU), [event("NotTriggerScaleUp", NO_GROUP)], Phase.SCHEDULING, f"no machine fits it so far: not enough cpu is free (the scheduler says: {NO_CPU}); the autoscaler brings none up (it says: {NO_GROUP})", False),
        # machines may be given back, or what was tried may be tried again
        (unschedulable(NO_LABELS), [event("NotTriggerScaleUp", AT_MAXIMUM)], Phase.SCHEDULING, f"no machine fits it so far: {LABELS}; the autoscaler may bring up no more machines (it says: {AT_MAXIMUM})", False),
        (unschedulable(NO_LABELS), [event("NotTriggerScaleUp", "pod didn't trigger scale-up: 1 in backoff after failed scale-up")], Phase.SCHEDULING, f"no machine fits it so far: {LABELS}; the autoscaler's last attempt to bring one up failed (it says: pod didn't trigger scale-up: 1 in backoff after failed scale-up)", False),
        (unschedulable(NO_LABELS), [event("FailedScheduling", POOL_LIMIT)], Phase.SCHEDULING, f"no machine fits it so far: {LABELS}; the autoscaler may bring up no more machines (it says: {POOL_LIMIT})", False),
        # an autoscaler that has changed its mind
        (unschedulable(NO_LABELS), [event("NotTriggerScaleUp", NO_GROUP), event("TriggeredScaleUp", time="2026-01-01T00:00:09Z")], Phase.SCALING_UP, f"a machine is being brought up for it ({LABELS})", False),
        # nobody has said that there is an autoscaler
        (unschedulable(NO_LABELS), [event("FailedScheduling", NO_LABELS)], Phase.SCHEDULING, f"no machine fits it so far: {LABELS}", False),
        (unschedulable(NO_CLAIM), [], Phase.FAILED, "the volume claim 'absent' does not exist", True),
        (unschedulable(NO_CLAIM, time="2026-01-01T00:09:59Z"), [], Phase.SCHEDULING, "the volume claim 'absent' does not exist", False),
    ],
)  # fmt: skip
def test_a_start(item: dict[str, Any] | None, events: list[dict[str, Any]], phase: Phase, sentence: str, hopeless: bool) -> None:
    status = classify(item, events, NOW)
    assert (status.phase, status.sentence, status.hopeless) == (phase, sentence, hopeless)


LOW = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi."
DISK = "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "
UNHEARD = "its machine does not answer any more"


@pytest.mark.parametrize(
    ("item", "phase", "sentence", "cause"),
    [
        (terminated(1), Phase.FAILED, "it ended with exit code 1", Cause.CRASHED),
        (terminated(1, phase="Running"), Phase.FAILED, "it ended with exit code 1", Cause.CRASHED),
        (terminated(143), Phase.FAILED, "it ended with exit code 143 (signal 15)", Cause.CRASHED),
        (terminated(0, "Completed", "Succeeded"), Phase.SUCCEEDED, "it ended by itself with exit code 0", Cause.COMPLETED),
        (terminated(137, "OOMKilled"), Phase.FAILED, "it used more memory than its limit of 2Gi and was ended", Cause.OUT_OF_MEMORY),
        (terminated(128, "StartError", message='exec: "x": not found'), Phase.FAILED, "its image 'example/kernel:1' has no 'x'", Cause.UNSTARTABLE),
        (pod("Failed", reason="DeadlineExceeded"), Phase.FAILED, "it ran for longer than it may", Cause.COMPLETED),
        (pod("Failed", reason="OutOfcpu", message="Node didn't have enough resource: cpu"), Phase.FAILED, "the machine that was chosen for it would not take it: Node didn't have enough resource: cpu", Cause.REFUSED),
        (pod("Failed", reason="Evicted", message=LOW), Phase.FAILED, f"its machine ran short of memory and ended it ({LOW})", Cause.EVICTED),
        (pod("Failed", reason="Evicted", message=DISK), Phase.FAILED, "it wrote more to the machine's disk than its limit of 1Gi, and was ended", Cause.EVICTED),
        (pod("Failed", reason="Evicted", message="Pod The node had condition: [DiskPressure]. "), Phase.FAILED, "its machine evicted it: Pod The node had condition: [DiskPressure]. ", Cause.EVICTED),
        (pod("Failed", reason="Preempting", message="Preempted in order to admit critical pod"), Phase.FAILED, "its machine needed the place for something of higher priority", Cause.PREEMPTED),
        (pod("Failed", reason="Terminated", message="Pod was terminated in response to imminent node shutdown."), Phase.FAILED, "its machine was shut down", Cause.RECLAIMED),
        (pod("Failed", **target("DeletionByPodGC")), Phase.FAILED, "its machine no longer exists", Cause.NODE_LOST),
        (running(reason="NodeLost"), Phase.UNREACHABLE, UNHEARD + "; it may come back", Cause.NODE_LOST),
        (running(**target("PreemptionByScheduler")), Phase.ENDING_SOON, "it will be ended soon: something of higher priority needs its place", Cause.PREEMPTED),
        (running(**target("EvictionByEvictionAPI")), Phase.ENDING_SOON, "it will be ended soon: its machine is being emptied", Cause.EVICTED),
        (running(**target("SomethingNew")), Phase.ENDING_SOON, "it will be ended soon: the cluster ends it: …", Cause.EVICTED),
        (deleted(running(**target("PreemptionByScheduler"))), Phase.TERMINATING, "it is being ended: something of higher priority needs its place", Cause.PREEMPTED),
        (deleted(running(**target("DeletionByTaintManager"))), Phase.TERMINATING, "it is being ended: its machine is closed to it by a taint", Cause.EVICTED),
        (deleted(running()), Phase.TERMINATING, "its pod is being deleted", Cause.DELETED),
        # a kubelet is silent: the control plane takes the readiness away, and nobody confirms a deletion
        (running(**condition("Ready", "False")), Phase.UNREACHABLE, UNHEARD + "; it may come back", Cause.NODE_LOST),
        (deleted(running(), "2026-01-01T00:09:00Z"), Phase.TERMINATING, f"it is being ended: {UNHEARD}", Cause.NODE_LOST),
    ],
)  # fmt: skip
def test_an_end(item: dict[str, Any], phase: Phase, sentence: str, cause: Cause) -> None:
    status = classify(item, (), NOW, answers=True)
    assert (status.phase, status.sentence, status.cause) == (phase, sentence, cause)
    assert status.hopeless == (phase not in (Phase.ENDING_SOON, Phase.UNREACHABLE))


@pytest.mark.parametrize(
    ("events", "of_node", "phase", "sentence", "cause"),
    [
        ([], node(), Phase.READY, "it is ready", None),
        ([event("Preempted", "Preempted by n/b on node general")], None, Phase.ENDING_SOON, "it will be ended soon: something of higher priority needs its place", Cause.PREEMPTED),
        ([event("TaintManagerEviction", "Marking for deletion Pod n/p")], None, Phase.ENDING_SOON, "it will be ended soon: its machine is closed to it by a taint", Cause.EVICTED),
        ([event("TaintManagerEviction", "Cancelling deletion of Pod n/p")], None, Phase.READY, "it is ready", None),
        ([event("TaintManagerEviction", "Marking for deletion Pod n/p")], node("node.kubernetes.io/unreachable"), Phase.UNREACHABLE, UNHEARD + "; it may come back", Cause.NODE_LOST),
        ([], node("node.kubernetes.io/unreachable"), Phase.UNREACHABLE, UNHEARD + "; it may come back", Cause.NODE_LOST),
        ([], node("aws-node-termination-handler/spot-itn"), Phase.ENDING_SOON, "it will be ended soon: AWS takes the spot machine back", Cause.RECLAIMED),
        ([], node("karpenter.sh/disrupted"), Phase.ENDING_SOON, "it will be ended soon: the machine is being taken away", Cause.RECLAIMED),
        ([], node(PreemptScheduled="True"), Phase.ENDING_SOON, "it will be ended soon: its machine is being taken away (PreemptScheduled)", Cause.RECLAIMED),
        ([], node(PreemptScheduled="False", Ready="True"), Phase.READY, "it is ready", None),
        ([], node("x", effect="NoExecute"), Phase.ENDING_SOON, "it will be ended soon: its machine is closed to it by a taint", Cause.EVICTED),
        ([], ABSENT, Phase.UNREACHABLE, "its machine no longer exists", Cause.NODE_LOST),
    ],
)  # fmt: skip
def test_what_is_announced(
    events: list[dict[str, Any]], of_node: dict[str, Any] | None, phase: Phase, sentence: str, cause: Cause | None
) -> None:
    status = classify(running(), events, NOW, node=of_node, answers=True)
    assert (status.phase, status.sentence, status.cause, status.hopeless) == (phase, sentence, cause, False)


def test_a_taint_that_is_tolerated_for_a_while() -> None:
    lasts = {"key": "x", "operator": "Exists", "effect": "NoExecute"}
    closed = node("x", effect="NoExecute")
    for toleration, when_deleted in ((lasts, Cause.DELETED), ({**lasts, "tolerationSeconds": 300}, Cause.EVICTED)):
        tolerant = running()
        tolerant["spec"]["tolerations"] = [toleration]
        assert classify(tolerant, (), NOW, node=closed, answers=True).phase is Phase.READY
        assert classify(deleted(tolerant), (), NOW, node=closed, answers=True).cause is when_deleted


def test_a_kernel_may_answer_before_its_kubelet_says_that_it_runs() -> None:
    assert classify(waiting("ContainerCreating"), (), NOW).phase is Phase.PREPARING
    assert classify(waiting("ContainerCreating"), (), NOW, answers=True).phase is Phase.READY
    assert classify(deleted(waiting("ContainerCreating")), (), NOW, answers=True).phase is Phase.TERMINATING


def test_a_node_may_be_seen_later_than_its_pods() -> None:
    young = pod("Running", state={"running": {"startedAt": "2026-01-01T00:09:58Z"}})
    assert classify(young, (), NOW, node=ABSENT, answers=True).phase is Phase.READY
    assert classify(pod(), (), NOW, node=ABSENT).phase is Phase.PREPARING


def test_a_pod_that_is_gone_ended_as_it_was_last_seen_to() -> None:
    def gone(item: dict[str, Any]) -> tuple[str, Cause | None]:
        status = classify(item, (), NOW, is_gone=True)
        assert (status.phase, status.hopeless) == (Phase.FAILED, True)
        return status.sentence, status.cause

    assert gone(running()) == ("its pod was deleted", Cause.DELETED)
    assert gone(terminated(137, "OOMKilled")) == ("it used more memory than its limit of 2Gi and was ended", Cause.OUT_OF_MEMORY)
    assert gone(running(**target("EvictionByEvictionAPI"))) == ("its machine is being emptied", Cause.EVICTED)


def test_since_when() -> None:
    assert classify(running(), (), NOW).since == "2026-01-01T00:00:05Z"
    assert classify(pod(node=""), (), NOW).since == "2026-01-01T00:00:00Z"
    # a status is the same for as long as its words are
    assert Status(Phase.QUEUED, "x", since="a") == Status(Phase.QUEUED, "x", since="b")


QUOTA = 'pods "p" is forbidden: exceeded quota: compute, requested: limits.memory=2Gi,pods=1, used: limits.memory=7Gi,pods=1, limited: limits.memory={},pods=9'


@pytest.mark.parametrize(
    ("message", "phase", "sentence"),
    [
        (QUOTA.format("8Gi"), Phase.QUEUED, "the quota 'compute' of its namespace has no room for it (limits.memory: 7Gi of 8Gi are in use, and it takes 2Gi; pods: 1 of 9 are in use, and it takes 1)"),
        (QUOTA.format("1Gi"), Phase.FAILED, "the quota 'compute' of its namespace has no room for it (limits.memory: 7Gi of 1Gi are in use, and it takes 2Gi; pods: 1 of 9 are in use, and it takes 1)"),
        ('pods "p" is forbidden: error looking up service account n/spark: serviceaccount "spark" not found', Phase.FAILED, "the namespace 'n' has no service account 'spark', which the profile names; its administrator has to make it"),
        ('pods "p" is forbidden: [maximum memory usage per Container is 1Gi, but limit is 2Gi]', Phase.FAILED, "[maximum memory usage per Container is 1Gi, but limit is 2Gi]"),
        ('Pod "p" is invalid: spec.volumes[0].name: Required value', Phase.FAILED, 'Pod "p" is invalid: spec.volumes[0].name: Required value'),
    ],
)  # fmt: skip
def test_a_refusal(message: str, phase: Phase, sentence: str) -> None:
    status = refused(message)
    assert (status.phase, status.sentence, status.hopeless) == (phase, sentence, phase is Phase.FAILED)


def test_exit_codes() -> None:
    assert exit_code(terminated(3)) == 3
    assert exit_code(running()) is None
