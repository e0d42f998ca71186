"""What a router would have achieved, told from decisions that another one made: inverse propensity scoring, self-normalised, and doubly robust.

`promotion` judges versions by it, `metier eval off-policy` measures how often its intervals hold. Pure.

The intervals are empirical likelihood's for a bounded mean: every value v stays in for which no bet against it would have multiplied its stake by more
than chi-square allows, max over b of sum log(1 + b z_i) <= F/2, where the z_i have mean 0 if v is the value, and b is limited by what z may be at the most and
not by what it was (Owen, Empirical Likelihood, 2001; for logged decisions Karampatziakis, Langford, Mineiro, "Empirical likelihood for contextual
bandits", 2020). Weights are never clipped: a heavy weight that could have come up and did not makes the interval wide, where intervals by variance
or by bootstrap miss the value more often than not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metier_workflows.choosing.matrix import Floats

CONFIDENCE = 0.95
FEWEST = 50.0
"""Fewer effective decisions than this carry no judgement: too few of the log's choices are such as the new router would make."""
LOST = 0.01
"""So much of what the new router would choose may have been impossible when the log was made; the intervals are wider by that."""
FREEDOM = 0.2
"""Degrees of freedom for each effective decision. The variance hangs on the few that are wrong among those that are right: of scores that are 1 with chance p,
Satterthwaite's 2 / (kurtosis - 1) is 0.58 at p = 0.84 and 0.12 at 0.95."""
_Z = 1.959964
"""The normal quantile at 0.975."""


@dataclass(frozen=True)
class Logged:
    """Decisions whose outcome is known, in order: n of them, among k agents.

    Attributes:
        chances: n by k; how likely each agent was to be chosen.
        chosen: which one was, 0 to k - 1.
        scores: how right its answer was, 0 to 1.
        new: n by k; how likely the new router would have chosen each.
        model: n by k; what each agent was thought to score, 0 to 1, by something that has not seen these scores. The better it is, the narrower the interval; a wrong one biases nothing.
    """

    chances: Floats
    chosen: NDArray[np.intp]
    scores: Floats
    new: Floats
    model: Floats

    @property
    def lost(self) -> float:
        """How much of what the new router would choose could not have been chosen then, 0 to 1."""
        return float(np.where(self.chances > 0, 0.0, self.new).sum(axis=1).mean())

    @property
    def heaviest(self) -> float:
        """The greatest weight that a decision could have come to, whatever was chosen."""
        return float(np.divide(self.new, self.chances, out=np.zeros_like(self.new), where=self.chances > 0).max())

    def of_chosen(self, column: Floats) -> Floats:
        """That column's value for what was chosen, n long."""
        return np.take_along_axis(column, self.chosen[:, None], axis=1)[:, 0]


@dataclass(frozen=True)
class Estimate:
    """A mean score, 0 to 1 (or a difference of two, -1 to 1), and the ends of its interval."""

    value: float
    low: float
    high: float

    def wider(self, by: float, floor: float) -> Estimate:
        """The same with both ends so much further out, but not below `floor` or above 1."""
        return Estimate(self.value, max(floor, self.low - by), min(1.0, self.high + by))


@dataclass(frozen=True)
class Estimates:
    """What n decisions say of another router. `gain` is its mean score less that of whatever made the log.

    Attributes:
        effective: how many decisions of the new router's own these are worth: (sum w)^2 / sum w^2 (Kish).
        heaviest: the greatest weight that a decision could have come to.
        refused: why nothing is said; None where it is. All estimates are None then.
    """

    n: int
    effective: float
    heaviest: float
    lost: float
    refused: str | None = None
    ips: Estimate | None = None
    snips: Estimate | None = None
    doubly_robust: Estimate | None = None
    gain: Estimate | None = None


def estimate(logged: Logged) -> Estimates:
    """The new router's mean score, by three estimators, and what it gains; at 95 % confidence."""
    n = len(logged.scores)
    if n == 0:
        return Estimates(0, 0.0, 0.0, 0.0, "no decision with a known outcome is logged")
    weights = logged.of_chosen(logged.new) / logged.of_chosen(logged.chances)
    facts = (n, _effective(weights), logged.heaviest, logged.lost)
    if refused := _refused(*facts):
        return Estimates(*facts, refused)
    enough, top = threshold(facts[1]), logged.heaviest
    found = [make(logged, weights, top, enough) for make in (_ips, _snips, _robust)]
    ips, snips, robust = (one.wider(logged.lost, 0.0) for one in found)
    gain = _gain(logged, weights, top, enough).wider(logged.lost, -1.0)
    return Estimates(*facts, ips=ips, snips=snips, doubly_robust=robust, gain=gain)


def _effective(weights: Floats) -> float:
    total = float(weights.sum())
    return total * total / float((weights**2).sum()) if total > 0 else 0.0


def _refused(n: int, effective: float, heaviest: float, lost: float) -> str | None:
    if lost > LOST:
        return (
            f"{lost:.0%} of what it would choose was never chosen when the log was made: "
            "outcomes of that are not known; let a share of the tasks explore, or judge it on an eval set"
        )
    if effective < FEWEST:
        return (
            f"the {n} decisions are worth {effective:.0f} of its own (the heaviest weight is {heaviest:.0f}), and {FEWEST:.0f} are needed: "
            "log more, with a router that is nearer to it or explores more"
        )
    return None


def threshold(effective: float) -> float:
    """Half of the F quantile with 1 and `effective` * `FREEDOM` degrees of freedom: what the likelihood of a value may lack, in nats.

    By Student's t at 0.975 (Abramowitz, Stegun, Handbook of Mathematical Functions, 26.7.5), from 4 degrees of freedom on.
    """
    free = max(4.0, effective * FREEDOM)
    first = (_Z**3 + _Z) / 4
    second = (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96
    t = _Z + first / free + second / free**2
    return t * t / 2


def _ips(logged: Logged, weights: Floats, top: float, enough: float) -> Estimate:
    values = weights * logged.scores
    return bounded_mean(values, 0.0, top, enough)


def _snips(logged: Logged, weights: Floats, top: float, enough: float) -> Estimate:
    """The ratio sum w r / sum w: the v for which w (r - v) has mean 0."""
    value = float((weights * logged.scores).sum() / weights.sum())

    def gaps(v: float) -> tuple[Floats, float, float]:
        return weights * (logged.scores - v), -top * v, top * (1 - v)

    return Estimate(value, *_ends(gaps, value, (0.0, 1.0), enough))


def _robust(logged: Logged, weights: Floats, top: float, enough: float) -> Estimate:
    """The model's value of the new router, corrected by what the model got wrong (Dudík, Langford, Li, 2011)."""
    expected = (logged.new * logged.model).sum(axis=1)
    values = expected + weights * (logged.scores - logged.of_chosen(logged.model))
    low = float(expected.min()) - top * float(logged.model.max())
    high = float(expected.max()) + top * (1 - float(logged.model.min()))
    return bounded_mean(values, low, high, enough)


def _gain(logged: Logged, weights: Floats, top: float, enough: float) -> Estimate:
    """The same of the difference between the new router and the one that made the log, decision by decision."""
    expected = ((logged.new - logged.chances) * logged.model).sum(axis=1)
    values = expected + (weights - 1) * (logged.scores - logged.of_chosen(logged.model))
    reach = max(1.0, top - 1)
    return bounded_mean(values, float(expected.min()) - reach, float(expected.max()) + reach, enough, (-1.0, 1.0))


def bounded_mean(
    values: Floats, low: float, high: float, enough: float, within: tuple[float, float] = (0.0, 1.0)
) -> Estimate:
    """The mean of `values`, each of which could have lain anywhere from `low` to `high`, and its interval; the mean itself is known to lie `within`."""
    mean = float(np.clip(values.mean(), *within))

    def gaps(v: float) -> tuple[Floats, float, float]:
        return values - v, low - v, high - v

    return Estimate(mean, *_ends(gaps, mean, within, enough))


def _ends(
    gaps: Callable[[float], tuple[Floats, float, float]], value: float, within: tuple[float, float], enough: float
) -> tuple[float, float]:
    """The interval's ends: the last values to either side that no bet beats by more than `enough`."""
    low, high = (_last(gaps, value, end, enough) for end in within)
    return low, high


def _last(gaps: Callable[[float], tuple[Floats, float, float]], inside: float, end: float, enough: float) -> float:
    """Between a value that stands and the end of what is possible: the last that stands, to a thousandth of the way."""
    if best_bet(*gaps(end), enough) <= enough:
        return end
    outside = end
    for _ in range(12):
        middle = (inside + outside) / 2
        if best_bet(*gaps(middle), enough) <= enough:
            inside = middle
        else:
            outside = middle
    return outside


def best_bet(gaps: Floats, low: float, high: float, enough: float = np.inf) -> float:
    """The most that one constant bet b on gaps of mean 0 would have won: max sum log(1 + b gap), in nats; at least that, once it is more than `enough`.

    `low` < 0 < `high` are what a gap may be at the most: b must not lose more than all at either.
    """
    gains = gaps.sum() > 0
    near, far = 0.0, 1 / max(-low, 1e-9) if gains else -1 / max(high, 1e-9)
    bet = won = 0.0
    for _ in range(40):
        ratios = gaps / (1 + bet * gaps)
        slope, bend = float(ratios.sum()), float((ratios**2).sum())
        if slope**2 <= 1e-6 * bend or won > enough:
            break
        near, far = (bet, far) if (slope > 0) == gains else (near, bet)
        newton = bet + slope / bend
        bet = newton if min(near, far) < newton < max(near, far) else (near + far) / 2
        won = float(np.log1p(bet * gaps).sum())
    return won
