"""The orchestrator: takes requests, runs graphs, sends calls out, wakes runs with their answers, and tells the end.

`metier orchestrator` and `metier dev` run it. Requests come from `metier.requests`; everything that concerns a run comes on
`metier.runs`, keyed by the run, to the replica that owns the partition. What it must not forget is in the journal before it is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from metier_infra import metrics, telemetry
from metier_infra.bus import Bus, Consumption
from metier_infra.errors import FailRun, RetryLater
from metier_infra.events import (
    OUTCOMES,
    READERS,
    REQUESTS,
    RUNS,
    ApprovalDecided,
    CallAnswered,
    CallParked,
    CancelRequested,
    Event,
    OutcomeReported,
    RedriveRequested,
    RetryRequested,
    RouterMoveRequested,
    RunAccepted,
    RunRequested,
    Signalled,
)
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope
from metier_infra.outgoing import Level
from metier_infra.rows import Call, Run
from metier_infra.service import EventHandler, Ready, processing, serve
from metier_infra.words import AgentCard, RunId
from metier_workflows import measuring
from metier_workflows.accepting import Accepting
from metier_workflows.approving import Approving
from metier_workflows.choosing.router import Routers
from metier_workflows.control import Control
from metier_workflows.deciding import Deciding
from metier_workflows.drifting import Drifting
from metier_workflows.execution import Execution
from metier_workflows.holdings import Holdings
from metier_workflows.hurrying import hurry
from metier_workflows.outcomes import Outcomes
from metier_workflows.promotion import Promotion
from metier_workflows.rejecting import rejecting
from metier_workflows.run_desk import RunDesk
from metier_workflows.schedules import Keeper, Schedule
from metier_workflows.tenants import Tenants
from metier_workflows.tracing import WINDOW_S
from metier_workflows.versions import Versions
from metier_workflows.waiting import PARK_AFTER_S
from metier_workflows.workflow import Workflows

log = structlog.get_logger()

VISITING = -1
"""In place of a partition: the run was taken out of the journal, not off its topic."""

DUE_S = 1.0
"""How often parked runs are looked at whose time may have come; seconds."""


class Orchestrator:
    """One replica.

    Args:
        bus: where events come from and go to.
        journal: what is true.
        workflows: what this replica serves.
        cards: the agents that workflows may ask.
        instance: this replica's name, unique among those that live.
        drain_s: after `stop`, runs in flight have this long to end before they are let go; seconds.
        limit: runs in flight at one time; others wait for their turn.
        tenants: what each tenant may take.
        schedules: what starts by the clock.
        version_grace_s: a run whose version nobody has served for this long ends failed; seconds.
        level: how much is told of a run while it is under way.
        trace_window_s: how long after its beginning a trace takes new segments of its run; seconds.
        park_after_s: a run that did nothing but wait for so long leaves memory; seconds.
        routers: the versions that decide whom to ask; None: those that were promoted.
    """

    def __init__(
        self,
        bus: Bus,
        journal: Journal,
        workflows: Workflows,
        cards: Mapping[str, AgentCard],
        *,
        instance: str,
        drain_s: float,
        limit: int = 1000,
        tenants: Tenants | None = None,
        version_grace_s: float = 300.0,
        schedules: Sequence[Schedule] = (),
        level: Level = "all",
        trace_window_s: float = WINDOW_S,
        park_after_s: float = PARK_AFTER_S,
        routers: Routers | None = None,
    ) -> None:
        self._bus = bus
        self._journal = journal
        self._workflows = workflows
        self._cards = cards
        self._instance = instance
        self._drain_s = drain_s
        self._level: Level = level
        self._park_after_s = park_after_s
        self._promotion = Promotion(bus, journal)
        self._drifting = Drifting(journal)
        self._deciding = Deciding(routers or self._promotion)
        self._outcomes = Outcomes(journal)
        self._accepting = Accepting(bus, journal, tenants)
        self._approving = Approving(bus, journal)
        self._schedules = Keeper(journal, self._accepting, schedules)
        self._control = Control(journal, self._accepting)
        self._holdings = Holdings(journal, instance, self._accepting.wake, limit, tenants)
        self._versions = Versions(journal, workflows, instance=instance, grace_s=version_grace_s)
        self._execution = Execution(
            bus,
            journal,
            self._versions,
            instance=instance,
            leave=self._holdings.leave,
            wake=self._accepting.wake,
            tenants=tenants,
            trace_window_s=trace_window_s,
        )

    async def run(self, stop: asyncio.Event, ready: Ready) -> None:
        """Serve until `stop`; then end or let go of every run, so that another replica can take it at once."""
        await self._journal.runs.recover(self._instance)
        await self._promotion.refresh()
        measuring.begin(self._workflows.names)
        last = asyncio.Event()
        requests = Consumption([REQUESTS], READERS[REQUESTS], ready=ready.one)
        outcomes = Consumption([OUTCOMES], READERS[OUTCOMES])
        runs = Consumption([RUNS], READERS[RUNS], ready=ready.one, revoked=lambda _, lost: self._holdings.moved(lost))
        async with asyncio.TaskGroup() as group:
            group.create_task(serve(self._bus, requests, self._request_handlers(), stop))
            group.create_task(hurry(self._bus, self._control, stop))
            group.create_task(serve(self._bus, outcomes, {OutcomeReported: self._outcomes.on_reported}, stop))
            group.create_task(serve(self._bus, runs, self._run_handlers(), last))
            keepers = [group.create_task(keep()) for keep in self._keepers()]
            await stop.wait()
            ready.gone()
            await self._holdings.drain(self._drain_s)
            last.set()
            for keeper in keepers:
                keeper.cancel()
        await self._holdings.hand_over()

    def _request_handlers(self) -> Mapping[type[Event], EventHandler]:
        asked: Mapping[type[Event], EventHandler] = {
            CancelRequested: self._control.on_cancel,
            RetryRequested: self._control.on_retry,
            RedriveRequested: self._control.on_redrive,
            Signalled: self._control.on_signal,
        }
        return {
            RunRequested: self._accepting.on_request,
            ApprovalDecided: self._approving.on_decided,
            RouterMoveRequested: self._promotion.on_move,
            **{kind: rejecting(handle, self._bus) for kind, handle in asked.items()},
        }

    def _run_handlers(self) -> Mapping[type[Event], EventHandler]:
        return {RunAccepted: self._on_accepted, CallAnswered: self._on_answered, CallParked: self._on_parked}

    async def _on_accepted(self, envelope: Envelope[RunAccepted], delivery: Delivery) -> None:
        """Take the run up, or end it; where it runs here already, one of its calls may go on that waited for a person."""
        desk = self._holdings.desk(envelope.data.run_id)
        if envelope.data.cancelled:
            self._end(envelope.data.run_id, envelope, delivery)
        elif desk is None:
            self._take(envelope.data.run_id, envelope, delivery, envelope.data)
        else:
            self._holdings.look(envelope.data.tenant)
            desk.waiting.look()

    async def _on_parked(self, envelope: Envelope[CallParked], delivery: Delivery) -> None:
        """A run that is not here has nothing to hear of it: whoever takes it up finds the call parked."""
        with processing(envelope, delivery):
            if desk := self._holdings.desk(envelope.data.run_id):
                desk.waiting.look(envelope.data.call_id)

    async def _on_answered(self, envelope: Envelope[CallAnswered], delivery: Delivery) -> None:
        """An answer wakes its run: where it runs here, by its future; else by taking the run up, which finds the answer."""
        answered = envelope.data
        desk = self._holdings.desk(answered.run_id)
        if desk is None:
            self._take(answered.run_id, envelope, delivery)
            return
        with processing(envelope, delivery, parent=desk.traceparent) as span:
            span.set({telemetry.RUN_ID: answered.run_id, telemetry.CALL_ID: answered.call_id})
            desk.waiting.deliver(answered)

    def _take(
        self, run_id: RunId, envelope: Envelope[Any], delivery: Delivery, accepted: RunAccepted | None = None
    ) -> None:
        if run_id not in self._holdings:
            desk = self._desk(run_id)
            work = partial(self._execution.run, run_id, desk, envelope, delivery)
            self._holdings.start(desk, delivery.partition, accepted, work)

    def _desk(self, run_id: RunId) -> RunDesk:
        return RunDesk(
            run_id, self._bus, self._journal, self._cards, self._level, self._park_after_s, deciding=self._deciding
        )

    def _end(self, run_id: RunId, envelope: Envelope[Any], delivery: Delivery) -> None:
        """A run that was given up does not wait for its turn, and whatever it does here is stopped."""
        desk = self._desk(run_id)
        self._holdings.replace(desk, delivery.partition, self._execution.cancel(run_id, desk, envelope, delivery))

    def _keepers(self) -> Sequence[Callable[[], Coroutine[Any, Any, None]]]:
        return (self._renew, self._attend, self._watch, self._start_what_is_due, self._look_at_routers)

    async def _renew(self) -> None:
        """Keep the leases of this replica alive, whatever else has to wait."""
        while True:
            with suppress(RetryLater):
                await self._holdings.renew()
                await self._versions.refresh()
                await self._look_after_visitors()
            await asyncio.sleep(self._journal.lease_s / 3)

    async def _attend(self) -> None:
        """Wake what nobody holds: runs of dead replicas, and ends that were not told."""
        quiet_s = 0.0
        while True:
            with suppress(RetryLater):
                await self._approving.attend(quiet_s)
                if metrics.on():
                    measuring.open_runs(await self._journal.open_runs.by_state())
                for run in await self._journal.runs.unattended(quiet_s):
                    if run.run_id not in self._holdings:
                        measuring.woken(run)
                        await self._attend_to(run)
                quiet_s = self._journal.lease_s
            await asyncio.sleep(self._journal.lease_s / 3)

    async def _watch(self) -> None:
        """Wake parked runs whose time has come."""
        while True:
            with suppress(RetryLater):
                for run in await self._journal.runs.due():
                    if run.run_id not in self._holdings:
                        await self._attend_to(run)
            await asyncio.sleep(min(DUE_S, self._journal.lease_s / 3))

    async def _start_what_is_due(self) -> None:
        """Start runs by the clock."""
        while True:
            wait_s = 0.0
            with suppress(RetryLater):
                wait_s = await self._schedules.look()
            await asyncio.sleep(min(max(wait_s, DUE_S / 10), self._journal.lease_s / 3))

    async def _look_at_routers(self) -> None:
        """Decide with the versions that stand now, and see whether agents have changed."""
        while True:
            with suppress(RetryLater):
                await self._promotion.refresh()
                await self._drifting.look()
            await asyncio.sleep(self._journal.lease_s / 3)

    async def _attend_to(self, run: Run) -> None:
        """One run must not keep the others waiting: what cannot be told now is tried at the next round."""
        with suppress(TimeoutError, FailRun):
            async with asyncio.timeout(self._journal.lease_s / 3):
                if run.ended:
                    await self._execution.announce(run)
                elif self._versions.everywhere(run):
                    await self._accepting.wake(run)
                elif self._versions.here(run):
                    self._visit(run)

    def _visit(self, run: Run) -> None:
        """Take up a run that its partition's owner does not serve, though what is told of it goes there."""
        event = self._accepting.accepted(run)
        self._take(run.run_id, event, Delivery(RUNS, VISITING, 0, None, b""), event.data)

    async def _look_after_visitors(self) -> None:
        """Hand such runs what the journal knows and another replica was told."""
        for desk in self._holdings.of(VISITING):
            run = await self._journal.runs.get(desk.run_id)
            if run is not None and run.cancelled_at is not None:
                self._end(run.run_id, self._accepting.accepted(run), Delivery(RUNS, VISITING, 0, None, b""))
            for call in await self._journal.calls.of_run(desk.run_id):
                if call.answered_at is not None:
                    desk.waiting.deliver(_answered(call))
                elif call.parked_at is not None:
                    desk.waiting.look(call.call_id)
            desk.waiting.look()


def _answered(call: Call) -> CallAnswered:
    return CallAnswered(
        run_id=call.run_id, call_id=call.call_id, answer=call.answer, failure=call.failure, stamp=call.stamp
    )
