"""A table of what models answered: one row a query, one column a model. Fitting, comparing and judging of routers read it.

`matrix_files` reads it from Parquet, `metier eval run` makes one of a user's own samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Matrix:
    """Queries by models.

    Attributes:
        ids: of each query; unique.
        tasks: the dataset that each query is of; splits are stratified by it.
        categories: what kind of task each query is.
        texts: each query, as a model saw it.
        models: the names of the columns.
        scores: how right each answer is, 0 to 1; NaN where it is not known.
        costs: what each answer cost, in USD; None where no costs are known.
        answers: what of each answer is compared: equal texts agree, and an empty one is no answer; None where answers are not known.
    """

    ids: tuple[str, ...]
    tasks: tuple[str, ...]
    categories: tuple[str, ...]
    texts: tuple[str, ...]
    models: tuple[str, ...]
    scores: Floats
    costs: Floats | None = None
    answers: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, at: Sequence[int]) -> Matrix:
        """The same with these rows only, in this order."""
        index = list(at)

        def some(column: Sequence[str]) -> tuple[str, ...]:
            return tuple(column[n] for n in index)

        costs = None if self.costs is None else self.costs[index]
        answers = None if self.answers is None else self.answers[index]
        return Matrix(some(self.ids), some(self.tasks), some(self.categories), some(self.texts), self.models,
                      self.scores[index], costs, answers)  # fmt: skip

    def of(self, models: Sequence[str]) -> Matrix:
        """The same with these models only, in this order. Raises `KeyError` for one that it does not have."""
        places = {name: place for place, name in enumerate(self.models)}
        at = [places[name] for name in models]
        costs = None if self.costs is None else self.costs[:, at]
        answers = None if self.answers is None else self.answers[:, at]
        return Matrix(self.ids, self.tasks, self.categories, self.texts, tuple(models), self.scores[:, at], costs, answers)  # fmt: skip
