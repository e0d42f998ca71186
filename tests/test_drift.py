"""The drift detector: how often it cries wolf, how soon it sees a change. Not here: who feeds it (`test_routers.py`)."""

from __future__ import annotations

import random
from collections.abc import Iterator

from metier_workflows.choosing.drift import ALARMS_PER_OUTCOME, BASELINE, Baseline, Detector, Drift, baseline


def _tosses(seed: int, chance: float) -> Iterator[float]:
    rng = random.Random(seed)
    while True:
        yield float(rng.random() < chance)


def _until_alarm(detector: Detector, scores: Iterator[float], most: int) -> tuple[int, str | None]:
    for n in range(1, most + 1):
        detector, way = detector.see(next(scores))
        if way:
            return n, way
    return most, None


def test_false_alarms_come_no_oftener_than_is_stated() -> None:
    """At the very edge of the baseline, where they are the likeliest. The mean of 60 runs, cut at 8,000, lies below the true one."""
    edge = Detector(Baseline(0.8, 0.86))
    runs = [_until_alarm(edge, _tosses(seed, 0.8), 8000)[0] for seed in range(60)]
    assert 1 / ALARMS_PER_OUTCOME == 2000
    assert sum(runs) / len(runs) >= 2000


def test_a_model_that_loses_two_fifths_of_its_right_answers_is_found_within_a_hundred() -> None:
    found = [_until_alarm(Detector(Baseline(0.8, 0.88)), _tosses(seed, 0.84 * 0.6), 100) for seed in range(40)]
    assert {way for _, way in found} == {"worse"}


def test_a_model_that_becomes_better_is_found_too() -> None:
    n, way = _until_alarm(Detector(Baseline(0.5, 0.6)), _tosses(1, 0.9), 200)
    assert way == "better"
    assert n < 200


def test_scores_between_right_and_wrong_count_too() -> None:
    assert _until_alarm(Detector(Baseline(0.7, 0.8)), iter([0.3] * 200), 200)[1] == "worse"


def test_without_a_baseline_the_first_outcomes_make_one() -> None:
    drift = Drift()
    assert all(drift.see("coder", "code", 1.0) is None for _ in range(BASELINE))
    ways = [drift.see("coder", "code", 0.0) for _ in range(20)]
    assert "worse" in ways


def test_after_an_alarm_it_begins_anew() -> None:
    drift = Drift({("coder", "code"): (0.9, 500)})
    scores = _tosses(2, 0.3)
    ways = [drift.see("coder", "code", next(scores)) for _ in range(400)]
    assert ways.count("worse") == 1, "the new state is what is normal now"


def test_agents_and_categories_are_told_apart() -> None:
    drift = Drift({("coder", "code"): (0.9, 500), ("coder", "maths"): (0.9, 500)})
    assert drift.see("coder", "code", 0.0) is None
    evidence = drift.evidence()
    assert evidence["coder", "code"] > 0.0
    assert evidence["coder", "maths"] == 0.0


def test_a_baseline_of_few_outcomes_is_wide() -> None:
    few, many = baseline(0.9, 10), baseline(0.9, 1000)
    assert few.low < many.low < 0.9 < many.high < few.high <= 1.0
    assert baseline(1.0, 50).low < 0.95, "fifty right answers do not make one that is never wrong"
