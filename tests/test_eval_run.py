"""`metier eval run` and `capture` as commands, in one process over SQLite: budget, resuming after a kill, failing agents, judges, exit codes.

The agents are small LangGraph graphs that write down each time they are asked, or scripts. What is served by real services, and code in the real sandbox, is in
`e2e/test_eval`; the pure parts are in `test_evaluating`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from metier import cli
from metier_infra.journal import Journal
from metier_infra.outcomes import Outcome
from metier_infra.sqlite_journal import SqliteDatabase
from metier_workflows.evaluating.asking import NAME
from metier_workflows.evaluating.results import Result, matrix_of, read_evaluated, read_results
from metier_workflows.evaluating.samples import read_set

GRAPHS = """
import os
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph

def speaking(what):
    def make(tools):
        def speak(state):
            asked = str(state["messages"][-1].content)
            with open(os.environ["ASKED"], "a") as book:
                book.write(asked.splitlines()[0] + "\\n")
            return {"messages": [AIMessage(f"ANSWER: {what(asked)}\\nCONFIDENCE: 0.9")]}
        graph = StateGraph(MessagesState)
        graph.add_node("speak", speak)
        graph.add_edge(START, "speak")
        graph.add_edge("speak", END)
        return graph
    return make

def said(asked):
    verb, _, rest = asked.partition(" ")
    if verb == "fail":
        raise ValueError("the model is ill")
    return rest

def sick(asked):
    raise ValueError("the judge is ill")

echo, other, ill = speaking(said), speaking(said), speaking(sick)
kind, strict, lax, babble = (speaking(lambda _, verdict=one: verdict) for one in ("1 | fine", "0 | poor", "0.8 | good", "I like it"))
"""
Run = Callable[..., int]


@dataclass(frozen=True)
class Bench:
    """A folder with agents, and the commands in it."""

    folder: Path
    run: Run
    capsys: pytest.CaptureFixture[str]

    def asked(self) -> list[str]:
        """The first line of every request that a model got."""
        book = self.folder / "asked"
        return book.read_text().splitlines() if book.exists() else []

    def set_of(self, *samples: Mapping[str, JsonValue], name: str = "set.jsonl") -> str:
        (self.folder / name).write_text("".join(json.dumps(one) + "\n" for one in samples))
        return name

    def results(self, out: str = "out") -> list[Result]:
        return read_results(self.folder / out / "results.jsonl")

    def told(self) -> Any:
        """What the last command told as JSON."""
        return json.loads(self.capsys.readouterr().out.splitlines()[-1])

    def script(self, name: str, text: str, cost_usd: float) -> None:
        """An agent that always says the same, at this price."""
        turns = [{"text": f"ANSWER: {text}\nCONFIDENCE: 0.9", "cost_usd": cost_usd}]
        (self.folder / f"{name}.turns").write_text(json.dumps(turns))
        self.agent(name, f"scripted:{self.folder / name}.turns")

    def agent(self, name: str, model: str) -> None:
        file = self.folder / "agents" / f"{name}.yaml"
        file.write_text(f"name: {name}\nmodel: {model}\npolicy: {{kind: autonomous, threshold: 0.5}}\n")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    (tmp_path / "agents").mkdir()
    (tmp_path / "speakers.py").write_text(GRAPHS)
    for name in [one for one in os.environ if one.startswith("METIER_")]:
        monkeypatch.delenv(name)
    for name, value in {"ASKED": tmp_path / "asked", "METIER_AGENTS": tmp_path / "agents", "LANGGRAPH_STRICT_MSGPACK": "true", "COLUMNS": "200"}.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("speakers", None)

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["metier", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    made = Bench(tmp_path, run, capsys)
    for name in ("echo", "other", "kind", "strict", "lax", "babble", "ill"):
        made.agent(name, f"langgraph:speakers:{name}")
    return made


def says(text: str, expected: JsonValue, **more: JsonValue) -> dict[str, JsonValue]:
    """A sample to which the agents answer with the words after the first."""
    return {"text": f"say {text}", "expected": expected, **more}


def test_every_agent_is_asked_every_sample_and_scored_by_segment(bench: Bench) -> None:
    given = bench.set_of(
        says("8", 8, scorer="numeric", category="legs", tags=["easy"]),
        says("9", 8, scorer="numeric", category="legs"),
        says("blue, mostly", "blue", scorer="contains", category="colours", tags=["easy"]),
        {"text": 'say {"a": 1}', "scorer": {"name": "schema", "fits": {"required": ["a"]}}, "category": "json"},
    )

    assert bench.run("eval", "run", given, "--agents", "echo, other", "--out", "out", "--json") == 0

    told = bench.told()
    scores = {(row["agent"], row["kind"], row["segment"]): row["score"]["value"] for row in told["rows"]}
    assert scores["echo", "all", "all"] == scores["other", "all", "all"] == 0.75
    assert scores["echo", "category", "legs"] == 0.5
    assert scores["other", "tag", "easy"] == 1.0
    assert (told["samples"], told["asked"], told["left"], told["ok"]) == (4, 8, 0, True)
    assert sorted(bench.asked()) == sorted(
        [json.loads(line)["text"] for line in Path(given).read_text().splitlines()] * 2
    )


def test_the_tables_show_agents_segments_and_where_the_results_are(bench: Bench) -> None:
    given = bench.set_of(says("8", 8, category="legs"), says("[red]x", 9, category="[red]two"))

    assert bench.run("eval", "run", given, "--agents", "echo", "--out", "out") == 0

    shown = bench.capsys.readouterr().out
    for part in ("echo", "50.0", "category legs", "category [red]two", "results are in out"):
        assert part in shown


def test_results_are_read_back_as_a_matrix(bench: Bench) -> None:
    given = bench.set_of(
        says("8", 8, scorer="numeric", category="legs"), says("9", 8, scorer="numeric", category="legs")
    )
    assert bench.run("eval", "run", given, "--agents", "other,echo", "--out", "out") == 0

    matrix = matrix_of(read_evaluated(Path("out")))

    assert (matrix.models, matrix.texts, matrix.categories) == (("echo", "other"), ("say 8", "say 9"), ("legs", "legs"))
    assert matrix.scores.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert matrix.answers is not None
    assert matrix.answers.tolist() == [["8", "8"], ["9", "9"]]


@pytest.mark.parametrize("point", ["call.answered", "run.finished"])
def test_a_process_killed_in_the_middle_goes_on_and_asks_nothing_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    monkeypatch.setenv("METIER_LEASE_S", "3600")  # nobody waits for the lease of the dead to run out
    given = bench.set_of(*(says(str(n), n, scorer="numeric") for n in range(5)))
    words = ["eval", "run", given, "--agents", "echo", "--out", "out", "--parallel", "1"]
    # Given an evaluation whose process dies once the third answer is in the journal
    environment = {**os.environ, "METIER_FAILPOINTS": f"{point}=crash@3", "PYTHONPATH": str(bench.folder)}
    died = subprocess.run([sys.executable, "-m", "metier", *words], env=environment, capture_output=True, timeout=150, check=False)  # fmt: skip
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert len(bench.asked()) == 3
    assert len(bench.results()) == 2
    # When it is gone on with, by another limit of time
    assert bench.run(*words, "--resume", "--json", "--timeout", "200") == 0
    # Then each sample was asked once in all, and has one result
    assert sorted(bench.asked()) == [f"say {n}" for n in range(5)]
    assert sorted(one.answer for one in bench.results()) == ["0", "1", "2", "3", "4"]
    assert bench.told()["rows"][0]["score"]["value"] == 1.0


def test_a_second_process_in_the_same_folder_is_refused_and_changes_nothing_there(bench: Bench) -> None:
    # Given an evaluation whose journal another process holds
    words = ("eval", "run", "set.jsonl", "--agents", "echo", "--out", "out")
    bench.set_of(says("1", 1))
    assert bench.run(*words) == 0
    before = Path("out/set.jsonl").read_text()
    holder = SqliteDatabase(Path("out/journal.db"))
    asyncio.run(holder.write())
    # When somebody goes on with it, with another set
    bench.set_of(says("2", 2))
    assert bench.run(*words, "--resume") == 2
    # Then it is told, and the set of the other one stays
    assert "is in use by another `metier` process" in bench.capsys.readouterr().err
    assert Path("out/set.jsonl").read_text() == before
    asyncio.run(holder.close())


@pytest.mark.usefixtures("heeded")
def test_an_evaluation_that_a_person_stops_says_how_to_go_on_however_often_ctrl_c_is_pressed(bench: Bench) -> None:
    # Given an evaluation in the middle of more than it can do at once
    given = bench.set_of(*(says(str(n), n, scorer="numeric") for n in range(3000)))
    words = ["eval", "run", given, "--agents", "echo", "--out", "out", "--parallel", "1"]
    environment = {**os.environ, "PYTHONPATH": str(bench.folder)}
    process = subprocess.Popen([sys.executable, "-m", "metier", *words], env=environment, stderr=subprocess.PIPE, text=True)  # fmt: skip
    while not bench.asked():
        assert process.poll() is None
        time.sleep(0.02)
    # When somebody presses Ctrl-C, and again
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, said = process.communicate(timeout=100)
    # Then it ends at once, with a sentence and no trace
    assert process.returncode == 130
    assert "--out out --resume goes on" in said
    assert "Traceback" not in said
    assert len(bench.asked()) < 3000


def test_what_was_asked_is_not_asked_again_and_what_is_new_or_changed_is(bench: Bench) -> None:
    words = ("eval", "run", "set.jsonl", "--out", "out", "--agents")
    bench.set_of(says("1", 1, id="a"), says("2", 2, id="b"))
    assert bench.run(*words, "echo") == 0
    bench.set_of(says("1", 1, id="a"), says("2", "two", id="b"), says("3", 3, id="c"))
    with (bench.folder / "out" / "results.jsonl").open("a") as torn:
        torn.write('{"sample": "c", "di')

    assert bench.run(*words, "echo", "--resume", "--json") == 0

    assert sorted(bench.asked()) == ["say 1", "say 2", "say 2", "say 3"]
    assert bench.told()["rows"][0]["score"]["value"] == pytest.approx(2 / 3)
    assert len(bench.results()) == 4


def test_a_failing_agent_is_recorded_with_its_reason_and_scored_0_and_may_be_asked_again(bench: Bench) -> None:
    given = bench.set_of({"text": "fail now", "expected": 1}, says("2", 2))
    words = ("eval", "run", given, "--agents", "echo", "--out", "out", "--json")
    assert bench.run(*words) == 0

    first = bench.told()["rows"][0]
    failed = next(one for one in bench.results() if one.failure)
    assert (first["failed"], first["score"]["value"], failed.score, failed.answer) == (1, 0.5, 0.0, "")
    assert failed.failure is not None
    assert failed.failure.code in failed.reason
    assert len(bench.asked()) == 2

    assert bench.run(*words, "--resume") == 0
    assert len(bench.asked()) == 2
    assert bench.run(*words, "--resume", "--retry-failed") == 0
    assert [text for text in bench.asked() if text == "fail now"] == ["fail now"] * 2
    assert [one.attempt for one in bench.results() if one.failure] == [1, 2]


def test_the_budget_stops_with_what_was_done_and_a_larger_one_goes_on(bench: Bench) -> None:
    bench.script("dear", "8", 0.25)
    given = bench.set_of(*({"text": f"q{n}", "expected": 8} for n in range(10)))
    words = ("eval", "run", given, "--agents", "dear", "--out", "out", "--parallel", "8", "--json")

    assert bench.run(*words, "--budget-usd", "1") == 0
    told = bench.told()
    assert (told["asked"], told["left"]) == (4, 6)
    assert told["rows"][0]["cost_usd"] == 1.0

    assert bench.run(*words, "--budget-usd", "1.5", "--resume") == 0
    assert bench.told()["left"] == 4
    assert bench.run(*words, "--budget-tokens", "1", "--resume") == 0
    assert bench.told()["left"] == 4
    assert bench.run(*words, "--budget-usd", "1", "--resume", "--min-accuracy", "0.1") == 1
    assert "4 pairs were not asked" in bench.capsys.readouterr().err
    assert bench.run(*words, "--resume") == 0
    assert bench.told()["left"] == 0


JUDGED: dict[str, JsonValue] = {"text": "say a poem", "scorer": {"name": "judged", "rubric": "Is it a poem?"}}


def judged(bench: Bench, judges: str, **more: JsonValue) -> Result:
    """The one result of a poem that these judge."""
    given = bench.set_of({**JUDGED, "scorer": {"name": "judged", "rubric": "Is it a poem?", **more}})
    assert bench.run("eval", "run", given, "--agents", "echo", "--judges", judges, "--out", "out") == 0
    (one,) = bench.results()
    return one


def test_judges_that_disagree_make_a_majority_and_all_are_told(bench: Bench) -> None:
    found = judged(bench, "kind,strict,lax")

    assert (found.score, found.answer) == (1.0, "a poem")
    assert [(vote.judge, vote.score) for vote in found.votes] == [("kind", 1.0), ("strict", 0.0), ("lax", 0.8)]
    assert found.reason == "the judges disagree: kind 1, strict 0, lax 0.8; fine"
    assert found.judging_tokens >= 0
    assert len(bench.asked()) == 4


def test_the_mean_of_judges_is_a_score_too(bench: Bench) -> None:
    assert judged(bench, "kind,strict,lax", by="mean").score == pytest.approx(0.6)


def test_a_judge_that_says_no_verdict_is_no_vote_and_alone_leaves_the_score_unknown(bench: Bench) -> None:
    found = judged(bench, "babble")

    assert found.score is None
    assert "not in the form SCORE | REASON" in found.reason


def test_a_judge_that_fails_is_no_vote_and_the_others_decide(bench: Bench) -> None:
    found = judged(bench, "kind,ill,lax")

    assert [(vote.judge, vote.score) for vote in found.votes] == [("kind", 1.0), ("ill", None), ("lax", 0.8)]
    assert (found.score, found.votes[1].reason.split(":")[0]) == (1.0, "model_failed")


def test_an_empty_answer_is_wrong_without_a_judge_being_asked(bench: Bench) -> None:
    given = bench.set_of({"text": "say", "scorer": {"name": "judged", "rubric": "Is it a poem?", "judges": ["kind"]}})

    assert bench.run("eval", "run", given, "--agents", "echo", "--out", "out") == 0

    (found,) = bench.results()
    assert (found.score, found.reason, found.votes) == (0.0, "there is no answer", ())
    assert bench.asked() == ["say"]


def test_an_agent_is_not_asked_about_its_own_answer(bench: Bench) -> None:
    found = judged(bench, "echo,kind")

    assert [vote.judge for vote in found.votes] == ["kind"]


def test_judges_that_run_on_the_model_they_would_judge_are_refused_before_anybody_is_asked(bench: Bench) -> None:
    bench.agent("twin", "langgraph:speakers:echo")
    given = bench.set_of(says("1", 1), JUDGED)

    assert bench.run("eval", "run", given, "--agents", "echo", "--judges", "twin,echo", "--out", "out") == 2

    said = bench.capsys.readouterr().err
    assert (
        "set.jsonl:2: nobody is there to judge echo: whoever else is named (twin) has its model, langgraph:speakers:echo; name"
        in said
    )
    assert bench.asked() == []


def test_agents_are_told_of_which_the_baseline_has_no_score(bench: Bench) -> None:
    given = bench.set_of(says("1", 1), says("2", 2))
    assert bench.run("eval", "run", given, "--agents", "echo", "--out", "then") == 0
    bench.capsys.readouterr()

    assert bench.run("eval", "run", given, "--agents", "echo,other", "--out", "now", "--baseline", "then") == 0

    shown = bench.capsys.readouterr()
    assert "other is not compared: the baseline has no score of it for a sample of this set" in shown.err
    assert "results are in now" in shown.out


def test_an_evaluation_that_cannot_be_held_against_its_baseline_shows_what_came_of_it_and_fails(bench: Bench) -> None:
    # Given a baseline in which nobody could judge the one poem
    given = bench.set_of(JUDGED)
    words = ("eval", "run", given, "--agents", "echo", "--judges", "babble")
    assert bench.run(*words, "--out", "then") == 0
    bench.capsys.readouterr()

    assert bench.run(*words, "--out", "now", "--baseline", "then", "--json") == 1

    shown = bench.capsys.readouterr()
    assert json.loads(shown.out)["faults"] == ["nothing here can be compared with the baseline"]
    assert json.loads(shown.out)["asked"] == 1


def test_the_cost_of_judges_is_apart_from_the_agents(bench: Bench) -> None:
    bench.script("poet", "a poem", 0.5)
    bench.script("critic", "1 | fine", 0.125)

    assert bench.run("eval", "run", bench.set_of(JUDGED), "--agents", "poet", "--judges", "critic", "--out", "out") == 0

    (found,) = bench.results()
    assert (found.cost_usd, found.judging_usd, found.score) == (0.5, 0.125, 1.0)
    assert found.tokens > 0
    assert found.judging_tokens > 0


def test_the_exit_code_says_whether_it_is_good_enough(bench: Bench) -> None:
    given = bench.set_of(*(says(str(n), n, id=f"s{n}", scorer="numeric") for n in range(20)))
    words = ("eval", "run", given, "--agents", "echo")
    assert bench.run(*words, "--out", "good", "--min-accuracy", "1") == 0
    # Given the same questions, to which half of the answers are wrong now
    bench.agent("echo", "langgraph:speakers:kind")

    assert bench.run(*words, "--out", "bad", "--min-accuracy", "0.5") == 1
    assert "echo: a score of" in bench.capsys.readouterr().err
    assert bench.run(*words, "--out", "bad", "--resume", "--baseline", "good/results.jsonl") == 1
    assert "against the baseline on 20 samples" in bench.capsys.readouterr().err
    assert bench.run(*words, "--out", "good", "--resume", "--baseline", "bad") == 0
    assert "was changed in between" not in bench.capsys.readouterr().err
    assert bench.run(*words, "--out", "bad", "--resume", "--baseline", "bad") == 0
    assert len(bench.asked()) == 40


def test_an_agent_that_was_changed_in_between_is_told(bench: Bench) -> None:
    words = ("eval", "run", "set.jsonl", "--agents", "echo,other", "--out", "out")
    bench.set_of(says("1", 1))
    assert bench.run(*words) == 0
    bench.set_of(says("1", 1), says("2", 2))
    bench.agent("echo", "langgraph:speakers:kind")

    assert bench.run(*words, "--resume") == 0

    assert bench.capsys.readouterr().err.splitlines() == [
        "echo was changed in between: its answers are of several versions of it"
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--agents", "nobody"], "no agent is called 'nobody'"),
        (["--agents", " , "], "--agents: name at least one agent"),
        (["--agents", "echo", "--resume"], "--resume goes on in a folder: name it with --out"),
        (["--agents", "echo", "--resume", "--out", "none"], "none holds no evaluation to go on with"),
        (["--agents", "echo", "--out", "there"], "there holds an evaluation already: --resume goes on with it"),
        (["--agents", "echo", "--baseline", "set.jsonl"], "set.jsonl:1: sample: no result of `metier eval run`"),
        (["--agents", "echo", "--baseline", "nothing"], "nothing: there are no results of `metier eval run`"),
        (["--agents", "echo", "--judges", ","], "--judges: name at least one agent"),
        (
            ["--agents", "echo", "--baseline", "others"],
            "others: no result there is of one of these agents and of a sample as it is",
        ),
        (["--agents", "echo", "--timeout", "inf"], "Invalid value for '--timeout'"),
        (["--agents", "echo", "--min-accuracy", "nan"], "Invalid value for '--min-accuracy'"),
        (["--agents", "echo", "--budget-usd", "nan"], "Invalid value for '--budget-usd'"),
        (["--agents", "echo", "--out", "set.jsonl/x"], "set.jsonl/x: nothing can be written there"),
    ],
)
def test_what_is_wrong_with_the_settings_is_a_sentence_and_exit_code_2(
    bench: Bench, words: Sequence[str], said: str
) -> None:
    (bench.folder / "there").mkdir()
    (bench.folder / "there" / "eval.json").write_text('{"id": "e", "name": "set"}')
    (bench.folder / "others").write_text(
        Result(sample="x", digest="d", agent="echo", score=1.0).model_dump_json() + "\n"
    )

    assert bench.run("eval", "run", bench.set_of(says("1", 1)), *words) == 2

    assert said in bench.capsys.readouterr().err
    assert bench.asked() == []


def test_a_bad_set_ends_with_exit_code_2_before_anything_is_made(bench: Bench) -> None:
    given = bench.set_of(says("1", 1), {"text": "x", "scorer": "nearly", "expected": 1})

    assert bench.run("eval", "run", given, "--agents", "echo", "--out", "out") == 2

    assert "set.jsonl:2: scorer: there is no such scorer" in bench.capsys.readouterr().err
    assert not (bench.folder / "out").exists()


@pytest.mark.timeout(600)
def test_a_thousand_samples_are_asked_in_parallel_and_all_have_a_result(bench: Bench) -> None:
    bench.script("quick", "8", 0.001)
    given = bench.set_of(*({"text": f"q{n}", "expected": 8 if n % 4 else 9} for n in range(1000)))

    assert bench.run("eval", "run", given, "--agents", "quick", "--out", "out", "--parallel", "32", "--json") == 0

    told = bench.told()
    assert (told["asked"], told["left"]) == (1000, 0)
    assert told["rows"][0]["score"]["value"] == 0.75
    assert len({one.sample for one in bench.results()}) == 1000


async def outcome(folder: Path, run_id: str) -> None:
    """Somebody says that what the agent answered in this run was right."""
    db = SqliteDatabase(folder / "out" / "journal.db")
    word = Outcome(run_id=run_id, score=1.0, agent="echo", by="ann", event_id="e", said_at=1.0)
    await Journal(db).outcomes.record(word)
    await db.close()


async def test_runs_become_samples_with_what_is_right_where_somebody_said_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two runs, about one of which somebody said that the answer was right
    given = bench.set_of(says("8", 8, category="legs"), says("9", 9))
    assert await asyncio.to_thread(bench.run, "eval", "run", given, "--agents", "echo", "--out", "out") == 0
    right, open_ = (next(one.run_id for one in bench.results() if one.answer == text) for text in ("8", "9"))
    await outcome(bench.folder, right)
    monkeypatch.setenv("METIER_SQLITE_PATH", str(bench.folder / "out" / "journal.db"))
    capture = ("eval", "capture", "--out", "made.jsonl", "--json")
    # When both are captured, one of them twice, into a set whose last line somebody left without its end
    assert await asyncio.to_thread(bench.run, *capture, right) == 0
    made = Path("made.jsonl")
    made.write_text(made.read_text().rstrip("\n"))
    assert await asyncio.to_thread(bench.run, *capture, right, open_) == 0
    # Then the set has both, and one waits for a person
    assert bench.told() == {"added": 1, "todo": 1, "set": "made.jsonl", "samples": 2}
    one, two = read_set(made, todo=True)
    assert (one.text, one.expected, one.category, one.todo) == ("say 8", "8", "legs", "")
    assert one.provenance is not None
    assert (one.provenance.run_id, one.provenance.workflow, one.provenance.outcome_by) == (right, NAME, "ann")
    assert (two.text, two.expected, bool(two.todo)) == ("say 9", None, True)
    # and what is there is not added again
    assert await asyncio.to_thread(bench.run, *capture, right) == 0
    assert bench.told()["added"] == 0
    # and the set does not run before it is complete
    assert await asyncio.to_thread(bench.run, "eval", "run", "made.jsonl", "--agents", "echo") == 2
    assert "made.jsonl:2: todo: write what is right" in bench.capsys.readouterr().err


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ("{tokens: 1}", "did not come to its end: "),
        ("{tokens: 0, new_runs: reject}", "a request was rejected: the tenant"),
    ],
)
def test_what_is_no_fault_of_an_agent_stops_the_evaluation_and_a_later_one_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, limits: str, said: str
) -> None:
    # Given a tenant that may take nothing
    given = bench.set_of(says("1", 1), says("2", 2))
    words = ("eval", "run", given, "--agents", "echo", "--out", "out")
    (bench.folder / "tenants.yaml").write_text(f"others: {{limits: {limits}}}\n")
    monkeypatch.setenv("METIER_TENANTS", str(bench.folder / "tenants.yaml"))
    # When an evaluation runs into that
    assert bench.run(*words) == 2
    # Then it says so and nothing is held against the agent
    assert said in bench.capsys.readouterr().err
    assert bench.results() == []
    # and once that is mended, it goes on
    monkeypatch.delenv("METIER_TENANTS")
    assert bench.run(*words, "--resume", "--json") == 0
    assert bench.told()["rows"][0]["score"]["value"] == 1.0
