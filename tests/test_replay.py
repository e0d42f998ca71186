"""Recorded runs with another router, agent or policy: what would differ, what cannot be known; and that a replay runs no tool, tells nobody and changes nothing.

The runs are made in this process by the example's agents, whose answers are recorded ones, with scripted tools. Not here: the words of the commands beyond one of each kind.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph
from typer.testing import CliRunner

from metier import client, compose_tools, configuration, roles, route, signal, sleep, workflow
from metier.cli import app
from metier.cli_replay import table
from metier.compose import recordings_path
from metier.configuration import Config, System
from metier.replay import Models, With, replay
from metier.replay_record import RecordedLane, Unknown, record_of
from metier.replay_report import Difference, Replayed
from metier_agents.recordings import RecordedQuery, read_recordings
from metier_infra.database import Database, Statement
from metier_infra.errors import AskOperator, BadSettings, UnknownAgent, UnknownWorkflow
from metier_infra.journal import Journal
from metier_infra.rows import Run, ToolCallRow
from metier_infra.words import CallId, RunId, ToolCallId, stable_id
from metier_tools.sandbox import Outcome
from metier_tools.tool import ToolCall
from metier_workflows.choosing.router import Asked, Choice, Option, Topology

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
AGENTS = ("careful", "coder", "reasoner")


class State(TypedDict, total=False):
    """What the graphs share."""

    question: str
    category: str
    answer: dict[str, Any]
    heard: str


async def rest(state: State) -> State:
    """A long sleep, and a signal."""
    del state
    await sleep(3600)
    return {"heard": str(await signal("go"))}


@workflow("chosen")
def chosen() -> StateGraph[State, None, State, State]:
    """One node, of which no rule says whom it asks."""
    graph = StateGraph(State)
    graph.add_node("solve", route(*AGENTS))
    graph.add_edge(START, "solve")
    graph.add_edge("solve", END)
    return graph


@workflow("patient")
def patient() -> StateGraph[State, None, State, State]:
    """One node that waits."""
    graph = StateGraph(State)
    graph.add_node("rest", rest)
    graph.add_edge(START, "rest")
    graph.add_edge("rest", END)
    return graph


@dataclass(frozen=True)
class Always:
    """A router that takes one agent, and remembers nothing."""

    agent: str
    version: str = "always-1"

    def choose(self, asked: Asked, agents: Sequence[str], topologies: Collection[Topology]) -> Choice:
        """See `Router.choose`."""
        del asked, topologies
        options = tuple(Option(one, 0.5, float(one == self.agent)) for one in agents)
        return Choice("specialist", (self.agent,), (1.0,), options, "always")


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Config:
    monkeypatch.setenv("METIER_SQLITE_PATH", str(tmp_path / "journal.db"))
    monkeypatch.setenv("METIER_WORKFLOWS", f"{__name__},metier.examples.specialists")
    return configuration.configure()


@pytest.fixture
def alone(config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Config:
    """The same for commands, which find no service but the journal of this test."""
    for name in ("METIER_KAFKA_BOOTSTRAP", "METIER_POSTGRES_URL", "METIER_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return configuration.standalone(config)


@asynccontextmanager
async def running(config: Config) -> AsyncGenerator[System]:
    """Everything in this process; each tool says 7."""
    lane = compose_tools.scripted_lane(lambda _: Outcome("ok", stdout="7\n"))
    async with roles.embedded(config, lane=lane) as system:
        yield system


async def ended(system: System, name: str, value: dict[str, Any]) -> Run:
    end = await client.publish_and_wait(system.bus, name, value, event_id=None, timeout_s=60)
    run = await system.journal.runs.get(end.run_id)
    assert run is not None
    return run


def query(category: str) -> RecordedQuery:
    """One that all models answered."""
    found = read_recordings(recordings_path()).evaluation()
    return next(one for one in found if one.category == category and all(a.answer for a in one.answers.values()))


async def everything(db: Database) -> dict[str, Any]:
    """All that is in a journal but who is alive."""
    tables = [row["name"] for row in await db.read("SELECT name FROM sqlite_master WHERE type = 'table'")]
    kept = [one for one in tables if one not in {"serving", "schedules"}]
    return {one: [dict(row) for row in await db.read(f"SELECT * FROM {one}")] for one in kept}


def of(found: Replayed, kind: str) -> list[tuple[str | None, str | None]]:
    return [(one.before, one.after) for one in found.differences if one.kind == kind]


async def again(config: Config, journal: Journal, run: Run, changed: With, models: Models | None = None) -> Replayed:
    return await replay(config, journal, run, changed, models or Models(), timeout_s=60)


async def test_with_nothing_changed_nothing_differs_and_nothing_is_touched(config: Config) -> None:
    async with running(config) as system:
        run = await ended(system, "specialists", {"question": query("code_reasoning").text})
        tools = await system.journal.tools.of_run(RunId(run.run_id))
        assert tools, "the run has to have used one"
        before = await everything(system.journal.db)
        found = await again(config, system.journal, run, With())
        assert found.model_dump(exclude={"compared"}) == {
            "run_id": run.run_id,
            "differs": False,
            "differences": (),
            "unknown": (),
            "cost_before_usd": run.cost_usd,
            "cost_after_usd": run.cost_usd,
            "result_before": run.result,
            "result_after": run.result,
        }
        assert found.compared["calls"] >= 2
        assert await everything(system.journal.db) == before


async def test_another_agent_answers_every_call_and_it_costs_what_it_costs(config: Config) -> None:
    asked = query("math_word")
    async with running(config) as system:
        run = await ended(system, "specialists", {"question": asked.text})
        found = await again(config, system.journal, run, With("agent", "careful"))
    assert of(found, "decision") == [("specialist of reasoner", "specialist of careful")]
    recorded = asked.answers["gpt-4o-2024-08-06"]
    assert (None, recorded.answer) in of(found, "call")
    assert found.cost_after_usd == pytest.approx(recorded.cost_usd)
    assert found.unknown == ()


async def test_another_router_chooses_with_the_seed_of_then(config: Config) -> None:
    async with running(config) as system:
        run = await ended(system, "chosen", {"question": query("math_word").text, "category": "math_word"})
        found = await again(config, system.journal, run, With("router", "always-1", Always("coder")))
        same = await again(config, system.journal, run, With("router", "always-1", Always("careful")))
    assert of(found, "decision") == [("specialist of careful", "specialist of coder")]
    assert found.differs
    assert not same.differs, "whom it would choose is who answered, and that answer is recorded"


async def test_a_rule_of_the_author_is_stronger_than_another_router(config: Config) -> None:
    async with running(config) as system:
        run = await ended(system, "specialists", {"question": query("math_word").text})
        found = await again(config, system.journal, run, With("router", "always-1", Always("coder")))
    assert not found.differs


async def test_a_tool_call_of_which_no_result_is_recorded_is_said_to_be_unknown(config: Config) -> None:
    async with running(config) as system:
        run = await ended(system, "chosen", {"question": query("code_reasoning").text, "category": "code_reasoning"})
        assert len(await system.journal.tools.of_run(RunId(run.run_id))) == 1
        await system.journal.db.write(Statement("UPDATE tool_calls SET result = NULL"))
        found = await again(config, system.journal, run, With("policy", "meta_reasoned"))
        same = await again(config, system.journal, run, With())
    assert found.unknown == ("what python gives for other arguments than were recorded",)
    assert [after for _, after in of(found, "call")] == ["failed: not_recorded"]
    assert [after for _, after in of(found, "end")] == ["failed: call_failed"]
    assert not same.differs


async def test_results_of_the_same_arguments_are_given_in_their_order_and_then_the_last(
    config: Config, journal: Journal
) -> None:
    run = await recorded(journal, "patient", patient.version, {"heard": "now"})
    made = [
        ToolCallRow(tool_call_id=ToolCallId(f"t{n}"), run_id=RunId(run.run_id), call_id=CallId("c"), agent="a", category="c", tool="dice", arguments={},
                    result={"status": "ok", "stdout": said, "duration_s": 0.0}) for n, said in enumerate("36")
    ]  # fmt: skip
    lane = RecordedLane(dataclasses.replace(await record_of(journal, run), tools=made), Unknown())
    call = ToolCall(tool_call_id=ToolCallId("t"), run_id=RunId("r"), call_id=CallId("c"), tool="dice", digest="", arguments={}, deadline=0.0, timeout_s=1.0, grant="")  # fmt: skip
    assert [(await lane.call(call)).stdout for _ in range(3)] == ["3", "6", "6"]


async def test_what_an_evaluation_asked_is_replayed_too(config: Config) -> None:
    asked = query("math_word")
    async with running(config) as system:
        run = await ended(system, "metier.eval", {"pair": {"agent": "coder", "text": asked.text}})
        same = await again(config, system.journal, run, With())
        other = await again(config, system.journal, run, With("agent", "careful"))
    assert not same.differs
    assert len(of(other, "end")) == 1


async def test_a_run_that_was_cancelled_is_replayed_to_its_end_and_that_is_said(
    config: Config, journal: Journal
) -> None:
    run = await recorded(journal, "patient", patient.version, {"question": "", "heard": "now"})
    await journal.signals.record(RunId(run.run_id), "s1", "go", "now", "ann")
    found = await again(config, journal, run.model_copy(update={"status": "cancelled", "result": None}), With())
    assert found.differs
    assert found.unknown == ("when it would have been given up: somebody cancelled it, and a replay goes to its end",)


async def test_another_policy_gets_the_tool_results_of_then(config: Config) -> None:
    asked = query("code_reasoning")
    async with running(config) as system:
        run = await ended(system, "specialists", {"question": asked.text})
        made = await system.journal.tools.of_run(RunId(run.run_id))
        found = await again(config, system.journal, run, With("policy", "collaborative"))
    assert made
    assert found.unknown == (), "they run the same code, of which the result is recorded"
    assert not of(found, "tool call")


async def test_a_real_model_is_not_asked_and_that_is_said(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(config) as system:
        run = await ended(system, "specialists", {"question": query("math_word").text})
        monkeypatch.setenv("METIER_MODEL_CAREFUL", "openai:gpt-5")
        found = await again(config, system.journal, run, With("agent", "careful"))
    assert any("openai:gpt-5" in one for one in found.unknown)
    assert ("failed: not_recorded" in {after for _, after in of(found, "call")}) or of(found, "end")


async def recorded(journal: Journal, name: str, version: str, result: dict[str, Any] | None) -> Run:
    """A run that ended, as an orchestrator leaves it; None: it is still under way."""
    run_id = stable_id("run", "/test", name)
    asked = Run(run_id=RunId(run_id), source="/test", event_id=name, workflow=name, version=version, status="accepted", input={"question": ""}, traceparent=TRACE)  # fmt: skip
    await journal.runs.accept(asked)
    held = await journal.runs.lease(asked.run_id, "one")
    assert held is not None
    if result is not None:
        await journal.runs.finish(held.run_id, held.epoch, result=result)
    return await journal.runs.get(run_id) or held


async def test_waits_are_over_at_once_and_signals_come_from_the_record(config: Config, journal: Journal) -> None:
    run = await recorded(journal, "patient", patient.version, {"question": "", "heard": "now"})
    await journal.signals.record(RunId(run.run_id), "s1", "go", "now", "ann")
    found = await again(config, journal, run, With())
    assert not found.differs
    assert found.result_after == {"question": "", "heard": "now"}


async def test_a_signal_that_never_came_ends_the_replay(config: Config, journal: Journal) -> None:
    run = await recorded(journal, "patient", patient.version, {"question": "", "heard": "now"})
    found = await again(config, journal, run, With())
    assert found.unknown == ("how it goes on: it waits for the signal go, and no more of them came",)
    assert found.differs


async def test_a_run_that_goes_on_is_not_replayed(config: Config, journal: Journal) -> None:
    run = await recorded(journal, "patient", patient.version, None)
    with pytest.raises(BadSettings, match="once it has ended"):
        await again(config, journal, run, With())


async def test_a_version_of_a_workflow_that_is_gone_is_told(config: Config, journal: Journal) -> None:
    run = await recorded(journal, "patient", "older", {"heard": "now"})
    with pytest.raises(UnknownWorkflow, match="pinned to version older"):
        await again(config, journal, run, With())


@pytest.mark.parametrize(
    ("changed", "error", "told"),
    [
        (With("agent", "nobody"), UnknownAgent, "no agent is called 'nobody'; there are: careful"),
        (With("policy", "bold"), BadSettings, "no policy is called 'bold'; there are autonomous"),
    ],
)
async def test_what_is_not_there_cannot_be_replayed_with(
    config: Config, journal: Journal, changed: With, error: type[Exception], told: str
) -> None:
    run = await recorded(journal, "patient", patient.version, {"heard": "now"})
    with pytest.raises(error, match=told):
        await again(config, journal, run, changed)


async def test_the_command_shows_it_and_says_it_as_json(alone: Config) -> None:
    async with running(alone) as system:
        run = await ended(system, "specialists", {"question": query("math_word").text})
    words = ["replay", run.run_id[:12], "--with", "agent=careful"]
    shown = await asyncio.to_thread(CliRunner().invoke, app, words)
    told = await asyncio.to_thread(CliRunner().invoke, app, [*words, "--json"])
    assert shown.exit_code == told.exit_code == 0, shown.output + told.output
    assert "specialist of careful" in shown.output
    (found,) = json.loads(told.stdout)
    assert found["differs"]
    assert found["unknown"] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--with", "weather=fine"], "--with is router=VERSION, agent=NAME or policy=KIND"),
        (["--with", "agent="], "--with is router=VERSION, agent=NAME or policy=KIND"),
        (["--with", "router=none"], "no router versions begin with 'none'"),
        (["--with", "agent=careful", "--with", "policy=autonomous"], "--with changes one thing at a time"),
        (["--ask-models"], "--ask-models needs a --budget"),
    ],
)
async def test_the_command_says_what_is_wrong(alone: Config, words: list[str], told: str) -> None:
    async with running(alone) as system:
        run = await ended(system, "chosen", {"question": query("math_word").text, "category": "math_word"})
    found = await asyncio.to_thread(CliRunner().invoke, app, ["replay", run.run_id, *words])
    assert isinstance(found.exception, AskOperator)
    assert told in str(found.exception)


async def test_of_several_runs_those_that_can_be_replayed_are_shown_though_another_cannot(alone: Config) -> None:
    async with running(alone) as system:
        good = await ended(system, "specialists", {"question": query("math_word").text})
        gone = await recorded(system.journal, "patient", "older", {"heard": "now"})
        open_ = await recorded(system.journal, "chosen", chosen.version, None)
    words = ["replay", good.run_id, gone.run_id, "--json"]
    found = await asyncio.to_thread(CliRunner().invoke, app, words)
    assert [one["run_id"] for one in json.loads(found.stdout)] == [good.run_id]
    assert isinstance(found.exception, UnknownWorkflow)
    # while one that goes on is told before anything is replayed
    found = await asyncio.to_thread(CliRunner().invoke, app, ["replay", good.run_id, open_.run_id])
    assert found.stdout == ""
    assert isinstance(found.exception, BadSettings)


@pytest.mark.parametrize(
    ("then", "now", "seen"),
    [
        ("succeeded: {'question': '" + "long " * 40 + "', 'answer': 'right'}", "succeeded: {'question': '" + "long " * 40 + "', 'answer': 'wrong'}", ("right", "wrong")),
        ("short and so", "short and other", ("short and so", "short and other")),
        ("x" * 200, "y" * 200, ("x" * 60, "y" * 60)),
        (None, "a" * 200, ("none", "a" * 60)),
    ],
)  # fmt: skip
def test_what_is_not_the_same_is_seen_however_much_is_the_same_before_it(
    then: str | None, now: str, seen: tuple[str, str]
) -> None:
    one = Difference(kind="end", about="ask", before=then, after=now)
    told = Replayed(run_id="r", differs=True, differences=(one,), unknown=(), compared={}, cost_before_usd=0, cost_after_usd=0, result_before=None, result_after=None)  # fmt: skip
    columns = table(told).columns
    assert seen[0] in str(next(iter(columns[2].cells)))
    assert seen[1] in str(next(iter(columns[3].cells)))
