"""What is fitted on matrices whose truth is known: no harm where nothing can be gained, a gain where something can, and nothing seen of rows that judge.

Not here: the figures on real models' answers, which `metier eval routing` measures.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pytest

from metier_infra.errors import MissingPackage
from metier_workflows.choosing import sklearn_features, trial
from metier_workflows.choosing.features import HashedText
from metier_workflows.choosing.fitting import Fit, best_single, fit, safe
from metier_workflows.choosing.fitting import Outcome as Way
from metier_workflows.choosing.learned import LearnedRouter
from metier_workflows.choosing.matrix import Floats, Matrix
from metier_workflows.choosing.router import Asked, Choice, Topology

from .kit import LEADER, PEERS, SPECIALISTS, drawn, first, unknown


def chosen(router: LearnedRouter, matrix: Matrix, topologies: frozenset[Topology] = trial.ANY) -> list[Choice]:
    return [
        router.choose(Asked(text, category, seed=row), matrix.models, topologies)
        for row, (text, category) in enumerate(zip(matrix.texts, matrix.categories, strict=True))
    ]


def accuracy(router: LearnedRouter, matrix: Matrix, topologies: frozenset[Topology] = trial.ANY) -> float:
    went = [trial.follow(one, trial.asking(matrix, row)) for row, one in enumerate(chosen(router, matrix, topologies))]
    return float(np.nanmean([one.score for one in went]))


def halves(matrix: Matrix) -> tuple[Matrix, Matrix]:
    train, test = trial.split(matrix, 0)
    return matrix.rows(train), matrix.rows(test)


@pytest.mark.parametrize(
    "matrix",
    [
        drawn(LEADER),
        drawn(LEADER, answers=False),
        drawn(LEADER, prices=False),
        drawn(np.full((2, 4), 0.7), together=True),
        drawn(np.array([[0.8, 0.5]])),
        unknown(drawn(LEADER), 0.2),
    ],
    ids=["a leader", "no answers", "no costs", "all err together", "two models", "scores missing"],
)
def test_where_nothing_can_be_gained_the_best_single_model_answers(matrix: Matrix) -> None:
    train, test = halves(matrix)

    router = fit(train)

    best = np.nanmean(test.scores[:, best_single(train)])
    assert accuracy(router, test) >= best - 0.005
    assert accuracy(router, test, trial.ONE) >= best - 0.005


def test_equal_models_that_err_apart_are_asked_together() -> None:
    train, test = halves(drawn(PEERS))

    router = fit(train)

    assert {one.topology for one in chosen(router, test)} == {"cascade"}
    assert accuracy(router, test) > 0.77 > np.mean(test.scores) + 0.05


def test_with_one_category_too_equal_models_are_asked_together() -> None:
    train, test = halves(drawn(PEERS[:1]))

    assert accuracy(fit(train), test) > 0.77


def test_a_model_that_repeats_another_is_not_asked_for_its_vote() -> None:
    matrix = drawn(np.full((1, 4), 0.7))
    assert matrix.answers is not None
    copied = [0, 0, 0, 1, 2, 3]
    scores, answers, costs = matrix.scores[:, copied], matrix.answers[:, copied], np.full((600, 6), 0.01)
    echo = replace(matrix, models=tuple("abcdef"), scores=scores, answers=answers, costs=costs)

    router = fit(echo)

    assert router.plans is not None
    for plan in router.plans:
        assert len({"aaabcd"[at] for at in plan.order}) >= 3
    assert accuracy(router, echo) > 0.77


def test_specialists_are_found_by_category() -> None:
    train, test = halves(drawn(SPECIALISTS))

    router = fit(train)

    for one, category in zip(chosen(router, test, trial.ONE), test.categories, strict=True):
        assert one.chosen == (f"m{category[-1]}",)
    assert accuracy(router, test, trial.ONE) > 0.83


def way(scores: list[float], costs: list[float] | None = None) -> Way:
    return Way(np.array(scores * 50), np.array((costs or [1.0, 1.0]) * 50))


@pytest.mark.parametrize(
    ("new", "better"),
    [
        (way([1, 1]), True),
        (way([1, 0]), False),
        (way([0, 1]), False),
        (way([0, 0]), False),
        (way([1, 0], [0.1, 0.1]), True),
        (way([1, 0], [0.1, 0.2]), True),
        (way([0.995, 0], [0.1, 0.2]), False),
        (way([1, 1], [900.0, 900.0]), False),
    ],
    ids=["surely better", "the same", "as good, elsewhere", "worse", "cheaper, always alike", "cheaper", "cheaper and less right", "too dear"],
)  # fmt: skip
def test_only_what_is_worth_more_and_right_no_less_often_replaces_the_best(new: Way, better: bool) -> None:
    assert safe(new, way([1, 0]), rate=0.005) == better


@pytest.mark.parametrize(
    ("rows", "right_now", "right_before", "taken"),
    [(4000, 32, 24, True), (4000, 24, 32, False), (400, 4, 2, False), (4000, 300, 290, False), (4000, 300, 200, True)],
    ids=["likely better and surely not much worse", "likely worse", "few rows", "much may be lost", "surely better"],
)
def test_what_is_likely_better_is_taken_where_half_a_point_is_surely_not_lost(
    rows: int, right_now: int, right_before: int, taken: bool
) -> None:
    new, old = np.zeros(rows), np.zeros(rows)
    new[:right_now], old[-right_before:] = 1, 1

    assert safe(Way(new, np.ones(rows)), Way(old, np.ones(rows)), rate=0.005) == taken


def test_the_best_single_model_is_judged_on_rows_that_it_was_not_chosen_on() -> None:
    """Ten equal models: whichever was luckiest on the training rows looks better there than any is."""
    lucky, fair = list[float](), list[float]()
    for seed in range(10):
        matrix = drawn(np.full((1, 10), 0.6), seed=seed, answers=False, prices=False)
        lucky.append(float(matrix.scores.mean(axis=0).max()))
        fair.append(float(Fit(matrix).alone().scores.mean()))

    assert np.mean(lucky) > 0.62
    assert np.mean(fair) == pytest.approx(0.6, abs=0.012)


@pytest.mark.parametrize("seed", range(4))
def test_differences_that_are_chance_do_not_make_it_choose_by_task(seed: int) -> None:
    assert not fit(drawn(np.full((3, 3), 0.6), seed=seed, answers=False, prices=False)).routed


@pytest.mark.parametrize("seed", range(2))
def test_plans_that_only_go_well_on_the_rows_they_were_found_on_are_not_kept(seed: int) -> None:
    """In each of 20 categories of 30 queries some model is lucky. Nobody agrees with anybody, so luck is all there is."""
    matrix = drawn(np.full((20, 5), 0.6), seed=seed)
    assert matrix.answers is not None
    own = replace(matrix, answers=np.char.add(matrix.answers, np.array([list(matrix.models)])))

    router = fit(own)

    assert (router.routed, router.plans) == (False, None)


def test_with_few_labels_the_best_single_model_is_kept() -> None:
    few = fit(first(drawn(SPECIALISTS), 119))

    assert (few.routed, few.plans) == (False, None)
    assert len({one.chosen for one in chosen(few, drawn(SPECIALISTS))}) == 1


def test_of_equal_models_the_cheapest_is_the_best() -> None:
    matrix = drawn(np.full((1, 3), 0.7), together=True)

    assert best_single(matrix) == 2


def test_a_model_and_a_query_without_a_known_score_teach_nothing() -> None:
    matrix = drawn(SPECIALISTS)
    scores = matrix.scores.copy()
    scores[:, 1] = np.nan
    scores[:50] = np.nan

    router = fit(replace(matrix, scores=scores))

    assert router.labels == 550
    assert "m1" not in {name for one in chosen(router, matrix, trial.ONE) for name in one.chosen}


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(ValueError, match="nothing to learn from"):
        fit(drawn(PEERS).rows([]))


def shuffled(test: Matrix) -> Matrix:
    order = np.random.default_rng(3).permutation(len(test))
    assert test.answers is not None
    assert test.costs is not None
    return replace(test, scores=1 - test.scores, answers=test.answers[order], costs=test.costs[order])


def test_no_choice_depends_on_what_the_judging_rows_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels of the test rows are permuted and turned round: every choice of every way stays, and only what it came to differs."""
    matrix = first(drawn(PEERS), 400)
    train, test = trial.split(matrix, 0)
    other = shuffled(matrix.rows(test))
    scores, answers, costs = matrix.scores.copy(), np.array(matrix.answers), np.array(matrix.costs)
    scores[test], answers[test], costs[test] = other.scores, np.array(other.answers), np.array(other.costs)
    turned = replace(matrix, scores=scores, answers=answers, costs=costs)
    seen: list[Choice] = []
    choose = LearnedRouter.choose

    def watched(self: LearnedRouter, asked: Asked, agents: Sequence[str], topologies: Collection[Topology]) -> Choice:
        seen.append(choose(self, asked, agents, topologies))
        return seen[-1]

    monkeypatch.setattr(LearnedRouter, "choose", watched)
    first_told = trial.judged(matrix, 0)
    chosen_first = list(seen)
    seen.clear()
    told = trial.judged(turned, 0)

    assert len(train) == 240
    assert seen == chosen_first
    assert told.ways["combined"].accuracy != first_told.ways["combined"].accuracy


def test_the_same_rows_give_the_same_router_to_the_bit() -> None:
    one, other = fit(drawn(PEERS)), fit(drawn(PEERS))

    assert one.dump() == other.dump()
    assert one.version == other.version
    assert fit(first(drawn(PEERS), 500)).version != one.version


class Length:
    """An embedder of a user's own."""

    name = "length-1"
    width = 1

    def embed(self, text: str) -> Floats:
        return np.array([float(len(text))])


def test_what_a_text_says_beyond_its_category_is_used() -> None:
    matrix = drawn(np.full((1, 2), 0.5))
    long = np.random.default_rng(5).random(600) < 0.5
    right = np.random.default_rng(6).random((600, 2)) < np.where(long[:, None], [[0.9, 0.4]], [[0.4, 0.9]])
    texts = tuple("prove that this theorem holds" if one else "name the capital of France" for one in long)
    train, test = halves(replace(matrix, texts=texts, scores=right.astype(float), answers=None))

    router = fit(train)

    assert router.routed
    assert accuracy(router, test, trial.ONE) > 0.83
    assert fit(train, embedder=Length()).embedder.name == "length-1"
    assert np.linalg.norm(HashedText().embed("a text")) == pytest.approx(1)


def test_scikit_learn_sees_the_words_of_a_text_and_few_texts_are_hashed() -> None:
    subjects = ("algebra", "poetry", "chemistry", "law")
    random = np.random.default_rng(0)
    texts = [f"{subjects[at % 4]} {' '.join(f'word{one}' for one in random.integers(0, 200, 8))}" for at in range(300)]

    embedder = sklearn_features.fitted(texts)
    one, same, other = (embedder.embed(text) for text in ("about algebra", "more algebra", "poetry"))

    assert embedder.width == len(one) == sklearn_features.DIRECTIONS
    assert one @ same == pytest.approx(1)
    assert abs(one @ other) < 0.5
    assert not embedder.embed("unheard of").any()
    assert sklearn_features.fitted(texts).name == embedder.name != sklearn_features.fitted(texts[:-1]).name
    assert isinstance(sklearn_features.fitted(texts[:20]), HashedText)
    assert isinstance(sklearn_features.fitted([""] * 200), HashedText)


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)

    with pytest.raises(MissingPackage, match=r"metier\[routing\]"):
        sklearn_features.fitted(["a text"])
