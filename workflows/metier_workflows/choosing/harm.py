"""Whether a router does harm: on made matrices, how much more often it is right than the best single model. Pure; `metier bench routing` runs it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from metier_workflows.choosing.fitting import best_single, fit
from metier_workflows.choosing.made import KINDS, made
from metier_workflows.choosing.trial import ANY, ONE, accuracy

JUDGED = 2000
"""Rows that judge, so that what is seen is the router and not their luck."""


@dataclass(frozen=True)
class Case:
    """A made matrix: its kind, how many models and rows to learn from, and the seed."""

    kind: str
    models: int
    rows: int
    seed: int


@dataclass(frozen=True)
class Harm:
    """How a router did on a case, in points of accuracy on the same judging rows.

    Attributes:
        single, combined: more than the model that was best on the training rows.
        single_hindsight, combined_hindsight: more than the model that turned out best on the judging rows.
    """

    case: Case
    single: float
    combined: float
    single_hindsight: float
    combined_hindsight: float


@dataclass(frozen=True)
class Told:
    """A way to choose on one kind of matrix: points more than the best single model, on average, with the standard error of that, and at worst."""

    cases: int
    mean: float
    error: float
    worst: float


def cases(models: Sequence[int], rows: Sequence[int], seeds: int, kinds: Sequence[str] = ()) -> Iterator[Case]:
    """All of them, kind by kind."""
    for kind in kinds or KINDS:
        for width in models:
            for length in rows:
                yield from (Case(kind, width, length, seed) for seed in range(seeds))


def judged(case: Case) -> Harm:
    """Make the matrix, fit, and judge."""
    train, test = made(KINDS[case.kind], case.models, case.rows, JUDGED, case.seed)
    router, means = fit(train), test.scores.mean(axis=0)
    before, hindsight = float(means[best_single(train)]), float(means.max())
    single, combined = (accuracy(test, router, topologies) for topologies in (ONE, ANY))
    points = [100 * (one - other) for other in (before, hindsight) for one in (single, combined)]
    return Harm(case, *points)


def told(found: Sequence[Harm]) -> Mapping[str, Mapping[str, Told]]:
    """By kind and by way; the last kind is all of them."""
    kinds = {
        kind: [one for one in found if one.case.kind == kind] for kind in dict.fromkeys(one.case.kind for one in found)
    }
    ways = ("single", "combined", "single_hindsight", "combined_hindsight")
    return {
        kind: {way: _told([float(getattr(one, way)) for one in some]) for way in ways}
        for kind, some in {**kinds, "all": list(found)}.items()
    }


def _told(points: Sequence[float]) -> Told:
    error = stdev(points) / math.sqrt(len(points)) if len(points) > 1 else 0.0
    return Told(len(points), fmean(points), error, float(np.min(points)))
