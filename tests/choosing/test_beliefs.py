"""What outcomes do to beliefs: shrinking, drawing, and noticing that a model changed. And a stream of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from metier_workflows.choosing.beliefs import EVERYWHERE, Beliefs, pull_of
from metier_workflows.choosing.counting import counted, known_mean
from metier_workflows.choosing.matrix import Floats
from metier_workflows.choosing.streaming import followed, streamed

from .kit import LEADER, SPECIALISTS, drawn, first


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


def pulls(chances: Floats, rows: int) -> list[float]:
    """What is read off the first rows of eight matrices."""
    few = [first(drawn(chances, seed=seed), rows) for seed in range(8)]
    return [
        pull_of(one.scores, np.array([int(name[5:]) for name in one.categories], np.int64), len(chances)) for one in few
    ]


def test_with_few_labels_neither_every_category_is_believed_nor_none() -> None:
    alike, many = pulls(np.full((4, 3), 0.7), 60), pulls(np.full((60, 2), 0.7), 300)

    assert all(50 < one < 500 for one in alike)
    assert all(45 < one < 500 for one in many)
    assert max(pulls(np.array([[0.9, 0.5], [0.5, 0.9]]), 60)) < 10


def test_models_that_never_differ_are_the_same_in_every_category() -> None:
    same = drawn(np.full((3, 4), 0.7), together=True)

    assert pull_of(same.scores, np.array([int(name[5:]) for name in same.categories], np.int64), 3) == 1000


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

    assert after.changed == {(EVERYWHERE, 0)}
    assert [after.has_changed(model, 1) for model in (0, 1)] == [True, False]
    assert after.means()[0, 0] < 0.7
    assert after.means()[0, 1] == pytest.approx(start.means()[0, 1], abs=0.03)


def test_after_a_change_what_comes_counts_anew_and_is_not_forgotten_at_once() -> None:
    start = beliefs([[900.0, 800.0], [900.0, 800.0]], [[1000.0, 1000.0], [1000.0, 1000.0]])
    seen = [start]

    for outcome in run_of(0.5, 150, seed=0):
        seen.append(seen[-1].after([outcome]))

    at = next(n for n, one in enumerate(seen) if one.changed)
    assert seen[at].suspicion[:, 0].tolist() == [0.0, 0.0, 0.0]
    assert seen[at].since_all[:, 0].tolist() == [0.0, 0.0, 0.0]
    assert seen[at + 1].all[:, 0].sum() == pytest.approx(seen[at].all[:, 0].sum() + 1)


def test_a_model_that_changed_everywhere_keeps_the_rank_of_its_categories_and_little_of_its_counts() -> None:
    start = beliefs([[950.0, 800.0], [850.0, 800.0]], [[1000.0, 1000.0], [1000.0, 1000.0]])

    after = start
    for outcome in run_of(0.4, 60, seed=0):
        after = after if after.changed else after.after([outcome])

    assert after.changed == {(EVERYWHERE, 0)}
    assert 10 < after.all[:, 0].sum() < 60
    assert 0.2 < after.everywhere()[0] < 0.6
    shares = after.right[:, 0] / after.all[:, 0]
    assert shares[0] > shares[1] + 0.02


def test_a_change_in_one_category_leaves_the_others() -> None:
    start = beliefs([[900.0, 800.0], [900.0, 800.0]], [[1000.0, 1000.0], [1000.0, 1000.0]])
    good = (np.random.default_rng(1).random((100, 6)) < 0.9).astype(float)

    after = start.after(
        [one for at in range(100) for one in ((0, 0, 0.0), *((1, 0, float(one)) for one in good[at]))][:140]
    )

    assert after.means()[0, 0] < 0.5
    assert after.means()[1, 0] > 0.75
    assert after.changed == {(0, 0)}
    assert (after.has_changed(0, 0), after.has_changed(0, 1), after.has_changed(1, 0)) == (True, False, False)


def test_a_model_that_changed_in_one_category_is_explored_there_and_nowhere_else() -> None:
    same = beliefs([[90.0, 80.0], [90.0, 80.0]], [[100.0, 100.0], [100.0, 100.0]])
    here, everywhere = (replace(same, changed=frozenset({(row, 0)})) for row in (0, EVERYWHERE))

    assert here.spread(0)[0] == pytest.approx(2 * same.spread(0)[0], rel=0.02)
    assert here.spread(1).tolist() == same.spread(1).tolist()
    assert here.spread(0)[1] == same.spread(0)[1]
    assert (everywhere.spread(1)[0], everywhere.spread(0)[0]) == (here.spread(0)[0], here.spread(0)[0])


def test_a_model_that_was_never_as_good_as_a_few_labels_made_it_look_has_not_changed() -> None:
    lucky = beliefs([[19.0, 10.0], [19.0, 10.0]], [[20.0, 20.0], [20.0, 20.0]], pull=5.0)
    known = beliefs([[475.0, 250.0], [475.0, 250.0]], [[500.0, 500.0], [500.0, 500.0]], pull=5.0)
    runs = [run_of(0.7, 100, seed) for seed in range(20)]

    assert sum(bool(lucky.after(run).changed) for run in runs) <= 2
    assert sum(bool(known.after(run).changed) for run in runs) >= 15


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
    chosen = followed(start, np.zeros(200, np.int64), ask, np.random.default_rng(0), np.full(200, -1))

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
