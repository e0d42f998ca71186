"""Whom to ask, and one answer out of several: pure functions, by table and by invariant."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier_infra.errors import BadSpec
from metier_infra.words import AgentCard, Answer
from metier_workflows.panel import (
    Near,
    agree,
    camps,
    cosine,
    exact,
    next_wave,
    numeric,
    plain,
    synthesise,
    tied,
    unkeyed,
)
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


@pytest.mark.parametrize(
    ("key", "one", "other", "same"),
    [
        (exact, " 4", "4 ", True),
        (exact, "Four", "four", False),
        (numeric, "4", "4.0", True),
        (numeric, "1,000", "1e3", True),
        (numeric, "-0", "0", True),
        (numeric, "1.0000000001", "1", True),
        (numeric, "1.00001", "1", False),
        (numeric, "Four ", "four", True),
        (numeric, "nan", "NaN", True),
        (numeric, "inf", "1e999", False),
        (numeric, "1/2", "0.5", True),
        (numeric, "1 1/2", r"\boxed{1.5}", True),
        (numeric, "1/0", "0", False),
        (numeric, "1,5", "15", False),
        (numeric, "1,000", "1000.", True),
        (numeric, "1_000", "1'000", True),
        (numeric, "\uff11\uff12", "12", True),
        (numeric, "\u22125", "-5", True),
        (numeric, "12 kg", "12 g", False),
        (numeric, "12 kg", "12  KG", True),
        (numeric, "12 %", "12", False),
        (numeric, "$12", "12", False),
        (numeric, "$1,200.00", "$1200", True),
        (numeric, "9007199254740993", "9007199254740992", False),
        (numeric, "12345678901", "12345678902", False),
        (numeric, "1e10", "10000000000", True),
        (numeric, "7 in chapter 3", "8 in chapter 3", False),
        (numeric, "0" * 2000 + "1", "1", False),
        (plain, "caf\u00e9", "CAFE\u0301", True),
        (plain, "Stra\u00dfe", "STRASSE", True),
        (plain, "yes\u200b", "\ufeffyes", True),
        (plain, "a\u00a0b", "a b", True),
        (plain, "x\u00b2", "x2", False),
    ],
)
def test_a_declared_key_says_what_is_the_same(key: Callable[[str], str], one: str, other: str, same: bool) -> None:
    assert (key(one) == key(other)) is same


PLACES = {"a cat": (1.0, 0.1), "the cat": (1.0, 0.0), "a dog": (0.0, 1.0), "nothing": (0.0, 0.0)}


def test_by_an_embedding_texts_agree_that_are_near_and_nothing_is_near_to_nothing() -> None:
    near = Near(lambda text: PLACES[text], threshold=0.9)
    assert near.names(["the cat", "a dog", "a cat", "nothing"]) == ["a cat", "a dog", "a cat", "nothing"]
    found = synthesise([answer("a", "the cat"), answer("b", "a dog"), answer("c", "a cat")], {}, near)
    assert (found.agreed, found.dissent) == (("a", "c"), {"b": "a dog"})
    assert Near(lambda text: PLACES[text], threshold=0.999).names(["the cat", "a cat"]) == ["the cat", "a cat"]
    assert cosine((3.0, 4.0), (6.0, 8.0)) == pytest.approx(1.0)


def test_enough_is_a_share_of_the_weight_of_all_who_were_chosen_answered_or_not() -> None:
    thirds = dict.fromkeys("abc", 0.1)
    two = [answer("a", "x"), answer("b", "X")]
    assert agree(two, thirds, 2 / 3)
    assert not agree(two, thirds, 0.67)
    assert not agree([answer("a", ""), answer("b", " ")], thirds, 0.5)
    assert not agree([], thirds, 0.0)


@pytest.mark.parametrize(
    ("left", "answers", "enough", "wave"),
    [
        ("abcd", {}, 0.5, "ab"),
        ("abcd", {}, 0.25, "a"),
        ("abcd", {}, 1.0, "abcd"),
        ("cd", {"a": "x", "b": "y"}, 0.5, "c"),
        ("cd", {"a": "x", "b": "y"}, 0.75, "cd"),
        ("d", {"a": "x", "b": "y", "c": "z"}, 0.75, "d"),
        ("cd", {}, 0.5, "cd"),
        ("cd", {"a": "x"}, 0.25, "c"),
    ],
)
def test_a_wave_is_the_first_ones_without_whom_there_cannot_be_enough(
    left: str, answers: dict[str, str], enough: float, wave: str
) -> None:
    said = [answer(name, text) for name, text in answers.items()]
    assert next_wave(left, said, dict.fromkeys("abcd", 2.0), enough) == tuple(wave)


@given(
    st.permutations("abcd"),
    st.dictionaries(st.sampled_from("abcd"), st.sampled_from("xyz"), max_size=4),
    st.floats(0.05, 1),
)
def test_in_waves_exactly_those_are_asked_who_would_be_one_after_the_other(
    order: list[str], said: dict[str, str], enough: float
) -> None:
    """Who is not in `said` fails."""
    weights = dict.fromkeys(order, 1.0)

    def heard(names: Sequence[str]) -> list[Answer]:
        return [answer(name, said[name]) for name in names if name in said]

    singly = next((n for n in range(5) if agree(heard(order[:n]), weights, enough)), 4)
    asked: list[str] = []
    while len(asked) < 4 and not agree(heard(asked), weights, enough):
        asked += next_wave(order[len(asked) :], heard(asked), weights, enough)
    assert asked == order[:singly]


@pytest.mark.parametrize("nothing", ["", "  \n", "\u200b", "\ufeff \u00ad"])
def test_an_answer_that_shows_nothing_supports_nothing(nothing: str) -> None:
    found = synthesise([answer("a", nothing), answer("b", "yes")], {"a": 9.0, "b": 1.0})
    assert (found.text, found.agreed, found.dissent) == ("yes", ("b",), {})


@pytest.mark.parametrize("order", ["abc", "cba"])
@pytest.mark.parametrize("texts", [("x", "y", "z"), ("z", "y", "x")])
def test_of_answers_with_the_same_weight_that_of_whoever_was_to_be_asked_first_is_taken(
    order: str, texts: Sequence[str]
) -> None:
    answers = [answer(name, said) for name, said in zip("abc", texts, strict=True)]
    weights = dict.fromkeys(order, 0.1)
    found = camps(answers, weights)
    assert [camp.agents for camp in found] == [(name,) for name in order]
    assert tied(found)
    # Given that thirds of a sum are not a third to the last bit, or that one weighs more
    assert tied(camps([answer("a", "x"), answer("b", "x"), answer("c", "y")], {"a": 0.1, "b": 0.2, "c": 0.3}))
    assert not tied(camps(answers, weights | {"b": 0.2}))
    assert not tied(camps(answers[:1], weights))


def as_number(text: str) -> str:
    """A key as an author writes it, who did not think of every answer."""
    return str(float(text))


def test_an_answer_that_a_key_breaks_on_or_gives_no_text_for_agrees_with_no_other_and_is_named() -> None:
    said = [answer("a", "4"), answer("b", "4.0"), answer("c", "no idea"), answer("d", "no idea"), answer("e", "")]
    found = synthesise(said, {}, as_number)
    assert (found.agreed, found.dissent) == (("a", "b"), {"c": "no idea", "d": "no idea"})
    assert unkeyed(said, as_number) == dict.fromkeys("cd", "ValueError: could not convert string to float: 'no idea'")

    def first_word(text: str) -> Any:
        return None if " " in text else text

    assert [camp.agents for camp in camps(said, {}, first_word)] == [("a",), ("b",), ("c",), ("d",)]
    assert unkeyed(said, first_word) == dict.fromkeys("cd", "the key gave NoneType, and no text")


def test_an_embedding_that_breaks_is_not_finite_or_has_another_length_is_near_to_nothing() -> None:
    places: Mapping[str, Sequence[float]] = {
        "a cat": (1.0, 0.0),
        "cat": (1.0, 0.1),
        "nan": (math.nan, 1.0),
        "long": (1.0, 0.0, 0.0),
    }
    said = [answer(name, text) for name, text in zip("abcde", ["a cat", "cat", "nan", "long", "gone"], strict=True)]
    near = Near(lambda text: places[text])
    assert [camp.agents for camp in camps(said, {}, near)] == [("a", "b"), ("c",), ("d",), ("e",)]
    assert unkeyed(said, near) == {
        "c": "its embedding is not finite",
        "d": "its embedding has 3 numbers where another has 2",
        "e": "KeyError: 'gone'",
    }


@pytest.mark.parametrize("threshold", [90.0, -1.1, math.nan])
def test_a_threshold_that_is_no_cosine_is_refused(threshold: float) -> None:
    with pytest.raises(BadSpec, match="the threshold of Near is a cosine"):
        Near(lambda text: (float(len(text)),), threshold)
