"""What a router would have scored, from another one's log: that the intervals hold the truth, and when nothing is said. On matrices of the test's own.

Not here: the coverage on real matrices, which `metier eval off-policy` measures.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.random import Generator

from metier_workflows.choosing import off_policy_trial as trial
from metier_workflows.choosing.matrix import Floats
from metier_workflows.choosing.off_policy import FEWEST, Logged, best_bet, bounded_mean, estimate, threshold


def _people(rng: Generator, queries: int = 1500, models: int = 5, kinds: int = 4) -> trial.Population:
    """Models of which each is good at something else, answers right or wrong."""
    skills = np.clip(rng.normal(0.65, 0.18, (kinds, models)), 0.05, 0.97)
    categories = rng.integers(0, kinds, queries)
    return trial.Population((rng.random((queries, models)) < skills[categories]).astype(float), categories)


def _logged(chances: list[float], new: list[float], n: int, *, right: float = 1.0) -> Logged:
    """The same chances for every decision, chosen in the shares that they say, of which the first agent's are right that often."""
    chosen = np.repeat(np.arange(len(chances)), [round(one * n) for one in chances])
    rows = len(chosen)
    scores = np.where(chosen == 0, right, 0.5) * np.ones(rows)
    wide: Floats = np.full((rows, len(chances)), 0.5)
    return Logged(np.tile(chances, (rows, 1)), chosen, scores, np.tile(new, (rows, 1)), wide)


def test_the_true_value_lies_in_the_intervals_as_often_as_they_say() -> None:
    people = _people(np.random.default_rng(5))
    cells = list(trial.cells(people, trials=30, decisions=700, seed=11))
    judged = sum(cell.judged for cell in cells)
    assert judged >= 300
    for name in trial.ESTIMATORS:
        held = sum(cell.held[name] for cell in cells)
        assert held / judged >= 0.93, name
        assert held / judged < 0.995, f"{name}: an interval that always holds says too little"


def test_a_heavy_weight_that_did_not_come_up_is_reckoned_with() -> None:
    """Every value that was seen is 0 or small; by their variance alone the mean would lie far below what it can be."""
    rng = np.random.default_rng(3)
    rare = [np.where(rng.random(400) < 0.02, 40.0, 0.0) for _ in range(200)]
    held = [bounded_mean(one, 0.0, 50.0, threshold(400)) for one in rare]
    by_variance = [abs(one.mean() - 0.8) <= 1.96 * one.std() / 20 for one in rare]
    assert np.mean([one.low <= 0.8 <= one.high for one in held]) >= 0.93
    assert np.mean(by_variance) < 0.93


def test_ends_are_where_the_likelihood_ratio_says() -> None:
    """Of n right answers and no wrong one: the least value v with n log(1/v) = F/2."""
    found = bounded_mean(np.ones(50), 0.0, 1.0, 1.92)
    assert found.high == 1.0
    assert found.low == pytest.approx(np.exp(-1.92 / 50), abs=5e-4)


def test_the_best_bet_on_tosses_is_kellys() -> None:
    """On 60 of 100 tosses, against evens: 100 times the divergence of 0.6 from 0.5."""
    gaps = np.repeat([0.5, -0.5], [60, 40])
    kelly = 100 * (np.log(2) + 0.6 * np.log(0.6) + 0.4 * np.log(0.4))
    assert best_bet(gaps, -0.5, 0.5) == pytest.approx(kelly, rel=1e-4)


def test_judging_what_made_the_log_gives_its_own_mean() -> None:
    logged = _logged([0.7, 0.3], [0.7, 0.3], 200, right=0.8)
    found = estimate(logged)
    assert found.effective == pytest.approx(200)
    assert found.ips is not None
    assert found.snips is not None
    assert found.gain is not None
    assert found.ips.value == pytest.approx(logged.scores.mean())
    assert found.snips.value == pytest.approx(logged.scores.mean())
    assert found.gain.value == pytest.approx(0.0)
    assert found.gain.low <= 0.0 <= found.gain.high


def test_weights_undo_what_the_log_preferred() -> None:
    found = estimate(_logged([0.75, 0.25], [0.25, 0.75], 400))
    assert found.ips is not None
    assert found.doubly_robust is not None
    assert found.ips.value == pytest.approx(0.25 * 1.0 + 0.75 * 0.5)
    assert found.doubly_robust.value == pytest.approx(0.25 * 1.0 + 0.75 * 0.5)


def test_a_perfect_model_of_scores_leaves_no_doubt_but_that_of_the_tasks() -> None:
    rng = np.random.default_rng(1)
    people = _people(rng)
    chances, new = trial.logging_policies(people, rng)["uniform"], trial.target_policies(people)["best of category"]
    logged = trial.draw(people, chances, new, 1000, rng)
    knowing = replace(logged, model=np.tile(logged.scores[:, None], (1, 5)))
    plain, better = estimate(logged).doubly_robust, estimate(knowing).doubly_robust
    assert plain is not None
    assert better is not None
    assert better.high - better.low < plain.high - plain.low


def test_what_was_never_possible_is_not_judged() -> None:
    found = estimate(_logged([1.0, 0.0], [0.9, 0.1], 300))
    assert found.lost == pytest.approx(0.1)
    assert found.doubly_robust is None
    assert found.refused is not None
    assert "never chosen" in found.refused


def test_a_little_that_was_never_possible_makes_the_intervals_wider() -> None:
    whole, lossy = (estimate(_logged([1.0, 0.0], new, 300, right=0.5)) for new in ([1.0, 0.0], [0.991, 0.009]))
    assert whole.snips is not None
    assert lossy.snips is not None
    assert lossy.snips.low <= whole.snips.low - 0.009
    assert lossy.snips.high >= whole.snips.high + 0.009


def test_too_few_decisions_of_its_own_are_not_judged() -> None:
    found = estimate(_logged([0.99, 0.01], [0.0, 1.0], 1000))
    assert found.effective < FEWEST
    assert found.refused is not None
    assert "are needed" in found.refused


def test_an_empty_log_is_not_judged() -> None:
    nothing = np.zeros((0, 2))
    found = estimate(Logged(nothing, np.zeros(0, dtype=np.intp), np.zeros(0), nothing, nothing))
    assert found.refused == "no decision with a known outcome is logged"


def test_the_model_of_scores_never_saw_what_it_predicts() -> None:
    categories, chosen = np.zeros(200, dtype=np.intp), np.zeros(200, dtype=np.intp)
    scores = np.tile([0.0, 1.0], 100)
    model = trial.cross_fitted(categories, chosen, scores, 1)
    assert model[0, 0] > 0.8, "the even ones, all wrong, are predicted from the odd ones, all right"
    assert model[1, 0] < 0.2
