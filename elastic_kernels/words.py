"""What Kubernetes says, in words that need no dictionary: texts of the API server, the scheduler, autoscalers and kubelets.

Each function takes one such text and returns a clause about a kernel, or an answer that follows from the text. The texts are not
an interface that anybody promises to keep: what is not recognised is passed on as it is, and nothing certain follows from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from elastic_kernels import quantities

_QUOTA: Final = re.compile(r"exceeded quota: (\S+), requested: (\S+), used: (\S+), limited: (\S+)")
_NO_ACCOUNT: Final = re.compile(r'looking up service account ([\w.-]+)/([\w.-]+): serviceaccount "[^"]*" not found')
_FORBIDDEN: Final = re.compile(r"is forbidden: (.+)", re.DOTALL)

_RESOURCE: Final = re.compile(r"Insufficient ([\w./-]*\w)")
_TAINT: Final = re.compile(r"taints?(?: that the pod didn't tolerate|\(s\))? ?\{([^}]*)\}")
_CLAIM: Final = re.compile(r'persistentvolumeclaim "([^"]+)" (not found|is being deleted)')
_NODES: Final = re.compile(r"\d+/(\d+) nodes are available: (.*)", re.DOTALL)
_CLAUSE: Final = re.compile(r"(\d+) (.*)", re.DOTALL)

# What makes a machine unfit for a pod for as long as both are what they are. Resources do not: other pods end, unless ...
_NEVER: Final = re.compile(r"node selector|node affinity|taint \{")
# ... the scheduler adds that it would not help if they did.
_HELPLESS: Final = re.compile(r"(\d+) Preemption is not helpful")
# Taints that come and go by themselves, most of them with a machine that is young, ill or about to leave.
_PASSING_TAINT: Final = re.compile(
    r"\{[^}]*(node\.kubernetes\.io/|node\.cloudprovider\.|not-ready|unreachable|uninitialized|unregistered|disrupt|startup|ToBeDeleted"
    r"|DeletionCandidate|terminat|shutdown)"
)
# The cluster autoscaler's words for a node group whose new and empty machine could not take the pod either ...
_NO_GROUP: Final = re.compile(r"node selector|node affinity|untolerated taint|didn't tolerate|Insufficient |volume node affinity")
# ... and Karpenter's for a node pool. What it says of limits, offerings, topologies and reservations may change at any moment.
_NO_POOL: Final = re.compile(
    r"did not tolerate|incompatible requirements|does not have known values|no instance type (has|which had) enough resources"
)
_POOL_FOR_NOW: Final = re.compile(r"limit|offering|topology|host port|reserv|not ready")

# What a registry says when it has no such image, and when it will not give it (containerd, Docker).
_IMAGE_MISSING: Final = re.compile(r"not found|manifest unknown|does not exist|no match for platform", re.I)
_IMAGE_REFUSED: Final = re.compile(r"unauthorized|forbidden|denied|authentication required", re.I)

_MISSING_OBJECT: Final = re.compile(r'(secret|configmap|persistentvolumeclaim) "([^"]+)" not found')
_OBJECTS: Final = {"secret": "secret", "configmap": "config map", "persistentvolumeclaim": "volume claim"}
# What the next attempt of a kubelet may mend.
_PASSING_FAILURE: Final = re.compile(r"deadline exceeded|timed out|failed to reserve container name|connection refused|unavailable", re.I)

_SHORT_OF: Final = re.compile(r"low on resource: ([\w-]+)")
_RESOURCES: Final = {"ephemeral-storage": "disk", "inodes": "inodes", "memory": "memory", "pids": "process ids"}
_EXCEEDED: Final = re.compile(r'(?:ephemeral storage limit|limit of containers|exceeds the limit) "?([\w.]*\w)')


def refusal(message: str) -> str:
    """Return why the API server refused a pod or a record: ``pods "x" is forbidden: exceeded quota: …`` and the like."""
    quota = _quota(message)
    if quota:
        name, amounts = quota
        clauses = [f"{resource}: {used} of {hard} are in use, and it takes {wanted}" for resource, (wanted, used, hard) in amounts.items()]
        return f"the quota {name!r} of its namespace has no room for it ({'; '.join(clauses)})"
    account = _NO_ACCOUNT.search(message)
    if account:
        namespace, name = account.groups()
        return f"the namespace {namespace!r} has no service account {name!r}, which the profile names; its administrator has to make it"
    forbidden = _FORBIDDEN.search(message)
    return (forbidden[1] if forbidden else message).rstrip(".")


def quota_may_have_room(message: str) -> bool:
    """Tell whether a refusal is by a quota that would have room once others have given theirs back."""
    quota = _quota(message)
    return quota is not None and all(_at_most(wanted, hard) for wanted, _, hard in quota[1].values())


def _quota(message: str) -> tuple[str, dict[str, tuple[str, str, str]]] | None:
    """Return a quota's name and, by resource, what was asked for, is in use and is allowed."""
    match = _QUOTA.search(message)
    if match is None:
        return None
    wanted, used, hard = (dict(pair.split("=", 1) for pair in text.rstrip(",").split(",") if "=" in pair) for text in match.groups()[1:])
    return match[1], {resource: (amount, used.get(resource, "?"), hard.get(resource, "?")) for resource, amount in wanted.items()}


def _at_most(amount: str, limit: str) -> bool:
    try:
        return quantities.parse(amount) <= quantities.parse(limit)
    except ValueError:
        return True


def missing(verdict: str) -> str:
    """Return what a pod lacks by the scheduler's verdict: ``0/2 nodes are available: 1 Insufficient cpu, …``."""
    clauses = [f"not enough {name} is free" for name in dict.fromkeys(_RESOURCE.findall(verdict))]
    if "node selector" in verdict or "node affinity" in verdict:
        clauses.append("no node has the labels that the profile asks for")
    if "volume node affinity" in verdict:
        clauses.append("a volume lies in another zone than the free nodes")
    claim = _CLAIM.search(verdict)
    if claim:
        clauses.append(f"the volume claim {claim[1]!r} " + ("does not exist" if claim[2] == "not found" else "is being deleted"))
    elif "unbound immediate PersistentVolumeClaims" in verdict:
        clauses.append("a volume claim has no volume yet")
    elif "Too many pods" in verdict:
        clauses.append("the nodes have as many pods as they may have")
    if not clauses:
        taints = [taint for taint in dict.fromkeys(_TAINT.findall(verdict)) if not _PASSING_TAINT.search("{" + taint)]
        if taints:
            clauses.append(f"all nodes are kept for others (taints {', '.join(taints)}) than the profile tolerates")
    return f"{', '.join(clauses)} (the scheduler says: {verdict})" if clauses else f"the scheduler says: {verdict}"


def missing_claim(verdict: str) -> str | None:
    """Return the volume claim that does not exist, if the scheduler's verdict is about one."""
    claim = _CLAIM.search(verdict)
    return claim[1] if claim and claim[2] == "not found" else None


def fits_no_node(verdict: str) -> bool:
    """Tell whether the scheduler's verdict leaves no hope for any machine that is there, whatever ends on them."""
    parts = _NODES.search(verdict)
    if parts is None:
        return False
    total = int(parts[1])
    reasons, _, preemption = parts[2].partition("preemption:")
    helpless = _HELPLESS.search(preemption)
    for_ever = _RESOURCE if helpless and int(helpless[1]) == total else _NEVER
    clauses = _clauses(reasons)
    certain = [(n, text) for n, text in clauses if (_NEVER.search(text) or for_ever.search(text)) and not _PASSING_TAINT.search(text)]
    return certain == clauses and sum(n for n, _ in certain) >= total


def fits_no_group(message: str) -> bool:
    """Tell whether the cluster autoscaler (event NotTriggerScaleUp) says that no node group could ever take the pod."""
    head, colon, rest = message.partition("scale-up:")
    if not colon:
        # what old ones say: (it wouldn't fit if a new node is added)
        return "wouldn't fit" in head
    clauses = _clauses(rest)
    return bool(clauses) and all(_NO_GROUP.search(text) for _, text in clauses)


def fits_no_pool(message: str) -> bool:
    """Tell whether Karpenter (event FailedScheduling) says that no node pool could ever take the pod."""
    head, comma, rest = message.partition("Failed to schedule pod, ")
    if not comma or head:
        return False
    clauses = [clause for clause in re.split(r"; (?=incompatible with|did not|no instance|all available)|;\s*$", rest) if clause]
    return bool(clauses) and all(_NO_POOL.search(clause) and not _POOL_FOR_NOW.search(clause) for clause in clauses)


def no_scale_up(message: str) -> str:
    """Return why an autoscaler brings no machine up now, by the message of its event."""
    if re.search(r"max node group size|max cluster|limit", message):
        return f"the autoscaler may bring up no more machines (it says: {message})"
    if re.search(r"backoff|failed", message):
        return f"the autoscaler's last attempt to bring one up failed (it says: {message})"
    return f"the autoscaler brings none up (it says: {message})"


def pull(message: str, image: str) -> tuple[str, bool]:
    """Return what a failed pull says about an image, and whether no later attempt can fare better."""
    if _IMAGE_REFUSED.search(message):
        return f"its image {image!r} cannot be pulled: the registry refuses it ({message})", True
    if _IMAGE_MISSING.search(message):
        return f"its image {image!r} cannot be pulled: there is no such image ({message})", True
    return f"its image {image!r} cannot be pulled: {message}", False


def mount(message: str) -> tuple[str, bool]:
    """Return what keeps a node from preparing a pod's volumes, and whether only a person can mend it."""
    absent = _MISSING_OBJECT.search(message)
    if absent:
        return f"the {_OBJECTS[absent[1]]} {absent[2]!r} does not exist", True
    if "Multi-Attach" in message:
        return f"a volume is attached to another machine, and can follow once it is free there ({message})", False
    return message, False


def attach(message: str) -> str:
    """Return what keeps a volume from being attached to a pod's node."""
    sentence, _ = mount(message)
    return sentence if sentence != message else f"a volume cannot be attached to its machine so far ({message})"


def start(message: str, container: Mapping[str, Any]) -> str:
    """Return what a container runtime's word about a command, which it could not run, means; ``container`` is the pod's."""
    missing = re.search(r'exec: "([^"]+)": .*(not found|no such file)', message, re.IGNORECASE)
    if missing is None:
        return f"its command cannot be run: {message}"
    paths = [mount["mountPath"] for mount in container.get("volumeMounts") or () if not mount["mountPath"].startswith("/var/run/")]
    covered = f", or a volume covers it (there is one at {' and one at '.join(paths)})" if paths else ""
    return f"its image {container.get('image', '')!r} has no {missing[1]!r}{covered}"


def creation_can_be_repeated(message: str) -> bool:
    """Tell whether a container that could not be created may be at the next attempt."""
    return bool(_PASSING_FAILURE.search(message))


def eviction(message: str) -> str:
    """Return what a pod was evicted for, by the message of the kubelet that did it."""
    short = _SHORT_OF.search(message)
    if short:
        return f"its machine ran short of {_RESOURCES.get(short[1], short[1])} and ended it ({message})"
    exceeded = _EXCEEDED.search(message)
    if exceeded:
        return f"it wrote more to the machine's disk than its limit of {exceeded[1]}, and was ended"
    return f"its machine evicted it: {message}" if message else "its machine evicted it"


def _clauses(text: str) -> list[tuple[int, str]]:
    """Split ``1 Insufficient cpu, 2 node(s) had …`` into counts and texts; commas inside of one do not count."""
    parts = re.split(r", (?=\d+ )", text.strip().rstrip("."))
    matches = [_CLAUSE.fullmatch(part.strip()) for part in parts]
    return [(int(match[1]), match[2]) for match in matches if match]
