"""Why volume claims have no volume, as far as the cluster says it."""

from __future__ import annotations

import asyncio
from typing import Any

from elastic_kernels import unbound
from elastic_kernels.errors import ClusterError

CLAIMS = {"bound": "Bound", "lost": "Pending", "silent": "Pending"}
EVENTS = {
    "uid-lost": [
        {"lastTimestamp": "2026-11-26T10:00:02Z", "message": "no persistent volumes available\nfor this claim."},
        {"lastTimestamp": "2026-11-26T10:00:01Z", "message": "waiting for a volume to be created"},
    ],
    "uid-bound": [{"lastTimestamp": "2026-11-26T10:00:03Z", "message": "it was hard"}],
}


class FakeClient:
    async def get(self, resource: str, namespace: str, name: str) -> Any:
        assert (resource, namespace) == ("persistentvolumeclaims", "kernels")
        return {"metadata": {"uid": f"uid-{name}"}, "status": {"phase": CLAIMS[name]}} if name in CLAIMS else None

    async def list(self, resource: str, namespace: str, *, fieldSelector: str) -> Any:
        assert (resource, namespace) == ("events", "kernels")
        return {"items": EVENTS.get(fieldSelector.removeprefix("involvedObject.uid="), [])}


class Forbidden(FakeClient):
    async def list(self, resource: str, namespace: str, *, fieldSelector: str) -> Any:
        raise ClusterError("events is forbidden", code=403, reason="Forbidden")


class Slow(FakeClient):
    async def get(self, resource: str, namespace: str, name: str) -> Any:
        await asyncio.sleep(60)


def why(client: FakeClient, *claims: str) -> str:
    volumes = [{"name": "record", "secret": {}}, *({"name": name, "persistentVolumeClaim": {"claimName": name}} for name in claims)]
    pod = {"metadata": {"namespace": "kernels", "name": "pod"}, "spec": {"volumes": volumes}}
    return asyncio.run(unbound.why(client, pod))  # type: ignore[arg-type]


def test_what_is_said_last_of_claims_without_a_volume() -> None:
    assert why(FakeClient(), "bound", "lost", "silent", "absent") == (
        "; of the volume claim 'lost' it is said: no persistent volumes available for this claim"
    )
    assert why(FakeClient(), "bound", "silent") == why(FakeClient()) == ""


def test_what_cannot_be_seen_is_not_said(monkeypatch: Any) -> None:
    assert why(Forbidden(), "lost") == ""
    monkeypatch.setattr(unbound, "_SECONDS", 0.05)
    assert why(Slow(), "lost") == ""
