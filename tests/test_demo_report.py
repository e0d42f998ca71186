"""How the demo scores and counts, as pure functions. Not tested here: the runs that it reports."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from metier import compose, demo_learned
from metier.demo import draw
from metier.demo_report import Case, Learned, document, is_right, sandboxes, scores, tables
from metier.trace import Rows
from metier_agents.recordings import RecordedQuery, read_recordings
from metier_infra.routers import RouterVersion, Verdict
from metier_infra.rows import Run, ToolCallRow
from metier_infra.words import CallId, Decision, RunId, ToolCallId
from metier_tools.tool import ToolResult
from metier_workflows import router_judging

ALL = read_recordings(compose.recordings_path()).queries


def query(category: str, gold: str | None) -> RecordedQuery:
    return next(one for one in ALL if one.category == category and (gold is None) == (one.gold is None))


def with_gold(category: str, gold: str) -> RecordedQuery:
    base = query(category, "")
    return RecordedQuery(base.id, base.task, category, base.text, gold, base.answers)


@pytest.mark.parametrize(
    ("category", "gold", "answer", "right"),
    [
        ("code_reasoning", "'bcksrutq'", "'bcksrutq'", True),
        ("code_reasoning", "'bcksrutq'", "bcksrutq", True),
        ("code_reasoning", "'bcksrutq'", '"bcksrutq"', True),
        ("code_reasoning", "[1, 2]", "[1,2]", True),
        ("code_reasoning", "[1, 2]", "(1, 2)", False),
        ("code_reasoning", "''", "", True),
        ("code_reasoning", "True", "1", True),
        ("code_reasoning", "{1: 2}", "{{}: 1}", False),
        ("math_word", "540.0", "540", True),
        ("math_word", "1200.0", "1,200", True),
        ("math_word", "540.0", "", False),
        ("math_competition", "0.5", "1/2", True),
        ("math_competition", "0.5", "1/3", False),
    ],
)
def test_what_counts_as_right(category: str, gold: str, answer: str, right: bool) -> None:
    assert is_right(with_gold(category, gold), answer) is right


def test_what_nobody_solved_is_wrong() -> None:
    assert is_right(query("math_competition", None), "42") is False


def test_it_agrees_with_the_benchmarks_own_verdicts() -> None:
    # Given every recorded answer and ZeroEval's verdict on it
    agrees = [
        (one.category == "code_reasoning", is_right(one, found.answer or "") == bool(found.score))
        for one in ALL
        if one.gold is not None
        for found in one.answers.values()
    ]
    # Then all maths agrees, and so does code but for quirks of its string match
    assert all(same for code, same in agrees if not code)
    shares = [same for code, same in agrees if code]
    assert sum(shares) / len(shares) > 0.97


def case(one: RecordedQuery, answer: str, cost: float, tool: ToolResult | None = None) -> Case:
    run = Run(
        run_id=RunId(one.id), source="/t", event_id=one.id, workflow="specialists", version="1", status="succeeded",
        input={"question": one.text}, result={"answer": answer}, cost_usd=cost, traceparent=f"00-{'a' * 32}-{'b' * 16}-01",
        accepted_at=1.0, started_at=1.5, finished_at=2.0,
    )  # fmt: skip
    row = ToolCallRow(
        tool_call_id=ToolCallId("t"), run_id=run.run_id, call_id=CallId("c"), agent="coder", category=one.category, tool="python",
        arguments={"code": "1"}, result=tool.model_dump(mode="json") if tool else None, ok=True,
    )  # fmt: skip
    decision = Decision(
        category=one.category, chosen=("coder",), topology="specialist", reason="r", router="v", candidates=()
    )
    return Case(one, Rows(run, [decision], [], {}, [row] if tool else []))


@pytest.fixture
def cases() -> list[Case]:
    """Two code queries, one answered rightly with a tool, and a word problem answered wrongly."""
    first, second = [one for one in ALL if one.category == "code_reasoning"][:2]
    word = query("math_word", "")
    done = ToolResult(
        status="ok", exit_code=0, stdout=first.gold or "", container="c1", cold=True, boot_ms=100, wait_ms=1, wall_ms=5
    )
    return [case(first, first.gold or "", 0.25, done), case(second, "no", 0.5), case(word, "no", 0.125)]


def test_scores_are_shares_and_sums(cases: list[Case]) -> None:
    ours, *alone = scores(cases)
    assert ours.name == "workflow specialists"
    assert ours.accuracy == pytest.approx(1 / 3)
    assert ours.by_category == {"math_word": 0.0, "math_competition": None, "code_reasoning": 0.5}
    assert ours.cost_usd == pytest.approx(0.875)
    assert len(alone) == 12
    assert [found.accuracy for found in alone] == sorted((found.accuracy for found in alone), reverse=True)
    model = alone[0].name
    assert alone[0].cost_usd == pytest.approx(sum(one.query.answers[model].cost_usd for one in cases))


def test_sandbox_times_come_from_the_results(cases: list[Case]) -> None:
    found = sandboxes(cases)
    assert (dict(found.calls), found.containers, found.wall_ms, found.boot_ms) == ({("coder", "ok"): 1}, 1, [5], [100])


def test_the_document_is_json_and_the_tables_render(cases: list[Case]) -> None:
    models = {"coder": "recorded:gemini-1.5-flash"}
    router = RouterVersion(
        version="learned-1",
        kind="learned",
        digest="d",
        fitted_on={"rows": 7},
        fitted_by="a test",
        report=Verdict(verdict="better", why="+2.0 points on the eval set"),
    )
    learned = Learned(router, cases[:1])
    found = json.loads(json.dumps(document(cases, learned, seed=1, elapsed_s=1.0, mode="embedded", models=models)))
    assert (found["learned"]["score"]["accuracy"], found["learned"]["verdict"]) == (1.0, "better")
    assert [run["right"] for run in found["runs"]] == [True, False, False]
    assert found["decisions"][0]["runs"] == 2
    assert found["sandbox_ms"]["wall"] == {"count": 1, "p50": 5, "p95": 5}
    console = Console(width=120)
    with console.capture() as captured:
        console.print(tables(cases, learned, models, 1.0, "embedded"))
    shown = " ".join(captured.get().split())
    for part in ("gemini-1.5-flash (coder)", "4 runs", "learned on 7 other queries", "learned-1: better, +2.0 points"):
        assert part in shown
    # and without a second part there is the first
    assert document(cases, None, seed=1, elapsed_s=1.0, mode="embedded", models=models)["learned"] is None


def test_a_router_is_judged_by_queries_that_it_was_not_fitted_on_and_neither_are_drawn() -> None:
    fitting, judging = demo_learned.parts([one for one in ALL if one.calibrates])
    ids = [{one.id for one in part} for part in (fitting, judging, draw(100_000, 1))]
    assert len(ids[0] | ids[1] | ids[2]) == sum(len(one) for one in ids)
    assert len(judging) > router_judging.FEWEST_ROWS


def test_the_rows_of_the_router_are_what_the_agents_models_answered() -> None:
    one = with_gold("math_word", query("math_word", "").gold or "")
    found = demo_learned.matrix([one], {"a": "recorded:gpt-3.5-turbo-0125", "b": "recorded:gpt-4o-2024-08-06"})
    recorded = [one.answers["gpt-3.5-turbo-0125"], one.answers["gpt-4o-2024-08-06"]]
    assert found.models == ("a", "b")
    assert found.scores.tolist() == [[float(is_right(one, answer.answer or "")) for answer in recorded]]
    assert found.costs is not None
    assert found.costs.tolist() == [[answer.cost_usd for answer in recorded]]


def test_the_seed_draws_from_the_half_that_calibrated_nothing() -> None:
    calibrating = {one.id for one in ALL if one.calibrates}
    assert [one.id for one in draw(40, 1)] == [one.id for one in draw(40, 1)] != [one.id for one in draw(40, 2)]
    assert not calibrating & {one.id for one in draw(100_000, 1)}
    assert len(draw(100_000, 1)) + len(calibrating) == len(ALL)
