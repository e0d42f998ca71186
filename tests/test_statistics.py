"""Intervals and tests of `choosing.statistics`: against published examples, against scipy, and by how often an interval holds the truth.

Not tested: how well a method does with other distributions than those simulated here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metier_workflows.choosing.matrix import Floats
from metier_workflows.choosing.statistics import (
    Estimate,
    correlation,
    holm,
    mcnemar,
    mean,
    mean_of,
    paired,
    skewed_mean_of,
    student_p,
    student_quantile,
    wilson,
)

scipy: Any = import_module("scipy.stats")
"""Without types, and so are the figures that it gives."""
GRADED = st.lists(st.integers(0, 20).map(lambda one: one / 20), min_size=1, max_size=60)
PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


def floats(*values: float) -> Floats:
    return np.array(values, dtype=np.float64)


def figures(found: Estimate | None) -> tuple[float, float, float, int]:
    assert found is not None
    return found.value, found.low, found.high, found.n


def held(make: Callable[[np.random.Generator], Estimate | None], truth: float, times: int = 400) -> float:
    """The share of intervals that hold the truth."""
    draws = np.random.default_rng(11)
    found = [one for _ in range(times) if (one := make(draws)) is not None]
    return float(np.mean([one.low <= truth <= one.high for one in found]))


# ---- a share, a mean


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_a_share_is_the_one_that_newcombe_published(
    right: int, n: int, low: float, high: float
) -> None:
    """Newcombe 1998, Stat. Med. 17:857, table I, method 3."""
    found = wilson(right, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_another_level_gives_another_width() -> None:
    assert (wilson(81, 263, 0.9).low, wilson(81, 263, 0.9).high) == pytest.approx(
        tuple(scipy.binomtest(81, 263).proportion_ci(0.9, "wilson")), abs=1e-9
    )


@given(st.integers(0, 500), st.integers(1, 500))
def test_the_interval_of_a_share_holds_it_stays_within_0_and_1_and_mirrors(right: int, more: int) -> None:
    n = right + more - 1 or 1
    found, other = wilson(min(right, n), n), wilson(n - min(right, n), n)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    assert (other.low, other.high) == pytest.approx((1 - found.high, 1 - found.low))


def test_a_mean_of_graded_scores_has_students_interval() -> None:
    scores = floats(0.2, 0.5, 0.55, 0.7, 0.35, math.nan, 0.6)
    known = scores[~np.isnan(scores)]
    low, high = scipy.t.interval(0.95, 5, known.mean(), known.std(ddof=1) / math.sqrt(6))
    assert figures(mean(scores)) == pytest.approx((known.mean(), low, high, 6))


def test_the_mean_of_no_score_is_none() -> None:
    assert mean(floats(math.nan, math.nan)) is None
    assert mean(floats()) is None


@pytest.mark.parametrize(("scores", "n"), [([0.5] * 10, 10), ([0.3], 1)])
def test_graded_scores_that_are_all_alike_are_not_sure_of_themselves(scores: list[float], n: int) -> None:
    assert mean(floats(*scores)) == wilson(sum(scores), n)


@given(GRADED)
def test_a_mean_lies_in_its_interval_and_that_within_0_and_1(scores: list[float]) -> None:
    found = mean_of(floats(*scores))
    assert -1e-12 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1 + 1e-12


@pytest.mark.parametrize(("n", "share"), [(12, 0.5), (60, 0.9), (300, 0.97)])
def test_the_interval_of_a_share_holds_the_truth_as_often_as_it_says(n: int, share: float) -> None:
    assert 0.91 <= held(lambda draws: mean_of((draws.random(n) < share).astype(float)), share) <= 0.99


@pytest.mark.parametrize("n", [10, 200])
def test_the_interval_of_a_graded_mean_holds_the_truth_as_often_as_it_says(n: int) -> None:
    assert 0.91 <= held(lambda draws: mean_of(draws.beta(2, 5, n)), 2 / 7) <= 0.98


# ---- paired differences


def test_mcnemars_p_is_the_published_one() -> None:
    """The airway hyper-responsiveness of Bentur et al., as in Fagerland, Lydersen and Laake 2013, table 5."""
    assert mcnemar(1, 7) == pytest.approx(0.039, abs=5e-4)
    assert mcnemar(1, 7, exact=True) == pytest.approx(0.070, abs=5e-4)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (5, 12), (300, 340), (10, 10), (2900, 3100), (0, 40)])
def test_the_exact_p_is_scipys_and_the_mid_p_is_less_by_what_is_as_likely(first: int, second: int) -> None:
    n = first + second
    exact = float(scipy.binomtest(first, n).pvalue)
    assert mcnemar(first, second, exact=True) == pytest.approx(exact, abs=1e-10)
    assert mcnemar(first, second) == pytest.approx(
        1.0 if first == second else exact - scipy.binom.pmf(min(first, second), n, 0.5), abs=1e-10
    )


def test_where_nobody_is_ever_alone_in_being_right_nothing_is_shown() -> None:
    assert mcnemar(0, 0) == mcnemar(0, 0, exact=True) == 1.0


def test_the_interval_of_a_difference_of_shares_is_bonetts_and_prices() -> None:
    """By hand from their formula, for the table above: 1 and 7 of 21."""
    first = floats(*[1.0] * 1, *[0.0] * 7, *[1.0] * 13)
    second = floats(*[0.0] * 1, *[1.0] * 7, *[1.0] * 13)
    middle, spread = (2 - 8) / 23, math.sqrt((10 / 23 - (6 / 23) ** 2) / 23)
    found = paired(first, second)
    assert found.value == pytest.approx(-6 / 21)
    assert (found.low, found.high) == pytest.approx((middle - 1.959964 * spread, middle + 1.959964 * spread), abs=1e-6)
    assert (found.n, found.p) == (21, mcnemar(1, 7))


def test_graded_scores_are_compared_by_students_paired_t() -> None:
    draws = np.random.default_rng(3)
    first, second = draws.random(17), draws.random(17)
    theirs = scipy.ttest_rel(first, second)
    found, interval = paired(first, second), theirs.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((theirs.pvalue, interval.low, interval.high))


def test_only_rows_that_both_have_count() -> None:
    found = paired(floats(1, 0, math.nan, 1, 1), floats(0, math.nan, 1, 1, 1))
    assert found == paired(floats(1, 1, 1), floats(0, 1, 1))
    assert found.n == 3


def test_differences_that_are_all_alike_are_as_sure_as_their_number() -> None:
    few, many = paired(floats(0.6, 0.7), floats(0.5, 0.6)), paired(np.full(40, 0.6), np.full(40, 0.5))
    assert few.p > 0.05 > many.p
    assert few.low < 0 < few.high
    assert paired(np.full(9, 0.5), np.full(9, 0.5)).p == 1.0


def test_one_graded_row_shows_nothing() -> None:
    found = paired(floats(0.9), floats(0.2))
    assert found.p > 0.05
    assert found.low < 0 < found.high


@given(PAIRS)
def test_a_difference_turned_round_is_the_same_with_the_other_sign(rows: list[tuple[int, int]]) -> None:
    first, second = floats(*(a / 4 for a, _ in rows)), floats(*(b / 4 for _, b in rows))
    one, other = paired(first, second), paired(second, first)
    assert (one.value, one.low, one.high, one.p) == pytest.approx((-other.value, -other.high, -other.low, other.p))
    assert one.low - 1e-9 <= one.value <= one.high + 1e-9
    assert 0 <= one.p <= 1


@pytest.mark.parametrize(("first", "second", "n"), [(0.1, 0.1, 50), (0.2, 0.05, 50), (0.12, 0.1, 300)])
def test_the_interval_of_a_difference_holds_the_truth_as_often_as_it_says(first: float, second: float, n: int) -> None:
    def make(draws: np.random.Generator) -> Estimate:
        kind = draws.choice(4, size=n, p=(first, second, 0.5, 0.5 - first - second))
        return paired(np.isin(kind, (0, 2)).astype(float), np.isin(kind, (1, 2)).astype(float))

    assert 0.92 <= held(make, first - second) <= 0.99


# ---- many tests


@pytest.mark.parametrize(
    ("given_ps", "corrected"),
    [
        ([0.01, 0.02, 0.03, 0.04], [0.04, 0.06, 0.06, 0.06]),
        ([0.04, 0.01, 0.03, 0.005], [0.06, 0.03, 0.06, 0.02]),
        ([0.6, 0.9], [1.0, 1.0]),
        ([0.03], [0.03]),
        ([], []),
    ],
)
def test_holms_correction_is_that_of_r(given_ps: list[float], corrected: list[float]) -> None:
    """`p.adjust(…, "holm")`."""
    assert holm(given_ps) == pytest.approx(corrected)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_a_corrected_p_is_never_smaller_and_keeps_the_order(ps: list[float]) -> None:
    found = holm(ps)
    assert all(p <= one <= 1 for p, one in zip(ps, found, strict=True))
    assert sorted(found) == [one for _, one in sorted(zip(ps, found, strict=True))]


# ---- correlation


def test_the_correlation_of_a_table_is_phi() -> None:
    first = floats(*[1.0] * 40, *[0.0] * 60)
    second = floats(*[1.0] * 30, *[0.0] * 10, *[1.0] * 20, *[0.0] * 40)
    found = correlation(first, second)
    assert found is not None
    assert found.value == pytest.approx((30 * 40 - 10 * 20) / math.sqrt(40 * 60 * 50 * 50))
    assert found.low < found.value < found.high


def test_errors_go_together_as_much_as_right_answers_do() -> None:
    draws = np.random.default_rng(5)
    first, second = (draws.random((2, 80)) < 0.7).astype(float)
    found = figures(correlation(first, second))
    assert found == pytest.approx(figures(correlation(1 - first, 1 - second)))
    assert found == pytest.approx(figures(correlation(second, first)))


@pytest.mark.parametrize(
    ("first", "second"),
    [(floats(1, 1, 1, 1), floats(0, 1, 0, 1)), (floats(0, 1, 0), floats(0, 1, 0)), (np.full(9, math.nan), np.ones(9))],
)
def test_what_never_varies_or_is_too_little_has_no_correlation(first: Floats, second: Floats) -> None:
    assert correlation(first, second) is None


def test_few_rows_that_agree_wholly_do_not_claim_to_be_sure() -> None:
    few, graded = correlation(floats(1, 0, 1, 0, 1), floats(1, 0, 1, 0, 1)), correlation(floats(0.1, 0.5, 0.2, 0.9), floats(0.1, 0.5, 0.2, 0.9))  # fmt: skip
    assert few is not None
    assert (few.value, few.high) == (pytest.approx(1.0), pytest.approx(1.0))
    assert few.low < 0.5
    assert figures(graded) == pytest.approx((1.0, 1.0, 1.0, 4))


@pytest.mark.parametrize(("right", "other", "phi"), [(0.5, 0.5, 0.0), (0.9, 0.9, 0.3), (0.8, 0.6, 0.4)])
def test_the_interval_of_a_correlation_holds_the_truth_as_often_as_it_says(
    right: float, other: float, phi: float
) -> None:
    both = right * other + phi * math.sqrt(right * (1 - right) * other * (1 - other))
    table = [1 - right - other + both, other - both, right - both, both]

    def make(draws: np.random.Generator) -> Estimate | None:
        kind = draws.choice(4, size=100, p=table)
        return correlation((kind >= 2).astype(float), (kind % 2).astype(float))

    assert 0.91 <= held(make, phi) <= 0.99


def test_graded_scores_have_an_interval_of_their_correlation_too() -> None:
    def make(draws: np.random.Generator) -> Estimate | None:
        common, own = draws.normal(size=80), draws.normal(size=(2, 80))
        return correlation(0.5 + (common + own[0]) / 20, 0.5 + (common + own[1]) / 20)

    assert 0.91 <= held(make, 0.5) <= 0.98


def test_of_normal_scores_the_interval_is_fishers() -> None:
    common, own = np.random.default_rng(6).normal(size=5000), np.random.default_rng(7).normal(size=(2, 5000))
    found = correlation(0.5 + (common + own[0]) / 40, 0.5 + (common + own[1]) / 40)
    assert found is not None
    half = (math.atanh(found.high) - math.atanh(found.low)) / 2
    assert half == pytest.approx(1.959964 / math.sqrt(5000 - 3), rel=0.05)


# ---- what has a long tail, Student


@pytest.mark.parametrize("size", [10, 80])
def test_the_interval_of_a_mean_with_a_long_tail_holds_the_truth_oftener_than_one_that_ignores_the_tail(
    size: int,
) -> None:
    def moved(draws: np.random.Generator) -> Estimate:
        return skewed_mean_of(draws.exponential(1, size))

    def plain(draws: np.random.Generator) -> Estimate:
        values = draws.exponential(1, size)
        half = student_quantile(0.95, size - 1) * float(values.std(ddof=1)) / math.sqrt(size)
        return Estimate(1.0, float(values.mean()) - half, float(values.mean()) + half, size)

    assert held(moved, 1.0, 2000) >= 0.92
    assert held(moved, 1.0, 2000) > held(plain, 1.0, 2000)


def test_the_interval_of_what_has_no_tail_is_students() -> None:
    values = floats(1, 2, 3, 4, 5)
    half = student_quantile(0.95, 4) * float(values.std(ddof=1)) / math.sqrt(5)
    assert figures(skewed_mean_of(values)) == pytest.approx((3, max(1, 3 - half), 3 + half, 5))


def test_no_bound_of_a_mean_of_costs_is_below_the_smallest_of_them() -> None:
    found = skewed_mean_of(floats(0.001, 0.001, 0.001, 9))
    assert found.low == 0.001 < found.value < found.high


@pytest.mark.parametrize("values", [floats(0.3), floats(0.3, 0.3, 0.3)])
def test_a_mean_of_what_is_alike_has_no_width(values: Floats) -> None:
    assert figures(skewed_mean_of(values)) == (0.3, 0.3, 0.3, values.size)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 10, 99, 100, 1001, 12001])
def test_students_t_is_scipys(df: int) -> None:
    for t in (0.0, 0.3, 1.96, 5.0):
        assert student_p(t, df) == pytest.approx(2 * scipy.t.sf(t, df), abs=1e-9)
    assert student_quantile(0.95, df) == pytest.approx(scipy.t.ppf(0.975, df), abs=1e-7)
    assert student_quantile(0.5, df) == pytest.approx(scipy.t.ppf(0.75, df), abs=1e-7)


def test_without_degrees_of_freedom_anything_is_possible() -> None:
    assert (student_p(9.0, 0), student_quantile(0.95, 0)) == (1.0, math.inf)
