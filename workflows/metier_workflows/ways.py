"""A decision as a whole: who is asked, how, and how votes settle it; and with which chance it would have been made. `router_judging` weighs logged decisions by it. Pure.

Two decisions of one way get the same answer of the same members. What each member is (policy, reasoning, retrieval, safety bundle) is the same in both, since the
candidates of then are chosen among.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from itertools import product

from metier_infra.words import Decision, Wanted
from metier_workflows.asking import weights_of
from metier_workflows.choosing.router import Router
from metier_workflows.panel import EPSILON
from metier_workflows.routing import replayed

Way = tuple[Hashable, ...]
FEW = 6
"""Of so many members it is looked at how every possible vote would end; of more, weights that are not the same make another way."""


def way(decision: Decision) -> Way:
    """What another decision must have in common with this one for its answer to be the same."""
    alone = len(decision.chosen) == 1
    return decision.chosen if alone else (decision.topology, decision.chosen, _votes(decision))


def _votes(decision: Decision) -> Hashable:
    """How votes end: which of any two groups of members weighs more, and which groups are enough for nobody else to be asked."""
    weights = tuple(weights_of(decision).values())
    if len(weights) > FEW:
        return weights, decision.enough
    total = sum(weights)
    shares = [
        sum(one for one, said in zip(weights, who, strict=True) if said) / total
        for who in product((0, 1), repeat=len(weights))
    ]
    ranks = {share: at for at, share in enumerate(sorted({round(one, 9) for one in shares}))}
    return tuple((ranks[round(one, 9)], one >= decision.enough - EPSILON) for one in shares)


def chances(decision: Decision) -> Mapping[Way, float]:
    """Every way with the chance that the version which decided would have taken it; empty where that is not known.

    Of one agent the candidates' chances are those of asking each alone. For several agents it is known where it is certain, as with every plan of a learned router.
    """
    if len(decision.chosen) == 1:
        return {(one.agent,): one.propensity for one in decision.candidates if one.propensity > 0}
    first = next((one.propensity for one in decision.candidates if one.agent == decision.chosen[0]), 0.0)
    return {way(decision): 1.0} if first >= 1 - EPSILON else {}


def chances_then(decision: Decision, wanted: Wanted, routers: Collection[Router]) -> Mapping[Way, float]:
    """The same over both versions that might have decided, while one was on trial: which of them did was drawn, and so either's ways had a chance."""
    own = chances(decision)
    if not decision.share or not own:
        return own
    instead = decision.model_copy(update={"router": decision.other, "canary": not decision.canary})
    other = replayed(instead, wanted, routers)
    theirs = chances(other) if other else dict[Way, float]()
    if not theirs:
        return own
    share = decision.share if decision.canary else 1 - decision.share
    return {one: share * own.get(one, 0.0) + (1 - share) * theirs.get(one, 0.0) for one in {**own, **theirs}}
