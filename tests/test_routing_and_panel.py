"""Whom to ask, and one answer out of several: pure functions, by table and by invariant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier_infra.words import AgentCard, Answer
from metier_workflows.panel import plain, synthesise
from metier_workflows.routing import ROUTER, choose, rank


def card(name: str, **skills: float) -> AgentCard:
    return AgentCard(name=name, model="m", policy="autonomous", skills=skills)


CARDS = {card.name: card for card in (card("b", math=0.9), card("a", math=0.9, code=0.2), card("c", code=0.8))}


def test_agents_are_ranked_by_declared_skill_then_by_name_and_undeclared_skill_is_none() -> None:
    assert rank("math", CARDS) == [("a", 0.9), ("b", 0.9), ("c", 0.0)]
    assert rank("poetry", CARDS) == [("a", 0.0), ("b", 0.0), ("c", 0.0)]


def test_the_most_skilled_is_chosen_alone_or_as_a_panel() -> None:
    one = choose("code", CARDS, size=1, reason="cheap")
    assert (one.chosen, one.topology, one.reason, one.router) == (("c",), "specialist", "cheap", ROUTER)
    two = choose("code", CARDS, size=2, reason="hard")
    assert (two.chosen, two.topology) == (("c", "a"), "panel")


def test_only_those_who_are_meant_are_candidates() -> None:
    decision = choose("math", CARDS, size=1, reason="r", among=("b", "c", "not there"))
    assert [(one.agent, one.propensity) for one in decision.candidates] == [("b", 1.0), ("c", 0.0)]
    assert decision.chosen == ("b",)


def test_the_order_in_which_agents_are_declared_does_not_matter() -> None:
    backwards = dict(reversed(CARDS.items()))
    assert choose("math", CARDS, size=2, reason="r") == choose("math", backwards, size=2, reason="r")


def answer(agent: str, text: str) -> Answer:
    return Answer(text=text, agent=agent, model="m", policy="p")


@pytest.mark.parametrize(
    ("texts", "weights", "text", "agreed", "support", "dissent"),
    [
        ({"a": "42"}, {}, "42", ("a",), 1.0, {}),
        ({"a": "42", "b": " 42 ", "c": "41"}, {}, "", ("a", "b"), 2 / 3, {"c": "41"}),
        ({"a": "x", "b": "y"}, {"a": 0.9, "b": 0.3}, "x", ("a",), 0.75, {"b": "y"}),
        ({"a": "x", "b": "y", "c": "Y"}, {"a": 0.5, "b": 0.3, "c": 0.3}, "", ("b", "c"), 0.6 / 1.1, {"a": "x"}),
        ({"a": "", "b": " ", "c": "z"}, {}, "z", ("c",), 1.0, {}),
        ({"a": "", "b": " "}, {}, "", (), 0.0, {}),
    ],
    ids=["alone", "majority", "skill prevails", "many weak", "empty supports nothing", "nobody said anything"],
)
def test_the_answer_with_the_most_weight_wins_and_dissent_is_named(
    texts: dict[str, str],
    weights: dict[str, float],
    text: str,
    agreed: tuple[str, ...],
    support: float,
    dissent: dict[str, str],
) -> None:
    found = synthesise([answer(name, said) for name, said in texts.items()], weights)
    if text:
        assert found.text == text
    assert (found.agreed, found.dissent) == (agreed, dissent)
    assert found.support == pytest.approx(support)


def test_of_those_who_agree_the_most_skilled_is_quoted() -> None:
    found = synthesise([answer("a", "Paris"), answer("b", "PARIS ")], {"a": 0.2, "b": 0.8})
    assert found.text == "PARIS "


def test_what_counts_as_the_same_answer_is_the_callers_choice() -> None:
    answers = [answer("a", "1.0"), answer("b", "1")]
    assert synthesise(answers, {}).support == 0.5
    assert synthesise(answers, {}, key=lambda text: str(float(text))).support == 1.0


def test_weights_of_nothing_break_nothing() -> None:
    found = synthesise([answer("a", "x"), answer("b", "y")], {"a": 0.0, "b": 0.0})
    assert found.support == 0.0
    assert found.text in {"x", "y"}


ANSWERS = st.lists(
    st.builds(answer, st.sampled_from("abcdef"), st.sampled_from(["x", "X ", "y", "", "z"])),
    min_size=1,
    max_size=6,
    unique_by=lambda one: one.agent,
)
WEIGHTS = st.dictionaries(
    st.sampled_from("abcdef"), st.integers(min_value=0, max_value=8).map(lambda eighths: eighths / 8)
)


@given(ANSWERS, WEIGHTS)
def test_the_order_of_answers_changes_nothing_and_everybody_is_accounted_for(
    answers: list[Answer], weights: dict[str, float]
) -> None:
    found = synthesise(answers, weights)
    assert synthesise(list(reversed(answers)), weights) == found
    speakers = {one.agent for one in answers if one.text.strip()}
    assert set(found.agreed) | set(found.dissent) == speakers
    assert not set(found.agreed) & set(found.dissent)
    assert 0 <= found.support <= 1 + 1e-9


def test_white_space_and_case_do_not_make_another_answer() -> None:
    assert plain("  The\n ANSWER ") == plain("the answer")
