"""What an orchestrator does with a request: write the run down, and announce it to the replica that will run it.

The orchestrator hands it the events of `metier.requests`, and wakes runs through it.
"""

from __future__ import annotations

import structlog

from metier_infra import telemetry
from metier_infra.bus import Bus
from metier_infra.events import RUNS, RunAccepted, RunRequested
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope
from metier_infra.rows import Run
from metier_infra.service import processing, send
from metier_infra.words import RunId, stable_id
from metier_workflows.approving import SOURCE

log = structlog.get_logger()


class Accepting:
    """Requests, from whoever may write them. A duplicate starts nothing."""

    def __init__(self, bus: Bus, journal: Journal) -> None:
        self._bus = bus
        self._journal = journal

    async def on_request(self, envelope: Envelope[RunRequested], delivery: Delivery) -> None:
        """Write the run down under its event's (source, id); announce it. A duplicate starts nothing."""
        request = envelope.data
        with processing(envelope, delivery) as span:
            run_id = RunId(stable_id("run", envelope.source, envelope.id))
            span.set({telemetry.RUN_ID: run_id, telemetry.WORKFLOW_NAME: request.workflow})
            run = Run(
                run_id=run_id,
                source=envelope.source,
                event_id=envelope.id,
                workflow=request.workflow,
                version=request.version,
                tenant=request.tenant,
                priority=request.priority,
                limits=request.limits,
                status="accepted",
                input=request.input,
                traceparent=span.traceparent,
            )
            stored, new = await self._journal.runs.accept(run)
            if new or stored.status == "accepted":
                await self.wake(stored)
            log.info(
                "run accepted" if new else "duplicate request",
                action="accept",
                run_id=run_id,
                workflow=stored.workflow,
                new=new,
            )

    async def wake(self, run: Run) -> None:
        """Announce a run, so that whoever owns its partition takes it."""
        event = Envelope(
            RunAccepted(run_id=run.run_id, workflow=run.workflow), f"{run.run_id}/accepted", SOURCE, run.run_id
        )
        await send(self._bus, RUNS, event, parent=run.traceparent)
