"""How much choosing is worth on a matrix: fitted on three fifths of the rows, judged on the rest. `metier eval routing` shows it.

That nothing is tuned on rows that judge is so by construction: `fit` is given the training rows and no others; a router is asked with a test row's text and category; and `follow` can
see of its answers and scores only those of models that it asks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from metier_infra.errors import BadSpec
from metier_workflows.choosing.counting import known_mean
from metier_workflows.choosing.features import Embedder
from metier_workflows.choosing.fitting import Fit, best_single
from metier_workflows.choosing.learned import LearnedRouter
from metier_workflows.choosing.matrix import Floats, Matrix
from metier_workflows.choosing.router import Asked, Choice, Topology
from metier_workflows.choosing.streaming import Streamed, streamed

TRAINED = 0.6
EPSILON = 1e-9
ONE: frozenset[Topology] = frozenset({"specialist"})
ANY: frozenset[Topology] = frozenset({"specialist", "cascade"})


@dataclass(frozen=True)
class Reply:
    """What a model that was asked said: its comparable answer (empty: none), how right that is, and what it cost in USD."""

    answer: str
    score: float
    cost: float


@dataclass(frozen=True)
class Followed:
    """What came of a choice: the score of the answer that was taken, USD, calls, and how many of them one after the other."""

    score: float
    cost: float
    calls: int
    depth: int


@dataclass(frozen=True)
class Way:
    """How a way to choose did on the test rows.

    Attributes:
        accuracy: mean score, 0 to 1.
        usd_per_1000: queries; None where no costs are known.
        calls, depth: a query, on average; depth counts those one after the other.
        oracle_gap: of what an oracle has over the best single model, the share that is gained.
        regret: of 1,000 queries, so many more are wrong than with the model that is best on the test rows.
    """

    accuracy: float
    usd_per_1000: float | None
    calls: float
    depth: float
    oracle_gap: float | None
    regret: float


@dataclass(frozen=True)
class Saved:
    """What was saved against the best single model, where as often right as it was on training rows was enough: share of its cost, and the accuracy that it came to."""

    share: float
    accuracy: float


@dataclass(frozen=True)
class Spent:
    """CPU time of a decision, in milliseconds: half and 99 % take no longer."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Seed:
    """All figures of one split. `ways` by name; `decided_ms` says how long a decision takes, and `fit_s` is by the wall clock."""

    seed: int
    train: int
    test: int
    best_single: str
    routes: bool
    combines: bool
    ways: dict[str, Way]
    saved: dict[str, Saved]
    streams: dict[str, Streamed]
    decided_ms: dict[str, Spent]
    fit_s: float


def split(matrix: Matrix, seed: int) -> tuple[list[int], list[int]]:
    """Training and test rows: three fifths of each task's, drawn by the seed, and the rest. Tasks of one row only are split together."""
    random = np.random.default_rng(seed)
    alone = {task for task, rows in Counter(matrix.tasks).items() if rows == 1}
    tasks = np.array(["" if task in alone else task for task in matrix.tasks])
    train = np.zeros(len(matrix), bool)
    for task in sorted(set(tasks.tolist())):
        rows = random.permutation(np.flatnonzero(tasks == task))
        train[rows[: round(TRAINED * len(rows))]] = True
    return np.flatnonzero(train).tolist(), np.flatnonzero(~train).tolist()


Features = Callable[[Sequence[str]], Embedder]
"""What makes an embedder of training texts."""


def judged(matrix: Matrix, seed: int, features: Features | None = None) -> Seed:
    """Fit on one split and judge on it; texts are hashed, or embedded by what `features` makes of the training texts.

    Raises `BadSpec` where either part would be empty.
    """
    train, test = (matrix.rows(rows) for rows in split(matrix, seed))
    if not len(train) or not len(test):
        raise BadSpec(
            f"{len(matrix)} queries cannot be split into three fifths to learn from and the rest to judge by; bring more"
        )
    began = time.perf_counter()
    fitted = Fit(train, embedder=features(train.texts) if features else None)
    router = fitted.router()
    fit_s = time.perf_counter() - began
    best = train.models[best_single(train)]
    ways = {"best_single": _fixed(test, test.models.index(best)), "random": _spread(test), "oracle": _oracle(test)}
    decided: dict[str, Spent] = {}
    for name, topologies in {"single": ONE, "combined": ANY}.items():
        ways[name], decided[name] = _asked(test, router, topologies)
    top = ways["best_single"].accuracy, ways["oracle"].accuracy
    thrifty = dict(zip(("single", "combined"), fitted.thrifty(), strict=True)) if test.costs is not None else {}
    saved = {
        name: _saved(test, one, ANY if name == "combined" else ONE, ways["best_single"])
        for name, one in thrifty.items()
    }
    return Seed(
        seed=seed,
        train=len(train),
        test=len(test),
        best_single=best,
        routes=router.routed,
        combines=router.plans is not None,
        ways={name: _placed(way, top, test) for name, way in ways.items()},
        saved=saved,
        streams={name: streamed(matrix, seed=seed, drift=name == "drift") for name in ("steady", "drift")},
        decided_ms=decided,
        fit_s=fit_s,
    )


def follow(choice: Choice, ask: Callable[[str], Reply]) -> Followed:
    """Ask as the choice says, wave by wave as `panel.next_wave` does: who is in a wave would have been asked anyway, so that nobody is asked in vain."""
    total, left, depth = sum(choice.weights), list(zip(choice.chosen, choice.weights, strict=True)), 0
    replies: list[tuple[Reply, float]] = []
    behind: dict[str, float] = {}
    while left and max(behind.values(), default=0.0) < choice.enough * total - EPSILON:
        size = _wave([weight for _, weight in left], choice.enough * total - max(behind.values(), default=0.0))
        wave, left, depth = left[:size], left[size:], depth + 1
        for name, weight in wave:
            reply = ask(name)
            replies.append((reply, weight))
            if reply.answer:
                behind[reply.answer] = behind.get(reply.answer, 0.0) + weight
    return Followed(_taken(replies, behind), sum(reply.cost for reply, _ in replies), len(replies), depth)


def _wave(weights: list[float], need: float) -> int:
    enough = np.flatnonzero(np.cumsum(weights) >= need - EPSILON)
    return int(enough[0]) + 1 if len(enough) else len(weights)


def _taken(replies: list[tuple[Reply, float]], behind: dict[str, float]) -> float:
    """The score of the answer with the most weight behind it, as its strongest supporter gave it; without any answer, of the first reply."""
    if not behind:
        return replies[0][0].score
    leader = max(behind, key=lambda answer: behind[answer])
    return max(((weight, reply.score) for reply, weight in replies if reply.answer == leader), key=lambda one: one[0])[
        1
    ]


def accuracy(test: Matrix, router: LearnedRouter, topologies: Collection[Topology]) -> float:
    """The mean score of what a router takes on these rows, 0 to 1."""
    return _asked(test, router, topologies)[0].accuracy


def _asked(test: Matrix, router: LearnedRouter, topologies: Collection[Topology]) -> tuple[Way, Spent]:
    went, spent_ms = list[Followed](), list[float]()
    for row, (text, category) in enumerate(zip(test.texts, test.categories, strict=True)):
        began = time.thread_time()
        choice = router.choose(Asked(text, category, seed=row), test.models, topologies)
        spent_ms.append(1000 * (time.thread_time() - began))
        went.append(follow(choice, asking(test, row)))
    p50, p99 = np.quantile(spent_ms, (0.5, 0.99)).tolist()
    costs = np.array([one.cost for one in went])
    way = _way(
        test,
        np.array([one.score for one in went]),
        costs,
        float(np.mean([one.calls for one in went])),
        float(np.mean([one.depth for one in went])),
    )
    return way, Spent(p50, p99)


def asking(matrix: Matrix, row: int) -> Callable[[str], Reply]:
    """What answers for the models on this row: it says of a model what that said, once it is asked."""

    def ask(name: str) -> Reply:
        model = matrix.models.index(name)
        answer = "" if matrix.answers is None else str(matrix.answers[row, model])
        cost = 0.0 if matrix.costs is None else float(matrix.costs[row, model])
        return Reply(answer, float(matrix.scores[row, model]), cost)

    return ask


def _mean(scores: Floats) -> float:
    return float(known_mean(scores, 0))


def _way(test: Matrix, scores: Floats, costs: Floats, calls: float, depth: float) -> Way:
    return Way(_mean(scores), None if test.costs is None else 1000 * float(costs.mean()), calls, depth, None, 0.0)


def _fixed(test: Matrix, model: int) -> Way:
    costs = np.zeros(len(test)) if test.costs is None else test.costs[:, model]
    return _way(test, test.scores[:, model], costs, 1.0, 1.0)


def _spread(test: Matrix) -> Way:
    """Asking a model at random, in the mean over all draws."""
    costs = np.zeros(len(test)) if test.costs is None else test.costs.mean(axis=1)
    each = np.where(np.isnan(test.scores).all(axis=1), np.nan, known_mean(test.scores, 1))
    return _way(test, each, costs, 1.0, 1.0)


def _oracle(test: Matrix) -> Way:
    """Asking the cheapest of the models that do best on the query."""
    scores = np.where(np.isnan(test.scores), -1.0, test.scores)
    best = scores >= scores.max(axis=1, keepdims=True)
    costs = np.zeros(test.scores.shape) if test.costs is None else test.costs
    chosen = np.where(best, costs, np.inf).argmin(axis=1)
    each = np.arange(len(test))
    return _way(test, test.scores[each, chosen], costs[each, chosen], 1.0, 1.0)


def _placed(way: Way, top: tuple[float, float], test: Matrix) -> Way:
    """With the share of the gap between the best single model and the oracle, and the regret."""
    best, oracle = top
    gap = (way.accuracy - best) / (oracle - best) if oracle - best > EPSILON else None
    hindsight = max(_mean(test.scores[:, model]) for model in range(len(test.models)))
    return Way(way.accuracy, way.usd_per_1000, way.calls, way.depth, gap, 1000 * (hindsight - way.accuracy))


def _saved(test: Matrix, router: LearnedRouter, topologies: Collection[Topology], best: Way) -> Saved:
    way, _ = _asked(test, router, topologies)
    paid, before = way.usd_per_1000 or 0.0, best.usd_per_1000 or 0.0
    return Saved(1 - paid / before if before else 0.0, way.accuracy)
