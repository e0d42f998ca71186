"""The level below the category: kinds of task that their texts tell apart, and that models do differently on. `skills` finds them, `beliefs` counts by them.

Within a category, k-means on the embedded texts (Lloyd, 1982) says which tasks are alike; the scores say whether that is worth anything. They are weighed by the marginal
likelihood of how each model does beside the others, with clusters of any strength against none: clusters stand only where that is `CONVINCED` times more
likely. So nobody sets their number, and where texts say nothing beyond the category there are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from metier_workflows.choosing.counting import PULLS, TINY, known_mean, likely_pull
from metier_workflows.choosing.matrix import Floats

Whole = NDArray[np.int64]
NUMBERS = (2, 4, 8)
"""So many clusters of a category are tried: one is none, and each step halves what each can learn from."""
FEWEST = 15
"""Queries for each cluster, at the least: with fewer, a score of 0 or 1 says next to nothing of where a model is better."""
CONVINCED = float(np.log(20.0))
"""The log of how much likelier clusters must be than none: 20 times is what Kass and Raftery (1995) call strong."""
STEPS = 10
"""Of k-means: after these, few tasks change their cluster."""


@dataclass(frozen=True)
class Clusters:
    """Those of all categories; none at first.

    Attributes:
        centres: clusters by numbers of the vector.
        parents: the category of each.
        pulls: what holds in the rest of the category counts in each as so many outcomes.
    """

    centres: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    parents: Whole = field(default_factory=lambda: np.zeros(0, np.int64))
    pulls: Floats = field(default_factory=lambda: np.zeros(0))

    def __len__(self) -> int:
        return len(self.parents)

    def of(self, category: int, vector: Floats) -> int:
        """The cluster of a task: the nearest of its category's; -1 where that has none."""
        near = np.flatnonzero(self.parents == category)
        return int(near[_nearest(vector[None], self.centres[near])[0]]) if len(near) else -1

    def of_all(self, categories: Whole, vectors: Floats) -> Whole:
        """The same of many tasks."""
        found = np.full(len(categories), -1, np.int64)
        for category in np.unique(self.parents):
            rows, near = np.flatnonzero(categories == category), np.flatnonzero(self.parents == category)
            found[rows] = near[_nearest(vectors[rows], self.centres[near])]
        return found


def found(beside: Floats, categories: Whole, vectors: Floats) -> Clusters:
    """The clusters that these rows speak for. `beside`: how each model did beside the others and its mean, queries by models; NaN where that is not known."""
    kept = [
        (category, *best)
        for category in np.unique(categories[categories >= 0]).tolist()
        if (best := _within(beside[categories == category], vectors[categories == category])) is not None
    ]
    if not kept:
        return Clusters()
    sizes = [len(centres) for _, centres, _ in kept]
    return Clusters(
        np.vstack([centres for _, centres, _ in kept]),
        np.repeat(np.array([category for category, _, _ in kept], np.int64), sizes),
        np.repeat(np.array([pull for _, _, pull in kept]), sizes),
    )


def _within(beside: Floats, vectors: Floats) -> tuple[Floats, float] | None:
    """The likeliest clusters of one category, with their pull; None where none convince."""
    best, kept = CONVINCED + float(np.log(len(NUMBERS))), None
    for centres in _tried(vectors):
        likely = likelihoods(beside, _nearest(vectors, centres), len(centres))
        evidence = float(likely.max() + np.log(np.exp(likely - likely.max()).mean())) if likely.max() > 0 else 0.0
        if evidence > best:
            best, kept = evidence, (centres, likely_pull(likely))
    return kept


def _tried(vectors: Floats) -> Iterator[Floats]:
    yield from (k_means(vectors, number) for number in NUMBERS if len(vectors) >= FEWEST * number)


def likelihoods(beside: Floats, groups: Whole, width: int) -> Floats:
    """For each of `PULLS`: how much likelier, in nats, group means are that differ as it says than ones that do not.

    Models that err together are one witness: their number is taken as what it is worth, (sum of eigenvalues)^2 / (sum of their squares).
    """
    beside = beside - known_mean(beside, 0)
    known = ~np.isnan(beside)
    left = np.where(known, beside, 0.0)
    moments = left.T @ left
    total, noise = float(np.trace(moments)), float(np.trace(moments)) / max(int(known.sum()), 1)
    if noise < TINY:
        return np.full(len(PULLS), -np.inf)
    member = (groups == np.arange(width)[:, None]).astype(np.float64)
    sums, count = member @ left, member @ known
    there = count > 0
    means, flat = sums[there] / count[there], noise / count[there]
    spread = noise / PULLS[:, None] + flat
    each = 0.5 * (np.log(flat / spread) + means**2 * (1 / flat - 1 / spread)).sum(axis=1)
    return np.asarray(each * total**2 / float((moments**2).sum()) / len(moments), np.float64)


def k_means(vectors: Floats, number: int) -> Floats:
    """Centres of so many clusters, or of fewer where texts are the same; the first ones are far apart (k-means++, Arthur and Vassilvitskii, 2007), by draws that are always the same."""
    centres = _far_apart(vectors, number, np.random.default_rng(0))
    for _ in range(STEPS):
        nearest = _nearest(vectors, centres)
        member = (nearest == np.arange(len(centres))[:, None]).astype(np.float64)
        size = member.sum(axis=1)
        centres = (member @ vectors)[size > 0] / size[size > 0, None]
    return centres


def _far_apart(vectors: Floats, number: int, random: np.random.Generator) -> Floats:
    chosen = [int(random.integers(len(vectors)))]
    away = np.full(len(vectors), np.inf)
    for _ in range(number - 1):
        away = np.minimum(away, ((vectors - vectors[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(random.choice(len(vectors), p=away / away.sum())) if away.sum() > TINY else chosen[-1])
    return np.array(vectors[chosen], np.float64)


def _nearest(vectors: Floats, centres: Floats) -> Whole:
    return np.asarray(((centres**2).sum(axis=1) - 2 * vectors @ centres.T).argmin(axis=1), np.int64)


@dataclass(frozen=True)
class Counts:
    """Outcomes by cluster: of right ones (fractions of scores add up) and of all, clusters by models; see `Clusters` for the others."""

    right: Floats
    all: Floats
    parents: Whole
    pulls: Floats

    def evidence(self, cluster: int, right: Floats, count: Floats) -> tuple[Floats, Floats]:
        """Right and all in a cluster, given those of its category: its own, and of the rest at most `pulls`, moved by how hard the cluster is for everybody.

        At an endless pull that is the category's evidence: then there might as well be no clusters.
        """
        own, seen, pull = self.right[cluster], self.all[cluster], float(self.pulls[cluster])
        rest = np.maximum(count - seen, TINY)
        mean = np.clip((right - own) / rest, 0.0, 1.0)
        harder = float((own - seen * mean).sum()) / (float(seen.sum()) + pull)
        held = np.minimum(rest, pull)
        return own + held * np.clip(mean + harder, 0.02, 0.98), seen + held

    def learn(self, cluster: int, model: int, score: float) -> None:
        """Take in one outcome, in place."""
        self.right[cluster, model] += score
        self.all[cluster, model] += 1

    def forget(self, category: int, model: int) -> None:
        """Let go, in place, what was known of a model in a category's clusters; below 0: in all."""
        rows = self.parents == category if category >= 0 else slice(None)
        self.right[rows, model] = self.all[rows, model] = 0.0

    def copy(self) -> Counts:
        """One that may be changed without this one changing."""
        return Counts(self.right.copy(), self.all.copy(), self.parents, self.pulls)
