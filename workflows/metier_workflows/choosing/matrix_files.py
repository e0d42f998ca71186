"""Reads a `Matrix` from Parquet: `NAME_q.parquet` (the queries) and `NAME_o.parquet` (what each model made of them).

`metier eval routing` and `metier models compare` call it. Columns: `qid, task, category, text`, and `qid` with, per model M, `s__M` (score), `c__M` (USD), `a__M` (answer).
Rules for what is not as it should be:

- Refused with a sentence: no such file, no `qid` column, a `qid` twice or missing, no `s__` column or one without a name, a model that is asked for and not there, no query in both files,
  a score outside 0 to 1, a cost below 0, a score or cost that is no number.
- `task` or `category` missing: all queries are of one, named `all`. `text` missing: all are empty. A query that is in one file only is left out.
- A score that is missing (null or NaN) is not known: nothing is learned from it, and what chose it is not judged by that row. A model without any known score is left out, and so is a query.
- A cost that is missing is the mean of the model's others; where a model has none at all, the matrix has no costs.
- An answer that is missing or empty agrees with nothing; where a model has no `a__` column, the matrix has no answers, and so no panel is possible.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metier_infra.errors import BadSpec, MissingPackage
from metier_workflows.choosing.matrix import Floats, Matrix

ALL = "all"
LONGEST_ANSWER = 64
"""Characters; of longer ones the digest is kept, which is equal where they are."""


def read_matrix(directory: Path, name: str, models: Sequence[str] | None = None) -> Matrix:
    """The matrix NAME of this directory, with these models or all that have scores.

    Raises:
        BadSpec: the files are not there or not as the module says.
        MissingPackage: pyarrow, the extra `matrices`, is not installed.
    """
    queries, outcomes = (_table(directory / f"{name}_{kind}.parquet") for kind in "qo")
    chosen = _models(outcomes, name, models)
    asked, told = _ids(queries, f"{name}_q"), _ids(outcomes, f"{name}_o")
    place = {qid: at for at, qid in enumerate(told)}
    rows = [at for at, qid in enumerate(asked) if qid in place]
    if not rows:
        raise BadSpec(f"{name}_q and {name}_o have no query in common; both name it in the column qid")
    there = [place[asked[at]] for at in rows]
    scores = np.stack([_scores(outcomes, model)[there] for model in chosen], axis=1)
    matrix = Matrix(
        ids=tuple(asked[at] for at in rows),
        tasks=_words(queries, "task", rows, ALL),
        categories=_words(queries, "category", rows, ALL),
        texts=_words(queries, "text", rows, ""),
        models=tuple(chosen),
        scores=scores,
        costs=_costs(outcomes, chosen, there),
        answers=_answers(outcomes, chosen, there),
    )
    return _with_scores(matrix)


def _with_scores(matrix: Matrix) -> Matrix:
    matrix = matrix.rows(np.flatnonzero(~np.isnan(matrix.scores).all(axis=1)).tolist())
    known = [model for at, model in enumerate(matrix.models) if not np.isnan(matrix.scores[:, at]).all()]
    if not known:
        raise BadSpec("no model has a known score; the columns s__MODEL hold nothing but missing values")
    return matrix if len(known) == len(matrix.models) else matrix.of(known)


def _table(file: Path) -> Any:
    try:
        reader: Any = import_module("pyarrow.parquet")
    except ImportError as missing:
        raise MissingPackage("matrices are read by pyarrow: pip install 'metier[matrices]'") from missing
    try:
        return reader.read_table(file)
    except FileNotFoundError as missing:
        raise BadSpec(f"there is no file {file}; a matrix is two files in one directory, NAME_q.parquet and NAME_o.parquet") from missing  # fmt: skip
    except Exception as broken:
        raise BadSpec(f"{file} cannot be read as Parquet: {broken}") from broken


def _models(outcomes: Any, name: str, wanted: Sequence[str] | None) -> list[str]:
    there = [column.removeprefix("s__") for column in outcomes.schema.names if column.startswith("s__")]
    if not there:
        raise BadSpec(f"{name}_o.parquet has no column s__MODEL, so that there is nothing to learn from")
    if "" in there:
        raise BadSpec(f"{name}_o.parquet has a column s__ without a model's name; name it s__MODEL")
    gone = [model for model in wanted or () if model not in there]
    if gone:
        raise BadSpec(f"{name}_o.parquet has no scores of {', '.join(gone)}; it has: {', '.join(there)}")
    return list(dict.fromkeys(wanted or there))


def _ids(table: Any, file: str) -> list[str]:
    if "qid" not in table.schema.names:
        raise BadSpec(f"{file}.parquet has no column qid; it has: {', '.join(table.schema.names)}")
    given = table["qid"].to_pylist()
    if None in given:
        raise BadSpec(f"{file}.parquet has no qid in row {given.index(None) + 1}; every query needs one")
    ids = [str(one) for one in given]
    twice = [qid for qid, times in Counter(ids).items() if times > 1]
    if twice:
        raise BadSpec(
            f"{file}.parquet has {len(twice)} queries more than once, {twice[0]} for one; a qid must be unique"
        )
    return ids


def _words(table: Any, column: str, rows: Sequence[int], missing: str) -> tuple[str, ...]:
    if column not in table.schema.names:
        return (missing,) * len(rows)
    words = table[column].to_pylist()
    return tuple(missing if words[at] is None else str(words[at]) for at in rows)


def _numbers(table: Any, column: str) -> Floats:
    try:
        numbers = [np.nan if one is None else float(one) for one in table[column].to_pylist()]
    except (TypeError, ValueError) as wrong:
        raise BadSpec(f"the column {column} holds what is no number: {wrong}") from wrong
    return np.array(numbers, dtype=np.float64)


def _scores(table: Any, model: str) -> Floats:
    scores = _numbers(table, f"s__{model}")
    wrong = np.flatnonzero((scores < 0) | (scores > 1))
    if len(wrong):
        raise BadSpec(f"the score of {model} in row {wrong[0] + 1} is {scores[wrong[0]]:g}; scores go from 0 to 1")
    return scores


def _costs(table: Any, models: Sequence[str], rows: Sequence[int]) -> Floats | None:
    if any(f"c__{model}" not in table.schema.names for model in models):
        return None
    costs = np.stack([_numbers(table, f"c__{model}")[rows] for model in models], axis=1)
    wrong = np.argwhere((costs < 0) | np.isinf(costs))
    if len(wrong):
        row, column = wrong[0]
        raise BadSpec(f"a cost of {models[column]} is {costs[row, column]:g} USD; costs are finite and not below 0")
    gone = np.isnan(costs)
    if gone.all(axis=0).any():
        return None
    return np.where(gone, np.nansum(costs, axis=0) / (~gone).sum(axis=0), costs)


def _answers(table: Any, models: Sequence[str], rows: Sequence[int]) -> NDArray[np.str_] | None:
    if any(f"a__{model}" not in table.schema.names for model in models):
        return None
    columns = [table[f"a__{model}"].to_pylist() for model in models]
    return np.array([[_comparable(column[at]) for column in columns] for at in rows], dtype=np.str_)


def _comparable(answer: object) -> str:
    text = "" if answer is None else str(answer)
    return text if len(text) <= LONGEST_ANSWER else hashlib.sha256(text.encode()).hexdigest()[:LONGEST_ANSWER]
