"""How likely each model answers a task right, and what that costs: learned from a matrix. `votes` and `plans` build on it, `learned` asks it.

Four levels, each shrunk to the one above it: the model's record over all tasks, its record in the category (`beliefs`), that in a cluster of the category where there are such (`clusters`), and
what the text says beyond that: ridge regression, on the embedded text, of how each model does beside the others (that a task is hard for all favours nobody). How strongly each is shrunk is read off the training rows:
the first two by the spread between categories and between clusters, the last by the exact leave-one-out error (the PRESS statistic, Allen, 1974), which may also say that the text says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from metier_workflows.choosing import clusters
from metier_workflows.choosing.beliefs import Beliefs, pull_of
from metier_workflows.choosing.clusters import Clusters, Counts
from metier_workflows.choosing.counting import beside, counted
from metier_workflows.choosing.matrix import Floats, Matrix

Whole = NDArray[np.int64]
RIDGES = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
SURE = 0.02
"""No chance is said to be nearer to 0 or 1."""
COST_PULL = 20.0
"""A model's mean cost everywhere counts in each category as so many queries."""


@dataclass(frozen=True)
class Skills:
    """Chances by category, models and text.

    Attributes:
        beliefs: counts by category and model.
        slopes: what the text adds: numbers of the vector by models; `centre` is the mean vector. Both empty where it adds nothing.
        costs: USD a query, categories by models, with the mean over all as the last row; None where no costs are known.
        clusters: where a text belongs within its category.
    """

    beliefs: Beliefs
    slopes: Floats
    centre: Floats
    costs: Floats | None
    clusters: Clusters = field(default_factory=Clusters)

    def chances(self, categories: Whole, vectors: Floats) -> Floats:
        """Of each model for each task, 0 to 1; -1 is a category that is not known."""
        means = means_of(self.beliefs, categories, self.clusters.of_all(categories, vectors))
        return np.clip(means + self.beyond(vectors), SURE, 1 - SURE)

    def without_text(self, categories: Whole) -> Floats:
        """The same of tasks whose texts are not looked at."""
        return np.clip(means_of(self.beliefs, categories, np.full(len(categories), -1)), SURE, 1 - SURE)

    def beyond(self, vectors: Floats) -> Floats:
        """What the text adds to the category's mean."""
        beyond: Floats = np.zeros(len(self.beliefs.right.T))
        if self.slopes.size:
            beyond = (vectors - self.centre) @ self.slopes
        return beyond

    def prices(self, categories: Whole) -> Floats:
        """What each model is thought to cost for each task: USD, or 1 a call where no costs are known."""
        return np.ones((len(categories), self.beliefs.right.shape[1])) if self.costs is None else self.costs[categories]

    def believing(self, beliefs: Beliefs) -> Skills:
        """The same with other counts."""
        return replace(self, beliefs=beliefs)


def means_of(beliefs: Beliefs, categories: Whole, found: Whole) -> Floats:
    """What is believed of each model on tasks of these categories and clusters (-1: none)."""
    means = np.vstack([beliefs.means(), beliefs.everywhere()])[categories]
    means[found >= 0] = beliefs.cluster_means()[found[found >= 0]]
    return np.asarray(means, np.float64)


def fit_beliefs(scores: Floats, categories: Whole, width: int, vectors: Floats) -> tuple[Beliefs, Clusters]:
    """Counts of these rows by category and, where that is worth something, by cluster of their embedded texts."""
    right, count = counted(scores, categories, width)
    beliefs = Beliefs(right, count, pull_of(scores, categories, width))
    found = clusters.found(beside(scores - beliefs.means()[categories]), categories, vectors)
    if not len(found):
        return beliefs, found
    below = counted(scores, found.of_all(categories, vectors), len(found))
    return replace(beliefs, below=Counts(*below, found.parents, found.pulls)), found


def fit_skills(matrix: Matrix, categories: Whole, width: int, vectors: Floats) -> Skills:
    """Learn from these rows; `categories` are their numbers, below `width`, and `vectors` their embedded texts."""
    beliefs, found = fit_beliefs(matrix.scores, categories, width, vectors)
    means, centre = means_of(beliefs, categories, found.of_all(categories, vectors)), vectors.mean(axis=0)
    slopes = _ridge(vectors - centre, np.nan_to_num(beside(matrix.scores - means)))
    return Skills(beliefs, slopes, centre if slopes.size else np.zeros(0), _costs(matrix, categories, width), found)


def _ridge(vectors: Floats, left: Floats) -> Floats:
    """Slopes at the ridge with the least leave-one-out error; none, where that is not below what is left without them."""
    values, axes = np.linalg.eigh(vectors.T @ vectors)
    turned = vectors @ axes
    shadow = turned.T @ left
    best, slopes = float((left**2).sum()), np.zeros((0, left.shape[1]))
    for ridge in RIDGES:
        shrunk = 1 / (np.maximum(values, 0.0) + ridge)
        lever = 1 / len(left) + (turned**2) @ shrunk
        error = float(
            (((left - turned @ (shadow * shrunk[:, None])) / (1 - np.minimum(lever, 0.99))[:, None]) ** 2).sum()
        )
        if error < best:
            best, slopes = error, axes @ (shadow * shrunk[:, None])
    return slopes


def _costs(matrix: Matrix, categories: Whole, width: int) -> Floats | None:
    if matrix.costs is None:
        return None
    mean = matrix.costs.mean(axis=0)
    sums, count = np.zeros((width, len(mean))), np.bincount(categories, minlength=width)[:, None]
    np.add.at(sums, categories, matrix.costs)
    return np.vstack([(sums + COST_PULL * mean) / (count + COST_PULL), mean])


def numbered(categories: Sequence[str], known: Sequence[str]) -> Whole:
    """The number of each category among the known ones; -1 where it is none of them."""
    place = {name: at for at, name in enumerate(known)}
    return np.array([place.get(name, -1) for name in categories], dtype=np.int64)
