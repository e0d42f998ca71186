"""From a matrix to a router. `metier eval routing` and the promotion of routers call it; what comes out is a `learned.LearnedRouter`.

Do no harm. The best single model is kept unless something else was better *on rows that it was not fitted on*, and surely not half a point less often right: choosing by
task against the best single model, and asking several against it too. The best single model is chosen on other rows as well, for that: of models that are about equal, the one that
did best on some rows looks better on them than it is. Worth is the score less the cost at one exchange rate: what the best single model costs for a query (or what
models cost on average, where that is more) is worth half a point. So the most that saving can be traded for is that half point, and a plan that asks more has to bring more. Nothing
else is set by hand, and nothing is set by data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from metier_workflows.choosing.counting import known_mean
from metier_workflows.choosing.features import Embedder, HashedText, embedded
from metier_workflows.choosing.learned import LearnedRouter
from metier_workflows.choosing.matrix import Floats, Matrix
from metier_workflows.choosing.plans import Past, Plan, Search
from metier_workflows.choosing.skills import Skills, Whole, fit_skills, numbered
from metier_workflows.choosing.votes import Votes, coded, fit_votes

RATE = 0.005
"""Score that the price of the best single model is worth."""
LEAST_LABELS = 120
"""Below so many labelled queries the best single model is kept: measured in the references, choosing by category loses there."""
HARM = 0.005
"""Score that may not be lost: "never more than half a point below the best single model" is what a router promises."""
SURE_AT = 2.0
"""Standard errors that a gain must be above that loss: one-sided 97.7 %."""
FOLDS = 4
THRIFT = tuple(float(one) for one in np.geomspace(1, 300, 24))
COMBINED_THRIFT = (1.0, 4.0, 16.0)
"""By so much the exchange rate is raised in looking for what can be saved."""
PLAN_PULL = 100.0
"""What holds everywhere counts in a category as at least so many of its queries, when plans are compared."""


@dataclass(frozen=True)
class Held:
    """What is thought of each training row by a model that was fitted without it: chances and vote weights, queries by models."""

    chances: Floats
    weights: Floats | None


@dataclass(frozen=True)
class Rows:
    """Training rows with all that is computed of them once."""

    matrix: Matrix
    categories: Whole
    known: tuple[str, ...]
    vectors: Floats
    codes: Whole | None

    def some(self, at: Whole) -> Rows:
        """These rows only."""
        codes = None if self.codes is None else self.codes[at]
        return Rows(self.matrix.rows(at.tolist()), self.categories[at], self.known, self.vectors[at], codes)

    def skills(self) -> Skills:
        """Skills learned on these rows."""
        return fit_skills(self.matrix, self.categories, len(self.known), self.vectors)

    def votes(self, skills: Skills) -> Votes | None:
        """Vote weights learned on these rows; None where no answers are known, or one model is alone."""
        if self.codes is None or self.codes.shape[1] < 2:
            return None
        chances = skills.without_text(self.categories)
        return fit_votes(self.codes, self.matrix.scores, chances, self.categories, len(self.known))


def fit(matrix: Matrix, *, embedder: Embedder | None = None, seed: int = 0) -> LearnedRouter:
    """The router that these rows speak for. The same rows, embedder and seed give the same one.

    Raises:
        ValueError: the matrix has no row or no model.
    """
    return Fit(matrix, embedder=embedder, seed=seed).router()


class Fit:
    """One fit, step by step; `thrifty` uses what `router` learned once more."""

    def __init__(self, matrix: Matrix, *, embedder: Embedder | None = None, seed: int = 0) -> None:
        matrix = matrix.rows(np.flatnonzero(~np.isnan(matrix.scores).all(axis=1)).tolist())
        if not len(matrix) or not matrix.models:
            raise ValueError("there is nothing to learn from: no query has a known score of any model")
        self._embedder: Embedder = embedder or HashedText()
        known = tuple(sorted(set(matrix.categories)))
        codes = None if matrix.answers is None else coded(matrix.answers)
        vectors = embedded(self._embedder, matrix.texts)
        self._rows = Rows(matrix, numbered(matrix.categories, known), known, vectors, codes)
        self._random = np.random.default_rng(seed)
        self._skills = self._rows.skills()
        self._prices = self._skills.prices(np.full(1, -1))[0]
        self._best = best_single(matrix)
        self._rate = RATE / max(float(self._prices[self._best]), float(self._prices.mean()), 1e-12)

    def router(self) -> LearnedRouter:
        """The best single model, or more where more is certain."""
        kept = self._kept()
        if not self._enough:
            return kept
        alone, single = self.alone(), self._single(self._rate)
        kept = kept.with_routes(routed=safe(single, alone, self._rate))
        if self._held.weights is None:
            return kept
        seen = self._crossed(self._rate)
        rival = single if kept.routed else alone
        if not safe(seen, alone, self._rate) or worth(seen, self._rate).mean() < worth(rival, self._rate).mean():
            return kept
        return kept.with_plans(
            self._rows.votes(self._skills), self._plans(np.arange(len(self._rows.matrix)), self._rate)
        )

    def thrifty(self) -> tuple[LearnedRouter, LearnedRouter]:
        """Routers that save as much as they can and yet are as often right as the best single model, on held-out training rows: one that asks one model, and one that may combine.

        A USD is worth more and more score, until that is no longer so. The best single model is asked where not even the first step is.
        """
        kept = self._kept()
        if not self._enough:
            return kept, kept
        enough = float(self.alone().scores.mean())
        dear = [times for times in THRIFT if float(self._single(times * self._rate).scores.mean()) >= enough]
        one = kept.priced(max(dear) * self._rate).with_routes(routed=True) if dear else kept
        if self._held.weights is None:
            return one, one
        paid = float(self._single(one.rate).costs.mean()) if dear else float(self.alone().costs.mean())
        found = {times * self._rate: self._crossed(times * self._rate) for times in COMBINED_THRIFT}
        cheap = [
            rate
            for rate, went in found.items()
            if float(went.scores.mean()) >= enough and float(went.costs.mean()) < paid
        ]
        if not cheap:
            return one, one
        rate = max(cheap)
        return one, kept.priced(rate).with_plans(
            self._rows.votes(self._skills), self._plans(np.arange(len(self._rows.matrix)), rate)
        )

    @property
    def _enough(self) -> bool:
        return len(self._rows.matrix) >= LEAST_LABELS and len(self._rows.matrix.models) > 1

    def _kept(self) -> LearnedRouter:
        """The best single model, always."""
        matrix = self._rows.matrix
        return LearnedRouter(
            matrix.models, self._rows.known, self._skills, self._best, self._rate, len(matrix), self._embedder
        )

    def alone(self) -> Outcome:
        """How the best single model went, where each fold's was chosen on the other folds."""
        best = np.zeros(len(self._folds), np.int64)
        for fold in range(FOLDS):
            best[self._folds == fold] = best_single(
                self._rows.matrix.rows(np.flatnonzero(self._folds != fold).tolist())
            )
        each = np.arange(len(best))
        return Outcome(self._scores[each, best], self._costs[each, best])

    @cached_property
    def _costs(self) -> Floats:
        costs = self._rows.matrix.costs
        return np.ones(self._rows.matrix.scores.shape) if costs is None else costs

    @cached_property
    def _scores(self) -> Floats:
        """The scores; what is not known is as likely as it was thought to be."""
        scores = self._rows.matrix.scores
        return np.where(np.isnan(scores), self._held.chances, scores)

    @cached_property
    def _folds(self) -> Whole:
        """A fold for each row, alike within each category."""
        order = np.lexsort((self._random.random(len(self._rows.matrix)), self._rows.categories))
        folds = np.empty(len(order), np.int64)
        folds[order] = np.arange(len(order)) % FOLDS
        return folds

    @cached_property
    def _held(self) -> Held:
        folds, shape = self._folds, self._rows.matrix.scores.shape
        chances, weights = np.zeros(shape), np.zeros(shape)
        voted = False
        for fold in range(FOLDS):
            out = np.flatnonzero(folds == fold)
            rows = self._rows.some(np.flatnonzero(folds != fold))
            skills = rows.skills()
            chances[out] = skills.chances(self._rows.categories[out], self._rows.vectors[out])
            votes = rows.votes(skills)
            if votes is not None:
                voted = True
                weights[out] = votes.weights(chances[out], self._rows.categories[out])
        return Held(chances, weights if voted else None)

    def _single(self, rate: float) -> Outcome:
        """How choosing one model by task went, on rows that it was not fitted on."""
        chosen = (self._held.chances - rate * self._skills.prices(self._rows.categories)).argmax(axis=1)
        each = np.arange(len(chosen))
        return Outcome(self._scores[each, chosen], self._costs[each, chosen])

    def _past(self, rate: float) -> Past:
        codes, weights = self._rows.codes, self._held.weights
        if codes is None or weights is None:
            raise ValueError("without answers nothing can be combined")
        return Past(codes, self._scores, self._costs, weights, rate, float(np.median(weights.max(axis=1))))

    def _plans(self, at: Whole, rate: float) -> tuple[Plan, ...]:
        """A plan for each category, and the general one last, as these rows have it."""
        past, pull = self._past(rate), max(PLAN_PULL, self._skills.beliefs.pull)
        search = Search(past.rows(at), self._rows.categories[at], pull, np.random.default_rng(0))
        general = search.general()
        return (*(search.within(category, general) for category in range(len(self._rows.known))), general)

    def _crossed(self, rate: float) -> Outcome:
        """How plans go that were found at this rate on the other half of the rows."""
        past, folds = self._past(rate), self._folds
        scores, costs = np.zeros(len(past)), np.zeros(len(past))
        for half in (0, 1):
            out = np.flatnonzero(folds % 2 == half)
            plans = self._plans(np.flatnonzero(folds % 2 != half), rate)
            for category in range(len(self._rows.known)):
                rows = out[self._rows.categories[out] == category]
                played = past.rows(rows).play(plans[category])
                scores[rows], costs[rows] = played.scores, played.costs
        return Outcome(scores, costs)


@dataclass(frozen=True)
class Outcome:
    """What a way to choose came to on each row: score and cost."""

    scores: Floats
    costs: Floats


def worth(outcome: Outcome, rate: float) -> Floats:
    """Score less cost, by row."""
    return outcome.scores - rate * outcome.costs


def safe(new: Outcome, old: Outcome, rate: float) -> bool:
    """Whether the new way is worth more than the old one and right no less often, and surely (paired, one-sided) not less often right by `HARM`.

    Not "surely better": what is likely better and at worst half a point worse is a good bet, and that test has the power to see it. With few rows both come to the same.
    """
    gain = new.scores - old.scores
    error = float(gain.std(ddof=1)) / np.sqrt(len(gain))
    better = float((worth(new, rate) - worth(old, rate)).mean()) > 0 and float(gain.mean()) >= 0
    return bool(better and float(gain.mean()) + HARM > SURE_AT * error)


def best_single(matrix: Matrix) -> int:
    """The model with the highest mean of its known scores; of equal ones the cheapest, then the first."""
    means = known_mean(matrix.scores, 0)
    prices: Sequence[float] = [0.0] * len(means) if matrix.costs is None else matrix.costs.mean(axis=0).tolist()
    return min(range(len(means)), key=lambda model: (-round(float(means[model]), 12), prices[model], model))
