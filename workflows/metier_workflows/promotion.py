"""Moves router versions from shadow to promoted, by request, and keeps those that stand at hand for decisions.

The orchestrator hands it `RouterMoveRequested` and refreshes it; `deciding` asks it for each decision, from memory. `moved` is the rule, and pure. What
cannot be done is answered with a `RequestRejected`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import structlog

from metier_infra import metrics
from metier_infra.bus import Bus
from metier_infra.errors import MoveRefused, RejectRequest, RetryLater, RouterBroken, UnknownRouter
from metier_infra.events import EVENTS_TOPIC, RequestRejected, RouterMoved, RouterMoveRequested
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope
from metier_infra.routers import EVERYONE, Fitted, Move, RouterVersion, Stages
from metier_infra.service import processing, send
from metier_infra.words import Failure, stable_id
from metier_workflows.approving import SOURCE
from metier_workflows.choosing.router import Router, Serving

log = structlog.get_logger()

Load = Callable[[Fitted], Router]
EARLIER = 20
"""So many earlier promoted versions are remembered, to go back to."""


def load(fitted: Fitted) -> Router:
    """The router of a stored version. Raises `RouterBroken`."""
    from metier_workflows.choosing import stored

    return stored.load(fitted)


def moved(stages: Stages, asked: RouterMoveRequested, known: RouterVersion) -> Stages:
    """Where versions stand after a move. Raises `MoveRefused`.

    A version stands at one place. One is promoted, one at the most is on trial. Whoever is promoted takes the place of another, which comes back if that is rolled back.
    Whoever is rolled back comes back by nobody's move but its own: it is no earlier version any more.
    """
    version, now = asked.router, stages.of(asked.router)
    if now == asked.to and not (asked.to == "canary" and asked.share != stages.share):
        raise MoveRefused(f"{version} is {asked.to} already")
    if now == "promoted" and asked.to != "rolled_back":
        raise MoveRefused(f"{version} decides already; roll it back first")
    rest = stages.model_copy(
        update={
            "shadows": tuple(one for one in stages.shadows if one != version),
            **({"canary": None, "share": 0.0} if now == "canary" else {}),
        }
    )
    match asked.to:
        case "shadow":
            return rest.model_copy(update={"shadows": (*rest.shadows, version)})
        case "canary":
            return _on_trial(rest, asked)
        case "promoted":
            _check(asked, known)
            before = (*rest.before, *([rest.promoted] if rest.promoted else []))
            return rest.model_copy(update={"promoted": version, "before": _without(version, before)[-EARLIER:]})
        case "rolled_back":
            return _rolled_back(rest, version, now)


def _on_trial(rest: Stages, asked: RouterMoveRequested) -> Stages:
    if not asked.share:
        raise MoveRefused("a canary needs a share of the tasks, above 0 and up to 1")
    if rest.canary is not None:
        raise MoveRefused(f"{rest.canary} is on trial; promote it or roll it back first")
    return rest.model_copy(update={"canary": asked.router, "share": asked.share})


def _check(asked: RouterMoveRequested, known: RouterVersion) -> None:
    if asked.force:
        if not asked.note.strip():
            raise MoveRefused("whoever forces a promotion says why, in a note")
        return
    if known.report is None or not known.report.judged:
        raise MoveRefused(f"{asked.router} was not judged; `metier routers judge {asked.router}` does it")
    if known.report.verdict == "worse":
        raise MoveRefused(f"{asked.router} is significantly worse: {known.report.why}")


def _rolled_back(rest: Stages, version: str, now: str) -> Stages:
    if now == "fitted" and version not in rest.before:
        raise MoveRefused(f"{version} stands nowhere, and so cannot be rolled back")
    before = _without(version, rest.before)
    if now != "promoted":
        return rest.model_copy(update={"before": before})
    return rest.model_copy(update={"promoted": before[-1] if before else None, "before": before[:-1]})


def _without(version: str, before: Sequence[str]) -> tuple[str, ...]:
    return tuple(one for one in before if one != version)


class Promotion:
    """One to an orchestrator. `loads` makes a router of a stored version."""

    def __init__(self, bus: Bus, journal: Journal, loads: Load = load) -> None:
        self._bus = bus
        self._journal = journal
        self._loads = loads
        self._routers: dict[str, Router | None] = {}
        self._serving: Mapping[str, Serving] = MappingProxyType({})
        self._turn = asyncio.Lock()

    def serving(self, tenant: str) -> Serving:
        """See `Routers.serving`: what stands for the tenant; what it has none of is that of all tenants."""
        return self._serving.get(tenant) or self._serving.get(EVERYONE) or Serving()

    async def refresh(self) -> None:
        """Read what stands, and load what is new. A version that cannot be loaded is left out, which is told, and the others go on."""
        async with self._turn:
            await self._read()

    async def _read(self) -> None:
        stages = await self._journal.routers.stages()
        standing = {version for one in stages.values() for version in one.standing}
        for version in sorted(standing - self._routers.keys()):
            self._routers[version] = await self._load(version)
        self._routers = {version: router for version, router in self._routers.items() if version in standing}
        self._serving = serving(stages, {name: one for name, one in self._routers.items() if one is not None})

    async def _load(self, version: str) -> Router | None:
        try:
            fitted = await self._journal.routers.get(version)
            if fitted is None or not fitted.whole:
                raise RouterBroken(f"the router {version} in the journal is gone, or is not what was stored")
            return await asyncio.to_thread(self._loads, fitted)
        except RetryLater:
            raise
        except Exception:  # whatever breaks in a version, the others and the author's default are there
            log.exception("router cannot be loaded", action="decide without it", router=version)
            metrics.add(metrics.ROUTERS_BROKEN, 1)
            return None

    async def on_move(self, envelope: Envelope[RouterMoveRequested], delivery: Delivery) -> None:
        """Make a move and tell of it, or tell why not. The same request twice moves once."""
        with processing(envelope, delivery) as span:
            try:
                move = await self._move(envelope)
            except RejectRequest as error:
                span.fail(error.code)
                log.info("router not moved", action="tell", router=envelope.data.router, reason=error.code)
                await send(self._bus, EVENTS_TOPIC, _rejected(envelope, error))
                return
            await send(self._bus, EVENTS_TOPIC, told(move))
        log.info("router moved", action="decide with it", router=move.version, stage=move.stage, tenant=move.tenant)
        await self.refresh()

    async def _move(self, envelope: Envelope[RouterMoveRequested]) -> Move:
        """The move, as it was made. Another one at the same time, on another replica, is taken into account."""
        asked, move_id = envelope.data, stable_id("move", envelope.source, envelope.id)
        tenant = asked.tenant or EVERYONE
        while (made := await self._journal.routers.moved(move_id)) is None:
            known = await self._known(asked.router)
            seen = (await self._journal.routers.stages()).get(tenant, Stages())
            after = moved(seen, asked, known)
            facts = asked.model_dump(include={"share", "by", "note"})
            left = after.promoted if seen.of(asked.router) != "fitted" else None
            other = {"promoted": seen.promoted, "rolled_back": left}.get(asked.to)
            move = Move(move_id=move_id, tenant=tenant, version=asked.router, stage_before=seen.of(asked.router),
                        stage=asked.to, forced=asked.force, other=other, **facts)  # fmt: skip
            await self._journal.routers.move(move, seen, after)
        return made

    async def _known(self, version: str) -> RouterVersion:
        known = next((one for one in await self._journal.routers.all() if one.version == version), None)
        if known is None:
            raise UnknownRouter(f"no router version is called {version!r}; `metier routers list` shows them")
        return known


def serving(stages: Mapping[str, Stages], routers: Mapping[str, Router]) -> Mapping[str, Serving]:
    """What decides for whom. A tenant without a promoted version of its own has that for all, with the one on trial beside it; shadows are its own and those for all."""
    everyone = stages.get(EVERYONE, Stages())
    return {tenant: _serving(own, everyone, routers) for tenant, own in {EVERYONE: everyone, **stages}.items()}


def _serving(own: Stages, everyone: Stages, routers: Mapping[str, Router]) -> Serving:
    promoted = own.promoted or everyone.promoted
    trial = own if own.canary or own.promoted else everyone
    shadows = dict.fromkeys((*own.shadows, *everyone.shadows))
    canary = routers.get(trial.canary or "")
    return Serving(
        promoted=routers.get(promoted or ""),
        canary=canary,
        share=trial.share if canary else 0.0,
        shadows=tuple(routers[one] for one in shadows if one in routers and one not in {promoted, trial.canary}),
    )


def told(move: Move) -> Envelope[RouterMoved]:
    """The event that tells of a move: the same whenever it is told."""
    said = RouterMoved(
        router=move.version,
        before=move.stage_before,
        to=move.stage,
        share=move.share,
        tenant=move.tenant or None,
        by=move.by,
        note=move.note,
        other=move.other,
    )
    return Envelope(said, f"{move.move_id}/moved", SOURCE, move.version)


def _rejected(envelope: Envelope[RouterMoveRequested], error: RejectRequest) -> Envelope[RequestRejected]:
    said = RequestRejected(
        request_id=envelope.id,
        request_source=envelope.source,
        request_type=envelope.data.TYPE,
        failure=Failure(code=error.code, message=str(error)),
    )
    name = stable_id("rejected", envelope.source, envelope.id)
    return Envelope(said, f"{name}/rejected", SOURCE, envelope.data.router, subject=envelope.id)
