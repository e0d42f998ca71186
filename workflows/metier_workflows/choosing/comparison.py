"""Are these models interchangeable here, or is each good at something else? A matrix in, all figures and a verdict for each category out.

`metier models compare` calls it and shows what it returns; `segments` has the models on one kind of query, `verdicts` judges, `pooling` says what
they reach together, `statistics` how sure each figure is. Pure, and the same for the same matrix and seed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from metier_workflows.choosing import verdicts
from metier_workflows.choosing.matrix import Floats, Matrix
from metier_workflows.choosing.pooling import Drop, Kept, Pool
from metier_workflows.choosing.segments import Contrast, Segment, corrected, segment
from metier_workflows.choosing.statistics import Estimate, correlation, mean_of, wilson
from metier_workflows.choosing.verdicts import Verdict

MARGIN = 0.05
"""Unless told otherwise: a difference that does not matter, in shares of right answers."""
MOST_CATEGORIES = 60
"""Of more, the smallest are taken together."""
OTHERS = "(others)"
WRONG = 0.5
"""A lower score is a wrong answer, where only right and wrong are told apart."""

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Pair:
    """Two models on their common queries; the better one first.

    Attributes:
        contrast: first less second.
        both_wrong, error_correlation: how often, and how much more often than by chance (phi), they fail together.
        either_right: an oracle over the two.
        complement: that less the better of the two.
        agreement: of those that both answer, the share with the same answer.
        right_agreed: how right the answer is where they agree.
        same_wrong: of those that both answer wrongly, the share with the same answer.
    """

    contrast: Contrast
    both_wrong: Estimate
    error_correlation: Estimate | None
    either_right: Estimate
    complement: Estimate
    agreement: Estimate | None = None
    right_agreed: Estimate | None = None
    same_wrong: Estimate | None = None


@dataclass(frozen=True)
class Category:
    """The models on one kind of query, what is to be said of it, and all pairs of models that are ranked here."""

    segment: Segment
    verdict: Verdict
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Comparison:
    """All that was found.

    Attributes:
        margin: a difference that does not matter, in shares of right answers.
        whole, verdict: all queries, and what is to be said of them.
        categories: the largest first.
        pairs: all pairs of ranked models; what reaches most together comes first.
        pooled: queries that count in what follows: those for which all ranked models have a score.
        gain: choosing by category, less the model that is best on all.
        drops: what is lost without each model; what is missed least comes first.
        growth: the best pools of one model, of two, and so on.
    """

    models: tuple[str, ...]
    queries: int
    margin: float
    whole: Segment
    verdict: Verdict
    categories: tuple[Category, ...]
    pairs: tuple[Pair, ...]
    pooled: int
    gain: Estimate | None
    drops: tuple[Drop, ...]
    growth: tuple[Kept, ...]


def compare(matrix: Matrix, *, margin: float = MARGIN, seed: int = 0) -> Comparison:
    """The whole comparison. `margin` is above 0 and below 1; `seed` decides the splits."""
    groups = _groups(matrix.categories)
    (whole,) = corrected([segment("all", matrix)])
    parts = corrected([segment(name, matrix.rows(rows)) for name, rows in groups.items()])
    best = whole.ranked[0] if whole.ranked else ""
    codes = _codes(matrix)
    categories = tuple(
        Category(one, verdicts.judge(one, best, margin), _pairs(matrix.rows(rows), _of(codes, rows), one))
        for one, rows in zip(parts, groups.values(), strict=True)
    )
    pool = _pool(matrix, whole.ranked, groups, seed)
    gain = pool.gain() if pool.enough else None
    return Comparison(
        models=matrix.models,
        queries=len(matrix),
        margin=margin,
        whole=whole,
        verdict=verdicts.judge_all(whole, [one.verdict.kind for one in categories], gain, margin),
        categories=categories,
        pairs=_pairs(matrix, codes, whole),
        pooled=len(pool.scores),
        gain=gain,
        drops=tuple(pool.drops()) if pool.enough else (),
        growth=tuple(pool.growth()) if pool.enough else (),
    )


def _groups(categories: Sequence[str]) -> Mapping[str, list[int]]:
    """Rows by category, the largest first; of very many, the smallest together."""
    sizes = sorted(Counter(categories).items(), key=lambda one: (-one[1], one[0]))
    kept = {name for name, _ in (sizes if len(sizes) <= MOST_CATEGORIES else sizes[: MOST_CATEGORIES - 1])}
    found: dict[str, list[int]] = {name: [] for name, _ in sizes if name in kept}
    for row, name in enumerate(categories):
        found.setdefault(name if name in kept else OTHERS, []).append(row)
    return found


def _pool(matrix: Matrix, names: Sequence[str], groups: Mapping[str, list[int]], seed: int) -> Pool:
    scores, kinds = matrix.of(names).scores, np.zeros(len(matrix), dtype=np.int64)
    for number, rows in enumerate(groups.values()):
        kinds[rows] = number
    complete = ~np.isnan(scores).any(axis=1)
    return Pool(tuple(names), scores[complete], kinds[complete], seed)


def _pairs(matrix: Matrix, codes: Codes | None, of: Segment) -> tuple[Pair, ...]:
    scores, places = matrix.scores.T.copy(), {name: place for place, name in enumerate(matrix.models)}
    said = None if codes is None else codes.T.copy()
    found: list[Pair] = []
    for contrast in of.contrasts:
        at = [places[contrast.first], places[contrast.second]]
        rows = ~np.isnan(scores[at]).any(axis=0)
        two = scores[at][:, rows]
        pair = _pair(contrast, two)
        found.append(pair if said is None else _with_answers(pair, two, said[at][:, rows]))
    return tuple(sorted(found, key=lambda one: -one.either_right.value))


def _pair(contrast: Contrast, scores: Floats) -> Pair:
    """Of two rows of scores that are all known, of one query at least."""
    top = scores.max(axis=0)
    return Pair(
        contrast,
        both_wrong=_share(_wrong(scores)),
        error_correlation=correlation(*scores),
        either_right=mean_of(top),
        complement=mean_of(top - scores[0]),
    )


def _with_answers(pair: Pair, scores: Floats, codes: Codes) -> Pair:
    answered, same = (codes >= 0).all(axis=0), codes[0] == codes[1]
    agreed, wrong = scores[0, answered & same], answered & _wrong(scores)
    return replace(
        pair,
        agreement=_share(same[answered]) if answered.any() else None,
        right_agreed=mean_of(agreed) if agreed.size else None,
        same_wrong=_share(same[wrong]) if wrong.any() else None,
    )


def _codes(matrix: Matrix) -> Codes | None:
    """A number for each answer, the same for the same answer; -1 for none."""
    if matrix.answers is None:
        return None
    numbers: dict[str, int] = {"": -1}
    flat = [numbers.setdefault(str(one), len(numbers)) for one in matrix.answers.ravel()]
    return np.array(flat, dtype=np.int64).reshape(matrix.answers.shape)


def _of(codes: Codes | None, rows: Sequence[int]) -> Codes | None:
    return None if codes is None else codes[rows]


def _wrong(scores: Floats) -> NDArray[np.bool_]:
    return np.asarray((scores < WRONG).all(axis=0))


def _share(hits: NDArray[np.bool_]) -> Estimate:
    return wilson(float(hits.sum()), hits.size)
