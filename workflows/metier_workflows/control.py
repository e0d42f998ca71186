"""What an orchestrator does when somebody wants something of a run: give it up, repeat it, go on where it ended, tell it something.

The orchestrator hands it these requests, from whoever may write `metier.requests`. What cannot be done is answered with a `RequestRejected`; a run that does
not exist is no bad record: whoever named it is to hear of it.
"""

from __future__ import annotations

import structlog

from metier_infra import telemetry
from metier_infra.errors import RunEnded, RunNotEnded, UnknownRun
from metier_infra.events import CancelRequested, RedriveRequested, RetryRequested, Signalled
from metier_infra.journal import Journal
from metier_infra.messages import Delivery, Envelope
from metier_infra.redrive import taken_over
from metier_infra.rows import Run
from metier_infra.words import RunId, stable_id
from metier_workflows import outcomes
from metier_workflows.accepting import Accepting

Said = CancelRequested | RetryRequested | RedriveRequested | Signalled
log = structlog.get_logger()


class Control:
    """Whatever of it comes twice counts once. `accepting` writes new runs down, and wakes those that are there."""

    def __init__(self, journal: Journal, accepting: Accepting) -> None:
        self._journal = journal
        self._accepting = accepting

    async def on_cancel(self, envelope: Envelope[CancelRequested], delivery: Delivery) -> None:
        """Give a run up with all that works for it, and wake it, so that it ends. Raises `UnknownRun` or `RunEnded`."""
        del delivery
        said = envelope.data
        run = await self._run(said)
        for left in await self._journal.runs.cancel(run.run_id, by=said.by, note=said.note):
            await self._accepting.wake(left)
        after = await self._run(said)
        if after.cancelled_at is None:
            raise RunEnded(f"run {run.run_id} {after.status} before it could be cancelled")
        log.info("run given up", action="end", run_id=run.run_id)

    async def on_retry(self, envelope: Envelope[RetryRequested], delivery: Delivery) -> None:
        """Ask for the same once more, of the newest version; that is a weak label for what a run that succeeded had answered. Raises `UnknownRun` or `RunNotEnded`, and as `Accepting.take`."""
        del delivery
        origin = await self._ended(envelope.data)
        await self._accepting.take(_again(origin, envelope, version=None))
        if origin.status == "succeeded":
            await self._journal.outcomes.record(outcomes.of_retry(origin.run_id, envelope))

    async def on_redrive(self, envelope: Envelope[RedriveRequested], delivery: Delivery) -> None:
        """Go on where a run failed or was cancelled, in its own version. Raises `UnknownRun`, `RunNotEnded` or `RunEnded`, and as `Accepting.take`."""
        del delivery
        origin = await self._ended(envelope.data)
        if origin.status == "succeeded":
            raise RunEnded(f"run {origin.run_id} succeeded: there is nothing to go on with; it can be retried")
        run = _again(origin, envelope, version=origin.version)
        await self._accepting.take(run, *await taken_over(self._journal.db, origin.run_id, run.run_id))

    async def on_signal(self, envelope: Envelope[Signalled], delivery: Delivery) -> None:
        """Keep a signal for the node that waits for it, or will, and wake its run. Raises `UnknownRun` or `RunEnded`."""
        del delivery
        said = envelope.data
        run = await self._run(said)
        if run.ended:
            raise RunEnded(f"run {run.run_id} {run.status}: nothing in it waits for a signal any more")
        name = stable_id("signal", envelope.source, envelope.id)
        new = await self._journal.signals.record(run.run_id, name, said.name, said.data, said.by)
        await self._accepting.wake(run)
        log.info("signal taken" if new else "duplicate signal", action="wake", run_id=run.run_id)

    async def _run(self, said: Said) -> Run:
        """The run that is meant. One of another tenant than is named is not told apart from none."""
        run = await self._journal.runs.get(said.run_id)
        if run is None or run.run_id != said.run_id or said.tenant not in {None, run.tenant}:
            whose = "" if said.tenant is None else f" for the tenant {said.tenant!r}"
            raise UnknownRun(f"no run {said.run_id!r} was ever accepted{whose}")
        return run

    async def _ended(self, said: Said) -> Run:
        run = await self._run(said)
        if not run.ended:
            raise RunNotEnded(f"run {run.run_id} is {run.status}: it can be repeated once it has ended")
        return run


def _again(origin: Run, envelope: Envelope[RetryRequested] | Envelope[RedriveRequested], *, version: str | None) -> Run:
    """A run that asks for what `origin` asked, under the id that follows from the request."""
    return Run(
        **origin.model_dump(include={"workflow", "input", "tenant", "priority"}),
        limits=origin.limits,
        run_id=RunId(stable_id("run", envelope.source, envelope.id)),
        source=envelope.source,
        event_id=envelope.id,
        version=version,
        status="accepted",
        origin=origin.run_id,
        traceparent=telemetry.current() or origin.traceparent,
    )
