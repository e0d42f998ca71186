"""What an orchestrator does about tool calls that wait for a person: takes decisions, and sees to it that each is told and its call goes on.

The orchestrator hands it the decisions that come on `metier.requests`, and lets it look now and then for what nobody saw to the end.
"""

from __future__ import annotations

import structlog

from metier_infra import telemetry
from metier_infra.approvals import EXPIRY
from metier_infra.bus import Bus
from metier_infra.errors import UnknownApproval
from metier_infra.events import (
    EVENTS_TOPIC,
    RUNS,
    ApprovalDecided,
    ApprovalSettled,
    CallRequested,
    RunAccepted,
    tasks_topic,
)
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope
from metier_infra.rows import Approval, Call
from metier_infra.service import processing, send
from metier_infra.words import RunId, ToolCallId
from metier_workflows.tracing import newest

SOURCE = "/metier/orchestrator"
log = structlog.get_logger()


class Approving:
    """Decisions, from whoever may write requests. Whatever of it comes twice, or is done by two replicas, counts once."""

    def __init__(self, bus: Bus, journal: Journal) -> None:
        self._bus = bus
        self._journal = journal

    async def on_decided(self, envelope: Envelope[ApprovalDecided], delivery: Delivery) -> None:
        """Write a decision down and see to what follows; one that comes too late changes nothing. Raises `UnknownApproval`."""
        said = envelope.data
        approval_id = ToolCallId(said.approval_id)
        asked = await self._journal.approvals.get(approval_id)
        if asked is None or asked.run_id != said.run_id or not await self._of_tenant(asked.run_id, said.tenant):
            whose = "" if said.tenant is None else f" of the tenant {said.tenant!r}"
            raise UnknownApproval(f"nobody asked for approval {said.approval_id!r} in run {said.run_id!r}{whose}")
        with processing(envelope, delivery) as span:
            span.set({telemetry.RUN_ID: asked.run_id, telemetry.CALL_ID: asked.call_id})
            changed = said.arguments if said.granted else None
            won = await self._journal.approvals.decide(
                approval_id, granted=said.granted, by=said.by, note=said.note, arguments=changed
            )
            kept = won or await self._journal.approvals.get(approval_id)
            log.info("decision taken" if won else "decision too late", action="go on" if won else "drop",
                     approval_id=approval_id, granted=said.granted)  # fmt: skip
            if kept and kept.granted is not None and not kept.announced:
                await self._settle(kept)

    async def _of_tenant(self, run_id: RunId, tenant: str | None) -> bool:
        """Whether the run is of the tenant that whoever decides names; of any, where none is named."""
        run = await self._journal.runs.get(run_id) if tenant is not None else None
        return tenant is None or (run is not None and run.tenant == tenant)

    async def attend(self, quiet_s: float) -> None:
        """See to what was left: approvals whose time is over, decisions that were not told, and parked calls that were cancelled."""
        approvals = self._journal.approvals
        for approval_id, reason in (await approvals.overdue()).items():
            note = "nobody answered in time" if reason == EXPIRY else "the call ended before"
            await approvals.decide(approval_id, granted=False, by=reason, note=note, late=True)
        for approval in await approvals.untold(quiet_s):
            await self._settle(approval)
        for call in await self._journal.calls.parked_in_vain():
            await self._send_on(call)

    async def _settle(self, approval: Approval) -> None:
        """Send the call to its agent again, wake its run, tell the decision; and remember that this was done. All of it belongs to the run's trace."""
        call = await self._journal.calls.get(approval.call_id)
        attributes = {telemetry.RUN_ID: approval.run_id, telemetry.CALL_ID: approval.call_id}
        with telemetry.span(
            telemetry.settle(approval.tool),
            parent=await self._root(approval.run_id),
            links=[telemetry.current()],
            attributes=attributes,
        ):
            if call is not None and call.answered_at is None:
                await self._send_on(call)
                await self._wake(call)
            await send(self._bus, EVENTS_TOPIC, settled(approval))
        await self._journal.approvals.told(approval.approval_id)

    async def _root(self, run_id: RunId) -> str | None:
        run = await self._journal.runs.get(run_id)
        return newest(run, await self._journal.segments.of_run(run_id))[0] if run else None

    async def _send_on(self, call: Call) -> None:
        await send(self._bus, tasks_topic(call.agent), call_event(call))

    async def _wake(self, call: Call) -> None:
        run = await self._journal.runs.get(call.run_id)
        if run is not None and not run.ended:
            event = RunAccepted(run_id=run.run_id, workflow=run.workflow)
            await send(self._bus, RUNS, Envelope(event, f"{run.run_id}/accepted", SOURCE, run.run_id))


def call_event(call: Call) -> Envelope[CallRequested]:
    """What brings a call to its agent: the same whenever it is sent."""
    told = call.model_dump(include={"run_id", "call_id", "agent", "task", "deadline", "allowance", "stamp"})
    asked = CallRequested.model_validate(told)
    return Envelope(asked, f"{call.call_id}/requested", SOURCE, call.call_id)


def settled(approval: Approval) -> Envelope[ApprovalSettled]:
    """What became of a tool call that waited."""
    told = approval.model_dump(include={"run_id", "call_id", "approval_id", "agent", "tool", "granted", "stamp"})
    decision = {"by": approval.decided_by, "note": approval.note or "", "arguments": approval.changed}
    said = ApprovalSettled.model_validate(told | decision)
    return Envelope(said, f"{approval.approval_id}/settled", SOURCE, approval.run_id)
