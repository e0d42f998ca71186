"""How a worker lets go of a call that waits for a person: nothing of it stays in this process.

The worker gives a call up whose work ended in `Parked`, and calls `tell` then, and whenever it comes again and still waits. A decision brings the call to its agent's
topic again; whoever takes it goes on.
"""

from __future__ import annotations

import structlog

from metier_infra.bus import Bus
from metier_infra.events import EVENTS_TOPIC, RUNS, ApprovalWanted, CallParked
from metier_infra.journal import Journal
from metier_infra.messages import Envelope
from metier_infra.rows import Approval, Call
from metier_infra.service import send

log = structlog.get_logger()


async def tell(bus: Bus, journal: Journal, call: Call) -> None:
    """Say who is asked, and that the call's run need not wait for it: under the same ids whenever it is said."""
    source = f"/metier/agents/{call.agent}"
    asked = [wanted(one) for one in await journal.approvals.undecided(call.call_id)]
    await send(bus, EVENTS_TOPIC, *asked)
    told = CallParked(run_id=call.run_id, call_id=call.call_id, stamp=call.stamp)
    await send(bus, RUNS, Envelope(told, f"{call.call_id}/parked/{call.attempt}", source, call.run_id))
    log.info("call parked", action="ask a person", call_id=call.call_id, agent=call.agent, approvals=len(asked))


def wanted(approval: Approval) -> Envelope[ApprovalWanted]:
    """A person is asked about a tool call."""
    told = ApprovalWanted.model_validate(approval.model_dump())
    return Envelope(told, f"{approval.approval_id}/wanted", f"/metier/agents/{approval.agent}", approval.run_id)
