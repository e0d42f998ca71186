"""A learned router from the bytes that its `dump` gave. `stored` keeps those in the journal.

Sizes that do not fit each other are refused, so that a broken file does not become a strange choice.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from metier_infra.errors import BadSpec
from metier_workflows.choosing.beliefs import Beliefs
from metier_workflows.choosing.clusters import Clusters, Counts
from metier_workflows.choosing.features import Embedder, HashedText
from metier_workflows.choosing.learned import CLUSTERED, FORM, LearnedRouter
from metier_workflows.choosing.packing import unpacked
from metier_workflows.choosing.plans import Plan
from metier_workflows.choosing.skills import Skills
from metier_workflows.choosing.votes import Votes


def load(stored: bytes, embedder: Embedder | None = None) -> LearnedRouter:
    """The router of these bytes; one that was fitted with an embedder of your own is only loaded with it.

    Raises:
        BadSpec: they are not what `LearnedRouter.dump` gives, or the embedder is another one.
    """
    try:
        known = json.loads(stored)
        router = _router(known, _embedder(known, embedder))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as wrong:
        raise BadSpec(f"these bytes are no router that was learned by this version of Métier: {wrong!r}") from wrong
    _check(router)
    return router


def _router(known: dict[str, Any], embedder: Embedder) -> LearnedRouter:
    if known["form"] not in {FORM, CLUSTERED}:
        raise ValueError(f"form {known['form']}, and this version reads the forms {FORM} and {CLUSTERED}")
    right, count, suspicion, since_right, since_all = (unpacked(one) for one in known["beliefs"])
    changed = frozenset((int(row), int(model)) for row, model in known["changed"])
    clusters, below = _clusters(known["clusters"]) if known["form"] == CLUSTERED else (Clusters(), None)
    beliefs = Beliefs(right, count, float(known["pull"]), suspicion, since_right, since_all, changed, below)
    costs = None if known["costs"] is None else unpacked(known["costs"])
    votes, plans = known["votes"], known["plans"]
    return LearnedRouter(
        models=tuple(known["models"]),
        categories=tuple(known["categories"]),
        skills=Skills(beliefs, unpacked(known["slopes"]), unpacked(known["centre"]), costs, clusters),
        best=int(known["best"]),
        rate=float(known["rate"]),
        labels=int(known["labels"]),
        embedder=embedder,
        routed=bool(known["routed"]),
        explores=bool(known["explores"]),
        votes=None if votes is None else Votes(float(votes["odds"]), unpacked(votes["own"])),
        plans=None if plans is None else tuple(Plan(tuple(order), float(stop)) for order, stop in plans),
    )


def _clusters(stored: list[dict[str, Any]]) -> tuple[Clusters, Counts]:
    centres, parents, pulls, right, count = (unpacked(one) for one in stored)
    places = parents.astype(np.int64)
    return Clusters(centres, places, pulls), Counts(right, count, places, pulls)


def _embedder(known: dict[str, Any], given: Embedder | None) -> Embedder:
    name: str = known["embedder"]
    if given is not None and given.name == name:
        return given
    if name.startswith("hashed-"):
        return HashedText(int(name.removeprefix("hashed-")))
    raise BadSpec(f"this router was fitted with the embedder {name}, which has to be given to load it")


def _check(router: LearnedRouter) -> None:
    """Every array fits the models and categories, and every plan names models that are there."""
    rows, columns, beliefs = len(router.categories), len(router.models), router.skills.beliefs
    own = None if router.votes is None else router.votes.own
    further = (beliefs.suspicion, beliefs.since_right, beliefs.since_all, router.skills.costs, own)
    fits = all(one.shape == (rows, columns) for one in (beliefs.right, beliefs.all))
    fits &= all(one.shape == (rows + 1, columns) for one in further if one is not None)
    slopes = router.skills.slopes
    fits &= not slopes.size or slopes.shape == (router.embedder.width, columns)
    fits &= beliefs.below is None or _belongs(router.skills.clusters, beliefs.below, router)
    members = {
        router.best,
        *(model for _, model in beliefs.changed),
        *(at for plan in router.plans or () for at in plan.order),
    }
    fits &= all(-1 <= row < rows for row, _ in beliefs.changed)
    if not fits or not columns or not all(0 <= at < columns for at in members):
        raise BadSpec(f"this router's parts do not fit its {columns} models and {rows} categories")
    if router.plans is not None and (len(router.plans) != rows + 1 or not all(plan.order for plan in router.plans)):
        raise BadSpec(f"this router has {len(router.plans)} plans, for {rows} categories and one for all")


def _belongs(clusters: Clusters, counts: Counts, router: LearnedRouter) -> bool:
    """Whether every cluster is of a category that is there, and has a centre and counts."""
    count, columns = len(clusters.centres), len(router.models)
    parts = (clusters.centres, clusters.parents, clusters.pulls, counts.right, counts.all)
    shapes = ((count, router.embedder.width), (count,), (count,), (count, columns), (count, columns))
    fits = tuple(one.shape for one in parts) == shapes
    return fits and all(0 <= parent < len(router.categories) for parent in clusters.parents.tolist())
