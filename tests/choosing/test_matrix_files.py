"""Matrices from Parquet files, good and bad: what is refused with which sentence, and by which rule the rest is read."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metier_infra.errors import BadSpec, MissingPackage
from metier_workflows.choosing.matrix_files import read_matrix

QUERIES: dict[str, list[Any]] = {
    "qid": ["1", "2", "3"],
    "task": ["t", "t", "u"],
    "category": ["x", "y", "x"],
    "text": ["one", "two", "three"],
}
OUTCOMES: dict[str, list[Any]] = {
    "qid": ["3", "1", "2"],
    "s__a": [0.0, 1.0, 0.5],
    "c__a": [0.1, 0.2, 0.3],
    "a__a": ["left", "right", None],
    "s__b": [1.0, 1.0, 0.0],
    "c__b": [0.5, 0.5, 0.5],
    "a__b": ["right", "right", "x" * 500],
}


def written(folder: Path, queries: dict[str, list[Any]], outcomes: dict[str, list[Any]]) -> Path:
    arrow, parquet = (import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    for kind, columns in {"q": queries, "o": outcomes}.items():
        parquet.write_table(arrow.table(columns), folder / f"m_{kind}.parquet")
    return folder


def without(columns: dict[str, list[Any]], *names: str) -> dict[str, list[Any]]:
    return {name: values for name, values in columns.items() if name not in names}


def test_rows_are_joined_by_id_in_the_order_of_the_queries(tmp_path: Path) -> None:
    matrix = read_matrix(written(tmp_path, QUERIES, OUTCOMES), "m")

    assert (matrix.ids, matrix.tasks, matrix.categories) == (("1", "2", "3"), ("t", "t", "u"), ("x", "y", "x"))
    assert matrix.models == ("a", "b")
    assert matrix.scores.tolist() == [[1.0, 1.0], [0.5, 0.0], [0.0, 1.0]]
    assert matrix.costs is not None
    assert matrix.costs[:, 0].tolist() == pytest.approx([0.2, 0.3, 0.1])
    assert matrix.answers is not None
    assert matrix.answers[:, 0].tolist() == ["right", "", "left"]


def test_a_long_answer_is_kept_as_its_digest(tmp_path: Path) -> None:
    matrix = read_matrix(written(tmp_path, QUERIES, OUTCOMES), "m")

    assert matrix.answers is not None
    assert len(str(matrix.answers[1, 1])) == 64


def test_models_are_taken_in_the_order_in_which_they_are_asked_for(tmp_path: Path) -> None:
    assert read_matrix(written(tmp_path, QUERIES, OUTCOMES), "m", ["b", "a"]).models == ("b", "a")
    assert read_matrix(tmp_path, "m", ["b"]).scores.shape == (3, 1)


@pytest.mark.parametrize(
    ("queries", "outcomes", "message"),
    [
        (QUERIES | {"qid": ["1", "1", "2"]}, OUTCOMES, "1 queries more than once, 1 for one"),
        (QUERIES | {"qid": ["1", None, "2"]}, OUTCOMES, "m_q.parquet has no qid in row 2"),
        (QUERIES, OUTCOMES | {"s__": [1.0, 0.0, 1.0]}, "a column s__ without a model's name"),
        (QUERIES, OUTCOMES | {"qid": ["1", "1", "2"]}, "m_o.parquet has 1 queries more than once"),
        (without(QUERIES, "qid"), OUTCOMES, "m_q.parquet has no column qid"),
        (QUERIES, without(OUTCOMES, "qid"), "m_o.parquet has no column qid"),
        (QUERIES, without(OUTCOMES, "s__a", "s__b"), "has no column s__MODEL"),
        (QUERIES, OUTCOMES | {"qid": ["7", "8", "9"]}, "no query in common"),
        (QUERIES, OUTCOMES | {"s__a": [0.0, 1.5, 0.5]}, "the score of a in row 2 is 1.5"),
        (QUERIES, OUTCOMES | {"s__a": [0.0, float("inf"), 0.5]}, "the score of a in row 2 is inf"),
        (QUERIES, OUTCOMES | {"s__b": [-0.1, 1.0, 0.5]}, "the score of b in row 1 is -0.1"),
        (QUERIES, OUTCOMES | {"c__b": [-0.5, 0.5, 0.5]}, "a cost of b is -0.5 USD"),
        (QUERIES, OUTCOMES | {"s__a": ["good", "bad", "bad"]}, "s__a holds what is no number"),
        (QUERIES, OUTCOMES | {"s__a": [None] * 3, "s__b": [None] * 3}, "no model has a known score"),
    ],
    ids=["query twice", "query without id", "model without name", "outcome twice", "no qid", "no qid of outcomes", "no scores", "nothing in common", "too high", "infinite", "too low", "cost below zero", "words for scores", "nothing known"],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_a_sentence(
    tmp_path: Path, queries: dict[str, list[Any]], outcomes: dict[str, list[Any]], message: str
) -> None:
    with pytest.raises(BadSpec, match=message):
        read_matrix(written(tmp_path, queries, outcomes), "m")


def test_a_missing_file_and_a_broken_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match=r"there is no file .*m_q\.parquet; a matrix is two files"):
        read_matrix(tmp_path, "m")

    (tmp_path / "m_q.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(BadSpec, match="cannot be read as Parquet"):
        read_matrix(tmp_path, "m")


def test_a_model_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(BadSpec, match="no scores of c; it has: a, b"):
        read_matrix(written(tmp_path, QUERIES, OUTCOMES), "m", ["a", "c"])


def test_without_task_category_and_text_all_are_of_one(tmp_path: Path) -> None:
    matrix = read_matrix(written(tmp_path, {"qid": QUERIES["qid"]}, OUTCOMES), "m")

    assert (set(matrix.tasks), set(matrix.categories), set(matrix.texts)) == ({"all"}, {"all"}, {""})


def test_a_model_and_a_query_without_a_known_score_are_left_out(tmp_path: Path) -> None:
    matrix = read_matrix(written(tmp_path, QUERIES, OUTCOMES | {"s__a": [None] * 3, "s__b": [1.0, None, 0.0]}), "m")

    assert (matrix.models, matrix.ids) == (("b",), ("2", "3"))


def test_without_answers_or_costs_of_one_model_there_are_none(tmp_path: Path) -> None:
    matrix = read_matrix(written(tmp_path, QUERIES, without(OUTCOMES, "a__b", "c__a")), "m")

    assert (matrix.answers, matrix.costs) == (None, None)
    assert read_matrix(tmp_path, "m", ["a"]).answers is not None


def test_a_cost_that_is_missing_is_the_mean_of_the_others(tmp_path: Path) -> None:
    matrix = read_matrix(written(tmp_path, QUERIES, OUTCOMES | {"c__a": [0.1, None, 0.3]}), "m")

    assert matrix.costs is not None
    assert matrix.costs[:, 0].tolist() == pytest.approx([0.2, 0.3, 0.1])


def test_a_score_that_is_missing_is_not_known(tmp_path: Path) -> None:
    matrix = read_matrix(written(tmp_path, QUERIES, OUTCOMES | {"s__a": [None, float("nan"), 0.5]}), "m")

    assert np.isnan(matrix.scores[:, 0]).tolist() == [True, False, True]


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)

    with pytest.raises(MissingPackage, match=r"metier\[matrices\]"):
        read_matrix(tmp_path, "m")
