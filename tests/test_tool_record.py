"""The measured record of a tool: how calls are weighed, what counts, what is kept in the journal and told to users."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from metier import cli_agents
from metier_agents.attempt import Attempt
from metier_agents.hands import Hands
from metier_agents.loop import Loop
from metier_agents.model import ScriptedModel
from metier_agents.record import Bin, Calibration, calibration, export, judged, records
from metier_agents.spec import AgentSpec, Deep
from metier_agents.testing import ScriptedLane
from metier_agents.turns import (
    Assessed,
    Compared,
    Message,
    ModelTurn,
    Realised,
    ToolTurn,
    ToolUse,
    User,
    dump,
    load,
    of_kind,
)
from metier_infra.database import Database, Statement, migrate, migrations
from metier_infra.journal import Journal
from metier_infra.rows import Call, ToolCallRow, ToolRecord, weigh_record
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.words import CallId, RunId, Task, ToolCallId
from metier_tools.builtin import BUILTIN
from metier_tools.tool import ToolResult

FOREVER = float("inf")


def row(ok: bool, seconds: float = 1.0, usd: float | None = None) -> Mapping[str, object]:
    return {"ok": int(ok), "wall_ms": seconds * 1000, "cost_usd": usd, "agreed": None, "own_confidence": None}


def compared(agreed: bool, sure: float) -> Mapping[str, object]:
    return {**row(True), "agreed": int(agreed), "own_confidence": sure}


# ---- weighing


@pytest.mark.parametrize(
    ("rows", "half_life", "record"),
    [
        ([], 10, ToolRecord()),
        ([row(True, 3)], 10, ToolRecord(1, 1, 0, 3, 3)),
        ([row(True), row(False)], 1, ToolRecord(2, 1, 0.5, 1, 1)),
        ([row(False), row(True), row(True)], 1, ToolRecord(3, 0.75, 1, 1, 1)),
        ([row(True, n) for n in range(1, 11)], FOREVER, ToolRecord(10, 10, 0, 5, 9)),
        ([row(True, n) for n in range(10, 0, -1)], FOREVER, ToolRecord(10, 10, 0, 5, 9)),
        ([row(True, 9), row(True, 1), row(True, 1), row(True, 1)], 1, ToolRecord(4, 1.875, 0, 9, 9)),
        ([row(False, 30), *[row(True, 1)] * 9], FOREVER, ToolRecord(10, 9, 1, 1, 1)),
        ([row(True, 1, 0.4), row(True), row(True, 1, 0.1)], 2, ToolRecord(3, 1 + 0.5**0.5 + 0.5, 0, 1, 1, 0.3)),
    ],
    ids=[
        "none",
        "one",
        "older is half",
        "fails now",
        "deciles",
        "any order",
        "newest is most",
        "failed waits",
        "price",
    ],
)
def test_calls_are_weighed_by_age(rows: Sequence[Mapping[str, object]], half_life: float, record: ToolRecord) -> None:
    found = weigh_record(rows, half_life)
    for name, wanted in vars(record).items():
        assert getattr(found, name) == (None if wanted is None else pytest.approx(wanted)), name


def test_agreement_with_the_models_own_answers_is_weighed_by_age_and_disagreement_by_confidence_too() -> None:
    rows = [
        compared(False, 0.8),
        row(True),
        compared(True, 0.6),
        compared(False, 0.801),
        compared(False, 0.5),
        row(False),
    ]
    found = weigh_record(rows, 1)
    assert found.agreed == 1 / 4
    assert found.differed == ((0.5, 1 / 16), (0.8, 1 + 1 / 8))


def test_success_is_a_share_by_weight_and_unknown_without_calls() -> None:
    assert weigh_record([row(True), row(False)], 1).success == pytest.approx(2 / 3)
    assert ToolRecord().success is None


outcomes = st.lists(st.booleans(), min_size=1, max_size=80)
lives = st.floats(0.5, 500)


@given(outcomes)
def test_with_equal_weights_the_record_is_the_plain_count(found: list[bool]) -> None:
    record = weigh_record([row(ok) for ok in found], FOREVER)
    assert (record.n, record.ok, record.failed) == (len(found), sum(found), len(found) - sum(found))


@given(st.integers(1, 80), lives, st.data())
def test_the_newer_a_failure_the_lower_the_success(n: int, half_life: float, data: st.DataObject) -> None:
    older, newer = sorted(data.draw(st.lists(st.integers(0, n - 1), min_size=2, max_size=2)), reverse=True)

    def success(failed: int) -> float:
        return weigh_record([row(at != failed) for at in range(n)], half_life).success or 0

    assert success(newer) <= success(older)


@given(outcomes, lives)
def test_each_call_of_the_same_outcome_that_follows_lessens_what_came_before(
    found: list[bool], half_life: float
) -> None:
    shares = [weigh_record([row(True)] * n + [row(ok) for ok in found], half_life).success or 0 for n in range(6)]
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(shares))
    whole = weigh_record([row(True)] * 500 + [row(ok) for ok in found], half_life)
    assert whole.weight <= 1 / (1 - 0.5 ** (1 / half_life)) + 1e-6


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e4)), min_size=1, max_size=60), lives)
def test_quantiles_are_measured_times_in_order(found: list[tuple[bool, float]], half_life: float) -> None:
    record = weigh_record([row(ok, seconds) for ok, seconds in found], half_life)
    assert record.latency_p50_s is not None
    assert record.latency_p90_s is not None
    assert record.latency_p50_s <= record.latency_p90_s
    assert {record.latency_p50_s, record.latency_p90_s} <= {seconds * 1000 / 1000 for _, seconds in found}


# ---- in the journal


async def finished(journal: Journal, n: int, ok: bool, **more: object) -> None:
    """A tool call that ended `n` seconds after the epoch, so that no two end at once."""
    known: dict[str, object] = {
        "agent": "coder",
        "category": "code",
        "tool": "python",
        "status": "ok" if ok else "error",
        "seconds": 1.0,
        "usd": None,
    }
    said = {**known, **more}
    asked = {name: said[name] for name in ("agent", "category", "tool")}
    made: dict[str, object] = {"tool_call_id": f"t{n}", "run_id": "r", "call_id": f"c{n}", "arguments": {}, **asked}
    await journal.tools.request(ToolCallRow.model_validate(made))
    result = ToolResult.model_validate({"status": said["status"]}).model_dump(mode="json")
    usd = said["usd"] if isinstance(said["usd"], float) else None
    wall_ms = float(str(said["seconds"])) * 1000
    await journal.tools.finish(ToolCallId(f"t{n}"), result, ok=ok, wall_ms=wall_ms, cost_usd=usd)
    await journal.db.write(
        Statement("UPDATE tool_calls SET finished_at = :n WHERE tool_call_id = :id", {"n": n, "id": f"t{n}"})
    )


async def record(journal: Journal, category: str = "code", half_life: float = FOREVER, last: int = 200) -> ToolRecord:
    return await journal.tools.record(agent="coder", category=category, tool="python", half_life=half_life, last=last)


async def test_a_record_is_of_one_agent_category_and_tool(journal: Journal) -> None:
    assert await record(journal) == ToolRecord()
    await finished(journal, 1, ok=False, seconds=0.9)
    await finished(journal, 2, ok=True, seconds=0.01, usd=0.25)
    await finished(journal, 3, ok=True, seconds=0.03)
    for n, other in enumerate([{"tool": "shell"}, {"agent": "other"}, {"category": "math"}], 4):
        await finished(journal, n, ok=True, seconds=5.0, **other)
    assert await record(journal) == ToolRecord(3, 2.0, 1.0, 0.03, 0.9, 0.25)
    assert (await record(journal, category="math")).n == 1


async def test_the_newest_calls_weigh_most_and_older_ones_than_the_last_are_not_read(journal: Journal) -> None:
    for n, ok in enumerate([False, True, True]):
        await finished(journal, n, ok=ok)
    assert await record(journal, half_life=1.0) == ToolRecord(3, 1.5, 0.25, 1.0, 1.0)
    assert await record(journal, last=2) == ToolRecord(2, 2.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("status", "counts"),
    [
        ("ok", True),
        ("error", True),
        ("timeout", True),
        ("oom", True),
        ("output_cut", True),
        ("died", True),
        ("refused", False),
    ],
)
async def test_every_end_counts_but_a_refusal_for_which_the_tool_never_ran(
    journal: Journal, status: str, counts: bool
) -> None:
    await finished(journal, 1, ok=status == "ok", status=status)
    assert (await record(journal)).n == int(counts)
    assert list(await journal.tools.measured()) == [("coder", "code", "python")] * counts


async def test_what_a_comparison_came_to_is_kept_with_the_calls_that_it_is_about(journal: Journal) -> None:
    for n in range(4):
        await finished(journal, n, ok=True)
    await journal.tools.compare([ToolCallId("t0"), ToolCallId("t2")], agreed=True, own_confidence=0.9)
    await journal.tools.compare([ToolCallId("t3")], agreed=False, own_confidence=0.7)
    found = await record(journal)
    assert (found.ok, found.agreed, found.differed) == (4.0, 2.0, ((0.7, 1.0),))
    await journal.tools.compare([ToolCallId("t3")], agreed=False, own_confidence=0.7)
    assert await record(journal) == found


async def test_a_call_that_has_not_ended_does_not_count(journal: Journal) -> None:
    asked = ToolCallRow(
        tool_call_id=ToolCallId("t"), run_id=RunId("r"), call_id=CallId("c"), agent="coder", category="code",
        tool="python", arguments={},
    )  # fmt: skip
    await journal.tools.request(asked)
    assert (await record(journal)).n == 0
    assert await journal.tools.measured() == []


async def test_refusals_do_not_push_real_calls_out_of_the_last(journal: Journal) -> None:
    await finished(journal, 1, ok=True)
    for n in range(2, 5):
        await finished(journal, n, ok=False, status="refused")
    assert (await record(journal, last=2)).n == 1


async def test_a_journal_of_the_first_schema_keeps_its_calls_and_its_refusals_are_told_apart(
    empty_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {1: migrations()[1]}
    with monkeypatch.context() as patch:
        patch.setattr("metier_infra.database.migrations", lambda: first)
        await migrate(empty_database)
    for n, status in enumerate(["ok", "refused", "error"]):
        result = json.dumps(ToolResult.model_validate({"status": status}).model_dump(mode="json"))
        await empty_database.write(
            Statement(
                "INSERT INTO tool_calls (tool_call_id, run_id, call_id, agent, category, tool, arguments, result, ok, wall_ms,"
                " requested_at, finished_at) VALUES (:id, 'r', 'c', 'coder', 'code', 'python', '{}', :result, :ok, 1000, :n, :n)",
                {"id": f"t{n}", "result": result, "ok": int(status == "ok"), "n": n},
            )
        )
    assert 2 in await migrate(empty_database)
    assert await record(Journal(empty_database)) == ToolRecord(2, 1.0, 1.0, 1.0, 1.0)


# ---- for the policy


SPEC = AgentSpec.model_validate(
    {
        "name": "coder",
        "model": "scripted:x",
        "policy": {"kind": "meta_reasoned", "half_life": 1},
        "tools": [{"name": "python"}, {"name": "shell", "fits": ["ops"]}],
    }
)


async def test_a_policy_that_weighs_gets_the_tools_that_fit_by_its_own_half_life(journal: Journal) -> None:
    await finished(journal, 1, ok=False)
    await finished(journal, 2, ok=True)
    assert await records(journal, SPEC, "code") == {"python": ToolRecord(2, 1.0, 0.5, 1.0, 1.0)}
    other = SPEC.model_copy(
        update={"policy": AgentSpec.model_validate({**SPEC.model_dump(), "policy": {"kind": "autonomous"}}).policy}
    )
    assert await records(journal, other, "code") == {}


def realised(predicted: float, value: float) -> Realised:
    return Realised(use_id="u", tool="python", predicted=predicted, realised=value, gain=predicted, gained=value)


async def test_what_became_of_predictions_is_read_newest_first_for_one_agent_and_category(journal: Journal) -> None:
    await finished(journal, 1, ok=True)
    await finished(journal, 2, ok=True)
    await finished(journal, 3, ok=True, category="math")
    await finished(journal, 4, ok=True, agent="other")
    lie: list[Message] = [
        ToolTurn(use_id="u", tool="python", result=ToolResult(status="ok", stdout='"tag": "realised"'))
    ]
    steps: list[tuple[int, list[Message]]] = [
        (1, [User(text="task")]),
        (1, [realised(0.1, 0.0), realised(0.2, 0.0)]),
        (3, [realised(0.8, 0.0)]),
        (4, [realised(0.9, 0.0)]),
        (2, lie),
        (2, [realised(0.3, 0.0)]),
    ]
    for n, (call, messages) in enumerate(steps):
        await journal.steps.append(CallId(f"c{call}"), n, dump(messages))
        await journal.db.write(Statement("UPDATE steps SET at = :n WHERE n = :n", {"n": n}))
    assert [one.predicted for one in await judged(journal, "coder", "code")] == [0.3, 0.2, 0.1]
    assert [one.predicted for one in await judged(journal, "coder", "code", last=1)] == [0.3]
    assert await judged(journal, "coder", "none") == []


async def taken(journal: Journal, task: Task) -> Call:
    """A call that a worker has claimed."""
    asked = Call(call_id=CallId("now"), run_id=RunId("r"), agent="coder", task=task, deadline=2e9)
    await journal.calls.request(asked)
    call = await journal.calls.claim(asked.call_id, "worker")
    assert call is not None
    return call


async def test_in_the_loop_a_policy_goes_by_its_half_life_and_by_what_became_of_predictions(journal: Journal) -> None:
    await finished(journal, 1, ok=False)
    await finished(journal, 2, ok=True)
    await journal.steps.append(CallId("c1"), 0, dump([realised(0.3, 0.0), realised(0.3, 0.0)]))
    task = Task(text="6*7?", category="code")
    call = await taken(journal, task)
    turns = [ModelTurn(text='{"python": {"gain": 0.5}}'), ModelTurn(text="ANSWER: 42\nCONFIDENCE: 0.9")]
    hands = Hands(journal, ScriptedLane(lambda _: ToolResult(status="ok")), BUILTIN, b"k" * 32)
    await Loop(Attempt(call, SPEC, ScriptedModel(turns), journal, hands, 2e9)).run()
    steps = await journal.steps.of_call(call.call_id)
    (assessed,) = of_kind([message for step in steps for message in load(step.body)], Assessed)
    assert assessed.tools[0].success == pytest.approx((1.6 + 1) / (2 + 1.5))
    assert assessed.tools[0].trust == pytest.approx(2 / (2 + 1.5 * 0.3 * 2 / 3))


WORTH = '{"own_answer": "41", "own_confidence": 0.6, "python": {"gain": 0.4, "noise": 0.05}}'
POINTLESS = '{"own_answer": "41", "own_confidence": 0.99, "python": {"gain": 0.01, "noise": 0.3}}'


@pytest.mark.parametrize(
    ("said", "answer", "status", "stands", "kept"),
    [
        (WORTH, "42", "ok", "42", (0.0, ((0.6, 1.0),))),
        (WORTH, "41.0", "ok", "41.0", (1.0, ())),
        (WORTH, "42", "error", "42", (0.0, ())),
        (POINTLESS, "42", "ok", "41", (0.0, ((0.99, 1.0),))),
    ],
    ids=["differs", "agrees", "failed", "looked at"],
)
async def test_in_the_loop_the_answer_is_compared_with_the_models_own_and_the_record_learns_from_it(
    journal: Journal, said: str, answer: str, status: str, stands: str, kept: tuple[float, object]
) -> None:
    spec = SPEC.model_copy(update={"policy": SPEC.policy.model_copy(update={"tries": 1, "explore": 1.0})})
    task = Task(text="6*7?", category="code")
    call = await taken(journal, task)
    use = ToolUse(id="u", tool="python", arguments={"code": "print(6*7)"})
    script = [ModelTurn(text=said), ModelTurn(uses=(use,)), ModelTurn(text=f"ANSWER: {answer}\nCONFIDENCE: 0.9")]
    lane = ScriptedLane(lambda _: ToolResult.model_validate({"status": status}))
    hands = Hands(journal, lane, BUILTIN, b"k" * 32)
    found = await Loop(Attempt(call, spec, ScriptedModel(script), journal, hands, 2e9)).run()
    assert (found.text, found.stopped, len(lane.calls)) == (stands, "answered", 1)
    learnt = await record(journal, half_life=1.0)
    assert (learnt.agreed, learnt.differed) == kept
    told = [message for step in await journal.steps.of_call(call.call_id) for message in load(step.body)]
    assert len(of_kind(told, Realised)) == 1
    assert [one.keeps_own for one in of_kind(told, Compared)] == ([stands == "41"] if status == "ok" else [])


async def test_an_answer_that_was_thought_over_since_stands_before_the_models_own(journal: Journal) -> None:
    deep = {
        "policy": SPEC.policy.model_copy(update={"tries": 1, "explore": 1.0}),
        "reasoning": Deep.model_validate({"kind": "deep", "rounds": 1}),
    }
    call = await taken(journal, Task(text="?", category="code"))
    use = ToolUse(id="u", tool="python", arguments={"code": "print(6*7)"})
    answers = [ModelTurn(text=f"ANSWER: {text}\nCONFIDENCE: 0.9") for text in ("42", "43")]
    hands = Hands(journal, ScriptedLane(lambda _: ToolResult(status="ok")), BUILTIN, b"k" * 32)
    model = ScriptedModel([ModelTurn(text=POINTLESS), ModelTurn(uses=(use,)), *answers])
    found = await Loop(Attempt(call, SPEC.model_copy(update=deep), model, journal, hands, 2e9)).run()
    assert found.text == "43"


# ---- calibration


@pytest.mark.parametrize(
    ("pairs", "found"),
    [
        ([], Calibration()),
        ([(0.5, 0.5)], Calibration(1, 0.5, 0.5, 0.0, 0.0, (Bin(0.5, 0.5, 1, 0.5, 0.5),))),
        ([(0.5, 1.0), (0.5, -1.0)], Calibration(2, 0.5, 0.0, 0.5, 1.0, (Bin(0.5, 0.5, 2, 0.5, 0.0),))),
        (
            [(0.0, 0.0), (0.05, 0.1), (1.0, 0.4)],
            Calibration(
                3, 0.35, 0.5 / 3, 0.55 / 3, 0.65 / 3, (Bin(0.0, 0.2, 2, 0.025, 0.05), Bin(0.8, 1.0, 1, 1.0, 0.4))
            ),
        ),
    ],
    ids=["none", "true", "errors that cancel", "too hopeful at the top"],
)
def test_calibration(pairs: list[tuple[float, float]], found: Calibration) -> None:
    seen = calibration(pairs)
    for name in ("n", "predicted", "realised", "bias", "error"):
        wanted = getattr(found, name)
        assert getattr(seen, name) == (None if wanted is None else pytest.approx(wanted)), name
    assert [tuple(vars(one).values()) for one in seen.bins] == [
        pytest.approx(tuple(vars(one).values())) for one in found.bins
    ]


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=50), st.randoms())
def test_every_pair_is_in_one_of_five_bins_whatever_the_order(pairs: list[tuple[float, float]], random: object) -> None:
    found = calibration(pairs)
    assert sum(one.n for one in found.bins) == found.n == len(pairs)
    assert 1 <= len(found.bins) <= 5
    assert all(one.low - 1e-9 <= one.predicted <= one.high + 1e-9 for one in found.bins)
    assert found.error is not None
    assert found.bias is not None
    assert abs(found.bias) <= found.error + 1e-12
    again = calibration(sorted(pairs, reverse=True))
    assert [(one.low, one.n) for one in again.bins] == [(one.low, one.n) for one in found.bins]


# ---- export


async def test_the_export_has_a_row_for_each_agent_category_and_tool(journal: Journal) -> None:
    await finished(journal, 1, ok=True, usd=0.5)
    await finished(journal, 2, ok=False)
    await finished(journal, 3, ok=True, tool="shell")
    await finished(journal, 4, ok=True, agent="baker")
    rows = await export(journal, half_life=1.0)
    assert [(one.agent, one.category, one.tool, one.n) for one in rows] == [
        ("baker", "code", "python", 1),
        ("coder", "code", "python", 2),
        ("coder", "code", "shell", 1),
    ]
    found = rows[1]
    assert (found.ok, found.failed, found.success) == (0.5, 1.0, pytest.approx(1 / 3))
    assert (found.latency_p50_s, found.latency_p90_s, found.cost_usd, found.half_life) == (1.0, 1.0, 0.5, 1.0)
    assert [one.agent for one in await export(journal, "baker")] == ["baker"]


app = typer.Typer()
app.command()(cli_agents.records)


@pytest.fixture
async def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An embedded journal with three calls, where the commands look for it."""
    monkeypatch.chdir(tmp_path)
    for name in ("METIER_POSTGRES_URL", "METIER_KAFKA_BOOTSTRAP", "METIER_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("METIER_SQLITE_PATH", str(tmp_path / "journal.db"))
    db = SqliteDatabase(tmp_path / "journal.db")
    await migrate(db)
    for n, ok in enumerate([True, False, True]):
        await finished(Journal(db), n, ok=ok)
    await db.close()


MEASURED = ["n", "ok", "failed", "success", "latency_p50_s", "latency_p90_s", "cost_usd"]
FIELDS = ["agent", "category", "tool", *MEASURED, "half_life"]


@pytest.mark.usefixtures("kept")
def test_records_are_told_as_a_table_as_json_and_as_csv() -> None:
    table = CliRunner().invoke(app, ["--half-life", "1"], catch_exceptions=False)
    for word in ("coder", "code", "python", "71.4%", "1.000", "unknown"):
        assert word in table.output
    found = json.loads(CliRunner().invoke(app, ["--json"], catch_exceptions=False).output)
    assert [(list(one), one["n"], one["cost_usd"], one["half_life"]) for one in found] == [(FIELDS, 3, None, 50.0)]
    lines = list(csv.DictReader(io.StringIO(CliRunner().invoke(app, ["--csv"], catch_exceptions=False).output)))
    assert [(list(one), one["n"], one["cost_usd"]) for one in lines] == [(FIELDS, "3", "")]
    assert json.loads(CliRunner().invoke(app, ["nobody", "--json"], catch_exceptions=False).output) == []


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    "words", [["--json", "--csv"], ["--half-life", "nan"], ["--half-life", "inf"], ["--half-life", "0"]]
)
def test_a_wrong_option_is_refused(words: list[str]) -> None:
    assert CliRunner().invoke(app, words).exit_code != 0
