"""The judging itself: splits, following a choice, figures; and the command that shows them.

Not here: the figures on real models' answers, and decision times, which depend on the machine.
"""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from metier.cli import app
from metier_infra.errors import BadSpec
from metier_workflows.choosing import trial
from metier_workflows.choosing.matrix import Matrix
from metier_workflows.choosing.router import Choice, Topology
from metier_workflows.choosing.trial import Reply, follow, split
from metier_workflows.choosing.trial_summary import nested, summary

from .kit import LEADER, PEERS, drawn, first


def choice(weights: tuple[float, ...], enough: float, topology: Topology = "cascade") -> Choice:
    return Choice(topology, tuple("abcdefgh"[: len(weights)]), weights, (), "", enough)


class Answers:
    """What each says; it keeps whom was asked."""

    def __init__(self, **said: str) -> None:
        self.said, self.asked = said, list[str]()

    def __call__(self, name: str) -> Reply:
        self.asked.append(name)
        return Reply(self.said[name], float(self.said[name] == "right"), 0.5)


@pytest.mark.parametrize(
    ("weights", "enough", "said", "score", "calls", "depth"),
    [
        ((1.0,), 1.0, ["right"], 1, 1, 1),
        ((1.0, 1.0, 1.0), 2 / 3, ["right", "right", "wrong"], 1, 2, 1),
        ((1.0, 1.0, 1.0), 2 / 3, ["wrong", "right", "right"], 1, 3, 2),
        ((3.0, 1.0, 1.0), 0.6, ["right", "wrong", "wrong"], 1, 1, 1),
        ((1.0, 1.0, 1.5), 1.0, ["wrong", "wrong", "right"], 0, 3, 1),
        ((1.0, 1.0, 3.0), 1.0, ["wrong", "wrong", "right"], 1, 3, 1),
        ((1.0, 1.0, 1.0), 2 / 3, ["", "right", "right"], 1, 3, 2),
        ((1.0, 1.0), 1.0, ["", ""], 0, 2, 1),
    ],
    ids=["one", "agree", "then agree", "enough alone", "outvoted", "outweighs", "one says nothing", "nobody speaks"],
)
def test_a_choice_is_followed_until_enough_agree(
    weights: tuple[float, ...], enough: float, said: list[str], score: float, calls: int, depth: int
) -> None:
    answers = Answers(**dict(zip("abcdefgh", said, strict=False)))

    went = follow(choice(weights, enough), answers)

    assert (went.score, went.calls, went.depth) == (score, calls, depth)
    assert went.cost == pytest.approx(0.5 * calls)
    assert answers.asked == list("abcdefgh"[:calls])


def test_splits_are_stratified_by_task_and_follow_from_the_seed() -> None:
    matrix = replace(drawn(PEERS), tasks=("big",) * 500 + ("small",) * 100)

    train, test = split(matrix, 0)

    assert sorted(train + test) == list(range(600))
    assert [matrix.rows(train).tasks.count(one) for one in ("big", "small")] == [300, 60]
    assert split(matrix, 0) == (train, test) != split(matrix, 1)


def test_tasks_of_one_query_are_split_together() -> None:
    matrix = replace(drawn(PEERS), tasks=(*(f"task {n}" for n in range(100)), *("big",) * 500))

    train, test = split(matrix, 0)

    assert sum(at < 100 for at in train) == 60
    assert sum(at < 100 for at in test) == 40
    assert matrix.rows(train).tasks.count("big") == 300


def test_too_few_queries_for_two_parts_are_refused() -> None:
    with pytest.raises(BadSpec, match="bring more"):
        trial.judged(first(drawn(PEERS), 1), 0)


def test_the_figures_of_ways_whose_truth_is_known_are_right() -> None:
    matrix = drawn(LEADER)
    told = trial.judged(matrix, 0)
    test = matrix.rows(split(matrix, 0)[1])

    assert told.best_single == "m0"
    assert told.ways["best_single"].accuracy == pytest.approx(test.scores[:, 0].mean())
    assert told.ways["random"].accuracy == pytest.approx(test.scores.mean())
    assert told.ways["oracle"].accuracy == pytest.approx(test.scores.max(axis=1).mean())
    assert told.ways["best_single"].usd_per_1000 == pytest.approx(10)
    assert (told.ways["oracle"].oracle_gap, told.ways["best_single"].oracle_gap) == (1, 0)
    assert told.ways["best_single"].regret == pytest.approx(0)
    assert set(told.saved) == {"single", "combined"}


def test_where_a_cheap_model_is_as_good_its_price_is_what_is_saved() -> None:
    cheap_in_one_of_two = np.array([[0.9, 0.4, 0.9], [0.9, 0.4, 0.4]])

    told = trial.judged(drawn(cheap_in_one_of_two), 0)

    assert told.best_single == "m0"
    assert told.saved["single"].share > 0.3
    assert told.saved["single"].accuracy > told.ways["best_single"].accuracy - 0.04


@pytest.mark.parametrize("matrix", [drawn(PEERS, answers=False), drawn(PEERS, prices=False), first(drawn(PEERS), 10)])
def test_a_matrix_without_answers_without_costs_or_with_ten_rows_is_judged(matrix: Matrix) -> None:
    told = trial.judged(matrix, 0)

    assert told.ways["combined"].accuracy >= 0
    assert (told.ways["single"].usd_per_1000 is None) == (matrix.costs is None) == (told.saved == {})
    assert told.combines == (matrix.answers is not None and len(matrix) > 10)


def test_a_summary_has_the_mean_and_the_deviation_of_every_figure() -> None:
    one = trial.judged(first(drawn(LEADER), 60), 0)
    other = replace(one, fit_s=one.fit_s + 2)

    found = summary([one, other])

    assert found["fit_s",].mean == pytest.approx(one.fit_s + 1)
    assert found["fit_s",].sd == pytest.approx(2**0.5)
    assert nested(found)["ways"]["best_single"]["accuracy"]["mean"] == pytest.approx(one.ways["best_single"].accuracy)


def stored(folder: Path, matrix: Matrix) -> Path:
    arrow, parquet = (import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    queries = {"qid": matrix.ids, "task": matrix.tasks, "category": matrix.categories, "text": matrix.texts}
    outcomes: dict[str, object] = {"qid": matrix.ids}
    for at, model in enumerate(matrix.models):
        outcomes[f"s__{model}"] = matrix.scores[:, at]
        if matrix.costs is not None and matrix.answers is not None:
            outcomes |= {f"c__{model}": matrix.costs[:, at], f"a__{model}": matrix.answers[:, at].tolist()}
    for kind, columns in {"q": queries, "o": outcomes}.items():
        parquet.write_table(arrow.table(columns), folder / f"ours_{kind}.parquet")
    return folder


def test_the_command_shows_every_way_and_says_the_same_as_json(tmp_path: Path) -> None:
    folder = stored(tmp_path, first(drawn(LEADER), 80))
    words = ["eval", "routing", "--data", str(folder), "--name", "ours", "--splits", "2", "--parallel", "1"]

    shown = CliRunner().invoke(app, words)
    told = CliRunner().invoke(app, [*words, "--json", "--models", "m0,m1"])

    assert shown.exit_code == 0, shown.output
    for title in ("best single model", "random model", "chosen by task", "panel or cascade", "oracle", "with drift"):
        assert title in shown.output
    document = json.loads(told.stdout)
    assert document["models"] == ["m0", "m1"]
    assert [one["seed"] for one in document["splits"]] == [0, 1]
    assert document["summary"]["ways"]["oracle"]["accuracy"]["mean"] > 0.8


def test_the_command_says_the_same_from_several_processes(tmp_path: Path) -> None:
    folder = stored(tmp_path, first(drawn(LEADER), 40))
    words = ["eval", "routing", "--data", str(folder), "--name", "ours", "--splits", "2", "--json", "--parallel"]

    apart, alone = (json.loads(CliRunner().invoke(app, [*words, n]).stdout)["splits"] for n in ("2", "1"))

    assert [one["ways"] for one in apart] == [one["ways"] for one in alone]
    assert [one["streams"] for one in apart] == [one["streams"] for one in alone]


def test_the_command_refuses_an_empty_list_of_models(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["eval", "routing", "--data", str(tmp_path), "--name", "x", "--models", ","])

    assert done.exit_code != 0
    assert "names no model" in str(done.exception)


def test_the_command_takes_the_features_of_scikit_learn(tmp_path: Path) -> None:
    folder = stored(tmp_path, first(drawn(LEADER), 40))

    words = [
        "eval",
        "routing",
        "--data",
        str(folder),
        "--name",
        "ours",
        "--splits",
        "1",
        "--features",
        "tfidf",
        "--json",
    ]

    assert json.loads(CliRunner().invoke(app, words).stdout)["splits"][0]["best_single"] == "m0"
