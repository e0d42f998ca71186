"""One run on one replica: from its lease, through its graph, to its terminal event or its parking.

The orchestrator makes an `Execution` and starts `segment`s of runs with it; `segment` follows the graph, `run_desk` serves its nodes.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
from langchain_core.runnables import RunnableConfig

from metier_infra import telemetry
from metier_infra.bus import Bus
from metier_infra.errors import FailRun, FencedOff, RetryLater, WorkflowBroken
from metier_infra.events import EVENTS_TOPIC, RunStarted
from metier_infra.journal import Journal
from metier_infra.messages import LARGEST, Delivery, Envelope
from metier_infra.retry import persist
from metier_infra.rows import Run
from metier_infra.service import PATIENT, processing, send
from metier_infra.words import CallId, Failure, RunId
from metier_workflows import node
from metier_workflows.approving import SOURCE
from metier_workflows.checkpoint import JournalSaver
from metier_workflows.run_desk import RunDesk
from metier_workflows.segment import Parked, to_the_end, written
from metier_workflows.workflow import Workflow, Workflows

log = structlog.get_logger()


class Execution:
    """Runs what a replica holds. `leave` is told of a run that is about to be parked, `wake` announces one that must go on."""

    def __init__(
        self,
        bus: Bus,
        journal: Journal,
        workflows: Workflows,
        *,
        instance: str,
        leave: Callable[[RunId], None],
        wake: Callable[[Run], Awaitable[None]],
    ) -> None:
        self._bus = bus
        self._journal = journal
        self._workflows = workflows
        self._instance = instance
        self._leave = leave
        self._wake = wake

    async def run(self, run_id: RunId, desk: RunDesk, envelope: Envelope[Any], delivery: Delivery) -> None:
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
        await self.announce(finished)

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
        self._leave(run.run_id)
        if await self._journal.runs.park(run.run_id, run.epoch, waits_for):
            log.info("run parked", action="wait for a person", run_id=run.run_id, calls=len(waits_for))
            return
        await self._journal.runs.release(self._instance, run.run_id)
        await self._wake(run)

    async def announce(self, run: Run) -> None:
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
