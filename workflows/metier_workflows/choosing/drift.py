"""Whether an agent has become worse, or better, in a category than it was measured: told from outcomes, one after the other. Pure.

`promotion` feeds it with outcomes as they come and tells operators. An agent that was swapped for another version under the same name shows here first.

A detector is an e-detector of Shiryaev and Roberts' kind (Shin, Ramdas, Rinaldo, "E-detectors", 2022): a bet against "its mean score is still
within `low` and `high`" is opened at every outcome, and the sum of what all open bets are worth rises above `1 / alarms_per_outcome` once they win. As long as
that mean is within, the sum grows by no more than 1 an outcome on average, and so an alarm comes no sooner than after 1 / alarms_per_outcome
outcomes on average, whatever the distribution of scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

ALARMS_PER_OUTCOME = 1 / 2000
"""At the most so many false alarms an outcome, of one agent in one category, on average."""
BASELINE = 100
"""So many first outcomes are what later ones are compared with, where nothing was measured before."""
WIDTH = 2.576
"""Normal quantile of the baseline's interval: 99 %, so that a baseline of few outcomes does not make alarms by itself."""
STAKES = (0.1, 0.25, 0.5)
"""Which shares of all that they have the bets risk: small ones find small changes, large ones large changes soon."""

Way = Literal["worse", "better"]


@dataclass(frozen=True)
class Baseline:
    """Within what an agent's mean score in a category lies, 0 to 1."""

    low: float
    high: float


@dataclass(frozen=True)
class Detector:
    """What is known of one agent in one category.

    `first` and `total` count and add the outcomes of a baseline that is still being made; `bets` are the sums of what is open, by way and stake.
    """

    baseline: Baseline | None = None
    first: int = 0
    total: float = 0.0
    worse: tuple[float, ...] = (0.0,) * len(STAKES)
    better: tuple[float, ...] = (0.0,) * len(STAKES)

    def see(self, score: float) -> tuple[Detector, Way | None]:
        """The detector after one more outcome (0 to 1), and an alarm if this is one; after an alarm it starts anew, with a baseline of what comes."""
        if self.baseline is None:
            return self._measure(score), None
        worse = _grown(self.worse, self.baseline.low - score, 1 - self.baseline.low)
        better = _grown(self.better, score - self.baseline.high, self.baseline.high)
        found = replace(self, worse=worse, better=better)
        way: Way = "worse" if sum(worse) >= sum(better) else "better"
        return (Detector(), way) if found.evidence >= 1 / ALARMS_PER_OUTCOME else (found, None)

    def _measure(self, score: float) -> Detector:
        first, total = self.first + 1, self.total + score
        ready = baseline(total / first, first) if first >= BASELINE else None
        return replace(self, baseline=ready, first=first, total=total)

    @property
    def evidence(self) -> float:
        """What all bets of both ways are worth on average: no more than the number of outcomes, as long as nothing changed."""
        return (sum(self.worse) + sum(self.better)) / (2 * len(STAKES))


def _grown(bets: tuple[float, ...], gap: float, worst: float) -> tuple[float, ...]:
    """One more bet opened, and all of them paid: each wins its stake's share of the gap, of which the `worst` case would lose it all."""
    return tuple((one + 1) * (1 + stake * gap / max(worst, 1e-9)) for one, stake in zip(bets, STAKES, strict=True))


def baseline(mean: float, n: int) -> Baseline:
    """Wilson's interval of a mean score of n outcomes (1927); scores between 0 and 1 vary less than those that are 0 or 1, for which it is made."""
    spread = WIDTH**2 / n
    middle = (mean + spread / 2) / (1 + spread)
    half = math.sqrt(mean * (1 - mean) * spread + spread**2 / 4) / (1 + spread)
    return Baseline(max(0.0, middle - half), min(1.0, middle + half))


class Drift:
    """The detectors of all agents and categories. `measured` is what was known before: mean and count, by agent and category."""

    def __init__(self, measured: Mapping[tuple[str, str], tuple[float, int]] | None = None) -> None:
        self._detectors = {key: Detector(baseline(*one)) for key, one in (measured or {}).items()}

    def see(self, agent: str, category: str, score: float) -> Way | None:
        """Take in one outcome; how the agent has changed, if this is where it shows."""
        known = self._detectors.get((agent, category), Detector())
        self._detectors[agent, category], way = known.see(score)
        return way

    def evidence(self) -> Mapping[tuple[str, str], float]:
        """How far each is on its way to an alarm, 0 to 1: the logarithm of its evidence, as a share of that of an alarm."""
        ceiling = math.log1p(1 / ALARMS_PER_OUTCOME)
        return {key: min(1.0, math.log1p(one.evidence) / ceiling) for key, one in self._detectors.items()}
