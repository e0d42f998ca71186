"""Matrices that are made: kinds of model pools on which a router could do harm. `harm` draws them, `metier bench routing` shows what came of them.

A query is as hard for all models as a normal draw says, in log-odds, so that models err together as real ones do; and a wrong answer is one of a few that are often given, so that
models also agree on what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from metier_workflows.choosing.matrix import Floats, Matrix

HARDNESS = 1.5
"""Standard deviation of how hard queries are, in log-odds."""
WRONG = (0.5, 0.25, 0.15, 0.1)
"""How often a wrong answer is the first, the second… of those that are given."""
CATEGORIES = 8
WORDS = 400


@dataclass(frozen=True)
class Kind:
    """A kind of pool.

    Attributes:
        chances: of each model to be right in each category, categories by models; drawn anew for each seed.
        shares: how often each category comes, in proportion; those of `unseen` come only where is judged.
        turn: the last step, such as taking the costs away.
    """

    chances: Callable[[int, np.random.Generator], Floats]
    shares: tuple[float, ...] = (1.0,) * CATEGORIES
    unseen: tuple[int, ...] = ()
    turn: Callable[[Matrix], Matrix] = lambda matrix: matrix


def made(kind: Kind, models: int, train: int, test: int, seed: int) -> tuple[Matrix, Matrix]:
    """Rows to learn from and rows to judge by, of the same models."""
    random = np.random.default_rng(seed)
    chances = kind.chances(models, random)
    prices = 0.001 * np.exp(random.normal(0, 1, models))
    shares = np.array(kind.shares)
    seen = np.where(np.isin(np.arange(len(shares)), kind.unseen), 0.0, shares)
    return _rows(kind, chances, prices, seen, train, random), _rows(kind, chances, prices, shares, test, random)


def _rows(
    kind: Kind, chances: Floats, prices: Floats, shares: Floats, rows: int, random: np.random.Generator
) -> Matrix:
    categories = random.choice(len(shares), rows, p=shares / shares.sum())
    shape = (rows, len(prices))
    odds = np.log(chances / (1 - chances))[categories] + random.normal(0, HARDNESS, (rows, 1))
    right = random.random(shape) < 1 / (1 + np.exp(-odds))
    wrong = random.choice(len(WRONG), shape, p=WRONG)
    words = random.integers(0, WORDS, (rows, 12))
    return kind.turn(
        Matrix(
            ids=tuple(map(str, range(rows))),
            tasks=("made",) * rows,
            categories=tuple(f"kind {one}" for one in categories),
            texts=tuple(" ".join(f"word{word}" for word in line) for line in words),
            models=tuple(f"model {one}" for one in range(len(prices))),
            scores=right.astype(np.float64),
            costs=prices * random.gamma(2.0, 0.5, shape),
            answers=np.where(right, "right", np.char.add("wrong ", wrong.astype(str))).astype(np.str_),
        )
    )


def _leader(ahead: float) -> Callable[[int, np.random.Generator], Floats]:
    def chances(models: int, random: np.random.Generator) -> Floats:
        """One model is ahead of every other by so much, in every category; which are harder for all."""
        behind = np.r_[0.0, ahead + random.uniform(0, 0.2, models - 1)]
        right: Floats = np.clip(random.uniform(0.65, 0.9, (CATEGORIES, 1)) - behind, 0.05, 0.95)
        return right

    return chances


def _equals(models: int, random: np.random.Generator) -> Floats:
    return np.repeat(random.uniform(0.5, 0.9, (CATEGORIES, 1)), models, axis=1)


def _specialists(models: int, random: np.random.Generator) -> Floats:
    return np.clip(random.uniform(0.6, 0.75, (CATEGORIES, 1)) + random.normal(0, 0.1, (CATEGORIES, models)), 0.05, 0.95)


def _trap(models: int, random: np.random.Generator) -> Floats:
    """The first is right most often by a little, whatever it costs."""
    return np.repeat(np.r_[0.75, np.full(models - 1, 0.73)][None], CATEGORIES, axis=0) + random.normal(0, 1e-3)


def _cheaper(matrix: Matrix) -> Matrix:
    """The first costs a hundred times what the others do."""
    costs = np.full(matrix.scores.shape, 1e-4)
    costs[:, 0] = 1e-2
    return replace(matrix, costs=costs)


def _noisy(matrix: Matrix) -> Matrix:
    """One score in ten is wrong."""
    gone = np.random.default_rng(len(matrix)).random(matrix.scores.shape) < 0.1
    return replace(matrix, scores=np.where(gone, 1 - matrix.scores, matrix.scores))


KINDS: Mapping[str, Kind] = {
    "one leads by 1 point": Kind(_leader(0.01)),
    "one leads by 3 points": Kind(_leader(0.03)),
    "one leads by 10 points": Kind(_leader(0.1)),
    "equal models": Kind(_equals),
    "specialists": Kind(_specialists),
    "the best is dear": Kind(_trap, turn=_cheaper),
    "wrong labels": Kind(_leader(0.03), turn=_noisy),
    "no answers": Kind(_leader(0.03), turn=lambda matrix: replace(matrix, answers=None)),
    "no costs": Kind(_leader(0.03), turn=lambda matrix: replace(matrix, costs=None)),
    "one huge category": Kind(_specialists, shares=(50.0,) + (1.0,) * (CATEGORIES - 1)),
    "a category nobody saw": Kind(_specialists, unseen=(0,)),
    "no categories": Kind(_leader(0.03), turn=lambda matrix: replace(matrix, categories=("",) * len(matrix))),
}
