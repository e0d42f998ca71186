"""Plans: whom to ask in which order, and when to stop; how they would have gone on rows whose answers are known; the search for the best. `fitting` calls it.

A plan's worth on a query is the score of the answer with the most weight behind it, less what was paid at the exchange rate. The search climbs: it adds,
exchanges, swaps and removes members as long as that pays. Since it counts what the members would really have said *together*, it takes the one who adds
something, not the one who is good alone: two models with the same errors are worth no more than one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from metier_workflows.choosing.matrix import Floats
from metier_workflows.choosing.skills import Whole

LARGEST = 6
"""Members of a plan, at the most."""
STOPS = (0.6, 0.8, 1.0, 1.2, 1.4, 1.7, 2.0, 2.5, 3.0, np.inf)
"""Weights behind one answer at which a plan may stop, in units of the usual weight of a query's strongest vote; the last: never before all were asked."""
CLIMBS, CLIMBERS = 12, 2
"""Steps of a climb at the most, and from how many of the starts there is one."""
TRIED = 5
"""So many further models are tried in every place of a plan: those that would add most in the last."""
RISE = 1e-4
"""Worth that a step must bring."""
WEIGHED = 6
"""So many of the best moves within a category are also weighed by how they go everywhere."""
SAMPLE = 1500
"""Rows on which the worth of a plan over all categories is estimated in the search."""

Order = tuple[int, ...]
Worth = Callable[[Order], Floats]


@dataclass(frozen=True)
class Plan:
    """Ask the models `order`, one after the other, until so much weight as `stop` is behind one answer."""

    order: Order
    stop: float


@dataclass(frozen=True)
class Played:
    """How a plan went, by query: score of the answer taken, USD (or calls, where costs are not known), calls."""

    scores: Floats
    costs: Floats
    calls: Floats


@dataclass(frozen=True)
class Past:
    """Rows whose answers are known: who said what, how right it was (no NaN), what it cost, how much each vote counts. All queries by models.

    `unit` is the usual weight of the strongest vote; `rate` what a USD is worth in score.
    """

    codes: Whole
    scores: Floats
    costs: Floats
    weights: Floats
    rate: float
    unit: float

    def __len__(self) -> int:
        return len(self.codes)

    def rows(self, at: Whole) -> Past:
        """These rows only."""
        return Past(self.codes[at], self.scores[at], self.costs[at], self.weights[at], self.rate, self.unit)

    def play(self, plan: Plan) -> Played:
        """How the plan would have gone."""
        scores, leads = self._standings(plan.order)
        last = (leads[:, :-1] < plan.stop).sum(axis=1)
        each, paid = np.arange(len(self)), np.cumsum(self.costs[:, plan.order], axis=1)
        return Played(scores[each, last], paid[each, last], last + 1.0)

    def _standings(self, order: Order) -> tuple[Floats, Floats]:
        """After each answer: the score of the one that leads, and the weight behind it."""
        codes, each = self.codes[:, order], np.arange(len(self))
        weights, scores = np.where(codes >= 0, self.weights[:, order], 0.0), self.scores[:, order]
        behind, led, leads = (np.zeros(codes.shape) for _ in range(3))
        for at in range(len(order)):
            same = codes[:, : at + 1] == codes[:, at : at + 1]
            behind[:, at] = (weights[:, :at] * same[:, :at]).sum(axis=1)
            behind[:, : at + 1] += same * weights[:, at : at + 1]
            leader = behind[:, : at + 1].argmax(axis=1)
            led[:, at], leads[:, at] = scores[each, leader], behind[each, leader]
        return led, leads

    def stops(self, order: Order) -> Floats:
        """The stops that a plan of this order may have."""
        return np.array(STOPS if len(order) > 1 else STOPS[:1]) * self.unit

    def worth(self, order: Order) -> Floats:
        """The mean worth of this order, by stops: of the first answer, and what each further one changes where it is asked."""
        scores, leads = self._standings(order)
        first = float((scores[:, 0] - self.rate * self.costs[:, order[0]]).mean())
        worth = np.full(len(self.stops(order)), first)
        for at in range(1, len(order)):
            change = scores[:, at] - scores[:, at - 1] - self.rate * self.costs[:, order[at]]
            worth += change @ (leads[:, at - 1, None] < self.stops(order)) / len(self)
        return worth


def moves(order: Order, added: Sequence[int]) -> Iterator[Order]:
    """The orders one step away: one of these models more, or in another's place, two neighbours the other way round, one fewer."""
    for model in added:
        for at in range(len(order)):
            yield (*order[:at], model, *order[at + 1 :])
        for at in range(len(order) + 1 if len(order) < LARGEST else 0):
            yield (*order[:at], model, *order[at:])
    for at in range(len(order) if len(order) > 1 else 0):
        yield (*order[:at], *order[at + 1 :])
    for at in range(len(order) - 1):
        yield (*order[:at], order[at + 1], order[at], *order[at + 2 :])


class Search:
    """The best plan over all categories, and in each of them, on past rows. `pull`: what holds everywhere counts in a category as so many of its queries."""

    def __init__(self, past: Past, categories: Whole, pull: float, random: np.random.Generator) -> None:
        self._past, self._categories, self._pull = past, categories, pull
        drawn = random.permutation(len(past))[:SAMPLE]
        self._sample = past.rows(np.sort(drawn))
        self._prices = past.costs.mean(axis=0)
        self._known: dict[Order, Floats] = {}

    def everywhere(self, order: Order) -> Floats:
        """Worth over all categories, by stops; each order is played once."""
        if order not in self._known:
            self._known[order] = self._sample.worth(order)
        return self._known[order]

    def general(self) -> Plan:
        """The best plan over all categories."""
        return self._found([()], self.everywhere, self.everywhere)

    def within(self, category: int, general: Plan) -> Plan:
        """The best plan in this category: its own rows count by their number, what holds everywhere as `pull` of them."""
        rows = self._past.rows(np.flatnonzero(self._categories == category)[:SAMPLE])
        share, known = len(rows) / (len(rows) + self._pull), dict[Order, Floats]()

        def here(order: Order) -> Floats:
            if order not in known:
                known[order] = rows.worth(order)
            return known[order]

        def both(order: Order) -> Floats:
            return share * here(order) + (1 - share) * self.everywhere(order)

        alike = not len(rows) or len(rows) == len(self._past)
        return general if alike else self._found([general.order], here, both)

    def _found(self, starts: Sequence[Order], quick: Worth, full: Worth) -> Plan:
        """The plan at the end of the climb from the best start. A second model alone seldom pays, since two can only differ: so groups are starts too."""
        models = range(self._past.codes.shape[1])
        good = tuple(sorted(models, key=lambda model: -float(full((model,))[0])))
        cheap = tuple(sorted(models, key=lambda model: (float(self._prices[model]), model)))[:2]
        groups = [good[:1], good[:3], good[:5], (*cheap, *(one for one in good if one not in cheap))[:5], *starts]
        ranked = sorted((one for one in groups if one), key=lambda one: -float(full(one).max()))
        order = max(
            (self._climb(one, quick, full) for one in ranked[:CLIMBERS]), key=lambda one: float(full(one).max())
        )
        return Plan(order, float(self._past.stops(order)[int(np.argmax(full(order)))]))

    def _climb(self, order: Order, quick: Worth, full: Worth) -> Order:
        """From this order upwards; moves are ranked by the quick worth, and the best of them compared by the full one."""
        worth = float(full(order).max())
        for _ in range(CLIMBS):
            near = sorted(self._moves(order, quick), key=lambda one: (-float(quick(one).max()), one))[:WEIGHED]
            risen, best = max(((float(full(one).max()), one) for one in near), default=(worth, order))
            if risen <= worth + RISE:
                return order
            worth, order = risen, best
        return order

    def _moves(self, order: Order, quick: Worth) -> Iterator[Order]:
        """The moves with those models that would add most, if they were asked last."""
        others = set(range(self._past.codes.shape[1])) - set(order)
        last = order if len(order) < LARGEST else order[:-1]
        added = sorted(others, key=lambda model: (-float(quick((*last, model)).max()), model))
        return moves(order, added[:TRIED])
