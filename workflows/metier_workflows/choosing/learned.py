"""A router that was learned. `fitting` makes it, `routing` and `metier eval routing` ask it, `promotion` stores what `dump` gives and moves versions.

Trust or consensus: where plans proved themselves in fitting, it says the plan of the task's category, and asks one agent only where the first member's vote alone is
enough. Else one agent: the one with the best chance on this task less its cost, if choosing by task proved itself; else the best single model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from metier_workflows.choosing.clusters import Counts
from metier_workflows.choosing.features import Embedder, HashedText
from metier_workflows.choosing.matrix import Floats
from metier_workflows.choosing.packing import packed
from metier_workflows.choosing.plans import Order, Plan
from metier_workflows.choosing.router import Asked, Choice, Option, Topology
from metier_workflows.choosing.skills import SURE, Skills
from metier_workflows.choosing.votes import Votes

FORM, CLUSTERED = 1, 2
"""Of what `dump` gives, without and with clusters; goes up when that changes. A router that was stored before there were clusters has none, and keeps its version."""
DRAWS = 256
"""Draws from the posterior behind a propensity."""


@dataclass(frozen=True)
class Outcome:
    """What came of asking an agent: the task's category, how right it was, 0 to 1, and the task's text, where that was kept."""

    agent: str
    category: str
    score: float
    text: str = ""


@dataclass(frozen=True)
class LearnedRouter:
    """See the module. All that it knows is in its fields; two with equal fields have one version.

    Attributes:
        models, categories: what the rows and columns of its arrays stand for.
        best: the best single model, by place.
        rate: the score that a USD (or a call, where costs are not known) is worth.
        labels: queries that it was fitted on.
        routed: choosing one agent by task proved itself.
        votes, plans: how votes count and whom to ask together, by category, the general plan last; None where that did not prove itself.
        explores: a single agent is drawn from the posterior (Thompson), so that what is not known yet is found out, and outcomes can be weighed by propensity.
    """

    models: tuple[str, ...]
    categories: tuple[str, ...]
    skills: Skills
    best: int
    rate: float
    labels: int
    embedder: Embedder = field(default_factory=HashedText)
    routed: bool = False
    votes: Votes | None = None
    plans: tuple[Plan, ...] | None = None
    explores: bool = False

    @cached_property
    def version(self) -> str:
        """A digest of all that it knows."""
        return "learned-" + hashlib.sha256(self.dump()).hexdigest()[:16]

    def dump(self) -> bytes:
        """All that it knows, as JSON; `router_files.load` reads it. Equal routers give equal bytes."""
        votes = self.votes and {"odds": self.votes.odds, "own": packed(self.votes.own)}
        plans = self.plans and [[plan.order, plan.stop if np.isfinite(plan.stop) else "inf"] for plan in self.plans]
        known = {
            name: getattr(self, name)
            for name in ("models", "categories", "best", "rate", "labels", "routed", "explores")
        }
        form = FORM if self.skills.beliefs.below is None else CLUSTERED
        known |= {"form": form, "embedder": self.embedder.name, "votes": votes, "plans": plans, **self._skills()}
        return json.dumps(known, sort_keys=True, allow_nan=False).encode()

    def _skills(self) -> dict[str, Any]:
        skills, beliefs, below = self.skills, self.skills.beliefs, self.skills.beliefs.below
        counts = (beliefs.right, beliefs.all, beliefs.suspicion, beliefs.since_right, beliefs.since_all)
        return {
            "slopes": packed(skills.slopes),
            "centre": packed(skills.centre),
            "costs": None if skills.costs is None else packed(skills.costs),
            "pull": beliefs.pull,
            "changed": sorted(map(list, beliefs.changed)),
            "beliefs": [packed(one) for one in counts],
        } | ({} if below is None else {"clusters": [packed(one) for one in self._below(below)]})

    def _below(self, counts: Counts) -> tuple[Floats, ...]:
        return self.skills.clusters.centres, counts.parents.astype(np.float64), counts.pulls, counts.right, counts.all

    def with_routes(self, *, routed: bool) -> LearnedRouter:
        """One that chooses by task, or does not."""
        return replace(self, routed=routed)

    def priced(self, rate: float) -> LearnedRouter:
        """One to which a USD is worth so much score."""
        return replace(self, rate=rate)

    def with_plans(self, votes: Votes | None, plans: tuple[Plan, ...] | None) -> LearnedRouter:
        """One that combines agents by these plans."""
        return replace(self, votes=votes, plans=plans)

    def after(self, outcomes: Iterable[Outcome]) -> LearnedRouter:
        """The router that these outcomes make of this one, which stays as it is; those of unknown agents or categories teach it nothing.

        A model that is seen to have changed leaves the plans, which were made for what it was.
        """
        agents, categories = self._places
        seen = [
            (
                at := categories[one.category],
                agents[one.agent],
                min(max(one.score, 0.0), 1.0),
                self._cluster(one.text, at),
            )
            for one in outcomes
            if one.category in categories and one.agent in agents
        ]
        return replace(self, skills=self.skills.believing(self.skills.beliefs.after(seen)))

    @cached_property
    def _places(self) -> tuple[dict[str, int], dict[str, int]]:
        return {name: at for at, name in enumerate(self.models)}, {name: at for at, name in enumerate(self.categories)}

    @cached_property
    def _means(self) -> Floats:
        return np.vstack([self.skills.beliefs.means(), self.skills.beliefs.everywhere()])

    @cached_property
    def _cluster_means(self) -> Floats:
        return self.skills.beliefs.cluster_means()

    @cached_property
    def _parted(self) -> frozenset[int]:
        """The categories that have clusters."""
        return frozenset(self.skills.clusters.parents.tolist())

    def _cluster(self, text: str, category: int) -> int:
        """Where a text belongs within its category; -1: it has no clusters, or there is no text."""
        known = text and category in self._parted
        return self.skills.clusters.of(category, self.embedder.embed(text)) if known else -1

    def choose(self, asked: Asked, agents: Sequence[str], topologies: Collection[Topology]) -> Choice:
        """See `router.Router`."""
        places, categories = self._places
        pool = [name for name in agents if name in places]
        if not pool:
            return _unsure(agents, "none of the agents was there when this router was fitted")
        category = categories.get(asked.category, -1)
        chances = self._chances(asked.text, category)
        prices = self._prices(category)
        choice = self._plan(category, pool, topologies, chances, prices)
        choice = choice or self._one(asked, category, pool, chances, prices, topologies)
        return choice if category >= 0 else replace(choice, confident=False, reason=f"the category {asked.category!r} was not there when this router was fitted")  # fmt: skip

    def _chances(self, text: str, category: int) -> Floats:
        beyond = self.skills.beyond(self.embedder.embed(text)) if self.skills.slopes.size else 0.0
        cluster = self._cluster(text, category)
        mean = self._means[category] if cluster < 0 else self._cluster_means[cluster]
        return np.asarray(np.clip(mean + beyond, SURE, 1 - SURE), np.float64)

    def _prices(self, category: int) -> Floats:
        return np.ones(len(self.models)) if self.skills.costs is None else self.skills.costs[category]

    def _options(
        self, pool: Sequence[str], chances: Floats, prices: Floats, propensities: dict[str, float]
    ) -> tuple[Option, ...]:
        places = self._places[0]
        known = self.skills.costs is not None
        return tuple(
            Option(name, round(float(chances[places[name]]), 9), propensities.get(name, 0.0), float(prices[places[name]]) if known else None)
            for name in pool
        )  # fmt: skip

    def _plan(
        self, category: int, pool: Sequence[str], topologies: Collection[Topology], chances: Floats, prices: Floats
    ) -> Choice | None:
        """The category's plan as far as its members are there, if two or more are; None otherwise."""
        topology: Topology | None = "cascade" if "cascade" in topologies else "panel" if "panel" in topologies else None
        if self.plans is None or self.votes is None or topology is None:
            return None
        plan = self.plans[category]
        order = self._members(plan.order, pool, category)
        if len(order) < 2 <= len(plan.order):
            return None
        weights = self.votes.weights(chances, np.full(1, category))[0][list(order)]
        total = float(weights.sum())
        if (float(weights[0]) >= plan.stop or len(order) == 1) and "specialist" in topologies:
            return self._alone(order[0], pool, chances, prices, f"{self.models[order[0]]} alone is enough here")
        chosen = tuple(self.models[at] for at in order)
        options = self._options(pool, chances, prices, {chosen[0]: 1.0})
        return Choice(
            topology, chosen, tuple(map(float, weights)), options, _because(chosen), min(plan.stop / total, 1.0)
        )

    def _members(self, order: Order, pool: Sequence[str], category: int) -> Order:
        there = set(pool)
        return tuple(
            at for at in order if self.models[at] in there and not self.skills.beliefs.has_changed(at, category)
        )

    def _alone(self, model: int, pool: Sequence[str], chances: Floats, prices: Floats, reason: str) -> Choice:
        name = self.models[model]
        return Choice("specialist", (name,), (1.0,), self._options(pool, chances, prices, {name: 1.0}), reason)

    def _one(
        self, asked: Asked, category: int, pool: Sequence[str], chances: Floats, prices: Floats, topologies: Collection[Topology]
    ) -> Choice:  # fmt: skip
        places = [self._places[0][name] for name in pool]
        routed = self.routed or self.explores
        worth = (chances if routed else self._means[-1])[places] - (self.rate * prices[places] if routed else 0.0)
        if not routed and self.best in places and not self.skills.beliefs.changed:
            worth = np.array([float(at == self.best) for at in places])
        known, cluster = (category, self._cluster(asked.text, category)) if category >= 0 else (None, -1)
        spread = self.skills.beliefs.spread(known, cluster)[places] if self.explores else None
        share = propensities(worth, spread)
        at = (
            int(np.searchsorted(np.cumsum(share), np.random.default_rng(asked.seed).random()))
            if self.explores
            else int(share.argmax())
        )
        at = min(at, len(pool) - 1)
        options = self._options(pool, chances, prices, dict(zip(pool, map(float, share), strict=True)))
        topology: Topology = "specialist" if "specialist" in topologies else min(topologies)
        return Choice(topology, (pool[at],), (1.0,), options, self._reason(routed))

    def _reason(self, routed: bool) -> str:
        return (
            "the best chance on this task, less its cost"
            if routed
            else f"the best single model: nothing else proved itself on {self.labels} labelled queries"
        )


def _because(chosen: tuple[str, ...]) -> str:
    return (
        f"the answers of {len(chosen)} agents together proved better than one: they complement each other, and those whose errors go together share a vote; "
        "those after the first are asked until enough agree"
    )


def propensities(worth: Floats, spread: Floats | None) -> Floats:
    """The chance that each has the highest draw, to 1 in `DRAWS`, where draws are normal about its worth; without a spread the highest has it all."""
    if spread is None:
        sure: Floats = np.zeros(len(worth))
        sure[int(worth.argmax())] = 1.0
        return sure
    wins = np.bincount((worth + spread * _normal(len(worth))).argmax(axis=1), minlength=len(worth))
    shares: Floats = wins / DRAWS
    return shares


@lru_cache(maxsize=64)
def _normal(width: int) -> Floats:
    """The same draws for each decision, so that a propensity depends on what was asked alone."""
    return np.random.default_rng(0).standard_normal((DRAWS, width))


def _unsure(agents: Sequence[str], reason: str) -> Choice:
    options = tuple(Option(name, 0.0, 1.0 / len(agents)) for name in agents)
    return Choice("specialist", (agents[0],), (1.0,), options, reason, confident=False)
