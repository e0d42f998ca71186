"""One run as a tree: event, workflow, decision, call, agent, model turn, tool call, container, answer, event.

Built from the journal alone, so `metier trace` and `metier demo` need no tracing backend. `tree` is pure; `gather` reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.text import Text
from rich.tree import Tree

from metier_agents.turns import Assessed, Compared, ModelTurn, Realised, ToolTurn, Usage, load
from metier_infra.journal import Journal
from metier_infra.rows import Approval, Call, Run, Step, ToolCallRow
from metier_infra.telemetry import trace_id
from metier_infra.words import CallId, Decision, RunId, Word, stable_id
from metier_tools.tool import ToolResult

Kind = Literal[
    "event", "workflow", "decision", "call", "agent", "model", "weighing", "approval", "tool", "container", "answer"
]
_STYLE: Mapping[Kind, str] = {
    "event": "magenta",
    "workflow": "bold",
    "decision": "yellow",
    "call": "dim",
    "agent": "bold cyan",
    "model": "cyan",
    "weighing": "yellow",
    "approval": "bold magenta",
    "tool": "green",
    "container": "blue",
    "answer": "bold green",
}


class TraceNode(Word):
    """One thing that happened. `at_ms` counts from the acceptance of the request; `ms` is how long it took; None: not recorded."""

    kind: Kind
    name: str
    at_ms: float | None = None
    ms: float | None = None
    cost_usd: float | None = None
    note: str = ""
    children: tuple[TraceNode, ...] = ()


@dataclass(frozen=True)
class Rows:
    """What the journal knows of one run."""

    run: Run
    decisions: Sequence[Decision]
    calls: Sequence[Call]
    steps: Mapping[CallId, Sequence[Step]]
    tools: Sequence[ToolCallRow]
    approvals: Sequence[Approval] = ()


async def gather(journal: Journal, run: Run) -> Rows:
    """Read everything that the journal knows of a run."""
    run_id = RunId(run.run_id)
    calls = await journal.calls.of_run(run_id)
    steps = {call.call_id: await journal.steps.of_call(call.call_id) for call in calls}
    decisions, tools = await journal.decisions.of_run(run_id), await journal.tools.of_run(run_id)
    return Rows(run, decisions, calls, steps, tools, await journal.approvals.of_run(run_id))


def tree(rows: Rows) -> TraceNode:
    """The run's tree."""
    run, zero = rows.run, rows.run.accepted_at
    calls = tuple(_call(rows, call) for call in rows.calls)
    end = TraceNode(
        kind="event",
        name=f"run.{run.status}" if run.ended else run.status,
        at_ms=_since(zero, run.finished_at),
        cost_usd=run.cost_usd if run.ended else None,
        note=f"{run.failure.code}: {run.failure.message}" if run.failure else "",
    )
    workflow = TraceNode(
        kind="workflow",
        name=run.workflow,
        at_ms=_since(zero, run.started_at),
        ms=_since(run.started_at, run.finished_at),
        note=f"version {run.version}, segment {run.epoch}" if run.version else "",
        children=(*(_decision(decision) for decision in rows.decisions), *calls),
    )
    return TraceNode(
        kind="event",
        name="run.requested",
        at_ms=0.0,
        ms=_since(zero, run.finished_at),
        note=f"run {run.run_id}, trace {trace_id(run.traceparent)}",
        children=(workflow, end),
    )


def _since(begin: float | None, then: float | None) -> float | None:
    return None if begin is None or then is None else max(0.0, (then - begin) * 1000)


def _decision(decision: Decision) -> TraceNode:
    scores = ", ".join(f"{candidate.agent} {candidate.score:.2f}" for candidate in decision.candidates)
    return TraceNode(
        kind="decision",
        name=f"{decision.topology}: {', '.join(decision.chosen)}",
        note=f"{decision.category}; {decision.reason}; scores: {scores}; router {decision.router}",
    )


def _call(rows: Rows, call: Call) -> TraceNode:
    zero = rows.run.accepted_at
    policy = f"policy {call.answer.policy}" if call.answer else ""
    inner = TraceNode(
        kind="agent",
        name=call.agent,
        at_ms=_since(zero, call.claimed_at),
        ms=_since(call.claimed_at, call.answered_at),
        note=policy + (f" attempt {call.attempt}" if call.attempt > 1 else ""),
        children=(*_turns(rows, call), *_answer(rows, call)),
    )
    return TraceNode(
        kind="call",
        name=call.agent,
        at_ms=_since(zero, call.requested_at),
        ms=_since(call.requested_at, call.answered_at),
        cost_usd=call.cost_usd if call.answered_at else None,
        note=f"call {call.call_id[:12]}",
        children=(inner,),
    )


def _answer(rows: Rows, call: Call) -> list[TraceNode]:
    at = _since(rows.run.accepted_at, call.answered_at)
    if call.failure:
        return [TraceNode(kind="answer", name="failed", at_ms=at, note=f"{call.failure.code}: {call.failure.message}")]
    if call.answer is None:
        return []
    sure = "" if call.answer.confidence is None else f"confidence {call.answer.confidence:.2f}"
    return [TraceNode(kind="answer", name=_short(call.answer.text), at_ms=at, note=sure)]


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
        at_ms=_since(zero, turn.started_at),
        ms=_since(turn.started_at, turn.ended_at),
        cost_usd=turn.cost_usd,
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
        at_ms=_since(zero, row.requested_at) if row else None,
        ms=_since(row.requested_at, row.finished_at) if row else None,
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
        at_ms=_since(zero, one.wanted_at),
        ms=_since(one.wanted_at, one.decided_at),
        note=_short("; ".join(note for note in notes if note), 200),
    )


def _container(result: ToolResult) -> TraceNode:
    start = f"booted in {result.boot_ms:.0f} ms" if result.cold else "warm"
    said = _short(result.stdout or result.stderr)
    code = f", exit {result.exit_code}" if result.exit_code is not None else ""
    return TraceNode(
        kind="container",
        name=result.container,
        ms=result.wall_ms,
        note=f"{start}, waited {result.wait_ms:.1f} ms{code}, wrote {said!r}",
    )


def _short(text: str, limit: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def render(node: TraceNode, into: Tree | None = None) -> Tree:
    """The tree for a terminal."""
    line = Text()
    line.append(f"{node.kind} ", style="dim")
    line.append(node.name, style=_STYLE[node.kind])
    if node.ms is not None:
        line.append(f"  {node.ms:.1f} ms", style="bold" if node.kind in {"workflow", "container"} else "")
    if node.cost_usd is not None:
        line.append(f"  ${node.cost_usd:.6f}", style="yellow")
    if node.at_ms is not None:
        line.append(f"  @{node.at_ms:.0f}", style="dim")
    if node.note:
        line.append(f"  {node.note}", style="dim")
    branch = Tree(line) if into is None else into.add(line)
    for child in node.children:
        render(child, branch)
    return branch
