"""What an orchestrator decides with: the router versions that stand, the one that decides this task, and those that are only watched.

Each run's desk asks it once for a decision; `routing` makes it, and the desk keeps and publishes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from threading import Thread

import structlog

from metier_infra.words import AgentCard, Decision, Shadow, Wanted
from metier_workflows.choosing.router import Asked, Choice, Router, Routers, Standing, Topology
from metier_workflows.routing import ROUTER, decide, on_trial

log = structlog.get_logger()

Choose = Callable[[], Choice]

SHADOW_S = 0.1
"""How long a decision waits for what watched versions say; seconds. A version decides within a millisecond or two."""


class Deciding:
    """One to an orchestrator. Without `routers`, what agents declare of themselves decides."""

    def __init__(self, routers: Routers | None = None, shadow_s: float = SHADOW_S) -> None:
        self._routers = routers or Standing()
        self._shadow_s = shadow_s
        self._busy: set[str] = set()

    async def decide(self, wanted: Wanted, cards: Mapping[str, AgentCard], *, tenant: str, seed: int) -> Decision:
        """The decision; nothing is kept yet. Raises as `routing.decide` does."""
        serving = self._routers.serving(tenant)
        asked = Asked(wanted.task.text, wanted.task.category, tenant, seed)
        canary = serving.canary is not None and on_trial(seed, serving.share)
        decision = decide(wanted, cards, asked, serving.canary if canary else serving.promoted, canary=canary)
        if serving.canary is not None and not wanted.named:
            other = serving.promoted if canary else serving.canary
            decision = decision.model_copy(update={"share": serving.share, "other": other.version if other else ROUTER})
        if wanted.named or not serving.shadows:
            return decision
        names = sorted(one.agent for one in decision.candidates)
        return decision.model_copy(
            update={"shadows": await self._watched(serving.shadows, asked, names, wanted.topologies)}
        )

    async def _watched(
        self, routers: Sequence[Router], asked: Asked, names: Sequence[str], topologies: Collection[Topology]
    ) -> tuple[Shadow, ...]:
        """What watched versions say in time. One that is still at an earlier task is left out, and one that breaks."""
        free = [router for router in routers if router.version not in self._busy]
        if not free:
            return ()
        said = [self._start(router, partial(router.choose, asked, names, topologies)) for router in free]
        await asyncio.wait(said, timeout=self._shadow_s)
        return tuple(shadow for one in said if one.done() and (shadow := one.result()))

    def _start(self, router: Router, choose: Choose) -> asyncio.Future[Shadow | None]:
        """Ask a version in a thread of its own, which may last as long as it likes, and holds nobody up at the end of the process."""
        loop = asyncio.get_running_loop()
        said: asyncio.Future[Shadow | None] = loop.create_future()
        version = router.version
        self._busy.add(version)

        def over(shadow: Shadow | None) -> None:
            self._busy.discard(version)
            if not said.done():
                said.set_result(shadow)

        def work() -> None:
            shadow = _shadow(version, choose)
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(over, shadow)

        Thread(target=work, name=f"shadow {version}", daemon=True).start()
        return said


def _shadow(version: str, choose: Choose) -> Shadow | None:
    """What a version chooses; None where it breaks, or knows too little."""
    try:
        choice = choose()
        return Shadow(router=version, topology=choice.topology, chosen=choice.chosen) if choice.confident else None
    except Exception as error:  # it is only watched: whatever breaks in it concerns no run
        log.warning("watched router broke", action="go on", router=version, error=type(error).__name__)
        return None
