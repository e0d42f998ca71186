"""One run on one replica: from its lease, through its graph, to its terminal event or its parking.

The orchestrator makes an `Execution` and starts `segment`s of runs with it; `segment` follows the graph, `run_desk` serves its nodes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
from langchain_core.runnables import RunnableConfig
from pydantic_core import from_json

from metier_infra import metrics, telemetry
from metier_infra.bus import Bus
from metier_infra.errors import FailRun, FencedOff, LimitReached, NoTurn, ProcessLost, RetryLater, WorkflowBroken
from metier_infra.events import EVENTS_TOPIC, RunStarted
from metier_infra.failpoints import failpoint
from metier_infra.journal import Journal
from metier_infra.messages import LARGEST, Delivery, Envelope
from metier_infra.retry import persist
from metier_infra.rows import Awaited, Run
from metier_infra.service import PATIENT, processing, send
from metier_infra.words import CallId, Failure, RunId
from metier_workflows import measuring, node, progress
from metier_workflows.approving import SOURCE
from metier_workflows.checkpoint import JournalSaver
from metier_workflows.run_desk import RunDesk
from metier_workflows.segment import Parked, to_the_end, written
from metier_workflows.spending import Spending
from metier_workflows.suspects import LOST_AT_MOST, Suspects
from metier_workflows.tenants import Tenants
from metier_workflows.tracing import WINDOW_S, Tracing
from metier_workflows.versions import Versions
from metier_workflows.workflow import Workflow, refuse_gone

log = structlog.get_logger()

FLUSH_S = 0.5
"""How long a segment that ends waits for what it told to go out; seconds."""


class Execution:
    """Runs what a replica holds. `leave` is told of a run that is about to be parked, `wake` announces one that must go on."""

    def __init__(
        self,
        bus: Bus,
        journal: Journal,
        versions: Versions,
        *,
        instance: str,
        leave: Callable[[RunId], None],
        wake: Callable[[Run], Awaitable[None]],
        tenants: Tenants | None = None,
        trace_window_s: float = WINDOW_S,
    ) -> None:
        self._bus = bus
        self._journal = journal
        self._versions = versions
        self._instance = instance
        self._leave = leave
        self._wake = wake
        self._tenants = tenants or Tenants()
        self._tracing = Tracing(journal, trace_window_s)
        self._suspects = Suspects(journal)

    async def run(
        self, run_id: RunId, desk: RunDesk, envelope: Envelope[Any], delivery: Delivery, at_most: int | None = None
    ) -> None:
        """One segment of a run, from lease to terminal state. Whatever interrupts it, the keeper or another replica goes on.

        Raises `NoTurn` where `at_most` runs of its tenant are under way: nothing was done.
        """
        run: Run | None = None
        try:
            async with self._suspects.leased(partial(self._lease, run_id, at_most)) as leased:
                if leased is None:
                    return
                run = leased
                failpoint("run.leased")
                run = await self._tracing.resumed(run, envelope.data.TYPE)
                desk.serve(run, Spending(self._journal, run, self._tenants.of(run.tenant).limits))
                await self._told(run, desk, envelope, delivery)
        except FencedOff:
            metrics.add(metrics.FENCED)
            log.warning("run taken by another replica", action="fenced", run_id=run_id)
        except NoTurn:
            raise
        except RetryLater as error:
            log.warning("run let go", action="release", run_id=run_id, reason=error.code, error=str(error))
            await self._give_back(run)
        except Exception:
            log.exception("run let go after a defect of Métier", action="release", run_id=run_id)
            await self._give_back(run, broke=True)

    async def _give_back(self, run: Run | None, *, broke: bool = False) -> None:
        with suppress(RetryLater):  # the keeper gives back what is held and not here
            if run is not None:
                await self._journal.runs.give_back(run.run_id, run.epoch, broke=broke)

    async def _lease(self, run_id: RunId, at_most: int | None) -> Run | None:
        if at_most is None:
            return await self._journal.runs.lease(run_id, self._instance)
        return await self._journal.runs.lease_in_turn(run_id, self._instance, at_most)

    async def _told(self, run: Run, desk: RunDesk, envelope: Envelope[Any], delivery: Delivery) -> None:
        """The segment in its span, until what it told is out; one that was fenced off tells nothing any more."""
        patience_s = FLUSH_S
        try:
            with processing(envelope, delivery, parent=run.traceparent):
                attributes = {
                    telemetry.RUN_ID: run.run_id,
                    telemetry.WORKFLOW_NAME: run.workflow,
                    telemetry.OPERATION: "invoke_workflow",
                }
                with telemetry.span(telemetry.invoke_workflow(run.workflow), attributes=attributes) as span:
                    await self._segment(run, desk, span)
        except FencedOff:
            patience_s = 0
            raise
        finally:
            await desk.progress.drain(patience_s)

    async def cancel(self, run_id: RunId, desk: RunDesk, envelope: Envelope[Any], delivery: Delivery) -> None:
        """End a run that was given up. Where its segment was stopped while it told the end, that is told again."""
        await self.run(run_id, desk, envelope, delivery)
        run = await self._journal.runs.get(run_id)
        if run is not None and run.ended and not run.announced:
            await self.announce(run)

    async def _segment(self, run: Run, desk: RunDesk, span: telemetry.Span) -> None:
        try:
            result, failure = await (self._outcome(run, desk) if run.cancelled_at is None else self._given_up(run))
        except Parked as parked:
            span.set({telemetry.RUN_STATE: "parked"})
            desk.progress.tell(progress.parked(run.run_id, run.epoch, _calls(parked.waits_for)))
            await desk.progress.drain(FLUSH_S)
            await self._park(run, parked.waits_for, await desk.spending.ends_at())
            return
        finished = await self._journal.runs.finish(run.run_id, run.epoch, result=result, failure=failure)
        desk.ended = True
        failpoint("run.finished")
        span.set({telemetry.RUN_STATE: finished.status, telemetry.COST_USD: finished.cost_usd})
        if failure:
            span.fail(failure.code)
        measuring.run_ended(finished)
        await self.announce(finished, desk)

    async def _given_up(self, run: Run) -> tuple[None, None]:
        """No node starts; what the run began while it was given up is given up too."""
        for other in await self._journal.runs.cancel(run.run_id, by=run.cancelled_by or "", note=run.cancel_note or ""):
            if other.run_id != run.run_id:
                await self._wake(other)
        return None, None

    async def _outcome(self, run: Run, desk: RunDesk) -> tuple[dict[str, object] | None, Failure | None]:
        try:
            if run.lost >= LOST_AT_MOST:
                raise ProcessLost(
                    f"{run.lost} processes died or broke while they ran what follows the last checkpoint of this run; see what its nodes do there"
                    " (memory, os._exit, a crash of a library), and then `metier runs retry`"
                )
            workflow = await self._versions.find(run)
            await self._journal.runs.pin(run.run_id, run.epoch, workflow.version)
            value = workflow.accept(run.input)
            measuring.run_began(run)
            started = RunStarted(run_id=run.run_id, workflow=workflow.name, version=workflow.version)
            desk.progress.tell(Envelope(started, f"{run.run_id}/started", SOURCE, run.run_id))
            if run.epoch > 1:
                desk.progress.tell(progress.resumed(run.run_id, run.epoch))
            return _plain(run.workflow, await self._graph(run, workflow, value, desk)), None
        except LimitReached as error:
            metrics.add(metrics.BUDGET_STOPS, 1, {metrics.REASON: error.code})
            return _partial(run.workflow, desk), Failure(code=error.code, message=str(error))
        except FailRun as error:
            return None, Failure(code=error.code, message=str(error))
        except (FencedOff, RetryLater):
            raise
        except Exception as error:
            log.exception("the workflow's graph raised", action="fail", run_id=run.run_id, workflow=run.workflow)
            broken = WorkflowBroken(
                f"{_where(error)} of {run.workflow!r} raised {type(error).__name__}: {_said(error)}"
            )
            return None, Failure(code=broken.code, message=str(broken))

    async def _graph(self, run: Run, workflow: Workflow, value: dict[str, object], desk: RunDesk) -> dict[str, object]:
        """Run the graph, from its input or from its last checkpoint, to the end."""
        saver = JournalSaver(self._journal.db, run.epoch)
        config: RunnableConfig = {"configurable": {"thread_id": run.run_id}}
        graph = workflow.compiled.copy({"checkpointer": saver})
        begun = await saver.begin(config, new=run.epoch == 1 and run.origin is None)
        if begun is not None:
            refuse_gone(graph, begun)
        with node.at(desk):
            chunks = graph.astream(
                None if begun else value,
                config,
                stream_mode=["values", "tasks"],
                output_keys=graph.output_channels,
                durability="sync",
            )
            return await to_the_end(desk, chunks, done=written(begun), ends_at=await desk.spending.ends_at())

    async def _park(self, run: Run, waits_for: Mapping[str, Awaited], ends_at: float) -> None:
        """Let go of a run that does nothing but wait. Whatever wakes it from now on takes it up anew, and fences this segment off."""
        self._leave(run.run_id)
        if await self._journal.runs.park(run.run_id, run.epoch, waits_for, ends_at):
            log.info("run parked", action="wait", run_id=run.run_id, waits=len(waits_for))
            return
        await self._journal.runs.give_back(run.run_id, run.epoch)
        await self._wake(run)

    async def announce(self, run: Run, desk: RunDesk | None = None) -> None:
        """Publish the terminal event, under an id that never changes, after all that the `desk` told; and remember that it went out."""
        end = Envelope(run.end, f"{run.run_id}/ended", SOURCE, run.run_id, subject=run.event_id)
        await self._give_up_children(run)
        await (desk.progress.told(end) if desk else self._tell(end, run))
        await self._wake_parent(run)
        failpoint("run.told")
        await self._journal.runs.announced(run.run_id)
        log.info(
            "run ended",
            action="end",
            run_id=run.run_id,
            status=run.status,
            reason=run.failure.code if run.failure else None,
        )

    async def _give_up_children(self, run: Run) -> None:
        """What a run started that did not succeed works for nobody."""
        children = await self._journal.runs.children(run.run_id) if run.status != "succeeded" else ()
        for child in children:
            if not child.ended:
                note = f"the run that started it {run.status}"
                for left in await self._journal.runs.cancel(child.run_id, by=SOURCE, note=note):
                    await persist(f"wake {left.run_id}", partial(self._wake, left), PATIENT)

    async def _wake_parent(self, run: Run) -> None:
        """The run whose node started this one goes on; where it is parked, it is taken up."""
        parent = await self._journal.runs.get(run.parent) if run.parent else None
        if parent is not None and not parent.ended:
            await persist(f"wake {parent.run_id}", lambda: self._wake(parent), PATIENT)

    async def _tell(self, event: Envelope[Any], run: Run) -> None:
        await persist(f"tell {event.id}", lambda: send(self._bus, EVENTS_TOPIC, event, parent=run.traceparent), PATIENT)


def _calls(waits_for: Mapping[str, Awaited]) -> Sequence[CallId]:
    return [CallId(one) for one, kind in waits_for.items() if kind == "call"]


def _partial(workflow: str, desk: RunDesk) -> dict[str, object] | None:
    """What a run has of a result, where a limit ended it; None where JSON cannot carry it."""
    try:
        return _plain(workflow, desk.outputs)
    except WorkflowBroken:
        return None


def _said(error: Exception) -> str:
    """What an author's exception says of itself; it may break even at that."""
    try:
        return str(error)
    except Exception as broken:
        return f"it cannot say what is wrong: {type(broken).__name__}"


_NODE = re.compile(r"During task with name '(.+)' and id '")
"""LangGraph's note on an exception that left a node; the innermost graph's comes first."""


def _where(error: Exception) -> str:
    """What of the graph raised: the node, with those of the graphs round it, where LangGraph says so."""
    notes = [_NODE.match(note) for note in getattr(error, "__notes__", ())]
    nodes = [found[1] for found in reversed(notes) if found]
    return f"the node {'/'.join(nodes)!r}" if nodes else "the graph"


def _plain(workflow: str, result: dict[str, object]) -> dict[str, object]:
    """A run's result, as JSON can carry it and whoever gets it can read it. Raises `WorkflowBroken`."""
    if "__interrupt__" in result:
        raise WorkflowBroken(f"the graph of {workflow!r} stopped at an interrupt, which nothing here can resume")
    try:
        told = json.dumps(result, allow_nan=False)
        from_json(told, allow_inf_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise WorkflowBroken(f"the graph of {workflow!r} gave a result that is not JSON: {error}") from error
    if len(told) > LARGEST:
        raise WorkflowBroken(
            f"the graph of {workflow!r} gave a result of {len(told)} bytes; an event carries {LARGEST}"
        )
    return result
