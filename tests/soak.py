"""A soak: users who start, use, interrupt, restart and delete kernels at two gateways, while something fails all the time.

Each user keeps account of what must hold for each of their kernels, and everything that does not is a *failure*. What somebody was not
told, because a gateway went in the middle of it, may have happened or not. Kernels whose pods a fault has killed may have lost what was
in them; no others may.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from elastic_kernels import names, reach, record, status
from elastic_kernels.errors import ElasticKernelsError
from tests.conftest import Backend, profile, shut_down_all
from tests.direct import heard
from tests.gateway import PLUGGED_IN, Gateway, Reply, running_gateway, until, write_kernelspecs

USERS, EACH, ALL = 20, 2, 30
PROFILES = {
    "small": profile("small", limit_class="all", cpu={"request": "10m"}, grace_period=2, launch_timeout=60),
    "spot": profile("spot", limit_class="all", cpu={"request": "10m"}, grace_period=2, launch_timeout=60, spot=True),
}
SETTINGS = {
    "ELASTIC_KERNELS_IDENTITY": "header",
    "ELASTIC_KERNELS_TRUSTED_PROXIES": "127.0.0.0/8",
    "ELASTIC_KERNELS_MAX_KERNELS_PER_CLASS": f"all={EACH}",
    "EG_MAX_KERNELS": str(ALL),
}
THINKS = (1.0, 8.0)
# what may take so long where everything fails, and longer is a failure
PATIENCE = 90.0
CELL = 45.0
# for how long a gateway may list a kernel whose record came and went between two of its looks, and then some
LISTED = 15.0
BROKEN = (aiohttp.ClientError, ConnectionError, asyncio.TimeoutError)
UNDEFINED = -1
Fault = Callable[["Soak"], Awaitable[None]]


@dataclass
class Kernel:
    """What its user knows of a kernel."""

    identity: str
    values: set[int] = field(default_factory=lambda: {UNDEFINED})
    """What its variable ``x`` may be."""
    may_be_dead: bool = False
    """After a restart that failed."""
    may_go: bool = False
    """Nobody was told that it was started."""


@dataclass
class Soak:
    """One run: what takes part in it, and what came of it."""

    backend: Backend
    random: random.Random
    replicas: list[Replica] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    killed: set[str] = field(default_factory=set)
    """The ids of kernels whose pods were killed."""
    history: list[str] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def note(self, what: str) -> None:
        self.history.append(f"{time.monotonic() - self.begun:6.1f} {what}")

    def fail(self, what: str) -> None:
        self.note(f"FAILURE {what}")
        self.failures.append(self.history[-1])


class Replica:
    """A gateway that is started again whenever it ends."""

    def __init__(self, backend: Backend, directory: Path) -> None:
        self._backend = backend
        self._directory = directory
        self._stack = AsyncExitStack()
        self._number = 0
        self.gateway: Gateway | None = None

    async def start(self) -> None:
        self._number += 1
        directory = self._directory / str(self._number)
        write_kernelspecs(directory, PROFILES)
        running = running_gateway(directory, {**self._backend.environment, **SETTINGS}, configuration=PLUGGED_IN)
        self.gateway = await self._stack.enter_async_context(running)

    async def end(self, *, by_force: bool = False) -> None:
        gateway, self.gateway = self.gateway, None
        if gateway is not None:
            await (gateway.killed() if by_force else gateway.terminate())
        await self._stack.aclose()


class User:
    """One user, who does one thing after the other."""

    def __init__(self, soak: Soak, name: str) -> None:
        self.name = name
        self.kernels: dict[str, Kernel] = {}
        self.perhaps: set[str] = set()
        """The ids of kernels that may have been started."""
        self.going: set[str] = set()
        """The ids of those that were deleted or could not be started: a gateway may see them a moment longer."""
        self._soak = soak
        self._headers = {"X-Forwarded-User": name}
        self._random = random.Random(soak.random.random())

    def _gateway(self) -> Gateway | None:
        running = [replica.gateway for replica in self._soak.replicas if replica.gateway is not None]
        return self._random.choice(running) if running else None

    async def ask_once(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return an answer; (0, None) if there was none."""
        gateway = self._gateway()
        with suppress(*BROKEN):
            if gateway is not None:
                return await asyncio.wait_for(gateway.request(method, path, body, headers=self._headers), PATIENCE)
        return 0, None

    async def ask(self, method: str, path: str, *expected: int) -> tuple[int, Any]:
        """Return an answer, after asking until there is one of those that are ``expected``; what lasts too long is a failure."""
        end = time.monotonic() + PATIENCE
        while True:
            code, body = await self.ask_once(method, path)
            if code in expected:
                return code, body
            if time.monotonic() > end:
                self._soak.fail(f"{self.name}: {method} {path} is answered {code} {body} for {PATIENCE:.0f} s")
                return code, body
            await asyncio.sleep(0.5)

    async def live(self, until_when: float) -> None:
        while time.monotonic() < until_when:
            await asyncio.sleep(self._random.uniform(*THINKS))
            try:
                await self.act()
            except Exception as error:
                self._soak.fail(f"{self.name}: {error!r}")

    async def act(self) -> None:
        await self.compare()
        if not self.kernels or self._random.random() < 0.15:
            await self.start()
            return
        kernel = self._random.choice(list(self.kernels.values()))
        if kernel.identity in self._soak.killed or kernel.may_be_dead:
            deed = self._random.choice((self.restart, self.delete))
        else:
            deed = self._random.choices((self.cell, self.interrupt, self.restart, self.delete), (6, 2, 1, 2))[0]
        await deed(kernel)
        self._soak.done[deed.__name__] += 1

    async def compare(self) -> None:
        """Compare what is listed with what there should be."""

        async def differs() -> str:
            _, models = await self.ask("GET", "/api/kernels", 200)
            listed = {model["id"]: model for model in models or ()}
            if unknown := listed.keys() - self.kernels.keys() - self.perhaps - self.going:
                return f"{sorted(unknown)} are listed, and nobody wants them"
            for identity, kernel in tuple(self.kernels.items()):
                if identity not in listed:
                    if not (kernel.may_go or identity in self._soak.killed):
                        return f"{identity} is not listed any more"
                    # a gateway that has just come may not know one that is dead
                    del self.kernels[identity]
                    self.perhaps.add(identity)
                elif listed[identity]["execution_state"] == "dead" and not (kernel.may_be_dead or identity in self._soak.killed):
                    return f"{identity} is dead: {listed[identity].get('reason')}"
            for identity in self.perhaps & listed.keys():
                self.perhaps.discard(identity)
                self.kernels[identity] = Kernel(identity, may_go=True, may_be_dead=listed[identity]["execution_state"] == "dead")
            return ""

        end = time.monotonic() + PATIENCE / 3
        while difference := await differs():
            if time.monotonic() > end:
                self._soak.fail(f"{self.name}: {difference}")
                for identity in tuple(self.kernels):
                    if identity in difference:
                        del self.kernels[identity]
                return
            await asyncio.sleep(0.5)

    async def start(self) -> None:
        identity = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        self.perhaps.add(identity)
        body = {"name": self._random.choice(list(PROFILES)), "env": {"KERNEL_ID": identity}}
        code, answer = await self.ask_once("POST", "/api/kernels", body)
        self._soak.done[f"start: {code}"] += 1
        if code == 201:
            self.perhaps.discard(identity)
            self.kernels[identity] = Kernel(identity)
        elif code:
            self.perhaps.discard(identity)
            self.going.add(identity)
        if code not in (0, 201, 403):
            self._soak.note(f"{self.name}: start {identity}: {code} {answer['message']}")
            if "traceback" in answer:
                self._soak.fail(f"{self.name}: {answer}")

    async def execute(self, kernel: Kernel, code: str, *, interrupted: bool = False) -> Reply | None:
        """Return what a cell brought, None if the connection broke."""
        path = f"/api/kernels/{kernel.identity}"
        end = time.monotonic() + PATIENCE
        while True:
            gateway = self._gateway()
            begun = time.monotonic()
            try:
                if gateway is None:
                    raise ConnectionError("no gateway")
                async with gateway.channels(kernel.identity, headers=self._headers) as channels:
                    if interrupted:
                        cell = await asyncio.wait_for(channels.begin(code), CELL)
                        # one whose pod is killed meanwhile may be gone; of any other, the cell's end tells
                        await self.ask("POST", f"{path}/interrupt", 204, 404, 409)
                        reply = await asyncio.wait_for(channels.finish(cell), CELL)
                    else:
                        reply = await channels.execute(code, seconds=CELL)
                if reply.status != "aborted":  # as what follows an interrupt at once
                    return reply
            except aiohttp.WSServerHandshakeError as error:
                if error.status not in (404, 503) or kernel.may_go or kernel.identity in self._soak.killed:
                    return None
                if time.monotonic() > end:
                    self._soak.fail(f"{self.name}: the websocket of {kernel.identity} is refused: {error.status} {error.message}")
                    return None
            except asyncio.TimeoutError:
                runs = gateway is not None and gateway.process is not None and gateway.process.returncode is None
                if runs and kernel.identity not in self._soak.killed:
                    seconds = time.monotonic() - begun
                    self._soak.fail(f"{self.name}: {kernel.identity} does not answer for {seconds:.0f} s; {await self._seen(kernel)}")
                return None
            except (aiohttp.ClientError, ConnectionError):
                return None
            await asyncio.sleep(0.5)

    async def _seen(self, kernel: Kernel) -> str:
        """Return what each gateway takes a kernel for, what is heard from it without one, and its last words; nothing is left later."""
        backend = self._soak.backend
        states, said = [], []
        for replica in self._soak.replicas:
            with suppress(*BROKEN):
                if replica.gateway is not None:
                    asked = replica.gateway.request("GET", f"/api/kernels/{kernel.identity}", headers=self._headers)
                    states.append((await asyncio.wait_for(asked, PATIENCE))[1])
        with suppress(ElasticKernelsError):
            for item in await backend.pods(kernel.identity):
                address = item["status"].get("podIP")
                for secret in await backend.records():
                    if address and secret["metadata"]["labels"][names.KERNEL_ID] == kernel.identity:
                        connection = record.connection(record.from_secret(secret), reach.ports_of(item), address)
                        said.append(f"{address} is heard on {await heard(connection)}")
                said.append(await backend.api.pod_log(backend.namespace, item["metadata"]["name"], names.CONTAINER, lines=20))
        return f"gateways say {states}, its pods {said}"

    async def cell(self, kernel: Kernel) -> None:
        code = f"x = globals().get('x', {UNDEFINED}) + 1; x"
        reply = await self.execute(kernel, code)
        after = {value + 1 for value in kernel.values}
        if reply is None:
            kernel.values |= after
            return
        self._check(kernel, reply, after)

    def _check(self, kernel: Kernel, reply: Reply, expected: set[int]) -> None:
        is_killed = kernel.identity in self._soak.killed
        if reply.status == "ok" and (int(reply.result) in expected or is_killed):
            kernel.values = {int(reply.result)}
            kernel.may_go = False
        elif not (is_killed or (kernel.may_go and reply.content.get("ename") == "DeadKernel")):
            self._soak.fail(f"{self.name}: {kernel.identity} says {reply.content} {reply.text!r} in place of one of {expected}")

    async def interrupt(self, kernel: Kernel) -> None:
        reply = await self.execute(kernel, f"import time; time.sleep({CELL / 2})", interrupted=True)
        if reply is not None and reply.content.get("ename") != "KeyboardInterrupt" and kernel.identity not in self._soak.killed:
            self._soak.fail(f"{self.name}: {kernel.identity} was interrupted and says {reply.content}")
        if reply is None:
            # its cell may still run
            await self.ask("POST", f"/api/kernels/{kernel.identity}/interrupt", 204, 404, 409)

    async def restart(self, kernel: Kernel) -> None:
        code, body = await self.ask_once("POST", f"/api/kernels/{kernel.identity}/restart")
        self._soak.done[f"restart: {code}"] += 1
        kernel.may_be_dead = code != 200
        if code == 200:
            kernel.values = {UNDEFINED}
        else:
            kernel.values.add(UNDEFINED)
            self._soak.note(f"{self.name}: restart {kernel.identity}: {code} {body}")

    async def delete(self, kernel: Kernel) -> None:
        await self.ask("DELETE", f"/api/kernels/{kernel.identity}", 204, 404)
        del self.kernels[kernel.identity]
        self.going.add(kernel.identity)

    async def settle(self) -> None:
        """Look a last time at all that there is, at every gateway, and delete it."""
        await self.compare()
        for kernel in tuple(self.kernels.values()):
            if kernel.identity not in self._soak.killed and not kernel.may_be_dead:
                await self.cell(kernel)
        for kernel in tuple(self.kernels.values()):
            await self.delete(kernel)
        for identity in self.perhaps:
            # which another gateway may be about to take up
            await self.ask("DELETE", f"/api/kernels/{identity}", 204, 404)


async def look_after_limits(soak: Soak) -> None:
    """See, as an administrator, that the limits hold at every moment."""
    while True:
        with suppress(ElasticKernelsError):
            pods = [pod for pod in await soak.backend.pods() if not pod["metadata"].get("deletionTimestamp") and not status.has_ended(pod)]
            # those whose record is gone are the cluster's to take away
            held = {record["metadata"]["uid"] for record in await soak.backend.records()}
            kernels = [pod["metadata"] for pod in pods if pod["metadata"]["ownerReferences"][0]["uid"] in held]
            owners = {kernel["labels"][names.KERNEL_ID]: kernel["annotations"][names.USER] for kernel in kernels}
            soak.done["most kernels"] = max(soak.done["most kernels"], len(owners))
            if len(owners) > ALL or max(Counter(owners.values()).values(), default=0) > EACH:
                soak.fail(f"limits are passed: {Counter(owners.values())}")
        await asyncio.sleep(0.5)


async def end_gateway(soak: Soak) -> None:
    """A fault: a gateway is told to end, or killed, and comes again."""
    replica = soak.random.choice(soak.replicas)
    by_force = soak.random.random() < 0.5
    soak.note(f"gateway {soak.replicas.index(replica)}: {'kill -9' if by_force else 'SIGTERM'}")
    await replica.end(by_force=by_force)
    await replica.start()


async def kill_pods(soak: Soak) -> None:
    """A fault: a pod or two are gone."""
    with suppress(ElasticKernelsError):
        pods = [pod for pod in await soak.backend.pods() if not pod["metadata"].get("deletionTimestamp")]
        for pod in soak.random.sample(pods, min(2, len(pods))):
            identity = pod["metadata"]["labels"][names.KERNEL_ID]
            soak.note(f"pod of {identity}: killed")
            soak.killed.add(identity)
            await soak.backend.api.delete("pods", soak.backend.namespace, pod["metadata"]["name"], grace=0)


async def run(
    backend: Backend, directory: Path, faults: Mapping[str, Fault], seconds: float, seed: int, pause: tuple[float, float] = (3.0, 8.0)
) -> Soak:
    """Soak for so many seconds, settle, and return what came of it. Whatever the faults took away they have brought back."""
    soak = Soak(backend, random.Random(seed))
    soak.replicas = [Replica(backend, directory / name) for name in ("one", "two")]
    await asyncio.gather(*(replica.start() for replica in soak.replicas))
    users = [User(soak, f"user-{number}") for number in range(USERS)]
    end = time.monotonic() + seconds
    limits = asyncio.ensure_future(look_after_limits(soak))
    living = [asyncio.ensure_future(user.live(end)) for user in users]
    try:
        bag: list[str] = []
        while time.monotonic() < end:
            await asyncio.sleep(soak.random.uniform(*pause))
            # each of them once, before any comes again
            bag = bag or soak.random.sample(sorted(faults), len(faults))
            name = bag.pop()
            soak.done[f"fault: {name}"] += 1
            await faults[name](soak)
        await asyncio.gather(*living)
        soak.note("settling")
        await asyncio.gather(*(user.settle() for user in users))
        await _nothing_is_left(soak, users)
    finally:
        for task in (limits, *living):
            task.cancel()
        await asyncio.gather(limits, *living, return_exceptions=True)
        await asyncio.gather(*(replica.end() for replica in soak.replicas))
        await shut_down_all(backend.environment)
    return soak


def told(soak: Soak, directory: Path) -> str:
    """Return what happened in a run that failed: its failures, its history, and what the gateways' logs say of the kernels concerned."""
    kernels = set(re.findall(r"\w{8}-\w{4}-4\w{3}-\w{4}-\w{12}", "".join(soak.failures)))
    lines = [*soak.failures, "", *soak.history]
    for log in sorted(directory.glob("*/*/gateway.log")):
        said = [line for line in log.read_text(errors="replace").splitlines() if any(kernel in line for kernel in kernels)]
        lines += ["", str(log.relative_to(directory)), *said]
    return "\n".join(lines)


async def _nothing_is_left(soak: Soak, users: Sequence[User]) -> None:
    try:
        await until(soak.backend.is_empty, "the last pod and record to go", seconds=PATIENCE)
    except AssertionError as error:
        left = [item["metadata"]["name"] for item in (*await soak.backend.pods(), *await soak.backend.records())]
        soak.fail(f"{error}; left: {left}")
    for number, replica in enumerate(soak.replicas):
        assert replica.gateway is not None
        listed: dict[str, Any] = {}
        try:
            await until(partial(_has_none, replica.gateway, users, listed), "nobody to have a kernel", seconds=LISTED)
        except AssertionError as error:
            soak.fail(f"gateway {number}: {error}; listed: {listed}")


async def _has_none(gateway: Gateway, users: Sequence[User], listed: dict[str, Any]) -> bool:
    """Tell whether no user has a kernel at a gateway, and leave in ``listed`` what each has."""
    asked = [gateway.request("GET", "/api/kernels", headers={"X-Forwarded-User": user.name}) for user in users]
    answers = await asyncio.gather(*asked)
    listed.clear()
    listed.update((user.name, answer) for user, answer in zip(users, answers, strict=True) if answer != (200, []))
    return not listed
