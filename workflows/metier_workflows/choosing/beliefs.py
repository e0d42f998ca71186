"""What outcomes say of each model in each category: counts, shrunk to the model's own record everywhere, with an eye on changes. `learned` acts by them.

Hierarchical Thompson sampling: a draw from a Beta for each model, at the level of the category, whose prior is the model's record over all categories. As in the
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

from metier_workflows.choosing.matrix import Floats

SHARPENED = 4.0
"""So many times the counts make the Beta that is drawn from."""
LEFT = 0.75
"""The share of right answers that is left after the change that is looked for."""
ALARM = float(np.log(10_000.0))
"""Without a change an alarm comes no sooner than after about 10,000 outcomes of one model (Lorden, 1971)."""
EVERYWHERE = -1
"""The place of all categories together."""
PULLS = np.geomspace(2.0, 1000.0, 32)
"""How many outcomes a record elsewhere may be worth; before anything is seen each is as likely as the next."""
TINY = 1e-12


def _none() -> Floats:
    return np.zeros((0, 0))


@dataclass(frozen=True)
class Beliefs:
    """Counts of right (fractions of scores add up) and of all outcomes, categories by models.

    Attributes:
        pull: the model's record over all categories counts in each of them as so many outcomes.
        suspicion, since_right, since_all: the cumulative sums, and what came since each was zero last: one row a category, and one for all together.
        changed: whose counts went because they changed: category, or `EVERYWHERE`, and model.
    """

    right: Floats
    all: Floats
    pull: float = 20.0
    suspicion: Floats = field(default_factory=_none)
    since_right: Floats = field(default_factory=_none)
    since_all: Floats = field(default_factory=_none)
    changed: frozenset[tuple[int, int]] = frozenset()

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

    def _prior(self, rows: slice | int, everywhere: Floats) -> Floats:
        """What is expected of each model in a category before its own outcomes there."""
        right, count = self.right[rows], self.all[rows]
        over = (right - count * everywhere).sum(axis=-1, keepdims=True)
        harder = over / (count.sum(axis=-1, keepdims=True) + self.pull)
        return np.asarray(np.clip(everywhere + harder, 0.02, 0.98), np.float64)

    def act(self, category: int | None, random: np.random.Generator) -> int:
        """The model whose draw is the highest; by its record over all categories, where there is none."""
        right, count = self._evidence(category)
        sharp = self._sharp(category)
        return int(np.argmax(random.beta(sharp * right, sharp * (count - right))))

    def spread(self, category: int | None) -> Floats:
        """The standard deviation of each model's draw."""
        right, count = self._evidence(category)
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

    def _evidence(self, category: int | None) -> tuple[Floats, Floats]:
        if category is None:
            return self.right.sum(axis=0) + 1, self.all.sum(axis=0) + 2
        prior = self._prior(category, self.everywhere())
        return self.right[category] + self.pull * prior, self.all[category] + self.pull

    def after(self, outcomes: Iterable[tuple[int, int, float]]) -> Beliefs:
        """What is believed after these outcomes (category, model, score 0 to 1), in this order; this one stays as it is."""
        copy = self.copy()
        for category, model, score in outcomes:
            copy = copy.learn(category, model, score)
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
        )

    def learn(self, category: int, model: int, score: float) -> Beliefs:
        """Take in one outcome, *in place*; returns itself, or its successor where a change was seen."""
        expected = self._expected(category, model)
        self.right[category, model] += score
        self.all[category, model] += 1
        for row in (category, EVERYWHERE):
            self._suspect(row, model, expected, score)
        here, everywhere = self.suspicion[[category, EVERYWHERE], model]
        if max(here, everywhere) <= ALARM:
            return self
        return self._forgotten(category if here >= everywhere else EVERYWHERE, model)

    def _expected(self, category: int, model: int) -> float:
        """The least that this model may be thought to be worth in this category: a standard deviation below the mean."""
        right, count = self._evidence(category)
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
        changed = self.changed | {(row, model)}
        return Beliefs(self.right, self.all, self.pull, self.suspicion, self.since_right, self.since_all, changed)

    def _lower(self, model: int, right: float, count: float) -> None:
        """Every category keeps its rank, and counts for its share of the outcomes that came since."""
        total, before = self.all[:, model].sum(), (self.right[:, model].sum() + 1) / (self.all[:, model].sum() + 2)
        share = self.right[:, model] / np.maximum(self.all[:, model], 1)
        self.all[:, model] *= count / total
        self.right[:, model] = self.all[:, model] * np.minimum(share * (right + 1) / (count + 2) / before, 1.0)


def known_mean(scores: Floats, axis: int) -> Floats:
    """The mean of what is known along an axis; 0 where nothing is."""
    known = ~np.isnan(scores)
    mean: Floats = np.nansum(scores, axis=axis) / np.maximum(known.sum(axis=axis), 1)
    return mean


def counted(
    scores: Floats, categories: np.ndarray[tuple[int], np.dtype[np.int64]], width: int
) -> tuple[Floats, Floats]:
    """Right and all of the known scores, categories by models."""
    known = ~np.isnan(scores)
    right, count = (np.zeros((width, scores.shape[1])) for _ in range(2))
    np.add.at(right, categories, np.where(known, scores, 0.0))
    np.add.at(count, categories, known)
    return right, count


def pull_of(scores: Floats, categories: np.ndarray[tuple[int], np.dtype[np.int64]], width: int) -> float:
    """How many outcomes a model's record elsewhere is worth in a category: the variance of how it does beside the others on one query, over that between categories.

    What makes a query or a category hard for all is taken out first, since it favours nobody. Empirical Bayes (Morris, 1983), but over all `PULLS`, each as it is likely: with few
    labels the single most likely one is as good as random, and the extremes either believe every category or none.
    """
    beside = scores - known_mean(scores, 1)[:, None]
    beside = beside - known_mean(beside, 0)
    sums, count = counted(beside, categories, width)
    means = sums / np.maximum(count, 1)
    there = count > 0
    noise = float(np.nansum((beside - means[categories]) ** 2)) / max(float(count.sum() - there.sum()), 1.0)
    if noise < TINY:
        return float(PULLS[-1])
    spread = noise / PULLS[:, None] + noise / count[there]
    likely = -0.5 * (np.log(spread) + means[there] ** 2 / spread).sum(axis=1) * (1 - 1 / scores.shape[1])
    weights = np.exp(likely - likely.max())
    return float(np.exp(weights @ np.log(PULLS) / weights.sum()))
