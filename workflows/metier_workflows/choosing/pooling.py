"""What a pool of models can reach: an oracle over it, choosing by category, and what each model adds to either. Pure; `comparison` calls it.

An oracle asks the model that is right, if one is. Choosing by category is what a router with known categories does: on nine tenths of the queries it
sees which model is best, and it is counted on the tenth that it did not see; so with models that are alike it gains nothing, as it must be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from metier_workflows.choosing.matrix import Floats
from metier_workflows.choosing.statistics import LEVEL, Estimate, mean_of, z_of

FOLDS = 10
REPEATS = 10
"""So often the queries are split anew."""
PRIOR = 1.0
"""So many queries of a category are thought to have gone as the model does on all, which decides where a category has few."""

Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Drop:
    """What is lost without one model: of the oracle, and of choosing by category (negative: gained)."""

    model: str
    oracle: Estimate
    by_category: Estimate


@dataclass(frozen=True)
class Kept:
    """A pool that grows: the model that adds most to the oracle comes next. What the pool so far reaches."""

    model: str
    oracle: Estimate
    by_category: Estimate


@dataclass(frozen=True)
class Pool:
    """Queries that all models have a score for.

    Attributes:
        models: the names of the columns.
        scores: queries by models, without NaN.
        groups: the number of each query's category.
        seed: decides the splits.
    """

    models: tuple[str, ...]
    scores: Floats
    groups: Whole
    seed: int = 0

    @property
    def enough(self) -> bool:
        """Two models, and two queries, of which one can be chosen by and one counted."""
        return len(self.models) > 1 and len(self.scores) > 1

    def gain(self) -> Estimate:
        """Choosing by category, less the model that is best on all; both chosen on other queries than they are counted on."""
        every, one_group = np.arange(len(self.models)), np.zeros_like(self.groups)
        plain = [_split(self.scores, one_group, folds) for folds in self._folds]
        return over_splits(self._by_category(every) - _scores_of(plain, self.scores, every))

    def drops(self) -> list[Drop]:
        """For each model; the one that is missed least comes first."""
        every = np.arange(len(self.models))
        top, chosen = self.scores.max(axis=1), self._by_category(every)
        found: list[Drop] = []
        for place, model in enumerate(self.models):
            others = np.delete(every, place)
            oracle = mean_of(top - self.scores[:, others].max(axis=1))
            less = over_splits(chosen - self._by_category(others))
            found.append(Drop(model, oracle, less))
        return sorted(found, key=lambda one: (round(one.by_category.value, 3), one.oracle.value))

    def growth(self) -> list[Kept]:
        """From the best model to all; of those that add as much, the better one first."""
        left, taken, top = list(range(len(self.models))), list[int](), np.zeros(len(self.scores))
        alone, found = self.scores.mean(axis=0), list[Kept]()
        while left:
            reach = np.maximum(top[:, None], self.scores[:, left]).mean(axis=0)
            place = max(range(len(left)), key=lambda at: (round(float(reach[at]), 12), alone[left[at]]))
            taken.append(left.pop(place))
            top = np.maximum(top, self.scores[:, taken[-1]])
            found.append(
                Kept(
                    self.models[taken[-1]],
                    mean_of(top),
                    mean_of(self._by_category(np.array(sorted(taken))).mean(axis=0)),
                )
            )
        return found

    def _by_category(self, models: Whole) -> Floats:
        """Splits by queries: what each scores with the model, of these, that is best in its category on the other folds."""
        return _scores_of(self._splits, self.scores, models)

    @cached_property
    def _splits(self) -> list[_Split]:
        return [_split(self.scores, self.groups, folds) for folds in self._folds]

    @cached_property
    def _folds(self) -> list[Whole]:
        return [spread(self.groups, np.random.default_rng((self.seed, number))) for number in range(REPEATS)]


@dataclass(frozen=True)
class _Split:
    """Queries in folds. `worth` is how good each model is in each category as far as a fold may know: folds by categories by models."""

    folds: Whole
    groups: Whole
    worth: Floats

    def scores_of(self, scores: Floats, models: Whole) -> Floats:
        best = models[self.worth[:, :, models].argmax(axis=2)]
        return np.asarray(scores[np.arange(len(scores)), best[self.folds, self.groups]])


def _scores_of(splits: Sequence[_Split], scores: Floats, models: Whole) -> Floats:
    return np.stack([one.scores_of(scores, models) for one in splits])


def over_splits(found: Floats) -> Estimate:
    """The mean of differences, splits by queries, with a 95 % interval that knows that the choice might have been another one.

    Its variance is that of the queries, as `statistics.paired` has it, and twice that between splits, since models that are alike change places
    from split to split. That factor was found by simulation: with it the interval held the true mean in 87 to 99 % of 200 trials for each of
    twelve cases of two or three models that are alike, nearly alike or different, and without that variance in 62 to 97 %.
    """
    n, sums = found.shape[1] + 2, found.sum(axis=1)
    rows = ((found**2).sum(axis=1) + 2) / n - (sums / n) ** 2
    half = z_of(LEVEL) * math.sqrt(float(rows.mean()) / n + 2 * float(found.mean(axis=1).var(ddof=1)))
    middle = float(found.mean())
    return Estimate(middle, max(-1.0, middle - half), min(1.0, middle + half), found.shape[1])


def _split(scores: Floats, groups: Whole, folds: Whole) -> _Split:
    shape = (int(folds.max()) + 1, int(groups.max()) + 1)
    sums, counts = np.zeros((*shape, scores.shape[1])), np.zeros((*shape, 1))
    np.add.at(sums, (folds, groups), scores)
    np.add.at(counts, (folds, groups), 1)
    sums, counts = sums.sum(axis=0) - sums, counts.sum(axis=0) - counts
    whole = sums.sum(axis=1, keepdims=True) / counts.sum(axis=1, keepdims=True)
    return _Split(folds, groups, (sums + PRIOR * whole) / (counts + PRIOR))


def spread(groups: Whole, draws: np.random.Generator) -> Whole:
    """A fold for each query, so that each category is spread over the folds evenly."""
    shuffled = draws.permutation(len(groups))
    order = shuffled[np.argsort(groups[shuffled], kind="stable")]
    folds = np.empty(len(groups), dtype=np.int64)
    folds[order] = np.arange(len(groups)) % min(FOLDS, len(groups))
    return folds
