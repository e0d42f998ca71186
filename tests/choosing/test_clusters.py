"""The level below the category: found where texts and scores speak for it and nowhere else, counted, stored, and let go."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from metier_infra.errors import BadSpec
from metier_workflows.choosing import clusters
from metier_workflows.choosing.beliefs import EVERYWHERE, Beliefs
from metier_workflows.choosing.clusters import Clusters, Counts
from metier_workflows.choosing.fitting import fit
from metier_workflows.choosing.learned import LearnedRouter, Outcome
from metier_workflows.choosing.matrix import Floats, Matrix
from metier_workflows.choosing.packing import packed
from metier_workflows.choosing.router import Asked, Topology
from metier_workflows.choosing.router_files import load
from metier_workflows.choosing.skills import fit_beliefs, numbered
from metier_workflows.choosing.streaming import followed

from .kit import drawn, first

ONE: frozenset[Topology] = frozenset({"specialist"})
PROVE, NAME = "prove that this theorem holds", "name the capital of France"


def two_kinds(apart: float = 0.4) -> Matrix:
    """600 queries of one category, of which texts say which of two kinds they are; each model is better at one of them."""
    matrix = drawn(np.full((1, 2), 0.5), answers=False)
    prove = np.random.default_rng(5).random(600) < 0.5
    luck = np.random.default_rng(6).random((600, 2))
    better = np.where(prove[:, None], [[apart, 0.0]], [[0.0, apart]])
    texts = tuple(f"{PROVE if one else NAME} {at}" for at, one in enumerate(prove))
    return replace(matrix, texts=texts, scores=(luck < 0.5 + better).astype(float))


class Kind:
    """An embedder that sees the kind and nothing else."""

    name = "kind-1"
    width = 2

    def embed(self, text: str) -> Floats:
        return np.array([1.0, 0.0] if text.startswith("prove") else [0.0, 1.0])


def found(matrix: Matrix) -> tuple[Beliefs, Clusters]:
    known = tuple(sorted(set(matrix.categories)))
    vectors = np.stack([Kind().embed(text) for text in matrix.texts])
    return fit_beliefs(matrix.scores, numbered(matrix.categories, known), len(known), vectors)


def test_kinds_that_texts_tell_apart_and_models_do_differently_on_are_clusters() -> None:
    beliefs, some = found(two_kinds())

    means = beliefs.cluster_means()
    prove, name = (some.of(0, Kind().embed(text)) for text in (PROVE, NAME))
    assert {prove, name} == {0, 1}
    assert means[prove, 0] > 0.8
    assert means[prove, 1] < 0.6
    assert means[name, 1] > 0.8
    assert means[name, 0] < 0.6


@pytest.mark.parametrize("seed", range(10))
def test_where_scores_do_not_follow_the_texts_there_are_no_clusters(seed: int) -> None:
    matrix = two_kinds()
    order = np.random.default_rng(seed).permutation(600)

    beliefs, some = found(replace(matrix, scores=matrix.scores[order]))

    assert (len(some), beliefs.below) == (0, None)


def test_of_few_queries_or_of_kinds_that_are_hard_for_all_there_are_no_clusters() -> None:
    matrix = two_kinds()
    hard = np.where([[text.startswith("prove")] * 2 for text in matrix.texts], 1.0, matrix.scores * 0)

    plain = np.where([[text.startswith("prove"), text.startswith("name")] for text in matrix.texts], 1.0, 0.0)

    assert [len(found(first(replace(matrix, scores=plain), rows))[1]) for rows in (29, 30)] == [0, 2]
    assert len(found(replace(matrix, scores=hard))[1]) == 0


def test_models_that_err_together_are_one_witness() -> None:
    random = np.random.default_rng(2)
    groups = np.arange(300) % 2
    apart = random.normal(0, 1, (300, 2)) + np.where(groups[:, None] == 0, [[0.12, 0.0]], [[0.0, 0.12]])
    once = clusters.likelihoods(apart, groups, 2)

    copied = clusters.likelihoods(np.repeat(apart, 5, axis=1), groups, 2)

    assert copied == pytest.approx(once, rel=1e-9)
    assert clusters.likelihoods(np.add(apart, [[3.0, -3.0]]), groups, 2) == pytest.approx(once, rel=1e-6)


def test_scores_that_are_not_known_neither_speak_for_clusters_nor_against() -> None:
    random = np.random.default_rng(3)
    full, groups = random.normal(0, 1, (400, 2)), np.arange(400) % 2
    some = full.copy()
    some[200:] = np.nan

    half = clusters.likelihoods(full[:200], groups[:200], 2)

    assert clusters.likelihoods(some, groups, 2) == pytest.approx(half)


def test_models_without_a_difference_say_nothing() -> None:
    assert clusters.likelihoods(np.zeros((20, 3)), np.arange(20) % 2, 2).max() == -np.inf
    assert len(clusters.found(np.zeros((60, 3)), np.zeros(60, np.int64), np.eye(60))) == 0


def test_centres_are_the_means_of_what_is_near_and_the_same_again() -> None:
    points = np.r_[np.full((20, 2), 1.0), np.full((30, 2), 5.0), np.full((10, 2), 9.0)]

    centres = clusters.k_means(points, 3)

    assert sorted(centres[:, 0].tolist()) == [1.0, 5.0, 9.0]
    assert clusters.k_means(points, 3).tolist() == centres.tolist()
    assert clusters.k_means(np.ones((8, 2)), 2).tolist() == [[1.0, 1.0]]


def counts(pull: float) -> Beliefs:
    """One category of 100 queries with one cluster of 10; two models."""
    below = Counts(np.array([[9.0, 2.0]]), np.array([[10.0, 10.0]]), np.zeros(1, np.int64), np.array([pull]))
    return Beliefs(np.array([[60.0, 60.0]]), np.array([[100.0, 100.0]]), 20.0, below=below)


def test_a_strong_pull_makes_a_cluster_its_category_and_a_weak_one_lets_it_be() -> None:
    category = counts(1.0).means()[0]
    strong, weak = counts(1e12).cluster_means()[0], counts(1.0).cluster_means()[0]

    assert strong == pytest.approx(category, abs=1e-6)
    assert weak == pytest.approx([0.9, 0.2], abs=0.05)
    assert counts(1e12).spread(0, 0) == pytest.approx(counts(1e12).spread(0), rel=1e-6)
    assert counts(1.0).spread(0, 0).min() > counts(1.0).spread(0).max()


def test_a_cluster_that_is_hard_for_one_is_expected_to_be_hard_for_one_who_was_not_asked_there() -> None:
    below = Counts(np.array([[5.0, 0.0]]), np.array([[100.0, 0.0]]), np.zeros(1, np.int64), np.array([20.0]))
    start = Beliefs(np.array([[300.0, 250.0]]), np.array([[500.0, 400.0]]), 20.0, below=below)

    assert start.cluster_means()[0, 1] < start.means()[0, 1] - 0.2


def test_draws_are_of_the_cluster_where_there_is_one() -> None:
    random, beliefs = np.random.default_rng(0), counts(1.0)

    assert sum(beliefs.act(0, random, 0) for _ in range(200)) < 10
    assert 50 < sum(beliefs.act(0, random) for _ in range(200)) < 150


def test_a_stream_draws_and_learns_by_cluster() -> None:
    def right(_: int, model: int) -> float:
        return float(model == 0)

    chosen = followed(counts(1.0), np.zeros(100, np.int64), right, np.random.default_rng(0), np.zeros(100, np.int64))
    without = followed(counts(1.0), np.zeros(100, np.int64), right, np.random.default_rng(0), np.full(100, -1))

    assert chosen[:10].sum() == 0
    assert without[:10].sum() > 0


def test_an_outcome_counts_in_its_cluster_and_in_its_category() -> None:
    start = counts(5.0)

    after = start.after([(0, 1, 1.0, 0), (0, 0, 0.0)])

    assert start.below is not None
    assert after.below is not None
    assert (after.right.tolist(), after.all.tolist()) == ([[60.0, 61.0]], [[101.0, 101.0]])
    assert (after.below.right.tolist(), after.below.all.tolist()) == ([[9.0, 3.0]], [[10.0, 11.0]])
    assert start.below.right.tolist() == [[9.0, 2.0]]


@pytest.mark.parametrize(("category", "left"), [(1, [[9.0, 2.0], [0.0, 4.0]]), (EVERYWHERE, [[0.0, 2.0], [0.0, 4.0]])])
def test_what_is_forgotten_of_a_model_is_forgotten_below_too(category: int, left: list[list[float]]) -> None:
    below = Counts(np.array([[9.0, 2.0], [8.0, 4.0]]), np.full((2, 2), 10.0), np.array([0, 1]), np.full(2, 5.0))

    below.forget(category, 0)

    assert below.right.tolist() == left
    assert below.all[1].tolist() == [0.0, 10.0]


def test_a_model_that_changed_has_no_old_record_in_its_clusters() -> None:
    below = Counts(np.array([[450.0]]), np.array([[500.0]]), np.zeros(1, np.int64), np.array([20.0]))
    start = Beliefs(np.array([[900.0]]), np.array([[1000.0]]), 20.0, below=below)

    after = start.after([(0, 0, float(at % 2), 0) for at in range(150)])

    assert after.changed
    assert after.cluster_means()[0, 0] < 0.7


@pytest.fixture(scope="module")
def clustered() -> LearnedRouter:
    return fit(two_kinds(), embedder=Kind())


def test_a_router_asks_who_is_good_at_a_texts_kind_and_comes_back_from_its_bytes(clustered: LearnedRouter) -> None:
    again = load(clustered.dump(), Kind())

    assert len(clustered.skills.clusters) == 2
    for router in (clustered, again, replace(clustered, explores=True)):
        chosen = [router.choose(Asked(text, "kind 0"), ("m0", "m1"), ONE).chosen for text in (PROVE, NAME)]
        assert chosen == [("m0",), ("m1",)]
    assert (again.dump(), again.version) == (clustered.dump(), clustered.version)


def test_a_router_that_explores_explores_a_cluster_of_which_it_knows_little(clustered: LearnedRouter) -> None:
    skills = replace(clustered.skills, slopes=np.zeros((0, 2)))
    beliefs, pulls = skills.beliefs, np.ones(2)
    few = Counts(np.array([[3.0, 2.0], [2.0, 3.0]]), np.full((2, 2), 5.0), np.zeros(2, np.int64), pulls)
    router = replace(clustered, skills=skills.believing(replace(beliefs, below=few)), explores=True)

    shares = [one.propensity for one in router.choose(Asked(PROVE, "kind 0"), ("m0", "m1"), ONE).options]

    assert min(shares) > 0.02


def test_a_router_without_clusters_has_the_bytes_that_it_had_before_there_were_any() -> None:
    told = json.loads(fit(drawn(np.full((1, 2), 0.5))).dump())

    assert told["form"] == 1
    assert "clusters" not in told


def test_an_outcome_with_its_text_moves_its_cluster_and_one_without_does_not(clustered: LearnedRouter) -> None:
    told = [Outcome("m0", "kind 0", 1.0, text=PROVE)] * 30

    moved, same = (clustered.after(said).skills.beliefs.below for said in (told, [replace(told[0], text="")] * 30))

    before = clustered.skills.beliefs.below
    assert before is not None
    assert moved is not None
    assert same is not None
    assert moved.all.sum() == before.all.sum() + 30
    assert same.all.tolist() == before.all.tolist()


@pytest.mark.parametrize("at", range(5))
def test_clusters_that_do_not_fit_are_refused(clustered: LearnedRouter, at: int) -> None:
    stored = json.loads(clustered.dump())
    stored["clusters"][at] = packed(np.zeros((3, 3)))

    with pytest.raises(BadSpec):
        load(json.dumps(stored).encode(), Kind())


def test_clusters_of_a_category_that_is_not_there_are_refused(clustered: LearnedRouter) -> None:
    stored = json.loads(clustered.dump())
    stored["clusters"][1] = packed(np.array([0.0, 1.0]))

    with pytest.raises(BadSpec, match="do not fit"):
        load(json.dumps(stored).encode(), Kind())
