"""One small fleet for all tests of this folder that harm one process at one point: what each of them breaks is told apart by the names of its runs."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio
from kafka.admin import KafkaAdminClient

from metier import client, configuration
from metier.chaos import checks
from metier.chaos.fleet import LAUNCH, LOOK_S, Member
from metier.chaos.harness import Scene, Setting, scene
from metier.chaos.plan import Ask, Request
from metier_infra.settings import KafkaSettings

ALONE = ("orchestrator-1", "doer-1", "coder-1", "sayer-1", "tools-1")
"""The fewest processes that can end every run."""
PATIENCE_S = 240.0
"""Longer than anything here takes on a busy machine; what takes longer hangs."""
_ENDED = "SELECT run_id FROM runs WHERE announced = 1"


@dataclass
class Ground:
    """The fleet, the runs that were asked of it so far, and all that was ever wrong with them."""

    scene: Scene
    asked: list[Request] = field(default_factory=list[Request])
    known: set[str] = field(default_factory=set[str])
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def member(self, name: str) -> Member:
        return self.scene.roles.members[name]

    async def ask(self, *workflows: Ask, copies: int = 1) -> Sequence[Request]:
        """Have these runs asked for, under names that nobody else has."""
        requests = [Request(0.0, f"ask{next(self.numbers)}", workflow, copies, None) for workflow in workflows]
        self.asked += requests
        await self.scene.ask(requests)
        return requests

    async def until(self, what: str, there: Callable[[], Awaitable[bool]]) -> None:
        """Look until it is there."""
        limit = time.monotonic() + PATIENCE_S
        while not await there():
            if time.monotonic() > limit:
                logs = [f"--- {one.name}\n{one.log[-3000:]}" for one in self.scene.roles.members.values()]
                pytest.fail("\n".join([f"{what}: not within {PATIENCE_S:.0f} s", *logs]))
            await asyncio.sleep(LOOK_S)

    async def ended(self, requests: Sequence[Request]) -> None:
        """Wait until these runs ended, and the journal says that it was told."""
        wanted = {str(client.run_id_of(client.SOURCE, request.name)) for request in requests}

        async def there() -> bool:
            return wanted <= {str(row["run_id"]) for row in await self.scene.db.read(_ENDED)}

        await self.until(f"{[request.name for request in requests]} end", there)

    async def started(self, name: str, points: str = "") -> None:
        """Start a process anew, that dies or stalls at these points; some lie before it is ready."""
        await self.member(name).again(**({"METIER_FAILPOINTS": points} if points else {}))
        await self.member(name).ready()

    async def killed(self, name: str) -> None:
        self.member(name).send(signal.SIGKILL)
        await self.member(name).ended()

    async def stands_still(self, name: str) -> None:
        """Wait until a process has stopped itself."""
        stat = Path(f"/proc/{self.member(name).pids[-1]}/stat")

        async def stopped() -> bool:
            return stat.read_text().rpartition(")")[2].split()[0] == "T"

        await self.until(f"{name} stands still", stopped)

    async def says(self, name: str, words: str) -> None:
        """Wait until a process has logged this since it was started last."""
        since = self.member(name).log.rfind('"action": "start"')

        async def said() -> bool:
            return words in self.member(name).log[since:]

        await self.until(f"{name} says {words}", said)

    async def committed(self) -> int:
        """The sum of the offsets that orchestrators committed of the requests."""
        return await asyncio.to_thread(_committed, self.scene.ground.config.kafka)

    async def quiet(self) -> None:
        """Wait until every run has ended: what is left of one test would pass the points of the next."""

        async def none() -> bool:
            return not await self.scene.db.read("SELECT run_id FROM runs WHERE announced = 0 LIMIT 1")

        await self.until("all runs end", none)

    async def dead(self, name: str) -> None:
        """Wait until a process is gone."""

        async def gone() -> bool:
            return not self.member(name).running

        await self.until(f"{name} dies", gone)

    async def wrong(self, requests: Sequence[Request]) -> Mapping[str, Sequence[str]]:
        """What came to be wrong since this was asked before, but for what is wrong with the runs of others."""
        others = {f"{request.name}{end}" for request in self.asked if request not in requests for end in ":/"}
        found = checks.judge(await self.scene.look(self.asked), client.SOURCE)
        new = {
            name: [one for one in sentences if one not in self.known and not any(map(one.__contains__, others))]
            for name, sentences in found.items()
        }
        self.known |= {one for sentences in new.values() for one in sentences}
        return {name: sentences for name, sentences in new.items() if sentences}


def _committed(kafka: KafkaSettings) -> int:
    admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap, client_id="metier-tests")
    try:
        group = f"{kafka.prefix}metier.orchestrator.requests"
        return sum(found.offset for found in admin.list_group_offsets(group)[group].values())
    finally:
        admin.close()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def ground() -> AsyncGenerator[Ground]:
    async with scene(configuration.configure(), Setting(names=ALONE)) as there:
        second = Member("orchestrator-2", there.ground.environment, there.ground.folder, LAUNCH)
        there.roles.members[second.name] = second  # where a test starts it
        yield Ground(there)
