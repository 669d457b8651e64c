"""What a kernel's pod is doing, in words: ``classify(pod, events, now)``.

The fields and reasons read here are those of the Kubernetes API (Pod v1, "Pod Lifecycle") and of the events that the scheduler,
the kubelet and the autoscalers write. Order of evidence, strongest first: the pod's end, what disrupts it, its containers, its
volumes and image (from events), the scheduler's verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Final

from elastic_kernels import disruption, names, words
from elastic_kernels.disruption import Cause, Disruption, container_state

Object = Mapping[str, Any]


class Phase(str, Enum):
    """The stations of a kernel's pod, in the order in which they are passed."""

    QUEUED = "queued"
    """Nobody has looked at it yet, or something holds it back on purpose, such as a quota."""
    SCHEDULING = "scheduling"
    """No node fits so far."""
    SCALING_UP = "scaling-up"
    """No node fits, and an autoscaler has begun to bring one up."""
    PREPARING = "preparing"
    """On a node, which attaches volumes and makes the sandbox."""
    PULLING = "pulling"
    """The node fetches the image."""
    RUNNING = "running"
    """The container runs; whether the kernel answers is for its sockets to say."""
    READY = "ready"
    """The kernel answers."""
    ENDING_SOON = "ending-soon"
    """It runs, and what will end it has been announced."""
    UNREACHABLE = "unreachable"
    """It ran, and its machine does not answer."""
    TERMINATING = "terminating"
    """It was told to end."""
    SUCCEEDED = "succeeded"
    """It ended by itself, with exit code 0."""
    FAILED = "failed"
    """It ended otherwise, or can never start."""


@dataclass(frozen=True)
class Status:
    """One moment of a pod: where it stands, a sentence for its user, and whether it can still become or be a kernel."""

    phase: Phase
    sentence: str
    """A clause without a full stop, whose subject is the kernel."""
    hopeless: bool = False
    """Certainly lost: there is no use in waiting."""
    cause: Cause | None = None
    """Why it ends, once that is known."""
    since: str = field(default="", compare=False)
    """The cluster's time (RFC 3339) at which the phase began, where the cluster says it."""


SOON: Final = "it will be ended soon: "

# The kubelet's words for what no later attempt can mend (waiting.reason of a container).
_FINAL_REASONS: Final = {
    "InvalidImageName": "its image's name {image!r} is not valid",
    "ErrImageNeverPull": "its image {image!r} is not on the node and may not be pulled",
    "CreateContainerConfigError": "its container cannot be configured: {message}",
    "CreateContainerError": "its container cannot be created: {message}",
    "RunContainerError": "its container cannot be started: {message}",
    "PreStartHookError": "its container cannot be started: {message}",
    "PostStartHookError": "its container cannot be started: {message}",
}
_PULL_REASONS: Final = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError", "SignatureValidationFailed")
# A pull that failed for another reason is tried again; after so many attempts nobody should wait for the next.
_PULL_ATTEMPTS: Final = 2
# What does not exist may merely not be seen yet: a kubelet looks again within a second, the scheduler's copy is as quick.
_LOOKS: Final = 2
# ... by the API's time, which has no fractions: up to a second less has passed
_LOOK_SECONDS: Final = 1.25
# Reasons of pods that a kubelet would not take (it looks at them once more than the scheduler does).
_NOT_TAKEN: Final = ("UnexpectedAdmissionError", "NodeAffinity", "NodeSelectorMismatching", "TopologyAffinityError", "NodePorts", "OutOf")
# Reasons of containers that a runtime could not start.
_NOT_STARTED: Final = ("StartError", "ContainerCannotRun")
_VOLUME_EVENTS: Final = ("FailedMount", "FailedAttachVolume", "FailedMapVolume")


def classify(
    pod: Object | None,
    events: Iterable[Object],
    now: datetime,
    *,
    node: Object | None = None,
    answers: bool = False,
    is_gone: bool = False,
) -> Status:
    """Return what ``pod`` is doing at the moment ``now``, or what became of it.

    ``pod`` is as the API has it, or with ``is_gone`` as it had it last; None if that is not known. ``events`` are those of this
    pod, in any order; ``node`` is its node, where that is watched; ``answers`` says that the kernel has answered in it. Called on the
    event loop for every change of a pod.
    """
    if pod is None:
        return Status(Phase.FAILED, "its pod was deleted", hopeless=True, cause=Cause.DELETED)
    happened = sorted(events, key=_time)
    status: Object = pod.get("status") or {}
    disrupted = disruption.find(pod, happened, now, node)
    if has_ended(pod):
        return _ended(pod, disrupted)
    if is_gone:
        sentence, cause = (disrupted.words, disrupted.cause) if disrupted else ("its pod was deleted", Cause.DELETED)
        return Status(Phase.FAILED, sentence, hopeless=True, cause=cause)
    if pod["metadata"].get("deletionTimestamp"):
        return _terminating(pod, disrupted)
    # a kernel may answer before its kubelet says that it runs
    if answers or "running" in container_state(status) or status.get("phase") == "Running":
        return _running(begun(pod), disrupted, answers)
    if is_scheduled(pod):
        return _on_node(pod, container_state(status).get("waiting") or {}, happened)
    return _not_scheduled(pod, happened, now)


def refused(message: str) -> Status:
    """Return the status of a kernel whose pod, or record, the API server would not create, saying ``message``."""
    waits = words.quota_may_have_room(message)
    return Status(Phase.QUEUED if waits else Phase.FAILED, words.refusal(message), hopeless=not waits)


def exit_code(pod: Object) -> int | None:
    """Return the exit code of a pod's container, or None while it has none."""
    terminated = container_state(pod.get("status") or {}).get("terminated")
    return int(terminated["exitCode"]) if terminated else None


def last_words(pod: Object) -> str:
    """Return the end of the log of a container that ran and failed, as far as its kubelet kept it."""
    terminated = container_state(pod.get("status") or {}).get("terminated") or {}
    return "" if terminated.get("reason") in _NOT_STARTED else str(terminated.get("message") or "")


def has_ended(pod: Object) -> bool:
    """Tell whether a pod's container has come to its end."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed") or exit_code(pod) is not None


def is_over(pod: Object) -> bool:
    """Tell whether a pod has ended, or is on its way out."""
    return bool(pod["metadata"].get("deletionTimestamp")) or has_ended(pod)


def begun(pod: Object) -> str:
    """Return when a pod began to be its kernel, as the API writes it: one that waited before has run for longer. Empty if it has not."""
    claimed = (pod["metadata"].get("annotations") or {}).get(names.CLAIMED)
    return str(claimed or (container_state(pod.get("status") or {}).get("running") or {}).get("startedAt") or "")


def is_scheduled(pod: Object) -> bool:
    """Tell whether a pod has a node."""
    return bool(pod["spec"].get("nodeName"))


def _ended(pod: Object, disrupted: Disruption | None) -> Status:
    status = pod["status"]
    terminated = container_state(status).get("terminated") or {}
    code, reason = terminated.get("exitCode"), terminated.get("reason") or status.get("reason") or ""
    message = terminated.get("message") or status.get("message") or ""

    def failed(sentence: str, cause: Cause, phase: Phase = Phase.FAILED) -> Status:
        return Status(phase, sentence, hopeless=True, cause=cause, since=terminated.get("finishedAt") or "")

    if reason == "OOMKilled":
        return failed(_out_of_memory(pod), Cause.OUT_OF_MEMORY)
    if disrupted is not None:
        return failed(disrupted.words, disrupted.cause)
    if reason in _NOT_STARTED:
        return failed(words.start(message, pod["spec"]["containers"][0]), Cause.UNSTARTABLE)
    if reason == "DeadlineExceeded":
        return failed("it ran for longer than it may", Cause.COMPLETED)
    if reason.startswith(_NOT_TAKEN):
        return failed(f"the machine that was chosen for it would not take it: {message or reason}", Cause.REFUSED)
    if code is None and (folders := _failed_before(status)) is not None:
        return failed(f"a folder for it cannot be made on its volume: {folders}", Cause.UNSTARTABLE)
    if code is None:
        return failed(f"its pod ended: {reason or status.get('phase')} {message}".strip(), Cause.CRASHED)
    if code == 0 and status.get("phase") != "Failed":
        return failed("it ended by itself with exit code 0", Cause.COMPLETED, Phase.SUCCEEDED)
    signal = f" (signal {code - 128})" if code > 128 else ""
    return failed(f"it ended with exit code {code}{signal}", Cause.CRASHED)


def _failed_before(status: Object) -> str | None:
    """Return what the container said that failed before the kernel's was started, None if none did."""
    ends = [(before.get("state") or {}).get("terminated") or {} for before in status.get("initContainerStatuses") or ()]
    return next((end.get("message") or f"exit code {end['exitCode']}" for end in ends if end.get("exitCode")), None)


def _out_of_memory(pod: Object) -> str:
    resources = pod["spec"]["containers"][0].get("resources") or {}
    limit = (resources.get("limits") or {}).get("memory")
    if limit is None:
        return "its machine ran out of memory and ended it"
    return f"it used more memory than its limit of {limit} and was ended"


def _terminating(pod: Object, disrupted: Disruption | None) -> Status:
    since = pod["metadata"]["deletionTimestamp"]
    if disrupted is None:
        return Status(Phase.TERMINATING, "its pod is being deleted", hopeless=True, cause=Cause.DELETED, since=since)
    return Status(Phase.TERMINATING, f"it is being ended: {disrupted.words}", hopeless=True, cause=disrupted.cause, since=since)


def _running(since: str, disrupted: Disruption | None, answers: bool) -> Status:
    if disrupted is not None:
        if disrupted.cause is Cause.NODE_LOST:
            hope = "" if disrupted is disruption.NO_MACHINE else "; it may come back"
            return Status(Phase.UNREACHABLE, f"{disrupted.words}{hope}", cause=disrupted.cause)
        return Status(Phase.ENDING_SOON, f"{SOON}{disrupted.words}", cause=disrupted.cause)
    if answers:
        return Status(Phase.READY, "it is ready", since=since)
    return Status(Phase.RUNNING, "its container runs, and the kernel does not answer yet", since=since)


def _on_node(pod: Object, waiting: Object, events: list[Object]) -> Status:
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    image = _image(pod)
    since = disruption.condition(pod["status"], "PodScheduled").get("lastTransitionTime") or ""
    if reason in _FINAL_REASONS and not words.creation_can_be_repeated(message):
        sentence = _FINAL_REASONS[reason].format(image=image, message=message or reason)
        return Status(Phase.FAILED, sentence, hopeless=True, cause=Cause.UNSTARTABLE)
    if reason in _PULL_REASONS:
        failures = [event for event in events if event.get("message", "").startswith("Failed to pull image")]
        said = message if reason == "ErrImagePull" else next((event["message"] for event in reversed(failures)), message)
        sentence, is_final = words.pull(said, image)
        hopeless = is_final or sum(map(_count, failures)) >= _PULL_ATTEMPTS
        return Status(Phase.PULLING, sentence, hopeless, Cause.UNSTARTABLE if hopeless else None, since)
    last = events[-1] if events else {}
    if last.get("reason") == "Pulling":
        return Status(Phase.PULLING, f"its image {image!r} is being pulled to the node", since=str(_time(last)))
    if last.get("reason") in _VOLUME_EVENTS:
        return _volume(last, since)
    if last.get("reason") == "FailedCreatePodSandBox":
        return Status(Phase.PREPARING, f"its node cannot prepare it so far: {last.get('message', '')}", since=since)
    return Status(Phase.PREPARING, "its node is preparing it", since=since)


def _volume(event: Object, since: str) -> Status:
    message = event.get("message", "")
    if event["reason"] == "FailedAttachVolume":
        return Status(Phase.PREPARING, words.attach(message), since=since)
    sentence, is_final = words.mount(message)
    if is_final and _count(event) >= _LOOKS:
        return Status(Phase.FAILED, sentence, hopeless=True, cause=Cause.UNSTARTABLE)
    return Status(Phase.PREPARING, f"its node cannot prepare it so far: {sentence}", since=since)


def _not_scheduled(pod: Object, events: list[Object], now: datetime) -> Status:
    status: Object = pod.get("status") or {}
    found = disruption.condition(status, "PodScheduled")
    created = str(pod["metadata"].get("creationTimestamp") or "")
    since = found.get("lastTransitionTime") or created
    if found.get("reason") == "SchedulingGated":
        gates = ", ".join(gate.get("name", "") for gate in pod["spec"].get("schedulingGates") or ())
        return Status(Phase.QUEUED, f"it waits for its turn, which {gates or 'a scheduling gate'} decides on", since=created)
    if found.get("status") != "False":
        return Status(Phase.QUEUED, "it waits for the scheduler", since=created)
    verdict = found.get("message", "")
    claim = words.missing_claim(verdict)
    if claim is not None:
        noticed = disruption.time(since)
        stands = noticed is not None and (now - noticed).total_seconds() >= _LOOK_SECONDS
        sentence = f"the volume claim {claim!r} does not exist"
        return Status(Phase.FAILED if stands else Phase.SCHEDULING, sentence, stands, Cause.UNSTARTABLE if stands else None, since)
    said = _autoscaler(events)
    kind, message = said.get("reason"), said.get("message", "")
    if kind in ("TriggeredScaleUp", "Nominated"):
        return Status(Phase.SCALING_UP, f"a machine is being brought up for it ({words.missing(verdict)})", since=str(_time(said)))
    never = words.fits_no_group(message) if kind == "NotTriggerScaleUp" else words.fits_no_pool(message)
    if never and words.fits_no_node(verdict):
        sentence = f"no machine fits it, and the autoscaler has none that would: {words.missing(verdict)} (the autoscaler says: {message})"
        return Status(Phase.FAILED, sentence, hopeless=True, cause=Cause.UNSTARTABLE)
    more = f"; {words.no_scale_up(message)}" if said else ""
    return Status(Phase.SCHEDULING, f"no machine fits it so far: {words.missing(verdict)}{more}", since=since)


def _autoscaler(events: list[Object]) -> Object:
    """Return the latest word of the cluster autoscaler or of Karpenter, whose refusal has the reason that the scheduler's has."""
    said = [
        event
        for event in events
        if event.get("reason") in ("TriggeredScaleUp", "Nominated", "NotTriggerScaleUp", "FailedScaleUp")
        or (event.get("reason") == "FailedScheduling" and event.get("message", "").startswith("Failed to schedule pod"))
    ]
    return said[-1] if said else {}


def _image(pod: Object) -> str:
    return str(pod["spec"]["containers"][0].get("image", ""))


def _count(event: Object) -> int:
    return max(int(event.get("count") or 1), int((event.get("series") or {}).get("count") or 1))


def _time(event: Object) -> str:
    # RFC 3339 in UTC throughout: the text sorts as the time does
    series = (event.get("series") or {}).get("lastObservedTime")
    return str(series or event.get("lastTimestamp") or event.get("eventTime") or event.get("metadata", {}).get("creationTimestamp") or "")
