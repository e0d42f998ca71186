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
from metier_infra.words import ToolCallId

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
        if asked is None or asked.run_id != said.run_id:
            raise UnknownApproval(f"nobody asked for approval {said.approval_id!r} in run {said.run_id!r}")
        with processing(envelope, delivery) as span:
            span.set({telemetry.RUN_ID: asked.run_id, telemetry.CALL_ID: asked.call_id})
            changed = said.arguments if said.granted else None
            won = await self._journal.approvals.decide(
                approval_id, granted=said.granted, by=said.by, note=said.note, arguments=changed
            )
            settled = won or await self._journal.approvals.get(approval_id)
            log.info("decision taken" if won else "decision too late", action="go on" if won else "drop",
                     approval_id=approval_id, granted=said.granted)  # fmt: skip
            if settled and settled.granted is not None and not settled.announced:
                await self._settle(settled)

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
        """Send the call to its agent again, wake its run, tell the decision; and remember that this was done."""
        call = await self._journal.calls.get(approval.call_id)
        if call is not None and call.answered_at is None:
            await self._send_on(call)
            await self._wake(call)
        told = Envelope(_settled(approval), f"{approval.approval_id}/settled", SOURCE, approval.run_id)
        await send(self._bus, EVENTS_TOPIC, told)
        await self._journal.approvals.told(approval.approval_id)

    async def _send_on(self, call: Call) -> None:
        await send(self._bus, tasks_topic(call.agent), call_event(call))

    async def _wake(self, call: Call) -> None:
        run = await self._journal.runs.get(call.run_id)
        if run is not None and not run.ended:
            event = RunAccepted(run_id=run.run_id, workflow=run.workflow)
            await send(self._bus, RUNS, Envelope(event, f"{run.run_id}/accepted", SOURCE, run.run_id))


def call_event(call: Call) -> Envelope[CallRequested]:
    """What brings a call to its agent: the same whenever it is sent."""
    told = call.model_dump(include={"run_id", "call_id", "agent", "task", "deadline", "stamp"})
    asked = CallRequested.model_validate(told)
    return Envelope(asked, f"{call.call_id}/requested", SOURCE, call.call_id)


def _settled(approval: Approval) -> ApprovalSettled:
    told = approval.model_dump(include={"run_id", "call_id", "approval_id", "agent", "tool", "granted", "stamp"})
    decision = {"by": approval.decided_by, "note": approval.note or "", "arguments": approval.changed}
    return ApprovalSettled.model_validate(told | decision)
