"""Deep and parallel reasoning over a scripted model and a real SQLite journal: what is asked, what is chosen, and what a crash costs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier_agents import wording
from metier_agents.attempt import Attempt, Estimate
from metier_agents.explorations import answer
from metier_agents.hands import Hands
from metier_agents.model import ScriptedModel
from metier_agents.purse import Need
from metier_agents.reasoning import comparable, groups, read_choice, read_verdict, surest
from metier_agents.spec import AgentSpec
from metier_agents.testing import ScriptedLane
from metier_agents.trail import LANE
from metier_agents.turns import History, ModelTurn, Note, System, ToolUse, load, of_kind
from metier_infra.database import migrate
from metier_infra.errors import LimitReached, ModelFailed
from metier_infra.journal import Journal
from metier_infra.rows import Call
from metier_infra.sqlite_journal import SqliteDatabase
from metier_infra.words import Answer, CallId, RunId, Task
from metier_tools.builtin import BUILTIN
from metier_tools.tool import ToolResult, ToolSpec

CALL = CallId("c" * 32)


def says(text: str, confidence: float = 0.9, **more: Any) -> ModelTurn:
    return ModelTurn.model_validate({"text": f"ANSWER: {text}\nCONFIDENCE: {confidence}", "cost_usd": 0.01, **more})


class Minds(ScriptedModel):
    """Thinks otherwise each time: the n-th line of thought follows the n-th script, and judges say what `judge` says, one after another."""

    def __init__(self, *scripts: Sequence[ModelTurn], judge: Sequence[str] = ()) -> None:
        super().__init__([])
        self.judged: list[str] = []
        self._scripts, self._judge = list(scripts), list(judge)
        self._minds: list[tuple[Any, Sequence[ModelTurn]]] = []

    async def ask(
        self, messages: Any, *, tools: Any, tool_choice: Any, deadline: float, options: Any = None
    ) -> ModelTurn:
        if isinstance(messages[0], System) and messages[0].text == wording.SELECT:
            self.judged.append(messages[-1].text)
            return ModelTurn(text=self._judge.pop(0), model="judge", cost_usd=0.001)
        known = next((script for mind, script in self._minds if mind is messages), None)
        if known is None:
            known = self._scripts.pop(0)
            self._minds.append((messages, known))
        self._turns = tuple(known)
        return await super().ask(messages, tools=tools, tool_choice=tool_choice, deadline=deadline, options=options)


@pytest.fixture
async def journal() -> AsyncIterator[Journal]:
    db = SqliteDatabase(":memory:")
    await migrate(db)
    yield Journal(db)
    await db.close()


def agent(kind: str, policy: str = "autonomous", limits: dict[str, Any] | None = None, **reasoning: Any) -> AgentSpec:
    return AgentSpec.model_validate(
        {
            "name": "a",
            "model": "scripted:x",
            "policy": {"kind": policy},
            "tools": [{"name": "python"}],
            "reasoning": {"kind": kind, **reasoning},
            "limits": limits or {},
        }
    )


async def attempt(journal: Journal, spec: AgentSpec, model: ScriptedModel, need: Need | None = None) -> Attempt:
    """One more try at the call, as the worker makes it."""
    until, task = time.time() + 30, Task(text="6*7?", category="code")
    await journal.calls.request(Call(call_id=CALL, run_id=RunId("r"), agent="a", task=task, deadline=until))
    call = await journal.calls.claim(CALL, "me")
    assert call is not None
    hands = Hands(journal, ScriptedLane(lambda _: ToolResult(status="ok", stdout="42")), BUILTIN, b"k" * 32)
    return Attempt(call, spec, model, journal, hands, until, estimate=_always(need or Need(0)))


def _always(need: Need) -> Estimate:
    def estimate(history: History, tools: Sequence[ToolSpec], output_tokens: int) -> Need:
        return need

    return estimate


async def asked(journal: Journal, spec: AgentSpec, model: ScriptedModel, need: Need | None = None) -> Answer:
    return await answer(await attempt(journal, spec, model, need))


async def test_deep_reasoning_reflects_until_the_answer_is_the_same_twice(journal: Journal) -> None:
    model = ScriptedModel([says("41"), says("42"), says(" 42 "), says("43")])
    found = await asked(journal, agent("deep", rounds=5), model)
    assert (found.text, found.model_turns, found.stopped) == ("42", 3, "answered")
    assert [request.messages[-1] for request in model.asked[1:]] == [Note(text=wording.REFLECT)] * 2


async def test_deep_reasoning_ends_after_its_rounds_though_nothing_settled(journal: Journal) -> None:
    model = ScriptedModel([says(str(n)) for n in range(9)])
    found = await asked(journal, agent("deep", rounds=2), model)
    assert (found.text, found.model_turns) == ("2", 3)


async def test_deep_reasoning_ends_with_what_it_has_when_the_money_does(journal: Journal) -> None:
    spec = agent("deep", rounds=9, limits={"cost_usd": 0.025, "turns": 20})
    found = await asked(journal, spec, ScriptedModel([says(str(n)) for n in range(9)]), Need(0, 0.01))
    assert (found.text, found.stopped, found.cost_usd) == ("1", "cost_limit", pytest.approx(0.02))


async def test_of_parallel_explorations_the_answer_given_most_often_is_chosen_and_all_are_paid_for(
    journal: Journal,
) -> None:
    model = Minds([says("7", 0.99)], [says("42", 0.85)], [says(" 42", 0.86)])
    found = await asked(journal, agent("parallel", k=3), model)
    assert (found.text, found.confidence, found.selected_by) == ("42", 0.86, "vote")
    assert (found.explorations, found.agreement) == (3, pytest.approx(2 / 3))
    assert (found.model_turns, found.cost_usd) == (3, pytest.approx(0.03))


async def test_explorations_know_nothing_of_each_other(journal: Journal) -> None:
    model = Minds([says("1")], [says("2")], [says("3")])
    await asked(journal, agent("parallel", k=3), model)
    assert [len(of_kind(request.messages, ModelTurn)) for request in model.asked] == [0, 0, 0]
    steps = await journal.steps.of_call(CALL)
    assert [step.n for step in steps] == [0, LANE, 2 * LANE]


async def test_a_judge_chooses_among_the_answers_that_differ(journal: Journal) -> None:
    model = Minds([says("7")], [says("42")], [says("7")], judge=['{"why": "6*7 is 42", "best": 2}'])
    found = await asked(journal, agent("parallel", k=3, select="judge"), model)
    assert (found.text, found.selected_by, found.agreement) == ("42", "judge", pytest.approx(1 / 3))
    assert '1. "7"' in model.judged[0]
    assert '2. "42"' in model.judged[0]
    assert found.model_turns == 4
    assert found.cost_usd == pytest.approx(0.031)


async def test_a_verifier_looks_at_each_answer_by_itself(journal: Journal) -> None:
    model = Minds(
        [says("7")], [says("7")], [says("42")], judge=['{"why": "", "right": 0.1}', '{"why": "", "right": 0.8}']
    )
    found = await asked(journal, agent("parallel", k=3, select="verifier"), model)
    assert (found.text, found.selected_by) == ("42", "verifier")
    assert ["42" in text for text in model.judged] == [False, True]


async def test_where_all_agree_nobody_is_paid_to_choose(journal: Journal) -> None:
    model = Minds([says("42")], [says("42")])
    found = await asked(journal, agent("parallel", k=2, select="judge"), model)
    assert (found.selected_by, found.agreement, model.judged) == ("vote", 1.0, [])


async def test_a_judge_that_cannot_be_read_leaves_the_choice_to_the_vote(journal: Journal) -> None:
    model = Minds([says("7")], [says("42", 0.95)], judge=["I like them both"])
    found = await asked(journal, agent("parallel", k=2, select="judge"), model)
    assert (found.text, found.selected_by) == ("42", "vote: the choice could not be read")


async def test_all_explorations_spend_from_one_purse(journal: Journal) -> None:
    """Each request sets aside 0.01 of 0.025 before it is sent: the third is never made, though all start at once."""
    spec = agent("parallel", k=3, limits={"cost_usd": 0.025})
    model = Minds([says("1")], [says("2")], [says("3")])
    found = await asked(journal, spec, model, Need(0, 0.01))
    assert len(model.asked) == 2
    assert (found.explorations, found.agreement, found.cost_usd) == (3, pytest.approx(1 / 3), pytest.approx(0.02))


async def test_a_choice_that_is_not_to_be_paid_is_left_to_the_vote(journal: Journal) -> None:
    spec = agent("parallel", k=2, select="judge", limits={"cost_usd": 0.02})
    model = Minds([says("1")], [says("2", 0.95)], judge=['{"best": 1}'])
    found = await asked(journal, spec, model, Need(0, 0.01))
    assert (found.text, found.selected_by, model.judged) == ("2", "vote: cost_limit", [])


async def test_tool_calls_of_all_explorations_count_together(journal: Journal) -> None:
    use = ModelTurn(uses=(ToolUse(id="u", tool="python", arguments={"code": "print(42)"}),), cost_usd=0.0)
    spec = agent("parallel", "collaborative", k=2, limits={"tool_calls": 1})
    found = await asked(journal, spec, Minds([use, says("42")], [use, says("42")]))
    assert found.tool_calls == 1
    assert len(await journal.tools.of_run(RunId("r"))) == 1


async def test_an_exploration_that_fails_is_left_out_and_the_first_failure_told_when_all_do(journal: Journal) -> None:
    found = await asked(journal, agent("parallel", k=2), Minds([], [says("42")]))
    assert (found.text, found.agreement) == ("42", 0.5)


async def test_when_every_exploration_fails_the_call_does(journal: Journal) -> None:
    with pytest.raises(ModelFailed, match="one more"):
        await asked(journal, agent("parallel", k=2), Minds([], []))


async def test_after_a_crash_no_exploration_and_no_judge_is_asked_again(journal: Journal) -> None:
    spec = agent("parallel", k=2, select="judge")
    first = await asked(journal, spec, Minds([says("7")], [says("42")], judge=['{"best": 2}']))
    second = Minds()
    again = await asked(journal, spec, second)
    assert (again, second.asked, second.judged) == (first, [], [])


async def test_after_a_crash_only_the_unfinished_exploration_goes_on(journal: Journal) -> None:
    spec = agent("parallel", k=2)
    with pytest.raises(RuntimeError):
        await asked(journal, spec, Broken([says("7")], [says("42")]))
    assert [step.n for step in await journal.steps.of_call(CALL)] == [0]
    found = await asked(journal, spec, model := Minds([says("42", 0.95)]))
    assert (found.text, len(model.asked)) == ("42", 1)
    messages = [message for step in await journal.steps.of_call(CALL) for message in load(step.body)]
    assert [turn.asked_again for turn in of_kind(messages, ModelTurn)] == [False, True]


class Broken(Minds):
    """Breaks in its second line of thought."""

    async def ask(
        self, messages: Any, *, tools: Any, tool_choice: Any, deadline: float, options: Any = None
    ) -> ModelTurn:
        if self.asked:
            raise RuntimeError("the process dies here")
        return await super().ask(messages, tools=tools, tool_choice=tool_choice, deadline=deadline, options=options)


async def test_explorations_that_all_reach_their_limit_are_a_limit_that_was_reached(journal: Journal) -> None:
    with pytest.raises(LimitReached, match="cost_limit"):
        await asked(journal, agent("parallel", k=2, limits={"cost_usd": 0.005}), Minds(), Need(0, 0.01))


def made(text: str, confidence: float | None = None) -> Answer:
    return Answer(text=text, agent="a", model="m", policy="p", confidence=confidence)


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        ([made("a"), made("b"), made("B")], 1),
        ([made("a", 0.2), made("b", 0.9)], 1),
        ([made("a", 0.5), made("b", 0.5)], 0),
        ([made("a"), made("b", 0.1)], 1),
        ([made("x", 0.1), made(" X", 0.7), made("y", 0.99)], 1),
    ],
)
def test_the_vote(answers: list[Answer], chosen: int) -> None:
    assert surest(answers, groups(answers)[0]) == chosen


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1)), min_size=1, max_size=8))
def test_no_group_is_larger_than_the_one_that_wins_and_each_answer_is_in_one(pairs: list[tuple[str, float]]) -> None:
    found = groups([made(text, sure) for text, sure in pairs])
    assert sorted(place for group in found for place in group) == list(range(len(pairs)))
    assert all(len(group) <= len(found[0]) for group in found)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"right": 0.7, "why": ""}', 0.7),
        ('so: {"right": 1}', 1.0),
        ('{"right": 1.5}', None),
        ('{"right": NaN}', None),
        ('{"right": true}', None),
        ('{"right": "0.7"}', None),
        ("{" * 100_000, None),
        ("[" * 100_000 + "{}", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_or_nothing(text: str, value: float | None) -> None:
    assert read_verdict(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"best": 1}', 0),
        ('{"best": 3}', 2),
        ('{"best": 4}', None),
        ('{"best": 0}', None),
        ('{"best": 1.5}', None),
        ('{"best": 1e400}', None),
    ],
)
def test_a_choice_is_one_of_the_candidates_or_nothing(text: str, value: int | None) -> None:
    assert read_choice(text, 3) == value


def test_answers_are_compared_apart_from_case_and_white_space() -> None:
    assert comparable(" The\n Answer ") == comparable("the answer")
    assert comparable("42") != comparable("4 2")


@given(st.text())
def test_what_another_wrote_stays_on_one_line_of_the_prompt(text: str) -> None:
    assert wording.judge_text([text, "b"]).count("\n") == wording.judge_text(["a", "b"]).count("\n")
    assert wording.verify_text(text).count("\n") == wording.verify_text("a").count("\n")
