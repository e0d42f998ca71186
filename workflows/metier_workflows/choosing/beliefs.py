"""What outcomes say of each model in each category: counts, shrunk to the model's own record everywhere, with an eye on changes. `learned` acts by them.

Hierarchical Thompson sampling: a draw from a Beta for each model, at the level of the category, whose prior is the model's record over all categories. As in the
reference measurements the posterior is *sharpened*: with four times the counts there is less exploring, which pays where labels were there before.

A model may change. Counts that fade always did not help; so each outcome also moves a *suspicion*, by model and by model in a category: the cumulative sum (Page, 1954) of the
log-likelihood ratio between "a quarter of the right answers is gone" and "as before". Above `ALARM` the old counts go, and what came since the suspicion last was
zero is what is known, and the model is drawn less sharply. `drift` watches for operators, who want few false alarms; here a false one costs a few outcomes of learning.
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


def _none() -> Floats:
    return np.zeros((0, 0))


@dataclass(frozen=True)
class Beliefs:
    """Counts of right (fractions of scores add up) and of all outcomes, categories by models.

    Attributes:
        pull: the model's record over all categories counts in each of them as so many outcomes.
        suspicion, since_right, since_all: the cumulative sums, and what came since each was zero last: one row a category, and one for all together.
        changed: models whose counts went because they changed.
    """

    right: Floats
    all: Floats
    pull: float = 20.0
    suspicion: Floats = field(default_factory=_none)
    since_right: Floats = field(default_factory=_none)
    since_all: Floats = field(default_factory=_none)
    changed: frozenset[int] = frozenset()

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
        sharp = self._sharp()
        return int(np.argmax(random.beta(sharp * right, sharp * (count - right))))

    def spread(self, category: int | None) -> Floats:
        """The standard deviation of each model's draw."""
        right, count = self._evidence(category)
        mean = right / count
        return np.sqrt(mean * (1 - mean) / (self._sharp() * count + 1))

    def _sharp(self) -> Floats:
        """A model that changed is drawn from its bare counts: it was noticed when it did badly, which may have been bad luck."""
        return np.where(self._same, SHARPENED, 1.0)

    @cached_property
    def _same(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return np.array([model not in self.changed for model in range(self.right.shape[1])])

    def _evidence(self, category: int | None) -> tuple[Floats, Floats]:
        if category is None:
            return self.right.sum(axis=0) + 1, self.all.sum(axis=0) + 2
        return self.right[category] + self.pull * self._prior(category, self.everywhere()), self.all[
            category
        ] + self.pull

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
        everywhere = self._suspect(-1, model, expected, score)
        if everywhere or self._suspect(category, model, expected, score):
            return self._forgotten(None if everywhere else category, model)
        return self

    def _expected(self, category: int, model: int) -> float:
        """The mean of this model in this category, from what came before the suspicion began."""
        right, count = self._evidence(category)
        return float(min(max(right[model] / count[model], 0.05), 0.95))

    def _suspect(self, row: int, model: int, expected: float, score: float) -> bool:
        gone = (1 - LEFT) * expected / (1 - expected)
        step = score * np.log(LEFT) + (1 - score) * np.log1p(gone)
        risen = self.suspicion[row, model] + step
        if risen <= 0:
            self.suspicion[row, model] = self.since_right[row, model] = self.since_all[row, model] = 0.0
            return False
        self.suspicion[row, model] = risen
        self.since_right[row, model] += score
        self.since_all[row, model] += 1
        return bool(risen > ALARM)

    def _forgotten(self, category: int | None, model: int) -> Beliefs:
        row = -1 if category is None else category
        right, count = self.since_right[row, model], self.since_all[row, model]
        if category is None:
            self._lower(model, right, count)
        else:
            self.right[category, model], self.all[category, model] = right, count
        rows = slice(None) if category is None else slice(category, category + 1)
        for sums in (self.suspicion, self.since_right, self.since_all):
            sums[rows, model] = 0.0
        return Beliefs(
            self.right, self.all, self.pull, self.suspicion, self.since_right, self.since_all, self.changed | {model}
        )

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

    What makes a query or a category hard for all is taken out first, since it favours nobody. By moments, as in empirical Bayes (Morris, 1983); between 2 and 1,000.
    """
    beside = scores - known_mean(scores, 1)[:, None]
    beside = beside - known_mean(beside, 0)
    sums, count = counted(beside, categories, width)
    means = sums / np.maximum(count, 1)
    noise = float(known_mean(((beside - means[categories]) ** 2).ravel(), 0))
    weight = count / max(float(count.sum()), 1.0)
    between = float((weight * means**2).sum()) - noise * float((weight / np.maximum(count, 1)).sum())
    return float(np.clip(noise / max(between, 1e-9), 2.0, 1000.0))
