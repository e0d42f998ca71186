"""Recorded models on the recordings that ship: real answers, and the fixed rules round them.

Not here: that running the code gives the right answer. It was measured once (800 of 800 queries), see `recorded_model`.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from metier_agents.models import open_model
from metier_agents.recorded_model import RecordedModel, code_of
from metier_agents.recordings import RecordedQuery, Recordings, read_recordings
from metier_agents.turns import AssessmentWanted, Message, ModelTurn, Note, System, ToolTurn, User
from metier_agents.wording import read_assessment, read_own
from metier_infra.errors import BadSpec, ModelFailed
from metier_tools.builtin import BUILTIN
from metier_tools.tool import ToolResult

PATH = Path(__file__).parent.parent / "workflows/metier/examples/data/zeroeval.jsonl.gz"
GPT = "gpt-4o-2024-08-06"
PYTHON = BUILTIN.specs(["python"])


@pytest.fixture(scope="module")
def recordings() -> Recordings:
    return read_recordings(PATH)


def first(recordings: Recordings, category: str) -> RecordedQuery:
    return next(query for query in recordings.evaluation() if query.category == category)


async def ask(model: RecordedModel, *messages: Message, tools: bool = False) -> ModelTurn:
    choice = "auto" if tools else "none"
    return await model.ask(messages, tools=PYTHON if tools else (), tool_choice=choice, deadline=0.0)


def test_what_is_in_the_file(recordings: Recordings) -> None:
    assert (len(recordings.queries), len(recordings.models)) == (2840, 12)
    assert len(recordings.calibration()) + len(recordings.evaluation()) == 2840
    assert {query.id for query in recordings.calibration()}.isdisjoint(query.id for query in recordings.evaluation())
    assert read_recordings(PATH) is recordings


async def test_every_plain_turn_gives_the_recorded_answer_and_price(recordings: Recordings) -> None:
    for name in recordings.models:
        model = RecordedModel(recordings, name)
        for query in recordings.queries[::97]:
            turn = await ask(model, System(text="s"), User(text=query.text))
            recorded = query.answers[name]
            assert turn.answer == (recorded.answer or "").strip()
            assert turn.cost_usd == recorded.cost_usd
            assert not turn.rule_written
            assert turn.confidence == (
                0.0 if recorded.answer is None else round(recordings.accuracy(name, query.category), 3)
            )


async def test_a_confidence_tells_nothing_of_the_verdict(recordings: Recordings) -> None:
    queries = [query for query in recordings.evaluation() if query.category == "math_competition"]
    model = RecordedModel(recordings, GPT)
    turns = {query.id: await ask(model, User(text=query.text)) for query in queries if query.answers[GPT].answer}
    assert {query.answers[GPT].score for query in queries} == {0.0, 1.0}
    assert len({turn.confidence for turn in turns.values()}) == 1


async def test_an_unknown_task_fails_loudly(recordings: Recordings) -> None:
    with pytest.raises(ModelFailed, match="no recording of this task"):
        await ask(RecordedModel(recordings, GPT), User(text="What is love?"))


async def test_the_context_of_a_task_does_not_change_the_lookup(recordings: Recordings) -> None:
    query = first(recordings, "math_word")
    turn = await ask(RecordedModel(recordings, GPT), User(text=query.text), User(text="context"), Note(text="note"))
    assert turn.answer == query.answers[GPT].answer


async def test_where_python_is_offered_for_code_a_rule_writes_the_call(recordings: Recordings) -> None:
    query = first(recordings, "code_reasoning")
    turn = await ask(RecordedModel(recordings, GPT), User(text=query.text), tools=True)
    assert turn.rule_written
    assert [use.tool for use in turn.uses] == ["python"]
    assert turn.uses[0].arguments == {"code": code_of(query.text)}
    assert turn.cost_usd == query.answers[GPT].cost_usd


async def test_an_ok_result_is_the_answer_and_a_failed_one_is_not(recordings: Recordings) -> None:
    query, model = first(recordings, "code_reasoning"), RecordedModel(recordings, GPT)
    ok = ToolTurn(use_id="1", tool="python", result=ToolResult(status="ok", stdout="'right'\n"))
    bad = ToolTurn(use_id="1", tool="python", result=ToolResult(status="timeout", stdout="half"))
    called = ModelTurn(uses=())
    turn = await ask(model, User(text=query.text), called, ok)
    assert (turn.answer, turn.confidence, turn.rule_written) == ("'right'", 0.99, True)
    turn = await ask(model, User(text=query.text), called, bad)
    assert (turn.answer, turn.rule_written) == (query.answers[GPT].answer, False)


async def test_a_tool_offered_for_mathematics_changes_nothing(recordings: Recordings) -> None:
    query = first(recordings, "math_word")
    turn = await ask(RecordedModel(recordings, GPT), User(text=query.text), tools=True)
    assert (turn.uses, turn.answer) == ((), query.answers[GPT].answer)


@pytest.mark.parametrize(("category", "gains"), [("code_reasoning", True), ("math_word", False)])
async def test_an_assessment_follows_the_rule(recordings: Recordings, category: str, gains: bool) -> None:
    query = first(recordings, category)
    wanted = AssessmentWanted(tools=("python", "shell"), text="?")
    turn = await ask(RecordedModel(recordings, GPT), User(text=query.text), wanted)
    said = read_assessment(turn.text)
    assert said["python"]["gain"] == (1 - recordings.accuracy(GPT, category) if gains else 0.0)
    assert (said["shell"]["gain"], said["python"]["noise"]) == (0.0, 0.05)
    assert turn.rule_written
    assert read_own(turn.text) == (query.answers[GPT].answer, recordings.accuracy(GPT, category))


async def test_an_assessment_without_a_recorded_answer_gives_none(recordings: Recordings) -> None:
    name, query = next(
        (name, query) for query in recordings.queries for name, found in query.answers.items() if found.answer is None
    )
    wanted = AssessmentWanted(tools=("python",), text="?")
    turn = await ask(RecordedModel(recordings, name), User(text=query.text), wanted)
    assert read_own(turn.text) is None
    assert read_assessment(turn.text)["python"]["noise"] == 0.05


def test_every_code_query_and_no_other_has_code(recordings: Recordings) -> None:
    assert {query.id for query in recordings.queries if code_of(query.text)} == {
        query.id for query in recordings.queries if query.task == "crux"
    }


def test_the_code_of_a_query_is_a_program_that_prints_the_value() -> None:
    text = "Complete.\n\n[PYTHON]\ndef f(a):\n    assert a == 1\n    return a\nassert f(1) == ??\n[/PYTHON]\n"
    assert code_of(text) == "def f(a):\n    assert a == 1\n    return a\nprint(repr(f(1)))\n"
    assert code_of("[PYTHON]\nx = 1\n[/PYTHON]") is None
    assert code_of("plain") is None


def test_an_unknown_model_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(BadSpec, match=r"no recordings of the model 'gpt-4o-mini'.*gpt-4o-mini-2024-07-18"):
        open_model("recorded:gpt-4o-mini", recordings=PATH)
    with pytest.raises(BadSpec, match=r"Meta-Llama-3-8B-Instruct, Mistral-Large-2"):
        open_model("recorded:zzz", recordings=PATH)
    with pytest.raises(BadSpec, match="needs a file of recordings"):
        open_model(f"recorded:{GPT}")


@pytest.mark.parametrize(
    "content", [b"not gzip", gzip.compress(b"not json\n"), gzip.compress(b"{}\n"), gzip.compress(b"[1]\n")]
)
def test_a_file_that_is_no_recordings_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recordings.gz"
    path.write_bytes(content)
    with pytest.raises(BadSpec, match="not a file of recordings"):
        read_recordings(path)
    with pytest.raises(BadSpec, match="not a file of recordings"):
        read_recordings(tmp_path / "missing.gz")
