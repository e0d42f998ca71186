"""The orchestrator: takes requests, runs graphs, sends calls out, wakes runs with their answers, and tells the end.

`metier orchestrator` and `metier dev` run it. Requests come from `metier.requests`; everything that concerns a run comes on
`metier.runs`, keyed by the run, to the replica that owns the partition. What it must not forget is in the journal before it is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import structlog

from metier_infra import telemetry
from metier_infra.bus import Bus, Consumption
from metier_infra.errors import FailRun, RetryLater
from metier_infra.events import (
    REQUESTS,
    RUNS,
    ApprovalDecided,
    CallAnswered,
    CallParked,
    Event,
    RunAccepted,
    RunRequested,
)
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope
from metier_infra.rows import Run
from metier_infra.service import EventHandler, Ready, processing, serve
from metier_infra.words import AgentCard, RunId
from metier_workflows.accepting import Accepting
from metier_workflows.approving import Approving
from metier_workflows.execution import Execution
from metier_workflows.holdings import Holdings
from metier_workflows.run_desk import RunDesk
from metier_workflows.workflow import Workflows

log = structlog.get_logger()


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
    ) -> None:
        self._bus = bus
        self._journal = journal
        self._cards = cards
        self._instance = instance
        self._drain_s = drain_s
        self._accepting = Accepting(bus, journal)
        self._approving = Approving(bus, journal)
        self._holdings = Holdings(journal, instance, self._accepting.wake, limit)
        self._execution = Execution(
            bus, journal, workflows, instance=instance, leave=self._holdings.leave, wake=self._accepting.wake
        )

    async def run(self, stop: asyncio.Event, ready: Ready) -> None:
        """Serve until `stop`; then end or let go of every run, so that another replica can take it at once."""
        await self._journal.runs.release(self._instance)
        last = asyncio.Event()
        requests = Consumption([REQUESTS], "metier.orchestrator.requests", ready=ready.one)
        runs = Consumption(
            [RUNS], "metier.orchestrator.runs", ready=ready.one, revoked=lambda _, lost: self._holdings.moved(lost)
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(serve(self._bus, requests, self._request_handlers(), stop))
            group.create_task(serve(self._bus, runs, self._run_handlers(), last))
            keepers = [group.create_task(self._renew()), group.create_task(self._attend())]
            await stop.wait()
            ready.gone()
            await self._holdings.drain(self._drain_s)
            last.set()
            for keeper in keepers:
                keeper.cancel()
        await self._holdings.hand_over()

    def _request_handlers(self) -> Mapping[type[Event], EventHandler]:
        return {RunRequested: self._accepting.on_request, ApprovalDecided: self._approving.on_decided}

    def _run_handlers(self) -> Mapping[type[Event], EventHandler]:
        return {RunAccepted: self._on_accepted, CallAnswered: self._on_answered, CallParked: self._on_parked}

    async def _on_accepted(self, envelope: Envelope[RunAccepted], delivery: Delivery) -> None:
        """Take the run up; where it runs here already, one of its calls may go on that waited for a person."""
        desk = self._holdings.desk(envelope.data.run_id)
        if desk is None:
            self._take(envelope.data.run_id, envelope, delivery)
        else:
            desk.look()

    async def _on_parked(self, envelope: Envelope[CallParked], delivery: Delivery) -> None:
        """A run that is not here has nothing to hear of it: whoever takes it up finds the call parked."""
        with processing(envelope, delivery):
            if desk := self._holdings.desk(envelope.data.run_id):
                desk.look(envelope.data.call_id)

    async def _on_answered(self, envelope: Envelope[CallAnswered], delivery: Delivery) -> None:
        """An answer wakes its run: where it runs here, by its future; else by taking the run up, which finds the answer."""
        answered = envelope.data
        desk = self._holdings.desk(answered.run_id)
        if desk is None:
            self._take(answered.run_id, envelope, delivery)
            return
        with processing(envelope, delivery, parent=desk.traceparent) as span:
            span.set({telemetry.RUN_ID: answered.run_id, telemetry.CALL_ID: answered.call_id})
            desk.deliver(answered)

    def _take(self, run_id: RunId, envelope: Envelope[Any], delivery: Delivery) -> None:
        if run_id not in self._holdings:
            desk = RunDesk(run_id, self._bus, self._journal, self._cards)
            self._holdings.start(desk, delivery.partition, self._execution.run(run_id, desk, envelope, delivery))

    async def _renew(self) -> None:
        """Keep the leases of this replica alive, whatever else has to wait."""
        while True:
            with suppress(RetryLater):
                await self._holdings.renew()
            await asyncio.sleep(self._journal.lease_s / 3)

    async def _attend(self) -> None:
        """Wake what nobody holds: runs of dead replicas, and ends that were not told."""
        quiet_s = 0.0
        while True:
            with suppress(RetryLater):
                await self._approving.attend(quiet_s)
                for run in await self._journal.runs.unattended(quiet_s):
                    if run.run_id not in self._holdings:
                        await self._attend_to(run)
                quiet_s = self._journal.lease_s
            await asyncio.sleep(self._journal.lease_s / 3)

    async def _attend_to(self, run: Run) -> None:
        """One run must not keep the others waiting: what cannot be told now is tried at the next round."""
        with suppress(TimeoutError, FailRun):
            async with asyncio.timeout(self._journal.lease_s / 3):
                await (self._execution.announce(run) if run.ended else self._accepting.wake(run))
