"""The processes of `metier chaos`: every role at least twice, each in a process of its own that can be killed, frozen, ended and started again.

`harness` starts them and keeps them up; `faults` harms them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from metier.chaos.clock import CLOCK, step
from metier.chaos.plan import ROLES
from metier_infra.errors import MissingService

LAUNCH = (sys.executable, "-m", "metier.chaos.launch")
"""How `metier` is started: under a clock that can be stepped."""
READY_S = 300.0
END_S = 40.0
"""After SIGTERM, before SIGKILL; beyond the roles' own drain."""
LOOK_S = 0.1


def words_of(name: str) -> Sequence[str]:
    """What a process called `name` runs: a role, or the agent that it serves."""
    role = name.rpartition("-")[0]
    return [role] if role in ROLES else ["agent", role]


class Member:
    """One process. Its name is its instance: started again, it takes its own work up. `lock` is held by whoever harms or starts it.

    `launch` is the command that starts it, before its role; `clock` is the file by which its clock goes.
    """

    def __init__(self, name: str, environment: Mapping[str, str], folder: Path, launch: Sequence[str]) -> None:
        self.name, self.lock, self.pids, self.exits = name, asyncio.Lock(), list[int](), 0
        self.clock, self.launch = folder / f"{name}.clock", launch
        self._sign, self._log = folder / f"{name}.ready", folder / f"{name}.log"
        own = {"METIER_INSTANCE": name, "METIER_READY_FILE": str(self._sign), CLOCK: str(self.clock)}
        self._environment = {**environment, **own}
        step(self.clock, 0.0)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it said."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self, **more: str) -> None:
        """Start it, with more environment for this once."""
        self._sign.unlink(missing_ok=True)
        words = [*self.launch, *words_of(self.name)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                words, env={**self._environment, **more}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.pids.append(self._process.pid)

    async def ready(self) -> bool:
        """Wait until it serves; False if it ended instead. Raises `MissingService` when it does neither."""
        limit = asyncio.get_running_loop().time() + READY_S
        while self.running and not self._sign.exists():
            if asyncio.get_running_loop().time() > limit:
                raise MissingService(f"{self.name} did not become ready; it said:\n{self.log[-2000:]}")
            await asyncio.sleep(LOOK_S)
        return self.running

    def send(self, number: signal.Signals) -> None:
        """Signal it, if it is there."""
        if self._process is not None:
            self._process.send_signal(number)

    async def again(self, **more: str) -> None:
        """Kill it, if it is there, and start it again."""
        self.send(signal.SIGKILL)
        await self.ended()
        self.start(**more)

    async def ended(self, limit_s: float = END_S) -> None:
        """Wait for its end; kill it when that takes too long."""
        process = self._process
        if process is not None:
            try:
                await asyncio.to_thread(process.wait, limit_s)
            except subprocess.TimeoutExpired:
                process.kill()
                await asyncio.to_thread(process.wait)


class Fleet:
    """The processes by name."""

    def __init__(self, members: Iterable[Member]) -> None:
        self.members = {member.name: member for member in members}

    @property
    def exits(self) -> int:
        """How many processes ended though nobody harmed them."""
        return sum(member.exits for member in self.members.values())

    @property
    def pids(self) -> frozenset[int]:
        """Every process that there ever was."""
        return frozenset(pid for member in self.members.values() for pid in member.pids)

    async def keep(self) -> None:
        """Start again whatever ends by itself, as an operator's supervisor would."""
        while True:
            await asyncio.sleep(1.0)
            for member in self.members.values():
                if not member.running and not member.lock.locked():
                    member.exits += 1
                    member.start()

    async def end(self) -> None:
        """Tell all to end, and see that they do."""
        for member in self.members.values():
            with suppress(ProcessLookupError):
                member.send(signal.SIGCONT)
                member.send(signal.SIGTERM)
        await asyncio.gather(*[member.ended() for member in self.members.values()])


@asynccontextmanager
async def fleet(
    names: Iterable[str],
    environment: Mapping[str, str],
    folder: Path,
    *,
    launch: Sequence[str] = LAUNCH,
    failpoints: Mapping[str, str] | None = None,
) -> AsyncGenerator[Fleet]:
    """Processes that are ready, and that end with the block. `failpoints`: of some members, until they are started again."""
    made, armed = Fleet(Member(name, environment, folder, launch) for name in names), failpoints or {}
    try:
        for name, member in made.members.items():
            member.start(**({"METIER_FAILPOINTS": armed[name]} if name in armed else {}))
        for member in made.members.values():
            if not await member.ready() and member.name not in armed:
                raise MissingService(f"{member.name} ended at its start; it said:\n{member.log[-2000:]}")
        yield made
    finally:
        await made.end()


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """This process's environment for a role: without its settings, with `own` ones."""
    strange = ("METIER_", "OTEL_", "OPENAI_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    return {**inherited, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **own}
