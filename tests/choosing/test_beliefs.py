"""What outcomes do to beliefs: shrinking, drawing, and noticing that a model changed. And a stream of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from metier_workflows.choosing.beliefs import Beliefs, counted, known_mean, pull_of
from metier_workflows.choosing.streaming import followed, streamed

from .kit import LEADER, SPECIALISTS, drawn


def beliefs(right: list[list[float]], count: list[list[float]], pull: float = 20.0) -> Beliefs:
    return Beliefs(np.array(right), np.array(count), pull)


def test_a_category_without_outcomes_has_the_record_everywhere() -> None:
    found = beliefs([[80.0, 50.0], [0.0, 0.0]], [[100.0, 100.0], [0.0, 0.0]]).means()

    assert found[1] == pytest.approx([81 / 102, 51 / 102])


def test_few_outcomes_move_a_category_little_and_many_much() -> None:
    few = beliefs([[80.0, 80.0], [0.0, 4.0]], [[100.0, 100.0], [4.0, 4.0]]).means()[1]
    many = beliefs([[80.0, 80.0], [0.0, 400.0]], [[100.0, 100.0], [400.0, 400.0]]).means()[1]

    assert 0.5 < few[0] < few[1] < 0.9
    assert many[0] < 0.1
    assert many[1] > 0.9


def test_what_is_hard_for_all_is_expected_to_be_hard_for_one_who_was_not_asked() -> None:
    found = beliefs([[90.0, 90.0], [10.0, 0.0]], [[100.0, 100.0], [100.0, 0.0]]).means()

    assert found[1, 1] < 0.6


def test_the_pull_is_weak_where_models_differ_by_category_and_strong_where_not() -> None:
    apart, alike = drawn(SPECIALISTS), drawn(np.tile(LEADER[:1], (3, 1)))
    kinds = {f"kind {at}": at for at in range(3)}
    pulls = [
        pull_of(one.scores, np.array([kinds[name] for name in one.categories], np.int64), 3) for one in (apart, alike)
    ]

    assert pulls[0] < 20
    assert pulls[1] > 100


def test_what_is_not_known_is_not_counted() -> None:
    right, count = counted(np.array([[1.0, np.nan], [0.5, np.nan]]), np.array([0, 0], np.int64), 1)

    assert (right.tolist(), count.tolist()) == ([[1.5, 0.0]], [[2.0, 0.0]])
    assert known_mean(np.array([[1.0, np.nan], [0.5, np.nan]]), 0).tolist() == [0.75, 0.0]


def test_learning_in_place_and_by_a_copy_come_to_the_same() -> None:
    start = beliefs([[8.0, 5.0]], [[10.0, 10.0]])
    outcomes = [(0, 0, 1.0), (0, 1, 0.0), (0, 0, 0.0)]

    copied = start.after(outcomes)
    for one in outcomes:
        start = start.learn(*one)

    assert copied.right.tolist() == start.right.tolist() == [[9.0, 5.0]]
    assert copied.all.tolist() == start.all.tolist() == [[12.0, 11.0]]


def run_of(chance: float, length: int, seed: int) -> list[tuple[int, int, float]]:
    luck = np.random.default_rng(seed).random(length)
    return [(at % 2, 0, float(one < chance)) for at, one in enumerate(luck)]


def test_a_model_that_loses_its_right_answers_is_noticed_and_what_was_before_forgotten() -> None:
    start = beliefs([[900.0, 800.0], [900.0, 800.0]], [[1000.0, 1000.0], [1000.0, 1000.0]])

    after = start.after(run_of(0.5, 150, seed=0))

    assert after.changed == {0}
    assert after.means()[0, 0] < 0.7
    assert after.means()[0, 1] == pytest.approx(start.means()[0, 1], abs=0.03)


def test_a_change_in_one_category_leaves_the_others() -> None:
    start = beliefs([[900.0, 800.0], [900.0, 800.0]], [[1000.0, 1000.0], [1000.0, 1000.0]])
    good = np.random.default_rng(1).random(100) < 0.9

    after = start.after([one for at in range(100) for one in ((0, 0, 0.0), *[(1, 0, float(good[at]))] * 6)][:140])

    assert after.means()[0, 0] < 0.5
    assert after.means()[1, 0] > 0.75


@pytest.mark.parametrize("seed", range(20))
def test_a_model_that_stays_as_it_is_is_let_be(seed: int) -> None:
    start = beliefs([[900.0], [900.0]], [[1000.0], [1000.0]])

    assert start.after(run_of(0.9, 300, seed)).changed == frozenset()


def test_the_better_model_is_drawn_more_and_the_other_still_now_and_then() -> None:
    random = np.random.default_rng(0)
    found = beliefs([[12.0, 10.0]], [[20.0, 20.0]])

    drawn_at = [found.act(0, random) for _ in range(500)]

    assert 5 < sum(drawn_at) < 200
    assert sum(found.act(None, random) for _ in range(500)) > 0
    assert found.spread(0)[0] == pytest.approx(found.spread(None)[0], rel=1)


def test_a_stream_asks_for_one_score_a_query_and_learns_only_from_that() -> None:
    asked: list[tuple[int, int]] = []

    def ask(query: int, model: int) -> float:
        asked.append((query, model))
        return np.nan if query == 3 else float(model == 1)

    start = beliefs([[1.0, 1.0]], [[2.0, 2.0]], pull=2.0)
    chosen = followed(start, np.zeros(200, np.int64), ask, np.random.default_rng(0))

    assert asked == [(query, int(model)) for query, model in enumerate(chosen)]
    assert start.all.tolist() == [[2.0, 2.0]]
    assert np.mean(chosen[100:]) > 0.9


def test_with_drift_the_stream_recovers_and_who_does_not_learn_does_not() -> None:
    found = [streamed(drawn(LEADER[:, :2], seed=seed), seed=seed, drift=True) for seed in range(6)]

    assert np.mean([one.last_fifth for one in found]) > np.mean([one.frozen_last_fifth for one in found])
    assert {(one.labels, one.queries) for one in found} == {(150, 450)}


def test_a_stream_is_played_the_same_again() -> None:
    matrix = drawn(SPECIALISTS)

    assert streamed(matrix, seed=3, drift=True) == streamed(matrix, seed=3, drift=True)
    assert streamed(matrix, seed=3, drift=False) != streamed(matrix, seed=4, drift=False)
    assert streamed(replace(matrix, costs=None), seed=3, drift=False).usd_per_1000 is None
