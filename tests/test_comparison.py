"""What a comparison of models finds and says: verdicts, pairs, pools, and what it does with data that has holes.

Not here: the methods (test_statistics), and how it is shown (test_compare_page).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metier_workflows.choosing.comparison import MOST_CATEGORIES, OTHERS, Category, Comparison, compare
from metier_workflows.choosing.matrix import Floats, Matrix
from metier_workflows.choosing.pooling import FOLDS, REPEATS, Pool, spread
from metier_workflows.choosing.segments import Segment, corrected, segment
from metier_workflows.choosing.statistics import holm, paired
from metier_workflows.choosing.verdicts import listed


def matrix(
    scores: Floats | Sequence[Sequence[float]],
    categories: Sequence[str] = (),
    *,
    costs: Floats | None = None,
    answers: Sequence[Sequence[str]] | None = None,
) -> Matrix:
    """Models are a, b, c and so on."""
    table = np.asarray(scores, dtype=np.float64)
    n, models = table.shape
    kinds = tuple(categories or ["x"] * n)
    ids, words = tuple(map(str, range(n))), None if answers is None else np.array(answers, dtype=np.str_)
    return Matrix(ids, kinds, kinds, ids, tuple("abcdefghijkl"[:models]), table, costs, words)


def drawn(chances: Mapping[str, Sequence[float]], n: int, *, seed: int = 1, alike: float = 0.0) -> Matrix:
    """For each category `n` queries and each model's chance to be right; `alike` is the share of queries with one luck for all."""
    draws, rows, kinds = np.random.default_rng(seed), list[Floats](), list[str]()
    for name, chance in chances.items():
        luck = draws.random((n, len(chance)))
        luck = np.where(draws.random((n, 1)) < alike, luck[:, :1], luck)
        rows.append((luck < np.array(chance)).astype(float))
        kinds += [name] * n
    return matrix(np.concatenate(rows), kinds)


def category(found: Comparison, name: str) -> Category:
    return next(one for one in found.categories if one.segment.name == name)


# ---- verdicts


def test_a_model_that_is_better_somewhere_than_the_best_on_all_makes_it_specialised() -> None:
    found = compare(drawn({"maths": (0.9, 0.6), "law": (0.6, 0.8), "code": (0.9, 0.6)}, 400))
    assert found.whole.ranked == ("a", "b")
    law = category(found, "law").verdict
    assert (law.kind, law.models) == ("specialised", ("b",))
    assert law.sentence.startswith("Specialised: b (")
    assert "better than a, the best on all." in law.sentence
    assert category(found, "maths").verdict.kind == "one leads"
    assert (found.verdict.kind, found.verdict.models) == ("specialised", ("a",))
    assert "in 1 of 3 categories another model is better than a" in found.verdict.sentence
    assert "Choosing by category gains" in found.verdict.sentence


def test_who_is_better_than_the_best_on_all_is_named_and_the_others_too() -> None:
    found = compare(drawn({"maths": (0.95, 0.3, 0.3, 0.3), "law": (0.3, 0.9, 0.8, 0.3)}, 400))
    law = category(found, "law").verdict
    assert law.models == ("b", "c")
    assert law.sentence.endswith("Better than that one is c too.")


def test_one_that_is_best_everywhere_leads() -> None:
    found = compare(drawn({"maths": (0.9, 0.7, 0.6), "law": (0.9, 0.7, 0.6)}, 500))
    assert {one.verdict.kind for one in found.categories} == {found.verdict.kind} == {"one leads"}
    assert "ahead of b, the next." in found.verdict.sentence
    assert "In no category is another shown to be better than a." in found.verdict.sentence
    assert "Choosing by category changes nothing that shows" in found.verdict.sentence


def test_where_nobody_is_ever_right_the_verdict_says_so_and_names_no_cheapest() -> None:
    found = compare(matrix([[0.0, 0.0]] * 200, costs=np.full((200, 2), 0.1)))
    assert found.verdict.kind == "commoditised"
    assert found.verdict.sentence.startswith("Commoditised: both are never right here. Look at these queries,")
    assert "cheapest" not in found.verdict.sentence


def test_models_that_are_alike_and_right_on_the_same_queries_are_commoditised_and_the_cheapest_is_named() -> None:
    data = drawn({"x": (0.9, 0.9, 0.9)}, 1500, alike=0.97, seed=2)
    priced = replace(data, costs=np.tile([0.003, 0.0001, 0.002], (1500, 1)))
    found = compare(priced).categories[0].verdict
    assert (found.kind, set(found.models)) == ("commoditised", {"a", "b", "c"})
    assert "all 3 are within 5 points of the best, and an oracle would gain" in found.sentence
    assert found.sentence.endswith("The cheapest of them is b: $0.10 per 1,000 queries.")
    assert "cheapest" not in compare(data).categories[0].verdict.sentence


def test_models_that_are_alike_and_right_on_different_queries_are_complementary() -> None:
    found = compare(drawn({"x": (0.7, 0.7)}, 3000)).categories[0].verdict
    assert found.kind == "complementary"
    assert (
        "both are within 5 points of the best, but right on different queries: an oracle would gain" in found.sentence
    )


def test_some_that_are_alike_before_others_share_the_lead() -> None:
    found = compare(drawn({"x": (0.9, 0.9, 0.4)}, 1500, alike=0.9)).categories[0].verdict
    assert (found.kind, set(found.models)) == ("shared lead", {"a", "b"})
    assert "The other one is behind." in found.sentence


def test_few_samples_say_so_and_how_many_would_do() -> None:
    found = compare(drawn({"x": (0.8, 0.75)}, 40)).categories[0]
    assert found.verdict.kind == "too few"
    one = found.segment.contrasts[0].difference
    need = 40 * ((one.high - one.low) / 0.05) ** 2
    said = int(found.verdict.sentence.split("About ")[1].split(" would")[0].replace(",", ""))
    assert need <= said <= 1.1 * need + 1


def test_with_as_many_samples_as_it_said_it_is_no_longer_too_few() -> None:
    few = compare(drawn({"x": (0.8, 0.8)}, 100)).categories[0].verdict.sentence
    need = int(few.split("About ")[1].split(" would")[0].replace(",", ""))
    kinds = [compare(drawn({"x": (0.8, 0.8)}, need, seed=seed)).categories[0].verdict.kind for seed in range(6)]
    assert kinds.count("too few") <= 1


def test_a_wider_margin_makes_more_models_interchangeable() -> None:
    data = drawn({"x": (0.7, 0.7)}, 300)
    assert compare(data).categories[0].verdict.kind == "too few"
    assert compare(data, margin=0.15).categories[0].verdict.kind == "complementary"
    assert compare(data, margin=0.3).categories[0].verdict.kind == "commoditised"


def test_what_is_significant_in_one_category_of_many_only_by_chance_is_not_told() -> None:
    """In each of 20 categories b is right where a is not on 6 of 6 queries: p = 0.016 each, which is nothing among 20."""
    lone = [[0.0, 1.0]] * 6 + [[1.0, 1.0]] * 40
    level = [[1.0, 1.0]] * 44 + [[1.0, 0.0], [0.0, 1.0]]
    alone = compare(matrix(lone, ["only"] * 46))
    assert alone.categories[0].verdict.kind == "one leads"
    kinds = ["only"] * 46 + [f"other {n}" for n in range(19) for _ in level]
    among = category(compare(matrix(lone + level * 19, kinds)), "only")
    assert among.verdict.kind == "too few"
    assert among.segment.contrasts[0].difference.p < 0.05 < among.segment.contrasts[0].p


def test_every_p_of_every_category_is_corrected_for_all_of_them_together() -> None:
    data = drawn({"x": (0.8, 0.7, 0.5), "y": (0.5, 0.6, 0.6)}, 60)
    parts = [one.segment for one in compare(data).categories]
    raw = [one.difference.p for part in parts for one in part.contrasts]
    assert [one.p for part in parts for one in part.contrasts] == holm(raw)
    assert len(raw) == 6


def test_alike_models_are_seldom_called_different() -> None:
    """The chance of any false finding is 5 % in all; of 60 comparisons of eight equal models in five categories, three on average."""
    chances = {str(n): (0.7,) * 8 for n in range(5)}
    false = 0
    for seed in range(60):
        data = drawn(chances, 60, seed=seed)
        parts = corrected([segment(name, data.rows([n for n, one in enumerate(data.categories) if one == name])) for name in chances])  # fmt: skip
        false += any(one.significant for part in parts for one in part.contrasts)
    assert false <= 6


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c", "d"], "a, b, c and d"),
        (["a", "b", "c", "d", "e"], "a, b, c and 2 more"),
    ],
)
def test_many_names_are_counted(names: list[str], said: str) -> None:
    assert listed(names) == said


# ---- one set of queries


def test_models_stand_in_order_of_accuracy_and_the_cheaper_of_equals_first() -> None:
    data = matrix([[1, 1, 0, 1], [0, 0, 0, 1]], costs=np.array([[3.0, 2.0, 1.0, 9.0]] * 2))
    assert segment("x", data).ranked == ("d", "b", "a", "c")


def test_costs_are_those_that_are_known() -> None:
    costs = np.array([[1.0, math.nan, 2.0], [3.0, math.nan, math.nan], [2.0, math.nan, 2.0]])
    found = {one.model: one.cost_usd for one in segment("x", matrix(np.ones((3, 3)), costs=costs)).standings}
    assert found["b"] is None
    assert (found["a"], found["c"]) != (None, None)
    for name, value, n in (("a", 2.0, 3), ("c", 2.0, 2)):
        one = found[name]
        assert one is not None
        assert (one.value, one.n) == (value, n)
        assert one.low <= value <= one.high


def test_two_models_are_compared_on_the_queries_that_both_have() -> None:
    scores = np.array([[1.0, 0.0]] * 10 + [[0.0, math.nan]] * 5)
    found = segment("x", matrix(scores)).contrasts[0]
    assert (found.difference.n, found.difference.value) == (10, 1.0)
    assert found.difference == paired(scores[:, 0], scores[:, 1])


def test_a_model_with_a_score_for_fewer_than_half_of_the_queries_is_shown_and_not_ranked() -> None:
    scores = np.ones((10, 3))
    scores[:6, 1], scores[:5, 2] = math.nan, math.nan
    found = segment("x", matrix(scores))
    assert found.ranked == ("a", "c")
    assert [one.model for one in found.standings] == ["a", "c", "b"]
    assert found.oracle is not None
    assert found.oracle.n == 5


def test_the_oracle_is_right_where_one_model_is() -> None:
    found = segment("x", matrix([[1, 0], [1, 0], [0, 1], [0, 0], [1, 1]]))
    assert found.oracle is not None
    assert found.headroom is not None
    assert (found.oracle.value, found.headroom.value) == (0.8, 0.2)


def test_a_contrast_turned_round_is_of_the_other() -> None:
    found = segment("x", drawn({"x": (0.9, 0.5, 0.3)}, 50))
    one = {other.first: other for other in found.against("b")}
    assert set(one) == {"a", "c"}
    assert one["a"].difference.value > 0 > one["c"].difference.value
    assert one["c"].difference.low <= one["c"].difference.value <= one["c"].difference.high


# ---- pairs


def test_a_pair_tells_how_they_agree_and_how_they_fail() -> None:
    scores = [[1, 1], [1, 0], [0, 0], [0, 0], [0, 1], [1, 1], [1, 0]]
    answers = [["4", "4"], ["4", "5"], ["7", "7"], ["7", "8"], ["", "4"], ["4", "4"], ["4", ""]]
    (pair,) = compare(matrix(scores, answers=answers)).pairs
    assert (pair.contrast.first, pair.contrast.second) == ("a", "b")
    assert pair.either_right.value == pytest.approx(5 / 7)
    assert pair.complement.value == pytest.approx(1 / 7)
    assert pair.both_wrong.value == pytest.approx(2 / 7)
    assert pair.agreement is not None
    assert (pair.agreement.value, pair.agreement.n) == (0.6, 5)
    assert pair.right_agreed is not None
    assert (pair.right_agreed.value, pair.right_agreed.n) == (pytest.approx(2 / 3), 3)
    assert pair.same_wrong is not None
    assert (pair.same_wrong.value, pair.same_wrong.n) == (0.5, 2)


def test_the_pairs_of_a_category_are_compared_on_its_queries_alone() -> None:
    """Where models fail together depends on what is asked: a panel for maths is another one than for law."""
    maths, law = [[1, 0, 1], [0, 1, 0], [1, 0, 1], [0, 1, 0]], [[1, 1, 0], [0, 0, 1], [1, 1, 0], [0, 0, 1]]
    said = [["4" if right else "5" for right in row] for row in maths + law]
    found = compare(matrix(maths + law, ["maths"] * 4 + ["law"] * 4, answers=said))
    for kind, rows in (("maths", slice(0, 4)), ("law", slice(4, 8))):
        alone = compare(matrix((maths + law)[rows], answers=said[rows]))
        assert [replace(one, contrast=other.contrast) for one, other in zip(category(found, kind).pairs, alone.pairs, strict=True)] == list(alone.pairs)  # fmt: skip
    reached = {kind: category(found, kind).pairs[0].contrast for kind in ("maths", "law")}
    assert [(one.first, one.second) for one in reached.values()] == [("a", "b"), ("a", "c")]
    correlations = {
        round(one.error_correlation.value, 9)
        for kind in reached
        for one in category(found, kind).pairs
        if one.error_correlation
    }
    assert correlations == {1.0, -1.0}
    everywhere = [one.error_correlation.value for one in found.pairs if one.error_correlation]
    assert sorted(everywhere) == pytest.approx([-1.0, 0.0, 0.0])


def test_pairs_that_reach_most_together_come_first() -> None:
    scores = np.array([[1, 0, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]])
    found = [(one.contrast.first, one.contrast.second) for one in compare(matrix(scores)).pairs]
    assert found == [("a", "b"), ("c", "b"), ("a", "c")]


def test_without_answers_nothing_is_said_of_agreement() -> None:
    (pair,) = compare(matrix([[1, 0], [0, 1]])).pairs
    assert (pair.agreement, pair.right_agreed, pair.same_wrong) == (None, None, None)


def test_a_model_that_never_answers_agrees_with_nobody() -> None:
    found = compare(matrix([[1, 0]] * 12, answers=[["4", ""]] * 12))
    assert found.pairs[0].agreement is None
    assert [one.answered for one in found.whole.standings] == [1.0, 0.0]
    assert found.verdict.kind == "one leads"


# ---- pools


def pool(scores: Floats, groups: Sequence[int]) -> Pool:
    return Pool(tuple("abcdefghijkl"[: scores.shape[1]]), scores, np.array(groups, dtype=np.int64))


def test_what_is_best_by_luck_alone_gains_nothing() -> None:
    """Twelve coins in 20 categories: chosen and counted on the same queries they would gain some 20 points."""
    gains: list[float] = []
    for seed in range(40):
        draws = np.random.default_rng(seed)
        scores, groups = (draws.random((300, 12)) < 0.5).astype(float), draws.integers(0, 20, 300)
        same = np.mean([scores[groups == kind].mean(axis=0).max() for kind in groups]) - scores.mean(axis=0).max()
        assert same > 0.05
        gains.append(pool(scores, list(groups)).gain().value)
    assert abs(np.mean(gains)) < 0.03


def test_true_specialists_gain_what_they_are_better_by() -> None:
    data = drawn({"x": (0.9, 0.5), "y": (0.5, 0.9)}, 500)
    found = pool(data.scores, [int(kind == "y") for kind in data.categories]).gain()
    assert found.low < 0.2 < found.high
    assert found.low > 0.1


def test_the_interval_of_a_gain_knows_that_the_choice_might_have_been_another_one() -> None:
    """Three models that are alike: the gain is 0."""
    held = 0
    for seed in range(60):
        draws = np.random.default_rng(seed)
        found = pool((draws.random((400, 3)) < 0.7).astype(float), list(draws.integers(0, 4, 400))).gain()
        held += found.low <= 0 <= found.high
    assert held >= 50


def test_no_query_counts_for_its_own_choice() -> None:
    """Query 0 is the only one of its category and none other knows which model is right there: whatever it says, what all prefer is counted for it."""
    others = np.tile([1.0, 0.0], (19, 1))
    for own in ([1.0, 0.0], [0.0, 1.0]):
        data = pool(np.vstack([own, others]), [1, *[0] * 19])
        grown = data.growth()[-1].by_category
        assert grown.value == pytest.approx((19 + own[0]) / 20)
        assert data.gain().value == 0.0


def test_a_model_that_adds_nothing_is_dropped_first_and_loses_nothing() -> None:
    data = drawn({"x": (0.9, 0.5, 0.0), "y": (0.5, 0.9, 0.0)}, 300)
    first, *others = pool(data.scores, [int(kind == "y") for kind in data.categories]).drops()
    assert (first.model, first.oracle.value, first.by_category.value) == ("c", 0.0, 0.0)
    assert {one.model for one in others} == {"a", "b"}
    assert all(one.by_category.low > 0.05 for one in others)


def test_of_two_that_are_the_same_either_can_be_dropped_and_a_growing_pool_takes_one() -> None:
    data = drawn({"x": (0.8, 0.4)}, 300)
    twice = pool(np.column_stack([data.scores[:, 0], data.scores[:, 0], data.scores[:, 1]]), [0] * 300)
    lost = {one.model: one.oracle.value for one in twice.drops()}
    assert (lost["a"], lost["b"]) == (0.0, 0.0)
    assert lost["c"] > 0
    assert [one.model for one in twice.growth()] == ["a", "c", "b"]


def test_a_growing_pool_reaches_what_an_oracle_over_all_does() -> None:
    data = drawn({"x": (0.6, 0.5, 0.4, 0.3)}, 200)
    grown = pool(data.scores, [0] * 200).growth()
    reached = [one.oracle.value for one in grown]
    assert reached == sorted(reached)
    assert reached[0] == data.scores.mean(axis=0).max()
    assert reached[-1] == data.scores.max(axis=1).mean()


@given(st.lists(st.integers(0, 5), min_size=2, max_size=80), st.integers(0, 5))
def test_every_category_is_spread_over_the_folds_evenly(kinds: list[int], seed: int) -> None:
    groups = np.array(kinds, dtype=np.int64)
    folds = spread(groups, np.random.default_rng(seed))
    number = min(FOLDS, len(kinds))
    assert set(folds.tolist()) == set(range(number))
    for kind in set(kinds):
        sizes = np.bincount(folds[groups == kind], minlength=number)
        assert sizes.max() - sizes.min() <= 1


# ---- data with holes


def test_ten_queries_make_a_whole_report() -> None:
    found = compare(drawn({"x": (0.8, 0.5, 0.5)}, 10))
    assert found.verdict.kind == "too few"
    assert len(found.drops) == len(found.growth) == 3


@pytest.mark.parametrize("queries", [0, 1, 2])
def test_hardly_any_query_is_no_reason_to_fail(queries: int) -> None:
    found = compare(matrix(np.ones((queries, 2))))
    assert found.queries == queries
    assert found.verdict.kind == ("too few" if queries else "one model")


def test_one_model_is_nothing_to_compare() -> None:
    found = compare(drawn({"x": (0.5,)}, 30))
    assert (found.verdict.kind, found.verdict.models) == ("one model", ("a",))
    assert (found.pairs, found.drops, found.growth, found.gain) == ((), (), (), None)


def test_models_without_any_score_are_nothing_to_compare() -> None:
    found = compare(matrix(np.full((8, 2), math.nan), ["x"] * 4 + ["y"] * 4))
    assert found.verdict.sentence == "Nothing to compare: no model has scores for half of these queries."
    assert [one.accuracy for one in found.whole.standings] == [None, None]


def test_two_models_without_a_common_query_are_not_compared() -> None:
    scores = np.array([[1.0, math.nan]] * 5 + [[math.nan, 0.0]] * 5)
    found = compare(matrix(scores))
    assert (found.pairs, found.pooled, found.drops) == ((), 0, ())
    assert found.verdict.kind == "too few"


def test_a_model_that_is_better_on_common_queries_than_the_best_on_its_own_is_not_behind() -> None:
    """a has easy queries of its own, b hard ones; where both were asked, b is better."""
    common = [[1.0, 1.0]] * 20 + [[0.0, 1.0]] * 12 + [[0.0, 0.0]] * 8
    found = compare(matrix(common + [[1.0, math.nan]] * 60 + [[math.nan, 0.0]] * 20))
    assert found.whole.ranked == ("a", "b")
    assert found.whole.contrasts[0].significant
    assert (found.verdict.kind, found.verdict.models) == ("too few", ("a", "b"))


def test_a_gain_that_may_be_chance_is_not_called_one() -> None:
    shown = [compare(drawn({"x": (0.8, 0.7), "y": (0.7, 0.8)}, 60, seed=seed)) for seed in range(8)]
    chance = [one for one in shown if one.gain and one.gain.low < 0 < one.gain.value]
    assert chance
    assert all("changes nothing that shows: " in one.verdict.sentence for one in chance)


def test_equal_models_tie() -> None:
    found = compare(matrix([[1, 1], [0, 0]] * 300))
    assert found.verdict.kind == "commoditised"
    assert found.whole.contrasts[0].p == 1.0
    assert found.gain is not None
    assert found.gain.value == 0.0


def test_of_very_many_categories_the_smallest_are_taken_together() -> None:
    kinds = [f"{n:03}" for n in range(200) for _ in range(1 + (n < 20))]
    found = compare(matrix(np.ones((220, 2)), kinds))
    names = [one.segment.name for one in found.categories]
    assert len(names) == MOST_CATEGORIES
    assert names[:2] == ["000", "001"]
    assert sum(one.segment.queries for one in found.categories) == 220
    assert category(found, OTHERS).segment.queries == 220 - 40 - (MOST_CATEGORIES - 1 - 20)


def test_graded_scores_are_compared_too() -> None:
    draws = np.random.default_rng(4)
    base = draws.random((200, 1)) * 0.6
    found = compare(matrix(np.clip(base + np.array([0.3, 0.1]) + draws.random((200, 2)) * 0.1, 0, 1)))
    assert found.verdict.kind == "one leads"
    assert found.pairs[0].error_correlation is not None
    assert found.pairs[0].error_correlation.value > 0.9


# ---- the same for the same


SCORES = st.one_of(st.just(math.nan), st.sampled_from([0.0, 1.0]), st.integers(0, 4).map(lambda one: one / 4))
TABLES = st.integers(1, 4).flatmap(
    lambda models: st.lists(
        st.tuples(st.lists(SCORES, min_size=models, max_size=models), st.sampled_from("xyz")), min_size=1, max_size=25
    )
)


@settings(max_examples=30, deadline=None)
@given(TABLES)
def test_any_scores_make_a_report_of_finite_figures_that_repeats_itself(table: list[tuple[list[float], str]]) -> None:
    data = matrix([scores for scores, _ in table], [kind for _, kind in table])
    found = compare(data)
    assert json.dumps(asdict(found), allow_nan=False)
    assert compare(data) == found
    assert sum(one.segment.queries for one in found.categories) == len(table)
    assert all(one.verdict.sentence.endswith(".") for one in (found, *found.categories))


def test_the_order_of_models_changes_nothing_but_their_order() -> None:
    data = drawn({"x": (0.9, 0.6, 0.5), "y": (0.4, 0.8, 0.5)}, 200)
    one, other = compare(data), compare(data.of(("c", "a", "b")))
    assert replace(one, models=()) == replace(other, models=())


def test_the_seed_decides_the_splits() -> None:
    data = drawn({"x": (0.7, 0.7), "y": (0.7, 0.7)}, 100)
    gains = {one.gain.value for seed in range(4) if (one := compare(data, seed=seed)).gain}
    assert len(gains) > 1
    assert REPEATS > 1


def test_a_segment_of_one_category_is_the_whole_but_for_its_name() -> None:
    found = compare(drawn({"x": (0.8, 0.6)}, 80))
    assert isinstance(found.whole, Segment)
    assert replace(found.categories[0].segment, name="all") == found.whole
