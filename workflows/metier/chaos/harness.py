"""`metier chaos`, led from its first process to its verdict: ask for runs, do harm by the plan, let everything become well again, and look.

`command` calls `carry_out`, and so do the tests, with faults and processes of their own.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from metier import client, compose
from metier.chaos import checks, disk, evidence, trail
from metier.chaos.evidence import Evidence
from metier.chaos.faults import Faults, Stack
from metier.chaos.fleet import LAUNCH, Fleet, fleet
from metier.chaos.plan import KINDS, ROLES, SERVICES, Kind, Plan, Request
from metier.chaos.recovery import Bound, Recovery
from metier.chaos.sandboxes import Sandboxes
from metier.chaos.stand import LEASE_S, PARTITIONS, REQUEST_S, SESSION_S, Stand, addresses, stand
from metier.configuration import Config
from metier_infra.bus import Bus
from metier_infra.database import Database
from metier_infra.errors import RetryLater
from metier_infra.events import REQUESTS
from metier_infra.messages import Record
from metier_infra.retry import persist
from metier_infra.service import PATIENT

EVERY = tuple(name for names in ROLES.values() for name in names)
BOUND = Bound(lease_s=LEASE_S, session_s=SESSION_S, step_s=REQUEST_S)
REPOSITORY = Path(__file__).parents[3]
OPEN_AT_MOST = 1000
"""Runs that are open at one time: with more, a slow machine would let calls wait for longer than their deadline."""


def silent(_: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Setting:
    """How a plan is carried out.

    Attributes:
        names: the processes that there are.
        launch: the command that starts one, before its role.
        failpoints: of some processes, until they are started again.
        folder: a new one, where the logs of the processes and the ledger are left; none: they are not kept.
        patience_s: with everything well again, how long nothing may end before what is left counts as stuck; seconds.
        say: is told how it goes, a line at a time.
    """

    names: Sequence[str] = EVERY
    launch: Sequence[str] = LAUNCH
    failpoints: Mapping[str, str] = field(default_factory=dict[str, str])
    folder: Path | None = None
    patience_s: float = 90.0
    say: Callable[[str], None] = silent


@dataclass(frozen=True)
class Report:
    """What came of it: `figures` as `--json` prints them, a sentence for each thing that was found wrong, and what the roles said of some such runs."""

    figures: Mapping[str, Any]
    wrong: Mapping[str, Sequence[str]]
    trail: Mapping[str, Sequence[str]]

    @property
    def clean(self) -> bool:
        """Whether every promise held."""
        return not any(self.wrong.values())


def local_stack() -> Stack:
    """The stack under which we run, or that of `make up`."""
    return Stack(REPOSITORY / "infra/local/stack.py", Path(os.environ.get("METIER_LOCAL_STATE", ".metier")))


def possible(config: Config, components: Collection[str]) -> tuple[Collection[Kind], Collection[str], Sequence[str]]:
    """The kinds of faults that can be had here, the components that can be harmed, and a sentence for each that cannot."""
    urls, stack = addresses(config), local_stack()
    wanted = [name for name in SERVICES if name in components]
    foreign = [name for name in wanted if not stack.owns(name)]
    far = [name for name in wanted if not ("127.0.0.1" in urls[name] and "," not in urls[name])]
    not_here: set[Kind] = {"restart"} if foreign else set()
    not_here |= {"flush"} if "redis" in foreign else set()
    kinds: list[Kind] = [kind for kind in KINDS if kind not in not_here]
    left = [name for name in components if name not in far]
    said = [f"{name} is not restarted, nor emptied: it is not of this local stack" for name in foreign]
    return kinds, left, [*said, *(f"{name} is not cut off: it is not at 127.0.0.1" for name in far)]


async def carry_out(config: Config, plan: Plan, setting: Setting) -> Report:
    """Do all of it. Raises `MissingService` where something that is needed cannot be had."""
    began = time.monotonic()
    setting.say(f"seed {plan.seed}: {len(plan.requests)} runs, {len(plan.faults)} faults; roles start")
    async with scene(config, setting) as there:
        await there.play(plan)
        found = await there.look(plan.requests, await there.sandboxes.left(there.roles))
        wrong = checks.judge(found, client.SOURCE)
        return Report(
            _figures(plan, there, found, wrong, time.monotonic() - began), wrong, _trail(plan.requests, wrong, there)
        )


@contextmanager
def _folder(setting: Setting) -> Generator[Path]:
    """Where the logs and the ledger are: one that stays, or one that goes."""
    if setting.folder is not None:
        setting.folder.mkdir(parents=True)
        yield setting.folder
        return
    with tempfile.TemporaryDirectory(prefix="metier-chaos-") as name:
        yield Path(name)


def _figures(
    plan: Plan, scene: Scene, found: Evidence, wrong: Mapping[str, Sequence[str]], took_s: float
) -> Mapping[str, Any]:
    return {
        "runs": len(plan.requests),
        "seed": plan.seed,
        "faults": dict(scene.faults.counts),
        **{name: len(sentences) for name, sentences in wrong.items()},
        "executions_per_effect": checks.executions_per_effect(found),
        "told_late": checks.told_late(found),
        "recovery_ms": _recovery(scene.recovery),
        "poison": sum(1 for request in plan.requests if request.poison),
        "exits": scene.roles.exits,
        "seconds": round(took_s, 1),
    }


def _recovery(recovery: Recovery) -> Mapping[str, float | None]:
    return {
        "p50": recovery.at(50),
        "p99": recovery.at(99),
        "n": len(recovery.took_ms),
        "bound": 1000 * recovery.bound.after(0),
        "closest": recovery.closest,
    }


def _trail(
    requests: Sequence[Request], wrong: Mapping[str, Sequence[str]], scene: Scene
) -> Mapping[str, Sequence[str]]:
    names = {str(client.run_id_of(client.SOURCE, request.name)): request.name for request in requests}
    return trail.of(wrong, names, {member.name: member.log for member in scene.roles.members.values()})


@dataclass
class Scene:
    """Everything that acts and is acted on. `bus` and `db` reach the services past the proxies."""

    ground: Stand
    roles: Fleet
    bus: Bus
    db: Database
    faults: Faults
    recovery: Recovery
    sandboxes: Sandboxes
    setting: Setting
    ended: int = 0

    async def play(self, plan: Plan) -> None:
        """Ask and harm at the same time; then wait until all is settled, and end the roles."""
        helpers = [
            asyncio.create_task(work)
            for work in (self.roles.keep(), self.recovery.look(self.faults.able), self.sandboxes.watch(self.roles))
        ]
        try:
            await asyncio.gather(self.ask(plan.requests), self._harm(plan))
            self.setting.say(
                f"{len(plan.requests)} runs asked for, {self.faults.counts.total()} faults made good; all shall end"
            )
            await self.settle(len(plan.requests))
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
        await self.roles.end()

    async def ask(self, requests: Sequence[Request]) -> None:
        """Publish the requests, each at its time, until it is acknowledged."""
        began = time.monotonic()
        for number, request in enumerate(requests):
            await asyncio.sleep(max(0.0, began + request.at_s - time.monotonic()))
            await self._room(number)
            for _ in range(request.copies):
                await persist("ask", partial(self._publish, request), PATIENT)
            if request.poison is not None:
                bad = Record(REQUESTS, request.name.encode(), request.poison)
                await persist("poison", partial(self.bus.publish, bad), PATIENT)

    async def _room(self, asked: int) -> None:
        """Wait until fewer than `OPEN_AT_MOST` of those that were asked for are open."""
        while asked - self.ended >= OPEN_AT_MOST:
            self.ended = await self._ended()
            await asyncio.sleep(0.5)

    async def _publish(self, request: Request) -> object:
        value: dict[str, JsonValue] = {"key": request.name, "token": "", "told": []}
        return await client.publish(self.bus, request.workflow, value, event_id=request.name)

    async def _harm(self, plan: Plan) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number, fault in enumerate(plan.faults, 1):
                await asyncio.sleep(max(0.0, began + fault.at_s - time.monotonic()))
                length = f" for {fault.for_s:.1f} s" if fault.for_s else ""
                self.setting.say(
                    f"{fault.at_s:7.1f} s  {number}/{len(plan.faults)}  {fault.kind} {fault.target}{length}"
                )
                group.create_task(self.faults.inflict(fault))

    async def settle(self, wanted: int) -> None:
        """Wait until so many runs ended and were told, as long as that goes on."""
        progress = time.monotonic()
        while self.ended < wanted and time.monotonic() - progress < self.setting.patience_s:
            await asyncio.sleep(0.5)
            ended = await self._ended()
            if ended != self.ended:
                self.ended, progress = ended, time.monotonic()
        self.setting.say(f"{self.ended} of {wanted} runs ended and were told")

    async def _ended(self) -> int:
        try:
            rows = await self.db.read("SELECT count(*) AS n FROM runs WHERE announced = 1")
        except RetryLater:
            return self.ended
        return int(rows[0]["n"])

    async def look(self, requests: Sequence[Request], leaked: Sequence[str] = ()) -> Evidence:
        """Gather what there is to judge; `requests` are all that were made."""
        found, ledger = await evidence.rows(self.db), self.ground.ledger
        told, dead = await asyncio.gather(evidence.events(self.bus, PARTITIONS), evidence.dead_letters(self.bus, 1))
        return Evidence(
            requests=requests,
            events=told,
            dead=dead,
            effects=tuple(ledger.effects),
            bills=tuple(ledger.bills),
            leaked=leaked,
            late=self.recovery.late,
            **found,
        )


@asynccontextmanager
async def scene(config: Config, setting: Setting) -> AsyncGenerator[Scene]:
    """Everything set up, and every process ready; all of it is gone after the block."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(_folder(setting))
        ground = await stack.enter_async_context(stand(config, folder))
        db = await compose.open_database(ground.config, compose.BRIEF, size=3)
        stack.push_async_callback(db.close)
        bus = compose.open_bus(ground.config, "chaos")
        stack.push_async_callback(bus.close)
        started = fleet(setting.names, ground.environment, folder, launch=setting.launch, failpoints=setting.failpoints)
        await disk.prepare(db)
        roles, recovery = await stack.enter_async_context(started), Recovery(db, BOUND)
        faults = Faults(roles, ground.proxies, local_stack(), db, recovery)
        yield Scene(ground, roles, bus, db, faults, recovery, Sandboxes(), setting)
