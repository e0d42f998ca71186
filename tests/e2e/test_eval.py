"""Eval sets over real services: code in the real sandbox, the example set as its how-to runs it, and the same by separate roles over Kafka, Postgres and Celery."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from metier_workflows.evaluating.results import Result, read_results

from .conftest import new_fleet

EXAMPLE = Path(__file__).parents[2] / "workflows/metier/examples/evals/recorded.jsonl"
ADD = "def add(a, b):\n    return a + b"
PROBES = {
    "right": (ADD, "from answer import add\nassert add(2, 3) == 5", None, 1.0),
    "wrong": (ADD.replace("+", "-"), "from answer import add\nassert add(2, 3) == 5, 'no sum'", None, 0.0),
    "leaves": ("import os\nos._exit(0)", "import answer", None, 0.0),
    "prints": ("Here it is:\n```python\nprint(6 * 7)\n```", None, "42", 1.0),
    "prints else": ("print(6 * 8)", None, "42", 0.0),
    "loops": ("while True: pass", None, "42", 0.0),
    "runs": ("x = 1", None, None, 1.0),
    "no program": ("it is (", None, None, 0.0),
    "no host": (
        "import os\nassert not os.path.exists(HOST)",
        None,
        None,
        1.0,
    ),
}
"""Name to what the agent answers, the test, what is expected, and the score."""
SPEAKER = """
import json
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph

def speak(state):
    name = str(state["messages"][-1].content)
    return {"messages": [AIMessage(f"ANSWER: {json.load(open('programs.json'))[name]}\\nCONFIDENCE: 0.9")]}

def make(tools):
    graph = StateGraph(MessagesState)
    graph.add_node("speak", speak)
    graph.add_edge(START, "speak")
    graph.add_edge("speak", END)
    return graph
"""


@pytest.fixture
def alone(services: Mapping[str, str], tmp_path: Path) -> dict[str, str]:
    """An environment without Kafka, Postgres and Redis."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("METIER_")}
    return {**inherited, "METIER_SANDBOX_IMAGE": services["METIER_SANDBOX_IMAGE"], "METIER_SANDBOX_POOL": "1"}


def metier(environment: Mapping[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "metier", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150, check=False
    )


def coder(folder: Path) -> None:
    """An agent that answers each probe's name with its program."""
    (folder / "agents").mkdir()
    (folder / "agents" / "coder.yaml").write_text(
        "name: coder\nmodel: langgraph:speaker:make\npolicy: {kind: autonomous, threshold: 0.5}\n"
    )
    (folder / "speaker.py").write_text(SPEAKER)
    programs = {name: answer.replace("HOST", repr(str(folder / "set.jsonl"))) for name, (answer, *_) in PROBES.items()}
    (folder / "programs.json").write_text(json.dumps(programs))


def probe(name: str, test: str | None, expected: str | None) -> str:
    """A sample as a line."""
    scorer = {"name": "code", "timeout_s": 5.0} | ({} if test is None else {"test": test})
    return (
        json.dumps({"id": name, "text": name, "scorer": scorer} | ({} if expected is None else {"expected": expected}))
        + "\n"
    )


def test_code_is_scored_in_the_sandbox_and_nowhere_else(alone: dict[str, str], tmp_path: Path) -> None:
    coder(tmp_path)
    (tmp_path / "set.jsonl").write_text("".join(probe(name, *told[1:3]) for name, told in PROBES.items()))
    environment = {**alone, "METIER_AGENTS": str(tmp_path / "agents"), "PYTHONPATH": str(tmp_path)}

    done = metier(environment, tmp_path, "eval", "run", "set.jsonl", "--agents", "coder", "--out", "out")

    assert done.returncode == 0, done.stderr
    found = {one.sample: one for one in read_results(tmp_path / "out" / "results.jsonl")}
    assert {name: (one.score, one.reason) for name, one in found.items() if one.score != PROBES[name][3]} == {}
    assert found.keys() == PROBES.keys()
    assert "no sum" in found["wrong"].reason
    assert found["leaves"].reason == "the test did not come to its end"
    assert "timeout" in found["loops"].reason


def essence(folder: Path) -> list[tuple[object, ...]]:
    """What must not depend on how the system is run."""

    def of(one: Result) -> tuple[object, ...]:
        return one.sample, one.agent, one.score, one.answer, round(one.cost_usd, 9), one.stamp

    return sorted((of(one) for one in read_results(folder / "results.jsonl")), key=repr)


def test_the_example_set_gives_the_same_in_one_process_and_by_separate_roles(
    services: Mapping[str, str], alone: dict[str, str], tmp_path: Path
) -> None:
    # Given the example set, and two samples of code to run
    code = [
        {"id": "sum", "text": json.loads(EXAMPLE.read_text().splitlines()[0])["text"], "scorer": {"name": "code"}, "expected": "1"},
        {"id": "run", "text": json.loads(EXAMPLE.read_text().splitlines()[1])["text"], "scorer": {"name": "code", "test": "import answer"}},
    ]  # fmt: skip
    (tmp_path / "set.jsonl").write_text(EXAMPLE.read_text() + "".join(json.dumps(one) + "\n" for one in code))
    words = ("eval", "run", "set.jsonl", "--agents", "reasoner,coder", "--json", "--out")
    # When it runs in one process, and over real Kafka, Postgres, Celery and separate roles
    embedded = metier(alone, tmp_path, *words, "embedded")
    with new_fleet(services, tmp_path) as fleet:
        fleet.start_all("reasoner", "coder")
        apart = fleet.metier(*words, "apart", "--distributed")
        strange = fleet.metier(*words[:4], "nobody", "--out", "strange", "--distributed")
    assert embedded.returncode == 0, embedded.stderr
    assert apart.returncode == 0, apart.stderr
    # Then every answer, score and cost is the same
    assert essence(tmp_path / "embedded") == essence(tmp_path / "apart")
    one, other = (json.loads(done.stdout) for done in (embedded, apart))
    assert (one["asked"], other["asked"]) == (84, 84)
    scores = {(row["agent"], row["segment"]): row["score"]["value"] for row in rows_of(one)}
    assert scores["coder", "code_reasoning"] == 1.0
    # while an agent that the system does not have is a sentence
    assert strange.returncode == 2, strange.stderr
    assert "no agent is called 'nobody'" in strange.stderr


def rows_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a report that are of categories."""
    return [row for row in document["rows"] if row["kind"] == "category"]
