"""The example workflow: what kind of task a text is, whom to ask, what counts as one answer, and the graph at a scripted desk."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from metier.examples import specialists as example
from metier.examples.specialists import Category, classify, comparable, specialists
from metier_infra.errors import BadInput, CallFailed
from metier_infra.words import AgentCard, Answer, Decision, Limits, Task, Wanted
from metier_workflows import node
from metier_workflows.choosing.router import Asked
from metier_workflows.node import Cap, Chosen, Place
from metier_workflows.routing import decide

RECORDINGS = Path(str(resources.files("metier.examples") / "data" / "zeroeval.jsonl.gz"))
LONG = "def f(x):\n" + "    x += 1\n" * 9 + "assert f(1) == ??"
CARDS = {
    "reasoner": AgentCard(name="reasoner", model="m", policy="autonomous", skills={"math_word": 0.9, "math_competition": 0.6, "code_reasoning": 0.5}),
    "careful": AgentCard(name="careful", model="m", policy="meta_reasoned", skills={"math_competition": 0.8, "code_reasoning": 0.7}),
    "coder": AgentCard(name="coder", model="m", policy="collaborative", skills={"code_reasoning": 0.9}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "category"),
    [
        ("Tom has 3 apples and buys 4 more. How many has he?", "math_word"),
        ("A shirt costs $15 and trousers cost $20. What does she pay?", "math_word"),
        ("The radius is 3 cm. Is it big?", "math_word"),
        (r"Compute $\frac{1}{2} + x^2$.", "math_competition"),
        ("How many positive integers are divisors of 2004?", "math_competition"),
        ("def f(x):\n    return x\nassert f(1) == ??", "code_reasoning"),
        ("[PYTHON]\nx = 1\n[/PYTHON]", "code_reasoning"),
        ("Please assert your rights.", "math_word"),
    ],
)
def test_a_task_is_told_by_its_content(text: str, category: Category) -> None:
    assert classify(text) == category


def test_on_the_shipped_recordings_nine_of_ten_tasks_of_each_kind_are_told_right() -> None:
    """The label scores the guess; it is never part of it."""
    right, asked = Counter[str](), Counter[str]()
    with gzip.open(RECORDINGS, "rt", encoding="utf-8") as lines:
        for line in lines:
            record: dict[str, Any] = json.loads(line)
            asked[record["category"]] += 1
            right[record["category"]] += classify(record["text"]) == record["category"]
    assert set(asked) == {"code_reasoning", "math_competition", "math_word"}
    assert {
        category: right[category] / asked[category] for category in asked if right[category] < 0.9 * asked[category]
    } == {}


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("Tom has 3 apples and buys 4 more.", ("reasoner",)),
        (r"Compute $\frac{1}{2} + x^2$.", ("careful", "reasoner")),
        ("def f(x):\n    return x", ("coder", "reasoner")),
        (LONG, ("coder", "careful")),
    ],
)
async def test_who_is_asked_depends_on_kind_and_length(text: str, chosen: tuple[str, ...]) -> None:
    desk = ScriptedDesk(dict.fromkeys(CARDS, "1"))
    await run(desk, text)
    (decision,) = desk.decisions
    assert (decision.chosen, decision.by) == (chosen, "rule")
    assert decision.reason


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("42", "42.0", True),
        ("1,000", "1000", True),
        ("0.1", ".1000", True),
        ("42", "43", False),
        ("Yes ", "yes", True),
        ("[1, 2]", "[1,  2]", True),
        ("12", "1 2", False),
    ],
)
def test_numbers_agree_by_value_and_texts_by_their_words(one: str, other: str, same: bool) -> None:
    assert (comparable(one) == comparable(other)) is same


class ScriptedDesk:
    """Answers by agent's name; keeps what was asked and decided."""

    tenant = "default"

    def __init__(self, answers: Mapping[str, str]) -> None:
        self.asked: list[tuple[str, str]] = []
        self.decisions: list[Decision] = []
        self.votes: list[Mapping[str, float]] = []
        self._answers = answers

    async def ask(self, place: Place, agent: str, task: Task, timeout_s: float, within: Cap | None = None) -> Answer:
        self.asked.append((agent, task.category))
        if agent not in self._answers:
            raise CallFailed(f"the agent {agent!r} failed", reason="model_failed")
        return Answer(text=self._answers[agent], agent=agent, model="m", policy="p")

    async def sleep(self, place: Place, *, after_s: float | None = None, until: float | None = None) -> None:
        raise AssertionError("nobody sleeps here")

    async def signal(self, place: Place, name: str, timeout_s: float | None) -> JsonValue:
        raise AssertionError("nobody waits for a signal here")

    async def subrun(
        self, place: Place, workflow: str, value: Mapping[str, JsonValue], limits: Limits | None
    ) -> dict[str, JsonValue]:
        raise AssertionError("nobody starts a run here")

    async def decide(self, place: Place, decision: Decision) -> Decision:
        raise AssertionError("no node decides itself here")

    async def choose(self, place: Place, wanted: Wanted) -> Chosen:
        self.decisions.append(decide(wanted, CARDS, Asked(wanted.task.text, wanted.task.category)))
        return Chosen("d", self.decisions[-1])

    async def voted(self, chosen: Chosen, votes: Mapping[str, float]) -> None:
        self.votes.append(votes)

    def cards(self) -> Mapping[str, AgentCard]:
        return CARDS


async def run(desk: ScriptedDesk, question: str) -> dict[str, Any]:
    with node.at(desk):
        return dict(await specialists.compiled.ainvoke(specialists.accept({"question": question})))


async def test_a_word_problem_asks_one_and_gives_its_answer() -> None:
    desk = ScriptedDesk({"reasoner": "7"})
    found = await run(desk, "Tom has 3 apples and buys 4 more.")
    assert found == {"category": "math_word", "answer": "7", "agreed": ["reasoner"], "support": 1.0, "dissent": {}}
    assert desk.asked == [("reasoner", "math_word")]
    (decision,) = desk.decisions
    assert (decision.chosen, decision.topology) == (("reasoner",), "specialist")


async def test_two_who_agree_are_named_together() -> None:
    desk = ScriptedDesk({"coder": "42", "careful": "42.0"})
    found = await run(desk, LONG)
    assert (found["agreed"], found["dissent"], found["support"]) == (["careful", "coder"], {}, 1.0)
    assert sorted(desk.asked) == [("careful", "code_reasoning"), ("coder", "code_reasoning")]


async def test_where_they_differ_the_more_skilled_prevails_and_the_other_is_named() -> None:
    desk = ScriptedDesk({"coder": "42", "careful": "41"})
    found = await run(desk, LONG)
    assert (found["answer"], found["agreed"], found["dissent"]) == ("42", ["coder"], {"careful": "41"})
    assert desk.votes == [{"coder": 1.0, "careful": 0.0}]
    assert found["support"] == pytest.approx(0.9 / 1.6)


async def test_an_agent_that_fails_leaves_the_answer_to_the_other_and_only_where_there_is_none_fails_the_run() -> None:
    found = await run(ScriptedDesk({"coder": "42"}), LONG)
    assert (found["answer"], found["agreed"], found["dissent"]) == ("42", ["coder"], {})
    with pytest.raises(CallFailed, match="'coder' failed"):
        await run(ScriptedDesk({}), LONG)


@pytest.mark.parametrize("given", [{}, {"question": ""}, {"question": "q", "more": 1}, {"question": 7}])
def test_a_question_that_is_none_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="workflow 'specialists'"):
        specialists.accept(given)


def test_the_example_declares_one_workflow_under_its_name() -> None:
    assert (example.specialists.name, example.specialists.version) == ("specialists", specialists.version)
