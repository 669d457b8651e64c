"""What pods and events mean, in words. The pods are cut from what a real API server and kubelet wrote."""

from __future__ import annotations

from typing import Any

import pytest

from elastic_kernels.status import Phase, classify, exit_code, missing


def pod(phase: str = "Pending", node: str = "general", state: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    statuses = {"containerStatuses": [{"name": "kernel", "state": state}]} if state else {}
    return {
        "metadata": {"name": "p", "namespace": "n"},
        "spec": {"containers": [{"name": "kernel", "image": "example/kernel:1"}], **({"nodeName": node} if node else {})},
        "status": {"phase": phase, **statuses, **status},
    }


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return pod(state={"waiting": {"reason": reason, **({"message": message} if message else {})}})


def terminated(code: int, reason: str = "Error", phase: str = "Failed", **more: str) -> dict[str, Any]:
    return pod(phase, state={"terminated": {"exitCode": code, "reason": reason, **more}})


def unschedulable(message: str) -> dict[str, Any]:
    return pod(node="", conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}])


def event(reason: str, message: str = "", count: int = 1, time: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    return {"reason": reason, "message": message, "count": count, "lastTimestamp": time}


PULL = 'Failed to pull image "example/kernel:1": rpc error: failed to resolve reference: '


@pytest.mark.parametrize(
    ("item", "events", "phase", "sentence", "hopeless"),
    [
        (None, [], Phase.FAILED, "its pod was deleted", True),
        (pod(node=""), [], Phase.QUEUED, "it waits for the scheduler", False),
        (pod(), [], Phase.PREPARING, "its node is preparing it", False),
        (waiting("ContainerCreating"), [event("Pulling")], Phase.PULLING, "its image 'example/kernel:1' is being pulled to the node", False),
        (waiting("ContainerCreating"), [event("Pulling"), event("Pulled", time="2026-01-01T00:00:09Z")], Phase.PREPARING, "its node is preparing it", False),
        (waiting("ContainerCreating"), [event("FailedMount", 'secret "x" not found')], Phase.PREPARING, 'its node cannot prepare it so far: secret "x" not found', False),
        (waiting("ErrImagePull", "not found"), [], Phase.PULLING, "its image 'example/kernel:1' cannot be pulled: not found", True),
        (waiting("ErrImagePull", "connection refused"), [event("Failed", PULL + "connection refused")], Phase.PULLING, "its image 'example/kernel:1' cannot be pulled: connection refused", False),
        (waiting("ImagePullBackOff", "Back-off"), [event("Failed", PULL + "timeout", 2), event("Failed", "Error: ErrImagePull", 2)], Phase.PULLING, "its image 'example/kernel:1' cannot be pulled: " + PULL + "timeout", True),
        (waiting("ImagePullBackOff", "Back-off"), [event("Failed", PULL + "pull access denied", 1)], Phase.PULLING, "its image 'example/kernel:1' cannot be pulled: " + PULL + "pull access denied", True),
        (waiting("InvalidImageName"), [], Phase.FAILED, "its image's name 'example/kernel:1' is not valid", True),
        (waiting("ErrImageNeverPull"), [], Phase.FAILED, "its image 'example/kernel:1' is not on the node and may not be pulled", True),
        (waiting("CreateContainerConfigError", 'secret "absent" not found'), [], Phase.FAILED, 'its container cannot be configured: secret "absent" not found', True),
        (pod("Running", state={"running": {}}), [], Phase.RUNNING, "its container runs, and the kernel does not answer yet", False),
        (terminated(1), [], Phase.FAILED, "it ended with exit code 1", True),
        (terminated(1, phase="Running"), [], Phase.FAILED, "it ended with exit code 1", True),
        (terminated(143), [], Phase.FAILED, "it ended with exit code 143 (signal 15)", True),
        (terminated(0, "Completed", "Succeeded"), [], Phase.SUCCEEDED, "it ended by itself with exit code 0", True),
        (terminated(137, "OOMKilled"), [], Phase.FAILED, "it used more memory than its limit and was ended", True),
        (terminated(128, "StartError", message='exec: "x": not found'), [], Phase.FAILED, 'its command cannot be run: exec: "x": not found', True),
        (pod("Failed", reason="Evicted", message="The node was low on resource: memory."), [], Phase.FAILED, "its node evicted it: The node was low on resource: memory.", True),
        (pod("Failed", reason="DeadlineExceeded"), [], Phase.FAILED, "it ran for longer than it may", True),
        (unschedulable("0/3 nodes are available: 3 Insufficient cpu."), [], Phase.SCHEDULING, "no machine fits it so far: not enough cpu is free (the scheduler says: 0/3 nodes are available: 3 Insufficient cpu.)", False),
        (unschedulable("0/1 …"), [event("TriggeredScaleUp")], Phase.SCALING_UP, "a machine is being brought up for it (the scheduler says: 0/1 …)", False),
        (unschedulable("0/1 …"), [event("NotTriggerScaleUp")], Phase.SCHEDULING, "no machine fits it so far: the scheduler says: 0/1 …", False),
    ],
)  # fmt: skip
def test_classify(item: dict[str, Any] | None, events: list[dict[str, Any]], phase: Phase, sentence: str, hopeless: bool) -> None:
    status = classify(item, events)
    assert (status.phase, status.sentence, status.hopeless) == (phase, sentence, hopeless)


def test_a_deleted_pod_is_terminating() -> None:
    item = pod("Running", state={"running": {}})
    item["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert classify(item, ()).phase is Phase.TERMINATING


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("0/2 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) had taint {a: b}, that the pod didn't tolerate.", "not enough nvidia.com/gpu is free"),
        ("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity.", "no node has the labels that the profile asks for"),
        ("0/2 nodes are available: 1 node(s) had volume node affinity conflict.", "no node has the labels that the profile asks for, a volume lies in another zone than the free nodes"),
        ('persistentvolumeclaim "absent" not found', "the volume claim 'absent' does not exist"),
        ("0/2 nodes are available: 2 pod has unbound immediate PersistentVolumeClaims.", "a volume claim has no volume yet"),
    ],
)  # fmt: skip
def test_the_schedulers_verdict_in_words(verdict: str, words: str) -> None:
    assert missing(verdict) == f"{words} (the scheduler says: {verdict})"


def test_exit_codes() -> None:
    assert exit_code(terminated(3)) == 3
    assert exit_code(pod("Running", state={"running": {}})) is None
