"""What an orchestrator does with outcomes: takes those that are reported, and reads off what happened those that nobody reports.

The orchestrator hands it the events of `metier.outcomes`; the run's desk tells how a panel voted, `control` that a run was repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from metier_infra import metrics, telemetry
from metier_infra.events import OutcomeReported, RetryRequested
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope
from metier_infra.outcomes import Outcome
from metier_infra.service import processing
from metier_infra.words import RunId
from metier_workflows.approving import SOURCE

log = structlog.get_logger()


class Outcomes:
    """Outcomes, from whoever may write them. The same event twice counts once; one about a run that is not here is kept, and counts once it is."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def on_reported(self, envelope: Envelope[OutcomeReported], delivery: Delivery) -> None:
        """Write an outcome down, by the rules of `metier_infra.outcomes`."""
        with processing(envelope, delivery) as span:
            said = envelope.data
            span.set({telemetry.RUN_ID: said.run_id})
            new = await self._journal.outcomes.record(reported(envelope))
            run = await self._journal.runs.get(said.run_id)
            known = run is not None and run.run_id == said.run_id
            became = "passed_over" if not new else "kept" if known else "orphan"
            metrics.add(metrics.OUTCOMES, 1, {metrics.REASON: became})
            log.info("outcome taken", action="keep" if new else "drop", kind=said.kind, became=became)


def reported(envelope: Envelope[OutcomeReported]) -> Outcome:
    """What an event says."""
    said = envelope.data
    return Outcome(
        **said.model_dump(include={"run_id", "score", "kind", "weight", "by", "note"}),
        decision_id=said.decision_id or "",
        agent=said.agent or "",
        event_id=envelope.id,
        said_at=envelope.time.timestamp(),
    )


def votes(run_id: RunId, decision_id: str, votes: Mapping[str, float]) -> Sequence[Outcome]:
    """What it says of each member of a panel that it agreed with the others, or did not. Said at the beginning of time, so that it can only be said once."""
    return [
        Outcome(run_id=run_id, decision_id=decision_id, agent=agent, score=vote, kind="dissent",
                by=SOURCE, event_id=decision_id, said_at=0.0)
        for agent, vote in sorted(votes.items())
    ]  # fmt: skip


def of_retry(run_id: RunId, envelope: Envelope[RetryRequested]) -> Outcome:
    """What it says of a run's answer that somebody wanted another: that it was wrong, perhaps."""
    said = envelope.data
    at = envelope.time.timestamp()
    return Outcome(run_id=run_id, score=0.0, kind="retry", by=said.by, event_id=envelope.id, said_at=at, note=said.note)
