"""How models stand on one set of queries: a category, or all. Pure; `comparison` calls it, `verdicts` judges what it returns.

A model is ranked where it has a score for at least half of the queries; two models are compared on the queries for which both have one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from metier_workflows.choosing.matrix import Floats, Matrix
from metier_workflows.choosing.statistics import LEVEL, Difference, Estimate, holm, mean_of, paired, skewed_mean_of


@dataclass(frozen=True)
class Standing:
    """One model: its accuracy, its cost by query in USD, and of the queries with a score the share that it answered at all. None: not known."""

    model: str
    accuracy: Estimate | None
    cost_usd: Estimate | None
    answered: float | None


@dataclass(frozen=True)
class Contrast:
    """The first model less the second. `p` is corrected for all pairs that were tested along with it."""

    first: str
    second: str
    difference: Difference
    p: float

    @property
    def significant(self) -> bool:
        """The two are not equally good."""
        return self.p < 1 - LEVEL

    def of(self, model: str) -> Contrast:
        """The same with this one of the two first."""
        if model == self.first:
            return self
        one = self.difference
        return Contrast(self.second, self.first, Difference(-one.value, -one.high, -one.low, one.n, one.p), self.p)


@dataclass(frozen=True)
class Segment:
    """The models on these queries.

    Attributes:
        standings: the ranked models, the best first, and cheaper first where equal; then the others.
        ranked: the names of the first.
        contrasts: all pairs of ranked models, the better one first.
        oracle: what asking the right model each time would reach, over the queries for which all ranked models have a score.
        headroom: that less the best model. It is chosen on these same queries, so the headroom is rather a little too small.
    """

    name: str
    queries: int
    standings: tuple[Standing, ...]
    ranked: tuple[str, ...]
    contrasts: tuple[Contrast, ...]
    oracle: Estimate | None
    headroom: Estimate | None

    def standing(self, model: str) -> Standing:
        """Raises `StopIteration` for a model that it does not have."""
        return next(one for one in self.standings if one.model == model)

    def against(self, model: str) -> list[Contrast]:
        """Each other ranked model less this one."""
        return [
            one.of(one.second if one.first == model else one.first)
            for one in self.contrasts
            if model in {one.first, one.second}
        ]


def segment(name: str, matrix: Matrix) -> Segment:
    """The models of a matrix on all of its rows."""
    standings = [_standing(matrix, place) for place in range(len(matrix.models))]
    ranked = [one for one in standings if one.accuracy and 2 * one.accuracy.n >= len(matrix)]
    rest = [one for one in standings if one not in ranked]
    ranked.sort(key=_rank)
    names = tuple(one.model for one in ranked)
    scores = matrix.of(names).scores
    oracle, headroom = _oracle(scores)
    return Segment(name, len(matrix), (*ranked, *rest), names, tuple(_contrasts(names, scores)), oracle, headroom)


def _rank(one: Standing) -> tuple[float, float]:
    return -one.accuracy.value if one.accuracy else 0.0, one.cost_usd.value if one.cost_usd else math.inf


def _standing(matrix: Matrix, place: int) -> Standing:
    known, cost = ~np.isnan(matrix.scores[:, place]), _cost(matrix, place)
    if not known.any():
        return Standing(matrix.models[place], None, cost, None)
    answers = matrix.answers
    answered = None if answers is None else float((answers[known, place] != "").mean())
    return Standing(matrix.models[place], mean_of(matrix.scores[known, place]), cost, answered)


def _cost(matrix: Matrix, place: int) -> Estimate | None:
    """The mean cost of a query. A few dear queries often make most of it."""
    if matrix.costs is None:
        return None
    costs = matrix.costs[:, place]
    known = costs[~np.isnan(costs)]
    return skewed_mean_of(known) if known.size else None


def _contrasts(names: Sequence[str], scores: Floats) -> list[Contrast]:
    found: list[Contrast] = []
    for a, b in combinations(range(len(names)), 2):
        if not np.isnan(scores[:, [a, b]]).any(axis=1).all():
            one = paired(scores[:, a], scores[:, b])
            found.append(Contrast(names[a], names[b], one, one.p))
    return found


def corrected(segments: Sequence[Segment]) -> list[Segment]:
    """The same, with the p of every pair in every one of them corrected for all the others (Holm)."""
    ps = iter(holm([one.p for part in segments for one in part.contrasts]))
    return [replace(part, contrasts=tuple(replace(one, p=next(ps)) for one in part.contrasts)) for part in segments]


def _oracle(scores: Floats) -> tuple[Estimate | None, Estimate | None]:
    complete = scores[~np.isnan(scores).any(axis=1)] if scores.size else scores
    if not complete.size:
        return None, None
    top = complete.max(axis=1)
    return mean_of(top), mean_of(top - complete[:, 0])
