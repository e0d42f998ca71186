"""A run's tree from the journal: a whole system in this process, with a scripted tool lane. Not tested here: real containers."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator

import pytest
from rich.console import Console

from metier import client, compose, compose_tools, configuration, roles
from metier.configuration import System
from metier.trace import Rows, gather, tree
from metier.trace_decisions import decided, said
from metier.trace_tree import TraceNode, render
from metier_agents.recordings import read_recordings
from metier_agents.turns import ModelTurn, PassedOver, Usage, dump
from metier_infra import outcomes
from metier_infra.events import RunFailed, RunSucceeded
from metier_infra.rows import Step, Wait
from metier_infra.segments import Segment
from metier_infra.words import Candidate, Decision, Shadow, Spent, Stamp
from metier_tools.sandbox import Outcome, Request

QUERIES = read_recordings(compose.recordings_path()).queries
CODE = next(query for query in QUERIES if query.category == "code_reasoning")
WORD = next(query for query in QUERIES if query.category == "math_word")


def run_it(request: Request) -> Outcome:
    """Stands in for the sandbox: says what running the code gives."""
    assert CODE.gold is not None
    return Outcome("ok", 0, CODE.gold + "\n", wall_ms=3.0) if "print(repr(" in request.source else Outcome("error", 1)


@pytest.fixture
async def system() -> AsyncGenerator[System]:
    """Every role in this process, and no container."""
    async with roles.embedded(
        configuration.configure(), journal=":memory:", lane=compose_tools.scripted_lane(run_it)
    ) as found:
        yield found


async def rows_of(system: System, question: str, workflow: str = "specialists") -> tuple[client.Ended, Rows]:
    end = await client.publish_and_wait(system.bus, workflow, {"question": question}, event_id=None, timeout_s=30)
    run = await system.journal.runs.get(end.run_id)
    assert run is not None
    return end, await gather(system.journal, run)


def below(node: TraceNode, *kinds: str) -> list[TraceNode]:
    """The nodes at the end of a path of kinds, such as call, agent, tool."""
    if not kinds:
        return [node]
    return [found for child in node.children if child.kind == kinds[0] for found in below(child, *kinds[1:])]


async def test_the_tree_goes_from_event_to_event(system: System) -> None:
    # Given a code question, which two agents answer with a tool
    end, rows = await rows_of(system, CODE.text)
    assert isinstance(end, RunSucceeded)
    # When its tree is built
    node = tree(rows)
    # Then every hop stands under the one that caused it
    assert (node.kind, node.name) == ("event", "run.requested")
    assert [child.name for child in below(node, "event")] == ["run.succeeded"]
    assert [child.name for child in below(node, "workflow")] == ["specialists"]
    assert len(below(node, "workflow", "decision")) == 1
    agents = below(node, "workflow", "call", "agent")
    assert {agent.name for agent in agents} == set(rows.decisions[0].chosen)
    assert len(below(node, "workflow", "call", "agent", "tool", "container")) == 2
    assert all(below(agent, "model") and len(below(agent, "answer")) == 1 for agent in agents)
    # and times and costs add up
    assert node.ms is not None
    assert all(0 <= (child.at_ms or 0) <= node.ms for child in below(node, "workflow", "call"))
    turns = below(node, "workflow", "call", "agent", "model")
    assert sum(turn.cost_usd or 0 for turn in turns) == pytest.approx(end.cost_usd)
    assert sum(call.cost_usd or 0 for call in below(node, "workflow", "call")) == pytest.approx(end.cost_usd)


async def test_the_policies_show_in_the_turns(system: System) -> None:
    _, rows = await rows_of(system, CODE.text)
    for agent in below(tree(rows), "workflow", "call", "agent"):
        first = below(agent, "model")[0]
        if "autonomous" in agent.note:
            assert "no tools offered" in first.note
        if "collaborative" in agent.note:
            assert "tools offered: python" in first.note


async def test_what_a_rule_wrote_is_called_so(system: System) -> None:
    _, rows = await rows_of(system, CODE.text)
    calls_tool = [
        turn for turn in below(tree(rows), "workflow", "call", "agent", "model") if "calls python" in turn.note
    ]
    assert calls_tool
    assert all("written by a fixed rule" in turn.note for turn in calls_tool)


async def test_a_failure_stands_where_it_happened(system: System) -> None:
    end, rows = await rows_of(system, "What was never recorded?")
    assert isinstance(end, RunFailed)
    node = tree(rows)
    assert [answer.name for answer in below(node, "workflow", "call", "agent", "answer")] == ["failed"]
    assert "call_failed" in below(node, "event")[0].note


async def test_a_run_in_flight_has_a_tree_too(system: System) -> None:
    end, rows = await rows_of(system, WORD.text)
    begun = rows.run.model_copy(update={"status": "running", "finished_at": None, "result": None})
    node = tree(
        Rows(
            begun,
            rows.decisions,
            [call.model_copy(update={"answer": None, "answered_at": None}) for call in rows.calls],
            rows.steps,
            (),
        )
    )
    assert below(node, "event")[0].name == "running"
    assert below(node, "workflow", "call", "agent", "answer") == []
    assert end.run_id in node.note


async def test_it_renders_for_a_terminal_and_for_a_machine(system: System) -> None:
    _, rows = await rows_of(system, CODE.text)
    node = tree(rows)
    console = Console(width=200, record=True, file=None, quiet=True)
    with console.capture() as captured:
        console.quiet = False
        console.print(render(node))
    assert "container" in captured.get()
    assert TraceNode.model_validate_json(node.model_dump_json()) == node


def test_what_others_wrote_does_no_more_to_a_terminal_than_be_shown() -> None:
    console = Console(width=200, force_terminal=False)
    with console.capture() as captured:
        console.print(render(TraceNode(kind="answer", name="\x1b[2J [red]a\x9b", note="\u202e b")))
    assert captured.get().strip() == r"answer \x1b[2J [red]a\x9b  \u202e b"


async def test_many_runs_at_once_keep_apart(system: System) -> None:
    # Given twenty questions asked at once
    chosen = [query for query in QUERIES if query.category == "math_word"][:20]
    ends = await asyncio.gather(*[rows_of(system, query.text) for query in chosen])
    # Then each run answers its own
    assert [rows.run.input["question"] for _, rows in ends] == [query.text for query in chosen]
    assert all(isinstance(end, RunSucceeded) for end, _ in ends)


async def test_what_was_counted_and_who_was_passed_over_stands_with_the_turn(system: System) -> None:
    _, rows = await rows_of(system, WORD.text)
    call = rows.calls[0]
    turn = ModelTurn(
        text="I will not.",
        model="b",
        usage=Usage(input_tokens=1200, output_tokens=80, cached_tokens=900),
        passed_over=(PassedOver(model="a", code="circuit_open", message="away"),),
        refused=True,
    )
    step = Step(call.call_id, 0, dump([turn]), 0.0)
    (model,) = below(
        tree(dataclasses.replace(rows, calls=[call], steps={call.call_id: [step]})),
        "workflow",
        "call",
        "agent",
        "model",
    )
    assert "1200 tokens in (900 from the cache), 80 out; passed over a: circuit_open; declined" in model.note


async def test_parks_waits_and_sub_runs_stand_in_the_order_of_time_and_the_end_says_who_gave_it_up(
    system: System,
) -> None:
    # Given a run that was parked, woken in a new trace, waited for a signal and a sub-run, and was cancelled
    _, rows = await rows_of(system, WORD.text)
    zero = rows.run.accepted_at
    run = rows.run.model_copy(
        update={"status": "cancelled", "cancelled_by": "ann", "cancel_note": "too dear", "origin": "o" * 32}
    )
    other = f"00-{'2' * 32}-{'3' * 16}-03"
    segments = (
        Segment(epoch=1, parked_at=zero + 1),
        Segment(epoch=2, woken_by="io.metier.run.accepted.v1", traceparent=other, began_at=zero + 9),
    )
    waits = (
        Wait(wait_id="w", run_id=run.run_id, slot=("t", "w", 1), name="paid", asked_at=zero + 2, ended_at=zero + 3, signal_id="s"),
    )  # fmt: skip
    child = run.model_copy(update={"run_id": "c" * 32, "workflow": "inner", "accepted_at": zero + 4, "tokens": 7})
    # When its tree is built
    node = tree(dataclasses.replace(rows, run=run, segments=segments, waits=waits, children=(child,)))
    # Then each stands where it belongs
    inner = next(one for one in node.children if one.kind == "workflow")
    assert [(one.kind, one.name) for one in inner.children if one.kind in {"segment", "wait", "run"}] == [
        ("segment", "segment 1 parked"),
        ("wait", "signal paid"),
        ("run", "inner"),
        ("segment", "segment 2"),
    ]
    (sub,) = below(node, "workflow", "run")
    assert (sub.tokens, sub.at_ms) == (7, pytest.approx(4000))
    assert node.note.startswith("with the runs below it; run ")
    assert f"a new trace, {'2' * 32}" in below(node, "workflow", "segment")[1].note
    assert (below(node, "event")[0].name, below(node, "event")[0].note) == ("run.cancelled", "by ann: too dear")
    assert f"then {'2' * 32}, after run {'o' * 32}" in node.note


async def test_a_run_that_is_given_up_says_so_last_and_its_root_has_what_it_took_in_all(system: System) -> None:
    # Given a run that was given up, and not yet ended by its orchestrator, of which workers told what they took
    _, rows = await rows_of(system, WORD.text)
    given_up = {"cancelled_by": "ann", "cancel_note": "", "cancelled_at": rows.run.accepted_at + 1}
    open_still = rows.run.model_copy(update={**given_up, "status": "running", "finished_at": None, "result": None})
    spent = Spent(usd=0.5, tokens=12)
    # When its tree is built before and after its end
    before = tree(dataclasses.replace(rows, run=open_still, in_all=spent))
    after = tree(
        dataclasses.replace(rows, run=rows.run.model_copy(update={**given_up, "status": "cancelled"}), in_all=spent)
    )
    # Then the last thing is how it stands, and the root has all that was told, whatever was known when it ended
    assert [(node.children[-1].name, node.children[-1].note) for node in (before, after)] == [
        ("running", "given up by ann"),
        ("run.cancelled", "by ann"),
    ]
    assert (after.cost_usd, after.tokens) == (0.5, 12)


async def test_the_root_has_what_the_calls_took(system: System) -> None:
    end, rows = await rows_of(system, CODE.text)
    assert rows.in_all is not None
    assert rows.in_all.tokens > 0
    assert tree(rows).cost_usd == pytest.approx(end.cost_usd)


async def test_a_call_names_the_node_that_asked_and_tokens_add_up(system: System) -> None:
    _, rows = await rows_of(system, WORD.text)
    calls = [call.model_copy(update={"tokens": 30}) for call in rows.calls]
    node = tree(dataclasses.replace(rows, calls=calls))
    shown = below(node, "workflow", "call")
    assert {one.tokens for one in shown} == {30}
    assert all(" by " in one.note for one in shown)


def test_a_decision_shows_what_was_weighed_with_what_it_is_who_decided_and_what_watched_versions_would_have_asked() -> (
    None
):
    stamp = Stamp(agent="a", digest="d", safety="strict@2")
    weighed = Candidate(agent="a", score=0.8, propensity=0.75, stamp=stamp, cost_usd=0.01, policy="autonomous", reasoning="deep", retrieval="synthesise")  # fmt: skip
    decision = Decision(
        category="math", chosen=("a",), topology="specialist", reason="sure", router="v2", candidates=(weighed,), by="learned", seed=7, canary=True,
        shadows=(Shadow(router="v3", topology="panel", chosen=("a", "b")),),
    )  # fmt: skip
    node = decided(decision)
    assert (node.kind, node.name) == ("decision", "specialist: a")
    assert node.note == (
        "math; sure; scores: a 0.80 (chance 0.75, $0.010000, autonomous, deep, synthesise, strict@2);"
        " router v2, on trial; by learned, seed 7; v3, watched, would ask a, b"
    )


@pytest.mark.parametrize(("canary", "told"), [(True, "on trial"), (False, "v3 on trial")])
def test_a_decision_for_several_shows_what_each_weighs_and_who_is_on_trial(*, canary: bool, told: str) -> None:
    decision = Decision(
        category="math", chosen=("a", "b"), topology="cascade", reason="sure", router="v2", candidates=(), by="learned", seed=7,
        weights=(1.25, 0.5), enough=0.8, canary=canary, share=0.1, other="v3",
    )  # fmt: skip
    assert decided(decision).note == (
        f"math; sure; scores: ; votes: a 1.25, b 0.50; 80% is enough; router v2, {told} for 10% of the tasks; by learned, seed 7"
    )


def test_what_was_said_later_shows_of_whom_by_whom_and_how_much_it_counts() -> None:
    word = outcomes.Outcome(
        run_id="r", score=0.5, kind="edit", agent="a", by="ann", note="half\x1b of it", event_id="e", said_at=110.0
    )
    node = said(100.0, word)
    assert (node.name, node.at_ms, node.note) == ("a 0.50", 10_000.0, "edit by ann, counts 0.5: half\\x1b of it")
    assert said(100.0, word.model_copy(update={"agent": "", "orphan": True})).note.startswith("edit by ann, an orphan")
