"""Texts of schedulers and autoscalers, and what follows from them: nothing certain unless it is."""

from __future__ import annotations

import pytest

from elastic_kernels.words import fits_no_group, fits_no_node, fits_no_pool, missing


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("0/2 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) had taint {a: b}, that the pod didn't tolerate.", "not enough nvidia.com/gpu is free"),
        ("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity.", "no node has the labels that the profile asks for"),
        ("0/2 nodes are available: 1 node(s) had volume node affinity conflict.", "no node has the labels that the profile asks for, a volume lies in another zone than the free nodes"),
        ('persistentvolumeclaim "absent" not found', "the volume claim 'absent' does not exist"),
        ('persistentvolumeclaim "old" is being deleted', "the volume claim 'old' is being deleted"),
        ("0/2 nodes are available: 2 pod has unbound immediate PersistentVolumeClaims.", "a volume claim has no volume yet"),
        ("0/2 nodes are available: 2 Too many pods.", "the nodes have as many pods as they may have"),
        ("0/2 nodes are available: 2 node(s) had taint {team: b}, that the pod didn't tolerate.", "all nodes are kept for others (taints team: b) than the profile tolerates"),
        ("0/2 nodes are available: 1 node(s) had untolerated taint {team: b}, 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }.", "all nodes are kept for others (taints team: b) than the profile tolerates"),
    ],
)  # fmt: skip
def test_the_schedulers_verdict_in_words(verdict: str, words: str) -> None:
    assert missing(verdict) == f"{words} (the scheduler says: {verdict})"


@pytest.mark.parametrize(
    ("verdict", "never"),
    [
        ("0/2 nodes are available: 2 node(s) didn't match node selector.", True),
        ("0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint {team: b}.", True),
        (
            "0/2 nodes are available: 1 node(s) had taint {team: b}, that the pod didn't tolerate, 1 node(s) didn't match node selector.",
            True,
        ),
        (
            "0/2 nodes are available: 2 Insufficient memory. preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.",
            True,
        ),
        (
            "0/2 nodes are available: 2 Insufficient memory. preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.",
            False,
        ),
        ("0/2 nodes are available: 1 Insufficient memory, 1 node(s) didn't match node selector.", False),
        ("0/2 nodes are available: 1 node(s) were unschedulable, 1 node(s) didn't match node selector.", False),
        ("0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }.", False),
        ("0/1 nodes are available: 1 node(s) had untolerated taint {node.cilium.io/agent-not-ready: }.", False),
        ("0/1 nodes are available: 1 node(s) had untolerated taint(s).", False),
        ("0/3 nodes are available: 2 node(s) didn't match node selector.", False),
        ("0/1 nodes are available: 1 something that is new.", False),
        ("no nodes available to schedule pods", False),
        ("", False),
    ],
)
def test_whether_a_node_may_ever_fit(verdict: str, never: bool) -> None:
    assert fits_no_node(verdict) == never


@pytest.mark.parametrize(
    ("message", "never"),
    [
        ("pod didn't trigger scale-up: 2 node(s) didn't match Pod's node affinity/selector", True),
        ("pod didn't trigger scale-up: 1 Insufficient cpu, 1 node(s) had taint {a: b}, that the pod didn't tolerate", True),
        ("pod didn't trigger scale-up (it wouldn't fit if a new node is added)", True),
        ("pod didn't trigger scale-up: 1 Insufficient cpu, 1 max node group size reached", False),
        ("pod didn't trigger scale-up: 1 in backoff after failed scale-up", False),
        ("pod didn't trigger scale-up: 1 max cluster cpu limit reached", False),
        ("pod didn't trigger scale-up:", False),
    ],
)
def test_whether_a_node_group_may_ever_fit(message: str, never: bool) -> None:
    assert fits_no_group(message) == never


@pytest.mark.parametrize(
    ("message", "never"),
    [
        ('Failed to schedule pod, incompatible with nodepool "a", daemonset overhead={"cpu":"1"}, did not tolerate team=b:NoSchedule', True),
        ('Failed to schedule pod, incompatible with nodepool "a", x, incompatible requirements, key b, b In [c] not in b In [d]; incompatible with nodepool "e", x, did not tolerate f', True),
        ("Failed to schedule pod, did not tolerate taint (taint=a:NoSchedule); no instance type has enough resources ... resources={}", True),
        ('Failed to schedule pod, incompatible with nodepool "a", x, did not tolerate f; all available instance types exceed limits for nodepool: "b"', False),
        ('Failed to schedule pod, incompatible with nodepool "a", x, no instance type satisfied resources {} and requirements b (no instance type has the required offering)', False),
        ('Failed to schedule pod, incompatible with nodepool "a", x, unsatisfiable topology constraint for topology spread', False),
        ("0/2 nodes are available: 2 did not tolerate", False),
    ],
)  # fmt: skip
def test_whether_a_node_pool_may_ever_fit(message: str, never: bool) -> None:
    assert fits_no_pool(message) == never
