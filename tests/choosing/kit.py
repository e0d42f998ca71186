"""Matrices that are drawn: what is true of their models is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from metier_workflows.choosing.matrix import Floats, Matrix


def drawn(
    chances: Floats, *, seed: int = 0, together: bool = False, silent: float = 0.0, answers: bool = True, prices: bool = True
) -> Matrix:  # fmt: skip
    """600 queries; each model is right with the chance that it has in the query's category (categories by models).

    `together`: all are right, and wrong in the same way, at once. `silent`: so often a model says nothing.
    """
    random = np.random.default_rng(seed)
    rows, models = 600, chances.shape[1]
    categories = random.integers(0, len(chances), rows)
    luck = random.random((rows, 1 if together else models))
    right = luck < chances[categories]
    wrong = random.integers(1, 5, (rows, 1 if together else models)) * np.ones((1, models), int)
    said = np.where(right, "right", np.char.add("wrong", wrong.astype(str)))
    heard = random.random((rows, models)) >= silent
    return Matrix(
        ids=tuple(str(row) for row in range(rows)),
        tasks=("t",) * rows,
        categories=tuple(f"kind {one}" for one in categories),
        texts=tuple(f"task {row} of kind {one}" for row, one in enumerate(categories)),
        models=tuple(f"m{at}" for at in range(models)),
        scores=np.where(right & heard, 1.0, 0.0),
        costs=np.tile(np.geomspace(0.01, 0.001, models), (rows, 1)) if prices else None,
        answers=np.where(heard, said, "").astype(np.str_) if answers else None,
    )


PEERS = np.full((2, 4), 0.7)
SPECIALISTS = np.array([[0.9, 0.5, 0.5], [0.5, 0.9, 0.5], [0.5, 0.5, 0.9]])
LEADER = np.array([[0.9, 0.6, 0.5, 0.4], [0.9, 0.55, 0.5, 0.45]])


def first(matrix: Matrix, rows: int) -> Matrix:
    """Its first rows."""
    return matrix.rows(range(rows))


def unknown(matrix: Matrix, share: float) -> Matrix:
    """The same with so many of its scores not known."""
    gone = np.random.default_rng(1).random(matrix.scores.shape) < share
    return replace(matrix, scores=np.where(gone, np.nan, matrix.scores))
