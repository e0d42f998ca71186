"""How much each model's vote counts: learned from which answers agreed, and which were right. `plans` weighs panels by it, `learned` too.

A conditional logit (McFadden, 1974) over the different answers to a query, with "none is right" as one more: the utility of an answer is the sum of the weights of
those who gave it. A model's weight in a category is a share of the log-odds that it is right there, plus a part of its own, plus a part of its own in the category; both parts
are shrunk to zero. Since the weights are fitted together, models that make the same errors share one vote between them, which independent log-odds would count twice: that
is where the correlation of errors enters, by category.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metier_workflows.choosing.matrix import Floats
from metier_workflows.choosing.skills import Whole

OWN, OWN_HERE, ODDS, NONE_HERE = 10.0, 30.0, 1.0, 1.0
"""How strongly the parts are shrunk: a model's own, its own in a category, the share of the log-odds (to 1), and the constant of "none is right" in a category."""
LEAST = 0.01
"""A vote counts at least this: nobody's answer is held against it."""
STEPS, MEMORY = 80, 8
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Votes:
    """Weights: `odds` times the log-odds of a chance, plus `own`, categories by models; the last row is for a category that is not known."""

    odds: float
    own: Floats

    def weights(self, chances: Floats, categories: Whole) -> Floats:
        """Of each model's vote on each task."""
        return np.maximum(self.odds * np.log(chances / (1 - chances)) + self.own[categories], LEAST)


def coded(answers: NDArray[np.str_]) -> Whole:
    """Answers as numbers that are equal where the texts are; below zero, and different for each model, where there is no answer."""
    codes: Whole = np.unique(answers.ravel(), return_inverse=True)[1].reshape(answers.shape).astype(np.int64)
    said: Flags = np.not_equal(answers, "")
    return np.where(said, codes, -1 - _places(answers.shape[1]))


def _places(models: int) -> Whole:
    places: Whole = np.arange(models, dtype=np.int64)
    return places


def fit_votes(codes: Whole, scores: Floats, chances: Floats, categories: Whole, width: int) -> Votes:
    """Learn from these rows: who answered what, how right that is (NaN: not known), and how likely each was to be right."""
    logit = _Logit(codes, scores, np.log(chances / (1 - chances)), categories, width)
    found = descended(logit.loss, np.r_[1.0, np.zeros((width + 1) * (codes.shape[1] + 1))])
    parts = found[1:].reshape(width + 1, -1)[:, :-1]
    return Votes(float(found[0]), np.vstack([parts[1:] + parts[0], parts[:1]]))


class _Logit:
    """The likelihood of which answer is right, with its gradient. `camps[n, g]` are those who gave the answer that model g was the first to give."""

    def __init__(self, codes: Whole, scores: Floats, odds: Floats, categories: Whole, width: int) -> None:
        count = codes.shape[1]
        said = codes >= 0
        same: Flags = (codes[:, :, None] == codes[:, None, :]) & said[:, :, None]
        first: Flags = np.equal(np.argmax(same, axis=2), _places(count)) & said
        self.first: Flags = first & ~np.isnan(scores)
        self.camps = (same & self.first[:, :, None]).astype(np.float32)
        self.right: Flags = self.first & (np.nan_to_num(scores) > 0.5)
        self.none: Flags = np.logical_not(np.any(self.right, axis=1))
        self.odds: Floats = np.einsum("ngm,nm->ng", self.camps, odds)
        self.categories = categories
        self.member = (categories == np.arange(width)[:, None]).astype(np.float64)
        self.ridge = np.r_[np.full(1, OWN), np.full(width, OWN_HERE)][:, None] * np.ones(count + 1)
        self.ridge[:, -1] = np.r_[0.0, np.full(width, NONE_HERE)]

    def loss(self, at: Floats) -> tuple[float, Floats]:
        """The penalised negative log-likelihood and its gradient."""
        share, parts = float(at[0]), at[1:].reshape(self.ridge.shape)
        own = parts[0] + parts[1 + self.categories]
        utility: Floats = share * self.odds + np.matmul(self.camps, own[:, :-1, None].astype(np.float32))[:, :, 0]
        utility = np.where(self.first, utility, -np.inf)
        top = np.maximum(utility.max(axis=1), own[:, -1])
        gain, none = np.exp(utility - top[:, None]), np.exp(own[:, -1] - top)
        whole = gain.sum(axis=1) + none
        hit = np.where(self.right, gain, 0.0)
        hits: Floats = hit.sum(axis=1) + np.where(self.none, none, 1e-300)
        push = np.where(self.none[:, None], 0.0, hit / hits[:, None]) - gain / whole[:, None]
        pull = np.where(self.none, 1.0, 0.0) - none / whole
        loss = float(
            np.log(whole).sum()
            - np.log(hits).sum()
            + 0.5 * (self.ridge * parts**2).sum()
            + 0.5 * ODDS * (share - 1) ** 2
        )
        return loss, np.r_[
            ODDS * (share - 1) - float((push * self.odds).sum()), (self.ridge * parts - self._parts(push, pull)).ravel()
        ]

    def _parts(self, push: Floats, pull: Floats) -> Floats:
        each = np.c_[np.matmul(push[:, None, :].astype(np.float32), self.camps)[:, 0, :], pull]
        return np.vstack([each.sum(axis=0), self.member @ each])


def descended(loss: Callable[[Floats], tuple[float, Floats]], at: Floats) -> Floats:
    """Where a smooth loss is least, by L-BFGS (Nocedal, 1980) with steps halved until the loss falls enough."""
    here, slope = loss(at)
    moves: list[tuple[Floats, Floats]] = []
    for _ in range(STEPS):
        way = _direction(slope, moves)
        step = 1.0 if moves else 1 / max(float(np.linalg.norm(slope)), 1e-12)
        there, next_slope = loss(at - step * way)
        while there > here - 1e-4 * step * float(slope @ way) and step > 1e-8:
            step /= 2
            there, next_slope = loss(at - step * way)
        if step <= 1e-8:
            break
        moves = [*moves, (-step * way, next_slope - slope)][-MEMORY:]
        done = here - there < 1e-7 * abs(here)
        at, here, slope = at - step * way, there, next_slope
        if done:
            break
    return at


def _direction(slope: Floats, moves: list[tuple[Floats, Floats]]) -> Floats:
    way, shares = slope.copy(), list[float]()
    for move, change in reversed(moves):
        shares.append(float(move @ way) / float(change @ move))
        way -= shares[-1] * change
    if moves:
        move, change = moves[-1]
        way *= float(move @ change) / float(change @ change)
    for (move, change), share in zip(moves, reversed(shares), strict=True):
        way += move * (share - float(change @ way) / float(change @ move))
    return way
