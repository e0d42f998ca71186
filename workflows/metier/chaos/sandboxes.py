"""The containers that nobody holds any more: those of processes of ours that are dead. P5 gives them 60 seconds.

`harness` lets it watch while roles are killed, and asks it in the end, when there should be none.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from metier.chaos.fleet import Fleet
from metier_infra.errors import EngineGone

ALLOWED_S = 60.0
"""What a container may outlive its holder."""
LOOK_S = 2.0


@dataclass
class Sandboxes:
    """Containers of dead owners, and since when they were seen so, on a monotonic clock."""

    orphans: dict[str, float] = field(default_factory=dict[str, float])
    leaked: set[str] = field(default_factory=set[str])

    async def watch(self, roles: Fleet) -> None:
        """Look now and then."""
        while True:
            await asyncio.sleep(LOOK_S)
            with suppress(EngineGone):
                self._note(await asyncio.to_thread(_orphans, roles.pids), time.monotonic())

    def _note(self, found: Collection[str], now: float) -> None:
        self.orphans = {one: self.orphans.get(one, now) for one in found}
        self.leaked |= {one for one, since in self.orphans.items() if now - since > ALLOWED_S}

    async def left(self, roles: Fleet) -> Sequence[str]:
        """Those that were there for too long, now that every process has ended: there is nothing to hold them."""
        found: Sequence[str] = ()
        for _ in range(int(ALLOWED_S / LOOK_S)):
            found = await asyncio.to_thread(_orphans, roles.pids)
            if not found:
                break
            await asyncio.sleep(LOOK_S)
        return sorted(self.leaked | set(found))


def _orphans(pids: Collection[int]) -> Sequence[str]:
    """The containers whose owner was one of these processes and is dead."""
    from metier_tools import owner
    from metier_tools.docker_engine import Engine

    owners: Mapping[str, str] = {one.id[:12]: one.owner for one in Engine(None).sandboxes()}
    return [name for name, whose in owners.items() if _pid(whose) in pids and owner.is_orphan(whose)]


def _pid(whose: str) -> int:
    part = [*whose.split("|"), "", "", ""][2]
    return int(part) if part.isdigit() else -1
