"""Made matrices are what they say, and `metier bench routing` sees harm where it is done. Not here: the long sweep, which the command runs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from metier.cli import app
from metier.cli_bench_routing import surely_harmful
from metier_workflows.choosing.harm import Case, Harm, cases, judged, told
from metier_workflows.choosing.made import KINDS, made


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_matrix_can_be_made_and_is_the_same_again(kind: str) -> None:
    train, test = made(KINDS[kind], models=3, train=130, test=70, seed=1)
    again, _ = made(KINDS[kind], models=3, train=130, test=70, seed=1)

    assert (len(train), len(test), train.models) == (130, 70, test.models)
    assert np.array_equal(train.scores, again.scores)
    assert not np.array_equal(train.scores, made(KINDS[kind], models=3, train=130, test=70, seed=2)[0].scores)


def test_made_matrices_are_what_their_kind_says() -> None:
    def of(kind: str) -> tuple[list[float], set[str], set[str]]:
        train, test = made(KINDS[kind], models=4, train=4000, test=4000, seed=0)
        return train.scores.mean(axis=0).tolist(), set(train.categories), set(test.categories)

    leads = of("one leads by 10 points")[0]
    assert leads[0] > max(leads[1:]) + 0.05
    equal = of("equal models")[0]
    assert max(equal) - min(equal) < 0.04
    assert of("no categories")[1] == {""}
    assert of("a category nobody saw")[2] - of("a category nobody saw")[1] == {"kind 0"}
    assert made(KINDS["no answers"], 2, 5, 5, 0)[0].answers is None
    assert made(KINDS["no costs"], 2, 5, 5, 0)[0].costs is None


def test_models_of_a_made_matrix_err_together_and_agree_on_what_is_wrong() -> None:
    train, _ = made(KINDS["equal models"], models=2, train=4000, test=1, seed=0)
    assert train.answers is not None
    wrong = (train.scores == 0).all(axis=1)

    first, second = train.scores.T - train.scores.mean(axis=0)[:, None]
    assert (first * second).mean() / (first.std() * second.std()) > 0.15
    assert 0.25 < (train.answers[wrong, 0] == train.answers[wrong, 1]).mean() < 0.5


def test_cases_are_every_kind_with_every_size_and_seed() -> None:
    found = list(cases([2, 5], [100], 3))

    assert len(found) == len(set(found)) == len(KINDS) * 2 * 3
    assert {one.kind for one in cases([2], [100], 1, ["no costs"])} == {"no costs"}


def test_on_too_few_rows_nothing_is_lost_and_nothing_gained() -> None:
    found = judged(Case("specialists", models=3, rows=80, seed=0))

    assert (found.single, found.combined) == (0, 0)
    assert found.single_hindsight <= 0


def harms(*points: float) -> list[Harm]:
    return [Harm(Case("k", 2, 100, seed), one, 0.0, one - 1, 0.0) for seed, one in enumerate(points)]


def test_the_mean_its_error_and_the_worst_are_told_by_kind_and_over_all() -> None:
    found = told(harms(-1.0, 0.0, 1.0))

    assert set(found) == {"k", "all"}
    single = found["k"]["single"]
    assert (single.cases, single.mean, single.worst) == (3, 0.0, -1.0)
    assert single.error == pytest.approx(1 / 3**0.5)
    assert found["all"]["single_hindsight"].mean == -1.0
    assert told(harms(2.0))["k"]["single"].error == 0.0


@pytest.mark.parametrize(("points", "harmful"), [((-0.6, -0.6), True), ((-0.4, -0.4), False), ((-2.0, 0.7), False)])
def test_only_what_is_surely_half_a_point_below_is_harm(points: tuple[float, ...], harmful: bool) -> None:
    assert surely_harmful(told(harms(*points))["k"]["single"]) == harmful


def test_the_command_shows_every_kind_and_says_the_same_as_json() -> None:
    words = ["bench", "routing", "--models", "2", "--rows", "90", "--seeds", "2", "--kinds", "no costs,equal models"]

    shown = CliRunner().invoke(app, [*words, "--parallel", "1"])
    document = json.loads(CliRunner().invoke(app, [*words, "--parallel", "1", "--json"]).stdout)

    assert shown.exit_code == 0, shown.output
    assert all(kind in shown.output for kind in ("no costs", "equal models", "all"))
    assert len(document["cases"]) == 4
    assert document["kinds"]["all"]["combined"]["worst"] == 0


@pytest.mark.parametrize(
    ("option", "words", "message"),
    [("--models", "two", "not a list"), ("--rows", "0", "below 1"), ("--kinds", "odd", "there are: one leads")],
)
def test_words_that_mean_nothing_are_refused(option: str, words: str, message: str) -> None:
    done = CliRunner().invoke(app, ["bench", "routing", option, words])

    assert done.exit_code != 0
    assert message in str(done.exception)
