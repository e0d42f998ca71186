"""What outcomes say of each model in each category: counts, shrunk to the model's own record everywhere, with an eye on changes. `learned` acts by them.

Hierarchical Thompson sampling: a draw from a Beta for each model, at the level of the cluster where the category has some (`clusters`), whose prior is the rest of the category, and else
at the level of the category, whose prior is the model's record over all categories. As in the
reference measurements the posterior is *sharpened*: with four times the counts there is less exploring, which pays where labels were there before.

A model may change. Counts that fade always did not help; so each outcome also moves a *suspicion*, by model and by model in a category: the cumulative sum (Page, 1954) of the
log-likelihood ratio between "a quarter of the right answers is gone" and "as before", where "before" is a standard deviation below what was believed: that a model was never as good as a few
labels made it look is no change. Above `ALARM` the old counts go, and what came since the suspicion last was
zero is what is known, and the model is drawn less sharply where that was seen. `drift` watches for operators, who want few false alarms; here a false one costs a few outcomes of learning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from metier_workflows.choosing.clusters import Counts
from metier_workflows.choosing.counting import PULLS, TINY, beside, counted, known_mean, likely_pull
from metier_workflows.choosing.matrix import Floats

SHARPENED = 4.0
"""So many times the counts make the Beta that is drawn from."""
LEFT = 0.75
"""The share of right answers that is left after the change that is looked for."""
ALARM = float(np.log(10_000.0))
"""Without a change an alarm comes no sooner than after about 10,000 outcomes of one model (Lorden, 1971)."""
EVERYWHERE = -1
"""The place of all categories together."""


def _none() -> Floats:
    return np.zeros((0, 0))


@dataclass(frozen=True)
class Beliefs:
    """Counts of right (fractions of scores add up) and of all outcomes, categories by models.

    Attributes:
        pull: the model's record over all categories counts in each of them as so many outcomes.
        suspicion, since_right, since_all: the cumulative sums, and what came since each was zero last: one row a category, and one for all together.
        changed: whose counts went because they changed: category, or `EVERYWHERE`, and model.
        below: counts by cluster; None where no category has clusters.
    """

    right: Floats
    all: Floats
    pull: float = 20.0
    suspicion: Floats = field(default_factory=_none)
    since_right: Floats = field(default_factory=_none)
    since_all: Floats = field(default_factory=_none)
    changed: frozenset[tuple[int, int]] = frozenset()
    below: Counts | None = None

    def __post_init__(self) -> None:
        if not self.suspicion.size:
            shape = (self.right.shape[0] + 1, self.right.shape[1])
            for name in ("suspicion", "since_right", "since_all"):
                object.__setattr__(self, name, np.zeros(shape))

    def everywhere(self) -> Floats:
        """The mean score of each model over all categories, each model's first two outcomes being one right and one wrong."""
        return np.asarray((self.right.sum(axis=0) + 1) / (self.all.sum(axis=0) + 2), np.float64)

    def means(self) -> Floats:
        """The mean score, categories by models, each shrunk to its model's record everywhere, moved by how hard the category is for all."""
        everywhere = self.everywhere()
        return (self.right + self.pull * self._prior(slice(None), everywhere)) / (self.all + self.pull)

    def cluster_means(self) -> Floats:
        """The mean score, clusters by models, each shrunk to the rest of its category."""
        below = self.below
        if below is None:
            return np.zeros((0, self.right.shape[1]))
        found = [self._evidence(int(category), cluster) for cluster, category in enumerate(below.parents)]
        return np.stack([right / count for right, count in found])

    def _prior(self, rows: slice | int, everywhere: Floats) -> Floats:
        """What is expected of each model in a category before its own outcomes there."""
        right, count = self.right[rows], self.all[rows]
        over = (right - count * everywhere).sum(axis=-1, keepdims=True)
        harder = over / (count.sum(axis=-1, keepdims=True) + self.pull)
        return np.asarray(np.clip(everywhere + harder, 0.02, 0.98), np.float64)

    def act(self, category: int | None, random: np.random.Generator, cluster: int = -1) -> int:
        """The model whose draw is the highest; by its record over all categories, where there is none. `cluster`: -1 is none."""
        right, count = self._evidence(category, cluster)
        sharp = self._sharp(category)
        return int(np.argmax(random.beta(sharp * right, sharp * (count - right))))

    def spread(self, category: int | None, cluster: int = -1) -> Floats:
        """The standard deviation of each model's draw."""
        right, count = self._evidence(category, cluster)
        mean = right / count
        deviation: Floats = np.sqrt(mean * (1 - mean) / (self._sharp(category) * count + 1))
        return deviation

    def has_changed(self, model: int, category: int) -> bool:
        """Whether this model was seen to change in this category, or everywhere."""
        return not self.changed.isdisjoint({(category, model), (EVERYWHERE, model)})

    def _sharp(self, category: int | None) -> Floats:
        """A model that changed is drawn from its bare counts: it was noticed when it did badly, which may have been bad luck."""
        sharp: Floats = self._sharpness[EVERYWHERE if category is None else category]
        return sharp

    @cached_property
    def _sharpness(self) -> Floats:
        rows, models = self.suspicion.shape
        sharp = np.full((rows, models), SHARPENED)
        for row, model in self.changed:
            sharp[slice(None) if row == EVERYWHERE else row, model] = 1.0
        return sharp

    def _evidence(self, category: int | None, cluster: int = -1) -> tuple[Floats, Floats]:
        if category is None:
            return self.right.sum(axis=0) + 1, self.all.sum(axis=0) + 2
        prior = self._prior(category, self.everywhere())
        right, count = self.right[category] + self.pull * prior, self.all[category] + self.pull
        return (right, count) if self.below is None or cluster < 0 else self.below.evidence(cluster, right, count)

    def after(self, outcomes: Iterable[tuple[int, int, float] | tuple[int, int, float, int]]) -> Beliefs:
        """What is believed after these outcomes (category, model, score 0 to 1, cluster if there is one), in this order; this one stays as it is."""
        copy = self.copy()
        for category, model, score, *cluster in outcomes:
            copy = copy.learn(category, model, score, *cluster)
        return copy

    def copy(self) -> Beliefs:
        """One that may be changed by `learn` without this one changing."""
        return replace(
            self,
            right=self.right.copy(),
            all=self.all.copy(),
            suspicion=self.suspicion.copy(),
            since_right=self.since_right.copy(),
            since_all=self.since_all.copy(),
            below=self.below and self.below.copy(),
        )

    def learn(self, category: int, model: int, score: float, cluster: int = -1) -> Beliefs:
        """Take in one outcome, *in place*; returns itself, or its successor where a change was seen."""
        expected = self._expected(category, model, cluster)
        self.right[category, model] += score
        self.all[category, model] += 1
        if self.below is not None and cluster >= 0:
            self.below.learn(cluster, model, score)
        for row in (category, EVERYWHERE):
            self._suspect(row, model, expected, score)
        here, everywhere = self.suspicion[[category, EVERYWHERE], model]
        if max(here, everywhere) <= ALARM:
            return self
        return self._forgotten(category if here >= everywhere else EVERYWHERE, model)

    def _expected(self, category: int, model: int, cluster: int) -> float:
        """The least that this model may be thought to be worth here: a standard deviation below the mean."""
        right, count = self._evidence(category, cluster)
        mean = right[model] / count[model]
        return float(min(max(mean - np.sqrt(mean * (1 - mean) / (count[model] + 1)), 0.05), 0.95))

    def _suspect(self, row: int, model: int, expected: float, score: float) -> None:
        gone = (1 - LEFT) * expected / (1 - expected)
        step = score * np.log(LEFT) + (1 - score) * np.log1p(gone)
        risen = self.suspicion[row, model] + step
        if risen <= 0:
            self.suspicion[row, model] = self.since_right[row, model] = self.since_all[row, model] = 0.0
            return
        self.suspicion[row, model] = risen
        self.since_right[row, model] += score
        self.since_all[row, model] += 1

    def _forgotten(self, row: int, model: int) -> Beliefs:
        right, count = self.since_right[row, model], self.since_all[row, model]
        if row == EVERYWHERE:
            self._lower(model, right, count)
        else:
            self.right[row, model], self.all[row, model] = right, count
        rows = slice(None) if row == EVERYWHERE else slice(row, row + 1)
        for sums in (self.suspicion, self.since_right, self.since_all):
            sums[rows, model] = 0.0
        if self.below is not None:
            self.below.forget(row, model)
        return replace(self, changed=self.changed | {(row, model)})

    def _lower(self, model: int, right: float, count: float) -> None:
        """Every category keeps its rank, and counts for its share of the outcomes that came since."""
        total, before = self.all[:, model].sum(), (self.right[:, model].sum() + 1) / (self.all[:, model].sum() + 2)
        share = self.right[:, model] / np.maximum(self.all[:, model], 1)
        self.all[:, model] *= count / total
        self.right[:, model] = self.all[:, model] * np.minimum(share * (right + 1) / (count + 2) / before, 1.0)


def pull_of(scores: Floats, categories: np.ndarray[tuple[int], np.dtype[np.int64]], width: int) -> float:
    """How many outcomes a model's record elsewhere is worth in a category: the variance of how it does beside the others on one query, over that between categories.

    What makes a query or a category hard for all is taken out first, since it favours nobody. Empirical Bayes (Morris, 1983), but over all `PULLS`, each as it is likely: with few
    labels the single most likely one is as good as random, and the extremes either believe every category or none.
    """
    found = beside(scores)
    found = found - known_mean(found, 0)
    sums, count = counted(found, categories, width)
    means = sums / np.maximum(count, 1)
    there = count > 0
    noise = float(np.nansum((found - means[categories]) ** 2)) / max(float(count.sum() - there.sum()), 1.0)
    if noise < TINY:
        return float(PULLS[-1])
    spread = noise / PULLS[:, None] + noise / count[there]
    likely = -0.5 * (np.log(spread) + means[there] ** 2 / spread).sum(axis=1) * (1 - 1 / scores.shape[1])
    return likely_pull(likely)
