"""One run as a tree: event, workflow, decision, call, agent, model turn, tool call, container, answer, event, and what came of it.

Built from the journal alone, so `metier trace` and `metier demo` need no tracing backend. `tree` is pure; `gather` reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from metier.trace_decisions import decided, said
from metier.trace_tree import TraceNode, short, since_ms
from metier_agents.turns import Assessed, Compared, ModelTurn, Realised, ToolTurn, Usage, load
from metier_infra.journal import Journal
from metier_infra.outcomes import Outcome
from metier_infra.rows import Approval, Call, Run, Step, ToolCallRow, Wait
from metier_infra.segments import Segment
from metier_infra.telemetry import trace_id
from metier_infra.words import CallId, Decision, RunId, Spent, stable_id
from metier_tools.tool import ToolResult
from metier_workflows.progress import node_of


@dataclass(frozen=True)
class Rows:
    """What the journal knows of one run. `in_all` is what its calls and those of the runs below it took."""

    run: Run
    decisions: Sequence[Decision]
    calls: Sequence[Call]
    steps: Mapping[CallId, Sequence[Step]]
    tools: Sequence[ToolCallRow]
    approvals: Sequence[Approval] = ()
    segments: Sequence[Segment] = ()
    waits: Sequence[Wait] = ()
    children: Sequence[Run] = ()
    outcomes: Sequence[Outcome] = ()
    in_all: Spent | None = None


async def gather(journal: Journal, run: Run) -> Rows:
    """Read everything that the journal knows of a run."""
    run_id = RunId(run.run_id)
    calls = await journal.calls.of_run(run_id)
    steps = {call.call_id: await journal.steps.of_call(call.call_id) for call in calls}
    decisions, tools = await journal.decisions.of_run(run_id), await journal.tools.of_run(run_id)
    return Rows(
        run,
        decisions,
        calls,
        steps,
        tools,
        await journal.approvals.of_run(run_id),
        await journal.segments.of_run(run_id),
        await journal.waits.of_run(run_id),
        await journal.runs.children(run_id),
        await journal.outcomes.listed(run_id),
        await journal.runs.spent_in_all(run_id),
    )


def tree(rows: Rows) -> TraceNode:
    """The run's tree."""
    run, zero = rows.run, rows.run.accepted_at
    happened = [
        *_segments(rows),
        *(_call(rows, call) for call in rows.calls),
        *(_wait(zero, wait) for wait in rows.waits),
        *(_sub_run(zero, child) for child in rows.children),
    ]
    end = TraceNode(
        kind="event",
        name=f"run.{run.status}" if run.ended else run.status,
        at_ms=since_ms(zero, run.finished_at),
        cost_usd=run.cost_usd if run.ended else None,
        tokens=run.tokens if run.ended else None,
        note=_why(run),
    )
    workflow = TraceNode(
        kind="workflow",
        name=run.workflow,
        at_ms=since_ms(zero, run.started_at),
        ms=since_ms(run.started_at, run.finished_at),
        note=f"version {run.version}, segment {run.epoch}" if run.version else "",
        children=(
            *(decided(decision) for decision in rows.decisions),
            *sorted(happened, key=lambda node: node.at_ms or 0.0),
        ),
    )
    return TraceNode(
        kind="event",
        name="run.requested",
        at_ms=0.0,
        ms=since_ms(zero, run.finished_at),
        cost_usd=rows.in_all.usd if rows.in_all else None,
        tokens=rows.in_all.tokens if rows.in_all else None,
        note=f"{'with the runs below it; ' if rows.children else ''}run {run.run_id}, {_traces(rows)}{_kin(run)}",
        children=(workflow, end, *(said(zero, one) for one in reversed(rows.outcomes))),
    )


def _why(run: Run) -> str:
    """Why a run did not succeed, or will not."""
    if run.cancelled_by is not None:
        return f"{'' if run.ended else 'given up '}by {run.cancelled_by}{f': {run.cancel_note}' if run.cancel_note else ''}"
    return f"{run.failure.code}: {run.failure.message}" if run.failure else ""


def _traces(rows: Rows) -> str:
    roots = [rows.run.traceparent, *(one.traceparent for one in rows.segments if one.traceparent)]
    return f"trace {' then '.join(map(trace_id, roots))}"


def _kin(run: Run) -> str:
    return (f", started by run {run.parent}" if run.parent else "") + (
        f", after run {run.origin}" if run.origin else ""
    )


def _segments(rows: Rows) -> list[TraceNode]:
    """How often the run left memory and was taken up again."""
    zero, nodes = rows.run.accepted_at, list[TraceNode]()
    for one in rows.segments:
        name = f"segment {one.epoch}"
        if one.began_at is not None:
            woken = f"woken by {(one.woken_by or '').removeprefix('io.metier.')}"
            fresh = f"; a new trace, {trace_id(one.traceparent)}" if one.traceparent else ""
            nodes.append(TraceNode(kind="segment", name=name, at_ms=since_ms(zero, one.began_at), note=woken + fresh))
        if one.parked_at is not None:
            nodes.append(TraceNode(kind="segment", name=f"{name} parked", at_ms=since_ms(zero, one.parked_at)))
    return nodes


def _wait(zero: float, wait: Wait) -> TraceNode:
    came = "came" if wait.signal_id else "its time was over" if wait.ended_at else "waits"
    return TraceNode(
        kind="wait",
        name=f"signal {wait.name}" if wait.name is not None else "time",
        at_ms=since_ms(zero, wait.asked_at),
        ms=since_ms(wait.asked_at, wait.ended_at),
        note=came if wait.name is not None or not wait.ended_at else "over",
    )


def _sub_run(zero: float, child: Run) -> TraceNode:
    """A run that a node started; its own tree is `metier trace` of its id."""
    return TraceNode(
        kind="run",
        name=child.workflow,
        at_ms=since_ms(zero, child.accepted_at),
        ms=since_ms(child.accepted_at, child.finished_at),
        cost_usd=child.cost_usd if child.ended else None,
        tokens=child.tokens if child.ended else None,
        note=f"run {child.run_id}, {child.status}{f': {why}' if (why := _why(child)) else ''}",
    )


def _call(rows: Rows, call: Call) -> TraceNode:
    zero = rows.run.accepted_at
    policy = f"policy {call.answer.policy}" if call.answer else ""
    inner = TraceNode(
        kind="agent",
        name=call.agent,
        at_ms=since_ms(zero, call.claimed_at),
        ms=since_ms(call.claimed_at, call.answered_at),
        note=policy + (f" attempt {call.attempt}" if call.attempt > 1 else ""),
        children=(*_turns(rows, call), *_answer(rows, call)),
    )
    return TraceNode(
        kind="call",
        name=call.agent,
        at_ms=since_ms(zero, call.requested_at),
        ms=since_ms(call.requested_at, call.answered_at),
        cost_usd=call.cost_usd if call.answered_at else None,
        tokens=call.tokens if call.answered_at else None,
        note=f"call {call.call_id[:12]}{f' by {node}' if (node := node_of(call)) else ''}{_allowed(call)}",
        children=(inner,),
    )


def _allowed(call: Call) -> str:
    """What the limits of its run or tenant left it, where that is less than it would have had."""
    allowed = call.allowance
    if allowed is None:
        return ""
    amounts = {
        "usd": f"${allowed.usd or 0:.6f}",
        "tokens": f"{allowed.tokens} tokens",
        "tool_calls": f"{allowed.tool_calls} tool calls",
    }
    cut = [amounts.get(one, "the run's time") for one in allowed.cut]
    within = f"; within {', '.join(cut)}" if cut else ""
    return within + ("; on the cheapest model" if allowed.economy else "")


def _answer(rows: Rows, call: Call) -> list[TraceNode]:
    at = since_ms(rows.run.accepted_at, call.answered_at)
    if call.failure:
        return [TraceNode(kind="answer", name="failed", at_ms=at, note=f"{call.failure.code}: {call.failure.message}")]
    if call.answer is None:
        return []
    sure = "" if call.answer.confidence is None else f"confidence {call.answer.confidence:.2f}"
    return [TraceNode(kind="answer", name=short(call.answer.text), at_ms=at, note=sure)]


def _turns(rows: Rows, call: Call) -> list[TraceNode]:
    made = {row.tool_call_id: row for row in rows.tools if row.call_id == call.call_id}
    nodes: list[TraceNode] = []
    for step, message in ((one, message) for one in rows.steps[call.call_id] for message in load(one.body)):
        match message:
            case ModelTurn():
                nodes += [_model(rows.run.accepted_at, message), *_approvals(rows, step, message)]
            case ToolTurn():
                row = next((found for key, found in made.items() if key == message.tool_call_id), None)
                nodes.append(_tool(rows.run.accepted_at, message, row))
            case Assessed():
                found = ", ".join(f"{tool.estimate.tool} is worth {tool.value:+.3f}" for tool in message.tools)
                nodes.append(TraceNode(kind="weighing", name="tools weighed", note=found or "no tool fits"))
            case Compared():
                stands = (
                    "agree" if message.agreed else "differ; the model's own stands" if message.keeps_own else "differ"
                )
                note = f"the answer after tools and the model's own before: {stands}"
                nodes.append(TraceNode(kind="weighing", name="answers compared", note=note))
            case Realised():
                note = f"predicted {message.predicted:+.3f}, realised {message.realised:+.3f}"
                nodes.append(TraceNode(kind="weighing", name=f"{message.tool} judged", note=note))
            case _:
                continue
    return nodes


def _model(zero: float, turn: ModelTurn) -> TraceNode:
    notes = [
        turn.purpose if turn.purpose != "answer" else "",
        f"tools offered: {', '.join(turn.offered)}" if turn.offered else "no tools offered",
        f"calls {', '.join(use.tool for use in turn.uses)}" if turn.uses else "",
        _counted(turn.usage) if turn.usage else "",
        *(f"passed over {one.model}: {one.code}" for one in turn.passed_over),
        "declined" if turn.refused else "",
        "cut at its longest" if turn.cut else "",
        "written by a fixed rule" if turn.rule_written else "",
        "may be billed twice" if turn.asked_again else "",
    ]
    return TraceNode(
        kind="model",
        name=turn.model,
        at_ms=since_ms(zero, turn.started_at),
        ms=since_ms(turn.started_at, turn.ended_at),
        cost_usd=turn.cost_usd,
        tokens=turn.usage.input_tokens + turn.usage.output_tokens if turn.usage else None,
        note="; ".join(note for note in notes if note),
    )


def _counted(usage: Usage) -> str:
    """Tokens; `~` where what was set aside stands for what nobody counted."""
    cached = f" ({usage.cached_tokens} from the cache)" if usage.cached_tokens else ""
    return f"{'~' if usage.estimated else ''}{usage.input_tokens} tokens in{cached}, {usage.output_tokens} out"


def _tool(zero: float, turn: ToolTurn, row: ToolCallRow | None) -> TraceNode:
    return TraceNode(
        kind="tool",
        name=turn.tool,
        at_ms=since_ms(zero, row.requested_at) if row else None,
        ms=since_ms(row.requested_at, row.finished_at) if row else None,
        note=turn.result.status,
        children=(_container(turn.result),) if turn.result.container else (),
    )


def _approvals(rows: Rows, step: Step, turn: ModelTurn) -> list[TraceNode]:
    """What people were asked about the tool uses of a turn."""
    ids = [stable_id(step.call_id, step.n, index) for index in range(len(turn.uses))]
    return [_approval(rows.run.accepted_at, one) for one in rows.approvals if one.approval_id in ids]


def _approval(zero: float, one: Approval) -> TraceNode:
    decided = "waits" if one.granted is None else f"{'granted' if one.granted else 'refused'} by {one.decided_by}"
    notes = [
        decided,
        "with other arguments" if one.changed is not None else "",
        one.note or "",
        f"asked because: {one.why}",
    ]
    return TraceNode(
        kind="approval",
        name=one.tool,
        at_ms=since_ms(zero, one.wanted_at),
        ms=since_ms(one.wanted_at, one.decided_at),
        note=short("; ".join(note for note in notes if note), 200),
    )


def _container(result: ToolResult) -> TraceNode:
    start = f"booted in {result.boot_ms:.0f} ms" if result.cold else "warm"
    said = short(result.stdout or result.stderr)
    code = f", exit {result.exit_code}" if result.exit_code is not None else ""
    return TraceNode(
        kind="container",
        name=result.container,
        ms=result.wall_ms,
        note=f"{start}, waited {result.wait_ms:.1f} ms{code}, wrote {said!r}",
    )
