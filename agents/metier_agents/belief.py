"""How far a tool's word is to be believed: what agreement with a model's own answers tells of both.

`appraisal` weighs with it. Nobody knows which answers were right. What is known of a call that worked is whether the answer that came of
it agreed with the model's own from before, and how sure the model was of that. Two wrong answers hardly ever agree by chance, so

    P(they agree) = right x earned x confidence

with `right`, how likely the answer is right once the tool ended ok, and `earned`, the share of its confidence that the model earns. This is
the model of Dawid and Skene (1979) for two observers and no gold. Only the product shows in the data; what parts it are the priors:

- `right` is Beta. Its pseudo-counts come from the noise that the model states.
- `earned` is Beta too (`EARNED`): models claim more than they know (Guo et al. 2017; Xiong et al. 2024), though seldom a multiple of it. So of a
  disagreement that goes on, the tool is thought guilty, and of a little more than was to be expected, the model.

How often calls fail in sight is left out: what it tells of answers that are wrong out of sight depends on how a tool fails.

The posterior is worked out on a grid. Old calls weigh less in it, as in the record: a power prior (Ibrahim and Chen 2000).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp, log, log1p

from metier_agents.spec import MetaReasoned
from metier_infra.rows import ToolRecord

EARNED = (46.0, 4.0)
"""Of the twelve recorded models, on the calibration half, the share is 0.93 to 0.96, and of a live one nobody knows before. Chosen by trial on that half, over several kinds of faults."""
SURE = 0.01
"""A stated noise is taken between this and its complement: nothing is certain before it was measured."""
RIGHT_POINTS, EARNED_POINTS = 32, 16


@dataclass(frozen=True)
class Belief:
    """A posterior: points of (right, earned, probability)."""

    points: tuple[tuple[float, float, float], ...]

    def mean(self, of: Callable[[float, float], float]) -> float:
        """The expected value of a function of (right, earned)."""
        return sum(mass * of(right, earned) for right, earned, mass in self.points)

    def chance(self, of: Callable[[float, float], bool]) -> float:
        """How likely a statement about (right, earned) is true."""
        return sum(mass for right, earned, mass in self.points if of(right, earned))

    @property
    def right(self) -> float:
        """How likely the answer is right once the tool ended ok."""
        return self.mean(lambda right, _: right)

    @property
    def earned(self) -> float:
        """The share of its stated confidence that the model earns."""
        return self.mean(lambda _, earned: earned)


def believe(policy: MetaReasoned, noise: float, record: ToolRecord) -> Belief:
    """What to believe of a tool of which the model says that it misleads with chance `noise`, after what was measured."""
    logs = list(_logs(policy, min(max(noise, SURE), 1 - SURE), record))
    highest = max(value for _, _, value in logs)
    masses = [exp(value - highest) for _, _, value in logs]
    whole = sum(masses)
    return Belief(tuple((right, earned, mass / whole) for (right, earned, _), mass in zip(logs, masses, strict=True)))


def _logs(policy: MetaReasoned, noise: float, record: ToolRecord) -> Iterator[tuple[float, float, float]]:
    """The grid, with the logarithm of the posterior at each point, but for a constant."""
    calls = policy.prior_ok + policy.prior_failed
    ok, misled = calls * (1 - noise), calls * noise
    for right in _middles(RIGHT_POINTS):
        of_right = (ok - 1 + record.agreed) * log(right) + (misled - 1) * log1p(-right)
        for earned in _middles(EARNED_POINTS):
            of_earned = (EARNED[0] - 1 + record.agreed) * log(earned) + (EARNED[1] - 1) * log1p(-earned)
            differed = sum(weight * log1p(-right * earned * sure) for sure, weight in record.differed)
            yield right, earned, of_right + of_earned + differed


def _middles(points: int) -> Iterator[float]:
    return ((n + 0.5) / points for n in range(points))
