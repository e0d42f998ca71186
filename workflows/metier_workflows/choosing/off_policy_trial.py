"""How often the intervals of `off_policy` hold the truth, on a matrix where the truth is known. `metier eval off-policy` and the tests run it.

A trial draws queries with replacement, lets one policy log a choice and its score for each, and estimates what another policy would have scored; the truth
is that policy's mean score over the whole matrix. The model of scores is fitted on one half of the log for the other, so that it never sees what it predicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from metier_workflows.choosing.matrix import Floats, Matrix
from metier_workflows.choosing.off_policy import Estimate, Estimates, Logged, estimate

EXPLORED = 0.1
"""The share of the tasks on which epsilon-greedy logging chooses at random."""
LOGGING = ("uniform", "epsilon-greedy", "thompson")
TARGETS = ("best single", "nearly best single", "best of category", "soft category", "middling single")
ESTIMATORS = ("ips", "snips", "doubly_robust", "gain")


@dataclass(frozen=True)
class Population:
    """A matrix as trials need it: scores (queries by models, a missing one counts 0) and the number of each query's category."""

    scores: Floats
    categories: NDArray[np.intp]

    @property
    def shape(self) -> tuple[int, int]:
        """Queries and models."""
        queries, models = self.scores.shape
        return int(queries), int(models)

    def means(self) -> Floats:
        """Each model's mean score in each category: categories by models."""
        return np.array([self.scores[self.categories == one].mean(axis=0) for one in range(self.categories.max() + 1)])


@dataclass(frozen=True)
class Cell:
    """What came of the trials of one pair of policies. `held` counts, by estimator, the intervals that held the truth; `widths` are their means.

    `refused` trials were not judged, for want of support; `effective` is the mean number of effective decisions.
    """

    logging: str
    target: str
    truth: float
    trials: int
    refused: int
    effective: float
    held: Mapping[str, int]
    widths: Mapping[str, float]

    @property
    def judged(self) -> int:
        """Trials in which something was said."""
        return self.trials - self.refused


def population(matrix: Matrix) -> Population:
    """The matrix as trials need it."""
    _, numbers = np.unique(np.array(matrix.categories), return_inverse=True)
    return Population(np.nan_to_num(matrix.scores), numbers.astype(np.intp))


def logging_policies(people: Population, rng: Generator) -> Mapping[str, Floats]:
    """How likely each model is chosen for each query by what makes the log: at random, epsilon-greedy, as Thompson sampling would half way."""
    uniform = np.full(people.shape, 1 / people.shape[1])
    greedy = EXPLORED * uniform + (1 - EXPLORED) * _always(people, _best(people))
    thompson = EXPLORED * uniform + (1 - EXPLORED) * _sampled(people, rng)
    return dict(zip(LOGGING, (uniform, greedy, thompson), strict=True))


def target_policies(people: Population) -> Mapping[str, Floats]:
    """What is to be judged, from near what logs do to far: the best model, the best of each category with and without doubt, and one of the middle."""
    uniform = np.full(people.shape, 1 / people.shape[1])
    by_category = np.eye(people.shape[1])[people.means().argmax(axis=1)][people.categories]
    middle = int(people.scores.mean(axis=0).argsort()[people.shape[1] // 2])
    best = _always(people, _best(people))
    policies = (
        best,
        0.8 * best + 0.2 * by_category,
        by_category,
        0.7 * by_category + 0.3 * uniform,
        _always(people, middle),
    )
    return dict(zip(TARGETS, policies, strict=True))


def _best(people: Population) -> int:
    return int(people.scores.mean(axis=0).argmax())


def _always(people: Population, model: int) -> Floats:
    chances = np.zeros(people.shape)
    chances[:, model] = 1.0
    return chances


def _sampled(people: Population, rng: Generator) -> Floats:
    """How often each model's draw is the highest, where each category's means are known from some fifty answers a model."""
    means = people.means()
    draws = rng.normal(means, np.sqrt(means * (1 - means) / 50 + 1e-4), size=(2000, *means.shape))
    wins = draws.argmax(axis=2)
    shares = np.array([np.bincount(wins[:, one], minlength=means.shape[1]) for one in range(len(means))]) / len(wins)
    return shares[people.categories]


def cells(people: Population, *, trials: int, decisions: int, seed: int) -> Iterator[Cell]:
    """The trials of every pair of policies, one pair after the other."""
    rng = np.random.default_rng(seed)
    targets = target_policies(people)
    for logging, chances in logging_policies(people, rng).items():
        for target, new in targets.items():
            found = [estimate(draw(people, chances, new, decisions, rng)) for _ in range(trials)]
            yield _cell(logging, target, people, chances, new, found)


def draw(people: Population, chances: Floats, new: Floats, decisions: int, rng: Generator) -> Logged:
    """One log."""
    rows = rng.integers(0, people.shape[0], decisions)
    chosen = (chances[rows].cumsum(axis=1) > rng.random((decisions, 1))).argmax(axis=1)
    scores = people.scores[rows, chosen]
    model = cross_fitted(people.categories[rows], chosen, scores, people.shape[1])
    return Logged(chances[rows], chosen, scores, new[rows], model)


def cross_fitted(
    categories: NDArray[np.intp], chosen: NDArray[np.intp], scores: Floats, models: int, prior: float = 10.0
) -> Floats:
    """What each model is thought to score on each decision, by the other half of them: means of a category, drawn to those of the model and to that of all."""
    half = np.arange(len(scores)) % 2
    shape = (int(categories.max()) + 1, models)
    return np.where(
        half[:, None] == 0,
        _means(categories, chosen, scores, half == 1, shape, prior)[categories],
        _means(categories, chosen, scores, half == 0, shape, prior)[categories],
    )


def _means(
    categories: NDArray[np.intp],
    chosen: NDArray[np.intp],
    scores: Floats,
    seen: NDArray[np.bool_],
    shape: tuple[int, int],
    prior: float,
) -> Floats:
    counts, sums = np.zeros(shape), np.zeros(shape)
    np.add.at(counts, (categories[seen], chosen[seen]), 1.0)
    np.add.at(sums, (categories[seen], chosen[seen]), scores[seen])
    overall = (sums.sum() + 0.5 * prior) / (counts.sum() + prior)
    of_model = (sums.sum(axis=0) + prior * overall) / (counts.sum(axis=0) + prior)
    thought: Floats = (sums + prior * of_model) / (counts + prior)
    return thought


def _cell(
    logging: str, target: str, people: Population, chances: Floats, new: Floats, found: Sequence[Estimates]
) -> Cell:
    truth = float((new * people.scores).sum(axis=1).mean())
    gain = truth - float((chances * people.scores).sum(axis=1).mean())
    judged = [one for one in found if one.refused is None]
    intervals = {name: [_named(one, name) for one in judged] for name in ESTIMATORS}
    truths = {name: gain if name == "gain" else truth for name in ESTIMATORS}
    return Cell(
        logging,
        target,
        truth,
        len(found),
        len(found) - len(judged),
        float(np.mean([one.effective for one in found])),
        {name: sum(one.low <= truths[name] <= one.high for one in some) for name, some in intervals.items()},
        {
            name: float(np.mean([one.high - one.low for one in some])) if some else 0.0
            for name, some in intervals.items()
        },
    )


def _named(found: Estimates, name: str) -> Estimate:
    return {"ips": found.ips, "snips": found.snips, "doubly_robust": found.doubly_robust, "gain": found.gain}[
        name
    ] or Estimate(0.0, 0.0, 1.0)
