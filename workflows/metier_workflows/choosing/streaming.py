"""Learning from feedback, played on a matrix: some queries with all labels, then one query after the other, of which only the chosen model's score is seen.

`metier eval routing` shows what comes of it, without and with a drift: half way, the model that was best until then loses 40 % of its right answers, and nobody is told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from metier_workflows.choosing.beliefs import Beliefs
from metier_workflows.choosing.counting import known_mean
from metier_workflows.choosing.features import HashedText, embedded
from metier_workflows.choosing.matrix import Floats, Matrix
from metier_workflows.choosing.skills import Whole, fit_beliefs, numbered

LABELS = 300
"""Queries with all labels before the stream; never more than a quarter of the matrix."""
LOST = 0.4
"""Share of its right answers that a model loses."""


@dataclass(frozen=True)
class Streamed:
    """How a stream went. Scores are means of what was chosen, 0 to 1.

    Attributes:
        labels, queries: how many with all labels, and how many in the stream.
        mean, last_fifth: of the router.
        frozen, frozen_last_fifth: of the model that was best on the labels, asked always.
        hindsight, hindsight_last_fifth: of the model that turned out best over the whole stream.
        regret: queries that the router got wrong more than that model did; below zero: fewer.
        usd_per_1000: what was asked cost; None where no costs are known.
    """

    labels: int
    queries: int
    mean: float
    last_fifth: float
    frozen: float
    frozen_last_fifth: float
    hindsight: float
    hindsight_last_fifth: float
    regret: float
    usd_per_1000: float | None


def streamed(matrix: Matrix, *, seed: int, drift: bool) -> Streamed:
    """Play the matrix as a stream, in an order that the seed says."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(matrix))
    labels = min(LABELS, len(order) // 4)
    known, rest = matrix.rows(order[:labels].tolist()), matrix.rows(order[labels:].tolist())
    if drift:
        rest = _drifted(rest, random)
    chosen = _played(known, rest, random)
    first = int(np.argmax(known_mean(known.scores, 0)))
    return _told(rest, labels, chosen, first)


def _drifted(rest: Matrix, random: np.random.Generator) -> Matrix:
    half = len(rest) // 2
    scores, best = rest.scores.copy(), int(np.argmax(known_mean(rest.scores[:half], 0)))
    lost = random.random(len(rest) - half) < LOST
    scores[half:, best] = np.where(lost & ~np.isnan(scores[half:, best]), 0.0, scores[half:, best])
    return replace(rest, scores=scores)


def _played(known: Matrix, rest: Matrix, random: np.random.Generator) -> Whole:
    """Which model was asked, for each query of the stream; the router sees categories, and the scores of whom it asked."""
    names = tuple(dict.fromkeys((*known.categories, *rest.categories)))
    categories, coming = numbered(known.categories, names), numbered(rest.categories, names)
    embedder = HashedText()
    beliefs, clusters = fit_beliefs(known.scores, categories, len(names), embedded(embedder, known.texts))
    places = clusters.of_all(coming, embedded(embedder, rest.texts)) if len(clusters) else np.full(len(rest), -1)
    return followed(beliefs, coming, lambda query, model: float(rest.scores[query, model]), random, places)


def followed(
    beliefs: Beliefs, categories: Whole, ask: Callable[[int, int], float], random: np.random.Generator, clusters: Whole
) -> Whole:
    """Whom these beliefs ask for each query, of these categories and clusters (-1: none), learning from each answer before the next.

    `ask` gives the score of one model on one query, NaN if it is not known.
    """
    chosen, beliefs = np.zeros(len(categories), np.int64), beliefs.copy()
    for query, (category, cluster) in enumerate(zip(categories.tolist(), clusters.tolist(), strict=True)):
        chosen[query] = beliefs.act(category, random, cluster)
        score = ask(query, int(chosen[query]))
        if not np.isnan(score):
            beliefs = beliefs.learn(category, int(chosen[query]), score, cluster)
    return chosen


def _told(rest: Matrix, labels: int, chosen: Whole, first: int) -> Streamed:
    each, tail = np.arange(len(rest)), slice(len(rest) - len(rest) // 5 - 1, None)
    got = rest.scores[each, chosen]
    best = int(np.argmax(known_mean(rest.scores, 0)))

    def mean(scores: Floats) -> float:
        return float(known_mean(scores, 0))

    paid = None if rest.costs is None else 1000 * float(rest.costs[each, chosen].mean())
    return Streamed(
        labels=labels,
        queries=len(rest),
        mean=mean(got),
        last_fifth=mean(got[tail]),
        frozen=mean(rest.scores[:, first]),
        frozen_last_fifth=mean(rest.scores[tail, first]),
        hindsight=mean(rest.scores[:, best]),
        hindsight_last_fifth=mean(rest.scores[tail, best]),
        regret=(mean(rest.scores[:, best]) - mean(got)) * len(rest),
        usd_per_1000=paid,
    )
