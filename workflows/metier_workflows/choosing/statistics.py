"""Figures and how sure they are: intervals, paired differences, correction for many tests, correlation of errors. Pure.

`comparison` and whoever reports a share, a mean or a difference call it. Scores are 0 to 1, NaN where not known. Each function names its source;
where a method has none for graded scores, its docstring says what is done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from metier_workflows.choosing.matrix import Floats

LEVEL = 0.95
CELLS = np.array([0.0, 0.0, 1.0, 1.0]), np.array([0.0, 1.0, 0.0, 1.0])
"""The four pairs of two 0/1 scores: all that a correlation of such needs is how often each was seen."""


@dataclass(frozen=True)
class Estimate:
    """A figure, the interval that it lies in at the level asked for, and the number of rows behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Difference(Estimate):
    """First less second, on the rows that both have. `p` is two-sided, and not corrected for other tests."""

    p: float


def wilson(right: float, n: int, level: float = LEVEL) -> Estimate:
    """A share of 0/1 scores (Wilson 1927, J. Am. Stat. Assoc. 22:209): stays within 0 and 1, and has some width at both ends."""
    z = z_of(level)
    share, spread = right / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return Estimate(share, min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half)), n)


def mean(scores: Floats, level: float = LEVEL) -> Estimate | None:
    """`mean_of` the scores that are known; None where none is."""
    known = scores[~np.isnan(scores)]
    return mean_of(known, level) if known.size else None


def mean_of(known: Floats, level: float = LEVEL) -> Estimate:
    """The mean of scores that are all known, of which there is one at least.

    Wilson's interval where all are 0 or 1, or all alike (it is too wide then: no score of that mean varies more than one of 0 and 1 does).
    Else Student's, cut to 0 and 1.
    """
    if _binary(known) or not np.ptp(known):
        return wilson(float(known.sum()), known.size, level)
    middle, half = float(known.mean()), _half(known, level)
    return Estimate(middle, max(0.0, middle - half), min(1.0, middle + half), known.size)


def skewed_mean_of(known: Floats, level: float = LEVEL) -> Estimate:
    """The mean of what has a long tail, such as costs, of which there is one at least: Student's interval, moved for the skewness.

    The move is the first term of an inverted Edgeworth expansion (Hall 1983, Ann. Stat. 11:569), which takes no resampling. No bound lies below the smallest
    value, so that costs stay above 0. A single value, or values that are all alike, have no width.
    """
    middle, half = float(known.mean()), _half(known, level)
    if not np.ptp(known):
        return Estimate(middle, middle, middle, known.size)
    spread, z = float(known.std(ddof=1)), z_of(level)
    skewness = float(((known - middle) ** 3).mean()) / spread**3
    move = skewness * (2 * z * z + 1) / (6 * known.size) * spread
    return Estimate(middle, max(float(known.min()), middle + move - half), middle + move + half, known.size)


def paired(first: Floats, second: Floats, level: float = LEVEL) -> Difference:
    """How much higher the first scores on the rows for which both are known; there is one at least.

    0/1 scores: McNemar's mid-p, and the adjusted Wald interval of Bonett and Price (2012, J. Educ. Behav. Stat. 37:479). Graded ones: Student's paired t,
    except where all differences are alike: the same adjusted interval, and the sign test's p.
    """
    rows = ~(np.isnan(first) | np.isnan(second))
    left, right = first[rows], second[rows]
    found = left - right
    if not np.ptp(found) or (_binary(left) and _binary(right)):
        p = mcnemar(int((found > 0).sum()), int((found < 0).sum()))
        return Difference(float(found.mean()), *_adjusted(found, level), found.size, p)
    middle, half = float(found.mean()), _half(found, level)
    t = abs(middle) / (float(found.std(ddof=1)) / math.sqrt(found.size))
    return Difference(middle, max(-1.0, middle - half), min(1.0, middle + half), found.size, student_p(t, found.size - 1))  # fmt: skip


def mcnemar(only_first: int, only_second: int, *, exact: bool = False) -> float:
    """The two-sided p that two models are right equally often, from the numbers of rows that only one has right.

    McNemar (1947, Psychometrika 12:153) by the binomial distribution; by default its mid-p, whose size is nearer to what it claims (Fagerland,
    Lydersen and Laake 2013, BMC Med. Res. Methodol. 13:91).
    """
    n, few = only_first + only_second, min(only_first, only_second)
    step = np.arange(few)
    chances = np.exp(np.concatenate(([0.0], np.cumsum(np.log((n - step) / (step + 1))))) - n * math.log(2))
    p = 2 * float(chances.sum()) - (0.0 if exact else float(chances[-1]))
    return min(1.0, p)


def holm(ps: Sequence[float]) -> list[float]:
    """The same p-values, corrected so that the chance of any false finding among them stays what it was for one (Holm 1979, Scand. J. Stat. 6:65)."""
    given = np.asarray(ps, dtype=float)
    order = np.argsort(given, kind="stable")
    corrected = np.empty_like(given)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(given[order] * np.arange(given.size, 0, -1)))
    return [float(one) for one in corrected]


def correlation(first: Floats, second: Floats, level: float = LEVEL) -> Estimate | None:
    """Pearson's correlation on common rows: phi for 0/1 scores, and the same for errors as for scores.

    None below four rows, or where one of them never varies. The interval is by the delta method, which assumes no normality (the influence function of r:
    Devlin, Gnanadesikan and Kettenring 1975, Biometrika 62:531), on Fisher's z scale; for 0/1 scores with half a row more in each cell of the
    2 x 2 table (Anscombe 1956, Biometrika 43:461), so that few errors claim little.
    """
    rows = ~(np.isnan(first) | np.isnan(second))
    left, right = first[rows], second[rows]
    if left.size < 4 or not np.ptp(left) or not np.ptp(right):
        return None
    if _binary(left) and _binary(right):
        table: Floats = np.bincount((2 * left + right).astype(np.int64), minlength=4).astype(np.float64)
        value, (low, high) = _pearson(*CELLS, table), _limits(*CELLS, table + 0.5, level)
    else:
        even = np.ones(left.size)
        value, (low, high) = _pearson(left, right, even), _limits(left, right, even, level)
    return Estimate(value, min(value, low), max(value, high), left.size)


def _pearson(left: Floats, right: Floats, weights: Floats) -> float:
    found = float(_standard(left, weights) * _standard(right, weights) @ weights / weights.sum())
    return min(1.0, max(-1.0, found))


def _limits(left: Floats, right: Floats, weights: Floats, level: float) -> tuple[float, float]:
    u, v, whole = _standard(left, weights), _standard(right, weights), float(weights.sum())
    r = float(u * v @ weights) / whole
    if 1 - r * r < 1e-9:
        return r, r
    influence = u * v - r * (u * u + v * v) / 2
    spread = math.sqrt(float(influence**2 @ weights)) / whole
    half = z_of(level) * spread / (1 - r * r)
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def _standard(x: Floats, weights: Floats) -> Floats:
    centred = x - float(x @ weights) / float(weights.sum())
    return np.asarray(centred / math.sqrt(float(centred**2 @ weights) / float(weights.sum())))


def student_p(t: float, df: int) -> float:
    """The two-sided p of Student's t; the finite sums for whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4). 1 without any."""
    if df < 1:
        return 1.0
    angle = math.atan(t / math.sqrt(df))
    cos, odd = math.cos(angle), df % 2
    up = np.arange(1, (df - odd) // 2) * 2.0
    ratios = (up / (up + 1) if odd else (up - 1) / up) * cos * cos
    terms = float(np.cumprod(ratios).sum()) + 1
    if odd:
        inside = 2 / math.pi * (angle + (math.sin(angle) * cos * terms if df > 1 else 0.0))
    else:
        inside = math.sin(angle) * terms
    return min(1.0, max(0.0, 1 - inside))


@lru_cache(maxsize=4096)
def student_quantile(level: float, df: int) -> float:
    """The t that the level's share lies within on both sides: `student_p` turned round by bisection. Infinite without degrees of freedom."""
    if df < 1:
        return math.inf
    low, high = 0.0, 1.0
    while student_p(high, df) > 1 - level:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, df) > 1 - level else (low, middle)
    return high


def _binary(values: Floats) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _half(values: Floats, level: float) -> float:
    if values.size < 2:
        return math.inf
    return student_quantile(level, values.size - 1) * float(values.std(ddof=1)) / math.sqrt(values.size)


def _adjusted(found: Floats, level: float) -> tuple[float, float]:
    """Of differences: as if there were two rows more, each won by another one."""
    n, middle = found.size + 2, float(found.sum()) / (found.size + 2)
    half = z_of(level) * math.sqrt((float((found**2).sum()) + 2) / n - middle**2) / math.sqrt(n)
    value = float(found.mean())
    return min(value, max(-1.0, middle - half)), max(value, min(1.0, middle + half))


def z_of(level: float) -> float:
    """The z that the level's share of a normal distribution lies within on both sides."""
    return NormalDist().inv_cdf((1 + level) / 2)
