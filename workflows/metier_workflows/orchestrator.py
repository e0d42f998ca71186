"""The orchestrator: takes requests, runs graphs, sends calls out, wakes runs with their answers, and tells the end.

`metier orchestrator` and `metier dev` run it. Requests come from `metier.requests`; everything that concerns a run comes on
`metier.runs`, keyed by the run, to the replica that owns the partition. What it must not forget is in the journal before it is sent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog
from langchain_core.runnables import RunnableConfig

from metier_infra import telemetry
from metier_infra.bus import Bus, Consumption
from metier_infra.errors import FailRun, FencedOff, RetryLater, WorkflowBroken
from metier_infra.events import (
    EVENTS_TOPIC,
    REQUESTS,
    RUNS,
    ApprovalDecided,
    CallAnswered,
    CallParked,
    Event,
    RunAccepted,
    RunRequested,
    RunStarted,
)
from metier_infra.journal import Journal
from metier_infra.messages import LARGEST, Delivery, Envelope
from metier_infra.retry import persist
from metier_infra.rows import Run
from metier_infra.service import PATIENT, EventHandler, Ready, processing, send, serve
from metier_infra.words import AgentCard, CallId, Failure, RunId, stable_id
from metier_workflows import node
from metier_workflows.approving import SOURCE, Approving
from metier_workflows.checkpoint import JournalSaver
from metier_workflows.holdings import Holdings
from metier_workflows.run_desk import RunDesk
from metier_workflows.segment import Parked, to_the_end, written
from metier_workflows.workflow import Workflow, Workflows

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
        self._workflows = workflows
        self._cards = cards
        self._instance = instance
        self._drain_s = drain_s
        self._holdings = Holdings(journal, instance, self._wake, limit)
        self._approving = Approving(bus, journal)

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
        return {RunRequested: self._on_request, ApprovalDecided: self._approving.on_decided}

    def _run_handlers(self) -> Mapping[type[Event], EventHandler]:
        return {RunAccepted: self._on_accepted, CallAnswered: self._on_answered, CallParked: self._on_parked}

    async def _on_request(self, envelope: Envelope[RunRequested], delivery: Delivery) -> None:
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
                status="accepted",
                input=request.input,
                traceparent=span.traceparent,
            )
            stored, new = await self._journal.runs.accept(run)
            if new or stored.status == "accepted":
                await self._wake(stored)
            log.info(
                "run accepted" if new else "duplicate request",
                action="accept",
                run_id=run_id,
                workflow=stored.workflow,
                new=new,
            )

    async def _wake(self, run: Run) -> None:
        event = Envelope(
            RunAccepted(run_id=run.run_id, workflow=run.workflow), f"{run.run_id}/accepted", SOURCE, run.run_id
        )
        await send(self._bus, RUNS, event, parent=run.traceparent)

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
            self._holdings.start(desk, delivery.partition, self._execute(run_id, desk, envelope, delivery))

    async def _execute(self, run_id: RunId, desk: RunDesk, envelope: Envelope[Any], delivery: Delivery) -> None:
        """One segment of a run, from lease to terminal state. Whatever interrupts it, the keeper or another replica goes on."""
        try:
            run = await self._journal.runs.lease(run_id, self._instance)
            if run is None:
                return
            desk.traceparent = run.traceparent
            with processing(envelope, delivery, parent=run.traceparent):
                attributes = {
                    telemetry.RUN_ID: run_id,
                    telemetry.WORKFLOW_NAME: run.workflow,
                    telemetry.OPERATION: "invoke_workflow",
                }
                with telemetry.span(telemetry.invoke_workflow(run.workflow), attributes=attributes) as span:
                    await self._segment(run, desk, span)
        except FencedOff:
            log.warning("run taken by another replica", action="fenced", run_id=run_id)
        except RetryLater as error:
            log.warning("run let go", action="release", run_id=run_id, reason=error.code, error=str(error))
            await self._journal.runs.release(self._instance, run_id)
        except Exception:
            log.exception("run let go after a defect of Métier", action="release", run_id=run_id)
            await self._journal.runs.release(self._instance, run_id)

    async def _segment(self, run: Run, desk: RunDesk, span: telemetry.Span) -> None:
        try:
            result, failure = await self._outcome(run, desk)
        except Parked as parked:
            span.set({telemetry.RUN_STATE: "parked"})
            await self._park(run, parked.waits_for)
            return
        finished = await self._journal.runs.finish(run.run_id, run.epoch, result=result, failure=failure)
        span.set({telemetry.RUN_STATE: finished.status, telemetry.COST_USD: finished.cost_usd})
        if failure:
            span.fail(failure.code)
        await self._announce(finished)

    async def _outcome(self, run: Run, desk: RunDesk) -> tuple[dict[str, object] | None, Failure | None]:
        try:
            workflow = self._workflows.find(run.workflow, run.version)
            await self._journal.runs.pin(run.run_id, run.epoch, workflow.version)
            value = workflow.accept(run.input)
            started = RunStarted(run_id=run.run_id, workflow=workflow.name, version=workflow.version)
            await self._tell(Envelope(started, f"{run.run_id}/started", SOURCE, run.run_id), run)
            return _plain(workflow, await self._graph(run, workflow, value, desk)), None
        except FailRun as error:
            return None, Failure(code=error.code, message=str(error))
        except (FencedOff, RetryLater):
            raise
        except Exception as error:
            log.exception("the workflow's graph raised", action="fail", run_id=run.run_id, workflow=run.workflow)
            broken = WorkflowBroken(f"the graph of {run.workflow!r} raised {type(error).__name__}: {error}")
            return None, Failure(code=broken.code, message=str(broken))

    async def _graph(self, run: Run, workflow: Workflow, value: dict[str, object], desk: RunDesk) -> dict[str, object]:
        """Run the graph, from its input or from its last checkpoint, to the end."""
        saver = JournalSaver(self._journal.db, run.epoch)
        config: RunnableConfig = {"configurable": {"thread_id": run.run_id}}
        graph = workflow.compiled.copy({"checkpointer": saver})
        begun = await saver.aget_tuple(config) if run.epoch > 1 else None
        with node.at(desk):
            chunks = graph.astream(
                None if begun else value,
                config,
                stream_mode=["values", "tasks"],
                output_keys=graph.output_channels,
                durability="sync",
            )
            return await to_the_end(desk, chunks, done=written(begun))

    async def _park(self, run: Run, waits_for: Sequence[CallId]) -> None:
        """Let go of a run that waits for persons alone. Whatever wakes it from now on takes it up anew, and fences this segment off."""
        self._holdings.leave(run.run_id)
        if await self._journal.runs.park(run.run_id, run.epoch, waits_for):
            log.info("run parked", action="wait for a person", run_id=run.run_id, calls=len(waits_for))
            return
        await self._journal.runs.release(self._instance, run.run_id)
        await self._wake(run)

    async def _announce(self, run: Run) -> None:
        """Publish the terminal event, under an id that never changes, and remember that it went out."""
        await self._tell(Envelope(run.end, f"{run.run_id}/ended", SOURCE, run.run_id, subject=run.event_id), run)
        await self._journal.runs.announced(run.run_id)
        log.info(
            "run ended",
            action="end",
            run_id=run.run_id,
            status=run.status,
            reason=run.failure.code if run.failure else None,
        )

    async def _tell(self, event: Envelope[Any], run: Run) -> None:
        await persist(f"tell {event.id}", lambda: send(self._bus, EVENTS_TOPIC, event, parent=run.traceparent), PATIENT)

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
                await (self._announce(run) if run.ended else self._wake(run))


def _plain(workflow: Workflow, result: dict[str, object]) -> dict[str, object]:
    """A run's result, as JSON can carry it. Raises `WorkflowBroken`."""
    if "__interrupt__" in result:
        raise WorkflowBroken(f"the graph of {workflow.name!r} stopped at an interrupt, which nothing here can resume")
    try:
        size = len(json.dumps(result, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise WorkflowBroken(f"the graph of {workflow.name!r} gave a result that is not JSON: {error}") from error
    if size > LARGEST:
        raise WorkflowBroken(
            f"the graph of {workflow.name!r} gave a result of {size} bytes; an event carries {LARGEST}"
        )
    return result
