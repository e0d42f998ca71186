"""What an orchestrator does with a request: write the run down, and announce it to the replica that will run it.

The orchestrator hands it the events of `metier.requests`, and wakes runs through it.
"""

from __future__ import annotations

import time

import structlog

from metier_infra import metrics, telemetry
from metier_infra.bus import Bus
from metier_infra.database import Statement
from metier_infra.errors import DuplicateId, RejectRequest, TenantSpent
from metier_infra.events import EVENTS_TOPIC, RUNS, RunAccepted, RunRequested
from metier_infra.failpoints import failpoint
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope
from metier_infra.rows import Run
from metier_infra.service import processing, send
from metier_infra.words import RunId, stable_id
from metier_workflows.approving import SOURCE
from metier_workflows.budget import used_up
from metier_workflows.rejecting import rejection
from metier_workflows.spending import tenant_account
from metier_workflows.tenants import Tenants

log = structlog.get_logger()


class Accepting:
    """Requests, from whoever may write them. A duplicate starts nothing; `tenants` says how many of a tenant may wait."""

    def __init__(self, bus: Bus, journal: Journal, tenants: Tenants | None = None) -> None:
        self._bus = bus
        self._journal = journal
        self._tenants = tenants or Tenants()

    async def on_request(self, envelope: Envelope[RunRequested], delivery: Delivery) -> None:
        """Write the run down under its event's (source, id) and announce it; or tell why it cannot be."""
        with processing(envelope, delivery) as span:
            run = requested(envelope.data, envelope.source, envelope.id, span.traceparent)
            span.set({telemetry.RUN_ID: run.run_id, telemetry.WORKFLOW_NAME: run.workflow})
            try:
                await self._refuse_spent(run)
                await self.take(run)
            except RejectRequest as error:
                span.fail(error.code)
                log.info("request rejected", action="tell", reason=error.code, run_id=run.run_id)
                await send(self._bus, EVENTS_TOPIC, rejection(envelope, error))

    async def _refuse_spent(self, run: Run) -> None:
        """Raises `TenantSpent` for a new run of a tenant of whose limits nothing is left, and nothing will be, where that is declared."""
        limits = self._tenants.of(run.tenant).limits
        if limits is None or limits.new_runs == "end":
            return
        gone = used_up([await self._journal.budgets.balance(tenant_account(run.tenant, limits, time.time()))])
        if gone and not gone[0].open and await self._journal.runs.get(run.run_id) is None:
            raise TenantSpent(f"the tenant {run.tenant!r} has used up what it may take in this {limits.per}: {gone[1]}")

    async def take(self, run: Run, *beside: Statement) -> None:
        """Write a run down, with what goes `beside` it, and announce it. Raises `QueueFull`, and `DuplicateId` where another run has its source and id."""
        failpoint("request.consumed")
        stored, new = await self._journal.runs.accept(run, *beside, queued=self._tenants.of(run.tenant).queued)
        if not new and not _same(run, stored):
            raise DuplicateId(
                f"the source {run.source!r} sent the id {run.event_id!r} before, and asked for something else"
            )
        failpoint("request.accepted")
        if not new:
            metrics.add(metrics.DUPLICATES, 1, {metrics.REASON: "request"})
        if new or stored.status == "accepted":
            await self.wake(stored)
        log.info(
            "run accepted" if new else "duplicate request",
            action="accept",
            run_id=run.run_id,
            workflow=stored.workflow,
            new=new,
        )

    async def wake(self, run: Run) -> None:
        """Announce a run, so that whoever owns its partition takes it; or ends it, where it was given up."""
        await send(self._bus, RUNS, self.accepted(run), parent=run.traceparent)

    def accepted(self, run: Run) -> Envelope[RunAccepted]:
        """The event that announces a run."""
        cancelled = run.cancelled_at is not None
        told = RunAccepted(
            **run.model_dump(include={"run_id", "workflow", "tenant", "priority", "parent"}),
            cancelled=cancelled,
            begun=run.begun,
        )
        return Envelope(told, f"{run.run_id}/{'cancelled' if cancelled else 'accepted'}", SOURCE, run.run_id)


def requested(asked: RunRequested, source: str, event_id: str, traceparent: str) -> Run:
    """The run that a request asks for; its id follows from the request's (source, id)."""
    return Run(
        **asked.model_dump(include={"workflow", "version", "tenant", "priority", "input"}),
        limits=asked.limits,
        run_id=RunId(stable_id("run", source, event_id)),
        source=source,
        event_id=event_id,
        status="accepted",
        traceparent=traceparent,
    )


def _same(run: Run, stored: Run) -> bool:
    """Whether both were asked for in the same words; a run that named no version is pinned to one by now."""
    asked = {"workflow", "tenant", "priority", "input", "limits"}
    version = run.version in {None, stored.version}
    return version and run.model_dump(include=asked) == stored.model_dump(include=asked)
