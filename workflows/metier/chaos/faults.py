"""The harm itself: signals to processes, restarts of services, cuts of connections; each is made good again.

`harness` calls `inflict` for each fault of the plan, several at a time; what is harmed already is waited for.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from metier.chaos import disk
from metier.chaos.clock import STEP_S, step
from metier.chaos.fleet import Fleet, Member, words_of
from metier.chaos.plan import Fault, Kind
from metier.chaos.proxy import HOST, Proxy
from metier.chaos.recovery import Recovery
from metier_infra.database import Database
from metier_infra.errors import LaneGone, MissingService
from metier_infra.retry import persist
from metier_infra.service import PATIENT


@dataclass(frozen=True)
class Stack:
    """The local stack whose services can be killed and started: its script and its state folder."""

    script: Path
    state: Path

    def owns(self, service: str) -> bool:
        """Whether the service is one of its own."""
        return self.script.is_file() and (self.state / "run" / f"{service}.pid").is_file()

    async def restart(self, service: str) -> None:
        """Kill it as a crash would, and start it where it was. Raises `MissingService` when it does not come back."""
        for verb in ("kill", "start"):
            words = [sys.executable, str(self.script), verb, service, "--state", str(self.state)]
            done = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise MissingService(f"{service} could not be restarted: {done.stderr.strip()}")


@dataclass
class Faults:
    """Inflicts faults, and counts them by kind. `recovery` is told of a process whose work others should take up; `db` reaches Postgres past the proxy."""

    fleet: Fleet
    proxies: Mapping[str, Proxy]
    stack: Stack
    db: Database
    recovery: Recovery
    counts: Counter[Kind] = field(default_factory=Counter[Kind])
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict[str, asyncio.Lock])

    async def inflict(self, fault: Fault) -> None:
        """Do the harm, and make it good again."""
        acts: Mapping[Kind, Callable[[Fault], Awaitable[None]]] = {
            "kill": self._kill, "drain": self._drain, "freeze": self._freeze, "step": self._step,
            "restart": self._restart, "drop": self._drop, "reject": self._reject, "flush": self._flush, "full": self._full,
        }  # fmt: skip
        async with self._lock(fault.target):
            await acts[fault.kind](fault)
        self.counts[fault.kind] += 1

    def able(self, name: str) -> bool:
        """Whether somebody could go on with what the process of this name holds: no service is harmed, and one that does the same is well."""
        same = [one for one in self.fleet.members.values() if words_of(one.name) == words_of(name)]
        well = any(one.running and not one.lock.locked() for one in same)
        return well and not any(lock.locked() for lock in self._locks.values())

    def _lock(self, target: str) -> asyncio.Lock:
        member = self.fleet.members.get(target)
        return member.lock if member else self._locks.setdefault(target, asyncio.Lock())

    async def _kill(self, fault: Fault) -> None:
        member = self.fleet.members[fault.target]
        member.send(signal.SIGKILL)
        await self.recovery.follow(member.name)
        await asyncio.sleep(fault.for_s)
        await _again(member)

    async def _drain(self, fault: Fault) -> None:
        member = self.fleet.members[fault.target]
        member.send(signal.SIGTERM)
        await _again(member)

    async def _freeze(self, fault: Fault) -> None:
        member = self.fleet.members[fault.target]
        member.send(signal.SIGSTOP)
        await self.recovery.follow(member.name)
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            member.send(signal.SIGCONT)
            self.recovery.back(member.name)

    async def _step(self, fault: Fault) -> None:
        """Its clock goes forward, and later back."""
        member = self.fleet.members[fault.target]
        step(member.clock, STEP_S)
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            step(member.clock, 0.0)

    async def _restart(self, fault: Fault) -> None:
        await self.stack.restart(fault.target)

    async def _drop(self, fault: Fault) -> None:
        await self._cut(fault, self.proxies[fault.target].drop)

    async def _reject(self, fault: Fault) -> None:
        await self._cut(fault, self.proxies[fault.target].reject)

    async def _flush(self, fault: Fault) -> None:
        await persist("flush", partial(_told, self.proxies[fault.target].target, b"FLUSHALL\r\n"), PATIENT)

    async def _full(self, fault: Fault) -> None:
        await persist("fill the disk", partial(disk.fill, self.db), PATIENT)
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            await persist("empty the disk", partial(disk.empty, self.db), PATIENT)

    async def _cut(self, fault: Fault, cut: Callable[[], None]) -> None:
        cut()
        try:
            await asyncio.sleep(fault.for_s)
        finally:
            self.proxies[fault.target].mend()


async def _again(member: Member) -> None:
    """Start a process again once it has ended, and let it get ready: harmed faster than it can start, it would show nothing."""
    await member.ended()
    member.start()
    await member.ready()


async def _told(port: int, command: bytes) -> None:
    """Tell a Redis of this machine a command, past the proxy. Raises `LaneGone` unless it says that it did it."""
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(command)
        said = await reader.readline()
        writer.close()
    except OSError as error:
        raise LaneGone(f"Redis is away: {error}") from error
    if not said.startswith(b"+OK"):
        raise LaneGone(f"Redis said {said!r}")
